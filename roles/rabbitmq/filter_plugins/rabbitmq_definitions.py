"""A broker's users, permissions, queues and exchanges as data: what is wanted, and what is still missing.

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
#: What tells one entry of a kind from another; a permission is another one when its expressions differ.
_IDENTITIES = {
    "vhosts": ("name",),
    "permissions": ("user", "vhost", "configure", "write", "read"),
    "queues": ("vhost", "name"),
    "exchanges": ("vhost", "name"),
    "bindings": ("vhost", "source", "destination_type", "destination", "routing_key"),
}


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


def wanted(
    vhost: str,
    admin: Mapping[str, str],
    users: Sequence[Mapping[str, Any]],
    queues: Sequence[str] = (),
    exchanges: Sequence[str] = (),
) -> dict[str, Any]:
    """Describe what the broker should have.

    Args:
        vhost: Name of the virtual host.
        admin: ``name`` and ``password`` of the management API's administrator.
        users: ``name``, ``password``, ``tags`` and ``permissions`` (``configure``, ``write`` and ``read``, each
            a regular expression) of each user of the virtual host.
        queues: Names of durable quorum queues. Each is bound to an exchange of its own with its name, as
            Celery does.
        exchanges: Names of further durable direct exchanges.

    Returns:
        Definitions with plain passwords, for :func:`missing`.
    """
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    lasting = {"vhost": vhost, "durable": True, "auto_delete": False}
    return {
        "vhosts": [{"name": vhost}],
        "users": [
            {**admin, "tags": ["administrator"]},
            *({"name": user["name"], "password": user["password"], "tags": list(user["tags"])} for user in users),
        ],
        "permissions": [
            {"user": user["name"], "vhost": vhost, **user.get("permissions", everything)} for user in (admin, *users)
        ],
        "queues": [{"name": name, **lasting, "arguments": {"x-queue-type": "quorum"}} for name in queues],
        "exchanges": [
            {"name": name, **lasting, "type": "direct", "internal": False, "arguments": {}}
            for name in (*queues, *exchanges)
        ],
        "bindings": [
            {
                "source": name,
                "vhost": vhost,
                "destination": name,
                "destination_type": "queue",
                "routing_key": name,
                "arguments": {},
            }
            for name in queues
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

    def absent(kind: str) -> list[Mapping[str, Any]]:
        # By what names them: the broker exports more about each than it was told.
        has = {_identity(kind, entry) for entry in current.get(kind, ())}
        return [entry for entry in wanted_definitions[kind] if _identity(kind, entry) not in has]

    delta = {
        "vhosts": absent("vhosts"),
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
        "permissions": absent("permissions"),
        "queues": absent("queues"),
        "exchanges": absent("exchanges"),
        "bindings": absent("bindings"),
    }
    return {kind: entries for kind, entries in delta.items() if entries}


def _identity(kind: str, entry: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(entry[key]) for key in _IDENTITIES[kind])


def _tags(tags: str | Sequence[str]) -> list[str]:
    # A string with commas up to RabbitMQ 3.8, a list since.
    return [tag for tag in tags.split(",") if tag] if isinstance(tags, str) else list(tags)


class FilterModule:
    """The functions above as Ansible filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return filter names and functions."""
        return {"rabbitmq_definitions_missing": lambda current, *args: missing(wanted(*args), current)}
