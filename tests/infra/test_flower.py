"""Flower: a login at the door, and all workers behind it."""

from __future__ import annotations

import time

import pytest
import requests
from conftest import Cluster


@pytest.fixture(scope="module")
def url(cluster: Cluster) -> str:
    return f"https://{cluster.address(cluster.first('flower'))}:5555"


def test_it_asks_for_a_login(url: str, cluster: Cluster) -> None:
    assert requests.get(url, verify=cluster.ca, timeout=10).status_code == 401
    assert requests.get(f"{url}/api/workers", verify=cluster.ca, timeout=10).status_code == 401


def test_it_shows_every_worker_with_its_queues(url: str, cluster: Cluster) -> None:
    login = ("admin", cluster.secret("flower_password"))
    wanted = {f"celery@{worker['name']}": sorted(worker["queues"]) for worker in cluster.workers}
    shown: dict[str, list[str]] = {}
    for _attempt in range(20):  # it learns of a worker by its heartbeats
        answer = requests.get(f"{url}/api/workers?refresh=1", auth=login, verify=cluster.ca, timeout=30)
        shown = {
            name: sorted(queue["name"] for queue in worker.get("active_queues", []))
            for name, worker in answer.json().items()
        }
        if shown == wanted:
            break
        time.sleep(1)
    assert shown == wanted
