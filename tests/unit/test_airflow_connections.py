"""The connections that a playbook owns: roles/webserver/library/airflow_connections.py."""

from __future__ import annotations

import json
from typing import Any

import airflow_connections
import cluster

TARGETS = [
    cluster.target({"inventory_hostname": name, "ansible_host": f"192.168.83.{last}", "ansible_user": "rocky"})
    for name, last in (("vm2", 130), ("vm3", 131))
]
SEEN = {"vm2": {"ssh-ed25519": "AAAA", "ssh-rsa": "BBBB"}, "vm3": {"ssh-ed25519": "CCCC"}}
WANTED = cluster.connections(TARGETS, SEEN, "/key", 60)


def as_the_api_says(connections: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**entry, "schema": None, "extra": json.dumps(entry["extra"])} for entry in connections]


def differences(present: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    write, remove = airflow_connections.differences(present, wanted, cluster.CONNECTION_MARK)
    return [entry["connection_id"] for entry in write], remove


def test_a_connection_has_what_the_stock_operators_need() -> None:
    vm2 = WANTED[0]
    assert (vm2["connection_id"], vm2["conn_type"], vm2["host"], vm2["port"], vm2["login"]) == (
        "vm2",
        "ssh",
        "192.168.83.130",
        22,
        "rocky",
    )
    assert vm2["extra"]["key_file"] == "/key"
    assert vm2["extra"]["host_key"] == "ssh-ed25519 AAAA"


def test_what_is_missing_is_written_and_what_is_there_is_not() -> None:
    assert differences([], WANTED) == (["vm2", "vm3"], [])
    assert differences(as_the_api_says(WANTED), WANTED) == ([], [])


def test_what_differs_is_written_again() -> None:
    present = as_the_api_says(WANTED)
    present[0]["host"] = "192.168.83.99"
    present[1]["extra"] = "not json"
    assert differences(present, WANTED) == (["vm2", "vm3"], [])


def test_a_target_that_a_run_leaves_out_keeps_its_connection() -> None:
    wanted = cluster.connections(TARGETS, {"vm2": SEEN["vm2"]}, "/key", 60)
    assert differences(as_the_api_says(WANTED), wanted) == ([], [])
    assert differences([], wanted) == (["vm2"], [])


def test_a_target_that_is_gone_loses_its_connection_and_a_sites_own_stay() -> None:
    own = {"connection_id": "warehouse", "conn_type": "postgres", "description": "ours", "extra": None}
    bare = {"connection_id": "other", "conn_type": "http", "description": None, "extra": None}
    assert differences([*as_the_api_says(WANTED), own, bare], WANTED[:1]) == ([], ["vm3"])
