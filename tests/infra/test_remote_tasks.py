"""Commands and files on target VMs: from a script on main, from its shell, with plain Celery, in both modes."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import IS_255, Cluster
from testinfra.host import Host

Script = Callable[[str], Any]


@pytest.fixture
def script(cluster: Cluster) -> Script:
    """Run a script on main, as `sudo airflow-python -` does, and return what it printed, as JSON."""

    def run(text: str) -> Any:
        printed = cluster.feed(cluster.first("scheduler"), "airflow-python -", text)
        return json.loads(printed.splitlines()[-1])

    return run


@pytest.fixture
def vms(cluster: Cluster) -> list[str]:
    return [target["name"] for target in cluster.targets]


def test_two_lines_run_a_command_on_a_vm(script: Script, vms: list[str]) -> None:
    for vm in vms:
        result = script(
            f'import json, remote_tasks\nprint(json.dumps(remote_tasks.execute_on_vm("{vm}", "hostname; whoami")))'
        )
        # The login, and not the worker's user: the same in both modes.
        assert result["output"].split() == [vm, "rocky"]
        assert (result["success"], result["exit_code"]) == (True, 0)


def test_plain_celery_works_as_well(script: Script, cluster: Cluster) -> None:
    """As any script that knows the names of task and queue would send it."""
    for target in cluster.targets:
        text = f"""
import json
from airflow.providers.celery.executors.celery_executor import app
call = app.send_task("remote_tasks.execute_on_vm", args=["{target["name"]}", "hostname"], queue="{target["queue"]}")
print(json.dumps(call.get(timeout=30)))
"""
        result = script(text)
        assert result["output"] == target["name"]
        assert set(result) >= {"host", "command", "exit_code", "output", "error", "success", "timestamp"}


def test_a_nonzero_exit_is_a_result(script: Script, vms: list[str]) -> None:
    result = script(
        f'import json, remote_tasks\nprint(json.dumps(remote_tasks.execute_on_vm("{vms[0]}", "echo no >&2; exit 3")))'
    )
    assert (result["success"], result["exit_code"], result["error"]) == (False, 3, "no")


def test_all_vms_at_once(script: Script, vms: list[str]) -> None:
    results = script('import json, remote_tasks\nprint(json.dumps(remote_tasks.execute_on_all_vms("hostname")))')
    assert {name: result["output"] for name, result in results.items()} == {name: name for name in vms}


def test_the_status_of_a_vm_has_numbers(script: Script, vms: list[str]) -> None:
    status = script(f'import json, remote_tasks\nprint(json.dumps(remote_tasks.check_vm_status("{vms[0]}")))')
    assert status["overall_status"] is True
    assert status["checks"]["hostname"]["output"] == vms[0]
    assert status["numbers"]["memory_total_mib"] > 100
    assert status["numbers"]["uptime_seconds"] > 1


def test_a_file_goes_from_vm_to_vm(script: Script, cluster: Cluster, vms: list[str]) -> None:
    source, dest = cluster.host(vms[0]), cluster.host(vms[-1])
    name = "/tmp/a file with spaces, 'quotes' and é.bin"  # noqa: S108 - on the VMs
    try:
        source.run(f"head -c 3000000 /dev/urandom > {shlex.quote(name)}; chmod 0644 {shlex.quote(name)}")
        text = f"""
import json, remote_tasks
print(json.dumps(remote_tasks.file_transfer({vms[0]!r}, {vms[-1]!r}, {name!r}, {name + ".copy"!r})))
"""
        result = script(text)
        assert result["success"], result["error"]
        sums = [
            host.run(f"sha256sum < {shlex.quote(path)}").stdout
            for host, path in ((source, name), (dest, f"{name}.copy"))
        ]
        assert sums[0] == sums[1]
        assert dest.file(f"{name}.copy").user == "rocky"
        assert "remote-tasks" not in dest.run("ls -a /tmp").stdout
    finally:
        source.run(f"rm -f {shlex.quote(name)}")
        dest.run(f"rm -f {shlex.quote(name + '.copy')}")


def test_the_shell_command_on_main(main: Host, vms: list[str]) -> None:
    assert main.run(f"remote-tasks run {vms[0]} -- hostname").stdout == f"{vms[0]}\n"
    assert main.run(f"remote-tasks run {vms[0]} -- 'exit 7'").rc == 7
    assert main.run("remote-tasks run vm99 -- hostname").rc == 2
    listed = json.loads(main.run("remote-tasks list --json").stdout)
    assert [target["name"] for target in listed] == vms
    assert json.loads(main.run("remote-tasks status --json").stdout).keys() == set(vms)


def test_a_time_out_leaves_nothing_running_on_the_vm(main: Host, cluster: Cluster, vms: list[str]) -> None:
    marker = "8675.309"
    late = main.run(f"remote-tasks run --timeout 2 {vms[0]} -- 'sleep {marker} & sleep {marker}'{IS_255}")
    assert late.rc == 254
    assert "ran longer than 2 s" in late.stderr
    assert cluster.host(vms[0]).run(f"pgrep --list-full --full '[s]leep {marker}'").stdout == ""


#: Each call notes when it began and ended, by the VM's own clock.
BUSY = """
import json, time
from remote_tasks.client import get_client
client = get_client()
began = time.time()
calls = [client.submit("remote_tasks.execute_on_vm", [{busy!r}, "date +%s.%N; sleep 1; date +%s.%N"],
                       queue="{busy}_queue") for _ in range(10)]
idle = []
for _ in range(5):
    asked = time.time()
    client.call("remote_tasks.execute_on_vm", [{other!r}, "hostname"], queue="{other}_queue")
    idle.append(time.time() - asked)
    time.sleep(0.2)
print(json.dumps([idle, [call.result(60)["output"].split() for call in calls]]))
"""


def test_a_busy_vm_delays_no_other_and_its_slots_are_bounded(script: Script, cluster: Cluster, vms: list[str]) -> None:
    slots = {"ssh": 2, "celery": 4}[cluster.mode]
    # Each pool process connects at its first command: not what is measured here.
    script(BUSY.format(busy=vms[1], other=vms[0]))
    idle, spans = script(BUSY.format(busy=vms[1], other=vms[0]))
    assert max(idle) < 1, "a call for an idle VM waited for a busy one"
    times = [(float(begin), float(end)) for begin, end in spans]
    at_once = [sum(begin <= moment < end for begin, end in times) for moment, _ in times]
    assert max(at_once) == slots


@pytest.fixture
def cut_off(cluster: Cluster, vms: list[str]) -> Iterator[str]:
    """A VM that does not hear main, as if it were switched off; it hears main again by itself, too."""
    vm = vms[-1]
    host, address = cluster.host(vm), cluster.address(cluster.first("scheduler"))
    host.run(f"systemd-run --unit=hear-again --on-active=120 ip route del blackhole {address}")
    try:
        assert host.run(f"ip route add blackhole {address}").rc == 0
        yield vm
    finally:
        host.run(f"ip route del blackhole {address}; systemctl stop hear-again.timer")


@pytest.fixture
def impatient(main: Host) -> Iterator[None]:
    """Main tries again after a second, and not after a minute."""
    path = "/etc/airflow/targets.json"
    before = main.file(path).content_string
    changed = json.loads(before)
    changed["settings"].update(retry_delay=1, retry_max=2, connect_timeout=3)
    try:
        main.run(f"printf '%s' {shlex.quote(json.dumps(changed))} > {path}")
        yield
    finally:
        main.run(f"printf '%s' {shlex.quote(before)} > {path}")


DEAD = """
import json, time
from remote_tasks.client import get_client
client = get_client()
dead = client.submit("remote_tasks.execute_on_vm", [{dead!r}, "hostname"], queue={queue!r})
began = time.time()
alive = client.call("remote_tasks.execute_on_vm", [{alive!r}, "hostname"], queue="{alive}_queue", timeout=20)
waited = time.time() - began
everyone = client.call("remote_tasks.execute_on_all_vms", ["hostname"], queue="all_vms_queue", timeout=60)
try:
    dead.result(90)
    error = ""
except Exception as failure:
    error = f"{{type(failure).__name__}}: {{failure}}"
print(json.dumps([alive["output"], waited, {{name: r["success"] for name, r in everyone.items()}}, error]))
"""


@pytest.mark.usefixtures("impatient")
def test_a_vm_that_is_down_fails_its_own_tasks_alone(
    script: Script, cluster: Cluster, vms: list[str], cut_off: str
) -> None:
    # In celery mode its own worker is cut off with it, and the call waits: so main's general worker is asked.
    queue = f"{cut_off}_queue" if cluster.mode == "ssh" else "all_vms_queue"
    began = time.monotonic()
    output, waited, everyone, error = script(DEAD.format(dead=cut_off, alive=vms[0], queue=queue))
    assert (output, waited < 2) == (vms[0], True)
    assert everyone == {name: name != cut_off for name in vms}
    assert error.startswith("ConnectError: ")
    assert cut_off in error
    assert "Is the VM up" in error
    assert time.monotonic() - began < 60
