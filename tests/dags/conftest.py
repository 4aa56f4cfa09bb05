"""Targets files and parsed DAGs, as several topologies have them."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cluster
import pytest
import yaml
from airflow.dag_processing.dagbag import DagBag

DAGS = pathlib.Path(__file__).parents[2] / "dags"

WriteTargets = Callable[..., pathlib.Path]
ReadDags = Callable[..., DagBag]


def targets_of(inventory: str) -> list[dict[str, Any]]:
    """The target VMs of a shipped inventory, as the roles see them."""
    hosts = yaml.safe_load((DAGS.parent / f"inventory/{inventory}/hosts.yml").read_text())["all"]
    return [
        cluster.target({"inventory_hostname": name, **hosts["hosts"][name]})
        for name in hosts["children"]["target_vms"]["hosts"]
    ]


TOPOLOGIES: dict[str, list[dict[str, Any]]] = {
    "distributed": targets_of("distributed"),
    "single_host": targets_of("single_host"),
    "one": [cluster.target({"inventory_hostname": "db-7_b", "target_queue": "Batch.only"})],
    "five": [cluster.target({"inventory_hostname": f"n{number}"}) for number in range(5)],
}


@pytest.fixture
def write_targets(tmp_path: pathlib.Path) -> WriteTargets:
    """Write a targets file: all VMs are this machine, or of another transport."""

    def write(targets: Sequence[Mapping[str, Any]], **transports: str) -> pathlib.Path:
        entries = [
            {key: vm[key] for key in ("name", "host", "queue")} | {"transport": transports.get(vm["name"], "local")}
            for vm in targets
        ]
        file = tmp_path / f"targets-{len(list(tmp_path.glob('targets-*')))}.json"
        file.write_text(json.dumps({"targets": entries}))
        return file

    return write


@pytest.fixture
def read_dags(write_targets: WriteTargets, monkeypatch: pytest.MonkeyPatch) -> ReadDags:
    """Parse the shipped DAGs where these target VMs are known."""

    def read(targets: Sequence[Mapping[str, Any]]) -> DagBag:
        monkeypatch.setenv("REMOTE_TASKS_TARGETS", str(write_targets(targets)))
        # Without safe mode every file is parsed that .airflowignore does not name, whatever words are in it.
        return DagBag(dag_folder=str(DAGS), load_op_links=False, safe_mode=False)

    return read


@pytest.fixture
def topologies() -> dict[str, list[dict[str, Any]]]:
    """The target VMs of each topology by its name."""
    return TOPOLOGIES


@pytest.fixture(params=TOPOLOGIES)
def topology(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """The target VMs of each topology in turn."""
    return TOPOLOGIES[request.param]


@pytest.fixture
def dagbag(read_dags: ReadDags, topology: list[dict[str, Any]]) -> DagBag:
    """The shipped DAGs in each topology."""
    return read_dags(topology)
