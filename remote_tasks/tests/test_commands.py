from __future__ import annotations

import os
import subprocess
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import eventually
from remote_tasks.commands import MAX_ARGUMENT, Command, killer, launcher, order
from remote_tasks.errors import CommandError

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)


def launch(command: Command, shell: str = "/bin/sh", **options: object) -> bytes:
    """Run a command as a login shell would be told to."""
    done = subprocess.run(
        [shell, "-c", launcher("TOKEN")],
        input=order(command, "TOKEN"),
        capture_output=True,
        start_new_session=True,
        timeout=20,
    )
    return done.stdout.partition(b"TOKEN\n")[2]


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXT, max_size=5))
def test_any_argument_list_arrives_as_it_was_sent(arguments: list[str]) -> None:
    out = launch(Command.of(["printf", "%s\\0", "x", *arguments]))
    assert out.decode().split("\0")[1:-1] == arguments


@settings(max_examples=30, deadline=None)
@given(TEXT)
def test_any_value_arrives_as_it_was_sent(value: str) -> None:
    assert launch(Command.of('printf %s "$V"', env={"V": value})).decode() == value


def test_bytes_that_are_no_utf8_arrive_as_they_were() -> None:
    name = os.fsdecode(b"caf\xe9")
    assert launch(Command.of(["printf", "%s", name])) == b"caf\xe9"


def test_the_login_shell_may_be_dash_or_bash() -> None:
    for shell in ("/bin/dash", "/bin/bash"):
        if os.path.exists(shell):
            assert launch(Command.of("echo it works"), shell) == b"it works\n"


def test_the_directory_is_entered_whatever_its_name(tmp_path: object) -> None:
    place = os.path.join(str(tmp_path), "-a 'b\n$HOME")
    os.mkdir(place)
    assert launch(Command.of(["pwd"], cwd=place)).decode() == place + "\n"


def test_half_an_order_is_not_run(tmp_path: object) -> None:
    trace = os.path.join(str(tmp_path), "trace")
    whole = order(Command.of(["touch", trace]), "TOKEN")
    for end in (0, 10, len(whole) - len("TOKEN\n"), len(whole) - 1):
        done = subprocess.run(
            ["/bin/sh", "-c", launcher("TOKEN")],
            input=whole[:end],
            capture_output=True,
            start_new_session=True,
            timeout=20,
        )
        # Without its newline the last line is no line.
        assert done.returncode == 255
        assert not os.path.exists(trace)


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("", {}, "empty"),
        ("  \n", {}, "empty"),
        ([], {}, "empty"),
        (["a\0b"], {}, "NUL"),
        ("a\0b", {}, "NUL"),
        (["a", 5], {}, "must be a string, got int"),
        ("true", {"cwd": ""}, "directory is empty"),
        ("true", {"cwd": "a\0"}, "NUL"),
        ("true", {"env": {"A B": "x"}}, "no name for an environment variable"),
        ("true", {"env": {"A;id": "x"}}, "no name for an environment variable"),
        ("true", {"env": {"A": "x\0"}}, "NUL"),
        ("true", {"env": {"A": 5}}, "must be a string, got int"),
        ("x" * (MAX_ARGUMENT + 1), {}, "Send large data as standard input"),
        ("true", {"env": {"A": "x" * MAX_ARGUMENT}}, "Linux takes"),
        ("echo \ud800", {}, "Not encodable"),
    ],
)
def test_what_no_shell_can_be_given_is_refused(
    command: object, options: dict[str, object], message: str
) -> None:
    with pytest.raises(CommandError, match=message):
        Command.of(command, **options)  # type: ignore[arg-type]


def test_the_longest_command_that_is_accepted_does_run() -> None:
    command = "#" * (MAX_ARGUMENT - len("\necho done")) + "\necho done"
    assert launch(Command.of(command)) == b"done\n"


def start_group(line: str, **options: object) -> tuple[subprocess.Popen[bytes], int, int]:
    process = subprocess.Popen(
        ["/bin/sh", "-c", launcher("TOKEN")],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        **options,  # type: ignore[call-overload]
    )
    process.stdin.write(order(Command.of(line), "TOKEN"))
    process.stdin.close()
    _, group, started = process.stderr.readline().split()
    return process, int(group), int(started)


def kill(group: int, started: int, grace: float = 0.5) -> str:
    done = subprocess.run(
        ["/bin/sh", "-c", killer(group, started, grace)],
        capture_output=True,
        text=True,
        timeout=30,
        start_new_session=True,
    )
    assert done.stderr == ""
    return done.stdout.strip()


def test_the_killer_ends_the_group_and_then_finds_it_gone() -> None:
    process, group, started = start_group("sleep 61 & sleep 61", start_new_session=True)
    assert group == process.pid
    assert kill(group, started) == "killed"
    assert process.wait(5) == -15
    assert kill(group, started) == "gone"


def test_the_killer_insists_when_sigterm_is_ignored() -> None:
    process, group, started = start_group(
        "trap '' TERM; sleep 61 & while :; do sleep 0.1; done", start_new_session=True
    )
    time.sleep(0.3)
    assert kill(group, started, grace=0.2) == "killed"
    assert process.wait(5) == -9


def test_the_killer_leaves_a_stranger_with_the_same_number_alone() -> None:
    process, group, started = start_group("sleep 61", start_new_session=True)
    try:
        assert kill(group, started - 1) == "reused"
        assert process.poll() is None
    finally:
        assert kill(group, started) == "killed"
        process.wait(5)


def test_without_a_group_of_its_own_a_command_makes_one() -> None:
    """For an SSH server that, unlike OpenSSH, starts no session for a command."""
    process, group, started = start_group("sleep 61")
    assert group == process.pid
    assert os.getpgid(process.pid) == group != os.getpgid(0)
    assert kill(group, started) == "killed"
    assert eventually(lambda: process.poll() is not None)
