"""Asks, on main and in Airflow's environment, what only this can know, and prints a line of JSON a part.

``playbooks/status.yml`` gives it to airflow-python by standard input, with one argument: JSON with the Celery
names of the workers (``workers``) and the queues of the contract (``queues``). A part that cannot be learnt is
``{"error": ...}``, and the others are printed all the same.
"""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

#: Seconds that the workers get to answer; they do in a few hundredths.
PATIENCE = 3


def workers(names: list[str]) -> dict[str, Any]:
    """Return how many tasks each worker can run, and how many it runs.

    Args:
        names: Celery's names of the workers, such as ``celery@vm2``; with them it waits for these alone, and
            not until its time is over.
    """
    from airflow.providers.celery.executors.celery_executor_utils import app

    with app.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1)
        stats = app.control.inspect(names, timeout=PATIENCE, connection=connection).stats() or {}
        active = app.control.inspect(list(stats), timeout=PATIENCE, connection=connection).active() if stats else {}
    return {
        name: {"slots": said["pool"]["max-concurrency"], "used": len((active or {}).get(name, []))}
        for name, said in stats.items()
    }


def depths(names: list[str]) -> dict[str, int]:
    """Return how many messages wait in each queue that is there; the broker's own figures are seconds old.

    Args:
        names: The queues.
    """
    from remote_tasks.client import queue_states

    return {name: state.waiting for name, state in queue_states(names).items() if state}


def waiting() -> dict[str, float]:
    """Return for how many seconds the oldest task in each queue has waited for a worker.

    The broker cannot tell: Celery's messages carry no time, and a quorum queue has none of its own.
    """
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import func, select

    queued = select(TaskInstance.queue, func.min(TaskInstance.queued_dttm)).where(TaskInstance.state == "queued")
    with create_session() as session:
        rows = session.execute(queued.group_by(TaskInstance.queue)).all()
    now = datetime.datetime.now(datetime.UTC)
    return {queue: (now - since).total_seconds() for queue, since in rows if since}


def targets(asking: subprocess.Popen[str]) -> dict[str, dict[str, str]]:
    """Return for each target VM why main does not reach it; '' when it does.

    Args:
        asking: ``remote-tasks status --json``.
    """
    said = json.loads(asking.communicate()[0])
    return {
        name: {"error": next((check["error"] for check in vm["checks"].values() if not check["success"]), "")}
        for name, vm in said.items()
    }


def tell(part: str, ask: Callable[[], Any]) -> None:
    """Print what a part is, or why that is not known.

    Args:
        part: Its name.
        ask: Learns it.
    """
    try:
        answer = ask()
    except Exception as error:
        answer = {"error": type(error).__name__}  # no more: a message may hold a login
    print(json.dumps({part: answer}), flush=True)


if __name__ == "__main__":
    # Meanwhile: importing Airflow takes some seconds.
    status = subprocess.Popen(
        ["remote-tasks", "status", "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    asked = json.loads(sys.argv[1])
    tell("workers", lambda: workers(asked["workers"]))
    tell("depths", lambda: depths(asked["queues"]))
    tell("waiting", waiting)
    tell("targets", lambda: targets(status))
