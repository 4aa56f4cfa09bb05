#!/usr/bin/python
"""Ansible module: many small files of a host at once."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: write_files
short_description: Write many small files and directories in one go
description:
  - What a loop over M(ansible.builtin.copy) does with a connection, a Python and a module for each file. A file is
    written under another name and then renamed, so that it is whole at any time.
options:
  files:
    type: list
    elements: dict
    required: true
    description: In their order.
    suboptions:
      path: {type: path, required: true, description: An absolute path.}
      content: {type: str, description: The file's text; nothing for a directory.}
      owner: {type: str, default: root, description: Its user.}
      group: {type: str, default: root, description: Its group.}
      mode: {type: str, required: true, description: 'Its mode, such as "0644".'}
      validate: {type: str, description: 'A command that tries the text before it is put in place; %s is its file.'}
  alone_in:
    type: list
    elements: path
    default: []
    description: Directories in which no other file is to be; others are removed.
"""
EXAMPLES = """
- write_files:
    files:
      - {path: /etc/airflow, mode: "0755"}
      - path: /etc/airflow/airflow.cfg
        mode: "0644"
        content: "{{ lookup('ansible.builtin.template', 'airflow.cfg.j2') }}"
"""
RETURN = """
written: {type: list, returned: always, description: Paths that were written or removed, or whose attributes changed.}
"""


class Writer:
    """Writes what differs, or only says so in a check."""

    def __init__(self, module: AnsibleModule) -> None:
        """Have written nothing yet.

        Args:
            module: The module that runs.
        """
        self._module = module
        self.written: list[str] = []
        self.diff: list[dict[str, str]] = []

    def write(self, entry: Mapping[str, Any]) -> None:
        """Make one file or directory as it is to be."""
        path = str(entry["path"])
        content = entry["content"]
        if content is None:
            changed = not os.path.isdir(path)
            if changed and not self._module.check_mode:
                os.makedirs(path, mode=0o700)
        else:
            before = self._read(path)
            changed = before != content.encode()
            if changed:
                self._note(path, before, content)
                if not self._module.check_mode:
                    self._put(path, content.encode(), entry["validate"])
        # A check of a bare host knows neither the path nor, maybe, the user that it is to belong to.
        if os.path.exists(path) and not (changed and self._module.check_mode):
            attributes = {name: entry[name] for name in ("path", "owner", "group", "mode")}
            common = self._module.load_file_common_arguments(attributes, path=path)
            changed = self._module.set_fs_attributes_if_different(common, changed)
        if changed:
            self.written.append(path)

    def leave_alone(self, directory: str, own: Iterable[str]) -> None:
        """Remove the files of a directory that are not among `own`."""
        if not os.path.isdir(directory):
            return
        for name in sorted(os.listdir(directory)):
            path = os.path.join(directory, name)
            if path in own:
                continue
            self.written.append(path)
            if not self._module.check_mode:
                (shutil.rmtree if os.path.isdir(path) and not os.path.islink(path) else os.unlink)(path)

    def _read(self, path: str) -> bytes:
        try:
            with open(path, "rb") as file:
                return file.read()
        except FileNotFoundError:
            return b"\0"  # other than an empty file

    def _put(self, path: str, content: bytes, validate: str | None) -> None:
        descriptor, temporary = tempfile.mkstemp(dir=self._module.tmpdir)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        if validate:
            status, said, complaint = self._module.run_command(validate % temporary)
            if status != 0:
                os.unlink(temporary)
                self._module.fail_json(
                    msg=f"{path} is refused, and left as it was: {(said + complaint).strip()}", written=self.written
                )
        self._module.atomic_move(temporary, path)

    def _note(self, path: str, before: bytes, content: str) -> None:
        if self._module._diff:
            text = "" if before == b"\0" else before.decode(errors="replace")
            self.diff.append({"before_header": path, "after_header": path, "before": text, "after": content})


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "files": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "path": {"type": "path", "required": True},
                    "content": {"type": "str"},
                    "owner": {"type": "str", "default": "root"},
                    "group": {"type": "str", "default": "root"},
                    "mode": {"type": "str", "required": True},
                    "validate": {"type": "str"},
                },
            },
            "alone_in": {"type": "list", "elements": "path", "default": []},
        },
        supports_check_mode=True,
    )
    writer = Writer(module)
    path = ""
    try:
        for entry in module.params["files"]:
            path = entry["path"]
            writer.write(entry)
        for path in module.params["alone_in"]:
            writer.leave_alone(path, {entry["path"] for entry in module.params["files"]})
    except OSError as error:
        module.fail_json(msg=f"{path} cannot be written: {error.strerror}", written=writer.written)
    module.exit_json(changed=bool(writer.written), written=writer.written, diff=writer.diff)


if __name__ == "__main__":
    main()
