"""A question to a host, as a task asks it."""

import json
import pathlib
import subprocess
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def ask(script: str, *options: str) -> dict[str, Any]:
    """Return what the action answers on this host."""
    command = ["ansible", "localhost", "--connection", "local", "--module-name", "query_host", "--one-line", *options]
    done = subprocess.run(
        [*command, "--args", json.dumps({"cmd": script})], cwd=ROOT, capture_output=True, text=True, check=False
    )
    status, _, answer = done.stdout.partition(" => ")
    found: dict[str, Any] = json.loads(answer)
    assert ("FAILED" in status) == (found["rc"] != 0), done.stdout
    return found


def test_the_answer_is_what_the_script_printed() -> None:
    found = ask("echo one; printf 'two\\n\\n'; echo wrong >&2; [[ $BASH ]]", "--check")
    assert found["stdout_lines"] == ["one", "two"]
    assert (found["rc"], found["stderr"], found["changed"]) == (0, "wrong", False)


def test_a_command_cannot_eat_the_rest_of_the_script() -> None:
    assert ask("cat\necho 'still there'")["stdout"] == "still there"


@pytest.mark.parametrize(("script", "said"), [("echo why >&2; exit 3", "why"), ("echo lost; false", "lost")])
def test_another_exit_code_is_a_failure(script: str, said: str) -> None:
    found = ask(script)
    assert found["rc"] == (3 if said == "why" else 1)
    assert found["msg"] == f"exit code {found['rc']}: {said}"


def test_a_script_that_bash_cannot_read_is_a_failure() -> None:
    assert "syntax error" in ask("if then")["msg"]


def test_there_is_no_question_without_a_script() -> None:
    done = subprocess.run(
        ["ansible", "localhost", "--connection", "local", "--module-name", "query_host"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "missing required arguments: cmd" in done.stdout + done.stderr
