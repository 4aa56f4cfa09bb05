"""The transport for a host that is itself the VM: a process, as sshd would start it.

It belongs to the target's login, as over SSH: where that is not the worker's own user, sudo starts
the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import re
import signal
from collections.abc import Iterable, Mapping
from pathlib import Path

from remote_tasks.errors import (
    AuthenticationError,
    CommandNotStartedError,
    ConnectError,
    TransportError,
)
from remote_tasks.targets import Settings, Target
from remote_tasks.transport import CHUNK, ChannelClosedError, ExitStatus, Stream, no_shell

_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"

# What PAM gives a session of sshd's; the second one is Debian's and mostly sets LANG.
_ENVIRONMENT_FILES = (Path("/etc/environment"), Path("/etc/default/locale"))

_ASSIGNMENT = re.compile(r"(?:export )?([A-Za-z0-9_]+)=(.*)", re.DOTALL)

# $1 is the line. Only the login itself may be able to enter its home, so this happens behind sudo;
# $OLDPWD is none of the command's business.
_ENTER = 'cd -- "$HOME" 2>/dev/null || cd /; unset OLDPWD; eval "$1"'

# That of sshd, a service's own may be stricter. sudo's PAM session changes it as sshd's does.
_UMASK = 0o022

_PLAYBOOK = "Run the playbook for this VM again."


def parse_environment(text: str) -> dict[str, str]:
    """Parse a file like /etc/environment as pam_env does, which is simpler than a shell.

    Args:
        text: Lines ``KEY=VALUE``, with or without ``export`` before and quotes around the value. A
            ``#`` begins a comment wherever it stands, white space at the end of a line belongs to
            the value, a backslash joins it to the next one, and nothing is expanded.

    Returns:
        The variables.
    """
    variables: dict[str, str] = {}
    for line in text.replace("\\\n", "").split("\n"):
        found = _ASSIGNMENT.fullmatch(line.partition("#")[0].lstrip(" \t"))
        if found is None or "\0" in line:
            continue
        key, value = found.groups()
        if value[:1] in ("'", '"'):
            value = value[1:]
            if value[-1:] in ("'", '"'):
                value = value[:-1]
        variables[key] = value
    return variables


def session_environment(files: Iterable[Path] = _ENVIRONMENT_FILES) -> dict[str, str]:
    """Return the variables that this host gives each session of a login.

    Args:
        files: The files that have them, later ones first; one that cannot be read has none.

    Returns:
        The variables.
    """
    variables: dict[str, str] = {}
    for file in files:
        with contextlib.suppress(OSError):
            variables |= parse_environment(file.read_text("utf-8", "surrogateescape"))
    return variables


def login_environment(login: pwd.struct_passwd, session: Mapping[str, str]) -> dict[str, str]:
    """Return the environment that a command gets: that of a login, not the worker's.

    The worker's environment differs from the one behind sshd, and may hold what is none of a
    command's business.

    Args:
        login: Whose login.
        session: What the host gives each session. Of the login's own variables it may set ``PATH``
            alone, as it does behind sshd.

    Returns:
        The variables.
    """
    return {
        "PATH": _PATH,
        **session,
        "HOME": login.pw_dir or "/",
        "USER": login.pw_name,
        "LOGNAME": login.pw_name,
        "SHELL": login.pw_shell or "/bin/sh",
    }


def sudo_arguments(user: str, environment: Mapping[str, str], arguments: list[str]) -> list[str]:
    """Return the arguments that start a program as another user, in exactly one environment.

    Args:
        user: The user.
        environment: The program's variables; none that sudo sets or keeps comes on top.
        arguments: The program and its arguments.

    Returns:
        The program and its arguments.
    """
    variables = [f"{key}={value}" for key, value in environment.items()]
    # Without a terminal sudo's use_pty has no effect, and nobody can be asked for a password.
    return ["sudo", "-n", "-u", user, "--", "env", "-i", *variables, *arguments]


def _own_login() -> pwd.struct_passwd:
    uid = os.getuid()
    try:
        return pwd.getpwuid(uid)
    except KeyError:
        return pwd.struct_passwd((str(uid), "x", uid, os.getgid(), "", "/", "/bin/sh"))


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
        """Start a shell line, see `Transport.open`.

        Raises:
            AuthenticationError: The login or sudo is missing.
            ConnectError: No process could be started.
        """
        own = _own_login()
        login = self._login(own)
        environment = login_environment(login, session_environment())
        arguments = ["/bin/sh", "-c", _ENTER, "sh", line]
        if login.pw_uid != own.pw_uid:
            arguments = sudo_arguments(login.pw_name, environment, arguments)
            # What sudo says is to be read by us and by the person who asked.
            environment = {"PATH": _PATH, "LC_ALL": "C"}
        try:
            process = await asyncio.create_subprocess_exec(
                *arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=4 * CHUNK,
                cwd="/",
                env=environment,
                umask=_UMASK,
                start_new_session=True,
            )
        except OSError as error:
            if isinstance(error, FileNotFoundError) and arguments[0] == "sudo":
                raise AuthenticationError(
                    f"{self.target}: this process runs as {own.pw_name}, and there is no sudo to "
                    f"run commands as {login.pw_name}. {_PLAYBOOK}"
                ) from error
            raise ConnectError(f"{self.target}: no process could be started: {error}") from error
        return LocalChannel(process)

    def not_started(self, code: int, said: str) -> TransportError:
        """Say why no shell came up, see `Transport.not_started`."""
        own = _own_login().pw_name
        if self.target.user in ("", own):
            return CommandNotStartedError(no_shell(self.target, code, said))
        # A refusal may have several lines, and quote the whole one that was refused.
        words = " ".join(said.split())[:200] or "nothing"
        return AuthenticationError(
            f"{self.target}: sudo did not start the command as {self.target.user}, but ended with "
            f"exit code {code}, saying: {words}. {own} needs a rule in "
            f"/etc/sudoers.d that lets it run commands as {self.target.user} without a password. "
            f"{_PLAYBOOK}"
        )

    async def close(self) -> None:
        """Do nothing: nothing is kept open."""

    def _login(self, own: pwd.struct_passwd) -> pwd.struct_passwd:
        if not self.target.user:
            return own
        try:
            return pwd.getpwnam(self.target.user)
        except KeyError:
            raise AuthenticationError(
                f"{self.target}: this host has no user {self.target.user!r}. Make it, or correct "
                f"the login in the inventory. {_PLAYBOOK}"
            ) from None
