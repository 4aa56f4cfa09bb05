"""The files of systemd units that tell with what each unit was started: a filter of the ``airflow`` role."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

#: What a unit's text has where its digest belongs.
MARK = "@started-with@"


def files(
    units: Sequence[Mapping[str, Any]], texts: Mapping[str, str], common: str, secrets: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Give each unit's text the digest of all that the unit is started with.

    Args:
        units: The units: ``name``, and ``secrets``, the names of those that it reads.
        texts: Name to text, which has `MARK` in the digest's place.
        common: What all units read when they start, or its digest.
        secrets: The host's secrets, name to value; a unit may ask for others, which it does without.

    Returns:
        Name to ``digest``, of 16 hexadecimal digits, and ``file``: its ``path``, ``mode`` and ``content``.
    """
    found = {}
    for unit in units:
        name, own = unit["name"], sorted(set(unit["secrets"]) & set(secrets))
        whole = json.dumps([common, str(texts[name]), [[secret, str(secrets[secret])] for secret in own]])
        digest = hashlib.sha256(whole.encode()).hexdigest()[:16]
        path, content = f"/etc/systemd/system/{name}.service", texts[name].replace(MARK, digest)
        found[name] = {"digest": digest, "file": {"path": path, "mode": "0644", "content": content}}
    return found


class FilterModule:
    """The function above as an Ansible filter."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filter's name and function."""
        return {"unit_files": files}
