#!/usr/bin/python
"""Ansible module: an account of Airflow's FabAuthManager, with a role and a password."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: fab_user
short_description: Set an account of Airflow's FabAuthManager
description:
  - Creates the account, or gives an existing one this password, role and e-mail address.
  - Airflow's own command takes the password on its command line, where every user of the host can
    read it, and leaves an existing account as it is.
  - Must run with the Python of Airflow's environment, as a user that may read Airflow's secrets.
options:
  username: {type: str, required: true, description: Name to log in with.}
  password: {type: str, required: true, description: Password to log in with.}
  email: {type: str, required: true, description: E-mail address; no other account may have it.}
  role: {type: str, required: true, description: "Role: Admin, Op, User, Viewer, Public or one of your own."}
"""
EXAMPLES = """
- fab_user: {username: admin, password: "{{ password }}", email: admin@example.org, role: Admin}
"""
RETURN = """
created: {type: bool, returned: always, description: Whether there was no such account.}
"""


def set_user(manager: Any, wanted: dict[str, str], dry: bool) -> tuple[bool, bool]:
    """Bring an account in line.

    Args:
        manager: FAB's security manager.
        wanted: ``username``, ``password``, ``email`` and ``role``.
        dry: Only say what would change.

    Returns:
        Whether anything changes, and whether the account is new.

    Raises:
        ValueError: There is no such role, or FAB refused the account.
    """
    role = manager.find_role(wanted["role"])
    if role is None:
        known = ", ".join(sorted(r.name for r in manager.get_all_roles()))
        raise ValueError(f"There is no role {wanted['role']!r}. Roles: {known}.")
    user = manager.find_user(wanted["username"])
    if user is None:
        names = (wanted["username"], wanted["username"].capitalize(), "User")
        if not dry and not manager.add_user(*names, wanted["email"], role, wanted["password"]):
            raise ValueError(
                f"FAB refused the account {wanted['username']!r}: see the log of airflow-webserver."
                f" Another account may have the e-mail address {wanted['email']!r}."
            )
        return True, True
    changed = False
    if user.roles != [role] or user.email != wanted["email"] or not user.active:
        changed = True
        if not dry:
            user.roles, user.email, user.active = [role], wanted["email"], True
            if not manager.update_user(user):
                raise ValueError(f"FAB refused the change of {wanted['username']!r}: is the e-mail address taken?")
    if not manager.check_password(wanted["username"], wanted["password"]):
        changed = True
        if not dry and not manager.reset_password(user.id, wanted["password"]):
            raise ValueError(f"FAB refused the password of {wanted['username']!r}.")
    return changed, False


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "username": {"type": "str", "required": True},
            "password": {"type": "str", "required": True, "no_log": True},
            "email": {"type": "str", "required": True},
            "role": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    try:
        # Airflow prints warnings to standard output, which belongs to the module's result.
        with contextlib.redirect_stdout(sys.stderr):
            from airflow.providers.fab.auth_manager.cli_commands.utils import (
                get_application_builder,
            )

            with get_application_builder() as builder:
                changed, created = set_user(builder.sm, module.params, module.check_mode)
    except ImportError as error:
        module.fail_json(msg=f"Airflow cannot be imported by {sys.executable}: {error}")
    except ValueError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=changed, created=created)


if __name__ == "__main__":
    main()
