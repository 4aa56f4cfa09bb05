"""The DAGs for target VMs, run for real: the same files give the same results in both modes."""

from __future__ import annotations

import json
import pathlib
import shlex
import shutil
import time
from collections.abc import Iterator
from typing import Any

import airflow_api
import pytest
from conftest import Cluster, SiteRun
from testinfra.host import Host

EXECUTION = "remote_vm_execution"
PROCESSING = "remote_ftp_processing"


@pytest.fixture(scope="module")
def execution(api: airflow_api.AirflowApi) -> str:
    return api.run_dag(EXECUTION)


@pytest.fixture(scope="module")
def tasks(api: airflow_api.AirflowApi, execution: str) -> dict[str, airflow_api.TaskInstance]:
    return {task.task_id: task for task in api.task_instances(EXECUTION, execution)}


def test_every_task_goes_to_the_queue_of_its_vm(tasks: dict[str, airflow_api.TaskInstance], cluster: Cluster) -> None:
    assert {task.state for task in tasks.values()} == {"success"}
    workers = {queue: worker for worker in cluster.workers for queue in worker["queues"] if queue != "default"}
    for target in cluster.targets:
        mine = [task for name, task in tasks.items() if name.endswith(target["name"])]
        assert len(mine) >= 2
        assert {task.queue for task in mine} == {target["queue"]}
        assert {task.hostname for task in mine} == {cluster.address(workers[target["queue"]]["host"])}
    assert tasks["file_transfer_test.transfer"].queue == "file_transfer_queue"


def test_a_command_ran_on_its_vm_whoever_ran_it(
    api: airflow_api.AirflowApi, execution: str, tasks: dict[str, airflow_api.TaskInstance], cluster: Cluster
) -> None:
    """In both modes: the VM's own host name, and the output in the log of the task as the UI shows it."""
    names = [name for name in tasks if "uptime_on_" in name or "date_on_" in name]
    assert names
    for name in names:
        vm = name.rpartition("_on_")[2]
        result = api.xcom(EXECUTION, execution, name)
        assert result["output"].splitlines()[0] == vm
        assert result["host"] == next(target["host"] for target in cluster.targets if target["name"] == vm)
        assert vm in airflow_api.printed_lines(api.log(EXECUTION, execution, tasks[name]))


def test_the_file_arrived_as_it_was_made_and_is_gone(
    api: airflow_api.AirflowApi, execution: str, cluster: Cluster
) -> None:
    made = api.xcom(EXECUTION, execution, "file_transfer_test.create")["output"]
    assert execution in made
    assert api.xcom(EXECUTION, execution, "file_transfer_test.read")["output"] == made
    for target in cluster.targets:
        assert cluster.host(target["name"]).run("ls /tmp | grep -e test_file -e received_file").stdout == ""


IN = "/home/rocky/in"
GOOD = f"{IN}/sample 1 'é' {{{{ ds }}}}.txt"
BAD = f"{IN}/for-a-directory-that-is-not-there/sample3.txt"
FRESH = f"{IN}/being-written.txt"


@pytest.fixture
def files(cluster: Cluster) -> Iterator[tuple[Host, Host]]:
    """Source and destination: a good file, one that cannot be sent, and one that is still being written."""
    source, dest = (cluster.host(target["name"]) for target in cluster.targets[-2:])

    def as_rocky(host: Host, command: str) -> None:
        answer = host.run(f"runuser -u rocky -- sh -c {shlex.quote(command)}")
        assert answer.rc == 0, answer.stderr

    try:
        as_rocky(dest, f"mkdir -p {IN}")
        as_rocky(source, f"mkdir -p {shlex.quote(BAD.rpartition('/')[0])}")
        for path in (GOOD, BAD):
            quoted = shlex.quote(path)
            as_rocky(source, f"printf 'one two\\nthree\\n' > {quoted}; touch -d '1 minute ago' {quoted}")
        # It grows until the test is over, or for two minutes.
        source.run(
            f"systemd-run --uid=rocky --unit=writer sh -c 'for i in $(seq 600); do echo >> {FRESH}; sleep 0.2; done'"
        )
        yield source, dest
    finally:
        source.run("systemctl stop writer")
        for host in (source, dest):
            host.run(f"rm -rf {IN}")


def test_files_are_sent_and_processed_one_by_one(
    api: airflow_api.AirflowApi, files: tuple[Host, Host], cluster: Cluster
) -> None:
    source, dest = files
    run = api.run_dag(PROCESSING, {"paths": [f"{IN}/*.txt", f"{IN}/*/*.txt"]})
    assert api.run_state(PROCESSING, run) == "failed", "one file fails, and so does the run"
    report = {entry["source_path"]: entry for entry in api.xcom(PROCESSING, run, "report")}
    assert set(report) == {GOOD, BAD}, "a file that is being written is not taken"

    good, bad = report[GOOD], report[BAD]
    assert (good["transferred"], good["processed"], good["error"]) == (True, True, None)
    assert (good["figures"]["lines"], good["figures"]["words"], good["figures"]["size"]) == (2, 3, 14)
    assert dest.file(GOOD).content_string == source.file(GOOD).content_string
    assert (bad["transferred"], bad["processed"]) == (False, False)
    assert "for-a-directory-that-is-not-there" in bad["error"]

    queues = {task.task_id: task.queue for task in api.task_instances(PROCESSING, run)}
    assert queues["wait_for_source_files"] == cluster.targets[-2]["queue"]
    assert queues["each_file.transfer_files"] == "file_transfer_queue"
    assert queues["each_file.process_files"] == cluster.targets[-1]["queue"]
    # Nothing of the script is left.
    assert dest.run("find / -xdev -name 'simple_file_manager*' -not -path '/opt/airflow/*'").stdout == ""


#: With the stock operators over the provisioned connections, and a command that does not end by itself.
PROBE = """
import datetime
from airflow.providers.sftp.operators.sftp import SFTPOperator
from airflow.providers.ssh.operators.ssh import SSHOperator
from airflow.sdk import DAG
from remote_tasks import RemoteCommandOperator

start = datetime.datetime(2024, 5, 1, tzinfo=datetime.timezone.utc)
with DAG("probe_connections", schedule=None, start_date=start):
    SSHOperator(task_id="ssh", ssh_conn_id="{vm}", command="sleep 11; hostname", queue="all_vms_queue")
    SFTPOperator(task_id="sftp", ssh_conn_id="{vm}", operation="get", queue="all_vms_queue",
                 remote_filepath="/etc/hostname", local_filepath="/tmp/probe_hostname")
with DAG("probe_kill", schedule=None, start_date=start):
    RemoteCommandOperator(task_id="endless", vm="{vm}", command="sleep {marker} & sleep {marker}")
"""
MARKER = "9876.543"


@pytest.fixture(scope="module")
def probes(
    cluster: Cluster, project: pathlib.Path, tmp_path_factory: pytest.TempPathFactory, site: SiteRun
) -> Iterator[str]:
    """Deliver the probes beside the shipped DAGs, and take them back."""
    vm = cluster.targets[0]["name"]
    dags = tmp_path_factory.mktemp("probes") / "dags"
    shutil.copytree(project / "dags", dags, ignore=shutil.ignore_patterns("__pycache__"))
    (dags / "probe_targets.py").write_text(PROBE.format(vm=vm, marker=MARKER))
    try:
        source = json.dumps({"airflow_dags_source": str(dags)})
        site("--extra-vars", source, playbook="playbooks/deliver_dags.yml")
        yield vm
    finally:
        site(playbook="playbooks/deliver_dags.yml")


def test_the_stock_operators_work_with_the_provisioned_connections(
    api: airflow_api.AirflowApi, probes: str, main: Host
) -> None:
    try:
        run = api.run_dag("probe_connections")
        (task,) = [task for task in api.task_instances("probe_connections", run) if task.task_id == "ssh"]
        # After eleven silent seconds: the operator's own patience ends at ten.
        log = [str(entry.get("event", "")) for entry in api.log("probe_connections", run, task)]
        assert probes in log
        assert main.file("/tmp/probe_hostname").content_string.strip() == probes  # noqa: S108 - on main
    finally:
        main.run("rm -f /tmp/probe_hostname")


def test_a_task_that_is_marked_takes_its_command_with_it(
    api: airflow_api.AirflowApi, probes: str, cluster: Cluster
) -> None:
    vm = cluster.host(probes)

    def running() -> list[Any]:
        return list(vm.run(f"pgrep --full '^sleep {MARKER}'").stdout.split())

    def eventually(count: int) -> bool:
        end = time.monotonic() + 60
        while time.monotonic() < end and len(running()) != count:
            time.sleep(0.5)
        return len(running()) == count

    api.wait_for_dag("probe_kill")
    api.unpause("probe_kill")
    assert running() == []
    run = api.trigger("probe_kill")
    try:
        assert eventually(2), "the command did not start"
        api.request("PATCH", f"dags/probe_kill/dagRuns/{run}/taskInstances/endless", json={"new_state": "failed"})
        assert eventually(0), "the command outlived its task"
    finally:
        vm.run(f"pkill --full '^sleep {MARKER}'")
