from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from remote_tasks import cli, dags
from remote_tasks.dags import DagTask, consumed_queues, last_line, without_consumer
from remote_tasks.targets import Target

SHIPPED = Path(__file__).parents[2] / "dags"
QUEUES = "default, all_vms_queue, file_transfer_queue, vm1_queue"

HEAD = """
import datetime
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, task
from remote_tasks import RemoteCommandOperator

start = {"schedule": None, "start_date": datetime.datetime(2024, 5, 1)}
"""

Check = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def check(tmp_path: Path, here: Target, targets_file: Callable[..., Path]) -> Check:
    """Run the command as in a CI: nothing of Airflow is configured, and there is no database."""
    targets = targets_file(here)
    home = tmp_path / "airflow"
    home.mkdir()

    def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("AIRFLOW", "REMOTE_TASKS"))
        }
        done = subprocess.run(
            [sys.executable, "-m", "remote_tasks.cli", "--targets", targets, "check-dags", *words],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=tmp_path,
            env={**environment, "AIRFLOW_HOME": str(home), **variables},
        )
        assert not list(home.rglob("*.db"))
        return done

    return run


@pytest.fixture
def write_dag(tmp_path: Path) -> Callable[[str, str], Path]:
    folder = tmp_path / "dags"
    folder.mkdir()

    def write(name: str, body: str) -> Path:
        (folder / name).write_text(HEAD + body)
        return folder

    return write


def test_queues_with_a_consumer(here: Target) -> None:
    targets = [here, replace(here, name="vm7", queue="Batch.only")]
    queues = consumed_queues(targets, "default")
    assert queues == [*QUEUES.split(", "), "Batch.only"]
    assert consumed_queues([], "all_vms_queue") == ["all_vms_queue", "file_transfer_queue"]


def test_only_a_name_that_is_not_consumed_is_found() -> None:
    named = ["vm1_queue", None, "vm9_queue", "", "VM1_queue", "vm1_queue,default"]
    tasks = [DagTask("a.py", "a", f"t{n}", queue) for n, queue in enumerate(named)]
    assert without_consumer(tasks, QUEUES.split(", ")) == tasks[2:]
    assert without_consumer([], []) == []


@pytest.mark.parametrize(
    ("trace", "line"),
    [
        ("UnknownExecutorException: no such", "UnknownExecutorException: no such"),
        ("", ""),
        (
            "Traceback (most recent call last):\n"
            '  File "/d/a.py", line 7\n    import x\nKeyError: 1\n\n'
            "During handling of the above exception, another exception occurred:\n\n"
            "Traceback (most recent call last):\n"
            '  File "/d/a.py", line 9, in <module>\n    f()\n'
            '  File "/d/lib.py", line 2, in f\n    raise E(text)\n'
            "lib.E: it took 30 s.\n  See the docs:\n\n* https://docs\n",
            "lib.E: it took 30 s. See the docs: * https://docs (line 9)",
        ),
        (
            "Traceback (most recent call last):\n"
            '  File "/d/a.py", line 2\n    dag = (\n          ^\nSyntaxError: never closed\n',
            "SyntaxError: never closed (line 2)",
        ),
        (
            "  + Exception Group Traceback (most recent call last):\n  | ExceptionGroup: two\n"
            "  +-+---------------- 1 ----------------\n    | ValueError: 1\n",
            "| ValueError: 1",
        ),
    ],
)
def test_the_last_line_of_a_trace(trace: str, line: str) -> None:
    assert last_line(trace, "/d/a.py") == line


def test_the_shipped_dags_are_right_in_a_bare_environment(check: Check) -> None:
    done = check(str(SHIPPED))
    assert done.stdout.startswith("DAGs: 3, tasks: "), done.stderr
    assert done.stdout.endswith("; every queue that they name has a consumer\n")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_queue_without_a_consumer(check: Check, write_dag: Callable[[str, str], Path]) -> None:
    write_dag("helper.py", "QUEUE = 'nope'")
    folder = write_dag(
        "bad.py",
        """
from helper import QUEUE

with DAG("bad", **start, default_args={"queue": "vm9_queue"}):
    BashOperator(task_id="plain", bash_command="true")
    BashOperator.partial(task_id="mapped", queue="vm8_queue").expand(bash_command=["true"])

    @task(queue=QUEUE)
    def decorated() -> None: ...

    decorated()
    BashOperator(task_id="none", bash_command="true", queue=None)
    BashOperator(task_id="local", bash_command="true", executor="LocalExecutor")
    BashOperator(task_id="celery", bash_command="true", executor="CeleryExecutor")
    RemoteCommandOperator(task_id="right", vm="vm1", command="true", queue="vm1_queue")
""",
    )
    executors = {"AIRFLOW__CORE__EXECUTOR": "CeleryExecutor,LocalExecutor"}
    expected = [
        f"dags/bad.py: bad.{task}: queue {queue!r} has no consumer. Queues are: {QUEUES}"
        for task, queue in {
            "plain": "vm9_queue",
            "mapped": "vm8_queue",
            "decorated": "nope",
            "celery": "vm9_queue",
        }.items()
    ]
    # A folder, a file in it (once, though it is in both), and Airflow's own folder.
    for words in (("dags",), ("dags/bad.py", "dags", "--", str(folder)), ()):
        done = check(*words, AIRFLOW__CORE__DAGS_FOLDER=str(folder), **executors)
        assert (done.stdout.splitlines(), done.stderr, done.returncode) == (expected, "", 1)


def test_what_cannot_be_imported(check: Check, write_dag: Callable[[str, str], Path]) -> None:
    write_dag("a_syntax.py", "dag = (")
    write_dag("b_exit.py", "import sys; sys.exit(3)")
    write_dag(
        "c_vm.py",
        "with DAG('vm', **start):\n    RemoteCommandOperator(task_id='t', vm='vm7', command='x')",
    )
    write_dag(
        "d_executor.py",
        "with DAG('e', **start):\n    BashOperator(task_id='t', bash_command='x', executor='None')",
    )
    done = check("dags", "--json")
    outcome = json.loads(done.stdout)
    assert (done.returncode, outcome["success"], outcome["dags"]) == (1, False, 0)
    assert outcome["queues"] == QUEUES.split(", ")
    syntax, left, unknown_vm, executor = outcome["import_errors"]
    assert (syntax["file"], left["file"]) == ("dags/a_syntax.py", "dags/b_exit.py")
    assert syntax["error"] == "SyntaxError: '(' was never closed (line 8)"
    assert left["error"] == "SystemExit: 3 (line 8)"
    assert "UnknownTargetError: Unknown VM 'vm7'. Known are: vm1 " in unknown_vm["error"]
    assert unknown_vm["error"].endswith(" (line 9)")
    assert unknown_vm["trace"].startswith("Traceback")
    assert "executor 'None', which is not available" in executor["error"]
    lines = check("dags").stdout.splitlines()
    assert lines[1] == "dags/b_exit.py: cannot be imported: SystemExit: 3 (line 8)"
    assert len(lines) == 4


def test_what_dags_print_does_not_spoil_json(
    check: Check, write_dag: Callable[[str, str], Path]
) -> None:
    write_dag(
        "loud.py",
        """
import logging, os, sys

print("printed")
sys.__stdout__.write("past the redirection\\n")
os.system("echo from a child")
logging.getLogger("x").critical("logged")

with DAG("loud", **start):
    BashOperator(task_id="t", bash_command="true", queue="vm9_queue")
""",
    )
    done = check("--json", "dags")
    assert json.loads(done.stdout)["without_consumer"] == [
        {"file": "dags/loud.py", "dag": "loud", "task": "t", "queue": "vm9_queue"}
    ]
    for said in ("printed", "past the redirection", "from a child", "logged"):
        assert said in done.stderr


def test_a_default_queue_of_another_name(
    check: Check, write_dag: Callable[[str, str], Path]
) -> None:
    write_dag("d.py", "with DAG('d', **start):\n    BashOperator(task_id='t', bash_command='true')")
    done = check("dags", AIRFLOW__OPERATORS__DEFAULT_QUEUE="anywhere")
    assert done.stdout == "DAGs: 1, tasks: 1; every queue that they name has a consumer\n"


def test_what_cannot_be_checked(check: Check, tmp_path: Path) -> None:
    done = check("dags")
    assert (done.stdout, done.returncode) == ("", 2)
    assert done.stderr.startswith(f"remote-tasks: {tmp_path}/dags: no such file or folder, or ")
    done = check()
    assert f"{tmp_path}/airflow/dags: no such file" in done.stderr
    done = check(".", AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_CMD="cat /none")
    assert (done.stdout, done.returncode) == ("", 2)
    assert "Airflow does not start: AirflowConfigException: Cannot execute cat" in done.stderr
    done = check(".")
    assert (done.stdout[:17], done.returncode) == ("DAGs: 0, tasks: 0", 0)


def test_ctrl_c(check: Check, write_dag: Callable[[str, str], Path]) -> None:
    write_dag("slow.py", "import os, time; os.kill(os.getpid(), 2); time.sleep(60)")
    done = check("dags")
    assert (done.stdout, done.stderr) == ("", "remote-tasks: interrupted\n")
    assert done.returncode == cli.EXIT_INTERRUPTED


def test_without_airflow(
    here: Target,
    targets_file: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    targets_file(here)
    monkeypatch.setattr(dags, "_AIRFLOW_OPTIONS", {})  # which would outlive the test
    monkeypatch.setitem(sys.modules, "airflow.configuration", None)
    assert cli.main(["check-dags"]) == 2
    assert "Install remote-tasks into an environment that has Airflow" in capsys.readouterr().err
    # Nothing of Airflow is asked for when the targets are not known.
    assert cli.main(["--targets", str(tmp_path / "none"), "check-dags"]) == 2
    assert "none: no such file" in capsys.readouterr().err
