"""What a transport is: a way to start a shell line on a VM and to hold its three streams."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from remote_tasks.errors import TransportError
from remote_tasks.targets import Settings, Target

Stream = Literal["stdout", "stderr"]

OutputSink = Callable[[Stream, str], None]
"""Takes each line of output as it comes."""

CHUNK = 256 * 1024
"""Bytes to read at once: large enough for speed, small enough to hold many of them."""


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended.

    Attributes:
        code: Its exit code, 128 plus the signal's number when a signal ended it, as shells say it.
        signal: The signal's name without ``SIG``, or ``None``.
    """

    code: int
    signal: str | None = None

    @classmethod
    def by_signal(cls, name: str) -> ExitStatus:
        """Make the status of a process that a signal ended.

        Args:
            name: The signal's name, with or without ``SIG``.

        Returns:
            The status.
        """
        short = name.removeprefix("SIG")
        number = getattr(signal, f"SIG{short}", None)
        return cls(code=128 + int(number) if number is not None else 255, signal=short)


@dataclass(frozen=True, slots=True)
class CommandResult:
    """What a command did.

    Attributes:
        host: The VM's address.
        command: The command line.
        exit_code: Its exit code.
        stdout: Its output, decoded; the end of it when it was too long.
        stderr: Its error output, likewise.
        timestamp: When it ended, in seconds since 1970.
        duration: How long it took, in seconds.
        truncated: Whether output was cut.
        signal: The signal that ended it, or ``None``.
    """

    host: str
    command: str
    exit_code: int
    stdout: str
    stderr: str
    timestamp: float
    duration: float
    truncated: bool = False
    signal: str | None = None

    @property
    def success(self) -> bool:
        """Whether the exit code is 0."""
        return self.exit_code == 0

    def to_dict(self) -> dict[str, Any]:
        """Return the result as Celery, XCom and JSON carry it.

        Returns:
            ``host``, ``command``, ``exit_code``, ``output`` and ``error`` (both without white space
            around them), ``success``, ``timestamp``; beside these ``duration``, ``truncated`` and
            ``signal``.
        """
        return {
            "host": self.host,
            "command": self.command,
            "exit_code": self.exit_code,
            "output": self.stdout.strip(),
            "error": self.stderr.strip(),
            "success": self.success,
            "timestamp": self.timestamp,
            "duration": self.duration,
            "truncated": self.truncated,
            "signal": self.signal,
        }


class ChannelClosedError(Exception):
    """The process no longer reads its input."""


class Channel(Protocol):
    """A running process on a VM."""

    async def read(self, stream: Stream, limit: int = CHUNK) -> bytes:
        """Read some bytes of a stream.

        Args:
            stream: Which one.
            limit: Bytes to return at most.

        Returns:
            The bytes; none at the stream's end.

        Raises:
            ConnectionLostError: The connection broke.
        """

    async def write(self, data: bytes) -> None:
        """Write to its standard input, no faster than it reads.

        Args:
            data: The bytes.

        Raises:
            ChannelClosedError: It has ended, or closed its input.
        """

    async def write_eof(self) -> None:
        """End its standard input."""

    async def wait(self) -> ExitStatus:
        """Wait for its end; call it when both streams are at theirs.

        Returns:
            The status.

        Raises:
            ConnectionLostError: The connection broke before the status came.
        """

    async def close(self) -> None:
        """Let go of the channel, whatever state it is in."""


class Transport(Protocol):
    """A way to one VM.

    Attributes:
        target: The VM.
        settings: Times and limits.
    """

    target: Target
    settings: Settings

    async def open(self, line: str, *, urgent: bool = False) -> Channel:
        """Start a shell line.

        Args:
            line: What the login shell is to run.
            urgent: Whether to go ahead of commands that wait for a free session.

        Returns:
            The process.

        Raises:
            TransportError: It could not be started.
        """

    def not_started(self, code: int, said: str) -> TransportError:
        """Say why a shell line that `open` had started never ran.

        Args:
            code: The exit code that came instead.
            said: What was written instead.

        Returns:
            The error to raise.
        """

    async def close(self) -> None:
        """Close what is kept open."""


def no_shell(target: Target, code: int, said: str) -> str:
    """Say that a login has no shell that could run a command.

    Args:
        target: The VM.
        code: The exit code that came instead.
        said: What was written instead.

    Returns:
        The message, with what to do.
    """
    return (
        f"{target}: the login ended with exit code {code} before a POSIX shell came up, saying: "
        f"{said or 'nothing'}. Give the user a shell like /bin/bash, without a forced command."
    )
