"""What must be the same over both transports."""

from __future__ import annotations

import concurrent.futures
import os
import random
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import SETTINGS, eventually, processes, run
from remote_tasks.errors import CommandTimeoutError
from remote_tasks.runtime import start_command
from remote_tasks.targets import Target

REFERENCE_KEYS = {"host", "command", "exit_code", "output", "error", "success", "timestamp"}


def unique() -> str:
    """Return a number of seconds that no other sleep has."""
    return f"{random.randint(1000, 9999)}.{random.randint(10000, 99999)}"


def test_a_result_has_all_keys(vm: Target) -> None:
    result = run(vm, "echo out; echo err >&2; exit 3").to_dict()
    assert result.keys() == REFERENCE_KEYS | {"duration", "truncated", "signal"}
    assert result["host"] == "127.0.0.1"
    assert result["command"] == "echo out; echo err >&2; exit 3"
    assert (result["exit_code"], result["success"]) == (3, False)
    assert (result["output"], result["error"]) == ("out", "err")
    assert abs(result["timestamp"] - time.time()) < 60
    assert 0 < result["duration"] < 20
    assert (result["truncated"], result["signal"]) == (False, None)


def test_both_transports_give_the_same(here: Target, vm2: Target) -> None:
    for command in ("id -un; pwd; echo $0", "kill -TERM $$", "no_such_program", "exit 255", "[["):
        results = []
        for target in (here, vm2):
            result = run(target, command).to_dict()
            del result["timestamp"], result["duration"]
            results.append(result)
        assert results[0] == results[1]


def test_a_signal_is_named(vm: Target) -> None:
    result = run(vm, "kill -KILL $$")
    assert (result.exit_code, result.signal, result.success) == (137, "KILL", False)


def test_environment_directory_and_input(vm: Target) -> None:
    result = run(
        vm,
        'echo "$GREETING"; pwd; cat',
        env={"GREETING": 'it\'s\n"me" $HOME'},
        cwd="/usr/lib",
        stdin="line 1\nline 2",
    )
    assert result.stdout == 'it\'s\n"me" $HOME\n/usr/lib\nline 1\nline 2'


def test_a_missing_directory_is_the_commands_failure(vm: Target) -> None:
    result = run(vm, "echo never", cwd="/no/such")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "/no/such" in result.stderr


def test_the_workers_environment_stays_here(vm: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_PASSWORD", "secret")
    assert "secret" not in run(vm, "env").stdout


def test_without_input_a_command_reads_its_end(vm: Target) -> None:
    assert run(vm, "cat; echo done").stdout == "done\n"


def test_input_that_nobody_reads_is_no_error(vm: Target) -> None:
    assert run(vm, "echo done", stdin=b"x" * 5_000_000).stdout == "done\n"


def test_large_input_arrives(vm: Target) -> None:
    data = random.randbytes(3_000_000)
    assert run(vm, "wc -c", stdin=data).stdout.strip() == "3000000"


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=4)
)
def test_any_argument_list_arrives_as_it_was_sent(vm: Target, arguments: list[str]) -> None:
    result = run(vm, ["printf", "%s\\0", "x", *arguments])
    assert result.stdout.split("\0")[1:-1] == arguments


def test_lines_come_while_the_command_runs(vm: Target) -> None:
    seen: list[tuple[float, str, str]] = []
    run(
        vm,
        "echo one; sleep 0.4; echo two >&2; printf three",
        on_output=lambda stream, line: seen.append((time.monotonic(), stream, line)),
    )
    assert sorted((stream, line) for _, stream, line in seen) == [
        ("stderr", "two"),
        ("stdout", "one"),
        ("stdout", "three"),
    ]
    assert seen[1][0] - seen[0][0] > 0.2
    assert seen[0][1:] == ("stdout", "one")


def test_a_slow_reader_slows_the_command_down_and_gets_every_line(vm: Target) -> None:
    seen: list[str] = []

    def slowly(stream: str, line: str) -> None:
        seen.append(line)
        if len(seen) % 1000 == 0:
            time.sleep(0.02)

    run(vm, "seq 1 20000", on_output=slowly)
    assert seen == [str(number) for number in range(1, 20001)]


def test_a_reader_that_fails_ends_the_command(vm: Target) -> None:
    seconds = unique()

    def fail(stream: str, line: str) -> None:
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        run(vm, f"echo x; sleep {seconds}", on_output=fail)
    assert not processes(seconds)


def test_bytes_that_are_no_text_are_replaced(vm: Target) -> None:
    assert run(vm, r"printf 'a\377b\303'").stdout == "a\ufffdb\ufffd"


def test_long_output_keeps_its_end_and_says_so(vm: Target) -> None:
    result = run(vm, "seq 1 100000; echo end", output_limit=2000)
    assert result.truncated
    assert result.stdout.startswith("[... the first 58")
    assert result.stdout.endswith("100000\nend\n")
    assert len(result.stdout) < 2100


def test_huge_output_does_not_grow_memory(vm: Target) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    run(vm, "head -c 20000000 /dev/zero")
    before, peak, stop = resident(), [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.01):
            peak[0] = max(peak[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    result = run(vm, "head -c 200000000 /dev/zero")
    stop.set()
    watcher.join()
    assert result.truncated
    assert peak[0] - before < 40_000_000


@pytest.mark.parametrize(
    "command",
    [
        "sleep {0}",
        "sleep {0} & sleep {0}",
        "(sleep {0} & sleep {0}) & sleep {0}; echo",
        "trap '' TERM; sleep {0} & wait; sleep {0}",
        "nohup sleep {0} >/dev/null 2>&1 & sleep {0}",
    ],
)
def test_a_time_out_leaves_nothing_running(vm: Target, command: str) -> None:
    seconds = unique()
    began = time.monotonic()
    with pytest.raises(CommandTimeoutError, match=r"longer than 0\.4 s.*Its processes were killed"):
        run(vm, command.format(seconds), timeout=0.4)
    assert not processes(seconds)
    assert time.monotonic() - began < 5


def test_a_time_out_says_what_was_written_last(vm: Target) -> None:
    with pytest.raises(CommandTimeoutError, match=r"It last wrote: step 1 \| step 2\."):
        run(vm, "echo step 1 >&2; echo step 2 >&2; sleep 30", timeout=0.4)


def test_cancel_leaves_nothing_running(vm: Target) -> None:
    seconds = unique()
    running = start_command(vm, f"sleep {seconds} & sleep {seconds}", settings=SETTINGS)
    assert eventually(lambda: len(processes(seconds)) >= 2)
    running.cancel()
    assert running.wait(5)
    assert not processes(seconds)
    with pytest.raises(concurrent.futures.CancelledError):
        running.result()


def test_an_interrupt_of_the_waiting_thread_leaves_nothing_running(vm: Target) -> None:
    seconds = unique()
    main = threading.get_ident()

    def interrupt() -> None:
        import signal

        eventually(lambda: processes(seconds))
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run(vm, f"sleep {seconds}")
    thread.join()
    assert not processes(seconds)


def test_what_leaves_its_session_is_meant_to_stay(vm: Target) -> None:
    seconds = unique()
    run(vm, f"setsid sleep {seconds} >/dev/null 2>&1 </dev/null &")
    assert eventually(lambda: processes(seconds))
    for number in processes(seconds):
        os.kill(number, 9)


def test_many_at_once(vm: Target) -> None:
    with concurrent.futures.ThreadPoolExecutor(30) as pool:
        results = list(pool.map(lambda n: run(vm, f"echo {n}").stdout, range(60)))
    assert results == [f"{n}\n" for n in range(60)]
