#!/usr/bin/env python3
"""Where the lab's cluster is: its hosts, the addresses of the UI and of Flower, and the passwords."""

from __future__ import annotations

import sys

import lab_inventory


def main(scenario: str) -> int:
    """Print the summary.

    Args:
        scenario: The inventory's name.
    """
    inventory = lab_inventory.read_inventory()
    hosts = lab_inventory.addresses(inventory)

    def first(group: str) -> str:
        return hosts[inventory[group]["hosts"][0]]

    print("Hosts:   " + ", ".join(f"{name} {address}" for name, address in hosts.items()))
    print(f"UI:      https://{first('webserver')}:8080  user admin")
    print(f"Flower:  https://{first('flower')}:5555  user admin")
    print(f"Certificates: signed by inventory/{scenario}/certificates/ca.pem, for your browser to trust")
    print(f"Passwords: inventory/{scenario}/secrets/admin_password and flower_password")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
