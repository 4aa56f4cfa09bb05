"""The supervisor of a task whose process has closed what it shares with it, and is not gone yet."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable

import cluster_worker
import pytest
from airflow.sdk.execution_time.supervisor import WatchedSubprocess

# Airflow leaves its ends of the sockets to Python's collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

#: Seconds that a process takes to end after it has closed everything, and those until the next heartbeat.
LAST_BREATH = 1.0
HEARTBEAT = 5.0


def close_and_linger() -> None:
    os.closerange(0, 256)
    time.sleep(LAST_BREATH)
    os._exit(0)


def seconds_until_the_end(service: Callable[[WatchedSubprocess], int | None]) -> float:
    began = time.monotonic()
    supervisor = WatchedSubprocess.start(id=uuid.uuid4(), target=close_and_linger)
    while service(supervisor) is None:
        assert time.monotonic() - began < 10 * HEARTBEAT
    return time.monotonic() - began


def test_the_slot_is_given_back_when_the_process_is_gone() -> None:
    assert seconds_until_the_end(lambda it: it._service_subprocess(max_wait_time=HEARTBEAT)) < HEARTBEAT


def test_airflows_own_waits_for_the_next_heartbeat() -> None:
    """When this fails, cluster_worker.py has nothing to do any more, and goes."""
    assert seconds_until_the_end(lambda it: cluster_worker._service(it, max_wait_time=HEARTBEAT)) >= HEARTBEAT


@pytest.mark.parametrize("wait", [-1.0, 0.0])
def test_no_time_to_wait_is_no_error(wait: float) -> None:
    assert seconds_until_the_end(lambda it: it._service_subprocess(max_wait_time=wait)) >= LAST_BREATH
