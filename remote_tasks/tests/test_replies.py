from __future__ import annotations

import json

import pytest

from remote_tasks import errors
from remote_tasks.replies import is_direct, pack, unpack


def through_json(outcome: object) -> object:
    return unpack(json.loads(json.dumps(pack(outcome))))


def test_a_result_arrives() -> None:
    assert through_json({"output": "ü", "exit_code": 3}) == {"output": "ü", "exit_code": 3}
    assert through_json(None) is None


@pytest.mark.parametrize(
    "kind",
    [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.RemoteTasksError)
    ],
)
def test_each_of_our_errors_arrives_as_itself(kind: type[errors.RemoteTasksError]) -> None:
    with pytest.raises(kind, match="because") as caught:
        through_json(kind("because"))
    assert type(caught.value) is kind


@pytest.mark.parametrize("error", [KeyError("x"), SystemExit(3), RuntimeError("because")])
def test_any_other_error_is_named(error: BaseException) -> None:
    with pytest.raises(errors.RemoteTaskFailedError, match=type(error).__name__):
        through_json(error)


def test_only_our_own_callers_get_a_direct_reply() -> None:
    assert is_direct("remote_tasks.reply.1234")
    assert not is_direct("0f9c7a55-2a3e-3d2f-8a51-0d8a8a1f3b52")
    assert not is_direct("")
    assert not is_direct(None)
