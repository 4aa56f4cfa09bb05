"""Every VM's health, commands on several VMs, and a file sent from one VM to another and read there.

A step that fails stops those after it, but not the cleaning up.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from airflow.sdk import DAG, TaskGroup, chain, task
from airflow.sdk.exceptions import AirflowException
from remote_tasks.actions import check_vm

from remote_tasks import RemoteCommandOperator, RemoteFileTransferOperator, Target, load_targets

SPECIFIC = {"uptime": "hostname && uptime", "disk": "df -h /", "memory": "free -m"}
PARALLEL = {"date": "hostname && date", "disks": "df -h", "processes": "ps aux | wc -l"}

# A name for this run alone, of a length that any file system takes: run ids are chosen by people.
RUN = "{{ macros.uuid.uuid5(macros.uuid.NAMESPACE_OID, run_id) }}"
PLACE = "/tmp"  # noqa: S108 - on the VMs, where people look for these files; a name there is that of one run
TEST_FILE = f"{PLACE}/test_file.{RUN}.txt"
RECEIVED_FILE = f"{PLACE}/received_file.{RUN}.txt"
CREATE = """printf 'test content %s %s\\n' "$1" "$(date)" | tee -- "$2" """


def shared_out(vms: Sequence[Target], names: Sequence[str]) -> list[tuple[Target, str]]:
    """Give each VM a command and each command a VM, in order; the shorter list begins again."""
    return [(vms[i % len(vms)], names[i % len(names)]) for i in range(max(len(vms), len(names)))]


def complaints(status: Mapping[str, Any]) -> str:
    """Say what is wrong with a VM, once, whichever of the checks say so."""
    checks: dict[str, list[str]] = {}
    for check in status["checks"].values():
        if not check["success"]:
            checks.setdefault(check["error"] or f"exit code {check['exit_code']}", []).append(check["command"])
    return "; ".join(f"{', '.join(commands)}: {error}" for error, commands in checks.items())


with DAG(
    dag_id="remote_vm_execution",
    description="The state of all VMs, commands on several, and a file from one to another",
    doc_md=__doc__,
    schedule=None,
    start_date=datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC),
    catchup=False,
    tags=["remote"],
):
    vms = list(load_targets())
    source, dest = vms[0], vms[min(1, len(vms) - 1)]

    @task(execution_timeout=datetime.timedelta(minutes=2))
    def check(vm: str) -> dict[str, Any]:
        """Ask a VM how it is."""
        status = check_vm(vm)
        if not status["overall_status"]:
            raise AirflowException(f"{vm} ({status['host']}) is not well: {complaints(status)}")
        return status

    with TaskGroup("check_all_vms") as check_all_vms:
        for vm in vms:
            check.override(task_id=vm.name, queue=vm.queue)(vm.name)

    steps = [check_all_vms]
    for group, commands in {"execute_on_specific_vm": SPECIFIC, "parallel_execution": PARALLEL}.items():
        with TaskGroup(group) as step:
            for vm, name in shared_out(vms, list(commands)):
                RemoteCommandOperator(task_id=f"{name}_on_{vm.name}", vm=vm.name, command=commands[name])
        steps.append(step)

    with TaskGroup("file_transfer_test") as file_transfer_test:
        create = RemoteCommandOperator(
            task_id="create", vm=source.name, command=["sh", "-c", CREATE, "create", "{{ run_id }}", TEST_FILE]
        )
        transfer = RemoteFileTransferOperator(
            task_id="transfer",
            source_vm=source.name,
            dest_vm=dest.name,
            source_path=TEST_FILE,
            dest_path=RECEIVED_FILE,
        )
        read = RemoteCommandOperator(task_id="read", vm=dest.name, command=["cat", "--", RECEIVED_FILE])

        @task
        def compare(made: Mapping[str, Any], received: Mapping[str, Any]) -> None:
            """Fail unless what was read is what was made."""
            if received["output"] != made["output"]:
                raise AirflowException(f"Made {made['output']!r}, and received {received['output']!r}.")

        chain(create, transfer, read, compare(create.output, read.output))

    with TaskGroup("cleanup_test_files") as cleanup_test_files:
        for vm in dict.fromkeys((source, dest)):
            RemoteCommandOperator(
                task_id=vm.name,
                vm=vm.name,
                command=["rm", "-f", "--", TEST_FILE, RECEIVED_FILE],
                trigger_rule="all_done",
            )

    chain(*steps, file_transfer_test)
    # Not after the comparison: a run is judged by its last tasks, and a failure before a cleanup would not count.
    read >> cleanup_test_files
