"""playbooks/status.yml: what it shows of a running cluster, and what it says when something is wrong."""

from __future__ import annotations

import json
import re
import subprocess
import time
from typing import Any

import airflow_api
import cluster as topology
import pytest
from conftest import Cluster, SiteRun
from testinfra.host import Host

#: Its first tasks are one for each target VM, in the VM's own queue.
DAG = "remote_vm_execution"


def shown(run: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The JSON in the output, taken as the playbook's head says."""
    block = re.search(r"^ {8}\{\n.*?^ {8}\}$", run.stdout, re.MULTILINE | re.DOTALL)
    assert block, run.stdout + run.stderr
    state: dict[str, Any] = json.loads(block[0])
    return state


@pytest.fixture(scope="module")
def state(site: SiteRun) -> dict[str, Any]:
    return shown(site("-e", "output=json", playbook="playbooks/status.yml"))


def test_a_healthy_cluster_is_shown_and_nothing_is_changed(site: SiteRun, cluster: Cluster) -> None:
    run = site(playbook="playbooks/status.yml")
    assert re.search(rf"^ +mode +{cluster.mode}\n +state +healthy$", run.stdout, re.MULTILINE), run.stdout
    for queue in topology.queues(cluster.workers):
        assert re.search(rf"^ +{queue} +\d+ +\d+ +(\d+) of \1 +", run.stdout, re.MULTILINE), run.stdout
    recap = run.stdout.split("PLAY RECAP")[1]
    assert len(re.findall("changed=0 ", recap)) == len(cluster.members["cluster"])


def test_every_unit_runs(state: dict[str, Any], cluster: Cluster) -> None:
    states = {(row["host"], row["unit"]): row["state"] for row in state["units"]}
    assert set(states.values()) == {"active"}
    airflow = {
        (host, unit)
        for host in cluster.members["cluster"]
        for unit in topology.unit_names(host, cluster.groups, cluster.workers)
    }
    assert airflow < set(states)
    assert (cluster.first("rabbitmq"), "rabbitmq-server") in states
    database = [unit for host, unit in states if host == cluster.first("postgresql") and unit.startswith("postgresql")]
    assert len(database) == 1


def test_every_queue_and_worker_of_the_contract(state: dict[str, Any], cluster: Cluster) -> None:
    contract = {queue: len(workers) for queue, workers in topology.queues(cluster.workers).items()}
    assert {row["queue"]: row["consumers"] for row in state["queues"] if row["expected"]} == contract
    slots = {row["worker"]: row["slots"] for row in state["workers"]}
    assert set(slots) == {worker["name"] for worker in cluster.workers}
    assert all(slots.values())


def test_every_host_and_daemon(state: dict[str, Any], cluster: Cluster) -> None:
    hosts = {row["host"]: row for row in state["hosts"]}
    assert set(hosts) == set(cluster.members["cluster"])
    environment = cluster.host(cluster.first("scheduler")).file("/opt/airflow/current").linked_to.rpartition("env-")[2]
    assert {name for name, row in hosts.items() if row["environment"] == environment} == set(cluster.members["airflow"])
    assert all(row["disks"] and abs(row["clock_offset"]) < 60 for row in hosts.values())
    assert set(state["daemons"].values()) == {"healthy"}
    assert state["broker"] == {"answers": True, "error": "", "alarms": []}
    assert state["targets"] == {vm["name"]: {"error": ""} for vm in cluster.targets}


def test_no_secret_is_shown(site: SiteRun, cluster: Cluster) -> None:
    said = site("-e", "output=json", "-vv", playbook="playbooks/status.yml").stdout
    for name in ("rabbitmq_admin_password", "broker_password", "database_password", "admin_password"):
        assert cluster.secret(name) not in said


def test_a_unit_that_is_stopped_is_named_with_its_host(site: SiteRun, cluster: Cluster) -> None:
    name = cluster.first("flower")
    host = cluster.host(name)
    try:
        assert host.run("systemctl stop airflow-flower").rc == 0
        run = site("-e", "output=json", playbook="playbooks/status.yml", check=False)
    finally:
        host.run("systemctl start airflow-flower")
    assert run.returncode != 0
    (problem,) = shown(run)["problems"]
    assert problem.startswith(f"airflow-flower on {name}: inactive for ")
    assert problem in " ".join(run.stdout.split("FAILED!")[1].split())


def test_a_worker_that_is_stopped_is_missed_in_its_queues_where_tasks_wait(
    site: SiteRun, cluster: Cluster, api: airflow_api.AirflowApi, main: Host
) -> None:
    vm = cluster.targets[-1]
    worker = next(worker for worker in cluster.workers if worker["name"] == vm["name"])
    host = cluster.host(worker["host"])
    api.wait_for_dag(DAG)
    api.unpause(DAG)
    try:
        assert host.run(f"systemctl stop {worker['unit']}").rc == 0
        run_id = api.trigger(DAG)
        wait_until_queued(api, run_id, vm["queue"], main)
        run = site("-e", "output=json", playbook="playbooks/status.yml", check=False)
    finally:
        host.run(f"systemctl start {worker['unit']}")
        wait_until_healthy(site)
    assert run.returncode != 0
    state = shown(run)
    said = "\n".join(state["problems"])
    assert f"{worker['unit']} on {worker['host']}: inactive for " in said
    for queue in worker["queues"]:
        assert f"queue {queue}: " in said
    assert [row["answers"] for row in state["workers"] if row["worker"] == worker["name"]] == [False]
    queue = next(row for row in state["queues"] if row["queue"] == vm["queue"])
    assert queue["ready"] >= 1
    assert 0 < queue["oldest_waits_seconds"] < 120
    assert api.wait_for_run(DAG, run_id) == "success"


def test_a_host_that_is_down_is_named_and_the_others_are_shown(site: SiteRun, cluster: Cluster) -> None:
    """By a port that nobody listens at: no host is harmed."""
    name = cluster.targets[-1]["name"]
    ports = {host: own.get("ansible_port", 22) for host, own in cluster.variables.items()} | {name: 1}
    arguments = json.dumps({"ports": ports, "ansible_port": "{{ ports[inventory_hostname] }}", "output": "json"})
    run = site("-e", arguments, playbook="playbooks/status.yml", check=False)
    assert run.returncode != 0
    state = shown(run)
    assert state["problems"][0].startswith(f"{name} cannot be reached: ")
    assert [row["host"] for row in state["hosts"] if not row["reached"]] == [name]
    assert {row["state"] for row in state["units"] if row["host"] != name} == {"active"}


def wait_until_queued(api: airflow_api.AirflowApi, run_id: str, queue: str, main: Host) -> None:
    """In Airflow's database, and a moment later at the broker."""
    for _ in range(60):
        said = json.loads(main.check_output(f"remote-tasks queues --json {queue}"))
        tasks = api.task_instances(DAG, run_id)
        if said[queue]["waiting"] and any(task.state == "queued" and task.queue == queue for task in tasks):
            return
        time.sleep(0.5)
    raise AssertionError(f"no task came to {queue}")


def wait_until_healthy(site: SiteRun) -> None:
    """A stopped worker's consumers come back some seconds after its start."""
    for _ in range(10):
        if site(playbook="playbooks/status.yml", check=False).returncode == 0:
            return
        time.sleep(2)
    raise AssertionError("the cluster did not become healthy again")
