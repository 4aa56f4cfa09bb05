"""The action write_files and its module, run by Ansible on this machine."""

from __future__ import annotations

import getpass
import grp
import json
import os
import pathlib
import stat
import subprocess
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]
MINE = {"owner": getpass.getuser(), "group": grp.getgrgid(os.getgid()).gr_name}


def run(arguments: dict[str, Any], *options: str) -> dict[str, Any]:
    command = ["ansible", "localhost", "-m", "write_files", "-a", json.dumps(arguments), *options]
    environment = {**os.environ, "ANSIBLE_LOAD_CALLBACK_PLUGINS": "1", "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    answer: dict[str, Any] = json.loads(done.stdout)["plays"][0]["tasks"][0]["hosts"]["localhost"]
    return answer


def wanted(top: pathlib.Path, **files: str) -> dict[str, Any]:
    entries = [{"path": str(top / "new"), "mode": "0750", **MINE}]
    entries += [
        {"path": str(top / "new" / name), "mode": "0640", "content": text, **MINE} for name, text in files.items()
    ]
    return {"files": entries, "alone_in": [str(top / "new")]}


def test_a_check_says_what_a_run_does_and_a_second_run_does_nothing(tmp_path: pathlib.Path) -> None:
    arguments = wanted(tmp_path, a="one\n", empty="")
    everything = [str(tmp_path / name) for name in ("new", "new/a", "new/empty")]
    assert run(arguments, "--check")["written"] == everything
    assert list(tmp_path.iterdir()) == []
    assert run(arguments)["written"] == everything
    assert {path.name: path.read_text() for path in (tmp_path / "new").iterdir()} == {"a": "one\n", "empty": ""}
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new", "new/a")] == [0o750, 0o640]
    again = run(arguments)
    assert (again["changed"], again["written"]) == (False, [])


def test_what_differs_is_put_right_and_shown(tmp_path: pathlib.Path) -> None:
    run(wanted(tmp_path, a="one\n", b="two\n", c="three\n"))
    (tmp_path / "new/a").write_text("changed by hand\n")
    (tmp_path / "new/b").chmod(0o600)
    (tmp_path / "new/stray").write_text("whose is it?\n")
    found = run(wanted(tmp_path, a="one\n", b="two\n", c="three\n"), "--diff")
    assert found["written"] == [str(tmp_path / "new" / name) for name in ("a", "b", "stray")]
    assert [(part["before"], part["after"]) for part in found["diff"]] == [("changed by hand\n", "one\n")]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a", "b", "c"]


def test_a_text_is_tried_before_it_is_put_in_place(tmp_path: pathlib.Path) -> None:
    entry = {"path": str(tmp_path / "a"), "mode": "0640", "validate": "grep -q good %s", **MINE}
    assert run({"files": [{**entry, "content": "good\n"}]})["changed"]
    refused = run({"files": [{**entry, "content": "bad\n"}]})
    assert refused["failed"]
    assert "is refused, and left as it was" in refused["msg"]
    assert [path.read_text() for path in tmp_path.iterdir()] == ["good\n"]


def test_what_cannot_be_written_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "new").write_text("a file, where a directory is to be")
    found = run(wanted(tmp_path, a="one\n"))
    assert found["failed"]
    assert found["msg"].startswith(f"{tmp_path / 'new'} cannot be written:")


def test_the_module_runs_only_where_something_differs(tmp_path: pathlib.Path) -> None:
    """It leaves its invocation in the answer, which the action alone does not."""
    arguments = wanted(tmp_path, a="one\n", empty="", **{"it's a b": "ü\n"})
    assert "invocation" in run(arguments)
    assert "invocation" not in run(arguments)
    for spoil in (
        lambda: (tmp_path / "new/a").write_text("two\n"),
        lambda: (tmp_path / "new/empty").write_text("not empty"),
        lambda: (tmp_path / "new/a").unlink(),
        lambda: (tmp_path / "new/a").chmod(0o4640),
        lambda: (tmp_path / "new").chmod(0o755),
        lambda: os.chown(tmp_path / "new/a", -1, 1),
        lambda: (tmp_path / "new/other").write_text(""),
    ):
        spoil()
        assert run(arguments)["changed"]
    assert "invocation" not in run(arguments, "--check")


def test_what_is_wrong_with_arguments_is_said(tmp_path: pathlib.Path) -> None:
    for files in ("/a", [{"path": str(tmp_path / "a")}], [{"mode": "0644"}], ["/a"]):
        found = run({"files": files})
        assert found["failed"]
        assert not list(tmp_path.iterdir())


def test_a_stray_file_is_found_behind_a_link_to_the_directory(tmp_path: pathlib.Path) -> None:
    arguments = wanted(tmp_path, a="one\n")
    run(arguments)
    (tmp_path / "link").symlink_to(tmp_path / "new")
    files = [{**entry, "path": str(tmp_path / "link/a")} for entry in arguments["files"][1:]]
    (tmp_path / "new/stray").write_text("")
    found = run({"files": files, "alone_in": [str(tmp_path / "link")]})
    assert found["written"] == [str(tmp_path / "link/stray")]
