"""Who logs in to the databases, as the role's databases say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any


def logins(databases: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """List owners and users of all databases, and who logs in for each.

    Args:
        databases: The variable `postgresql_databases`.

    Returns:
        For each ``role`` the ``login`` that acts as it ('' for an owner that does not log in), the ``former`` one
        ('' for none) and its ``password``.
    """
    return [
        _login(entry, str(role))
        for database in databases
        for entry, role in [
            (database, database["owner"]),
            *((user, user["name"]) for user in database.get("users", ())),
        ]
    ]


def _login(entry: Mapping[str, Any], role: str) -> dict[str, str]:
    if "password" not in entry:
        return {"role": role, "login": "", "former": "", "password": ""}
    login = str(entry.get("login", role))
    return {
        "role": role,
        "login": login,
        "former": str(entry.get("former_login", "")),
        "password": str(entry["password"]),
    }


class FilterModule:
    """The function above as an Ansible filter."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return filter names and functions."""
        return {"postgresql_logins": logins}
