"""A VM is drained, comes back, leaves the cluster and joins it again: in ssh mode, where that takes seconds."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Cluster, SiteRun, calls, changes
from testinfra.host import Host


@pytest.fixture(scope="module", autouse=True)
def in_ssh_mode(cluster: Cluster) -> None:
    if cluster.mode != "ssh":
        pytest.skip("in celery mode VMs leave and join by test_under_load.py")


@pytest.fixture
def vm(cluster: Cluster) -> str:
    return str(cluster.targets[-1]["name"])


def waiting(main: Host, vm: str) -> int:
    return int(json.loads(main.check_output(f"remote-tasks queues --json {vm}_queue"))[f"{vm}_queue"]["waiting"])


def lines(host: Host) -> list[str]:
    return list(host.run("cat /tmp/drained").stdout.split())


def recap(run: Any, host: str) -> str:
    return str(next(line for line in run.stdout.split("PLAY RECAP")[1].splitlines() if line.startswith(f"{host} ")))


def test_a_drained_vm_finishes_what_it_runs_and_its_tasks_wait(
    cluster: Cluster, main: Host, site: SiteRun, vm: str
) -> None:
    other = cluster.targets[0]["name"]
    host = cluster.host(vm)
    host.run("rm -f /tmp/drained")
    try:
        # Two slots: two run, for longer than the playbook needs to begin, and one waits.
        calls(cluster, vm, "sleep 25; echo done >> /tmp/drained", count=3, timeout=0)
        time.sleep(2)
        run = site("--extra-vars", f"vm={vm}", playbook="playbooks/drain_vm.yml")
        assert f"{vm} runs no tasks, and 1 wait for it" in " ".join(run.stdout.split())
        assert lines(host) == ["done", "done"]
        assert not main.service(f"airflow-worker-{vm}").is_running
        # The others go on.
        assert calls(cluster, other, "hostname", count=1, timeout=20) == [other]
        assert waiting(main, vm) == 1
    finally:
        site("--extra-vars", f"vm={vm}", playbook="playbooks/resume_vm.yml")
    assert calls(cluster, vm, "hostname", count=1, timeout=30) == [vm]  # the second slot
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(lines(host)) < 3:
        time.sleep(0.5)
    assert lines(host) == ["done"] * 3
    host.run("rm -f /tmp/drained")


def test_a_name_that_is_no_vm_is_refused(site: SiteRun) -> None:
    for playbook in ("drain_vm", "resume_vm", "remove_vm"):
        for named in ([], ["--extra-vars", "vm=main"]):
            refused = site(*named, playbook=f"playbooks/{playbook}.yml", check=False)
            assert refused.returncode != 0
            assert "is no target VM. Write -e vm=NAME" in " ".join(refused.stdout.split()), playbook


def test_a_removal_is_asked_for(site: SiteRun, vm: str) -> None:
    refused = site("--extra-vars", f"vm={vm}", playbook="playbooks/remove_vm.yml", check=False)
    assert refused.returncode != 0
    assert "Nothing was changed" in refused.stdout


def test_a_vm_leaves_and_joins_again_and_no_other_worker_is_restarted(
    cluster: Cluster, main: Host, site: SiteRun, broker: Callable[..., Any], vm: str
) -> None:
    units = [worker["unit"] for worker in cluster.workers if worker["name"] != vm] + ["airflow-scheduler"]

    def started() -> list[str]:
        shown = "systemctl show --property=ExecMainStartTimestampMonotonic --value"
        return [main.run(f"{shown} {unit}").stdout for unit in units]

    before = started()
    arguments = ["--extra-vars", f"vm={vm} yes=true"]
    try:
        site("--extra-vars", f"vm={vm}", playbook="playbooks/drain_vm.yml")
        calls(cluster, vm, "hostname", count=2, timeout=0)
        refused = site(*arguments, playbook="playbooks/remove_vm.yml", check=False)
        assert refused.returncode != 0
        assert f"2 messages wait in {vm}_queue" in " ".join(refused.stdout.split())
        assert "resume_vm.yml" in refused.stdout
        assert waiting(main, vm) == 2

        site("--extra-vars", f"vm={vm} yes=true messages=discard", playbook="playbooks/remove_vm.yml")
        assert f"{vm}_queue" not in [q["name"] for q in broker("list_queues", "-p", "airflow_host", "name")]
        assert not main.file(f"/etc/systemd/system/airflow-worker-{vm}.service").exists
        assert main.run(f"remote-tasks run {vm} -- hostname").rc == 2
        assert cluster.address(vm) not in main.file("/etc/airflow/ssh/known_hosts").content_string
        connections = main.run("airflow connections list -o yaml")
        assert cluster.targets[0]["name"] in connections.stdout
        assert f"conn_id: {vm}\n" not in connections.stdout
        assert not cluster.host(vm).file("/home/rocky/.ssh").exists
    finally:
        # As a new VM: it alone, and what must learn of it.
        added = site("--limit", f"{vm},{cluster.first('scheduler')}")
    assert f"{vm}_queue" in [q["name"] for q in broker("list_queues", "-p", "airflow_host", "name")]
    assert main.run(f"remote-tasks run {vm} -- hostname").stdout.strip() == vm
    assert "unreachable=0" in recap(added, vm)
    assert started() == before


def test_a_vm_that_is_gone_is_removed_without_it(cluster: Cluster, main: Host, site: SiteRun, vm: str) -> None:
    host = cluster.host(vm)
    # Nobody answers there for a while; it comes back by itself, as nobody could reach it to bring it back.
    away = "systemctl stop ssh; pkill -x sshd; sleep 110; systemctl start ssh"
    host.run(f"systemd-run --unit=away sh -c {away!r}")
    try:
        time.sleep(2)
        unreachable = site(check=False)
        assert unreachable.returncode != 0
        assert f"{vm} ({cluster.address(vm)}) cannot be reached" in " ".join(unreachable.stdout.split())
        assert changes(unreachable) == []
        site("--extra-vars", f"vm={vm} yes=true vm_is_gone=true", playbook="playbooks/remove_vm.yml")
        assert not main.file(f"/etc/systemd/system/airflow-worker-{vm}.service").exists
        assert main.run(f"remote-tasks run {vm} -- hostname").rc == 2
    finally:
        deadline = time.monotonic() + 150
        while time.monotonic() < deadline:
            try:
                if host.run("true").rc == 0:
                    break
            except RuntimeError:  # how testinfra says that ssh has failed
                time.sleep(2)
        site()
    assert main.run(f"remote-tasks run {vm} -- hostname").stdout.strip() == vm
