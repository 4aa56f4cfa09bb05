"""How a host of the inventory becomes a container: the one definition of a simulated VM."""

from __future__ import annotations

import ipaddress
import pathlib
from collections.abc import Mapping, Sequence
from importlib import util
from typing import Any

# Short enough for a network interface, and the name by which `./lab` knows its own route.
BRIDGE = "airflow-lab"
#: Directories with all that an installation writes.
WRITTEN = ("/home", "/opt", "/usr", "/var")


def driver_playbook(name: str) -> str:
    """Return the path of a playbook of Molecule's docker driver.

    Args:
        name: The action, such as `create`.
    """
    spec = util.find_spec("molecule_plugins.docker")
    if spec is None or spec.origin is None:
        message = "molecule-plugins[docker] is not installed beside Ansible: see pyproject.toml"
        raise ModuleNotFoundError(message)
    return str(pathlib.Path(spec.origin).parent / "playbooks" / f"{name}.yml")


def container_name(host: str, scenario: str) -> str:
    """Return the name of the container that plays a host.

    Args:
        host: The host's name in the inventory.
        scenario: The scenario's name, which is the inventory's.
    """
    return f"{BRIDGE}-{scenario}-{host}"


def _network(addresses: Sequence[str]) -> str:
    networks = {ipaddress.ip_network(f"{address}/24", strict=False) for address in addresses}
    if len(networks) != 1:
        message = f"the lab's VMs must share one /24 network, not {sorted(map(str, networks))}"
        raise ValueError(message)
    return str(networks.pop())


def vm_platforms(
    platforms: Sequence[Mapping[str, Any]],
    hostvars: Mapping[str, Mapping[str, Any]],
    scenario: str,
    suite: str,
    files: str,
    cache: str,
) -> list[dict[str, Any]]:
    """Return Molecule's platforms in full: what the docker driver makes containers from.

    Args:
        platforms: The scenario's platforms; each name is a host of the inventory.
        hostvars: Ansible's variables of all hosts.
        scenario: The scenario's name.
        suite: The Debian release, which is the image's tag.
        files: The directory of the files that every VM is given.
        cache: The directory whose content outlives the VMs.
    """
    names = [str(platform["name"]) for platform in platforms]
    addresses = {name: str(hostvars[name]["ansible_host"]) for name in names}
    network = {
        "name": f"{BRIDGE}-{scenario}",
        "ipam_config": [{"subnet": _network(list(addresses.values()))}],
        "driver_options": {"com.docker.network.bridge.name": BRIDGE},
    }
    labels = {
        # Not "molecule": `molecule reset` of any project removes all that carry that.
        "owner": BRIDGE,
        f"{BRIDGE}.scenario": scenario,
        f"{BRIDGE}.files": files,
    }
    return [
        {
            "name": container_name(name, scenario),
            "hostname": name,
            "image": f"{BRIDGE}:{suite}",
            "pre_build_image": True,
            "pull": "never",  # an image of that name elsewhere is not ours
            "command": "/lib/systemd/systemd",
            "stop_signal": "SIGRTMIN+3",  # how systemd is told to shut down
            "docker_networks": [network],
            "networks": [{"name": network["name"], "ipv4_address": addresses[name]}],
            "labels": labels,
            # What systemd needs as process 1, and no more: not `privileged`.
            "capabilities": ["SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE"],
            "security_opts": ["seccomp=unconfined", "apparmor=unconfined"],
            # With the host's cgroup namespace one set of options serves cgroup v1 and v2.
            "cgroupns_mode": "host",
            "keep_volumes": False,
            "tmpfs": ["/run", "/run/lock", "/tmp:exec"],  # noqa: S108 - the VM mounts its own
            # A file system as a VM has: to create a file on the container's own takes three times as long.
            "volumes": [
                *WRITTEN,
                "/sys/fs/cgroup:/sys/fs/cgroup:rw",
                f"{files}/authorized_keys:/etc/ssh/lab_authorized_keys:ro",
                f"{files}/environment:/etc/environment:ro",
                f"{files}/ca-certificates.crt:/etc/ssl/lab/ca-certificates.crt:ro",
                f"{files}/apt.conf:/etc/apt/apt.conf.d/95lab:ro",
                f"{cache}/uv:/var/cache/lab/uv",
                # One directory a host: apt locks it, so VMs cannot share one.
                f"{cache}/apt/{suite}/{name}:/var/cache/apt/archives",
            ],
        }
        for name in names
    ]


class FilterModule:
    """The filters, as Ansible finds them."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "lab_driver_playbook": driver_playbook,
            "lab_container_name": container_name,
            "lab_vm_platforms": vm_platforms,
        }
