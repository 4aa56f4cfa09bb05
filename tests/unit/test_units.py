"""What tells with what a unit was started."""

from typing import Any

import pytest
import units

UNITS: list[dict[str, Any]] = [
    {"name": "airflow-scheduler", "secrets": ["fernet_key", "broker_url"]},
    {"name": "airflow-worker-vm2", "secrets": ["broker_url", "not_on_this_host"]},
]
TEXTS = {unit["name"]: f"[Unit]\nDescription={unit['name']}\n# @started-with@\n" for unit in UNITS}
SECRETS = {"fernet_key": "abc", "broker_url": "amqps://here"}


def digests(texts: dict[str, str] = TEXTS, common: str = "cfg", secrets: dict[str, str] = SECRETS) -> list[str]:
    return [found["digest"] for found in units.files(UNITS, texts, common, secrets).values()]


def test_a_file_says_its_own_digest() -> None:
    found = units.files(UNITS, TEXTS, "cfg", SECRETS)["airflow-worker-vm2"]
    assert found["file"] == {
        "path": "/etc/systemd/system/airflow-worker-vm2.service",
        "mode": "0644",
        "content": f"[Unit]\nDescription=airflow-worker-vm2\n# {found['digest']}\n",
    }
    assert len(found["digest"]) == 16
    assert digests() == digests()


@pytest.mark.parametrize(
    ("changed", "differ"),
    [
        ({"common": "other"}, [True, True]),
        ({"texts": {**TEXTS, "airflow-scheduler": "other"}}, [True, False]),
        ({"secrets": {**SECRETS, "fernet_key": "other"}}, [True, False]),
        ({"secrets": {**SECRETS, "broker_url": "other"}}, [True, True]),
        ({"secrets": {**SECRETS, "not_on_this_host": "now there"}}, [False, True]),
        ({"secrets": {**SECRETS, "of_nobody": "other"}}, [False, False]),
    ],
)
def test_a_unit_starts_anew_for_what_it_reads(changed: dict[str, Any], differ: list[bool]) -> None:
    assert [new != old for new, old in zip(digests(**changed), digests(), strict=True)] == differ


def test_no_secret_is_in_a_file() -> None:
    assert not [value for value in SECRETS.values() if value in str(units.files(UNITS, TEXTS, "cfg", SECRETS))]


@pytest.mark.parametrize(
    ("answer", "stale", "others"),
    [
        (["a=1", "b=2"], [], []),
        ([], [], ["a", "b"]),
        (["a=1", "b=other certificates"], ["b"], []),
        (["a=", "b=2"], ["a"], []),
        (["a/unsettled=yes", "a=1", "b=2"], [], ["a"]),
        (["a/unsettled=yes", "a=0", "b=2", "c=3"], ["a"], []),
    ],
)
def test_units_that_do_not_run_as_they_are_to(answer: list[str], stale: list[str], others: list[str]) -> None:
    found = units.unsettled({"a": {"digest": "1"}, "b": {"digest": "2"}}, answer)
    assert (found["stale"], set(found["units"])) == (stale, {*stale, *others})
