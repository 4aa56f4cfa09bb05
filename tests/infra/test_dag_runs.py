"""Real DAG runs: where each task ran, what it printed, and how a changed DAG arrives."""

from __future__ import annotations

import json
import pathlib
import shutil
import time
from collections.abc import Iterator

import airflow_api
import pytest
from conftest import Cluster, SiteRun

SAMPLE = "sample_distributed"


@pytest.fixture(scope="module")
def run_id(api: airflow_api.AirflowApi, cluster: Cluster) -> str:
    if cluster.mode != "celery":
        pytest.skip("the sample of the distributed topology")
    run_id = api.run_dag(SAMPLE)
    return run_id


@pytest.fixture(scope="module")
def instances(api: airflow_api.AirflowApi, run_id: str) -> list[airflow_api.TaskInstance]:
    return api.task_instances(SAMPLE, run_id)


def test_the_run_succeeds(api: airflow_api.AirflowApi, run_id: str) -> None:
    assert api.run_state(SAMPLE, run_id) == "success"


def test_a_task_for_a_vm_runs_on_that_vm(instances: list[airflow_api.TaskInstance], cluster: Cluster) -> None:
    for target in cluster.targets:
        (task,) = [task for task in instances if task.task_id == f"check_hostname_{target['name']}"]
        assert task.queue == target["queue"]
        assert task.hostname == target["host"]


def test_the_log_of_a_finished_task_is_read_from_its_vm(
    api: airflow_api.AirflowApi,
    run_id: str,
    instances: list[airflow_api.TaskInstance],
    cluster: Cluster,
) -> None:
    for target in cluster.targets:
        (task,) = [task for task in instances if task.task_id == f"check_hostname_{target['name']}"]
        log = api.log(SAMPLE, run_id, task)
        hostname = cluster.host(target["name"]).run("hostname").stdout.strip()
        assert airflow_api.printed_lines(log) == [hostname]


def test_untargeted_tasks_are_shared(instances: list[airflow_api.TaskInstance], cluster: Cluster) -> None:
    shared = [task for task in instances if task.task_id == "anywhere"]
    assert {task.queue for task in shared} == {"default"}
    assert {task.hostname for task in shared} == {target["host"] for target in cluster.targets}


def started(cluster: Cluster) -> dict[str, str]:
    """When each worker's process was started."""
    return {
        worker["unit"]: cluster.host(worker["host"])
        .run(f"systemctl show {worker['unit']} --property=ExecMainStartTimestampMonotonic --value")
        .stdout
        for worker in cluster.workers
    }


@pytest.fixture
def dags(tmp_path: pathlib.Path, project: pathlib.Path, site: SiteRun) -> Iterator[pathlib.Path]:
    """A copy of dags/ to change and deliver; the shipped ones are delivered again afterwards."""
    copy = tmp_path / "dags"
    shutil.copytree(project / "dags", copy, ignore=shutil.ignore_patterns("__pycache__"))
    try:
        yield copy
    finally:
        site(playbook="playbooks/deliver_dags.yml")


PROBE = """
import datetime
from airflow.sdk import DAG, task

with DAG("probe_delivery", schedule=None, start_date=datetime.datetime(2024, 5, 1, tzinfo=datetime.timezone.utc)):
    @task
    def say() -> str:
        return {answer!r}
    say()
"""


def test_a_changed_dag_is_live_without_a_restart_and_a_removed_one_is_gone(
    api: airflow_api.AirflowApi, dags: pathlib.Path, site: SiteRun, cluster: Cluster
) -> None:
    before = started(cluster)

    def deliver() -> None:
        source = json.dumps({"airflow_dags_source": str(dags)})
        site("--extra-vars", source, playbook="playbooks/deliver_dags.yml")

    probe = dags / "probe_delivery.py"
    for answer in ("first", "second"):
        probe.write_text(PROBE.format(answer=answer))
        deliver()
        run = api.run_dag("probe_delivery")
        assert api.xcom("probe_delivery", run, "say") == answer

    probe.unlink()
    deliver()
    for name in cluster.members["airflow"]:
        assert not cluster.host(name).file("/opt/airflow/dags/probe_delivery.py").exists
    assert started(cluster) == before
    deadline = time.monotonic() + 60
    while api.import_errors() and time.monotonic() < deadline:
        time.sleep(1)
    assert api.import_errors() == []
