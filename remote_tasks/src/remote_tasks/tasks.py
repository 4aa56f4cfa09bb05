"""The Celery tasks, for the worker that ``airflow celery worker`` starts.

Registered by ``[celery] extra_celery_config = {"include": ["remote_tasks.tasks"]}``.

A result goes where the caller looks for it. A caller that uses Airflow's own Celery application has
the database as result backend, as for Airflow's own tasks. `remote_tasks.client` asks for a direct
reply, by the name of its reply queue, and gets it in milliseconds; nothing is stored then.

A task is acknowledged when it starts, not when it ends: a command that a dying worker had begun is
not run a second time, and a long one does not run into the broker's consumer time-out.

A transport failure waits for its next try inside the task. ``self.retry(countdown=...)`` would keep
the slot as well (a delayed message counts against the prefetch limit) and needs exchanges that a
worker's broker login has no rights on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from celery import Task, shared_task

from remote_tasks import actions
from remote_tasks.errors import ConnectionLostError, TransferError, TransportError
from remote_tasks.replies import is_direct, reply
from remote_tasks.targets import load_targets
from remote_tasks.transfer import failed_transfer

log = logging.getLogger(__name__)


class RemoteTask(Task):  # type: ignore[misc]
    """A task that can answer its caller directly."""

    abstract = True
    acks_late = False

    def after_return(
        self,
        status: str,
        retval: object,
        task_id: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        einfo: object,
    ) -> None:
        """Send the reply when the caller waits for one; Celery calls this at the task's end."""
        if is_direct(self.request.reply_to):
            reply(self.app, self.request.reply_to, task_id, retval)


def _notify(error: TransportError, left: int) -> None:
    log.warning("%s Tries left: %d.", error, left)


@shared_task(base=RemoteTask, name="remote_tasks.execute_on_vm")
def execute_on_vm(
    vm_name: str,
    command: str | list[str],
    *,
    cwd: str | None = None,
    env: dict[str, str] | None = None,
    stdin: str = "",
    timeout: float | None = None,
) -> dict[str, Any]:
    """Run a command on a VM.

    Args:
        vm_name: The VM.
        command: A shell command line, or a list of arguments.
        cwd: The directory to run in.
        env: Variables to set.
        stdin: Its standard input.
        timeout: Seconds it may run; by default as the targets file says.

    Returns:
        ``host``, ``command``, ``exit_code``, ``output``, ``error``, ``success``, ``timestamp`` and
        more; a non-zero exit code is a result.

    Raises:
        UnknownTargetError: No VM has this name (a ``ValueError``).
        TransportError: The VM could not be reached in all tries, or the command was cut off.
    """
    return actions.with_retries(
        lambda: actions.run_on(vm_name, command, cwd=cwd, env=env, stdin=stdin, timeout=timeout),
        load_targets().settings,
        notify=_notify,
    )


@shared_task(base=RemoteTask, name="remote_tasks.execute_on_all_vms")
def execute_on_all_vms(
    command: str | list[str], *, timeout: float | None = None
) -> dict[str, dict[str, Any]]:
    """Run a command on all VMs at once; none is tried twice, so that none holds the others up.

    Args:
        command: A shell command line, or a list of arguments.
        timeout: Seconds it may run on each; by default as the targets file says.

    Returns:
        A result for each VM; one that could not be asked has ``success`` false and an ``error``.
    """
    return actions.run_on_all(command, timeout=timeout)


@shared_task(base=RemoteTask, name="remote_tasks.file_transfer")
def file_transfer(
    source_vm: str,
    dest_vm: str,
    source_path: str,
    dest_path: str,
    *,
    timeout: float | None = None,
) -> dict[str, Any]:
    """Send a file or a directory from one VM to another.

    Args:
        source_vm: The VM that has it.
        dest_vm: The VM that gets it.
        source_path: The file or directory.
        dest_path: Its new name, or a directory.
        timeout: Seconds that one try may take.

    Returns:
        ``source_vm``, ``dest_vm``, ``source_path``, ``dest_path``, ``success``, ``output``,
        ``error``, ``size`` and more; a refused or failed transfer is a result.

    Raises:
        UnknownTargetError: No VM has one of the names (a ``ValueError``).
        TransportError: A VM could not be reached in all tries.
    """
    try:
        return actions.with_retries(
            lambda: actions.send_file(source_vm, dest_vm, source_path, dest_path, timeout=timeout),
            load_targets().settings,
            # To send it again does no harm, unlike a command.
            retryable=lambda error: error.retryable or isinstance(error, ConnectionLostError),
            notify=_notify,
        )
    except TransferError as error:
        return failed_transfer(source_vm, dest_vm, source_path, dest_path, error)


@shared_task(base=RemoteTask, name="remote_tasks.check_vm_status")
def check_vm_status(vm_name: str) -> dict[str, Any]:
    """Ask a VM how it is; that it is down is an answer, which comes at once.

    Args:
        vm_name: The VM.

    Returns:
        ``vm_name``, ``host``, ``checks``, ``numbers`` and ``overall_status``.

    Raises:
        UnknownTargetError: No VM has this name (a ``ValueError``).
    """
    return actions.check_vm(vm_name)
