"""A command on a host of the inventory, as Ansible would reach it: for tests and benchmarks."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from typing import Any


def as_root(variables: Mapping[str, Any], address: str, command: str) -> list[str]:
    """Return the words of a command that runs another as root on a host.

    Args:
        variables: The host's own, as the inventory has them: ``ansible_user``, and ``ansible_port`` where it is not 22.
        address: The host's address.
        command: A line for bash there. No secret: sudo writes it to the journal.

    Returns:
        Words for a process here, with what ``ANSIBLE_SSH_COMMON_ARGS`` and ``ANSIBLE_PRIVATE_KEY_FILE`` say.
    """
    extra = shlex.split(os.environ.get("ANSIBLE_SSH_COMMON_ARGS", ""))
    key = os.environ.get("ANSIBLE_PRIVATE_KEY_FILE")
    ssh = ["ssh", *extra, *(["-i", key] if key else []), "-p", str(variables.get("ansible_port", 22))]
    return [*ssh, f"{variables['ansible_user']}@{address}", "sudo", "bash", "-c", shlex.quote(command)]
