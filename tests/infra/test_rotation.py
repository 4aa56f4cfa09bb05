"""Every secret is replaced under load: no task fails, the old ones are refused, and killed runs are finished."""

from __future__ import annotations

import json
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import airflow_api
import pytest
import requests
from conftest import Cluster, SiteRun, changes, killed
from test_under_load import account, arguments, trigger  # noqa: F401 - a fixture
from testinfra.host import Host

ROTATE = "playbooks/rotate_secrets.yml"
#: Tokens of tasks are good for five minutes instead of ten, so that the test need not wait longer.
SHORT = {"scheduler": {"task_queued_timeout": 300}, "execution_api": {"jwt_expiration_time": 300}}
LOGINS = {
    "database_password": "airflow_user",
    "results_worker_password": "airflow_results_worker",
    "broker_password": "airflow_user",
    "flower_broker_password": "airflow_flower",
}
KEY = "/etc/airflow/ssh/id_ed25519"

#: Says whether a database lets a login in: 'in', or the reason why not.
LOG_IN = """
import psycopg
FILES = {"sslrootcert": "ca.pem", "sslcert": "host.pem", "sslkey": "host.key"}
try:
    tls = {name: f"/etc/airflow/tls/{file}" for name, file in FILES.items()}
    psycopg.connect(
        host=HOST, dbname=NAME, user=USER, password=PASSWORD, connect_timeout=10, sslmode="verify-full", **tls
    ).close()
    print("in")
except psycopg.OperationalError as error:
    print(error)
"""
#: The same for the broker, by AMQP.
LOG_IN_TO_BROKER = """
import kombu
FILES = {"ca_certs": "ca.pem", "certfile": "host.pem", "keyfile": "host.key"}
try:
    tls = {name: f"/etc/airflow/tls/{file}" for name, file in FILES.items()}
    with kombu.Connection(URL, connect_timeout=10, ssl=tls) as connection:
        connection.connect()
    print("in")
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.fixture(scope="module", autouse=True)
def from_celery_mode(cluster: Cluster) -> None:
    if cluster.mode != "celery":
        pytest.skip("in celery mode, where more hosts must agree")


@pytest.fixture(scope="module")
def options(arguments: list[str], site: SiteRun) -> Iterator[list[str]]:  # noqa: F811 - a fixture, imported
    given = [*arguments, "--extra-vars", json.dumps({"airflow_config": SHORT})]
    site(*given)
    yield given


def values(cluster: Cluster) -> dict[str, str]:
    return {path.name: cluster.secret(path.name) for path in cluster.secrets_directory.iterdir()}


def logins(cluster: Cluster) -> dict[str, str]:
    usual = {**LOGINS, **{f"broker_password_{vm['name']}": str(vm["name"]) for vm in cluster.targets}}
    return {name: cluster.login(name, login) for name, login in usual.items()}


def asked(cluster: Cluster, script: str, **names: str) -> str:
    head = "".join(f"{name} = {value!r}\n" for name, value in names.items())
    return cluster.feed(cluster.first("scheduler"), "airflow-python -", head + script).strip()


def database(cluster: Cluster, name: str, login: str, password: str) -> str:
    host = cluster.address(cluster.first("postgresql"))
    return asked(cluster, LOG_IN, HOST=host, NAME=name, USER=login, PASSWORD=password)


def broker_says(cluster: Cluster, login: str, password: str) -> str:
    url = (cluster.address(cluster.first("rabbitmq")), login, password)
    return asked(cluster, LOG_IN_TO_BROKER, URL=f"amqps://{url[1]}:{url[2]}@{url[0]}:5671/airflow_host")


def answer(cluster: Cluster, url: str, *, login: tuple[str, str] | None = None, token: str = "") -> int:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return int(requests.get(url, auth=login, headers=headers, verify=cluster.ca, timeout=30).status_code)


def token(cluster: Cluster, api_url: str, password: str) -> str:
    login = {"username": "admin", "password": password}
    said = requests.post(f"{api_url}/auth/token", json=login, verify=cluster.ca, timeout=30)
    return str(said.json().get("access_token", "")) if said.ok else ""


def public_key(main: Host) -> str:
    return str(main.check_output(f"cut -d ' ' -f 2 {KEY}.pub"))


def let_in(cluster: Cluster) -> dict[str, list[str]]:
    """The keys in each target's file that are main's."""
    return {
        str(vm["name"]): cluster.host(vm["name"])
        .check_output(f"sed -n 's/.*ssh-ed25519 \\([^ ]*\\) airflow@.*/\\1/p' ~{vm['user']}/.ssh/authorized_keys")
        .split()
        for vm in cluster.targets
    }


def variable(cluster: Cluster, api_url: str, bearer: str, value: str | None = None) -> str:
    url, headers = f"{api_url}/api/v2/variables", {"Authorization": f"Bearer {bearer}"}
    if value is not None:
        body = {"key": "rotation", "value": value}
        # Of a run that was ended half-way.
        requests.delete(f"{url}/rotation", headers=headers, verify=cluster.ca, timeout=30)
        requests.post(url, json=body, headers=headers, verify=cluster.ca, timeout=30).raise_for_status()
    return str(requests.get(f"{url}/rotation", headers=headers, verify=cluster.ca, timeout=30).json()["value"])


@pytest.mark.slow("half an hour, with a wait for tokens to expire")
def test_all_secrets_under_load_and_killed_on_the_way(
    cluster: Cluster,
    api_url: str,
    site: SiteRun,
    options: list[str],
    main: Host,
    broker: Callable[..., Any],
) -> None:
    old, old_key, old_logins = values(cluster), public_key(main), logins(cluster)
    old_token = token(cluster, api_url, old["admin_password"])
    assert variable(cluster, api_url, old_token, "a value that is encrypted") == "a value that is encrypted"
    assert answer(cluster, f"{api_url}/api/v2/variables", token=old_token) == 200

    api = airflow_api.AirflowApi(api_url, "admin", old["admin_password"], ca=cluster.ca)
    first = trigger(api)
    # With both keys on the VMs; with keys announced to some hosts; after the switch, before the end.
    killed(cluster, "Change keys on main", *options, playbook=ROTATE)
    killed(cluster, "Start the units", *options, playbook=ROTATE)
    assert {"rotation", "fernet_key.new"} <= set(values(cluster))
    during = trigger(api)
    killed(cluster, "Encrypt connections and variables", *options, playbook=ROTATE)
    # Whoever runs site.yml now does no harm.
    half = site(*options)
    assert "is under way. If it was interrupted, finish it" in " ".join(half.stdout.split())
    api = airflow_api.AirflowApi(api_url, "admin", cluster.secret("admin_password.new"), ca=cluster.ca)
    last = trigger(api)
    site(*options, playbook=ROTATE)
    for run_id in (first, during, last):
        account(api, cluster, run_id)

    new, new_logins = values(cluster), logins(cluster)
    assert set(new) == set(old)
    assert [name for name in new if new[name] == old[name]] == []
    assert changes(site(*options)) == []

    # What was is refused, and what is new is not.
    for name, base in (("database_password", "airflow_db"), ("results_worker_password", "airflow_results_db")):
        login, former = new_logins[name], old_logins[name]
        assert {login, former} == {LOGINS[name], f"{LOGINS[name]}_2"}
        assert database(cluster, base, login, new[name]) == "in"
        for pair in ((former, old[name]), (former, new[name]), (login, old[name])):
            assert database(cluster, base, *pair) != "in"
    at_broker = [name for name in new_logins if "broker" in name]
    for name in at_broker:
        assert new_logins[name] != old_logins[name]
        assert broker_says(cluster, new_logins[name], new[name]) == "in"
        assert broker_says(cluster, old_logins[name], old[name]) != "in"
    assert {entry["user"] for entry in broker("list_users")} == {
        "airflow_admin",
        *map(new_logins.__getitem__, at_broker),
    }
    assert token(cluster, api_url, old["admin_password"]) == ""
    assert answer(cluster, f"{api_url}/api/v2/variables", token=old_token) == 403
    assert variable(cluster, api_url, token(cluster, api_url, new["admin_password"])) == "a value that is encrypted"
    flower = f"https://{cluster.address(cluster.first('flower'))}:5555/api/workers"
    assert answer(cluster, flower, login=("admin", old["flower_password"])) == 401
    assert answer(cluster, flower, login=("admin", new["flower_password"])) == 200
    assert main.file("/etc/airflow/secrets/fernet_key").content_string == new["fernet_key"]
    assert len(json.loads(main.file("/etc/airflow/secrets/jwt_public_keys").content_string)["keys"]) == 1
    assert public_key(main) != old_key
    assert let_in(cluster) == {vm["name"]: [public_key(main)] for vm in cluster.targets}
    assert main.run(f"ls {KEY}*").stdout.split() == [KEY, f"{KEY}.pub"]


@pytest.mark.slow("ten minutes")
def test_logins_take_turns_and_own_nothing(
    cluster: Cluster, site: SiteRun, options: list[str], api_url: str, broker: Callable[..., Any]
) -> None:
    before = logins(cluster)
    api = airflow_api.AirflowApi(api_url, "admin", cluster.secret("admin_password"), ca=cluster.ca)
    run_id = trigger(api)
    began = time.monotonic()
    site(*options, "--extra-vars", "names=database,results_database,broker,certificates", playbook=ROTATE)
    print(f"rotation of logins and certificates under load: {time.monotonic() - began:.0f} s")
    account(api, cluster, run_id)
    after = logins(cluster)
    for name, usual in LOGINS.items():
        assert {before[name], after[name]} == {usual, f"{usual}_2"}
    host = cluster.host(cluster.first("postgresql"))
    for base, owner in (("airflow_db", "airflow_user"), ("airflow_results_db", "airflow_results_user")):
        ask = "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'"
        assert host.check_output(f'runuser -u postgres -- psql -XAt {base} -c "{ask}"').split() == [owner]
    able = "SELECT rolname FROM pg_roles WHERE rolname LIKE 'airflow%' AND rolcanlogin ORDER BY 1"
    found = host.check_output(f'runuser -u postgres -- psql -XAt -c "{able}"').split()
    assert found == sorted({after["database_password"], after["results_worker_password"]})
    assert changes(site(*options)) == []


def test_what_cannot_be_rotated_is_refused(site: SiteRun, cluster: Cluster, tmp_path: pathlib.Path) -> None:
    before = values(cluster)
    for arguments_, said in (
        (["names=databas"], "not databas"),
        (
            ["names=admin", json.dumps({"secrets": {"admin_password": "nBnT4vdqNAPPW2ka"}})],
            "you set this in the inventory",
        ),
    ):
        extra = [part for argument in arguments_ for part in ("--extra-vars", argument)]
        refused = site(*extra, playbook=ROTATE, check=False)
        assert refused.returncode != 0
        assert said in " ".join((refused.stdout + refused.stderr).split())
    assert values(cluster) == before


def test_another_control_nodes_secrets_are_refused(site: SiteRun, cluster: Cluster, tmp_path: pathlib.Path) -> None:
    directory = tmp_path / "secrets"
    extra = ["--extra-vars", f"secrets_directory={directory}"]
    refused = site(*extra, check=False)
    assert refused.returncode != 0
    said = " ".join(refused.stdout.split())
    assert "and this control node has no such secret yet" in said
    assert f"copy what it keeps in {directory}" in said
    assert "changed=0" in said.split("PLAY RECAP")[1] and "changed=1" not in said
    assert not (directory / "api_secret_key").exists()
    # A copy that is older than the last rotation, say.
    directory.mkdir(mode=0o700, exist_ok=True)
    for path in cluster.secrets_directory.iterdir():
        (directory / path.name).write_text(path.read_text())
        (directory / path.name).chmod(0o600)
    key = cluster.secret("api_secret_key")
    (directory / "api_secret_key").write_text(key[::-1] + "\n")
    refused = site(*extra, check=False)
    said = " ".join(refused.stdout.split())
    assert refused.returncode != 0
    assert "has another api_secret_key than this control node" in said
    assert key not in said and key[::-1] not in said
