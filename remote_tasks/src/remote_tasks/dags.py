"""Do DAGs name queues that nobody consumes? Airflow accepts them, and their tasks wait forever."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from remote_tasks.errors import DagCheckError
from remote_tasks.targets import ALL_VMS_QUEUE, FILE_TRANSFER_QUEUE, Target

if TYPE_CHECKING:
    from airflow.dag_processing.dagbag import DagBag
    from airflow.sdk.types import Operator

_AIRFLOW_OPTIONS = {
    # Its notices would drown ours, and what fails is reported.
    "AIRFLOW__LOGGING__LOGGING_LEVEL": "CRITICAL",
    # Enough to hold the DAG file's own line, which may be far from the error.
    "AIRFLOW__CORE__DAGBAG_IMPORT_ERROR_TRACEBACK_DEPTH": "50",
}
"""What is read when Airflow starts, unless the environment says otherwise."""

_TRACE_HEAD = "Traceback (most recent call last):\n"


@dataclass(frozen=True, slots=True)
class DagTask:
    """A task that is sent to a queue.

    Attributes:
        file: The file of its DAG.
        dag: The DAG's id.
        task: The task's id.
        queue: The queue that it names; ``None`` where it names none.
    """

    file: str
    dag: str
    task: str
    queue: str | None


@dataclass(frozen=True, slots=True)
class ImportFailure:
    """A file that Airflow could not import.

    Attributes:
        file: The file.
        error: What went wrong, on one line.
        trace: All that Airflow says about it.
    """

    file: str
    error: str
    trace: str


@dataclass(frozen=True, slots=True)
class ParsedDags:
    """What was found in DAG files.

    Attributes:
        dags: The number of DAGs.
        tasks: The tasks that are sent to a queue, those of other executors not among them.
        failures: The files that could not be imported.
        default_queue: The queue of tasks that name none, as Airflow is configured.
    """

    dags: int
    tasks: tuple[DagTask, ...]
    failures: tuple[ImportFailure, ...]
    default_queue: str


def default_queue() -> str:
    """Return the queue of tasks that name none, as Airflow is configured."""
    from airflow.configuration import conf

    return conf.get_mandatory_value("operators", "default_queue")


def consumed_queues(targets: Iterable[Target], default_queue: str) -> list[str]:
    """List the queues that a worker consumes, in either mode.

    Args:
        targets: All target VMs.
        default_queue: The queue of tasks that name none.

    Returns:
        The queues, those that belong to no VM first.
    """
    own = (target.queue for target in targets)
    return list(dict.fromkeys((default_queue, ALL_VMS_QUEUE, FILE_TRANSFER_QUEUE, *own)))


def without_consumer(tasks: Iterable[DagTask], queues: Iterable[str]) -> list[DagTask]:
    """Find the tasks that would wait forever.

    Args:
        tasks: The tasks; one that names no queue goes to the default one.
        queues: The queues that have a consumer.

    Returns:
        The tasks whose queue has none.
    """
    consumed = {None, *queues}
    return [task for task in tasks if task.queue not in consumed]


def last_line(trace: str, file: str) -> str:
    """Take from a trace what went wrong, and where in the DAG's file.

    Args:
        trace: A traceback, or a message alone.
        file: The DAG's file, as it stands in the trace.

    Returns:
        Type and message of the last error. A message of several lines becomes one: its own last
        line is seldom what it is about.
    """
    lines = trace.rpartition(_TRACE_HEAD)[2].strip("\n").splitlines()
    # Frames are indented, a type never is.
    starts = [number for number, line in enumerate(lines) if line and not line[0].isspace()]
    said = " ".join(" ".join(lines[starts[0] if starts else -1 :]).split())
    frames = re.findall(rf'File "{re.escape(file)}", line (\d+)', trace)
    return f"{said} (line {frames[-1]})" if frames else said


@contextlib.contextmanager
def output_to_stderr() -> Iterator[None]:
    """Keep standard output clean of what others print: Airflow's log, DAG files, their processes.

    Yields:
        Nothing, while whatever goes to standard output comes out of the standard error.
    """
    stdout = sys.stdout
    stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)


def read_dags(paths: Sequence[str] = ()) -> ParsedDags:
    """Let Airflow parse DAG files; it needs no database for that.

    Args:
        paths: Files and folders; by default Airflow's own DAGs folder.

    Returns:
        What is in them.

    Raises:
        DagCheckError: Airflow does not start here, or a path cannot be read.
    """
    for option, value in _AIRFLOW_OPTIONS.items():
        os.environ.setdefault(option, value)
    with output_to_stderr():
        try:
            from airflow.configuration import conf

            import_module("airflow.dag_processing.dagbag")
        except ModuleNotFoundError as error:
            raise DagCheckError(
                f"Airflow cannot be imported ({error}). Install remote-tasks into an environment "
                "that has Airflow, and use the remote-tasks of that environment."
            ) from error
        except Exception as error:
            # Of its settings; the types that they raise are Airflow's own.
            said = " ".join(str(error).split())
            raise DagCheckError(
                f"Airflow does not start: {type(error).__name__}: {said}. "
                "Correct the airflow.cfg in AIRFLOW_HOME or the AIRFLOW__ variables."
            ) from error
        folder = conf.get_mandatory_value("core", "dags_folder")
        # All paths first: a wrong one is not to be said after minutes of parsing.
        found = [_checked_path(path) for path in paths or (folder,)]
        parsed = [_read(path, Path(os.path.abspath(folder))) for path in dict.fromkeys(found)]
        return ParsedDags(
            dags=len({dag for dags, _, _ in parsed for dag in dags}),
            # A file may be in two of the paths.
            tasks=tuple(dict.fromkeys(task for _, tasks, _ in parsed for task in tasks)),
            failures=tuple({one.file: one for _, _, all_ in parsed for one in all_}.values()),
            default_queue=default_queue(),
        )


def _checked_path(path: str) -> Path:
    # Not resolved: Airflow, too, names files as they are reached.
    found = Path(os.path.abspath(path))
    if not os.access(found, os.R_OK | (os.X_OK if found.is_dir() else 0)):
        raise DagCheckError(
            f"{found}: no such file or folder, or {getpass.getuser()} may not read it."
        )
    return found


_Parsed = tuple[list[tuple[str, str]], list[DagTask], list[ImportFailure]]


def _read(path: Path, folder: Path) -> _Parsed:
    from airflow.dag_processing.dagbag import BundleDagBag

    # What DAG files import from beside them is found from the top of their folder.
    top = folder if path.is_relative_to(folder) else path if path.is_dir() else path.parent
    bag = BundleDagBag(dag_folder=str(path), bundle_path=top, load_op_links=False)
    return _dags(bag), _tasks(bag), _failures(bag, top)


def _dags(bag: DagBag) -> list[tuple[str, str]]:
    return [(dag.fileloc, dag.dag_id) for dag in bag.dags.values()]


def _tasks(bag: DagBag) -> list[DagTask]:
    return [
        DagTask(_shown(dag.fileloc), dag.dag_id, task.task_id, task.queue)
        for dag in sorted(bag.dags.values(), key=lambda dag: (dag.fileloc, dag.dag_id))
        for task in dag.tasks
        if _is_queued(task)
    ]


def _failures(bag: DagBag, top: Path) -> list[ImportFailure]:
    return [
        ImportFailure(_shown(str(top / file)), last_line(trace, str(top / file)), trace)
        for file, trace in sorted(bag.import_errors.items())
    ]


def _is_queued(task: Operator) -> bool:
    if not task.executor:
        # Where nothing is configured the default is another executor, but not on the cluster.
        return True
    from airflow.executors.executor_constants import CELERY_EXECUTOR
    from airflow.executors.executor_loader import ExecutorLoader

    named = ExecutorLoader.lookup_executor_name_by_str(task.executor, validate_teams=False)
    return named.module_path == ExecutorLoader.executors[CELERY_EXECUTOR]


def _shown(file: str) -> str:
    path, here = Path(file), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
