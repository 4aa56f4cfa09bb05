"""What a Celery worker of this cluster does with Airflow's tasks that Airflow's own does not; Celery includes it.

A task's supervisor waits for its process and for the sockets that it shares with it. The kernel closes these a moment
before the process can be seen to have ended; a supervisor that looks in this moment has nothing left to wait for but
the time of the next heartbeat, and holds the task's slot until then. Here it waits for the process. See
docs/decisions/0016.
"""

from __future__ import annotations

import contextlib
from typing import Any

# What most tasks need: else each imports it for itself, as tasks are forked from here.
import airflow.dag_processing.bundles.local
import airflow.providers.standard.decorators.python  # noqa: F401
import remote_tasks.operators  # noqa: F401
from airflow.sdk.execution_time.supervisor import WatchedSubprocess

_service = WatchedSubprocess._service_subprocess


def service(self: Any, max_wait_time: float, *args: Any, **options: Any) -> int | None:
    """Wait for something to happen to a task's process, and see to it.

    Args:
        self: The supervisor.
        max_wait_time: Seconds to wait, at most.
        args: Airflow's own.
        options: Airflow's own.

    Returns:
        The exit code of the process, or None while it runs.
    """
    if not self.selector.get_map():
        with contextlib.suppress(self._process.TimeoutExpired):
            self._process.wait(timeout=max(0.0, max_wait_time))
        max_wait_time = 0.0
    code: int | None = _service(self, max_wait_time, *args, **options)
    return code


WatchedSubprocess._service_subprocess = service
