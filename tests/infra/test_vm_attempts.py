"""A worker VM in the wrong hands: what it gets of other services, and what a task finds that looks around.

What its logins may do at the broker and in the results stands in test_least_privilege.py. The rows of both are in
tools/security_tables.py, and so in the README.
"""

from __future__ import annotations

import json
import pathlib
import secrets
import shutil
from collections.abc import Iterator
from typing import Any

import airflow_api
import pytest
import secret_search
import security_tables
from conftest import Cluster, SiteRun
from intruder import hold, rows, somebody_on, tried
from secret_search import runs

#: What the README says that a task finds, where: files, and the catalogue's names of what stands in them.
OF_EACH_WORKER = {
    "/etc/airflow/secrets/result_backend": "results_worker_password",
    "/etc/airflow/secrets/api_secret_key": "api_secret_key",
    "/etc/airflow/tls/host.key": "private key",
}
ON_A_VM = {"/etc/airflow/secrets/broker_url": "broker_password_{vm}"}
ON_MAIN = {"/etc/airflow/secrets/broker_url": "broker_password", "/etc/airflow/ssh/id_ed25519": "private key"}
TLS = "/etc/airflow/tls"
LOG_REQUEST = "GET /log/any HTTP/1.0\r\n\r\n"


@pytest.fixture(scope="module")
def vm(cluster: Cluster) -> str:
    """The first VM that is nothing but a worker."""
    workers = [name for name in cluster.members["airflow"] if name not in cluster.members["core"]]
    if not workers:
        pytest.skip("no VM holds anything in mode ssh")
    return workers[0]


@pytest.fixture(scope="module")
def other(cluster: Cluster, vm: str) -> dict[str, Any]:
    """Another target VM."""
    others = [target for target in cluster.targets if target["name"] != vm]
    assert others, "two target VMs are needed"
    return others[0]


@pytest.fixture(scope="module")
def from_the_vm(cluster: Cluster, vm: str, other: dict[str, Any]) -> dict[str, str]:
    tls = {"tls": {"ca": f"{TLS}/ca.pem"}}
    ui = {"host": cluster.address(cluster.first("webserver")), "port": 8080, **tls}
    flower = {"host": cluster.address(cluster.first("flower")), "port": 5555, **tls}
    certificate = {"tls": {"ca": f"{TLS}/ca.pem", "cert": f"{TLS}/host.pem", "key": f"{TLS}/host.key"}}
    metadata = {"host": cluster.address(cluster.first("postgresql")), "port": 5432, "database": "airflow_db"}
    log = {"do": "plain", "port": 8793, "text": LOG_REQUEST}
    task = {"audience": "urn:airflow.apache.org:task", "path": "/execution/variables/any"}
    return tried(
        somebody_on(cluster, vm, "airflow"),
        {
            "guest": {"do": "own_broker", "user": "guest", "password": "guest"},
            "main-login": {"do": "own_broker", "user": "airflow_user"},
            "metadata-owner": {"do": "postgresql", "user": "airflow_user", **metadata, **certificate},
            "other-logs": {**log, "host": cluster.address(other["name"])},
            "main-logs": {**log, "host": cluster.address(cluster.first("scheduler"))},
            "execution": {"do": "with_token", **task, **ui},
            "admin": {"do": "with_own_passwords", "way": "token", "path": "/auth/token", "user": "admin", **ui},
            "flower": {"do": "with_own_passwords", "way": "basic", "path": "/api/workers", "user": "admin", **flower},
        },
    )


def test_its_own_ways_are_open(cluster: Cluster, vm: str, other: dict[str, Any]) -> None:
    """Else all would be refused, whatever the rights; the other way of each is in the tests of the stranger."""
    assert tried(somebody_on(cluster, vm, "airflow"), {"broker": {"do": "own_broker"}}) == {"broker": "in"}
    log = {"do": "plain", "host": cluster.address(other["name"]), "port": 8793, "text": LOG_REQUEST}
    asked = tried(somebody_on(cluster, cluster.first("webserver"), "nobody"), {"log": log})
    assert "403 Forbidden" in asked["log"]


@pytest.mark.parametrize("attempt", rows(security_tables.VM))
def test_with_all_that_a_worker_vm_holds(attempt: security_tables.Attempt, from_the_vm: dict[str, str]) -> None:
    hold(attempt, from_the_vm)


PROBE = """

import datetime
from airflow.sdk import DAG, task

with DAG("probe_secrets", schedule=None, start_date=datetime.datetime(2024, 5, 1, tzinfo=datetime.timezone.utc)):
    for name, queue in {queues!r}.items():
        @task(task_id=name, queue=queue)
        def look() -> list:
            return [list(pair) for pair in search({salt!r}, {hashes!r})]
        look()
"""
Found = list[tuple[str, str]]


@pytest.fixture(scope="module")
def found(
    cluster: Cluster,
    api: airflow_api.AirflowApi,
    project: pathlib.Path,
    tmp_path_factory: pytest.TempPathFactory,
    site: SiteRun,
) -> Iterator[dict[str, Found]]:
    """The secrets that a task found, and where, on main and on a VM; it knows them by their salted hashes."""
    directory = pathlib.Path(cluster.ca).parents[1] / "secrets"
    values = {path.name: cluster.secret(path.name) for path in directory.iterdir() if path.is_file()}
    # Keys of certificates are found by their form.
    values = {name: value for name, value in values.items() if "-----BEGIN" not in value}
    unknown = [name for name, value in values.items() if value not in map(bytes.decode, runs(value.encode()))]
    assert not unknown, f"the task could not find these, as they are no runs of letters and digits: {unknown}"
    salt = secrets.token_hex()
    hashes = {secret_search.hashed(salt, value.encode()): name for name, value in values.items()}
    queues = {"on_main": "all_vms_queue"}
    if cluster.mode == "celery":
        queues["on_a_vm"] = cluster.targets[0]["queue"]
    dags = tmp_path_factory.mktemp("secrets") / "dags"
    shutil.copytree(project / "dags", dags, ignore=shutil.ignore_patterns("__pycache__"))
    search = pathlib.Path(secret_search.__file__).read_text()
    (dags / "probe_secrets.py").write_text(search + PROBE.format(queues=queues, salt=salt, hashes=hashes))
    try:
        source = json.dumps({"airflow_dags_source": str(dags)})
        site("--extra-vars", source, playbook="playbooks/deliver_dags.yml")
        run = api.run_dag("probe_secrets")
        assert api.run_state("probe_secrets", run) == "success"
        yield {name: [tuple(pair) for pair in api.xcom("probe_secrets", run, name)] for name in queues}
    finally:
        site(playbook="playbooks/deliver_dags.yml")


def held_by_a_worker(found: Found, named: dict[str, str]) -> None:
    """A task is its worker's own user, by Airflow's design: what the worker holds, the task can read."""
    in_memory = {(name, "/proc/*/mem") for name in named.values()}
    assert set(found) - in_memory == {(name, path) for path, name in named.items()}


@pytest.mark.shows("task")
def test_a_task_on_a_vm_finds_what_the_readme_names_and_nothing_else(cluster: Cluster, found: dict[str, Found]) -> None:
    if "on_a_vm" not in found:
        pytest.skip("no worker stands on a target VM")
    named = {path: name.format(vm=cluster.targets[0]["name"]) for path, name in ON_A_VM.items()}
    held_by_a_worker(found["on_a_vm"], {**OF_EACH_WORKER, **named})


def test_a_task_on_main_finds_no_more_of_the_daemons_beside_it(found: dict[str, Found]) -> None:
    """Neither in their files nor in their memory, though they have the same user."""
    held_by_a_worker(found["on_main"], {**OF_EACH_WORKER, **ON_MAIN})


def test_no_environment_and_no_command_line_has_a_secret(found: dict[str, Found]) -> None:
    places = {"environment", "/proc/*/environ", "/proc/*/cmdline"}
    assert [entry for entries in found.values() for entry in entries if entry[1] in places] == []
