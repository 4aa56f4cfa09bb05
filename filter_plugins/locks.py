"""What a lock says, and what differs from it on a host.

Pure functions without I/O, used as filters by ``roles/airflow/tasks/verify.yml``. What a host holds comes in as
``roles/airflow/files/verify_environment.py`` prints it.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Mapping
from typing import Any

from packaging.requirements import Requirement

#: Problems of one host that are listed; the rest are counted.
SHOWN = 20

Answer = Mapping[str, Any]


def requirements(lock: str) -> list[Requirement]:
    """Read the lines of a lock.

    Args:
        lock: A file of requirements, as ``uv pip compile`` writes it.

    Returns:
        Its packages, each with its version and with the hosts that it is for, and without its hashes.
    """
    lines = (line.partition(" --hash")[0] for line in re.sub(r"\\\n\s*", " ", lock).splitlines())
    return [Requirement(line) for line in lines if line.strip() and not line.lstrip().startswith("#")]


def packages(lock: str, python: str, machine: str) -> dict[str, str]:
    """Say what a lock installs on a host.

    Args:
        lock: As in `requirements`.
        python: The full version of the host's Python, e.g. ``3.11.2``.
        machine: The host's architecture, e.g. ``x86_64``.

    Returns:
        Package to version.
    """
    host = {
        "implementation_name": "cpython",
        "implementation_version": python,
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": python,
        "python_version": ".".join(python.split(".")[:2]),
        "sys_platform": "linux",
    }
    return {
        each.name: str(each.specifier).removeprefix("==")
        for each in requirements(lock)
        if each.marker is None or each.marker.evaluate(host)
    }


def differences(result: Answer, lock: str, built: str, reference: Answer) -> list[str]:
    """Say what on a host is not as its lock says.

    Args:
        result: The registered result of looking at the host's environment.
        lock: As in `requirements`.
        built: pyproject.toml of the package that is built on each host, and installed beside the lock.
        reference: The result of another host that has the same environment. A list of files that was changed along
            with its files shows by it alone; so does a file that is no package's.

    Returns:
        One sentence a problem.
    """
    if result.get("rc") != 0:
        reason = " ".join(str(result.get("stderr") or result.get("msg") or "no answer").split())
        return [f"It could not be looked at: {reason[-300:]}"]
    found = json.loads(result["stdout"])
    own = tomllib.loads(built)["project"]
    wanted = {**packages(lock, found["python"], found["machine"]), own["name"]: own["version"]}
    problems = []
    for name in sorted(wanted.keys() | found["packages"].keys()):
        version = found["packages"].get(name, {}).get("version")
        if name not in wanted:
            problems.append(f"{name} {version} is not in the lock")
        elif version is None:
            problems.append(f"{name} {wanted[name]} is missing")
        elif version != wanted[name]:
            problems.append(f"{name} is {version}, and {wanted[name]} in the lock")
    problems += found["problems"] + _apart(found, reference)
    more = len(problems) - SHOWN
    return problems[:SHOWN] + ([f"... and {more} more"] if more > 0 else [])


def _apart(found: Answer, reference: Answer) -> list[str]:
    """Say what differs from another host, where Python and architecture are the same."""
    other = json.loads(reference["stdout"]) if reference.get("rc") == 0 else found
    if (found["python"], found["machine"]) != (other["python"], other["machine"]):
        return []
    ours, theirs = found["packages"], other["packages"]
    lists = [
        name
        for name in sorted(ours.keys() & theirs.keys())
        if ours[name]["version"] == theirs[name]["version"] and ours[name]["record"] != theirs[name]["record"]
    ]
    names = sorted(found["own"].keys() | other["own"].keys())
    files = [name for name in names if found["own"].get(name) != other["own"].get(name)]
    return [
        *(f"the list of {name}'s files (RECORD) is another than on main" for name in lists),
        *(f"{path} is another than on main" for path in files),
    ]


class FilterModule:
    """The functions above as Ansible filters, under the prefix ``locks_``."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return filter names and functions."""
        return {"locks_differences": differences}
