"""RabbitMQ: users, listeners, queues and who consumes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import cluster as topology
import pytest
from conftest import Cluster
from testinfra.host import Host

Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def host(cluster: Cluster) -> Host:
    return cluster.host(cluster.first("rabbitmq"))


def test_it_runs_and_starts_at_boot(host: Host) -> None:
    assert host.service("rabbitmq-server").is_running
    assert host.service("rabbitmq-server").is_enabled


def test_guest_is_gone(broker: Ask) -> None:
    assert "guest" not in {entry["user"] for entry in broker("list_users")}


def test_users_work_in_their_virtual_host_alone(broker: Ask) -> None:
    for user in {entry["user"] for entry in broker("list_users")}:
        assert [entry["vhost"] for entry in broker("list_user_permissions", user)] == ["airflow_host"]


def test_nothing_makes_queues_for_delayed_tasks(broker: Ask) -> None:
    names = [queue["name"] for queue in broker("list_queues", "-p", "airflow_host", "name")]
    assert [name for name in names if name.startswith("celery_delayed")] == []


def test_the_management_api_is_not_on_the_network(host: Host, cluster: Cluster) -> None:
    assert host.socket("tcp://127.0.0.1:15672").is_listening
    assert not host.socket(f"tcp://{cluster.address(cluster.first('rabbitmq'))}:15672").is_listening


def test_it_waits_longer_than_the_longest_task(host: Host) -> None:
    milliseconds = host.run("rabbitmqctl --quiet eval 'application:get_env(rabbit, consumer_timeout).'").stdout
    longest = int(host.run("sed -n 's/^default_task_execution_timeout = //p' /etc/airflow/airflow.cfg").stdout)
    assert int(milliseconds.strip("{}\n").partition(",")[2]) > longest * 1000


def test_contract_queues_are_durable_quorum_queues(broker: Ask, cluster: Cluster) -> None:
    listed = broker("list_queues", "-p", "airflow_host", "name", "durable", "type")
    queues = {queue["name"]: (queue["durable"], queue["type"]) for queue in listed}
    for name in topology.queues(cluster.workers):
        assert queues[name][0] is True, name
        assert "quorum" in queues[name][1], name


def test_every_queue_has_exactly_its_consumers(broker: Ask, cluster: Cluster) -> None:
    consumers = Counter(entry["queue_name"] for entry in broker("list_consumers", "-p", "airflow_host", "queue_name"))
    contract = {name: len(workers) for name, workers in topology.queues(cluster.workers).items()}
    assert {name: consumers[name] for name in contract} == contract
