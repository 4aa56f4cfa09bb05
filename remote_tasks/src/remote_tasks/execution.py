"""Run one command over a transport: the same for both, so that results are the same."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable

from remote_tasks.commands import Command, killer, launcher, order
from remote_tasks.errors import (
    CommandTimeoutError,
    ConnectionLostError,
    TransportError,
)
from remote_tasks.output import LineSplitter, MarkerFilter, TailBuffer
from remote_tasks.transport import (
    Channel,
    ChannelClosedError,
    CommandResult,
    ExitStatus,
    Stream,
    Transport,
)

log = logging.getLogger(__name__)

AsyncSink = Callable[[Stream, str], Awaitable[None]]

_INPUT_CHUNK = 64 * 1024

_ENDED = ("not started", "gone", "reused", "killed")


class RemoteProcess:
    """A command on a VM with its streams in the caller's hands.

    Args:
        transport: The way to the VM.
        command: What to run.
    """

    def __init__(self, transport: Transport, command: Command) -> None:
        self.transport = transport
        self.command = command
        self._token = f"remote-tasks-{secrets.token_hex(8)}"
        self._filters: dict[Stream, MarkerFilter] = {
            "stdout": MarkerFilter(self._token),
            "stderr": MarkerFilter(self._token),
        }
        self._channel: Channel | None = None

    async def start(self) -> None:
        """Start the command.

        Raises:
            TransportError: It did not start.
        """
        self._channel = await self.transport.open(launcher(self._token))
        with contextlib.suppress(ChannelClosedError):
            # What broke shows in the streams, with the reason.
            await self._channel.write(order(self.command, self._token))

    @property
    def started(self) -> bool:
        """Whether there is a channel."""
        return self._channel is not None

    @property
    def channel(self) -> Channel:
        """The open channel."""
        assert self._channel is not None, "start() first"
        return self._channel

    async def read(self, stream: Stream) -> bytes:
        """Read what the command itself wrote.

        Args:
            stream: Which stream.

        Returns:
            Some bytes; none at the end.

        Raises:
            CommandNotStartedError: The login ended without a shell.
            AuthenticationError: sudo let nobody in.
            ConnectionLostError: The connection broke.
        """
        marker = self._filters[stream]
        while data := await self.channel.read(stream):
            if data := marker.feed(data):
                return data
        return b""

    async def wait(self) -> ExitStatus:
        """Wait for the end, when both streams have been read.

        Returns:
            How it ended.

        Raises:
            CommandNotStartedError: The login ended without a shell.
            AuthenticationError: sudo let nobody in.
            ConnectionLostError: The connection broke.
        """
        status = await self.channel.wait()
        if self._filters["stderr"].words is None:
            said = [self._filters[s].preface for s in ("stderr", "stdout")]
            raise self.transport.not_started(status.code, " ".join(filter(None, said)))
        return status

    async def kill(self, grace: float | None = None) -> str:
        """End the command's whole process group, over a channel of its own.

        Args:
            grace: Seconds between SIGTERM and SIGKILL; by default as the settings say.

        Returns:
            ``not started``, ``gone``, ``killed``, ``left``, ``reused``, or why it was not possible.
        """
        if grace is None:
            grace = self.transport.settings.kill_grace
        try:
            words = await self._wait_for_marker()
        except (TransportError, TimeoutError):
            return "unknown, it did not say whether it had started"
        if not words:
            return "not started"
        line = killer(int(words[0]), int(words[1]), grace)
        try:
            async with asyncio.timeout(grace + self.transport.settings.connect_timeout + 5):
                channel = await self.transport.open(line, urgent=True)
                try:
                    await channel.write_eof()
                    answer = await channel.read("stdout")
                    return answer.decode(errors="replace").strip() or "left"
                finally:
                    await channel.close()
        except (TransportError, TimeoutError) as error:
            return f"unknown, the VM could not be asked: {error or type(error).__name__}"

    async def _wait_for_marker(self) -> list[str] | None:
        """Wait until it is known whether there is something to kill.

        On a slow VM the login shell may still be busy with itself while the order lies in its
        input, and would run it when we had gone.
        """
        marker = self._filters["stderr"]
        if self._channel is not None:
            async with asyncio.timeout(self.transport.settings.connect_timeout):
                while marker.words is None and (data := await self._channel.read("stderr")):
                    marker.feed(data)
        return marker.words

    async def close(self) -> None:
        """Let go of the channel; the command is not touched."""
        if self._channel is not None:
            await self._channel.close()


def _fate(answer: str) -> str:
    """Say what became of the processes of a command that was to be killed."""
    return {
        "not started": "It had not started.",
        "gone": "Its processes had ended by themselves.",
        "reused": "Its processes had ended by themselves.",
        "killed": "Its processes were killed.",
        "left": "Its processes are STILL THERE and this login may not signal them: end them on "
        "the VM.",
    }.get(answer, f"What became of its processes is {answer}.")


async def execute(
    transport: Transport,
    command: Command,
    *,
    timeout: float | None = None,
    stdin: bytes = b"",
    sink: AsyncSink | None = None,
    output_limit: int | None = None,
) -> CommandResult:
    """Run a command to its end.

    Args:
        transport: The way to the VM.
        command: What to run.
        timeout: Seconds it may run; ``None`` for as long as it takes.
        stdin: Its standard input.
        sink: Takes each line of output as it comes.
        output_limit: Bytes kept of each stream; by default as the settings say.

    Returns:
        The result, whatever the exit code.

    Raises:
        CommandTimeoutError: It ran too long; its process group has been killed.
        TransportError: It could not be run.
        asyncio.CancelledError: The caller was cancelled; the process group has been killed.
    """
    limit = output_limit or transport.settings.output_limit
    tails: dict[Stream, TailBuffer] = {"stdout": TailBuffer(limit), "stderr": TailBuffer(limit)}
    process = RemoteProcess(transport, command)
    began = time.monotonic()
    try:
        async with asyncio.timeout(None) as clock:
            # Waiting for a connection has its own limit and is not the command's time.
            await process.start()
            began = time.monotonic()
            if timeout is not None:
                clock.reschedule(asyncio.get_running_loop().time() + timeout)
            status = await _drive(process, stdin, tails, sink)
    except TimeoutError:
        answer = await _kill_shielded(process)
        last = _last_lines(tails["stderr"].text() or tails["stdout"].text())
        raise CommandTimeoutError(
            f"{transport.target}: the command ran longer than {timeout:g} s: {command.line!r:.200}."
            f" {_fate(answer)}{last} Give it more time (timeout, or command_timeout in the "
            "targets file) or make it shorter."
        ) from None
    except asyncio.CancelledError:
        answer = await _kill_shielded(process)
        level = logging.INFO if answer in _ENDED else logging.WARNING
        log.log(level, "%s: cancelled %.200r. %s", transport.target, command.line, _fate(answer))
        raise
    except ConnectionLostError as error:
        answer = await _kill_shielded(process)
        raise ConnectionLostError(
            f"{error} It was running {command.line!r:.200}, which may have had effects. "
            f"{_fate(answer)} It is not tried again: look at the VM first."
        ) from error
    except BaseException:
        # Any other way out, a sink that fails included, leaves nothing running behind it.
        await _kill_shielded(process)
        raise
    finally:
        await process.close()
    return CommandResult(
        host=transport.target.host,
        command=command.line,
        exit_code=status.code,
        stdout=tails["stdout"].text(),
        stderr=tails["stderr"].text(),
        timestamp=time.time(),
        duration=time.monotonic() - began,
        truncated=any(tail.cut for tail in tails.values()),
        signal=status.signal,
    )


async def _drive(
    process: RemoteProcess,
    stdin: bytes,
    tails: dict[Stream, TailBuffer],
    sink: AsyncSink | None,
) -> ExitStatus:
    tasks = [asyncio.ensure_future(_pump(process, stream, tails[stream], sink)) for stream in tails]
    tasks.append(asyncio.ensure_future(_feed(process.channel, stdin)))
    try:
        # The input is not waited for: a command may end without having read it.
        await asyncio.gather(*tasks[:2])
        return await process.wait()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(
    process: RemoteProcess, stream: Stream, tail: TailBuffer, sink: AsyncSink | None
) -> None:
    lines = LineSplitter()
    while data := await process.read(stream):
        tail.feed(data)
        if sink is not None:
            for line in lines.feed(data):
                await sink(stream, line)
    if sink is not None:
        for line in lines.feed(b"", final=True):
            await sink(stream, line)


async def _feed(channel: Channel, data: bytes) -> None:
    # A lost connection shows in the streams that are read.
    with contextlib.suppress(ChannelClosedError, ConnectionLostError):
        for start in range(0, len(data), _INPUT_CHUNK):
            await channel.write(data[start : start + _INPUT_CHUNK])
        await channel.write_eof()


async def _kill_shielded(process: RemoteProcess) -> str:
    """Kill even when the caller is cancelled again meanwhile."""
    task = asyncio.ensure_future(process.kill())
    while True:
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise


def _last_lines(text: str, count: int = 5) -> str:
    lines = text.strip().splitlines()[-count:]
    return f" It last wrote: {' | '.join(lines)}." if lines else ""
