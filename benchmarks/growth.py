#!/usr/bin/env python3
"""How a run with nothing to change grows with the target VMs, and a command on all of them.

``./lab bench growth``, with the lab's VMs: it adds more of them, one size after the other, and removes them at the end.
A simulated VM in mode ssh is an idle sshd, so 24 are soon there; one in mode celery has all of Airflow, sets it up on
the machine's own cores and stays in its memory.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import ipaddress
import itertools
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
sys.path.insert(1, f"{sys.path[0]}/molecule/shared/filter_plugins")

import docker
import lab
from docker.models.containers import Container
from docker.types import EndpointConfig

from benchmarks import measured, running

SIZES = (3, 6, 12, 24)
WATCHES = pathlib.Path("/proc/sys/fs/inotify/max_user_instances")
#: Instances that a VM takes: five of its systemd, one of logind, one of firewalld, and some to spare.
WATCHES_EACH = 10
#: The number of target VMs that the command on all VMs is run with, in mode ssh.
FAN_OUT_TARGETS = 24


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the lab keeps what it knows of its VMs.

    Attributes:
        inventory: The shipped inventory's directory.
        directory: What was made for its VMs, below .lab.
    """

    inventory: pathlib.Path
    directory: pathlib.Path

    @property
    def hosts(self) -> pathlib.Path:
        """The inventory of the added VMs."""
        return self.directory / "growth.yml"

    @property
    def ssh_config(self) -> pathlib.Path:
        """The SSH client's configuration."""
        return self.directory / "ssh_config"

    @property
    def known_hosts(self) -> pathlib.Path:
        """The VMs' host keys."""
        return self.directory / "known_hosts"


def added_hosts(present: Mapping[str, str], count: int) -> dict[str, str]:
    """Name VMs to add, and give them the addresses behind those that there are.

    Args:
        present: Host to address.
        count: How many to add.

    Returns:
        Host to address.

    Raises:
        ValueError: The network, a /24, has no room.
    """
    last = max(ipaddress.ip_address(address) for address in present.values())
    names = (name for name in (f"vm{number}" for number in itertools.count(1)) if name not in present)
    found = {name: str(last + place) for name, place in zip(names, range(1, count + 1), strict=False)}
    if any(address.rpartition(".")[0] != str(last).rpartition(".")[0] for address in found.values()):
        message = f"no room behind {last} for {count} more VMs"
        raise ValueError(message)
    return found


def inventory(hosts: Mapping[str, str], directory: pathlib.Path) -> dict[str, Any]:
    """Return an inventory that adds target VMs.

    Args:
        hosts: Host to address.
        directory: The inventory that they are added to, whose secrets are theirs as well.
    """
    own = {
        name: {"ansible_host": address, "secrets_directory": str(directory / "secrets")}
        for name, address in hosts.items()
    }
    return {"all": {"hosts": own, "children": {"target_vms": {"hosts": {name: {} for name in hosts}}}}}


def container_options(platform: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the Docker SDK makes a simulated VM from.

    Args:
        platform: As `lab.vm_platforms` has it for Molecule's driver.
    """
    (network,) = platform["networks"]
    return {
        "image": platform["image"],
        "command": platform["command"],
        "name": platform["name"],
        "hostname": platform["hostname"],
        "stop_signal": platform["stop_signal"],
        "labels": dict(platform["labels"]),
        "cap_add": list(platform["capabilities"]),
        "security_opt": list(platform["security_opts"]),
        "cgroupns": platform["cgroupns_mode"],
        "tmpfs": {path: options for path, _, options in (entry.partition(":") for entry in platform["tmpfs"])},
        "volumes": list(platform["volumes"]),
        "network": network["name"],
        "networking_config": {
            network["name"]: EndpointConfig("1.42", ipv4_address=network["ipv4_address"]),
        },
    }


def _said(vm: Container, *command: str) -> str:
    output = vm.exec_run(list(command)).output
    return output.decode().strip() if isinstance(output, bytes) else ""


def booted(vm: Container) -> str:
    """Wait until a VM has booted, and return its host key.

    Args:
        vm: The container.

    Raises:
        running.BenchmarkError: It does not reach the state `running`.
    """
    for _ in range(60):
        state = _said(vm, "systemctl", "is-system-running", "--wait")
        if state == "running":
            return " ".join(_said(vm, "cat", "/etc/ssh/ssh_host_ed25519_key.pub").split()[:2])
        time.sleep(0.5)
    message = f"{vm.name} does not reach the state 'running': {state}"
    raise running.BenchmarkError(message)


class Growth:
    """VMs that are added to the lab's.

    Attributes:
        hosts: Those that are there: host to address.
    """

    def __init__(self, cluster: running.Cluster, place: Place) -> None:
        """Add none yet.

        Args:
            cluster: The lab's.
            place: Where it keeps what it knows of its VMs.
        """
        self.hosts: dict[str, str] = {}
        self._cluster = cluster
        self._place = place
        self._docker = docker.from_env()
        self._containers: list[Container] = []
        self._before = {file: file.read_text() for file in (place.ssh_config, place.known_hosts)}
        self._sources = os.environ["ANSIBLE_INVENTORY"]

    def grow(self, size: int) -> list[str]:
        """Have so many target VMs.

        Args:
            size: Not fewer than there are.

        Returns:
            Their names.
        """
        present = {name: self._cluster.address(name) for name in self._cluster.variables}
        wanted = added_hosts(present, size - len(self._cluster.vms))
        new = {name: address for name, address in wanted.items() if name not in self.hosts}
        platforms = (
            lab.vm_platforms(
                [{"name": name} for name in new],
                {name: {"ansible_host": address} for name, address in new.items()},
                self._cluster.directory.name,
                suite=os.environ["LAB_SUITE"],
                files=str(measured.ROOT / ".lab/vm"),
                cache=os.environ["LAB_CACHE"],
            )
            if new
            else []
        )
        made = []
        for platform in platforms:
            vm = self._docker.containers.create(**container_options(platform))
            self._containers.append(vm)
            vm.start()
            made.append(vm)
        for (name, address), vm in zip(new.items(), made, strict=True):
            known = f"{name},{address} {booted(vm)}\n"
            self._place.known_hosts.write_text(self._place.known_hosts.read_text() + known)
            entry = f"Host {name}\n    HostName {address}\n"
            self._place.ssh_config.write_text(entry + self._place.ssh_config.read_text())
        self.hosts = wanted
        self._place.hosts.write_text(json.dumps(inventory(wanted, self._cluster.directory), indent=1) + "\n")
        os.environ["ANSIBLE_INVENTORY"] = f"{self._sources},{self._place.hosts}"
        return [*self._cluster.vms, *wanted]

    def remove(self) -> None:
        """Remove all VMs that were added, and all that was made for them on the control node.

        Raises:
            docker.errors.APIError: VMs could not be removed; all else is done.
        """
        os.environ["ANSIBLE_INVENTORY"] = self._sources
        for file, text in self._before.items():
            file.write_text(text)
        self._place.hosts.unlink(missing_ok=True)
        for name in self.hosts:
            for file in (
                self._place.inventory / f"certificates/{name}.pem",
                *self._place.inventory.glob(f"secrets/*_{name}"),
            ):
                file.unlink(missing_ok=True)
        self.hosts = {}
        with contextlib.ExitStack() as each:
            while self._containers:
                each.callback(self._containers.pop().remove, force=True, v=True)


@contextlib.contextmanager
def growing(cluster: running.Cluster, place: Place) -> Iterator[Growth]:
    """Add VMs, and have the cluster without them afterwards.

    Args:
        cluster: The lab's.
        place: Where it keeps what it knows of its VMs.

    Yields:
        The VMs that are added.
    """
    growth = Growth(cluster, place)
    mode = cluster.mode()
    try:
        yield growth
    finally:
        try:
            growth.remove()
        finally:
            running.playbook(values={"mode": mode})


@contextlib.contextmanager
def more_watches(vms: int) -> Iterator[None]:
    """Let each VM's systemd watch files: Linux gives all of a user's containers 128 inotify instances together.

    Args:
        vms: How many there will be.

    Yields:
        Nothing, while there are enough.

    Raises:
        running.BenchmarkError: There are too few, and this user may not have more.
    """
    before = int(WATCHES.read_text())
    wanted = before + vms * WATCHES_EACH
    try:
        try:
            WATCHES.write_text(str(wanted))
        except OSError as error:
            if vms * WATCHES_EACH > before // 2:
                message = (
                    f"too few inotify instances for {vms} VMs: sudo sysctl -w fs.inotify.max_user_instances={wanted}"
                )
                raise running.BenchmarkError(message) from error
        yield
    finally:
        with contextlib.suppress(OSError):
            WATCHES.write_text(str(before))


def measure(growth: Growth, mode: str, sizes: Sequence[int], rounds: int) -> Iterator[tuple[int, list[float]]]:
    """Measure runs with nothing to change in one mode.

    Args:
        growth: The VMs.
        mode: celery or ssh.
        sizes: Numbers of target VMs, from small to large.
        rounds: Runs of each size.

    Yields:
        A number of target VMs, and the seconds of each run with them.
    """
    for size in sizes:
        print(f"mode {mode}, {size} target VMs", flush=True)
        growth.grow(size)
        print(f"set up in {running.playbook(values={'mode': mode}):.0f} s", flush=True)
        took = [running.playbook(values={"mode": mode}, may_change=False) for _ in range(rounds)]
        print(f"with nothing to change: {statistics.median(took):.1f} s", flush=True)
        yield size, took


def one_more(figures: Mapping[int, Sequence[float]]) -> float:
    """Return what one more target VM costs, in seconds: between the smallest and the largest size.

    Args:
        figures: Seconds by the number of target VMs.
    """
    smallest, largest = min(figures), max(figures)
    more = statistics.median(figures[largest]) - statistics.median(figures[smallest])
    return more / (largest - smallest) if largest > smallest else 0.0


def at_most(smallest: int, largest: int) -> float:
    """Return how many times as long a run may take: 2.5 for 24 VMs beside 3, and in proportion for fewer.

    Args:
        smallest: The number of target VMs that is held against.
        largest: The other one.
    """
    return 1 + (2.5 - 1) * (largest - smallest) / (24 - 3)


def comparison(figures: Mapping[int, Sequence[float]], mode: str) -> measured.Comparison:
    """Return what was held against what in one mode.

    Args:
        figures: Seconds by the number of target VMs.
        mode: celery or ssh.
    """
    smallest, largest = min(figures), max(figures)
    return measured.Comparison(
        what=f"`site.yml` with nothing to change and {largest} target VMs, mode {mode}",
        against=f"with {smallest}",
        unit="s",
        ours=figures[largest],
        baseline=figures[smallest],
        at_most=at_most(smallest, largest),
        note=f"one more VM costs {one_more(figures):.2f} s; {measured.cores()} cores do Ansible's part and the VMs'",
    )


def write(
    versions: Mapping[str, str],
    figures: Mapping[str, Mapping[int, Sequence[float]]],
    more: Sequence[measured.Comparison],
    plots: Sequence[measured.Plot],
) -> None:
    """Write the figures until now.

    Args:
        versions: Of what is measured, by name.
        figures: Seconds by the number of target VMs, by mode.
        more: Other comparisons.
        plots: Other plots.
    """
    lines = {
        mode: [(float(size), statistics.median(seconds)) for size, seconds in own.items()]
        for mode, own in figures.items()
    }
    plot = measured.Plot(title="site.yml with nothing to change", x="target VMs", y="s", lines=lines)
    measured.write(
        "growth",
        [*(comparison(own, mode) for mode, own in figures.items() if len(own) > 1), *more],
        versions=versions,
        plots=[plot, *plots],
        notes=[
            "All hosts share the machine's cores with each other and with the control node: what real VMs do at once, "
            "these do by turns. So the figures are above those of as many real VMs.",
        ],
    )


def fan_out(targets: Sequence[str]) -> tuple[measured.Comparison, measured.Plot]:
    """Run a command on all VMs at once.

    Args:
        targets: The target VMs.

    Returns:
        What was held against what, and the times between.
    """
    from benchmarks import fan_out as runs

    times = runs.measure(targets)
    by_count = dict(times)
    compared = measured.Comparison(
        what=f"`{runs.WORK}` on {max(by_count)} VMs at once",
        against="the same on one",
        unit="s",
        ours=[by_count[max(by_count)]],
        baseline=[by_count[1]],
        at_most=2.0,
    )
    plot = measured.Plot(title="A command on all VMs at once", x="target VMs", y="s", lines={runs.WORK: times})
    return compared, plot


def sizes(text: str) -> tuple[int, ...]:
    """Read an option's numbers.

    Args:
        text: Numbers with commas between, or nothing.

    Raises:
        argparse.ArgumentTypeError: They are not numbers above 2.
    """
    try:
        found = tuple(sorted({int(part) for part in text.split(",") if part}))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if found and found[0] < 3:
        message = "a size is a number of target VMs, 3 at least"
        raise argparse.ArgumentTypeError(message)
    return found


def main() -> None:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for mode in ("ssh", "celery"):
        parser.add_argument(
            f"--{mode}", type=sizes, default=SIZES, help=f"numbers of target VMs in mode {mode}: 3,6,12,24"
        )
    parser.add_argument("--rounds", type=int, default=3, help="runs of each size")
    options = parser.parse_args()
    cluster = running.Cluster.read()
    directory = running.lab_directory()
    place = Place(cluster.directory, directory)
    versions = cluster.versions()
    figures: dict[str, dict[int, list[float]]] = {}
    more: list[measured.Comparison] = []
    plots: list[measured.Plot] = []
    for mode, wanted in (("ssh", options.ssh), ("celery", options.celery)):
        if not wanted:
            continue
        try:
            with more_watches(max(wanted)), growing(cluster, place) as growth:
                for size, seconds in measure(growth, mode, wanted, options.rounds):
                    figures.setdefault(mode, {})[size] = seconds
                if mode == "ssh":
                    compared, plot = fan_out(growth.grow(max(wanted))[: max(FAN_OUT_TARGETS, len(cluster.vms))])
                    more.append(compared)
                    plots.append(plot)
        finally:
            # What was measured is not lost with what comes after it.
            if figures:
                write(versions, figures, more, plots)


if __name__ == "__main__":
    main()
