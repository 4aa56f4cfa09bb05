"""The transport for a host that is itself the VM: a process, as sshd would start it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import signal

from remote_tasks.errors import ConnectError
from remote_tasks.targets import Settings, Target
from remote_tasks.transport import CHUNK, ChannelClosedError, ExitStatus, Stream

_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"


def login_environment(uid: int) -> dict[str, str]:
    """Return the environment that a command gets: that of a login, not the worker's.

    The worker's environment differs from the one behind sshd, and may hold what is none of a
    command's business.

    Args:
        uid: Whose login.

    Returns:
        The variables.
    """
    try:
        entry = pwd.getpwuid(uid)
        name, home, shell = entry.pw_name, entry.pw_dir, entry.pw_shell
    except KeyError:
        name, home, shell = str(uid), "/", "/bin/sh"
    return {
        "PATH": _PATH,
        "HOME": home,
        "USER": name,
        "LOGNAME": name,
        "SHELL": shell or "/bin/sh",
    }


class LocalChannel:
    """A process on this host.

    Args:
        process: The process, with three pipes, leader of a group.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def read(self, stream: Stream, limit: int = CHUNK) -> bytes:
        """Read some bytes, see `Channel.read`."""
        reader = self._process.stdout if stream == "stdout" else self._process.stderr
        assert reader is not None
        return await reader.read(limit)

    async def write(self, data: bytes) -> None:
        """Write to standard input, see `Channel.write`."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
            await self._process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            raise ChannelClosedError from None

    async def write_eof(self) -> None:
        """End standard input, see `Channel.write_eof`."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._process.stdin.close()

    async def wait(self) -> ExitStatus:
        """Wait for the end, see `Channel.wait`."""
        code = await self._process.wait()
        return ExitStatus.by_signal(signal.Signals(-code).name) if code < 0 else ExitStatus(code)

    async def close(self) -> None:
        """Close the pipes, see `Channel.close`."""
        # The transport is the only handle on the reading ends; without this a child that keeps
        # them open would keep them open here as well.
        transport = self._process._transport  # type: ignore[attr-defined]
        for number in (0, 1, 2):
            if pipe := transport.get_pipe_transport(number):
                pipe.close()


class LocalTransport:
    """Start processes on this host.

    Args:
        target: The VM, which is this host.
        settings: Times and limits.
    """

    def __init__(self, target: Target, settings: Settings) -> None:
        self.target = target
        self.settings = settings

    async def open(self, line: str, *, urgent: bool = False) -> LocalChannel:
        """Start a shell line, see `Transport.open`."""
        environment = login_environment(os.getuid())
        home = environment["HOME"]
        try:
            process = await asyncio.create_subprocess_exec(
                "/bin/sh",
                "-c",
                line,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=4 * CHUNK,
                cwd=home if os.access(home, os.X_OK) else "/",
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise ConnectError(f"{self.target}: no process could be started: {error}") from error
        return LocalChannel(process)

    async def close(self) -> None:
        """Do nothing: nothing is kept open."""
