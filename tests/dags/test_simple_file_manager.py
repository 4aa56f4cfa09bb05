"""The script that processes a file, as a program."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "dags/scripts/simple_file_manager.py"


def call(*arguments: str | bytes, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run the script as the DAG does: from standard input."""
    return subprocess.run(
        [sys.executable, "-", *arguments],
        input=SCRIPT.read_bytes(),
        capture_output=True,
        check=False,
        timeout=30,
        env={**os.environ, **environment},
    )


def figures(path: pathlib.Path, **environment: str) -> dict[str, Any]:
    answer = call(str(path), **environment)
    assert (answer.returncode, answer.stderr) == (0, b"")
    found: dict[str, Any] = json.loads(answer.stdout.decode("ascii"))
    return found


def test_the_figures_of_a_file(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"one two\n\n three")
    os.utime(file, (0, 1_700_000_000))
    assert figures(file) == {
        "path": str(file),
        "size": 15,
        "lines": 3,
        "words": 3,
        "sha256": hashlib.sha256(b"one two\n\n three").hexdigest(),
        "utf8": True,
        "modified": "2023-11-14T22:13:20+00:00",
    }
    assert file.read_bytes() == b"one two\n\n three"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("content", "lines", "words", "utf8"),
    [
        (b"", 0, 0, True),
        (b"\n", 1, 0, True),
        (b"a\n", 1, 1, True),
        ("ü€".encode(), 1, 1, True),
        (b"\xff", 1, 1, False),
        ("€".encode()[:2], 1, 1, False),
        # Words and characters that lie on the border of two chunks.
        (b"x" * (1 << 16) + b"y z", 1, 2, True),
        (b"x" * (1 << 16) + b" y\n", 1, 2, True),
        (b"x" * ((1 << 16) - 1) + b"\ny\n", 2, 2, True),
        (b"x" * ((1 << 16) - 1) + "€".encode(), 1, 1, True),
    ],
)
def test_lines_words_and_encoding(tmp_path: pathlib.Path, content: bytes, lines: int, words: int, utf8: bool) -> None:
    file = tmp_path / "a"
    file.write_bytes(content)
    found = figures(file)
    assert (found["size"], found["lines"], found["words"], found["utf8"]) == (len(content), lines, words, utf8)


@pytest.mark.parametrize("name", ["-rf", "a b", "a\nb", "ü {{ x }} '\"$(id)`", "*"])
def test_any_name_in_any_locale(tmp_path: pathlib.Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = pathlib.Path(name)
    file.write_text("x")
    assert figures(file)["path"] == name
    # What Python 3.6 makes of a host without a locale.
    assert figures(file, LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0")["path"] == name


def test_what_cannot_be_read_is_said(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path / "none", tmp_path, tmp_path / "pipe", tmp_path / "loop"):
        answer = call(str(path))
        assert (answer.returncode, answer.stdout) == (1, b"")
        assert answer.stderr.startswith(b"simple_file_manager: ")
        assert path.name.encode() in answer.stderr
        assert b"Traceback" not in answer.stderr
    assert call().returncode == call("a", "b").returncode == 2


def test_the_oldest_python_of_a_vm_can_read_it() -> None:
    ast.parse(SCRIPT.read_text(encoding="ascii"), feature_version=(3, 6))


def test_a_large_file_needs_little_memory(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "large"
    with file.open("wb") as sparse:
        sparse.truncate(300 << 20)
    limit = f"ulimit -v 200000; exec {sys.executable} {SCRIPT} {file}"
    answer = subprocess.run(["bash", "-c", limit], capture_output=True, check=True, timeout=60)
    assert json.loads(answer.stdout)["size"] == 300 << 20
