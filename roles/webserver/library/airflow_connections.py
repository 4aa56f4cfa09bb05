#!/usr/bin/python
"""Ansible module: the Airflow connections that a playbook owns, over the REST API."""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Mapping, Sequence
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url

DOCUMENTATION = """
module: airflow_connections
short_description: Keep a set of Airflow connections as a playbook says
description:
  - Creates connections, changes those that differ, and removes those that it made earlier and that are
    no longer asked for. What it made is known by its description.
  - Airflow's own command starts a Python for each connection, and fails when one is there already.
options:
  url: {type: str, required: true, description: "Address of the API server, such as https://192.168.83.129:8080."}
  ca_path: {type: path, description: The CA that signed its certificate; by default those of the system.}
  username: {type: str, required: true, description: Name to log in with.}
  password: {type: str, required: true, description: Password to log in with.}
  mark: {type: str, required: true, description: How the descriptions of all connections of this set begin.}
  connections:
    type: list
    elements: dict
    required: true
    description:
      - The set, in the API's words (connection_id, conn_type, description, host, login, port), with
        extra as a dictionary. An entry with nothing but a connection_id stays as it is.
"""
EXAMPLES = """
- airflow_connections:
    url: https://192.168.83.129:8080
    ca_path: /etc/airflow/tls/ca.pem
    username: admin
    password: "{{ password }}"
    mark: "Target VM"
    connections: [{connection_id: vm2, conn_type: ssh, description: Target VM vm2, host: 192.168.83.130}]
"""
RETURN = """
written: {type: list, returned: always, description: Connections that were created or changed.}
removed: {type: list, returned: always, description: Connections that were removed.}
"""

PAGE = 100
FIELDS = ("conn_type", "description", "host", "login", "port")


class Api:
    """The REST API, logged in."""

    def __init__(self, url: str, username: str, password: str, ca_path: str | None = None) -> None:
        """Log in.

        Args:
            url: Address of the API server.
            username: Name to log in with.
            password: Password to log in with.
            ca_path: The CA that signed its certificate.

        Raises:
            urllib.error.URLError: It does not answer, or refuses the login.
        """
        self._ca_path = ca_path
        self._url = url.rstrip("/")
        self._headers = {"Content-Type": "application/json"}
        login = self._request("POST", "/auth/token", {"username": username, "password": password})
        self._headers["Authorization"] = f"Bearer {login['access_token']}"

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body)
        answer = open_url(
            self._url + path,
            method=method,
            data=data,
            headers=self._headers,
            timeout=30,
            use_proxy=False,
            ca_path=self._ca_path,
        )
        found: dict[str, Any] = json.load(answer)
        return found

    def connections(self) -> list[dict[str, Any]]:
        """Return all connections, page by page."""
        found: list[dict[str, Any]] = []
        while True:
            page = self._request("GET", f"/api/v2/connections?limit={PAGE}&offset={len(found)}")
            found += page["connections"]
            if not page["connections"] or len(found) >= page["total_entries"]:
                return found

    def change(self, written: Sequence[Mapping[str, Any]], removed: Sequence[str]) -> list[str]:
        """Write and remove connections in one request.

        Args:
            written: Connections to create or to overwrite, with extra as JSON.
            removed: Names of connections to remove.

        Returns:
            What the API refused, one sentence each.
        """
        actions: list[dict[str, Any]] = []
        if written:
            actions.append({"action": "create", "entities": list(written), "action_on_existence": "overwrite"})
        if removed:
            actions.append({"action": "delete", "entities": list(removed), "action_on_non_existence": "skip"})
        answer = self._request("PATCH", "/api/v2/connections", {"actions": actions})
        return [str(error) for part in answer.values() if part for error in part.get("errors", [])]


def decoded(extra: str | None) -> dict[str, Any]:
    """Read a connection's extra.

    Args:
        extra: JSON, or nothing.

    Returns:
        The dictionary; an empty one for what is none, which then differs from what is wanted.
    """
    try:
        found = json.loads(extra or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def differences(
    present: Sequence[Mapping[str, Any]], wanted: Sequence[Mapping[str, Any]], mark: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """Compare what is there with what is wanted.

    Args:
        present: The API's connections.
        wanted: The set, as the module's option `connections`.
        mark: How the descriptions of the set's connections begin.

    Returns:
        Connections to write, with extra as JSON, and names of those to remove.
    """
    by_name = {str(connection["connection_id"]): connection for connection in present}
    write = []
    for entry in wanted:
        if set(entry) == {"connection_id"}:
            continue
        there = by_name.get(str(entry["connection_id"]), {})
        same = all(there.get(field) == entry.get(field) for field in FIELDS)
        if not same or decoded(there.get("extra")) != entry.get("extra", {}):
            write.append({**entry, "extra": json.dumps(entry.get("extra", {}), sort_keys=True)})
    keep = {str(entry["connection_id"]) for entry in wanted}
    remove = [
        name
        for name, connection in by_name.items()
        if name not in keep and str(connection.get("description") or "").startswith(mark)
    ]
    return write, remove


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "ca_path": {"type": "path"},
            "username": {"type": "str", "required": True},
            "password": {"type": "str", "required": True, "no_log": True},
            "mark": {"type": "str", "required": True},
            "connections": {"type": "list", "elements": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    try:
        api = Api(*(module.params[name] for name in ("url", "username", "password", "ca_path")))
        write, remove = differences(api.connections(), module.params["connections"], module.params["mark"])
        if (write or remove) and not module.check_mode and (refused := api.change(write, remove)):
            module.fail_json(msg=f"The API server refused a connection: {'; '.join(refused)}")
    except urllib.error.HTTPError as error:
        module.fail_json(msg=f"{module.params['url']} answered {error.code}: {error.read().decode(errors='replace')}")
    except OSError as error:
        module.fail_json(msg=f"{module.params['url']} does not answer: {error}")
    names = [str(entry["connection_id"]) for entry in write]
    module.exit_json(changed=bool(write or remove), written=names, removed=remove)


if __name__ == "__main__":
    main()
