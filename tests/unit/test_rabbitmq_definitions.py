"""The broker's definitions: roles/rabbitmq/filter_plugins."""

from __future__ import annotations

import json
from typing import Any

import rabbitmq_definitions as definitions

WANTED = definitions.wanted(
    "airflow_host",
    {"name": "airflow_admin", "password": "a-secret"},
    [{"name": "airflow_user", "password": "u-secret"}],
)


def imported(delta: dict[str, Any]) -> dict[str, Any]:
    """What the broker exports after it imported the delta."""
    return {**delta, "vhosts": [{"name": "/"}, *delta["vhosts"]]}


def test_the_hash_is_rabbitmqs() -> None:
    # From https://www.rabbitmq.com/docs/passwords: password test12, salt 908D C60A.
    assert definitions.password_hash("test12", bytes.fromhex("908DC60A")) == (
        "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR"
    )


def test_an_unknown_broker_gets_everything_and_no_plain_password() -> None:
    delta = definitions.missing(WANTED, {})
    assert [user["name"] for user in delta["users"]] == ["airflow_admin", "airflow_user"]
    assert [user["tags"] for user in delta["users"]] == [["administrator"], []]
    assert "secret" not in json.dumps(delta)


def test_nothing_is_missing_after_the_import() -> None:
    assert definitions.missing(WANTED, imported(definitions.missing(WANTED, {}))) == {}


def test_a_changed_password_is_all_that_is_imported() -> None:
    current = imported(definitions.missing(WANTED, {}))
    current["users"][1]["password_hash"] = definitions.password_hash("other")
    delta = definitions.missing(WANTED, current)
    assert list(delta) == ["users"]
    assert [user["name"] for user in delta["users"]] == ["airflow_user"]


def test_lost_permissions_are_imported_again() -> None:
    current = imported(definitions.missing(WANTED, {}))
    lost = current["permissions"].pop()
    assert definitions.missing(WANTED, current) == {"permissions": [lost]}


def test_a_weakened_tag_is_restored() -> None:
    current = imported(definitions.missing(WANTED, {}))
    current["users"][0]["tags"] = "management,monitoring"
    assert [user["name"] for user in definitions.missing(WANTED, current)["users"]] == ["airflow_admin"]
