from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowException

from remote_tasks.sensors import RemoteFileSensor, look_script, parse_look, quote_pattern
from remote_tasks.targets import Target

TargetsFile = Callable[..., Path]


@pytest.fixture(autouse=True)
def dag() -> Any:
    with DAG("test", schedule=None, start_date=datetime(2024, 5, 1)) as dag:
        yield dag


@pytest.fixture
def place() -> Iterator[Path]:
    # Not below pytest's directory, which is closed to other logins.
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        path = Path(directory, "in put's")
        path.mkdir(mode=0o755)
        yield path


def old(path: Path, text: str = "x", seconds: float = 60) -> str:
    path.write_text(text)
    os.utime(path, (time.time() - seconds,) * 2)
    return str(path)


def poke(vm: Target, paths: Any, **options: Any) -> tuple[bool, list[str]]:
    sensor = RemoteFileSensor(
        task_id=f"wait{time.monotonic_ns()}", vm=vm.name, paths=paths, settle=0.2, **options
    )
    result = sensor.poke({})
    return result.is_done, result.xcom_value


@pytest.mark.parametrize(
    ("path", "quoted"),
    [
        ("/a/b.txt", "/a/b.txt"),
        ("/a b/*.txt", "'/a b/'*.txt"),
        ("/it's/?", "'/it'\"'\"'s/'?"),
        ("/a/[a-c]*[!0-9]", "/a/[a-c]*[!0-9]"),
        ("/a/[$(id)]", "'/a/[$(id)]'"),
        ("/$HOME/*;id", "'/$HOME/'*';id'"),
    ],
)
def test_only_wildcards_stay_wild(path: str, quoted: str) -> None:
    assert quote_pattern(path) == quoted
    if "*" not in path and "?" not in path and "[a" not in path:
        assert shlex.split(quoted) == [path]


def test_the_two_looks_are_compared() -> None:
    same, grown = "10 5 1\0/a\0", "20 5 2\0/b\0"
    assert parse_look("") == []
    assert parse_look(same + "\0\0" + same) == ["/a"]
    assert parse_look(same + grown + "\0\0" + same + "21 6 2\0/b\0") == ["/a"]
    assert parse_look(grown + "\0\0") == []


def test_the_script_runs_in_any_posix_shell(place: Path) -> None:
    file = old(place / "a\nb.txt")
    script = look_script([f"{place}/*.txt"], min_age=10, settle=0)
    for shell in ("sh", "bash"):
        done = subprocess.run([shell, "-c", script], capture_output=True, text=True, timeout=10)
        assert (done.stderr, parse_look(done.stdout)) == ("", [file])


def test_nothing_yet(vm: Target, targets_file: TargetsFile, place: Path) -> None:
    targets_file(vm)
    assert poke(vm, f"{place}/*.txt") == (False, [])
    assert poke(vm, [f"{place}/a", "/no/such"]) == (False, [])


def test_files_are_found_by_path_and_by_pattern(
    vm: Target, targets_file: TargetsFile, place: Path
) -> None:
    targets_file(vm)
    files = sorted(old(place / name) for name in ("a.txt", "b c.txt", "ü\n.txt"))
    old(place / "other")
    (place / "dir.txt").mkdir()
    assert poke(vm, f"{place}/*.txt") == (True, files)
    assert poke(vm, [files[0], f"{place}/none"]) == (True, files[:1])


def test_all_can_be_required(vm2: Target, targets_file: TargetsFile, place: Path) -> None:
    targets_file(vm2)
    paths = [old(place / "a"), f"{place}/*.txt"]
    assert poke(vm2, paths, require_all=True)[0] is False
    paths_found = sorted([paths[0], old(place / "b.txt")])
    assert poke(vm2, paths, require_all=True) == (True, paths_found)


def test_a_file_that_is_being_written_is_not_taken(
    vm: Target, targets_file: TargetsFile, place: Path
) -> None:
    targets_file(vm)
    done = old(place / "done")
    (place / "fresh").write_text("x")
    assert poke(vm, f"{place}/*") == (True, [done])
    # One that keeps its old time while it grows, as some copying programs do.
    growing = place / "growing"
    old(growing)
    stop = threading.Event()

    def grow() -> None:
        while not stop.wait(0.05):
            with growing.open("a") as file:
                file.write("more")
            os.utime(growing, (time.time() - 60,) * 2)

    thread = threading.Thread(target=grow)
    thread.start()
    try:
        assert poke(vm, f"{place}/*") == (True, [done])
    finally:
        stop.set()
        thread.join()


def test_a_vm_that_is_down_is_looked_at_again(down: Target, targets_file: TargetsFile) -> None:
    targets_file(down)
    assert poke(down, "/x") == (False, [])


def test_what_waiting_cannot_mend_fails(
    vm2: Target, targets_file: TargetsFile, tmp_path: Path
) -> None:
    import dataclasses

    targets_file(dataclasses.replace(vm2, key_file=str(tmp_path / "none")))
    with pytest.raises(AirflowException, match="AuthenticationError"):
        poke(vm2, "/x")
    targets_file(vm2)
    for paths in ([], "", [""], [5]):
        with pytest.raises(AirflowException, match="must be a path or a list"):
            poke(vm2, paths)


def test_it_frees_its_slot_and_goes_to_the_vms_queue(
    vm2: Target, targets_file: TargetsFile
) -> None:
    targets_file(vm2)
    sensor = RemoteFileSensor(task_id="wait", vm="vm2", paths="{{ params.paths }}")
    assert (sensor.mode, sensor.queue) == ("reschedule", "vm2_queue")
    assert sensor.reschedule
    assert set(sensor.template_fields) == {"vm", "paths"}
    mapped = RemoteFileSensor.partial(task_id="m", vm="vm2").expand(paths=["/a", "/b"])
    assert mapped.partial_kwargs["queue"] == "vm2_queue"
