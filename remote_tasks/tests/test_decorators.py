from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from airflow.sdk import DAG, task
from airflow.sdk.exceptions import AirflowException

from remote_tasks.targets import Target

TargetsFile = Callable[..., Path]


@pytest.fixture(autouse=True)
def dag() -> Any:
    with DAG("test", schedule=None, start_date=datetime(2024, 5, 1)) as dag:
        yield dag


def run_task(xcom_arg: Any, **context: Any) -> Any:
    operator = xcom_arg.operator
    values = {"params": {}, "ti": Mock(), **context}
    operator.render_template_fields(values)
    return operator.execute(values)


def test_a_line_or_a_list(vm: Target, targets_file: TargetsFile) -> None:
    targets_file(vm)

    @task.remote(vm=vm.name)
    def line(word: str) -> str:
        return f"echo {word} | tr a-z A-Z"

    @task.remote(vm=vm.name, env={"A": "{{ ds }}"})
    def words(word: str) -> list[str]:
        return ["sh", "-c", 'echo "$A" "$1"', "sh", word]

    assert run_task(line("hi"))["output"] == "HI"
    result = run_task(words("b  c; $(id)"), ds="2026-01-02")
    assert result["output"] == "2026-01-02 b  c; $(id)"


def test_what_the_function_returns_is_data(vm2: Target, targets_file: TargetsFile) -> None:
    targets_file(vm2)

    @task.remote(vm="vm2")
    def command() -> tuple[str, ...]:
        return ("echo", "{{ ds }}")

    assert run_task(command(), ds="2026-01-02")["output"] == "{{ ds }}"


def test_context_arrives(vm2: Target, targets_file: TargetsFile) -> None:
    targets_file(vm2)

    @task.remote(vm="vm2")
    def command(ds: str | None = None, params: Any = None) -> str:
        return f"echo {ds} {params['x']}"

    assert run_task(command(), ds="2026-01-02", params={"x": 5})["output"] == "2026-01-02 5"


def test_the_queue_comes_from_the_vm_for_mapped_tasks_too(
    vm2: Target, targets_file: TargetsFile
) -> None:
    targets_file(vm2)

    @task.remote(vm="vm2")
    def command(word: str) -> list[str]:
        return ["echo", word]

    assert command("x").operator.queue == "vm2_queue"
    assert command.expand(word=["a", "b"]).operator.partial_kwargs["queue"] == "vm2_queue"
    assert command.override(queue="other")("x").operator.queue == "other"


@pytest.mark.parametrize("value", [None, "", [], 5])
def test_a_function_that_returns_no_command(
    vm2: Target,
    targets_file: TargetsFile,
    value: Any,
) -> None:
    targets_file(vm2)

    @task.remote(vm="vm2")
    def command() -> Any:
        return value

    with pytest.raises(TypeError, match="must return a command line or a list"):
        run_task(command())


def test_a_failure_fails(vm2: Target, targets_file: TargetsFile) -> None:
    targets_file(vm2)

    @task.remote(vm="vm2")
    def command() -> str:
        return "echo no >&2; exit 4"

    with pytest.raises(AirflowException, match="exit code 4"):
        run_task(command())
