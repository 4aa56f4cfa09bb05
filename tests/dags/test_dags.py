"""The shipped DAGs, parsed by Airflow itself, in several topologies."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import cluster
import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk.exceptions import AirflowFailException, ParamValidationError
from remote_tasks.dags import consumed_queues
from remote_tasks.targets import load_targets

DAGS = pathlib.Path(__file__).parents[2] / "dags"

# Airflow's own, of the library that reads .airflowignore.
pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")

Topologies = dict[str, list[dict[str, Any]]]
ReadDags = Callable[..., DagBag]
WriteTargets = Callable[..., pathlib.Path]


def test_every_file_imports(dagbag: DagBag) -> None:
    assert dagbag.import_errors == {}
    assert len(dagbag.dags) >= len(list(DAGS.glob("*.py")))


def test_the_scripts_are_no_dags(dagbag: DagBag) -> None:
    assert [stat.file for stat in dagbag.dagbag_stats if "scripts" in stat.file] == []


def test_every_dag_says_what_it_does(dagbag: DagBag) -> None:
    assert [dag.dag_id for dag in dagbag.dags.values() if not dag.description] == []


@pytest.mark.parametrize("mode", cluster.MODES)
def test_every_queue_has_a_consumer(dagbag: DagBag, topology: list[dict[str, Any]], mode: str) -> None:
    contract = cluster.queues(cluster.workers(topology, mode, "main"))
    named = {task.queue for dag in dagbag.dags.values() for task in dag.tasks}
    assert named - set(contract) == set()
    assert {vm["queue"] for vm in topology} <= named


@pytest.mark.parametrize("mode", cluster.MODES)
def test_check_dags_knows_the_queues_of_the_cluster(
    write_targets: WriteTargets, topology: list[dict[str, Any]], mode: str
) -> None:
    contract = cluster.queues(cluster.workers(topology, mode, "main"))
    targets = load_targets(write_targets(topology))
    assert sorted(consumed_queues(targets, cluster.DEFAULT_QUEUE)) == sorted(contract)


def test_the_sample_has_a_task_for_each_vm(read_dags: ReadDags, topologies: Topologies) -> None:
    sample = read_dags(topologies["distributed"]).dags["sample_distributed"]
    assert {task.task_id: task.queue for task in sample.tasks} == {
        "check_hostname_vm2": "vm2_queue",
        "check_hostname_vm3": "vm3_queue",
        "anywhere": "default",
    }


def commands(dagbag: DagBag, group: str) -> dict[str, str]:
    """The commands of a group with the VM of each, in order."""
    tasks = dagbag.dags["remote_vm_execution"].task_group_dict[group].children.values()
    return {f"{task.vm}: {task.command}": task.queue for task in tasks}


def test_commands_are_shared_out_in_order(read_dags: ReadDags, topologies: Topologies) -> None:
    assert commands(read_dags(topologies["single_host"]), "execute_on_specific_vm") == {
        "vm1: hostname && uptime": "vm1_queue",
        "vm2: df -h /": "vm2_queue",
        "vm3: free -m": "vm3_queue",
    }
    # Fewer VMs than commands: no command is lost. More: no VM goes without.
    assert list(commands(read_dags(topologies["distributed"]), "parallel_execution")) == [
        "vm2: hostname && date",
        "vm3: df -h",
        "vm2: ps aux | wc -l",
    ]
    assert list(commands(read_dags(topologies["five"]), "parallel_execution"))[2:4] == [
        "n2: ps aux | wc -l",
        "n3: hostname && date",
    ]


def test_wait_transfer_and_processing_are_where_they_belong(read_dags: ReadDags, topologies: Topologies) -> None:
    for topology in ("distributed", "single_host"):
        dag = read_dags(topologies[topology]).dags["remote_ftp_processing"]
        assert {task.task_id: task.queue for task in dag.tasks} == {
            "wait_for_source_files": "vm2_queue",
            "plan": "default",
            "each_file.transfer_files": "file_transfer_queue",
            "each_file.process_files": "vm3_queue",
            "report": "default",
        }


def test_the_wait_holds_no_slot(dagbag: DagBag) -> None:
    wait = dagbag.dags["remote_ftp_processing"].get_task("wait_for_source_files")
    assert (wait.mode, wait.poke_interval, wait.timeout) == ("reschedule", 120, 3600)


def test_a_failure_is_not_hidden_by_the_tasks_that_run_after_it(read_dags: ReadDags, topologies: Topologies) -> None:
    dags = read_dags(topologies["distributed"]).dags
    last = {dag_id: {task.task_id: task.trigger_rule for task in dags[dag_id].leaves} for dag_id in dags}
    assert last["remote_vm_execution"] == {
        "file_transfer_test.compare": "all_success",
        "cleanup_test_files.vm2": "all_done",
        "cleanup_test_files.vm3": "all_done",
    }
    assert last["remote_ftp_processing"] == {"report": "all_done"}


def test_wrong_parameters_are_refused_before_the_run(read_dags: ReadDags, topologies: Topologies) -> None:
    params = read_dags(topologies["distributed"]).dags["remote_ftp_processing"].params
    params.validate()
    wrong: list[tuple[str, Any]] = [("paths", value) for value in ([], "/a", ["/a", ""], [1])]
    for name, value in [*wrong, ("dest_dir", "")]:
        with pytest.raises(ParamValidationError):
            params[name] = value


@pytest.fixture
def functions(read_dags: ReadDags, topologies: Topologies) -> Any:
    """What the DAG files define, by name."""
    found: dict[str, Any] = {}
    for dag in read_dags(topologies["distributed"]).dags.values():
        for task in dag.tasks:
            found |= getattr(getattr(task, "python_callable", None), "__globals__", {})
    return found


def test_a_file_keeps_its_path_or_goes_into_a_directory(functions: Any) -> None:
    destinations = functions["destinations"]
    assert destinations(["/a/x", "/b/x"], None) == [
        {"source_path": "/a/x", "dest_path": "/a/x"},
        {"source_path": "/b/x", "dest_path": "/b/x"},
    ]
    assert destinations(["/a/{{ x }}"], "/out/") == [{"source_path": "/a/{{ x }}", "dest_path": "/out/{{ x }}"}]
    with pytest.raises(AirflowFailException, match=r"two files of one name: \['/a/x'\]"):
        destinations(["/a/x", "/b/x", "/b/y"], "/out")


def test_what_is_wrong_with_a_vm_is_said_once(functions: Any) -> None:
    down = {"success": False, "error": "ConnectError: vm9 is down", "exit_code": -1}
    checks = {
        "hostname": {**down, "command": "hostname"},
        "uptime": {**down, "command": "uptime"},
        "memory": {"success": False, "error": "", "exit_code": 3, "command": "free -m"},
        "load": {"success": True, "error": "", "exit_code": 0, "command": "cat /proc/loadavg"},
    }
    assert functions["complaints"]({"checks": checks}) == (
        "hostname, uptime: ConnectError: vm9 is down; free -m: exit code 3"
    )


def test_a_task_that_was_killed_leaves_no_word_and_is_reported(functions: Any) -> None:
    line = functions["outcome"]({"source_path": "/a", "dest_path": "/b"}, {"size": 1}, None, None)
    assert (line["transferred"], line["processed"], line["figures"]) == (True, False, None)
    assert "see the task's log" in line["error"]
