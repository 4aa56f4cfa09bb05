"""Run DAGs without a cluster, each task in this process: `run_dags.py < orders.json > outcomes.json`.

A program, because Airflow reads its home and its database once in a process. The log goes to stderr.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import sys
from typing import Any


def run(order: dict[str, Any]) -> dict[str, Any]:
    """Run a DAG once.

    Args:
        order: ``dag_id``, ``conf``, ``targets`` (a targets file) and ``at``, an ISO date that makes the run's id.

    Returns:
        ``state``, ``run_id``, ``tasks`` (states by name, mapped ones with their index) and ``xcoms``.
    """
    os.environ["REMOTE_TASKS_TARGETS"] = order["targets"]
    from airflow.dag_processing.dagbag import DagBag
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session

    bag = DagBag(load_op_links=False)
    assert not bag.import_errors, bag.import_errors
    at = datetime.datetime.fromisoformat(order["at"])
    # As parsed from the file: the bag's own copy is not for running.
    dag_run = bag.dags[order["dag_id"]].test(logical_date=at, run_after=at, run_conf=order["conf"])

    def name(of: Any) -> str:
        return str(of.task_id) if of.map_index < 0 else f"{of.task_id}[{of.map_index}]"

    with create_session() as session:
        xcoms = XComModel.get_many(run_id=dag_run.run_id, dag_ids=order["dag_id"])
        rows = session.scalars(xcoms).all()
        return {
            "state": str(dag_run.state),
            "run_id": dag_run.run_id,
            "tasks": {name(task): str(task.state) for task in dag_run.get_task_instances(session=session)},
            "xcoms": {f"{name(row)} {row.key}": XComModel.deserialize_value(row) for row in rows},
        }


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        outcomes = [run(order) for order in json.load(sys.stdin)]
    json.dump(outcomes, sys.stdout)
