"""The broker's definitions: roles/rabbitmq/filter_plugins."""

from __future__ import annotations

import json
from typing import Any

import pytest
import rabbitmq_definitions as definitions

WANTED = definitions.wanted(
    "airflow_host",
    {"name": "airflow_admin", "password": "a-secret"},
    [
        {
            "name": "vm2",
            "password": "u-secret",
            "tags": ["airflow"],
            "permissions": {"configure": "^$", "write": "^$", "read": "^vm2_queue$"},
        }
    ],
    ["vm2_queue"],
    ["replies"],
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
    assert [user["name"] for user in delta["users"]] == ["airflow_admin", "vm2"]
    assert [user["tags"] for user in delta["users"]] == [["administrator"], ["airflow"]]
    assert "secret" not in json.dumps(delta)


def test_nothing_is_missing_after_the_import() -> None:
    assert definitions.missing(WANTED, imported(definitions.missing(WANTED, {}))) == {}


def test_a_changed_password_is_all_that_is_imported() -> None:
    current = imported(definitions.missing(WANTED, {}))
    current["users"][1]["password_hash"] = definitions.password_hash("other")
    delta = definitions.missing(WANTED, current)
    assert list(delta) == ["users"]
    assert [user["name"] for user in delta["users"]] == ["vm2"]


def test_lost_permissions_are_imported_again() -> None:
    current = imported(definitions.missing(WANTED, {}))
    lost = current["permissions"].pop()
    assert definitions.missing(WANTED, current) == {"permissions": [lost]}


def test_a_weakened_tag_is_restored() -> None:
    current = imported(definitions.missing(WANTED, {}))
    current["users"][0]["tags"] = "management,monitoring"
    assert [user["name"] for user in definitions.missing(WANTED, current)["users"]] == ["airflow_admin"]


def test_a_user_has_its_own_permissions_and_the_administrator_all() -> None:
    found = {entry["user"]: entry["read"] for entry in WANTED["permissions"]}
    assert found == {"airflow_admin": ".*", "vm2": "^vm2_queue$"}


@pytest.mark.parametrize("kind", ["configure", "write", "read"])
def test_a_permission_too_many_is_taken_back(kind: str) -> None:
    current = imported(definitions.missing(WANTED, {}))
    wanted = dict(current["permissions"][1])
    current["permissions"][1] = {**wanted, kind: ".*"}
    assert definitions.missing(WANTED, current) == {"permissions": [wanted]}


def test_a_queue_is_declared_as_celery_would() -> None:
    delta = definitions.missing(WANTED, {})
    (queue,) = delta["queues"]
    assert (queue["name"], queue["durable"], queue["arguments"]) == ("vm2_queue", True, {"x-queue-type": "quorum"})
    assert [(entry["name"], entry["type"]) for entry in delta["exchanges"]] == [
        ("vm2_queue", "direct"),
        ("replies", "direct"),
    ]
    (binding,) = delta["bindings"]
    assert (binding["source"], binding["destination"], binding["routing_key"]) == ("vm2_queue",) * 3


@pytest.mark.parametrize("kind", ["queues", "exchanges", "bindings"])
def test_what_the_broker_adds_makes_no_difference_and_what_is_lost_comes_back(kind: str) -> None:
    current = imported(definitions.missing(WANTED, {}))
    current[kind] = [{**entry, "policy": "mirror"} for entry in current[kind]]
    assert definitions.missing(WANTED, current) == {}
    lost = current[kind].pop()
    assert definitions.missing(WANTED, current) == {kind: [{key: lost[key] for key in lost if key != "policy"}]}
