"""The scheduler is woken by the metadata database, which says when there is something for it to do."""

from __future__ import annotations

import shlex
import time

import airflow_api
import pytest
from conftest import Cluster
from testinfra.host import Host

DAG = "remote_vm_execution"

LISTENERS = "SELECT pid FROM pg_stat_activity WHERE datname = 'airflow_db' AND query = 'LISTEN airflow_scheduler'"
#: Runs on a scheduler's host: how often its own code is woken, until the database has said nothing for so many seconds.
COUNT = """
import sys
from airflow import settings
settings.initialize()
import cluster_executor
bell, woken = cluster_executor.Bell(), 0
bell.listen()
print("listening", flush=True)
while bell.wait(60 if not woken else 5):
    woken += 1
print(woken, flush=True)
"""
AS_ADMINISTRATOR = "runuser -u postgres -- psql -XAtd airflow_db"


@pytest.fixture(scope="module", autouse=True)
def _is_woken(cluster: Cluster) -> None:
    if not cluster.variables[cluster.first("scheduler")].get("airflow_scheduler_woken", True):
        pytest.skip("airflow_scheduler_woken is false: the scheduler is Airflow's own")


@pytest.fixture(scope="module")
def database(cluster: Cluster) -> Host:
    return cluster.host(cluster.first("postgresql"))


def query(database: Host, sql: str) -> list[str]:
    return list(database.check_output(f"{AS_ADMINISTRATOR} -c {shlex.quote(sql)}").split())


def main_process(cluster: Cluster) -> str:
    host = cluster.host(cluster.first("scheduler"))
    return str(host.check_output("systemctl show --property MainPID --value airflow-scheduler"))


def listeners(cluster: Cluster, database: Host, *, but: list[str]) -> list[str]:
    """The connections on which schedulers listen, other than these, when there is one for each."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = [pid for pid in query(database, LISTENERS) if pid not in but]
        if len(found) == len(cluster.groups["scheduler"]):
            return found
        time.sleep(0.5)
    pytest.fail(f"of {len(cluster.groups['scheduler'])} schedulers, those that listen: {query(database, LISTENERS)}")


def test_the_database_wakes_who_listens(cluster: Cluster, api: airflow_api.AirflowApi) -> None:
    api.run_dag(DAG)  # known and unpaused, whatever came before
    command = f"/usr/local/bin/airflow-python -c {shlex.quote(COUNT)}"
    with cluster.started(cluster.first("scheduler"), command, "") as listening:
        assert listening.stdout is not None
        assert any(line.strip() == "listening" for line in listening.stdout)
        run_id = api.trigger(DAG)
        assert api.wait_for_run(DAG, run_id) == "success"
        woken = int(listening.stdout.read())
    # By the trigger, and by the end of at least one task: those at a time wake once.
    assert woken >= 2


def test_a_scheduler_that_is_cut_off_listens_again(
    cluster: Cluster, database: Host, api: airflow_api.AirflowApi
) -> None:
    """And goes on meanwhile: it looks by itself, and is not started anew."""
    before, process = listeners(cluster, database, but=[]), main_process(cluster)
    for pid in before:
        assert query(database, f"SELECT pg_terminate_backend({pid})") == ["t"]
    assert listeners(cluster, database, but=before)
    api.run_dag(DAG)
    assert main_process(cluster) == process
