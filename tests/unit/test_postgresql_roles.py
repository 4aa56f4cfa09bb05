"""Whether a role is as it is to be, by what the server has."""

from __future__ import annotations

import importlib.util
import pathlib
from typing import Any

import pytest

PLUGIN = pathlib.Path(__file__).parents[2] / "roles/postgresql/filter_plugins/postgresql_logins.py"
#: RFC 7677, section 3, as PostgreSQL stores it.
PENCIL = (
    "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$"
    "WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
)
LOGIN = {"login": True, "rights": False, "password": PENCIL, "settings": []}
ROLE = {**LOGIN, "login": False, "password": None}


@pytest.fixture(scope="module")
def settled() -> Any:
    spec = importlib.util.spec_from_file_location("postgresql_logins", PLUGIN)
    assert spec is not None
    assert spec.loader is not None
    plugin = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plugin)
    return plugin.FilterModule().filters()["postgresql_is_settled"]


def test_a_login_has_its_password_and_a_role_has_none(settled: Any) -> None:
    assert settled(LOGIN, "pencil")
    assert settled(ROLE)


@pytest.mark.parametrize(
    ("found", "password"),
    [
        ({}, "pencil"),
        ({}, ""),
        (LOGIN, "Pencil"),
        (LOGIN, ""),
        (ROLE, "pencil"),
        ({**LOGIN, "rights": True}, "pencil"),
        ({**LOGIN, "login": False}, "pencil"),
        ({**LOGIN, "password": None}, "pencil"),
        ({**LOGIN, "password": "md5" + "0" * 32}, "pencil"),
        ({**ROLE, "rights": True}, ""),
        ({**ROLE, "password": PENCIL}, ""),
        ({**LOGIN, "password": PENCIL}, "pencil\u00ad"),
    ],
)
def test_what_differs_or_cannot_be_told_is_set_up(settled: Any, found: dict[str, Any], password: str) -> None:
    assert not settled(found, password)
