"""The executor that gives the scheduler its rest. That PostgreSQL ends it: tests/infra/test_scheduler.py."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import time
from typing import Any

import cluster_executor
import psycopg
import pytest
from airflow.utils.state import TaskInstanceState

#: In a process of its own: Airflow remembers what it was configured with.
LOOK_UP = """
from airflow.executors.executor_loader import ExecutorLoader
executor, _ = ExecutorLoader.import_executor_cls(ExecutorLoader.lookup_executor_name_by_str("CeleryExecutor"))
print(executor.__module__, executor.__mro__[1].__name__)
"""


def test_it_has_the_name_of_airflows_own_for_dags_that_ask_for_it() -> None:
    configured = {
        "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor:cluster_executor.ClusterExecutor",
        "PYTHONPATH": str(pathlib.Path(cluster_executor.__file__).parent),
    }
    done = subprocess.run(
        [sys.executable, "-c", LOOK_UP], env=os.environ | configured, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-2:] == ["cluster_executor", "CeleryExecutor"]


NOTHING: dict[str, Any] = {"sent": 0, "running": 0, "states": [], "look_again": False, "longest": 2.0}


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ({}, 2.0),
        ({"longest": 0.1}, 0.1),
        ({"states": [TaskInstanceState.QUEUED, TaskInstanceState.RUNNING]}, 2.0),
        # What has ended is heard at once, and who was sent something may have more to send.
        ({"states": [TaskInstanceState.QUEUED, TaskInstanceState.SUCCESS]}, 0.0),
        ({"states": [TaskInstanceState.FAILED], "look_again": True}, 0.0),
        ({"sent": 1, "running": 1}, 0.0),
        ({"running": 3}, cluster_executor.WHILE_TASKS_RUN),
        ({"running": 3, "longest": 0.1}, 0.1),
        ({"running": 3, "look_again": True}, cluster_executor.LOOK_AGAIN),
        ({"look_again": True, "longest": 0.1}, 0.1),
    ],
)
def test_how_long_the_scheduler_may_wait(said: dict[str, Any], seconds: float) -> None:
    assert cluster_executor.rest(**(NOTHING | said)) == seconds


def test_a_database_that_does_not_let_it_listen_costs_the_wake_alone() -> None:
    """It waits its time, says why, and tries again the next time."""
    tried: list[None] = []

    def refuse() -> psycopg.Connection:
        tried.append(None)
        message = "the database is starting up"
        raise psycopg.OperationalError(message)

    bell = cluster_executor.Bell(refuse)
    for _ in range(2):
        began = time.monotonic()
        assert bell.wait(0.2) is False
        assert time.monotonic() - began >= 0.2
    assert len(tried) == 2


class Refusing:
    """A connection on which the set-up is refused, as behind somebody who holds a lock on a table."""

    closed = False

    def execute(self, *_: Any) -> None:
        message = "canceling statement due to lock timeout"
        raise psycopg.errors.LockNotAvailable(message)

    def close(self) -> None:
        self.closed = True


def test_a_connection_that_could_not_be_set_up_is_closed() -> None:
    """Else there is one more each time that the scheduler waits."""
    opened: list[Refusing] = []

    def refuse() -> Any:
        opened.append(Refusing())
        return opened[-1]

    bell = cluster_executor.Bell(refuse)
    assert bell.wait(0.01) is False
    assert bell.wait(0.01) is False
    assert [connection.closed for connection in opened] == [True, True]
