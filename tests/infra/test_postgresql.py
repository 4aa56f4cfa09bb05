"""PostgreSQL: who gets in, from where, to what."""

from __future__ import annotations

import json
import shlex

import pytest
from conftest import Cluster
from testinfra.host import Host

#: Runs in Airflow's environment on a host: try a connection and say what came of it.
TRY = """
import json, sys, psycopg
try:
    with psycopg.connect(json.load(sys.stdin)["url"], connect_timeout=5) as connection:
        print(connection.execute("SELECT current_user").fetchone()[0])
except psycopg.OperationalError as error:
    print("refused:", error)
"""


@pytest.fixture(scope="module")
def database(cluster: Cluster) -> Host:
    return cluster.host(cluster.first("postgresql"))


def query(database: Host, sql: str) -> list[str]:
    answer = database.run(f"runuser -u postgres -- psql -XAtc {shlex.quote(sql)}")
    assert answer.rc == 0, answer.stderr
    return list(answer.stdout.splitlines())


def attempt(cluster: Cluster, name: str, url: str) -> str:
    command = f"/opt/airflow/current/bin/python -c {shlex.quote(TRY)}"
    return cluster.feed(name, command, json.dumps({"url": url})).strip()


def test_it_runs_and_starts_at_boot(database: Host) -> None:
    assert database.service("postgresql").is_running
    assert database.service("postgresql").is_enabled


def test_passwords_are_stored_as_scram(database: Host) -> None:
    rows = query(database, "SELECT rolname FROM pg_authid WHERE rolpassword NOT LIKE 'SCRAM-SHA-256$%'")
    assert rows == []


def test_the_server_runs_with_its_files(database: Host) -> None:
    assert query(database, "SELECT name FROM pg_settings WHERE pending_restart") == []
    assert query(database, "SELECT * FROM pg_file_settings WHERE error IS NOT NULL") == []


def test_owners_have_no_further_rights(database: Host) -> None:
    sql = "SELECT rolname FROM pg_roles WHERE rolname LIKE 'airflow%' AND (rolsuper OR rolcreatedb OR rolcreaterole)"
    assert query(database, sql) == []


@pytest.mark.parametrize("name", ["airflow_db", "airflow_results_db"])
def test_a_database_is_closed_to_other_roles(database: Host, name: str) -> None:
    assert query(database, f"SELECT has_database_privilege('public', '{name}', 'CONNECT')") == ["f"]


def test_results_hold_no_other_table_than_celerys(database: Host) -> None:
    sql = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
    answer = database.run(f"runuser -u postgres -- psql -XAt airflow_results_db -c {shlex.quote(sql)}")
    assert set(answer.stdout.split()) <= {"celery_taskmeta", "celery_tasksetmeta"}


def logins(cluster: Cluster) -> dict[str, str]:
    address = cluster.address(cluster.first("postgresql"))
    tls = "sslmode=verify-full&sslrootcert=/etc/airflow/tls/ca.pem"
    tls += "&sslcert=/etc/airflow/tls/host.pem&sslkey=/etc/airflow/tls/host.key"
    main = cluster.login("database_password", "airflow_user")
    results = cluster.login("results_worker_password", "airflow_results_worker")
    return {
        "airflow_db": f"postgresql://{main}:{cluster.secret('database_password')}@{address}/airflow_db?{tls}",
        "airflow_results_db": (
            f"postgresql://{results}:{cluster.secret('results_worker_password')}@{address}/airflow_results_db?{tls}"
        ),
    }


def test_main_may_log_in_to_both(cluster: Cluster) -> None:
    for url in logins(cluster).values():
        assert attempt(cluster, cluster.first("scheduler"), url).startswith("airflow_")


def test_a_worker_vm_may_log_in_to_the_results_alone(cluster: Cluster) -> None:
    for name in set(cluster.members["airflow"]) - set(cluster.members["core"]):
        urls = logins(cluster)
        assert attempt(cluster, name, urls["airflow_results_db"]) == "airflow_results_worker"
        assert "no pg_hba.conf entry" in attempt(cluster, name, urls["airflow_db"])
