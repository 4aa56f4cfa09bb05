from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from conftest import eventually, processes
from remote_tasks.errors import UnknownTargetError
from remote_tasks.operators import RemoteCommandOperator, RemoteFileTransferOperator
from remote_tasks.targets import Target
from test_execution import unique

TargetsFile = Callable[..., Path]


@pytest.fixture(autouse=True)
def dag() -> Any:
    with DAG("test", schedule=None, start_date=datetime(2024, 5, 1)) as dag:
        yield dag


class TaskInstance:
    """Stands for Airflow's, which would ask the API server."""

    def __init__(self) -> None:
        self.xcoms: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcoms[key] = value


def execute(operator: Any, **context: Any) -> Any:
    """Render and run a task as the task runner does."""
    values = {"params": {}, "ti": TaskInstance(), **context}
    operator.render_template_fields(values)
    return operator.execute(values)


def test_the_queue_is_that_of_the_target(vm2: Target, targets_file: TargetsFile) -> None:
    targets_file(vm2)
    assert RemoteCommandOperator(task_id="a", vm="vm2", command="x").queue == "vm2_queue"
    assert (
        RemoteCommandOperator(task_id="b", vm="vm2", command="x", queue="special").queue
        == "special"
    )
    templated = RemoteCommandOperator(task_id="c", vm="{{ params.vm }}", command="x")
    assert templated.queue == "all_vms_queue"
    with pytest.raises(UnknownTargetError, match="Known are: vm2"):
        RemoteCommandOperator(task_id="d", vm="vm7", command="x")


def test_a_dag_can_be_read_where_there_is_no_targets_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMOTE_TASKS_TARGETS", str(tmp_path / "none"))
    assert RemoteCommandOperator(task_id="a", vm="vm2", command="x").queue == "vm2_queue"


def test_a_mapped_task_has_its_queue_too(vm2: Target, targets_file: TargetsFile) -> None:
    targets_file(vm2)
    mapped = RemoteCommandOperator.partial(task_id="a", vm="vm2").expand(command=["x", "y"])
    assert mapped.partial_kwargs["queue"] == "vm2_queue"
    mapped = RemoteCommandOperator.partial(task_id="b", command="x").expand(vm=["vm2", "vm3"])
    assert mapped.partial_kwargs["queue"] == "all_vms_queue"
    mapped = RemoteFileTransferOperator.partial(
        task_id="c", source_vm="vm2", dest_vm="vm3", dest_path="/x"
    ).expand(source_path=["/a", "/b"])
    assert mapped.partial_kwargs["queue"] == "file_transfer_queue"


def test_a_command_is_rendered_and_its_result_returned(
    vm: Target, targets_file: TargetsFile, caplog: pytest.LogCaptureFixture
) -> None:
    targets_file(vm)
    operator = RemoteCommandOperator(
        task_id="a",
        vm="{{ params.vm }}",
        command="pwd; echo $DAY; echo {{ params.word }}; echo oops >&2; cat",
        env={"DAY": "{{ ds }}"},
        cwd="{{ params.place }}",
        stdin="{{ not a template }}",
    )
    with caplog.at_level(logging.INFO):
        result = execute(
            operator,
            ds="2026-01-02",
            params={"vm": vm.name, "word": "hi", "place": "/usr/lib"},
        )
    assert result["output"].splitlines() == [
        "/usr/lib",
        "2026-01-02",
        "hi",
        "{{ not a template }}",
    ]
    assert (result["error"], result["success"]) == ("oops", True)


def test_a_list_of_arguments_is_rendered_one_by_one_and_stays_data(
    vm: Target, targets_file: TargetsFile
) -> None:
    targets_file(vm)
    operator = RemoteCommandOperator(
        task_id="a", vm=vm.name, command=["printf", "%s|", "{{ params.evil }}", "b  c"]
    )
    result = execute(operator, params={"evil": "'; echo pwned; $(id)"})
    assert result["output"] == "'; echo pwned; $(id)|b  c|"


def test_a_failed_command_says_where_with_what_and_why(
    vm: Target, targets_file: TargetsFile
) -> None:
    targets_file(vm)
    operator = RemoteCommandOperator(
        task_id="a", vm=vm.name, command="seq 1 50 >&2; echo disk is full >&2; exit 3"
    )
    with pytest.raises(AirflowException) as caught:
        execute(operator)
    message = str(caught.value)
    assert f"The command on {vm.name} (127.0.0.1) failed with exit code 3." in message
    assert message.endswith("49\n50\ndisk is full")
    assert "\n20\n" not in message
    assert not isinstance(caught.value, AirflowFailException)


def test_a_failed_task_leaves_its_message(
    vm2: Target, targets_file: TargetsFile, tmp_path: Path
) -> None:
    targets_file(vm2)
    paths = {"source_path": str(tmp_path / "none"), "dest_path": str(tmp_path / "x")}
    for operator in (
        RemoteCommandOperator(task_id="a", vm="vm2", command="echo disk is full >&2; exit 3"),
        RemoteFileTransferOperator(task_id="b", source_vm="vm2", dest_vm="vm2", **paths),
        RemoteFileTransferOperator(task_id="c", source_vm="vm7", dest_vm="vm2", **paths),
    ):
        ti = TaskInstance()
        with pytest.raises(AirflowException) as caught:
            execute(operator, ti=ti)
        assert ti.xcoms == {"error": str(caught.value)}
    ti = TaskInstance()
    with pytest.raises(AirflowSkipException):
        execute(RemoteCommandOperator(task_id="d", vm="vm2", command="exit 99"), ti=ti)
    execute(RemoteCommandOperator(task_id="e", vm="vm2", command="true"), ti=ti)
    assert ti.xcoms == {}


def test_an_exit_code_can_mean_skip(vm2: Target, targets_file: TargetsFile) -> None:
    targets_file(vm2)
    with pytest.raises(AirflowSkipException):
        execute(RemoteCommandOperator(task_id="a", vm="vm2", command="exit 99"))
    with pytest.raises(AirflowSkipException):
        execute(
            RemoteCommandOperator(task_id="b", vm="vm2", command="exit 4", skip_on_exit_code=[4, 5])
        )
    with pytest.raises(AirflowException, match="exit code 99"):
        execute(
            RemoteCommandOperator(task_id="c", vm="vm2", command="exit 99", skip_on_exit_code=None)
        )


def test_what_a_retry_cannot_mend_is_not_retried(
    vm2: Target, down: Target, targets_file: TargetsFile, tmp_path: Path
) -> None:
    import dataclasses

    stranger = dataclasses.replace(vm2, name="vm5", queue="q5", key_file=str(tmp_path / "none"))
    targets_file(vm2, down, stranger)
    with pytest.raises(AirflowFailException, match="AuthenticationError"):
        execute(RemoteCommandOperator(task_id="a", vm="vm5", command="true"))
    with pytest.raises(AirflowException, match="ConnectError: vm9") as caught:
        execute(RemoteCommandOperator(task_id="b", vm="vm9", command="true"))
    assert not isinstance(caught.value, AirflowFailException)
    with pytest.raises(AirflowException, match=r"CommandTimeoutError.*longer than 0\.3 s"):
        execute(RemoteCommandOperator(task_id="c", vm="vm2", command="sleep 9", timeout=0.3))


def test_on_kill_kills_the_command(vm: Target, targets_file: TargetsFile) -> None:
    """As Airflow does it: on_kill in a signal handler of the thread that waits."""
    targets_file(vm)
    seconds = unique()
    operator = RemoteCommandOperator(
        task_id="a", vm=vm.name, command=f"sleep {seconds} & sleep {seconds}"
    )
    old = signal.signal(signal.SIGTERM, lambda *_: operator.on_kill())

    def terminate() -> None:
        eventually(lambda: len(processes(seconds)) >= 2)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=terminate)
    thread.start()
    began = time.monotonic()
    try:
        with pytest.raises(AirflowException, match="killed with its task"):
            execute(operator)
    finally:
        signal.signal(signal.SIGTERM, old)
        thread.join()
    assert not processes(seconds)
    assert time.monotonic() - began < 8


def test_on_kill_before_and_after_is_harmless(vm2: Target, targets_file: TargetsFile) -> None:
    targets_file(vm2)
    operator = RemoteCommandOperator(task_id="a", vm="vm2", command="true")
    operator.on_kill()
    execute(operator)
    operator.on_kill()


def test_a_transfer(vm2: Target, vm3: Target, targets_file: TargetsFile, tmp_path: Path) -> None:
    targets_file(vm2, vm3)
    (tmp_path / "a").write_text("x")
    operator = RemoteFileTransferOperator(
        task_id="a",
        source_vm="vm2",
        dest_vm="{{ params.to }}",
        source_path=str(tmp_path / "a"),
        dest_path=str(tmp_path) + "/{{ params.name }}",
    )
    assert operator.queue == "file_transfer_queue"
    result = execute(operator, params={"to": "vm3", "name": "b"})
    assert (result["dest_path"], result["size"]) == (str(tmp_path / "b"), 1)
    (tmp_path / "a").unlink()
    with pytest.raises(AirflowException, match=r"SourceError: .*no such file"):
        execute(operator, params={"to": "vm3", "name": "b"})
