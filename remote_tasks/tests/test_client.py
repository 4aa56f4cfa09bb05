"""Calls through a real RabbitMQ with quorum queues, answered by a real worker with a pool."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kombu import Connection, Queue

import remote_tasks
from conftest import eventually, free_port
from remote_tasks import cli, client
from remote_tasks.errors import ConnectError, QueueError, ResultTimeoutError, UnknownTargetError
from remote_tasks.targets import Target
from test_runtime import in_child

pytestmark = [pytest.mark.rabbitmq, pytest.mark.slow]

WORKER = """
from celery import Celery
app = Celery("worker", broker={broker!r}, backend="db+sqlite:///{database}")
app.conf.update(
    include=["remote_tasks.tasks"], accept_content=["json"], task_acks_late=True,
    worker_prefetch_multiplier=1, task_default_queue="default", task_default_queue_type="quorum",
    task_create_missing_queue_type="quorum", broker_connection_retry_on_startup=True,
    task_track_started=True,
)
"""


class Broker:
    def __init__(self, directory: Path) -> None:
        self.port, self.directory = free_port(), directory
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"test{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(free_port()),
            "ERL_EPMD_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(directory / "data"),
            "RABBITMQ_LOG_BASE": str(directory / "log"),
            "RABBITMQ_PID_FILE": str(directory / "pid"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1",
        }
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}//"
        # Debian's wrapper would become another user.
        program = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
        self.program = str(program) if program.exists() else shutil.which("rabbitmq-server")
        self.epmd = shutil.which("epmd", path=f"{os.environ['PATH']}:/usr/lib/erlang/bin")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert self.program is not None
        with (self.directory / "out").open("ab") as out:
            self.process = subprocess.Popen(
                [self.program], env=self.environment, stdout=out, stderr=out, start_new_session=True
            )
        text = (self.directory / "out").read_text

        def answers() -> bool:
            with contextlib.suppress(Exception), Connection(self.url) as connection:
                connection.ensure_connection(max_retries=1, timeout=1)
                return True
            return False

        assert eventually(answers, 60), text()

    def stop(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        if self.epmd:
            subprocess.run([self.epmd, "-kill"], env=self.environment, capture_output=True)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    broker = Broker(tmp_path_factory.mktemp("rabbitmq"))
    if broker.program is None:
        pytest.skip("rabbitmq-server is not installed")
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture(scope="module")
def vm2_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("targets") / "targets.json"


@pytest.fixture(scope="module")
def worker(
    broker: Broker, tmp_path_factory: pytest.TempPathFactory, vm2_file: Path
) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("worker")
    database = directory / "results.db"
    (directory / "app_under_test.py").write_text(
        WORKER.format(broker=broker.url, database=database)
    )
    queues = "vm2_queue,vm9_queue,all_vms_queue,file_transfer_queue"
    log = (directory / "log").open("wb")
    command = f"{sys.executable} -m celery -A app_under_test worker -Q {queues} --concurrency=2"
    process = subprocess.Popen(
        [*command.split(), "--loglevel=INFO", "--without-gossip", "--without-mingle"],
        cwd=directory,
        env={**os.environ, "REMOTE_TASKS_TARGETS": str(vm2_file), "C_FORCE_ROOT": "1"},
        start_new_session=True,
        stdout=log,
        stderr=log,
    )
    assert eventually(lambda: b" ready." in (directory / "log").read_bytes(), 40), (
        directory / "log"
    ).read_text()
    yield directory
    # Not its warm shutdown: after the loss of the broker that can wait for ever.
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(autouse=True)
def calling(
    broker: Broker,
    worker: Path,
    vm2: Target,
    down: Target,
    vm2_file: Path,
    targets_file: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copy(targets_file(vm2, down), vm2_file)
    monkeypatch.setenv("REMOTE_TASKS_BROKER_URL", broker.url)


def test_two_lines(tmp_path: Path) -> None:
    result = remote_tasks.execute_on_vm("vm2", "echo hi; exit 3")
    assert (result["output"], result["exit_code"]) == ("hi", 3)


def test_all_four(tmp_path: Path) -> None:
    assert remote_tasks.execute_on_vm("vm2", ["echo", "a  b"], env={"X": "y"})["output"] == "a  b"
    assert remote_tasks.check_vm_status("vm2", timeout=30)["overall_status"] is True
    results = remote_tasks.execute_on_all_vms("echo hi", timeout=30)
    assert [results[vm]["success"] for vm in ("vm2", "vm9")] == [True, False]
    (tmp_path / "a").write_text("x")
    args = ("vm2", "vm2", str(tmp_path / "a"), str(tmp_path / "b"))
    assert remote_tasks.file_transfer(*args, timeout=30)["success"]


def test_a_result_comes_in_milliseconds() -> None:
    remote_tasks.execute_on_vm("vm2", "true")
    times = []
    for _ in range(50):
        began = time.perf_counter()
        remote_tasks.execute_on_vm("vm2", "true", timeout=20)
        times.append(time.perf_counter() - began)
    # Far from a poll each half second, on a busy machine too.
    assert statistics.median(times) < 0.1


def test_many_results_in_any_order() -> None:
    connection = client.get_client()
    futures = [
        connection.submit("remote_tasks.execute_on_vm", ["vm2", f"echo {n}"], queue="vm2_queue")
        for n in range(50)
    ]
    began = time.monotonic()
    assert [f.result(30)["output"] for f in reversed(futures)] == [
        str(n) for n in reversed(range(50))
    ]
    assert time.monotonic() - began < 10
    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        results = list(
            pool.map(lambda n: remote_tasks.execute_on_vm("vm2", f"echo {n}"), range(30))
        )
    assert [result["output"] for result in results] == [str(n) for n in range(30)]


def test_errors_come_back_as_what_they_are() -> None:
    with pytest.raises(UnknownTargetError, match="Known are: vm2, vm9"):
        client.get_client().call("remote_tasks.check_vm_status", ["vm7"], queue="vm2_queue")
    with pytest.raises(ConnectError, match="vm9"):
        remote_tasks.execute_on_vm("vm9", "true", timeout=30)


def test_queues_say_at_once_what_waits(broker: Broker, capsys: pytest.CaptureFixture[str]) -> None:
    with Connection(broker.url) as connection:
        arguments = {"x-queue-type": "quorum"}
        Queue("held_queue", channel=connection, queue_arguments=arguments).declare()
    for _ in range(3):
        client.get_client().submit(
            "remote_tasks.execute_on_vm", ["vm2", "true"], queue="held_queue"
        )
    # The broker's own figures would show the three some seconds later.
    assert client.queue_states(["held_queue", "vm7_queue", "vm9_queue"]) == {
        "held_queue": client.QueueState(waiting=3, consumers=0),
        "vm7_queue": None,
        "vm9_queue": client.QueueState(waiting=0, consumers=1),
    }
    assert cli.main(["queues", "held_queue", "vm7_queue"]) == 1
    said = capsys.readouterr()
    assert [line.split() for line in said.out.splitlines()][1:] == [
        ["held_queue", "3", "0"],
        ["vm7_queue", "-", "NONE"],
    ]
    assert said.err == "remote-tasks: the broker has no queue vm7_queue\n"
    assert cli.main(["queues", "--json", "vm9_queue"]) == 0
    assert json.loads(capsys.readouterr().out) == {"vm9_queue": {"waiting": 0, "consumers": 1}}


def test_a_queue_that_does_not_exist_is_an_error_at_once() -> None:
    began = time.monotonic()
    with pytest.raises(QueueError, match="no queue 'vm7_queue': no worker has ever served it"):
        client.get_client().call("remote_tasks.check_vm_status", ["vm7"], queue="vm7_queue")
    assert time.monotonic() - began < 3
    assert remote_tasks.execute_on_vm("vm2", "echo ok")["output"] == "ok"


def test_no_result_in_time() -> None:
    with pytest.raises(ResultTimeoutError, match=r"within 0\.5 s. Is its worker running"):
        remote_tasks.execute_on_vm("vm2", "sleep 1.5", timeout=0.5)
    assert remote_tasks.execute_on_vm("vm2", "echo ok", timeout=30)["output"] == "ok"


def test_who_has_given_up_has_his_command_not_run(tmp_path: Path) -> None:
    connection = client.get_client()
    busy = [
        connection.submit("remote_tasks.execute_on_vm", ["vm2", "sleep 2"], queue="vm2_queue")
        for _ in range(2)
    ]
    with pytest.raises(ResultTimeoutError):
        remote_tasks.execute_on_vm("vm2", f"touch {tmp_path}/ran", timeout=0.5)
    for future in busy:
        future.result(20)
    assert remote_tasks.execute_on_vm("vm2", "echo ok", timeout=30)["output"] == "ok"
    assert not (tmp_path / "ran").exists()


def test_another_application_gets_its_result_from_the_result_backend(worker: Path) -> None:
    """As a script does that uses Airflow's own Celery application."""
    from celery import Celery

    sys.path.insert(0, str(worker))
    try:
        import app_under_test

        app: Celery = app_under_test.app
        sent = app.send_task(
            "remote_tasks.execute_on_vm", args=["vm2", "echo hi"], queue="vm2_queue"
        )
        assert sent.get(timeout=30)["output"] == "hi"
        stored = worker / "results.db"
        import sqlite3

        with sqlite3.connect(stored) as database:
            before = database.execute("select count(*) from celery_taskmeta").fetchone()
            remote_tasks.execute_on_vm("vm2", "true", timeout=20)
            # Direct calls leave no rows behind.
            assert database.execute("select count(*) from celery_taskmeta").fetchone() == before
    finally:
        sys.path.remove(str(worker))


def test_a_child_makes_its_own_connection() -> None:
    remote_tasks.execute_on_vm("vm2", "true", timeout=20)
    mine = client.get_client()

    def work() -> None:
        assert remote_tasks.execute_on_vm("vm2", "echo child", timeout=15)["output"] == "child"
        assert client.get_client() is not mine

    assert in_child(work) == 0
    assert remote_tasks.execute_on_vm("vm2", "echo parent", timeout=20)["output"] == "parent"
    assert client.get_client() is mine


def test_a_vms_login_at_the_broker_needs_one_right_to_answer(broker: Broker) -> None:
    """Publishing to the reply exchange; no right on the default exchange, none to configure."""
    from celery import Celery

    from remote_tasks.replies import reply

    control = Path(broker.program or "").with_name("rabbitmqctl")
    for words in (
        ["add_user", "vm2", "secret"],
        ["set_permissions", "vm2", "^$", r"^remote_tasks\.reply$", "^$"],
    ):
        done = subprocess.run(
            [str(control), *words], env=broker.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr + done.stdout
    connection = client.get_client()
    future: concurrent.futures.Future[object] = concurrent.futures.Future()
    connection._pending["task-id"] = future
    app = Celery("vm2", broker=broker.url.replace("guest:guest", "vm2:secret"))
    reply(app, connection._queue, "task-id", {"output": "allowed"})
    assert future.result(10) == {"output": "allowed"}


def test_a_broker_that_restarts_breaks_one_call_and_not_the_next(
    broker: Broker, worker: Path
) -> None:
    connection = client.get_client()
    future = connection.submit("remote_tasks.execute_on_vm", ["vm2", "sleep 1"], queue="vm2_queue")
    broker.stop()
    with pytest.raises(QueueError, match=r"lost .* while waiting"):
        future.result(20)
    with pytest.raises(QueueError, match="cannot be reached"):
        remote_tasks.execute_on_vm("vm2", "true", timeout=5)
    broker.start()
    assert eventually(lambda: _answers(), 60)


def _answers() -> bool:
    with contextlib.suppress(QueueError, ResultTimeoutError):
        return bool(remote_tasks.execute_on_vm("vm2", "echo ok", timeout=5)["output"] == "ok")
    return False
