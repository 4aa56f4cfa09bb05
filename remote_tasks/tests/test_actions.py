from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from remote_tasks import actions
from remote_tasks.errors import ConnectError, HostKeyError, TransportError, UnknownTargetError
from remote_tasks.targets import Settings, Target

TargetsFile = Callable[..., Path]


def test_retries_wait_and_end() -> None:
    waits: list[float] = []
    notes: list[int] = []

    def fail() -> None:
        raise ConnectError("down")

    with pytest.raises(ConnectError):
        actions.with_retries(
            fail,
            Settings(retry_delay=60, retry_max=3),
            notify=lambda error, left: notes.append(left),
            sleep=waits.append,
        )
    assert waits == [60, 60, 60]
    assert notes == [3, 2, 1]


def test_a_later_success_counts() -> None:
    outcomes: list[TransportError | None] = [ConnectError("down"), None]

    def work() -> str:
        if error := outcomes.pop(0):
            raise error
        return "ok"

    assert actions.with_retries(work, Settings(), sleep=lambda _: None) == "ok"


def test_what_cannot_pass_is_not_tried_again() -> None:
    def fail() -> None:
        raise HostKeyError("changed")

    def never(seconds: float) -> None:
        raise AssertionError

    with pytest.raises(HostKeyError):
        actions.with_retries(fail, Settings(), sleep=never)


def test_run_on(vm: Target, targets_file: TargetsFile) -> None:
    targets_file(vm)
    result = actions.run_on(vm.name, ["echo", "a  b"], timeout=20)
    assert (result["output"], result["command"]) == ("a  b", "echo 'a  b'")
    with pytest.raises(UnknownTargetError, match="Known are: vm"):
        actions.run_on("vm7", "true")


def test_all_at_once_and_a_dead_one_hides_nothing(
    here: Target, vm2: Target, vm3: Target, down: Target, targets_file: TargetsFile
) -> None:
    targets_file(here, vm2, down, vm3)
    began = time.monotonic()
    seen: list[tuple[str, str, str]] = []
    results = actions.run_on_all("sleep 0.5; echo hi", on_output=lambda *line: seen.append(line))
    assert time.monotonic() - began < 1.9
    assert list(results) == ["vm1", "vm2", "vm9", "vm3"]
    assert [result["success"] for result in results.values()] == [True, True, False, True]
    assert "ConnectError: vm9" in results["vm9"]["error"]
    assert results["vm9"].keys() == results["vm2"].keys()
    assert sorted(seen) == [(vm, "stdout", "hi") for vm in ("vm1", "vm2", "vm3")]


def test_a_healthy_vm(vm: Target, targets_file: TargetsFile) -> None:
    targets_file(vm)
    status = actions.check_vm(vm.name)
    assert (status["vm_name"], status["host"]) == (vm.name, "127.0.0.1")
    assert list(status["checks"]) == ["hostname", "uptime", "disk_usage", "memory", "load"]
    assert status["overall_status"] is True
    assert status["checks"]["disk_usage"]["command"] == "df -h /"
    assert status["numbers"]["memory_total_mib"] > 0


def test_a_dead_vm_is_an_answer(down: Target, targets_file: TargetsFile) -> None:
    targets_file(down)
    status = actions.check_vm("vm9")
    assert status["overall_status"] is False
    assert status["numbers"] == {}
    assert all("ConnectError" in check["error"] for check in status["checks"].values())


def test_send_file(vm2: Target, vm3: Target, targets_file: TargetsFile, tmp_path: Path) -> None:
    targets_file(vm2, vm3)
    (tmp_path / "a").write_text("x")
    result = actions.send_file("vm2", "vm3", str(tmp_path / "a"), str(tmp_path / "b"))
    assert (result["success"], result["size"]) == (True, 1)
    assert (tmp_path / "b").read_text() == "x"


def test_a_command_as_text() -> None:
    assert actions.command_text("ls *") == "ls *"
    assert actions.command_text(["ls", "*"]) == "ls '*'"
