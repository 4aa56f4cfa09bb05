from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import eventually, processes
from remote_tasks import cli
from remote_tasks.targets import Target
from test_execution import unique

TargetsFile = Callable[..., Path]


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "remote_tasks.cli", *words]


def test_list(
    vm2: Target, here: Target, targets_file: TargetsFile, capsys: pytest.CaptureFixture[str]
) -> None:
    targets_file(here, vm2, replace(here, name="vm4", queue="vm4_queue", user="rocky"))
    assert cli.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["VM", "TRANSPORT", "ADDRESS", "QUEUE", "DESCRIPTION"]
    assert lines[1].split() == ["vm1", "local", "127.0.0.1", "vm1_queue"]
    assert lines[3].split() == ["vm4", "local", "rocky@127.0.0.1", "vm4_queue"]
    assert cli.main(["list", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in entries] == ["vm1", "vm2", "vm4"]


def test_run_passes_output_and_exit_code_on(
    vm: Target, targets_file: TargetsFile, capsys: pytest.CaptureFixture[str]
) -> None:
    targets_file(vm)
    assert cli.main(["run", vm.name, "--", "echo out; echo err >&2; exit 7"]) == 7
    assert capsys.readouterr() == ("out\n", "err\n")


def test_run_takes_several_words_as_they_are(
    vm2: Target, targets_file: TargetsFile, capsys: pytest.CaptureFixture[str]
) -> None:
    targets_file(vm2)
    assert cli.main(["run", "vm2", "--", "printf", "%s|", "a  b", "--all", "$HOME"]) == 0
    assert capsys.readouterr().out == "a  b|--all|$HOME|\n"
    assert cli.main(["run", "vm2", "echo", "no dashes"]) == 0
    assert capsys.readouterr().out == "no dashes\n"


def test_run_json(
    vm2: Target, targets_file: TargetsFile, capsys: pytest.CaptureFixture[str]
) -> None:
    targets_file(vm2)
    assert cli.main(["run", "--json", "vm2", "--", "echo ü; exit 3"]) == 3
    result = json.loads(capsys.readouterr().out)
    assert (result["output"], result["exit_code"]) == ("ü", 3)


def test_run_all(
    vm2: Target,
    vm3: Target,
    down: Target,
    targets_file: TargetsFile,
    capsys: pytest.CaptureFixture[str],
) -> None:
    targets_file(vm2, vm3)
    assert cli.main(["run", "--all", "--", "echo hi"]) == 0
    assert sorted(capsys.readouterr().out.splitlines()) == ["vm2 | hi", "vm3 | hi"]
    targets_file(vm2, down)
    assert cli.main(["run", "--all", "--", "echo hi; exit 3"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "vm2 | hi\n"
    assert "vm2 | exit code 3" in captured.err
    assert "vm9 | ConnectError: vm9" in captured.err
    assert cli.main(["run", "--all", "--json", "--", "true"]) == 1
    assert json.loads(capsys.readouterr().out)["vm2"]["success"] is True


def test_run_passes_standard_input_on(vm2: Target, targets_file: TargetsFile) -> None:
    targets_file(vm2)
    done = subprocess.run(
        command("run", "-i", "vm2", "--", "sh -s a b"),
        input="echo $2 $1",
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.stdout, done.returncode) == ("b a\n", 0)


def test_output_is_streamed_and_ctrl_c_kills_the_command(
    vm2: Target, targets_file: TargetsFile
) -> None:
    targets_file(vm2)
    for number in (signal.SIGINT, signal.SIGTERM):
        seconds = unique()
        process = subprocess.Popen(
            command("run", "vm2", "--", f"echo begun; sleep {seconds}"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        assert eventually(functools.partial(processes, seconds))
        process.send_signal(number)
        _, error = process.communicate(timeout=15)
        assert process.returncode == cli.EXIT_INTERRUPTED
        assert "killed on its VM" in error
        assert not processes(seconds)


def test_a_reader_that_leaves_ends_the_command(vm2: Target, targets_file: TargetsFile) -> None:
    targets_file(vm2)
    began = time.monotonic()
    done = subprocess.run(
        ["sh", "-c", " ".join([*command("run", "vm2", "--", "yes"), "| head -n 1"])],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.stdout, done.stderr) == ("y\n", "")
    assert time.monotonic() - began < 20


def test_status(
    vm2: Target, down: Target, targets_file: TargetsFile, capsys: pytest.CaptureFixture[str]
) -> None:
    targets_file(vm2, down)
    assert cli.main(["status", "vm2"]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["VM", "STATUS", "HOSTNAME"]
    assert row.split()[:3] == ["vm2", "ok", os.uname().nodename]
    assert cli.main(["status"]) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines()[2].split()[:3] == ["vm9", "FAILED", "-"]
    assert captured.err.count("ConnectError") == 1
    assert cli.main(["status", "--json", "vm2"]) == 0
    assert json.loads(capsys.readouterr().out)["vm2"]["numbers"]["cpus"] >= 1


def test_copy(
    vm2: Target,
    vm3: Target,
    targets_file: TargetsFile,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    targets_file(vm2, vm3)
    (tmp_path / "a").write_text("x")
    assert cli.main(["copy", f"vm2:{tmp_path}/a", f"vm3:{tmp_path}/b"]) == 0
    assert capsys.readouterr().out.startswith(f"vm3:{tmp_path}/b: 1 bytes in ")
    assert cli.main(["copy", "--json", f"vm2:{tmp_path}/a", f"vm3:{tmp_path}/b"]) == 0
    assert json.loads(capsys.readouterr().out)["size"] == 1
    assert cli.main(["copy", f"vm2:{tmp_path}/none", f"vm3:{tmp_path}/b"]) == 1
    assert "no such file" in capsys.readouterr().err


def test_exit_codes_of_what_does_not_work(
    vm2: Target,
    down: Target,
    targets_file: TargetsFile,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = targets_file(vm2, down)
    assert cli.main(["run", "vm9", "--", "true"]) == 255
    assert "remote-tasks: vm9 (" in capsys.readouterr().err
    assert cli.main(["run", "vm7", "--", "true"]) == 2
    assert "Known are: vm2, vm9" in capsys.readouterr().err
    assert cli.main(["run", "vm2", "--", ""]) == 2
    assert cli.main(["--targets", str(tmp_path / "none"), "list"]) == 2
    assert "Run the playbook" in capsys.readouterr().err
    assert cli.main(["--targets", str(path), "list"]) == 0
    for words in (["run"], ["run", "vm2"], ["run", "--all"], ["run", "a", "b", "--", "c"], []):
        with pytest.raises(SystemExit) as caught:
            cli.main(words)
        assert caught.value.code == 2
    with pytest.raises(SystemExit):
        cli.main(["copy", "/a", "vm2:/b"])
    assert "is not VM:PATH" in capsys.readouterr().err
