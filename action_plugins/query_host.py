"""Ansible action: ask a host something by a script, without what a module takes to start."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

DOCUMENTATION = r"""
name: query_host
short_description: Ask a host something by a script of bash
description:
  - The script only reads. So nothing is ever changed, and a check asks as well.
  - It goes to the host's bash as it is. A module's own code is compiled on the host for each task that runs one, which
    takes ten times as long as most questions do (docs/decisions/0012).
options:
  cmd:
    type: str
    required: true
    description:
      - The script, for bash. It reads nothing from its standard input, and no arguments; it stands
        in no list of processes and in no log.
"""
EXAMPLES = """
- query_host:
    cmd: readlink /opt/airflow/current || echo none
  register: found
"""
RETURN = """
rc: {type: int, returned: always, description: The exit code. Another one than 0 is a failure.}
stdout: {type: str, returned: always, description: What it printed, without the last line's end.}
stdout_lines: {type: list, elements: str, returned: always, description: The same, line by line.}
stderr: {type: str, returned: always, description: What it printed as errors.}
stderr_lines: {type: list, elements: str, returned: always, description: The same, line by line.}
"""


class ActionModule(ActionBase):
    """The action: see DOCUMENTATION."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the script.

        Args:
            tmp: Ansible's; not used.
            task_vars: All variables of the host.

        Returns:
            What RETURN describes.
        """
        super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec({"cmd": {"type": "str", "required": True}})
        # Read whole before any of it runs: what it starts could eat the rest otherwise.
        script = f"{{\n{arguments['cmd']}\n}} < /dev/null\n"
        done = self._low_level_execute_command("/bin/bash", in_data=script.encode())
        said = {name: done[name].rstrip("\r\n") for name in ("stdout", "stderr")}
        lines = {f"{name}_lines": text.splitlines() for name, text in said.items()}
        result: dict[str, Any] = {"changed": False, "rc": done["rc"], **said, **lines}
        if done["rc"] != 0:
            result |= {"failed": True, "msg": f"exit code {done['rc']}: {said['stderr'] or said['stdout']}"}
        return result
