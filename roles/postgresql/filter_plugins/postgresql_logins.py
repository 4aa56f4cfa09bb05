"""Who logs in to the databases, as the role's databases say, and whether the server knows."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
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


def is_settled(role: Mapping[str, Any], password: str = "") -> bool:
    """Say whether a role is as it is to be: it logs in with this password, and may do nothing with the server itself.

    Args:
        role: What the server has, with ``login``, ``rights`` and ``password`` as it keeps it (None for none); nothing
            for a role that is not there.
        password: Nothing for a role that does not log in.

    Returns:
        False as well when it cannot be told.
    """
    if not role or role["rights"] or role["login"] != bool(password):
        return False
    return _is_hash_of(str(role["password"]), password) if password else role["password"] is None


def _is_hash_of(stored: str, password: str) -> bool:
    """RFC 5802, section 3; passwords that are not ASCII would have to be normalised (RFC 4013) before."""
    parts = re.fullmatch(r"SCRAM-SHA-256\$(\d+):([^$]+)\$[^:]+:(.+)", stored)
    if parts is None or not password.isascii():
        return False
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(parts[2]), int(parts[1]))
    return hmac.compare_digest(hmac.digest(salted, b"Server Key", "sha256"), base64.b64decode(parts[3]))


class FilterModule:
    """The functions above as Ansible filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return filter names and functions."""
        return {"postgresql_logins": logins, "postgresql_is_settled": is_settled}
