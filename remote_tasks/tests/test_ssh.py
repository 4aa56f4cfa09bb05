"""What only a network can do to a command."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import SETTINGS, Sshd, eventually, free_port, keygen, processes, run
from remote_tasks.errors import (
    AuthenticationError,
    CommandNotStartedError,
    CommandTimeoutError,
    ConnectError,
    ConnectionLostError,
    HostKeyError,
)
from remote_tasks.targets import Target
from test_execution import unique


@pytest.fixture
def sshd(sshd_factory: Callable[..., Sshd]) -> Iterator[Sshd]:
    server = sshd_factory()
    yield server
    server.stop()


def spread(count: int, work: Callable[[int], Any]) -> list[Any]:
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count)))


def test_a_connection_is_kept(sshd: Sshd) -> None:
    target = sshd.target()
    for _ in range(5):
        run(target, "true")
    assert len(sshd.sessions()) == 1


def test_concurrent_commands_share_a_connection(sshd: Sshd) -> None:
    target = sshd.target()
    began = time.monotonic()
    spread(8, lambda n: run(target, "sleep 0.5"))
    assert time.monotonic() - began < 2.5
    assert len(sshd.sessions()) == 1


def test_more_commands_than_sessions_take_another_connection(sshd: Sshd) -> None:
    target = sshd.target()
    settings = dataclasses.replace(SETTINGS, max_sessions=2, max_connections=2)
    assert [r.stdout for r in spread(9, lambda n: run(target, "echo ok", settings=settings))] == [
        "ok\n"
    ] * 9
    assert len(sshd.sessions()) == 2


def test_sshds_own_max_sessions_is_respected(sshd_factory: Callable[..., Sshd]) -> None:
    sshd = sshd_factory(MaxSessions="2")
    target = sshd.target()
    results = spread(10, lambda n: run(target, f"sleep 0.2; echo {n}").stdout)
    assert results == [f"{n}\n" for n in range(10)]
    assert 1 < len(sshd.sessions()) <= SETTINGS.max_connections


def test_a_time_out_can_be_enforced_when_all_sessions_are_taken(
    sshd_factory: Callable[..., Sshd],
) -> None:
    target = sshd_factory(MaxSessions="1").target()
    seconds = unique()
    settings = dataclasses.replace(SETTINGS, max_connections=1)
    with pytest.raises(CommandTimeoutError, match="were killed"):
        run(target, f"sleep {seconds}", settings=settings, timeout=0.4)
    assert not processes(seconds)


def test_max_startups_only_slows_us_down(sshd_factory: Callable[..., Sshd]) -> None:
    sshd = sshd_factory(MaxStartups="1:100:1", LoginGraceTime="3")
    # Somebody else sits in the only place for those that have not logged in yet.
    with socket.create_connection(("127.0.0.1", sshd.port)) as other:
        other.recv(100)
        threading.Timer(1.0, other.close).start()
        settings = dataclasses.replace(SETTINGS, connect_timeout=10)
        targets = [sshd.target(f"vm{n}") for n in range(4)]
        results = spread(4, lambda n: run(targets[n], f"echo {n}", settings=settings).stdout)
    assert results == [f"{n}\n" for n in range(4)]
    assert "MaxStartups" in sshd.log or "drop connection" in sshd.log


def test_a_dead_connection_is_replaced_without_notice(sshd: Sshd) -> None:
    target = sshd.target()
    run(target, "true")
    old = sshd.sessions()
    sshd.kill_sessions()
    assert run(target, "echo again").stdout == "again\n"
    assert sshd.sessions() != old


def test_a_silently_dead_connection_is_replaced(sshd: Sshd) -> None:
    """As after a VM was switched off: packets go nowhere, nothing is reset."""
    with Forwarder(sshd.port) as forwarder:
        sshd.known_hosts.write_text(
            sshd.known_hosts.read_text().replace(str(sshd.port), str(forwarder.port))
        )
        target = sshd.target(port=forwarder.port)
        settings = dataclasses.replace(SETTINGS, connect_timeout=1.0)
        run(target, "true", settings=settings)
        forwarder.freeze()
        assert run(target, "echo again", settings=settings).stdout == "again\n"


def test_a_connection_that_breaks_under_a_command_is_an_error_and_the_command_is_killed(
    sshd: Sshd,
) -> None:
    target = sshd.target()
    seconds = unique()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        future = pool.submit(run, target, f"sleep {seconds}")
        assert eventually(lambda: processes(seconds))
        sshd.kill_sessions()
        with pytest.raises(ConnectionLostError) as caught:
            future.result(15)
    assert "may have had effects" in str(caught.value)
    assert "Its processes were killed." in str(caught.value)
    assert not caught.value.retryable
    assert eventually(lambda: not processes(seconds))


def test_a_vm_that_is_gone_for_good_is_said_to_be_unknown(sshd: Sshd) -> None:
    target = sshd.target()
    seconds = unique()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        future = pool.submit(run, target, f"sleep {seconds}")
        assert eventually(lambda: processes(seconds))
        sshd.stop()
        with pytest.raises(ConnectionLostError, match="the VM could not be asked"):
            future.result(15)
    subprocess.run(["pkill", "-x", "-f", f"sleep {seconds}"], check=False)


def test_nobody_listens(down: Target) -> None:
    began = time.monotonic()
    with pytest.raises(ConnectError, match=r"vm9 \(.*no connection.*Is the VM up") as caught:
        run(down, "true")
    assert caught.value.retryable
    assert time.monotonic() - began < 3


def test_a_hundred_commands_for_a_dead_vm_fail_together(down: Target) -> None:
    silent = socket.create_server(("127.0.0.1", free_port()))
    target = dataclasses.replace(down, port=silent.getsockname()[1])
    settings = dataclasses.replace(SETTINGS, connect_timeout=1.0)

    def attempt(n: int) -> str:
        with pytest.raises(ConnectError, match="no connection within 1 s") as caught:
            run(target, "true", settings=settings)
        return str(caught.value)

    began = time.monotonic()
    spread(50, attempt)
    assert time.monotonic() - began < 4
    silent.close()


def test_a_name_that_does_not_resolve(sshd2: Sshd) -> None:
    with pytest.raises(ConnectError, match="does not resolve"):
        run(sshd2.target(host="no-such-host.invalid"), "true")


def test_a_changed_host_key_is_shown_with_both_fingerprints(sshd: Sshd) -> None:
    def fingerprint() -> str:
        listed = subprocess.run(
            ["ssh-keygen", "-lf", str(sshd.host_key)], capture_output=True, text=True, check=True
        )
        return listed.stdout.split()[1]

    expected = fingerprint()
    sshd.stop()
    sshd.new_host_key()
    sshd.start()
    with pytest.raises(HostKeyError) as caught:
        run(sshd.target(), "true")
    message = str(caught.value)
    assert (
        f"CHANGED: expected ssh-ed25519 {expected}, offered ssh-ed25519 {fingerprint()}" in message
    )
    assert "ansible-playbook playbooks/accept_host_key.yml -e vm=vm2" in message
    assert not caught.value.retryable
    assert "Accepted publickey" not in sshd.log
    sshd.pin()
    assert run(sshd.target(), "echo ok").stdout == "ok\n"


def test_a_host_key_of_another_kind_is_shown_too(sshd: Sshd) -> None:
    sshd.stop()
    sshd.host_key.unlink()
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", str(sshd.host_key)], check=True
    )
    sshd.start()
    with pytest.raises(HostKeyError, match=r"expected ssh-ed25519 SHA256:.*offered ecdsa-sha2"):
        run(sshd.target(), "true")


def test_an_unknown_host_key_is_never_added(sshd2: Sshd, tmp_path: Path) -> None:
    empty = tmp_path / "known_hosts"
    empty.write_text("")
    with pytest.raises(HostKeyError, match="no host key is pinned for it, offered was ssh-ed25519"):
        run(sshd2.target(known_hosts_file=str(empty)), "true")
    assert empty.read_text() == ""
    with pytest.raises(HostKeyError, match="cannot be read"):
        run(sshd2.target(known_hosts_file=str(tmp_path / "none")), "true")


def test_a_key_that_is_not_authorised(sshd2: Sshd, tmp_path: Path) -> None:
    other = tmp_path / "other"
    keygen(other)
    with pytest.raises(AuthenticationError, match=r"refused the key .*SHA256:") as caught:
        run(sshd2.target(key_file=str(other)), "true")
    assert not caught.value.retryable


def test_a_key_that_is_missing_or_no_key(sshd2: Sshd, tmp_path: Path) -> None:
    with pytest.raises(AuthenticationError, match="cannot be used"):
        run(sshd2.target(key_file=str(tmp_path / "none")), "true")
    (tmp_path / "nonsense").write_text("nonsense")
    with pytest.raises(AuthenticationError, match="cannot be used"):
        run(sshd2.target(key_file=str(tmp_path / "nonsense")), "true")


def test_a_forced_command_is_explained(sshd_factory: Callable[..., Sshd]) -> None:
    sshd = sshd_factory(ForceCommand="echo This account is locked; exit 1")
    with pytest.raises(CommandNotStartedError, match=r"exit code 1 .*This account is locked"):
        run(sshd.target(), "true")


def test_a_login_shell_that_prints_does_not_spoil_the_result(sshd: Sshd) -> None:
    if not shutil.which("bash"):
        pytest.skip("bash is what reads .bashrc")
    (sshd.home / ".bashrc").write_text("echo welcome; echo motd >&2; printf unfinished\n")
    result = run(sshd.target(), "echo out; echo err >&2")
    assert (result.stdout, result.stderr) == ("out\n", "err\n")


def test_a_time_out_that_comes_before_the_command_has_begun_stops_it_too(
    sshd: Sshd, tmp_path: Path
) -> None:
    """A slow VM: the order lies in the input of a login shell that is busy with itself."""
    if not shutil.which("bash"):
        pytest.skip("bash is what reads .bashrc")
    (sshd.home / ".bashrc").write_text("sleep 1\n")
    seconds = unique()
    with pytest.raises(CommandTimeoutError, match="Its processes were killed"):
        run(sshd.target(), f"sleep {seconds}; touch {tmp_path}/ran", timeout=0.3)
    time.sleep(1)
    assert not processes(seconds)
    assert not (tmp_path / "ran").exists()


def test_another_key_exchange_in_the_middle_is_no_problem(
    sshd_factory: Callable[..., Sshd],
) -> None:
    target = sshd_factory(RekeyLimit="1M").target()
    assert run(target, "head -c 8000000 /dev/zero | wc -c; head -c 8000000 /dev/zero").truncated


class Forwarder:
    """Pass connections on, until told to swallow what is sent on those that exist."""

    def __init__(self, to: int) -> None:
        self._to = to
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._frozen: set[int] = set()
        self._count = 0
        self._sockets: list[socket.socket] = [self._server]

    def __enter__(self) -> Forwarder:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._sockets:
            each.close()

    def freeze(self) -> None:
        self._frozen = set(range(self._count))

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._to))
            self._sockets += [near, far]
            for pair in ((near, far), (far, near)):
                threading.Thread(
                    target=self._pass_on, args=(*pair, self._count), daemon=True
                ).start()
            self._count += 1

    def _pass_on(self, source: socket.socket, sink: socket.socket, number: int) -> None:
        try:
            while data := source.recv(65536):
                if number not in self._frozen:
                    sink.sendall(data)
        except OSError:
            pass
