"""The tasks in a real Celery worker; the broker is Celery's own in-memory one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker

from remote_tasks.errors import ConnectError
from remote_tasks.targets import Target

TargetsFile = Callable[..., Path]

NAMES = {"execute_on_vm", "execute_on_all_vms", "file_transfer", "check_vm_status"}


@pytest.fixture(scope="module")
def app() -> Iterator[Celery]:
    app = Celery("worker", broker="memory://", backend="cache+memory://")
    app.conf.include = ["remote_tasks.tasks"]
    app.conf.accept_content = ["json"]
    app.conf.task_acks_late = True
    app.loader.import_default_modules()
    app.finalize()
    with start_worker(app, perform_ping_check=False, pool="solo", loglevel="WARNING"):
        yield app


def test_the_names_are_those_of_the_documents(app: Celery) -> None:
    assert {f"remote_tasks.{name}" for name in NAMES} <= set(app.tasks)
    assert not app.tasks["remote_tasks.execute_on_vm"].acks_late


def test_execute_on_vm(app: Celery, vm: Target, targets_file: TargetsFile) -> None:
    targets_file(vm)
    sent = app.send_task("remote_tasks.execute_on_vm", args=[vm.name, "echo hi; exit 3"])
    result = sent.get(timeout=20)
    assert (result["output"], result["exit_code"], result["success"]) == ("hi", 3, False)


def test_execute_on_vm_with_a_list_and_options(
    app: Celery, vm2: Target, targets_file: TargetsFile, tmp_path: Path
) -> None:
    targets_file(vm2)
    sent = app.send_task(
        "remote_tasks.execute_on_vm",
        args=["vm2", ["sh", "-c", 'pwd; echo "$A"; cat']],
        kwargs={"cwd": str(tmp_path), "env": {"A": "b  c"}, "stdin": "in"},
    )
    assert sent.get(timeout=20)["output"] == f"{tmp_path}\nb  c\nin"


def test_an_unknown_vm_is_a_value_error_at_once(
    app: Celery, vm2: Target, targets_file: TargetsFile
) -> None:
    targets_file(vm2, retry_delay=60)
    sent = app.send_task("remote_tasks.execute_on_vm", args=["vm7", "true"])
    with pytest.raises(ValueError, match=r"Unknown VM 'vm7'. Known are: vm2"):
        sent.get(timeout=5)


def test_a_vm_that_is_down_fails_after_the_retries(
    app: Celery, down: Target, targets_file: TargetsFile, caplog: pytest.LogCaptureFixture
) -> None:
    targets_file(down, retry_delay=0.05, retry_max=2)
    sent = app.send_task("remote_tasks.execute_on_vm", args=["vm9", "true"])
    with pytest.raises(ConnectError, match="vm9"):
        sent.get(timeout=20)


def test_execute_on_all_vms(
    app: Celery, vm2: Target, down: Target, targets_file: TargetsFile
) -> None:
    targets_file(vm2, down, retry_delay=60)
    results = app.send_task("remote_tasks.execute_on_all_vms", args=["hostname"]).get(timeout=20)
    assert [results[name]["success"] for name in ("vm2", "vm9")] == [True, False]


def test_file_transfer(
    app: Celery, vm2: Target, vm3: Target, targets_file: TargetsFile, tmp_path: Path
) -> None:
    targets_file(vm2, vm3)
    (tmp_path / "a").write_text("x")
    args = ["vm2", "vm3", str(tmp_path / "a"), str(tmp_path / "b")]
    assert app.send_task("remote_tasks.file_transfer", args=args).get(timeout=20)["success"]
    assert (tmp_path / "b").read_text() == "x"
    (tmp_path / "a").unlink()
    result = app.send_task("remote_tasks.file_transfer", args=args).get(timeout=20)
    assert result["success"] is False
    assert "no such file" in result["error"]


def test_check_vm_status(app: Celery, vm2: Target, targets_file: TargetsFile) -> None:
    targets_file(vm2)
    status = app.send_task("remote_tasks.check_vm_status", args=["vm2"]).get(timeout=20)
    assert status["overall_status"] is True
