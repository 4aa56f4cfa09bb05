"""Systemd units that tell with what they were started: filters of the ``airflow`` role."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
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


def unsettled(files: Mapping[str, Mapping[str, Any]], answer: Iterable[str]) -> dict[str, list[str]]:
    """Tell which units do not run as they are to.

    Args:
        files: What `files` returned.
        answer: For each unit that runs a line ``NAME=DIGEST``, with anything else as the digest when it has to start
            anew; and one ``NAME/unsettled=yes`` when it is not enabled, or systemd has not read its file.

    Returns:
        ``units``, the names of all of these, and ``stale``, of those among them that run with something else.
    """
    said = dict(line.split("=", 1) for line in answer)
    stale = [name for name, unit in files.items() if said.get(name, unit["digest"]) != unit["digest"]]
    units = [name for name in files if name not in said or name in stale or f"{name}/unsettled" in said]
    return {"units": units, "stale": stale}


class FilterModule:
    """The functions above as Ansible filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return each filter's name and function."""
        return {"unit_files": files, "units_unsettled": unsettled}
