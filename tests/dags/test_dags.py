"""The shipped DAGs, parsed by Airflow itself."""

from __future__ import annotations

import pathlib
import sys

import pytest
import yaml
from airflow.dag_processing.dagbag import DagBag

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "filter_plugins"))

import cluster  # noqa: E402 - found by the line above


@pytest.fixture(scope="module")
def dagbag() -> DagBag:
    return DagBag(dag_folder=str(ROOT / "dags"), load_op_links=False)


def test_every_file_imports(dagbag: DagBag) -> None:
    assert dagbag.import_errors == {}
    assert len(dagbag.dags) >= len(list((ROOT / "dags").glob("*.py")))


def test_every_dag_says_what_it_does(dagbag: DagBag) -> None:
    assert [dag.dag_id for dag in dagbag.dags.values() if not dag.description] == []


def test_every_queue_has_a_consumer(dagbag: DagBag) -> None:
    inventory = yaml.safe_load((ROOT / "inventory/distributed/hosts.yml").read_text())["all"]
    targets = [
        cluster.target({"inventory_hostname": name, **inventory["hosts"][name]})
        for name in inventory["children"]["target_vms"]["hosts"]
    ]
    contract = cluster.queues(cluster.workers(targets, "celery", "main"))
    named = {task.queue for dag in dagbag.dags.values() for task in dag.tasks}
    assert named - set(contract) == set()
