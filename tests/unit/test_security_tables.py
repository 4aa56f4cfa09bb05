"""The tables of the README's security section have the rows that the contract has."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
from typing import Any

import marked
import pytest
import security_tables


def rows(project: pathlib.Path, inventory: str, mode: str) -> list[dict[str, Any]]:
    """What a stranger finds at the hosts of a shipped inventory."""
    command = ["ansible-inventory", "-i", f"inventory/{inventory}", "--list"]
    listed = json.loads(subprocess.run(command, cwd=project, capture_output=True, text=True, check=True).stdout)
    groups = {name: group["hosts"] for name, group in listed.items() if "hosts" in group}
    variables = {name: {**own, "inventory_hostname": name} for name, own in listed["_meta"]["hostvars"].items()}
    return security_tables.port_rows(groups, variables, mode)


@pytest.fixture(scope="module")
def celery(project: pathlib.Path) -> list[dict[str, Any]]:
    return rows(project, "distributed", "celery")


@pytest.mark.parametrize("name", ["ports", "stranger", "vm"])
def test_the_readme_shows_the_table(project: pathlib.Path, celery: list[dict[str, Any]], name: str) -> None:
    shown = marked.table_in((project / "README.md").read_text(), name)
    assert shown == security_tables.tables(celery)[name], "run the tests with --security-tables: see CONTRIBUTING"


def test_a_stranger_reaches_sshd_the_ui_and_flower(celery: list[dict[str, Any]]) -> None:
    """Written by hand: what `open_ports` says is not what it should say because it says so."""
    assert {(row["host"], row["port"]) for row in celery if row["open"]} == {
        *(("main", 22), ("main", 5555), ("main", 8080)),
        *(("vm2", 22), ("vm3", 22)),
    }


def test_in_ssh_mode_it_is_the_same_on_main_and_the_targets_are_the_sites(
    project: pathlib.Path, celery: list[dict[str, Any]]
) -> None:
    def opened(found: list[dict[str, Any]]) -> dict[int, bool]:
        return {row["port"]: row["open"] for row in found if row["host"] == "main"}

    ssh = rows(project, "single_host", "ssh")
    assert {row["host"] for row in ssh} == {"main"}
    assert opened(ssh) == opened(celery)
    assert {row["who"] for row in ssh if not row["open"]} == {security_tables.NOBODY}


def test_every_open_port_is_described(celery: list[dict[str, Any]]) -> None:
    assert {row["why"] for row in celery if row["open"]} == set(security_tables.MET)


def test_hosts_that_are_alike_share_rows(celery: list[dict[str, Any]]) -> None:
    lines = security_tables.port_table(celery).splitlines()
    assert "| vm2, vm3 | 8793 | task logs, for the API server | main | no connection |" in lines
    assert not [line for line in lines if line.startswith(("| vm2 |", "| vm3 |"))]


def test_each_attempt_has_a_key_and_an_answer_of_its_own() -> None:
    assert len({attempt.key for attempt in security_tables.ATTEMPTS}) == len(security_tables.ATTEMPTS)
    entries = ("in", "200", "201", "asked for a password", "asked for a login", "answered: b'HTTP'", "done: None")
    for attempt in security_tables.ATTEMPTS:
        # An answer that lets somebody in must not pass, but where the table says that it does.
        passing = [entry for entry in entries if re.fullmatch(attempt.said, entry)]
        assert passing == (["200"] if attempt.gets.startswith("200") else []), attempt.key


def test_every_row_has_a_test_that_shows_it(project: pathlib.Path) -> None:
    """Those with an answer are parameters of the tests that are given `rows(...)`."""
    marked: set[str] = set()
    given: set[str] = set()
    for path in (project / "tests/infra").glob("test_*.py"):
        text = path.read_text()
        for arguments in re.findall(r"pytest\.mark\.shows\(([^)]*)\)", text):
            marked.update(re.findall(r'"([^"]+)"', arguments))
        given.update(re.findall(r"rows\(security_tables\.(\w+)\)", text))
    assert given == {"OUTSIDE", "INSIDE", "VM"}
    assert marked == {"ports", *(attempt.key for attempt in security_tables.ATTEMPTS if not attempt.said)}


def test_what_was_not_seen_is_not_written() -> None:
    keys = {"ports", *(attempt.key for attempt in security_tables.ATTEMPTS)}
    assert security_tables.unseen(keys) == []
    assert security_tables.unseen(keys - {"ports", "results"}) == ["ports", "results"]


def test_tables_go_between_their_marks() -> None:
    text = "before\n<!-- table vm: made by tests -->\nold\n<!-- end of table vm -->\nafter\n"
    new = marked.written(text, {"vm": "| a \\1 | b |"})
    assert marked.table_in(new, "vm") == "| a \\1 | b |"
    assert new.startswith("before\n<!-- table vm: made by tests -->\n")
    assert new.endswith("\n<!-- end of table vm -->\nafter\n")
    assert "old" not in new
    assert marked.written(new, {"vm": "| a \\1 | b |"}) == new
    with pytest.raises(ValueError, match="no marks for table ports"):
        marked.written(text, {"ports": "| a |"})
