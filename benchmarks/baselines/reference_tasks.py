"""How a command reaches a VM without this project: the task of the documents that it began with, and its Celery app.

Each call makes a paramiko connection of its own, takes any host key, and its result goes by the database. What those
documents leave open is as fast as it can be: a classic queue, no confirmation of messages by the broker, a logger that
says nothing. `benchmarks/direct.py` runs a worker of it beside the cluster's own, and calls it.
"""

from __future__ import annotations

import time
from typing import Any

import paramiko  # type: ignore[import-untyped]
from airflow.providers.celery.executors.default_celery import DEFAULT_CELERY_CONFIG
from celery import Celery
from remote_tasks.targets import load_targets

QUEUE = "benchmark_reference_queue"
TASK = "benchmark_reference.execute_on_vm"
TIMEOUT = 30  # seconds

app = Celery("benchmark_reference")
app.conf.update(
    # Airflow keeps the newline that a command prints.
    broker_url=DEFAULT_CELERY_CONFIG["broker_url"].strip(),
    broker_use_ssl=DEFAULT_CELERY_CONFIG["broker_use_ssl"],
    result_backend=DEFAULT_CELERY_CONFIG["result_backend"].strip(),
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    task_default_queue=QUEUE,
    # Exchanges that the broker has by itself, so that none of its own stays there.
    task_default_exchange="amq.direct",
    event_exchange="amq.topic",
    worker_enable_remote_control=False,
    broker_connection_retry_on_startup=True,
)


def execute_command(host: str, username: str, ssh_key: str, command: str) -> dict[str, Any]:
    """Run a command over a new connection.

    Args:
        host: The VM's address.
        username: The login there.
        ssh_key: The private key's file.
        command: The command.

    Returns:
        host, command, exit_code, output, error, success and timestamp.
    """
    ssh = paramiko.SSHClient()
    ssh.set_missing_host_key_policy(paramiko.AutoAddPolicy())  # noqa: S507 - as the documents do, which this measures
    ssh.connect(hostname=host, username=username, key_filename=ssh_key, timeout=TIMEOUT)
    _, stdout, stderr = ssh.exec_command(command, timeout=TIMEOUT)
    output = stdout.read().decode("utf-8").strip()
    error = stderr.read().decode("utf-8").strip()
    exit_code = stdout.channel.recv_exit_status()
    ssh.close()
    return {
        "host": host,
        "command": command,
        "exit_code": exit_code,
        "output": output,
        "error": error,
        "success": exit_code == 0,
        "timestamp": time.time(),
    }


@app.task(name=TASK)  # type: ignore[untyped-decorator]
def execute_on_vm(vm_name: str, command: str) -> dict[str, Any]:
    """Run a command on a VM.

    Args:
        vm_name: The VM.
        command: The command.
    """
    target = load_targets().get(vm_name)
    return execute_command(target.host, str(target.user), str(target.key_file), command)
