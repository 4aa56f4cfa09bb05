#!/usr/bin/env python3
"""What stands in the lab: mode, hosts, queues with those who consume them, and the addresses."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import lab_inventory

VHOST = "airflow_host"
PIDBOX = ".celery.pidbox"
Rows = list[dict[str, Any]]


def ask_broker(address: str, user: str) -> dict[str, Rows]:
    """Return RabbitMQ's own lists of queues, consumers, channels and connections.

    Args:
        address: The broker's host.
        user: The user who may use sudo there.
    """
    questions = {
        "queues": f"list_queues --vhost {VHOST} name consumers messages",
        "consumers": f"list_consumers --vhost {VHOST} queue_name channel_pid",
        "channels": "list_channels pid connection",
        "connections": "list_connections pid name",
    }
    command = "; ".join(
        f"sudo rabbitmqctl --quiet --formatter json {question}; printf '\\036'" for question in questions.values()
    )
    arguments = shlex.split(os.environ.get("ANSIBLE_SSH_COMMON_ARGS", ""))
    answer = subprocess.run(
        ["ssh", *arguments, f"{user}@{address}", f"set -e; {command}"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    parts = answer.stdout.split("\x1e")
    return {name: json.loads(part) for name, part in zip(questions, parts, strict=False)}


def _peer(connection: str, names: Mapping[str, str]) -> str:
    # "192.168.83.131:36572 -> 192.168.83.129:5672"
    address = connection.split(" -> ")[0].rsplit(":", 1)[0]
    return names.get(address, address)


def consumers_of(broker: Mapping[str, Rows], names: Mapping[str, str]) -> dict[str, list[str]]:
    """Return who consumes each queue: the Celery worker's name, else the host of its connection.

    Args:
        broker: What `ask_broker` returned.
        names: Host names by address.
    """
    connection_of = {row["pid"]: row["connection"] for row in broker["channels"]}
    host_of = {row["pid"]: _peer(str(row["name"]), names) for row in broker["connections"]}
    # A worker listens to commands in a queue that carries its name, on the same connection.
    worker_of = {
        connection_of.get(row["channel_pid"]): str(row["queue_name"]).removesuffix(PIDBOX)
        for row in broker["consumers"]
        if str(row["queue_name"]).endswith(PIDBOX)
    }
    result = defaultdict(list)
    for row in broker["consumers"]:
        connection = connection_of.get(row["channel_pid"])
        host = host_of.get(connection, "unknown host")
        worker = worker_of.get(connection)
        result[row["queue_name"]].append(f"{worker} on {host}" if worker else host)
    return {queue: sorted(consumers) for queue, consumers in result.items()}


def own_queues(queues: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the names of the queues for tasks, without those that Celery keeps for itself.

    Args:
        queues: RabbitMQ's list of queues.
    """
    internal = ("celery", "amq.")
    names = (str(row["name"]) for row in queues)
    return sorted(
        name for name in names if not name.startswith(internal) and not name.endswith(PIDBOX) and "pidbox" not in name
    )


def main(scenario: str) -> int:
    """Print the summary.

    Args:
        scenario: The inventory's name.
    """
    inventory = lab_inventory.read_inventory()
    hosts = lab_inventory.addresses(inventory)

    def first(group: str) -> str:
        return str(inventory[group]["hosts"][0])

    broker_host = first("rabbitmq")
    variables = inventory["_meta"]["hostvars"][broker_host]
    broker = ask_broker(hosts[broker_host], str(variables.get("ansible_user", "root")))
    consumers = consumers_of(broker, {address: name for name, address in hosts.items()})
    print(f"Mode:    {variables.get('mode', 'unknown')} ({scenario})")
    print("Hosts:   " + ", ".join(f"{name} {address}" for name, address in hosts.items()))
    print("Queues:")
    for queue in own_queues(broker["queues"]):
        print(f"         {queue}: {', '.join(consumers.get(queue, ['NO CONSUMER']))}")
    print(f"UI:      http://{hosts[first('webserver')]}:8080  user admin")
    print(f"Flower:  http://{hosts[first('flower')]}:5555  user admin")
    print(f"Passwords: inventory/{scenario}/secrets/admin_password and flower_password")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
