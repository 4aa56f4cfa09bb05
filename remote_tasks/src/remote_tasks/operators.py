"""Operators for DAGs. Which transport is used is decided where the task runs, never here."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from remote_tasks.actions import command_text, send_file
from remote_tasks.errors import (
    AuthenticationError,
    CommandError,
    HostKeyError,
    NotReachableFromHereError,
    RemoteTasksError,
    SameFileError,
    TargetsFileError,
    UnknownTargetError,
)
from remote_tasks.runtime import RunningCommand, start_command
from remote_tasks.targets import ALL_VMS_QUEUE, FILE_TRANSFER_QUEUE, load_targets, queue_for
from remote_tasks.transport import CommandResult, Stream

if TYPE_CHECKING:
    from airflow.sdk import Context

_HOPELESS = (
    AuthenticationError,
    CommandError,
    HostKeyError,
    NotReachableFromHereError,
    SameFileError,
    TargetsFileError,
    UnknownTargetError,
)
"""Errors that another try of the task cannot mend."""

ERROR_KEY = "error"
"""The XCom that holds the message of a task that failed."""

_STDERR_LINES = 20

_KILL_WAIT = 4.0
"""Seconds that a kill may take: Airflow's supervisor loses its patience after five."""


def queue_of_vm(vm: object) -> str:
    """Return the queue for what a DAG gives as ``vm``.

    Args:
        vm: A name; or what is only known at run time (a template, another task's result).

    Returns:
        The VM's queue; that of the general worker, which reaches every VM, for the latter.

    Raises:
        UnknownTargetError: There is a targets file, and it has no such VM.
    """
    return queue_for(vm) if isinstance(vm, str) else ALL_VMS_QUEUE


def as_airflow_error(error: RemoteTasksError) -> AirflowException:
    """Turn an error into one that Airflow treats as it deserves.

    Args:
        error: The error.

    Returns:
        One that ends the task when trying again is pointless, else one that lets it be retried.
    """
    kind = AirflowFailException if isinstance(error, _HOPELESS) else AirflowException
    return kind(f"{type(error).__name__}: {error}")


@contextmanager
def failures_explained(context: Context) -> Iterator[None]:
    """Raise a task's failures as Airflow's, and leave their message for tasks that report on it.

    Args:
        context: Airflow's context of the task, whose XCom ``error`` the message becomes.

    Yields:
        Nothing, while the task does its work.

    Raises:
        AirflowException: The failure.
    """
    try:
        yield
    except AirflowSkipException:
        raise
    except (AirflowException, RemoteTasksError) as error:
        failure = as_airflow_error(error) if isinstance(error, RemoteTasksError) else error
        context["ti"].xcom_push(key=ERROR_KEY, value=str(failure))
        if failure is error:
            raise
        raise failure from error


class RemoteCommandOperator(BaseOperator):
    """Run a command on a VM.

    The output goes to the task's log as it comes; the result, a dictionary with ``host``,
    ``command``, ``exit_code``, ``output``, ``error``, ``success``, ``timestamp`` and more, to XCom.
    A failed task's message goes to XCom as ``error``, for a task that reports on several.
    Killing the task (clearing it, marking it, its time-out) kills the command's processes.

    Args:
        vm: The VM's name. The task goes to its queue.
        command: A shell command line, or a list of arguments that arrive exactly as given.
        cwd: The directory to run in; by default the login's home.
        env: Variables to set for the command.
        stdin: Its standard input, as it is: not a template, so a script can be sent this way
            (``command=["python3", "-"]``).
        timeout: Seconds it may run; by default as the targets file says.
        output_limit: Bytes kept of each of output and error output for XCom, the last ones.
        skip_on_exit_code: The exit code, or codes, that mark the task as skipped.
        kwargs: What every operator takes; ``queue`` overrides the VM's own.

    Raises:
        UnknownTargetError: The DAG names a VM that is not in the targets file.
    """

    template_fields: Sequence[str] = ("vm", "command", "cwd", "env")
    template_fields_renderers: ClassVar[dict[str, str]] = {"command": "bash", "env": "json"}
    ui_color = "#e8f0fa"

    _running: RunningCommand | None = None

    def __init__(
        self,
        *,
        vm: str,
        command: str | Sequence[str],
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: str = "",
        timeout: float | None = None,
        output_limit: int = 64 * 1024,
        skip_on_exit_code: int | Container[int] | None = 99,
        **kwargs: Any,  # noqa: ANN401 - handed on to BaseOperator
    ) -> None:
        kwargs.setdefault("queue", queue_of_vm(vm))
        super().__init__(**kwargs)
        self.vm = vm
        self.command = command
        self.cwd = cwd
        self.env = env
        self.stdin = stdin
        self.timeout = timeout
        self.output_limit = output_limit
        self.skip_on_exit_code = skip_on_exit_code

    @classmethod
    def partial(cls, **kwargs: Any) -> Any:  # noqa: ANN401 - as BaseOperator.partial
        """Set the queue of a mapped task too, whose ``__init__`` runs too late for that."""
        kwargs.setdefault("queue", queue_of_vm(kwargs.get("vm")))
        return super().partial(**kwargs)

    def execute(self, context: Context) -> dict[str, Any]:
        """Run the command.

        Args:
            context: Airflow's context.

        Returns:
            The result.

        Raises:
            AirflowException: It failed, or could not be run.
            AirflowSkipException: It ended with a code that means skip.
        """
        with failures_explained(context):
            result = self._run()
            self._judge(result)
        return result.to_dict()

    def _run(self) -> CommandResult:
        targets = load_targets()
        target = targets.get(self.vm)
        self.log.info("On %s: %s", target, command_text(self.command))
        try:
            self._running = start_command(
                target,
                self.command,
                settings=targets.settings,
                cwd=self.cwd,
                env=self.env,
                stdin=self.stdin,
                timeout=self.timeout,
                stream=True,
                output_limit=self.output_limit,
            )
            return self._running.result(self._log_line)
        except concurrent.futures.CancelledError:
            raise AirflowException(f"The command on {self.vm} was killed with its task.") from None
        finally:
            self._running = None

    def _log_line(self, stream: Stream, line: str) -> None:
        self.log.info("%s%s", "[stderr] " if stream == "stderr" else "", line)

    def _judge(self, result: CommandResult) -> None:
        if result.success:
            return
        skips = self.skip_on_exit_code
        codes = skips if isinstance(skips, Container) else () if skips is None else (skips,)
        if result.exit_code in codes:
            raise AirflowSkipException(
                f"The command on {self.vm} ended with exit code {result.exit_code}: skipped."
            )
        lines = result.stderr.strip().splitlines()[-_STDERR_LINES:]
        said = "\n".join(["", *lines]) if lines else " nothing"
        by = f" (signal {result.signal})" if result.signal else ""
        raise AirflowException(
            f"The command on {self.vm} ({result.host}) failed with exit code "
            f"{result.exit_code}{by}. The end of its stderr:{said}"
        )

    def on_kill(self) -> None:
        """Kill the command on the VM; Airflow calls this in a signal handler."""
        if running := self._running:
            running.cancel()
            running.wait(_KILL_WAIT)


class RemoteFileTransferOperator(BaseOperator):
    """Send a file or a directory from one VM to another, through the worker that reaches both.

    The result, a dictionary with ``source_vm``, ``dest_vm``, ``source_path``, ``dest_path``,
    ``size``, ``sha256`` and more, goes to XCom; a failed task's message goes there as ``error``.

    Args:
        source_vm: The VM that has it.
        dest_vm: The VM that gets it.
        source_path: The file or directory.
        dest_path: Its new name, or an existing directory.
        timeout: Seconds it may take; by default as long as it takes.
        kwargs: What every operator takes; ``queue`` is ``file_transfer_queue`` by default.
    """

    template_fields: Sequence[str] = ("source_vm", "dest_vm", "source_path", "dest_path")
    ui_color = "#e8faf0"

    def __init__(
        self,
        *,
        source_vm: str,
        dest_vm: str,
        source_path: str,
        dest_path: str,
        timeout: float | None = None,
        **kwargs: Any,  # noqa: ANN401 - handed on to BaseOperator
    ) -> None:
        kwargs.setdefault("queue", FILE_TRANSFER_QUEUE)
        super().__init__(**kwargs)
        self.source_vm = source_vm
        self.dest_vm = dest_vm
        self.source_path = source_path
        self.dest_path = dest_path
        self.timeout = timeout

    @classmethod
    def partial(cls, **kwargs: Any) -> Any:  # noqa: ANN401 - as BaseOperator.partial
        """Set the queue of a mapped task too, whose ``__init__`` runs too late for that."""
        kwargs.setdefault("queue", FILE_TRANSFER_QUEUE)
        return super().partial(**kwargs)

    def execute(self, context: Context) -> dict[str, Any]:
        """Send the file.

        Args:
            context: Airflow's context.

        Returns:
            The result.

        Raises:
            AirflowException: It was refused or failed; nothing half-done is left.
        """
        self.log.info(
            "%s:%s to %s:%s", self.source_vm, self.source_path, self.dest_vm, self.dest_path
        )
        with failures_explained(context):
            result = send_file(
                self.source_vm,
                self.dest_vm,
                self.source_path,
                self.dest_path,
                timeout=self.timeout,
            )
        self.log.info("%s", result["output"])
        return result
