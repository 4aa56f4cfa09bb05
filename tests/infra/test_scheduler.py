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
#: psql shows what it has heard after each statement.
HEAR = "LISTEN airflow_scheduler;\nSELECT 'listening';\nSELECT pg_sleep({seconds});\n"
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


def test_the_database_tells_of_a_run_and_of_its_end(
    cluster: Cluster, database: Host, api: airflow_api.AirflowApi
) -> None:
    """The scheduler's own connection hears the same: what is said goes to all who listen."""
    api.run_dag(DAG)  # known and unpaused, whatever came before
    with cluster.started(cluster.first("postgresql"), AS_ADMINISTRATOR, HEAR.format(seconds=15)) as listening:
        assert listening.stdout is not None
        assert any(line.strip() == "listening" for line in listening.stdout)
        began = time.monotonic()
        run_id = api.trigger(DAG)
        assert api.wait_for_run(DAG, run_id) == "success"
        assert time.monotonic() - began < 15, "nobody listened to the end of the run"
        heard = listening.stdout.read().count('Asynchronous notification "airflow_scheduler"')
    # One for the trigger, at least one for each task's end, and one for the run's.
    assert heard >= 2 + len(api.task_instances(DAG, run_id))


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
