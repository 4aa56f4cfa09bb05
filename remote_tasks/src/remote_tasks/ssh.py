"""The transport over SSH: kept-open connections, pinned host keys, as many sessions as sshd gives.

All of it runs on one event loop; see `remote_tasks.runtime` for threads and processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import socket
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import asyncssh

from remote_tasks.errors import (
    AuthenticationError,
    CommandNotStartedError,
    ConnectError,
    ConnectionLostError,
    HostKeyError,
    TransportError,
)
from remote_tasks.targets import Settings, Target
from remote_tasks.transport import CHUNK, ChannelClosedError, ExitStatus, Stream, no_shell

log = logging.getLogger(__name__)

# asyncssh tells of every channel at INFO, which would bury a command's output in a task's log.
if logging.getLogger("asyncssh").level == logging.NOTSET:
    asyncssh.set_log_level(logging.WARNING)

# AES-GCM first: with the CPU's help it moves half as much again as asyncssh's first choice.
_CIPHERS = (
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "chacha20-poly1305@openssh.com",
    "aes128-ctr",
    "aes192-ctr",
    "aes256-ctr",
)
# What a host key may be. asyncssh would offer the kinds of the pinned keys alone, and a VM that was
# rebuilt with another kind would hang up without a word instead of showing its key.
_HOST_KEY_ALGORITHMS = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-512",
    "rsa-sha2-256",
)
_WINDOW = 2 * 1024 * 1024

# sshd drops connections at random when ten are half-way in (MaxStartups 10:30:100), and many worker
# processes may start at once.
_CONNECTS_AT_ONCE = 4
_RETRY_WAIT = 0.2

_LOOK_AGAIN = 0.25


class _Session(asyncssh.SSHClientSession[bytes]):
    """The streams of one session, bounded in both directions.

    asyncssh's own streams are not: its channel widens the window when it hands data on, whatever
    it still holds back, so that a sender faster than the reader fills the memory. Here the channel
    is paused as soon as something waits for the reader, but never in the middle of what it hands
    on, and resumed when the reader has nothing left. No more than about two windows can pile up.
    """

    def __init__(self) -> None:
        self.channel: asyncssh.SSHClientChannel[bytes] | None = None
        self.lost: Exception | None = None
        self._parts: dict[Stream, deque[bytes]] = {"stdout": deque(), "stderr": deque()}
        self._arrived: dict[Stream, asyncio.Event] = {s: asyncio.Event() for s in self._parts}
        self._reading: dict[Stream, bool] = dict.fromkeys(self._parts, False)
        self._ended = False
        self._paused = False
        self._pause_planned = False
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        self.channel = chan

    def data_received(self, data: bytes, datatype: int | None) -> None:
        stream: Stream = "stdout" if datatype is None else "stderr"
        self._parts[stream].append(data)
        self._arrived[stream].set()
        if not self._paused and not self._pause_planned:
            self._pause_planned = True
            asyncio.get_running_loop().call_soon(self._pause)

    def _pause(self) -> None:
        self._pause_planned = False
        # Not under a reader that waits: what it waits for may come after what others leave here.
        waiting = any(self._reading.values())
        if self.channel is not None and not waiting and not self._ended:
            self._paused = True
            self.channel.pause_reading()

    def eof_received(self) -> bool:
        self._end()
        return True  # the command may still want input

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = exc
        self._writable.set()
        self._end()

    def _end(self) -> None:
        self._ended = True
        for event in self._arrived.values():
            event.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def read(self, stream: Stream, limit: int) -> bytes:
        parts = self._parts[stream]
        while not parts and not self._ended:
            self._arrived[stream].clear()
            if self._paused and self.channel is not None:
                self._paused = False
                self.channel.resume_reading()
            if not parts and not self._ended:
                self._reading[stream] = True
                try:
                    await self._arrived[stream].wait()
                finally:
                    self._reading[stream] = False
        if not parts:
            if self.lost is not None:
                raise self.lost
            return b""
        data = [parts.popleft()]
        size = len(data[0])
        while parts and size + len(parts[0]) <= limit:
            data.append(parts.popleft())
            size += len(data[-1])
        return b"".join(data) if len(data) > 1 else data[0]

    async def write(self, data: bytes) -> None:
        assert self.channel is not None
        self.channel.write(data)
        while not self._writable.is_set() and not self.channel.is_closing():
            # asyncssh does not say that the other side closed while received data waits here for
            # a reader: look from time to time.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_AGAIN):
                    await self._writable.wait()
        if self.channel.is_closing():
            raise BrokenPipeError


class SshChannel:
    """A process behind an SSH session.

    Args:
        channel: asyncssh's channel.
        session: Its streams.
        link: The connection that it is on.
        target: The VM, for messages.
    """

    def __init__(
        self,
        channel: asyncssh.SSHClientChannel[bytes],
        session: _Session,
        link: Link,
        target: Target,
    ) -> None:
        self._channel = channel
        self._session = session
        self._link = link
        self._target = target
        self._open = True

    def _lost(self, error: Exception | None) -> ConnectionLostError:
        cause = f": {error}" if error and str(error) else ""
        return ConnectionLostError(f"{self._target}: the connection broke{cause}.")

    async def read(self, stream: Stream, limit: int = CHUNK) -> bytes:
        """Read some bytes, see `Channel.read`."""
        try:
            return await self._session.read(stream, limit)
        except (asyncssh.Error, OSError) as error:
            raise self._lost(error) from error

    async def write(self, data: bytes) -> None:
        """Write to standard input, see `Channel.write`."""
        try:
            await self._session.write(data)
        except (asyncssh.Error, OSError) as error:
            raise ChannelClosedError from error

    async def write_eof(self) -> None:
        """End standard input, see `Channel.write_eof`."""
        with contextlib.suppress(asyncssh.Error, OSError):
            self._channel.write_eof()

    async def wait(self) -> ExitStatus:
        """Wait for the end, see `Channel.wait`."""
        await self._channel.wait_closed()
        if exit_signal := self._channel.get_exit_signal():
            return ExitStatus.by_signal(exit_signal[0])
        status = self._channel.get_exit_status()
        if status is None:
            raise self._lost(self._session.lost)
        return ExitStatus(status)

    async def close(self) -> None:
        """Close the session, see `Channel.close`."""
        if self._open:
            self._open = False
            # A close that waits for data nobody reads would wait forever.
            self._channel.abort()
            self._link.release()


@dataclass(eq=False)
class Link:
    """One connection and the sessions on it.

    Attributes:
        connection: asyncssh's connection.
        capacity: Sessions that it takes, as far as known.
        freed: Set when a session ends.
        sessions: Sessions open on it.
        retired: Whether new sessions go elsewhere.
    """

    connection: asyncssh.SSHClientConnection
    capacity: int
    freed: asyncio.Event
    sessions: int = 0
    retired: bool = field(default=False)

    @property
    def usable(self) -> bool:
        """Whether it can be asked for a session."""
        return not self.retired and not self.connection.is_closed()

    def release(self) -> None:
        """Count a session out; the last one of a retired connection closes it."""
        self.sessions -= 1
        self.freed.set()
        if self.retired and self.sessions <= 0:
            self.connection.abort()

    def retire(self) -> None:
        """Give it no further sessions; those that run keep it until it is really dead."""
        self.retired = True
        self.freed.set()
        if self.sessions <= 0:
            self.connection.abort()


class _Client(asyncssh.SSHClient):
    """Remembers the host key that was offered, for the message."""

    def __init__(self) -> None:
        self.offered: asyncssh.SSHKey | None = None

    def validate_host_public_key(
        self, host: str, addr: str, port: int, key: asyncssh.SSHKey
    ) -> bool:
        """Refuse: asyncssh asks only when the key is not the pinned one."""
        self.offered = key
        return False


class SshTransport:
    """Start processes on one VM over a pool of connections.

    Args:
        target: The VM.
        settings: Times and limits.
        gate: Bounds the connects of this process to all VMs.
    """

    def __init__(self, target: Target, settings: Settings, gate: asyncio.Semaphore) -> None:
        self.target = target
        self.settings = settings
        self._gate = gate
        self._links: list[Link] = []
        self._freed = asyncio.Event()
        self._connecting: asyncio.Task[None] | None = None

    async def open(self, line: str, *, urgent: bool = False) -> SshChannel:
        """Start a shell line, see `Transport.open`.

        A connection that turns out to be dead is replaced once. That is safe: the launcher does
        nothing before it is sent an order, which happens later.
        """
        reconnected = False
        while True:
            link = await self._lease(urgent)
            try:
                return await self._session(link, line)
            except (asyncssh.Error, OSError, TimeoutError) as error:
                link.release()
                refused = isinstance(error, asyncssh.ChannelOpenError)
                if refused and link.sessions > 0 and link.usable:
                    # sshd's MaxSessions is lower than we thought: use this connection no further
                    # than it goes, and another one for the rest.
                    link.capacity = link.sessions
                    continue
                link.retire()
                if reconnected:
                    raise ConnectError(
                        f"{self.target}: connected, but no session came up ({_reason(error)}). "
                        "Is the VM overloaded, or MaxSessions 0 in its sshd's configuration?"
                    ) from error
                log.info("%s: the kept connection is dead (%s)", self.target, _reason(error))
                reconnected = True
            except BaseException:
                link.release()
                raise

    def not_started(self, code: int, said: str) -> TransportError:
        """Say why no shell came up, see `Transport.not_started`."""
        return CommandNotStartedError(no_shell(self.target, code, said))

    async def close(self) -> None:
        """Close all connections, see `Transport.close`."""
        links, self._links = self._links, []
        for link in links:
            link.connection.close()
        for link in links:
            with contextlib.suppress(Exception):
                await link.connection.wait_closed()

    async def _session(self, link: Link, line: str) -> SshChannel:
        async with asyncio.timeout(self.settings.connect_timeout):
            session = _Session()
            channel, _ = await link.connection.create_session(
                lambda: session, line, encoding=None, window=_WINDOW, max_pktsize=CHUNK
            )
        return SshChannel(channel, session, link, self.target)

    async def _lease(self, urgent: bool) -> Link:
        while True:
            self._links = [link for link in self._links if link.usable]
            for link in self._links:
                if link.sessions < link.capacity:
                    link.sessions += 1
                    return link
            if urgent or len(self._links) < self.settings.max_connections:
                # One connect at a time for a VM, and all who wait share its outcome: a hundred
                # commands make neither a hundred connects nor a hundred time-outs in a row.
                if self._connecting is None:
                    self._connecting = asyncio.ensure_future(self._connect())
                    self._connecting.add_done_callback(self._connected)
                await asyncio.shield(self._connecting)
            else:
                self._freed.clear()
                await self._freed.wait()

    def _connected(self, task: asyncio.Task[None]) -> None:
        self._connecting = None
        if not task.cancelled():
            task.exception()  # those who wait have it; without this asyncio reports it as lost

    async def _connect(self) -> None:
        client = _Client()
        key = self._private_key()
        pinned = self._pinned_keys()
        timeout = self.settings.connect_timeout
        async with self._gate:
            try:
                async with asyncio.timeout(timeout):
                    connection = await self._dial(client, key, pinned)
            except TimeoutError as error:
                raise ConnectError(
                    f"{self.target}: no connection within {timeout:g} s. Is the VM up, and does a "
                    "firewall let this host in?"
                ) from error
            except asyncssh.HostKeyNotVerifiable as error:
                raise self._host_key_error(client, pinned) from error
            except (asyncssh.PermissionDenied, asyncssh.IllegalUserName) as error:
                raise AuthenticationError(
                    f"{self.target}: sshd refused the key {self.target.key_file} "
                    f"({key.get_fingerprint()}): {error}. Authorise it: run the playbook for this "
                    "VM again."
                ) from error
            except (asyncssh.Error, OSError) as error:
                raise ConnectError(
                    f"{self.target}: no connection: {_reason(error)}. "
                    "Is the VM up, and sshd running?"
                ) from error
        self._links.append(Link(connection, self.settings.max_sessions, self._freed))
        self._freed.set()

    async def _dial(
        self, client: _Client, key: asyncssh.SSHKey, pinned: asyncssh.SSHKnownHosts
    ) -> asyncssh.SSHClientConnection:
        wait = _RETRY_WAIT
        while True:
            try:
                return await asyncssh.connect(
                    self.target.host,
                    self.target.port,
                    # Nothing but what the targets file says: no agent, no ~/.ssh, no passwords.
                    config=None,
                    agent_path=None,
                    gss_host=None,
                    client_factory=lambda: client,
                    username=self.target.user,
                    client_keys=[key],
                    known_hosts=pinned,
                    server_host_key_algs=self._host_key_algorithms(pinned),
                    preferred_auth="publickey",
                    encryption_algs=_CIPHERS,
                    compression_algs=None,
                    connect_timeout=None,
                    login_timeout=0,
                    keepalive_interval=self.settings.keepalive_interval,
                    keepalive_count_max=self.settings.keepalive_count,
                )
            except (
                asyncssh.ConnectionLost,
                asyncssh.ProtocolError,
                ConnectionResetError,
                BrokenPipeError,
            ) as error:
                # sshd hung up before the login: that is how MaxStartups looks. The caller's
                # time-out ends this loop.
                log.info("%s: dropped before the login (%s), again", self.target, _reason(error))
                await asyncio.sleep(wait * random.uniform(0.5, 1.5))
                wait = min(wait * 2, 2.0)

    def _private_key(self) -> asyncssh.SSHKey:
        file = self.target.key_file
        try:
            return asyncssh.read_private_key(file)
        except (OSError, asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
            raise AuthenticationError(
                f"{self.target}: the private key {file} cannot be used: {error}. It must be there, "
                f"without passphrase, and readable for uid {os.getuid()}."
            ) from error

    def _pinned_keys(self) -> asyncssh.SSHKnownHosts:
        file = self.target.known_hosts_file
        try:
            return asyncssh.import_known_hosts(Path(file).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise HostKeyError(
                f"{self.target}: the pinned host keys in {file} cannot be read: {error}. "
                f"{self._how_to_accept()}"
            ) from error

    def _how_to_accept(self) -> str:
        return (
            "If the VM was rebuilt or is new, accept its key with: "
            f"ansible-playbook playbooks/accept_host_key.yml -e vm={self.target.name}"
        )

    def _expected(self, pinned: asyncssh.SSHKnownHosts) -> list[asyncssh.SSHKey]:
        host, port = self.target.host, self.target.port
        return list(pinned.match(host, host if _is_address(host) else "", port)[0])

    def _host_key_algorithms(self, pinned: asyncssh.SSHKnownHosts) -> list[str]:
        """Return all kinds of host keys, those that are pinned first."""
        kinds = {key.get_algorithm() for key in self._expected(pinned)}
        if "ssh-rsa" in kinds:
            kinds |= {"rsa-sha2-512", "rsa-sha2-256"}
        return sorted(_HOST_KEY_ALGORITHMS, key=lambda algorithm: algorithm not in kinds)

    def _host_key_error(self, client: _Client, pinned: asyncssh.SSHKnownHosts) -> HostKeyError:
        expected = list(dict.fromkeys(_show(key) for key in self._expected(pinned)))
        offered = _show(client.offered) if client.offered else "a revoked key or a certificate"
        if expected:
            what = f"the host key has CHANGED: expected {' or '.join(expected)}, offered {offered}"
        else:
            what = f"no host key is pinned for it, offered was {offered}"
        return HostKeyError(
            f"{self.target}: {what}. Nothing was sent. Pinned keys are in "
            f"{self.target.known_hosts_file}. {self._how_to_accept()}"
        )


def new_gate() -> asyncio.Semaphore:
    """Return the bound for the connects of one process.

    Returns:
        A semaphore for the running loop.
    """
    return asyncio.Semaphore(_CONNECTS_AT_ONCE)


def _show(key: asyncssh.SSHKey) -> str:
    return f"{key.get_algorithm()} {key.get_fingerprint()}"


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer"
    if isinstance(error, socket.gaierror):
        return f"the name does not resolve: {error.strerror}"
    return str(error) or type(error).__name__


def _is_address(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST)
    except OSError:
        return False
    return True
