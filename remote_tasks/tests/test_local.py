"""Commands of another login on this host, behind a real sudo; see also `vm` in conftest.py."""

from __future__ import annotations

import os
import pwd
import random
import signal
from pathlib import Path

import pytest

from conftest import SETTINGS, Login, eventually, processes, run
from remote_tasks import local
from remote_tasks.errors import AuthenticationError, CommandTimeoutError
from remote_tasks.local import (
    login_environment,
    parse_environment,
    session_environment,
    sudo_arguments,
)
from remote_tasks.runtime import start_command
from remote_tasks.targets import Target
from test_execution import unique
from test_runtime import in_child
from test_transfer import send

ROCKY = pwd.struct_passwd(("rocky", "x", 1000, 1000, "", "/home/rocky", "/bin/bash"))


# What pam_env 1.5.2 and 1.7.0 make of them.
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A=1\nB=two words\n", {"A": "1", "B": "two words"}),
        ("export A=1", {"A": "1"}),
        ("export\tA=1", {}),
        ("  \tA=1", {"A": "1"}),
        ("A=\"two words\"\nB='single'", {"A": "two words", "B": "single"}),
        ('A="open', {"A": "open"}),
        ("A=open'", {"A": "open'"}),
        ("A=\"mixed'", {"A": "mixed"}),
        ('A="in"ner"', {"A": 'in"ner'}),
        ("# comment\n\n  # another\nA=1 # kept blank", {"A": "1 "}),
        ('A="a#b"', {"A": "a"}),
        ("A=x=y\nB=", {"A": "x=y", "B": ""}),
        ("A=$HOME/`id`", {"A": "$HOME/`id`"}),
        ("A = 1\nB-C=1\n=1\nword\nA\0=1", {}),
        ("A=1\\\n2\nB=3", {"A": "12", "B": "3"}),
        ("A=1\nA=2", {"A": "2"}),
    ],
)
def test_the_environment_file_is_read_like_pam_does(text: str, expected: dict[str, str]) -> None:
    assert parse_environment(text) == expected


def test_a_later_file_wins_and_a_missing_one_is_empty(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("A=1\nLANG=C\n")
    (tmp_path / "b").write_bytes(b"LANG=C.UTF-8\nB=\xff\n")
    files = [tmp_path / name for name in ("a", "missing", "b")]
    assert session_environment(files) == {"A": "1", "LANG": "C.UTF-8", "B": "\udcff"}
    assert session_environment([tmp_path]) == {}


def test_the_login_wins_over_the_session() -> None:
    session = {"HOME": "/x", "USER": "x", "LOGNAME": "x", "SHELL": "x", "PROXY": "p"}
    assert login_environment(ROCKY, session) == {
        "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin",
        "HOME": "/home/rocky",
        "USER": "rocky",
        "LOGNAME": "rocky",
        "SHELL": "/bin/bash",
        "PROXY": "p",
    }


def test_the_sessions_path_is_the_path_as_behind_sshd() -> None:
    assert login_environment(ROCKY, {"PATH": "/opt/x:/bin"})["PATH"] == "/opt/x:/bin"


def test_sudo_is_told_the_whole_environment() -> None:
    assert sudo_arguments("rocky", {"A": "1 2", "B": "-i"}, ["sh", "-c", "x"]) == [
        *("sudo", "-n", "-u", "rocky", "--"),
        *("env", "-i", "A=1 2", "B=-i", "sh", "-c", "x"),
    ]


@pytest.fixture
def environment_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "environment"
    file.write_text("# ours\nexport HTTP_PROXY='http://proxy:3128'\nHOME=/nowhere\n")
    monkeypatch.setattr(session_environment, "__defaults__", ((file,),))


@pytest.mark.usefixtures("environment_file")
@pytest.mark.parametrize("name", ["here", "login_here"])
def test_a_command_gets_the_login_and_the_session_and_nothing_else(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKER_PASSWORD", "secret")
    target: Target = request.getfixturevalue(name)
    login = pwd.getpwnam(target.user) if target.user else pwd.getpwuid(os.getuid())
    lines = run(target, "env").stdout.splitlines()
    found = dict(line.split("=", 1) for line in lines)
    for shells in ("PWD", "SHLVL", "_"):
        found.pop(shells, None)
    assert found == {
        "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin",
        "HOME": login.pw_dir,
        "USER": login.pw_name,
        "LOGNAME": login.pw_name,
        "SHELL": login.pw_shell,
        "HTTP_PROXY": "http://proxy:3128",
    }


@pytest.mark.parametrize(
    "command",
    [
        "id -un; id -Gn; pwd; echo $0 $- $HOME $USER $LOGNAME $SHELL",
        "env | cut -d= -f1 | grep -v -x -e 'SSH_.*' -e MAIL -e LANG | sort",
        "umask; touch made; stat -c '%U %G %a' made; rm made",
        "tty; (: </dev/tty) 2>/dev/null || echo no terminal",
        "read -r x </proc/$$/stat; set -- ${x##*) }; [ $3 = $$ ] && [ $4 = $$ ] && echo leader",
        *(f"kill -{name} $$" for name in ("TERM", "KILL", "INT", "HUP", "PIPE", "SEGV", "USR1")),
        "exit 255",
        "no_such_program",
        "cat; head -c 100 /dev/zero | tr '\\0' x; printf '\\377'",
    ],
)
def test_it_is_as_over_ssh(login_here: Target, login_there: Target, command: str) -> None:
    results = []
    for target in (login_here, login_there):
        result = run(target, command).to_dict()
        del result["timestamp"], result["duration"]
        results.append(result)
    assert results[0] == results[1]


def test_the_workers_umask_stays_here(here: Target, login_here: Target) -> None:
    before = os.umask(0o077)
    try:
        assert [run(target, "umask").stdout for target in (here, login_here)] == ["0022\n"] * 2
    finally:
        os.umask(before)


def test_a_login_without_a_usable_home_starts_at_the_root(login: Login) -> None:
    nobody = Target("vm6", "local", "127.0.0.1", "vm6_queue", user="nobody")
    assert run(nobody, "id -un; pwd").stdout == "nobody\n/\n"


def test_the_workers_own_login_needs_no_sudo(
    here: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Target("vm7", "local", "127.0.0.1", "q", user=pwd.getpwuid(os.getuid()).pw_name)
    (tmp_path / "sh").symlink_to("/bin/sh")
    monkeypatch.setattr(local, "_PATH", str(tmp_path))
    assert run(own, "echo $USER").stdout == f"{own.user}\n"


def sudos() -> set[int]:
    return set(processes("sudo"))


@pytest.mark.parametrize("end", ["time-out", "cancel", "return"])
def test_no_sudo_stays_behind(login_here: Target, end: str) -> None:
    before, seconds = sudos(), unique()
    if end == "return":
        run(login_here, f"sleep {seconds} >/dev/null 2>&1 & true")
        assert eventually(lambda: sudos() <= before)
        for number in processes(seconds):
            os.kill(number, signal.SIGKILL)
        return
    line = f"sleep {seconds} & (sleep {seconds} &) ; sleep {seconds}"
    if end == "time-out":
        with pytest.raises(CommandTimeoutError, match="Its processes were killed"):
            run(login_here, line, timeout=0.6)
    else:
        running = start_command(login_here, line, settings=SETTINGS)
        assert eventually(lambda: len(processes(seconds)) == 3)
        running.cancel()
        assert running.wait(5)
    assert not processes(seconds)
    assert eventually(lambda: sudos() <= before)


def test_files_travel_as_the_login(login: Login, login_here: Target, login_there: Target) -> None:
    data = random.randbytes(3_000_000)
    (login.home / "sent").write_bytes(data)
    (login.home / "sent").chmod(0o604)
    for source, dest, name in ((login_here, login_there, "a"), (login_there, login_here, "b")):
        send(source, dest, login.home / "sent", login.home / name)
        assert (login.home / name).read_bytes() == data
        assert (login.home / name).owner() == login.name
        assert (login.home / name).stat().st_mode & 0o7777 == 0o604


def test_an_unknown_login_is_named() -> None:
    target = Target("vm6", "local", "127.0.0.1", "vm6_queue", user="no-such-user")
    with pytest.raises(AuthenticationError) as caught:
        run(target, "true")
    assert str(caught.value) == (
        "vm6 (local as no-such-user, 127.0.0.1): this host has no user 'no-such-user'. Make it, or "
        "correct the login in the inventory. Run the playbook for this VM again."
    )
    assert not caught.value.retryable


def test_a_missing_sudo_is_named(
    login_here: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_PATH", str(tmp_path))
    with pytest.raises(AuthenticationError, match=r"there is no sudo to run commands as") as caught:
        run(login_here, "true")
    assert str(caught.value).endswith("Run the playbook for this VM again.")


def test_a_missing_rule_is_named(login: Login, tmp_path: Path) -> None:
    target = Target("vm6", "local", "127.0.0.1", "vm6_queue", user="nobody")
    uid = pwd.getpwnam(login.name).pw_uid

    def refused() -> None:
        with (tmp_path / "error").open("w") as file:
            os.setuid(uid)  # who may do nothing
            with pytest.raises(AuthenticationError) as caught:
                run(target, "true")
            file.write(str(caught.value))

    assert in_child(refused) == 0
    said = (tmp_path / "error").read_text()
    assert said.startswith(
        "vm6 (local as nobody, 127.0.0.1): sudo did not start the command as nobody, but ended "
        "with exit code 1, saying: sudo: "
    )
    assert said.endswith(
        f" {login.name} needs a rule in /etc/sudoers.d that lets it run commands as nobody without "
        "a password. Run the playbook for this VM again."
    )
