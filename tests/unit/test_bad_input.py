"""Bad input is refused by the very playbook, before a host is contacted: so these tests need none."""

from __future__ import annotations

import pathlib
import subprocess
from typing import Any

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]


def inventory() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "inventory/distributed/hosts.yml").read_text())  # type: ignore[no-any-return]


def refused(path: pathlib.Path, hosts: dict[str, Any], mode: str = "celery") -> str:
    """What site.yml says to this inventory; fails when it does not refuse, or tried to reach a host."""
    path.write_text(yaml.safe_dump(hosts))
    command = ["ansible-playbook", "-i", str(path), "site.yml", "--extra-vars", f"mode={mode}"]
    # A connection that cannot be made: had a host been contacted, it would be unreachable.
    command += ["--extra-vars", "ansible_connection=ssh ansible_ssh_executable=/nonexistent/ssh"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    said = run.stdout + run.stderr
    assert run.returncode != 0, said
    recap = said.split("PLAY RECAP")[1]
    assert "changed=0" in recap
    assert "unreachable=1" not in recap, said
    return " ".join(said.split())


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "hosts.yml"


def test_an_unknown_mode(path: pathlib.Path) -> None:
    assert "'kubernetes' is not a mode. Write 'celery'" in refused(path, inventory(), mode="kubernetes")


def test_no_scheduler(path: pathlib.Path) -> None:
    hosts = inventory()
    hosts["all"]["children"]["schedulers"] = hosts["all"]["children"].pop("scheduler")
    assert "group scheduler: no host in it" in refused(path, hosts)


def test_two_hosts_with_one_address(path: pathlib.Path) -> None:
    hosts = inventory()
    hosts["all"]["hosts"]["vm3"]["ansible_host"] = "192.168.83.130"
    assert "vm2 and vm3 have the same address 192.168.83.130" in refused(path, hosts)


def test_a_limit_that_systemd_would_ignore(path: pathlib.Path) -> None:
    hosts = inventory()
    hosts["all"]["hosts"]["vm3"]["celery_worker_memory_max"] = "half"
    assert "vm3: celery_worker_memory_max is 'half'. Write a part of the memory" in refused(path, hosts)


def test_two_hosts_with_one_queue(path: pathlib.Path) -> None:
    hosts = inventory()
    hosts["all"]["hosts"]["vm3"]["target_queue"] = "vm2_queue"
    assert "vm2 and vm3 share the queue 'vm2_queue'" in refused(path, hosts)


def test_a_name_that_makes_no_queue(path: pathlib.Path) -> None:
    hosts = inventory()
    hosts["all"]["hosts"]["VM 2"] = {"ansible_host": "192.168.83.140"}
    hosts["all"]["children"]["target_vms"]["hosts"] = {"VM 2": None}
    assert "host 'VM 2': the name becomes a queue" in refused(path, hosts)


def test_a_password_of_the_reference_documents(path: pathlib.Path) -> None:
    hosts = inventory()
    hosts["all"]["vars"]["secrets"] = {"database_password": "airflow_pass", "admin_pasword": "xT6vLw9qRz2k"}
    said = refused(path, hosts)
    assert "secrets.database_password is one of the passwords that everybody tries first" in said
    assert "secrets.admin_pasword: there is no such secret" in said
    assert "xT6vLw9qRz2k" not in said


def test_secrets_that_others_can_read(path: pathlib.Path) -> None:
    (path.parent / "secrets").mkdir(mode=0o755)
    (path.parent / "secrets").chmod(0o755)
    said = refused(path, inventory())
    assert f"others on this machine may read or change secrets there. Write: chmod -R go= {path.parent}/secrets" in said
