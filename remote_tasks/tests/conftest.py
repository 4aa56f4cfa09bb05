"""Real sshds on loopback, with keys and configuration of their own."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from remote_tasks.runtime import run_command
from remote_tasks.targets import Settings, Target
from remote_tasks.transport import CommandResult

# Short waits: loopback answers at once, and what does not answer is meant not to.
SETTINGS = Settings(connect_timeout=5.0, kill_grace=0.5, retry_delay=0.01, retry_max=2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def eventually(check: Callable[[], Any], timeout: float = 5.0) -> bool:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if check():
            return True
        time.sleep(0.02)
    return bool(check())


def processes(needle: str) -> list[int]:
    """Return the living processes that have exactly this argument."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                state = (entry / "stat").read_text().rpartition(") ")[2][0]
                if needle.encode() in words and state not in "ZX":
                    found.append(int(entry.name))
    return found


def keygen(path: Path) -> str:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True, timeout=20
    )
    return path.with_name(path.name + ".pub").read_text()


@dataclass
class Sshd:
    directory: Path
    client_key: Path
    options: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        program = shutil.which("sshd") or (
            "/usr/sbin/sshd" if Path("/usr/sbin/sshd").exists() else None
        )
        if program is None:
            pytest.fail(
                "These tests talk to a real sshd, and there is none here. Install it: "
                "apt-get install openssh-server (or dnf install openssh-server)."
            )
        self.program = program
        self.home = self.directory / "home"
        self.home.mkdir(parents=True)
        self.new_host_key()
        self.pin()

    @property
    def host_key(self) -> Path:
        return self.directory / "host_key"

    @property
    def known_hosts(self) -> Path:
        return self.directory / "known_hosts"

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()

    def new_host_key(self) -> None:
        self.host_key.unlink(missing_ok=True)
        keygen(self.host_key)

    def pin(self) -> None:
        public = " ".join(self.host_key.with_name("host_key.pub").read_text().split()[:2])
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {public}\n")

    def start(self) -> None:
        with contextlib.suppress(PermissionError):
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # for the privilege separation
        authorized = self.directory / "authorized_keys"
        authorized.write_text(self.client_key.with_suffix(".pub").read_text())
        options = {
            "Port": str(self.port),
            "ListenAddress": "127.0.0.1",
            "HostKey": str(self.host_key),
            "AuthorizedKeysFile": str(authorized),
            "PidFile": "none",
            "StrictModes": "no",
            "UsePAM": "no",
            "PermitRootLogin": "yes",
            "PasswordAuthentication": "no",
            # A home without dot files: those of whoever runs the tests are none of ours.
            "SetEnv": f"HOME={self.home}",
            **self.options,
        }
        config = self.directory / "sshd_config"
        config.write_text("".join(f"{key} {value}\n" for key, value in options.items()))
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.program, "-D", "-e", "-f", str(config)], stderr=log, stdin=subprocess.DEVNULL
            )

        def listens() -> bool:
            assert self.process is not None
            if self.process.poll() is not None:
                pytest.fail(f"sshd did not start: {self.log}")
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self.port)) == 0

        assert eventually(listens), self.log

    def sessions(self) -> list[int]:
        """Return the processes that hold a connection each, not the listener."""
        if self.process is None:
            return []
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(word) for word in children.read_text().split()]

    def kill_sessions(self) -> None:
        """Cut all connections as a crash would; what runs behind them goes on."""
        for monitor in self.sessions():
            task = Path(f"/proc/{monitor}/task/{monitor}/children")
            with contextlib.suppress(OSError):
                for child in map(int, task.read_text().split()):
                    # An sshd under the monitor is the unprivileged half, anything else a command.
                    if b"sshd" in Path(f"/proc/{child}/cmdline").read_bytes():
                        os.kill(child, signal.SIGKILL)
                os.kill(monitor, signal.SIGKILL)

    def stop(self) -> None:
        if self.process is not None:
            self.kill_sessions()
            self.process.terminate()
            self.process.wait(5)
            self.process = None

    def target(self, name: str = "vm2", **changes: Any) -> Target:
        values: dict[str, Any] = {
            "name": name,
            "transport": "ssh",
            "host": "127.0.0.1",
            "port": self.port,
            "user": getpass.getuser(),
            "key_file": str(self.client_key),
            "known_hosts_file": str(self.known_hosts),
            "queue": f"{name}_queue",
            **changes,
        }
        return Target(**values)


@pytest.fixture(scope="session")
def client_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("client") / "id_ed25519"
    keygen(path)
    return path


@pytest.fixture(scope="session")
def sshd_factory(
    tmp_path_factory: pytest.TempPathFactory, client_key: Path
) -> Iterator[Callable[..., Sshd]]:
    started: list[Sshd] = []

    def make(**options: str) -> Sshd:
        sshd = Sshd(tmp_path_factory.mktemp("sshd"), client_key, options)
        sshd.start()
        started.append(sshd)
        return sshd

    yield make
    for sshd in started:
        sshd.stop()


@pytest.fixture(scope="session")
def sshd2(sshd_factory: Callable[..., Sshd]) -> Sshd:
    return sshd_factory()


@pytest.fixture(scope="session")
def sshd3(sshd_factory: Callable[..., Sshd]) -> Sshd:
    return sshd_factory()


@pytest.fixture(scope="session")
def vm2(sshd2: Sshd) -> Target:
    return sshd2.target("vm2")


@pytest.fixture(scope="session")
def vm3(sshd3: Sshd) -> Target:
    return sshd3.target("vm3")


@pytest.fixture(scope="session")
def here() -> Target:
    return Target(name="vm1", transport="local", host="127.0.0.1", queue="vm1_queue")


@dataclass(frozen=True)
class Login:
    name: str
    home: Path


@pytest.fixture(scope="session")
def login() -> Iterator[Login]:
    """A user to run commands as by sudo, for which root needs no rule."""
    if os.getuid() != 0:
        pytest.skip("only root may make the user whom these commands run as")
    if shutil.which("sudo") is None:
        pytest.skip("sudo is not installed")
    name = f"remote-tasks-{os.getpid()}"
    # Not below pytest's directory, which is closed to other users.
    home = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    # A password that none matches: sshd takes one that is locked for a locked account.
    options = ["--system", "--no-create-home", "--home-dir", home, "--shell", "/bin/bash"]
    subprocess.run(["useradd", *options, "--password", "*", name], check=True, timeout=20)
    shutil.chown(home, name)
    yield Login(name, home)
    subprocess.run(["userdel", "--force", name], check=True, timeout=20)
    shutil.rmtree(home)


@pytest.fixture(scope="session")
def login_here(login: Login) -> Target:
    return Target("vm4", "local", "127.0.0.1", "vm4_queue", user=login.name)


@pytest.fixture(scope="session")
def login_there(login: Login, client_key: Path) -> Iterator[Target]:
    # sshd reads the authorised keys as the user, and is to leave the home as it is.
    sshd = Sshd(login.home / "sshd", client_key, {"SetEnv": f"HOME={login.home}"})
    sshd.start()
    yield sshd.target("vm5", user=login.name)
    sshd.stop()


@pytest.fixture(scope="session")
def down(client_key: Path, sshd2: Sshd) -> Target:
    return sshd2.target("vm9", port=free_port())


@pytest.fixture(params=["here", "login_here", "vm2"], ids=["local", "sudo", "ssh"])
def vm(request: pytest.FixtureRequest) -> Target:
    """Each test that takes it runs over both transports and must see the same."""
    target = request.getfixturevalue(request.param)
    assert isinstance(target, Target)
    return target


def run(target: Target, command: Any, **options: Any) -> CommandResult:
    options.setdefault("settings", SETTINGS)
    options.setdefault("timeout", 30)
    return run_command(target, command, **options)


@pytest.fixture
def targets_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a targets file and make it the one that everything reads."""

    def write(*targets: Target, **settings: Any) -> Path:
        keys = ("name", "transport", "host", "queue", "port", "user", "key_file")
        entries = []
        for target in targets:
            entry = {key: getattr(target, key) for key in (*keys, "known_hosts_file")}
            entries.append({key: value for key, value in entry.items() if value})
        values = {
            "connect_timeout": 5,
            "kill_grace": 0.5,
            "retry_delay": 0.01,
            "retry_max": 2,
            **settings,
        }
        path = tmp_path / "targets.json"
        path.write_text(json.dumps({"targets": entries, "settings": values}))
        monkeypatch.setenv("REMOTE_TASKS_TARGETS", str(path))
        return path

    return write
