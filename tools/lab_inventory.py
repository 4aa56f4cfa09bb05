#!/usr/bin/env python3
"""What the lab asks of an inventory: who stands where, and the same hosts in another subnet."""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
from typing import Any

# Where `./lab` installs Ansible; it is found there before PATH leads to it.
_VENV_BIN = pathlib.Path(__file__).resolve().parent.parent / ".lab" / "venv" / "bin"


def read_inventory(*sources: str) -> dict[str, Any]:
    """Return an inventory as `ansible-inventory --list` gives it.

    Args:
        sources: Inventory files or directories, as for ansible-playbook's `-i`; without any, those
            that Ansible is configured with.
    """
    program = _VENV_BIN / "ansible-inventory"
    command = [str(program) if program.exists() else "ansible-inventory", "--list"]
    for source in sources:
        command += ["--inventory", source]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    inventory: dict[str, Any] = json.loads(result.stdout)
    return inventory


def addresses(inventory: dict[str, Any]) -> dict[str, str]:
    """Return each host's address.

    Args:
        inventory: What `read_inventory` returned.
    """
    hosts: dict[str, dict[str, Any]] = inventory["_meta"]["hostvars"]
    return {name: str(variables.get("ansible_host", name)) for name, variables in hosts.items()}


def layer(inventory: dict[str, Any], subnet: str) -> dict[str, Any]:
    """Return an inventory that moves the hosts into another subnet, and else says nothing.

    Args:
        inventory: What `read_inventory` returned.
        subnet: The first three octets.
    """
    moved = {name: f"{subnet}.{address.rsplit('.', 1)[1]}" for name, address in addresses(inventory).items()}
    changed = {
        name: {"ansible_host": address} for name, address in moved.items() if address != addresses(inventory)[name]
    }
    return {"all": {"hosts": changed}} if changed else {"all": {}}


def main(arguments: list[str]) -> int:
    """Run the command line.

    Args:
        arguments: Without the program's name.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    layer_parser = commands.add_parser("layer", help="print an inventory for another subnet")
    layer_parser.add_argument("inventory")
    layer_parser.add_argument("subnet", help="first three octets, such as 192.168.90")
    address_parser = commands.add_parser("address", help="print the address of a group's first host")
    address_parser.add_argument("group")
    options = parser.parse_args(arguments)
    if options.command == "address":
        inventory = read_inventory()
        print(addresses(inventory)[inventory[options.group]["hosts"][0]])
    else:
        # JSON is YAML, and needs nothing beyond Python's own library.
        print(json.dumps(layer(read_inventory(options.inventory), options.subnet), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
