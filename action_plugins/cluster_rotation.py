"""Ansible action: the steps of a rotation, in the files that lookup_plugins/cluster_secret.py reads."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

DOCUMENTATION = r"""
name: cluster_rotation
short_description: A step of a rotation of secrets, on the control node
description:
  - C(begin) makes the new values, beside those that are used. Where keys are among them that a reader must know before
    a writer uses them, the rotation is in the stage C(announce), otherwise in C(switch). One that is under way goes
    on as it is.
  - C(switch) goes from the stage C(announce) to C(switch), in which the new values are used. C(finish) forgets the
    former ones, and C(end) that there was a rotation.
  - Each step that was taken before is passed over.
options:
  step: {type: str, required: true, choices: [begin, switch, finish, end]}
  names:
    type: list
    elements: str
    description: For C(begin), rotations as the catalogue names them; by default all that the user does not give.
"""
EXAMPLES = """
- cluster_rotation: {step: begin, names: [database, jwt]}
"""
RETURN = """
stage: {type: str, returned: always, description: The stage after the step; empty at the end.}
names: {type: list, returned: always, description: The rotations that are under way.}
"""


class ActionModule(ActionBase):
    """The action: see DOCUMENTATION."""

    TRANSFERS_FILES = False
    _supports_check_mode = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Take the step."""
        variables = task_vars or {}
        result: dict[str, Any] = super().run(tmp, variables)
        _, arguments = self.validate_argument_spec(
            argument_spec={
                "step": {"type": "str", "required": True, "choices": ["begin", "switch", "finish", "end"]},
                "names": {"type": "list", "elements": "str", "default": []},
            }
        )
        lookup = self._shared_loader_obj.lookup_loader.get("cluster_secret", loader=self._loader, templar=self._templar)
        catalogue = lookup.value(variables, "secrets_catalogue")
        store = lookup.store(variables)
        before = store.rotation()
        step = arguments["step"]
        if step == "begin":
            self._begin(lookup, store, before, arguments["names"], variables)
        elif step == "switch" and before.get("stage") == "announce":
            store.mark({**before, "stage": "switch"})
        elif step == "finish" and before.get("stage") in ("switch", "finish"):
            store.mark({**before, "stage": "finish"})
            for name, entry in catalogue.items():
                if entry.get("rotation") in before["names"]:
                    store.put(name)
        elif step == "end" and before.get("stage") == "finish":
            store.mark(None)
        after = store.rotation()
        result.update(changed=after != before, stage=after.get("stage", ""), names=after.get("names", []))
        return result

    def _begin(
        self,
        lookup: Any,
        store: Any,
        before: dict[str, Any],
        names: list[str],
        variables: dict[str, Any],
    ) -> None:
        catalogue = lookup.value(variables, "secrets_catalogue")
        if before.get("stage") == "finish":
            return
        wanted = before.get("names", names)
        given = [name for name in catalogue if lookup.given(variables, name)]
        if not wanted:  # all that can be
            wanted = sorted({entry["rotation"] for name, entry in catalogue.items() if name not in given})
        chosen = {name: entry for name, entry in catalogue.items() if entry["rotation"] in wanted}
        refused = [f"secrets.{name}" for name in given if name in chosen and names]
        if refused:
            raise AnsibleActionFail(
                f"{', '.join(refused)}: you set this in the inventory, so change it there and run site.yml with"
                " -e preflight_accept_secrets=true. With a login, change that too (secrets.database_login:"
                " airflow_user_2, say): then no task fails."
            )
        if not before:
            store.mark({"stage": "announce" if lookup.announced(catalogue, wanted) else "switch", "names": wanted})
        for name, entry in chosen.items():
            if name not in given:
                login = lookup.run([name], variables, part="former_login")[0] if entry.get("login") else ""
                store.begin(name, str(entry.get("kind", "password")), login)
