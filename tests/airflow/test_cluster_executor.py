"""The executor that gives the scheduler its rest. That PostgreSQL ends it: tests/infra/test_scheduler.py."""

from __future__ import annotations

import time

import cluster_executor
import psycopg
import pytest
from airflow.executors.executor_constants import ConnectorSource
from airflow.executors.executor_loader import ExecutorLoader
from airflow.executors.executor_utils import ExecutorName
from airflow.providers.celery.executors.celery_executor import CeleryExecutor
from airflow.utils.state import TaskInstanceState


def test_airflow_takes_it_for_celerys() -> None:
    name = ExecutorName(module_path="cluster_executor.ClusterExecutor")
    executor, source = ExecutorLoader.import_executor_cls(name)
    assert issubclass(executor, CeleryExecutor)
    assert source is ConnectorSource.CUSTOM_PATH


@pytest.mark.parametrize(
    ("states", "has_ended"),
    [
        ([], False),
        ([TaskInstanceState.QUEUED], False),
        ([TaskInstanceState.QUEUED, TaskInstanceState.RUNNING], False),
        ([TaskInstanceState.SUCCESS], True),
        ([TaskInstanceState.QUEUED, TaskInstanceState.FAILED], True),
    ],
)
def test_the_scheduler_is_not_kept_from_what_has_ended(states: list[TaskInstanceState], has_ended: bool) -> None:
    assert cluster_executor.ended([(state, None) for state in states]) is has_ended


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
