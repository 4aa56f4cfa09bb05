"""Ansible action: run the module write_files only where a file is not as it is to be."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

from ansible.plugins.action import ActionBase

#: What a host is asked. SELinux has more to say of a file than its mode: there the module looks.
_LOOK = """export LC_ALL=C
if [ -e /sys/fs/selinux/enforce ]; then exit 1; fi
stat --printf '%n\\t%F\\t%a\\t%U\\t%G\\n' -- {paths} || exit 1
{more}"""
_FILES = "sha256sum --zero -- {files} | tr '\\0' '\\n'\n"
_ALONE = "find -H {directories} -mindepth 1 -maxdepth 1 -printf '%p\\tin a directory\\n' || exit 1\n"


def question(files: Sequence[Mapping[str, Any]], alone_in: Sequence[str]) -> str:
    """Return the script that asks a host for all that `as_wanted` wants to know.

    Args:
        files: The module's ``files``.
        alone_in: The module's ``alone_in``.

    Returns:
        A script for bash. It prints paths with types, modes, users and groups, then checksums with paths, then what
        there is in the directories; it ends with 1 when a path or a directory is not there.
    """
    texts = [str(entry["path"]) for entry in files if entry.get("content") is not None]
    more = _FILES.format(files=shlex.join(texts)) if texts else ""
    more += _ALONE.format(directories=shlex.join(alone_in)) if alone_in else ""
    return _LOOK.format(paths=shlex.join(str(entry["path"]) for entry in files), more=more)


def as_wanted(files: Iterable[Mapping[str, Any]], answer: str) -> bool:
    """Say whether a host has all files and directories as they are to be, and no others where none are to be.

    Args:
        files: The module's ``files``.
        answer: What the host said to `question`.

    Returns:
        False as well when the answer is not understood: then the module looks itself.
    """
    wanted = set()
    for entry in files:
        path, content = str(entry["path"]), entry.get("content")
        kind = "directory" if content is None else "regular file" if content else "regular empty file"
        mode = str(entry["mode"]).lstrip("0") or "0"
        wanted.add("\t".join((path, kind, mode, entry.get("owner") or "root", entry.get("group") or "root")))
        if content is not None:
            wanted.add(f"{hashlib.sha256(str(content).encode()).hexdigest()}  {path}")
        wanted.add(f"{path}\tin a directory")
    found = set(answer.splitlines())
    return found <= wanted and wanted - found <= {line for line in wanted if line.endswith("\tin a directory")}


def asks_for_files(files: object) -> TypeGuard[list[Mapping[str, Any]]]:
    """Say whether there is something to ask for; what is wrong with arguments is the module's to say.

    Args:
        files: What stands in the task.
    """
    entries = files if isinstance(files, list) else []
    return bool(entries) and all(
        isinstance(entry, Mapping) and isinstance(entry.get("path"), str) and entry.get("mode") for entry in entries
    )


class ActionModule(ActionBase):
    """The action. Its arguments and answers are the module's (``library/write_files.py``).

    The module's own code is compiled on the host each time that it runs, which takes ten times as long as to ask the
    host for checksums (docs/decisions/0012).
    """

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ask the host, and run the module when something differs.

        Args:
            tmp: Ansible's; not used.
            task_vars: All variables of the host.

        Returns:
            What the module returns.
        """
        super().run(tmp, task_vars)
        files, alone_in = self._task.args.get("files"), self._task.args.get("alone_in", [])
        if asks_for_files(files) and isinstance(alone_in, list):
            done = self._low_level_execute_command("/bin/bash", in_data=question(files, alone_in).encode())
            if done["rc"] == 0 and as_wanted(files, done["stdout"]):
                return {"changed": False, "written": [], "diff": []}
        found: dict[str, Any] = self._execute_module("write_files", module_args=self._task.args, task_vars=task_vars)
        return found
