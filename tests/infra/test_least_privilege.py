"""What the owner of one target VM can do with the secrets that lie there: its own work, and nothing else.

Every attempt is made on the VM, with the logins of its own files and the VM's own Airflow environment, and beside each
kind of attempt stands one that is allowed: so a refusal is about the right, and not about the attempt.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any

import attempts as intruders
import pytest
import requests
from conftest import Cluster, calls
from intruder import signed_as

#: Each attempt has a channel of its own, as the broker closes one that was refused something.
BROKER = """
import json
from airflow.providers.celery.executors.celery_executor_utils import app
from amqp import Message
from amqp.exceptions import AMQPError

def send(channel, exchange, key):
    channel.confirm_select()
    channel.basic_publish_confirm(Message(b"{}"), exchange=exchange, routing_key=key)

URL = URL and open(URL).read()
said = []
with app.connection_for_write(url=URL or None) as connection:
    for what, arguments in ATTEMPTS:
        channel = connection.channel()
        try:
            send(channel, *arguments) if what == "send" else getattr(channel, what)(*arguments)
            said.append("done")
        except AMQPError as error:
            said.append(str(error.reply_code))
print(json.dumps(said))
"""

DATABASE = """
import json, sqlalchemy
from airflow.providers.celery.executors.celery_executor_utils import app

url = sqlalchemy.make_url(app.conf.result_backend.removeprefix("db+")).set(database=DATABASE)
said = []
for statement in STATEMENTS:
    try:
        with sqlalchemy.create_engine(url).connect() as connection:
            connection.exec_driver_sql(statement)
            connection.rollback()
        said.append("done")
    except sqlalchemy.exc.DBAPIError as error:
        said.append(str(error.orig).splitlines()[0])
print(json.dumps(said))
"""

Attempts = list[tuple[str, list[Any]]]


@pytest.fixture(scope="module")
def vm(cluster: Cluster) -> str:
    """A host that is nothing but a target VM, with a worker."""
    found = [name for name in cluster.members["airflow"] if name not in cluster.members["core"]]
    if not found:
        pytest.skip("no worker stands on a target VM")
    return found[0]


@pytest.fixture(scope="module")
def other(cluster: Cluster, vm: str) -> str:
    return next(str(target["name"]) for target in cluster.targets if target["name"] != vm)


def python(cluster: Cluster, name: str, script: str, **values: Any) -> list[str]:
    head = "".join(f"{key} = {value!r}\n" for key, value in values.items())
    return list(json.loads(cluster.feed(name, "airflow-python -", head + script).splitlines()[-1]))


def refused_by_the_broker(cluster: Cluster, name: str, attempts: Attempts, url: str = "") -> dict[str, str]:
    """Return those attempts that the broker did not refuse, and what came of them."""
    said = python(cluster, name, BROKER, ATTEMPTS=attempts, URL=url)
    return {
        f"{what} {arguments}": came for (what, arguments), came in zip(attempts, said, strict=True) if came != "403"
    }


def test_its_login_takes_its_tasks_and_answers(cluster: Cluster, vm: str) -> None:
    attempts: Attempts = [
        ("basic_get", [f"{vm}_queue"]),
        ("basic_get", ["default"]),
        ("send", ["amq.topic", "worker.heartbeat"]),
        ("send", ["amq.direct", "nobody"]),
        ("send", ["remote_tasks.reply", "nobody"]),
    ]
    assert python(cluster, vm, BROKER, ATTEMPTS=attempts, URL="") == ["done"] * len(attempts)


@pytest.mark.shows("other-queues")
def test_it_reads_no_other_queue(cluster: Cluster, vm: str, other: str) -> None:
    queues = [f"{other}_queue", "all_vms_queue", "file_transfer_queue"]
    attempts: Attempts = [(what, [queue]) for queue in queues for what in ("basic_get", "basic_consume", "queue_purge")]
    # What Celery tells of tasks has their tokens in it.
    attempts.append(("queue_bind", [f"celery@{vm}.celery.pidbox", "amq.topic", "#"]))
    attempts.append(("queue_bind", [f"celery@{vm}.celery.pidbox", f"{other}_queue", f"{other}_queue"]))
    assert refused_by_the_broker(cluster, vm, attempts) == {}


@pytest.mark.shows("write-queues")
def test_it_writes_to_no_queue(cluster: Cluster, vm: str, other: str) -> None:
    attempts: Attempts = [("send", ["", queue]) for queue in (f"{vm}_queue", f"{other}_queue", "default")]
    attempts += [("send", [queue, queue]) for queue in (f"{vm}_queue", f"{other}_queue", "default", "all_vms_queue")]
    assert refused_by_the_broker(cluster, vm, attempts) == {}


@pytest.mark.shows("command")
def test_it_commands_no_worker(cluster: Cluster, vm: str) -> None:
    assert refused_by_the_broker(cluster, vm, [("send", ["amq.fanout", ""])]) == {}


@pytest.mark.shows("declare")
def test_it_declares_and_deletes_nothing(cluster: Cluster, vm: str, other: str) -> None:
    attempts: Attempts = [
        ("queue_declare", ["a_new_queue"]),
        ("exchange_declare", ["a_new_exchange", "direct"]),
        *[("queue_delete", [name]) for name in (f"{vm}_queue", f"{other}_queue", "default")],
        *[("exchange_delete", [name]) for name in (f"{vm}_queue", f"{other}_queue", "remote_tasks.reply", "amq.topic")],
        ("queue_unbind", [f"{other}_queue", f"{other}_queue", f"{other}_queue"]),
    ]
    assert refused_by_the_broker(cluster, vm, attempts) == {}


def test_flowers_login_reads_and_writes_no_tasks(cluster: Cluster, vm: str) -> None:
    name, url = cluster.first("flower"), "/etc/airflow/secrets/flower_broker_url"
    attempts: Attempts = [
        ("basic_get", [f"{vm}_queue"]),
        ("basic_get", ["default"]),
        ("queue_purge", ["default"]),
        ("send", ["", "default"]),
        ("send", ["default", "default"]),
        ("queue_declare", ["a_new_queue"]),
        ("queue_delete", ["default"]),
    ]
    assert refused_by_the_broker(cluster, name, attempts, url) == {}
    # It asks the workers.
    assert python(cluster, name, BROKER, ATTEMPTS=[("exchange_declare", ["amq.fanout", "fanout", True])], URL=url)
    process = cluster.host(name).run(
        "tr '\\0' '\\n' < /proc/$(systemctl show airflow-flower -p MainPID --value)/environ"
    )
    assert f"AIRFLOW__CELERY__BROKER_URL_CMD=cat {url}" in process.stdout.splitlines()


def test_each_vm_has_a_user_of_its_own(cluster: Cluster, broker: Callable[..., Any]) -> None:
    """And main's VMs alone are left: those of another layout are gone."""
    on_vms = {name for name in cluster.members["airflow"] if name not in cluster.members["core"]}
    users = {entry["user"]: entry["tags"] for entry in broker("list_users")}
    assert set(users) == {"airflow_admin", "airflow_user", "airflow_flower"} | on_vms
    assert {tag for tags in users.values() for tag in tags} == {"administrator", "airflow"}
    assert len({cluster.secret(f"broker_password_{name}") for name in on_vms}) == len(on_vms)


@pytest.mark.shows("results")
def test_it_reads_and_writes_results_and_cannot_take_them_away(cluster: Cluster, vm: str) -> None:
    allowed = [
        "SELECT * FROM celery_taskmeta LIMIT 1",
        "INSERT INTO celery_taskmeta (id, task_id) VALUES (nextval('task_id_sequence'), 'a test')",
        "UPDATE celery_taskmeta SET status = status",
        "INSERT INTO celery_tasksetmeta (id, taskset_id) VALUES (nextval('taskset_id_sequence'), 'a test')",
    ]
    refused = [
        "DELETE FROM celery_taskmeta",
        "TRUNCATE celery_taskmeta",
        "DROP TABLE celery_taskmeta",
        "ALTER TABLE celery_taskmeta ADD COLUMN a INTEGER",
        "CREATE TABLE a (b INTEGER)",
        "CREATE TEMPORARY TABLE a (b INTEGER)",
        "SELECT setval('task_id_sequence', 1)",
        "SET ROLE airflow_results_user",
        "SELECT rolpassword FROM pg_authid",
    ]
    said = python(cluster, vm, DATABASE, DATABASE="airflow_results_db", STATEMENTS=allowed + refused)
    assert said[: len(allowed)] == ["done"] * len(allowed)
    for statement, came in zip(refused, said[len(allowed) :], strict=True):
        assert "permission denied" in came or "must be owner" in came, (statement, came)


@pytest.mark.shows("other-databases")
def test_it_reaches_no_other_database(cluster: Cluster, vm: str) -> None:
    for database in ("airflow_db", "postgres", "template1"):
        (said,) = python(cluster, vm, DATABASE, DATABASE=database, STATEMENTS=["SELECT 1"])
        assert "no pg_hba.conf entry" in said


def test_the_owner_of_the_results_cannot_log_in(cluster: Cluster) -> None:
    host = cluster.host(cluster.first("postgresql"))
    sql = "SELECT rolcanlogin, rolpassword IS NULL FROM pg_authid WHERE rolname = 'airflow_results_user'"
    assert host.check_output(f'runuser -u postgres -- psql -XAtc "{sql}"') == "f|t"


#: Prints what Celery's models and the database say of each table: columns, types, indexes.
TABLES = """
import json, sqlalchemy
from airflow.providers.celery.executors.celery_executor_utils import app
from celery.backends.database.session import ResultModelBase

app.backend  # its kind decides about columns
engine = sqlalchemy.create_engine(app.conf.result_backend.removeprefix("db+"))
there = sqlalchemy.inspect(engine)
said = []
for table in ResultModelBase.metadata.sorted_tables:
    said.append(sorted(f"{c.name} {c.type.compile(engine.dialect)} {c.nullable}" for c in table.columns))
    said.append(sorted(f"{c['name']} {c['type'].compile(engine.dialect)} {c['nullable']}"
                       for c in there.get_columns(table.name)))
    said.append(sorted(i.name for i in table.indexes))
    said.append(sorted(i["name"] for i in there.get_indexes(table.name) if "duplicates_constraint" not in i))
print(json.dumps(said))
"""


def test_the_tables_are_as_celery_would_make_them(cluster: Cluster) -> None:
    said = python(cluster, cluster.first("scheduler"), TABLES)
    assert len(said) == 8
    assert said[0::2] == said[1::2]


def key_of(cluster: Cluster, vm: str) -> str:
    return str(cluster.host(vm).file("/etc/airflow/secrets/api_secret_key").content_string)


def who_is(cluster: Cluster, url: str, key: str) -> requests.Response:
    """Ask as the first user, remembered by a cookie that is signed with this key, as Flask-Login does."""
    signature = hmac.new(key.encode(), b"1", hashlib.sha512).hexdigest()
    cookies = {"remember_token": f"1|{signature}"}
    page = f"{url}/auth/users/userinfo/"
    return requests.get(page, cookies=cookies, verify=cluster.ca, timeout=30, allow_redirects=False)


@pytest.mark.shows("session")
def test_its_key_makes_no_session_of_the_ui(cluster: Cluster, api_url: str, vm: str) -> None:
    inside = who_is(cluster, api_url, cluster.secret("session_secret_key"))
    assert inside.status_code == 200, "the way in is another one: this test proves nothing"
    outside = who_is(cluster, api_url, key_of(cluster, vm))
    assert outside.status_code == 302
    assert "/auth/login/" in outside.headers["location"]


@pytest.mark.shows("trigger")
def test_its_key_triggers_no_dag(cluster: Cluster, api_url: str, vm: str) -> None:
    def triggered(bearer: str) -> int:
        answer = requests.post(
            f"{api_url}/api/v2/dags/no_such_dag/dagRuns",
            json={"logical_date": None},
            headers={"Authorization": f"Bearer {bearer}"},
            verify=cluster.ca,
            timeout=30,
        )
        return answer.status_code

    login = {"username": "admin", "password": cluster.secret("admin_password")}
    given = requests.post(f"{api_url}/auth/token", json=login, verify=cluster.ca, timeout=30).json()["access_token"]
    right = signed_as(given, cluster.secret("jwt_private_key"), "apache-airflow")
    assert triggered(right) == 404, "the token is another one: this test proves nothing"
    assert triggered(intruders.token(key_of(cluster, vm), "apache-airflow")) in (401, 403)


def test_its_worker_works_without_a_complaint(cluster: Cluster, vm: str) -> None:
    """By its journal since it was started."""
    assert calls(cluster, vm, "hostname") == [vm]
    journal = cluster.host(vm).check_output(
        "journalctl --no-pager --output=cat"
        f" _SYSTEMD_INVOCATION_ID=$(systemctl show airflow-worker-{vm} --property=InvocationID --value)"
    )
    assert "ready" in journal
    bad = [line for line in journal.splitlines() if any(word in line for word in COMPLAINTS)]
    assert bad == []


#: What a right that is missing leaves there. Errors of tasks, which other tests cause, stand there as well.
COMPLAINTS = ("[critical", "CRITICAL", "ACCESS_REFUSED", "AccessRefused", "permission denied")
