"""The examples of the README are run, so that they stay true."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from remote_tasks import cli
from remote_tasks.targets import Target, parse_targets

README = Path(__file__).parents[1] / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_dag_can_be_imported(
    vm2: Target, vm3: Target, targets_file: Callable[..., Path], tmp_path: Path
) -> None:
    from airflow.sdk import DAG

    targets_file(vm2, vm3)
    source = blocks("python")[0]
    namespace: dict[str, object] = {"__name__": "readme"}
    # The call at the end is what makes the DAG; keep it.
    exec(source.replace("\nreports()", "\nresult = reports()"), namespace)
    dag = namespace["result"]
    assert isinstance(dag, DAG)
    queues = {
        task.task_id: task.partial_kwargs["queue"] if task.is_mapped else task.queue
        for task in dag.tasks
    }
    assert queues == {
        "wait": "vm2_queue",
        "copy": "file_transfer_queue",
        "count": "vm3_queue",
        "disk": "vm3_queue",
    }


def test_all_python_compiles() -> None:
    for source in blocks("python"):
        compile(source, "README.md", "exec")


def test_the_targets_file_is_valid() -> None:
    (source,) = blocks("json")
    targets = parse_targets(source, "README.md")
    assert [target.transport for target in targets] == ["local", "ssh", "none"]


def test_the_listing_is_what_the_command_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (source,) = blocks("json")
    data = json.loads(source)
    data["targets"] = data["targets"][1:2]
    (tmp_path / "t.json").write_text(json.dumps(data))
    monkeypatch.setenv("REMOTE_TASKS_TARGETS", "")  # restored afterwards, whatever main() sets
    assert cli.main(["--targets", str(tmp_path / "t.json"), "list"]) == 0
    assert capsys.readouterr().out in blocks("console")[0]
