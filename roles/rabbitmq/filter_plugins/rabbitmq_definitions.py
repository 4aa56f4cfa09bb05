"""A broker's users, permissions and virtual hosts as data: what is wanted, and what is still missing.

RabbitMQ's own modules put passwords on a command line, or (over the management API, in
community.rabbitmq 1.6.0) report a successful change of password as a failure. The broker's
definitions, which it exports and imports as one document, need neither.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_ALGORITHM = "rabbit_password_hashing_sha256"
_SALT_BYTES = 4


def password_hash(password: str, salt: bytes | None = None) -> str:
    """Hash a password as RabbitMQ stores it.

    Source: https://www.rabbitmq.com/docs/passwords#computing-password-hash

    Args:
        password: The password.
        salt: 4 bytes; random ones when not given.

    Returns:
        base64 of the salt and the SHA-256 of salt and password.
    """
    salt = os.urandom(_SALT_BYTES) if salt is None else salt
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def password_matches(password: str, stored: str) -> bool:
    """Tell whether a stored hash is the hash of this password.

    Args:
        password: The password.
        stored: The hash as exported by the broker.

    Returns:
        True when it is.
    """
    salt = base64.b64decode(stored)[:_SALT_BYTES]
    return hmac.compare_digest(password_hash(password, salt), stored)


def wanted(vhost: str, admin: Mapping[str, str], users: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Describe the users, permissions and virtual host that the broker should have.

    Args:
        vhost: Name of the virtual host.
        admin: ``name`` and ``password`` of the management API's administrator.
        users: ``name`` and ``password`` of each user of the virtual host.

    Returns:
        Definitions with plain passwords, for :func:`missing`.
    """
    return {
        "vhosts": [{"name": vhost}],
        "users": [
            {**admin, "tags": ["administrator"]},
            *({"name": user["name"], "password": user["password"], "tags": []} for user in users),
        ],
        "permissions": [
            {"user": user["name"], "vhost": vhost, "configure": ".*", "write": ".*", "read": ".*"}
            for user in (admin, *users)
        ],
    }


def missing(wanted_definitions: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, Any]:
    """Say what has to be imported so that the broker has what is wanted.

    Args:
        wanted_definitions: As made by :func:`wanted`.
        current: What the broker exports; ``{}`` for a broker whose state is not known.

    Returns:
        Definitions with hashed passwords, as the broker imports them; ``{}`` when nothing is missing.
    """
    stored = {user["name"]: user for user in current.get("users", ())}

    def stands(user: Mapping[str, Any]) -> bool:
        known = stored.get(user["name"])
        return (
            known is not None
            and known.get("hashing_algorithm") == _ALGORITHM
            and _tags(known["tags"]) == user["tags"]
            and password_matches(user["password"], known["password_hash"])
        )

    delta = {
        "vhosts": [v for v in wanted_definitions["vhosts"] if v["name"] not in _names(current.get("vhosts", ()))],
        "users": [
            {
                "name": user["name"],
                "password_hash": password_hash(user["password"]),
                "hashing_algorithm": _ALGORITHM,
                "tags": user["tags"],
            }
            for user in wanted_definitions["users"]
            if not stands(user)
        ],
        "permissions": [p for p in wanted_definitions["permissions"] if p not in current.get("permissions", ())],
    }
    return {kind: entries for kind, entries in delta.items() if entries}


def _names(entries: Sequence[Mapping[str, Any]]) -> set[str]:
    return {str(entry["name"]) for entry in entries}


def _tags(tags: str | Sequence[str]) -> list[str]:
    # A string with commas up to RabbitMQ 3.8, a list since.
    return [tag for tag in tags.split(",") if tag] if isinstance(tags, str) else list(tags)


class FilterModule:
    """The functions above as Ansible filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return filter names and functions."""
        return {"rabbitmq_definitions_missing": lambda current, *args: missing(wanted(*args), current)}
