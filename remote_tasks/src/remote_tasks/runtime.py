"""One event loop with its connections for each process, and plain functions that use it.

Celery's pool forks, and Airflow forks a process for each task. A connection must never be shared
across a fork, so each process makes its own loop at first use, in a daemon thread, and a child
forgets its parent's without touching it.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import os
import queue
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Generic, TypeVar

from remote_tasks.commands import Command, encode
from remote_tasks.errors import NotReachableFromHereError
from remote_tasks.execution import execute
from remote_tasks.local import LocalTransport
from remote_tasks.ssh import SshTransport, new_gate
from remote_tasks.targets import Settings, Target, load_targets
from remote_tasks.transport import CommandResult, OutputSink, Stream, Transport

T = TypeVar("T")

_LINES_AHEAD = 1000
"""Lines of output that may wait for a slow reader before the command is slowed down."""

_TIDY_UP = 30.0
"""Seconds that a cancelled command gets to be killed on its VM."""


class Job(Generic[T]):
    """A coroutine that runs on the loop's thread, seen from another one.

    Unlike a future of `asyncio.run_coroutine_threadsafe`, a cancelled job is done only when the
    coroutine has ended: after it has killed what it had started.

    Args:
        loop: The running loop.
        work: The coroutine.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> None:
        self._loop = loop
        self._outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._task: asyncio.Task[T] | None = None
        loop.call_soon_threadsafe(self._begin, work)

    def _begin(self, work: Coroutine[Any, Any, T]) -> None:
        self._task = self._loop.create_task(work)
        self._task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self._outcome.set_exception(concurrent.futures.CancelledError())
        elif error := task.exception():
            self._outcome.set_exception(error)
        else:
            self._outcome.set_result(task.result())

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def cancel(self) -> None:
        """Ask the coroutine to end; safe in a signal handler."""
        self._loop.call_soon_threadsafe(self._stop)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end, whatever it is.

        Args:
            timeout: Seconds to wait; ``None`` for as long as it takes.

        Returns:
            Whether the coroutine has ended.
        """
        return bool(concurrent.futures.wait([self._outcome], timeout).done)

    def result(self, timeout: float | None = None) -> T:
        """Wait for the result.

        Args:
            timeout: Seconds to wait; ``None`` for as long as it takes.

        Returns:
            What the coroutine returned.

        Raises:
            BaseException: What it raised.
            TimeoutError: It has not ended yet.
            concurrent.futures.CancelledError: It was cancelled.
        """
        return self._outcome.result(timeout)

    def when_done(self, callback: Callable[[], None]) -> None:
        """Have a function called at the end, on the loop's thread.

        Args:
            callback: The function.
        """
        self._outcome.add_done_callback(lambda _: callback())


class Runtime:
    """An event loop in a thread, and the transports that live on it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._transports: dict[tuple[Target, Settings], Transport] = {}
        self._gate = new_gate()
        self._thread = threading.Thread(target=self._run, name="remote-tasks", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def start(self, work: Coroutine[Any, Any, T]) -> Job[T]:
        """Start a coroutine on the loop.

        Args:
            work: The coroutine.

        Returns:
            The handle to it.
        """
        return Job(self._loop, work)

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine and wait for it.

        Args:
            work: The coroutine.

        Returns:
            What it returns.

        Raises:
            BaseException: What it raises; or what interrupted the wait (a signal handler's
                exception, Ctrl-C), after the coroutine has been cancelled and has tidied up.
        """
        job = self.start(work)
        try:
            return job.result()
        except BaseException:
            job.cancel()
            job.wait(_TIDY_UP)
            raise

    def transport(self, target: Target, settings: Settings) -> Transport:
        """Return the way to a VM; call it on the loop.

        Args:
            target: The VM.
            settings: Times and limits.

        Returns:
            The transport, the same one each time.

        Raises:
            NotReachableFromHereError: This host has no way to it.
        """
        key = (target, settings)
        if key not in self._transports:
            if target.transport == "ssh":
                self._transports[key] = SshTransport(target, settings, self._gate)
            elif target.transport == "local":
                self._transports[key] = LocalTransport(target, settings)
            else:
                raise NotReachableFromHereError(
                    f"{target}: this host has no way to the VM. Send the task to the queue "
                    f"{target.queue!r}, whose worker has."
                )
        return self._transports[key]

    def wake(self, event: asyncio.Event) -> None:
        """Set an event of the loop from another thread.

        Args:
            event: The event.
        """
        self._loop.call_soon_threadsafe(event.set)

    async def close(self) -> None:
        """Close all connections."""
        transports, self._transports = list(self._transports.values()), {}
        await asyncio.gather(*(transport.close() for transport in transports))

    def shutdown(self, timeout: float = 2.0) -> None:
        """Close all connections, as far as they let us.

        Args:
            timeout: Seconds to try.
        """
        with contextlib.suppress(Exception):
            self.start(self.close()).result(timeout)


_lock = threading.Lock()
_runtime: Runtime | None = None
_forgotten: list[Runtime] = []


def get_runtime() -> Runtime:
    """Return the runtime of this process.

    Returns:
        The runtime, made at first use.
    """
    global _runtime
    with _lock:
        if _runtime is None:
            _runtime = Runtime()
        return _runtime


def _forget_after_fork() -> None:
    """Leave the parent's runtime alone: closing it here would unregister the parent's sockets."""
    global _lock, _runtime
    _lock = threading.Lock()
    if _runtime is not None:
        _forgotten.append(_runtime)  # collected, it would close the loop that it shares
        _runtime = None


def _shut_down_at_exit() -> None:
    if _runtime is not None:
        _runtime.shutdown()


os.register_at_fork(after_in_child=_forget_after_fork)
atexit.register(_shut_down_at_exit)


class RunningCommand:
    """A command on a VM, seen from an ordinary thread.

    Args:
        runtime: Where it runs.
        target: The VM.
        settings: Times and limits.
        command: What to run.
        timeout: Seconds it may run; ``None`` for as long as it takes.
        stdin: Its standard input.
        stream: Whether `result` will take the output line by line.
        output_limit: Bytes kept of each stream; by default as the settings say.
    """

    def __init__(
        self,
        runtime: Runtime,
        target: Target,
        settings: Settings,
        command: Command,
        *,
        timeout: float | None,
        stdin: bytes,
        stream: bool,
        output_limit: int | None,
    ) -> None:
        self._runtime = runtime
        self._lines: queue.SimpleQueue[tuple[Stream, str] | None] = queue.SimpleQueue()
        self._room = asyncio.Event()

        async def work() -> CommandResult:
            return await execute(
                runtime.transport(target, settings),
                command,
                timeout=timeout,
                stdin=stdin,
                sink=self._put if stream else None,
                output_limit=output_limit,
            )

        self._job = runtime.start(work())
        self._job.when_done(lambda: self._lines.put(None))

    async def _put(self, stream: Stream, line: str) -> None:
        self._lines.put((stream, line))
        while self._lines.qsize() > _LINES_AHEAD:
            self._room.clear()
            # Bounded, so that a reader that made room just before the clear() is not missed.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._room.wait(), 0.1)

    def result(self, on_output: OutputSink | None = None) -> CommandResult:
        """Wait for the result, and hand on the output meanwhile, in this thread.

        Args:
            on_output: Takes each line as it comes.

        Returns:
            The result, whatever the exit code.

        Raises:
            TransportError: The command could not be run to its end.
            concurrent.futures.CancelledError: `cancel` was called.
            BaseException: What interrupted the wait; the command has been killed.
        """
        try:
            while (item := self._lines.get()) is not None:
                if on_output is not None:
                    on_output(*item)
                if not self._room.is_set() and self._lines.qsize() <= _LINES_AHEAD // 2:
                    self._runtime.wake(self._room)
            return self._job.result()
        except BaseException:
            self.cancel()
            self._job.wait(_TIDY_UP)
            raise

    def cancel(self) -> None:
        """Kill the command's process group; returns at once, safe in a signal handler."""
        self._job.cancel()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end.

        Args:
            timeout: Seconds to wait.

        Returns:
            Whether the command has ended, or was killed.
        """
        return self._job.wait(timeout)


def start_command(
    target: Target,
    command: str | Sequence[str],
    *,
    settings: Settings | None = None,
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes | str = b"",
    timeout: float | None = None,
    stream: bool = False,
    output_limit: int | None = None,
) -> RunningCommand:
    """Start a command on a VM.

    Args:
        target: The VM.
        command: A shell command line, or arguments that arrive exactly as given.
        settings: Times and limits; by default from the targets file.
        cwd: The directory to run in; by default the login's home.
        env: Variables to set for it.
        stdin: Its standard input.
        timeout: Seconds it may run; by default as the settings say.
        stream: Whether its output will be taken line by line.
        output_limit: Bytes kept of each stream; by default as the settings say.

    Returns:
        The running command.

    Raises:
        CommandError: It cannot be run as given.
        TargetsFileError: The settings were to come from the targets file, and cannot.
    """
    chosen = settings if settings is not None else load_targets().settings
    return RunningCommand(
        get_runtime(),
        target,
        chosen,
        Command.of(command, cwd=cwd, env=env),
        timeout=chosen.command_timeout if timeout is None else timeout,
        stdin=encode(stdin) if isinstance(stdin, str) else stdin,
        stream=stream,
        output_limit=output_limit,
    )


def run_command(
    target: Target,
    command: str | Sequence[str],
    *,
    settings: Settings | None = None,
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes | str = b"",
    timeout: float | None = None,
    on_output: OutputSink | None = None,
    output_limit: int | None = None,
) -> CommandResult:
    """Run a command on a VM and wait for it.

    Args:
        target: The VM.
        command: A shell command line, or arguments that arrive exactly as given.
        settings: Times and limits; by default from the targets file.
        cwd: The directory to run in; by default the login's home.
        env: Variables to set for it.
        stdin: Its standard input.
        timeout: Seconds it may run; by default as the settings say.
        on_output: Takes each line of output as it comes, in the calling thread.
        output_limit: Bytes kept of each stream; by default as the settings say.

    Returns:
        The result, whatever the exit code.

    Raises:
        CommandError: It cannot be run as given.
        TransportError: It could not be run to its end.
    """
    running = start_command(
        target,
        command,
        settings=settings,
        cwd=cwd,
        env=env,
        stdin=stdin,
        timeout=timeout,
        stream=on_output is not None,
        output_limit=output_limit,
    )
    return running.result(on_output)
