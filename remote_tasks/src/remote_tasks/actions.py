"""What can be done with VMs, over the transports of this host: the Celery tasks and the CLI.

Plain functions with dictionaries out; no broker and no Airflow in sight.
"""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from remote_tasks.commands import Command
from remote_tasks.errors import TransportError
from remote_tasks.execution import AsyncSink, execute
from remote_tasks.runtime import Runtime, get_runtime, run_command
from remote_tasks.status import CHECKS, NUMBERS_COMMAND, failed_command, parse_numbers
from remote_tasks.targets import Settings, Target, Targets, load_targets
from remote_tasks.transfer import transfer
from remote_tasks.transport import OutputSink

T = TypeVar("T")

_CHECK_TIMEOUT = 30.0
"""Seconds that a question about a VM's state may take: a disk that hangs is an answer too."""


def with_retries(
    work: Callable[[], T],
    settings: Settings,
    *,
    retryable: Callable[[TransportError], bool] = lambda error: error.retryable,
    notify: Callable[[TransportError, int], None] = lambda error, left: None,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Do something again after a transport failure that can pass.

    Args:
        work: What to do.
        settings: ``retry_max`` tries after the first, ``retry_delay`` seconds apart.
        retryable: Whether to try again after an error.
        notify: Told about each failure and how many tries are left.
        sleep: Waits so many seconds.

    Returns:
        What ``work`` returns.

    Raises:
        TransportError: The last failure, or the first that is not worth another try.
    """
    for left in range(settings.retry_max, -1, -1):
        try:
            return work()
        except TransportError as error:
            if left == 0 or not retryable(error):
                raise
            notify(error, left)
            sleep(settings.retry_delay)
    raise AssertionError("unreachable")


def run_on(
    vm_name: str,
    command: str | Sequence[str],
    *,
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes | str = b"",
    timeout: float | None = None,
    on_output: OutputSink | None = None,
) -> dict[str, Any]:
    """Run a command on one VM.

    Args:
        vm_name: The VM.
        command: A shell command line, or arguments.
        cwd: The directory to run in.
        env: Variables to set.
        stdin: Its standard input.
        timeout: Seconds it may run; by default as the targets file says.
        on_output: Takes each line of output as it comes.

    Returns:
        The result, as `CommandResult.to_dict`.

    Raises:
        UnknownTargetError: No VM has this name.
        CommandError: The command cannot be run as given.
        TransportError: It could not be run to its end.
    """
    targets = load_targets()
    result = run_command(
        targets.get(vm_name),
        command,
        settings=targets.settings,
        cwd=cwd,
        env=env,
        stdin=stdin,
        timeout=timeout,
        on_output=on_output,
    )
    return result.to_dict()


def run_on_all(
    command: str | Sequence[str],
    *,
    timeout: float | None = None,
    on_output: Callable[[str, str, str], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Run a command on all VMs at once.

    Args:
        command: A shell command line, or arguments.
        timeout: Seconds it may run on each; by default as the targets file says.
        on_output: Takes VM, stream and line as they come, on the event loop's thread.

    Returns:
        A result for each VM; one that could not be asked has ``success`` false and an ``error``.

    Raises:
        CommandError: The command cannot be run as given.
    """
    targets = load_targets()
    runtime = get_runtime()
    order = Command.of(command)
    limit = targets.settings.command_timeout if timeout is None else timeout

    async def one(target: Target) -> dict[str, Any]:
        async def sink(stream: str, line: str) -> None:
            assert on_output is not None
            on_output(target.name, stream, line)

        return await _execute_or_explain(
            runtime, target, targets.settings, order, limit, sink if on_output else None
        )

    async def everyone() -> list[dict[str, Any]]:
        return await asyncio.gather(*(one(target) for target in targets))

    return dict(zip((t.name for t in targets), runtime.call(everyone()), strict=True))


def check_vm(vm_name: str) -> dict[str, Any]:
    """Ask a VM how it is; all questions at once over one connection.

    Args:
        vm_name: The VM.

    Returns:
        ``vm_name``, ``host``, ``checks`` (the raw results), ``numbers`` (see `parse_numbers`) and
        ``overall_status``, true when every check succeeded. A VM that is down has false, and the
        reason in each check.

    Raises:
        UnknownTargetError: No VM has this name.
    """
    targets = load_targets()
    return check_vms([targets.get(vm_name)], targets)[vm_name]


def check_vms(chosen: Sequence[Target], targets: Targets) -> dict[str, dict[str, Any]]:
    """Ask several VMs at once how they are.

    Args:
        chosen: The VMs.
        targets: Where the settings are.

    Returns:
        The answers by name, as of `check_vm`.
    """
    runtime = get_runtime()
    limit = min(targets.settings.command_timeout or _CHECK_TIMEOUT, _CHECK_TIMEOUT)
    commands = {**CHECKS, "numbers": NUMBERS_COMMAND}

    async def one(target: Target) -> dict[str, Any]:
        results = await asyncio.gather(
            *(
                _execute_or_explain(
                    runtime, target, targets.settings, Command.of(line), limit, None
                )
                for line in commands.values()
            )
        )
        checks = dict(zip(commands, results, strict=True))
        numbers = parse_numbers(checks.pop("numbers")["output"])
        return {
            "vm_name": target.name,
            "host": target.host,
            "checks": checks,
            "numbers": numbers,
            "overall_status": all(check["success"] for check in checks.values()),
        }

    async def everyone() -> list[dict[str, Any]]:
        return await asyncio.gather(*(one(target) for target in chosen))

    return dict(zip((t.name for t in chosen), runtime.call(everyone()), strict=True))


def send_file(
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
        timeout: Seconds it may take.

    Returns:
        The result, as `TransferResult.to_dict`.

    Raises:
        UnknownTargetError: No VM has one of the names.
        TransferError: It was refused or failed.
        TransportError: A VM could not be reached, or the connection broke.
    """
    targets = load_targets()
    runtime = get_runtime()
    source, dest = targets.get(source_vm), targets.get(dest_vm)

    async def work() -> dict[str, Any]:
        result = await transfer(
            runtime.transport(source, targets.settings),
            runtime.transport(dest, targets.settings),
            source_path,
            dest_path,
            timeout=timeout,
        )
        return result.to_dict()

    return runtime.call(work())


async def _execute_or_explain(
    runtime: Runtime,
    target: Target,
    settings: Settings,
    command: Command,
    timeout: float | None,
    sink: AsyncSink | None,
) -> dict[str, Any]:
    try:
        result = await execute(
            runtime.transport(target, settings), command, timeout=timeout, sink=sink
        )
    except TransportError as error:
        return failed_command(target.host, command.line, error, time.time())
    return result.to_dict()


def command_text(command: str | Sequence[str]) -> str:
    """Show a command as a shell line.

    Args:
        command: A shell command line, or arguments.

    Returns:
        The line.
    """
    return command if isinstance(command, str) else shlex.join(command)
