"""Where do tasks run? One task for each target VM by its queue, and six for any of them."""

from __future__ import annotations

import datetime

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

from remote_tasks import load_targets

with DAG(
    dag_id="sample_distributed",
    description="hostname on each target VM by its queue, and tasks that the workers share",
    schedule=None,
    start_date=datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC),
    catchup=False,
    tags=["sample"],
):
    for vm in load_targets():
        BashOperator(task_id=f"check_hostname_{vm.name}", bash_command="hostname", queue=vm.queue)

    # Long enough that no worker alone takes them all before the others look.
    BashOperator.partial(task_id="anywhere").expand(bash_command=["hostname; sleep 2"] * 6)
