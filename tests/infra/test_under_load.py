"""A cluster in use: its mode is switched and switched back, VMs leave and join, and every task runs exactly once.

With ``--figures FILE`` no run is killed on the way, and what a switch takes is appended to the file: a line of
JSON for each, which ``benchmarks/switch.py`` reads.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import airflow_api
import cluster as topology
import pytest
import requests
from conftest import Cluster, SiteRun, calls, changes, killed, snapshot
from consumers import WatchedQueues, watched
from testinfra.host import Host

#: Each task leaves a line on its VM before and after its work, so that a second try shows.
PROBE = """
import datetime
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG
from remote_tasks import RemoteCommandOperator, load_targets

NOTE = "echo 'begin {{ run_id }} {{ task.task_id }}' >> /tmp/probe_load; sleep %s; " \\
       "echo 'end {{ run_id }} {{ task.task_id }}' >> /tmp/probe_load"
start = datetime.datetime(2024, 5, 1, tzinfo=datetime.timezone.utc)
vms = list(load_targets())
for dag_id, chosen in {"probe_load": vms, "probe_load_on_the_first": vms[:1]}.items():
    with DAG(dag_id, schedule=None, start_date=start, max_active_tasks=500):
        for vm in chosen:
            for number in range(3):
                RemoteCommandOperator(
                    task_id=f"long_{vm.name}_{number}", vm=vm.name, command=NOTE % 60, priority_weight=10
                )
            for number in range(26):
                RemoteCommandOperator(task_id=f"short_{vm.name}_{number}", vm=vm.name, command=NOTE % 1)
        for number in range(12):
            BashOperator(task_id=f"anywhere_{number}", bash_command="sleep 2")
"""
ON_ALL = "probe_load"
ON_THE_FIRST = "probe_load_on_the_first"
TASKS_OF_A_VM = 3 + 26
TASKS_ANYWHERE = 12


@pytest.fixture(scope="module", autouse=True)
def from_celery_mode(cluster: Cluster) -> None:
    if cluster.mode != "celery":
        pytest.skip("begins in celery mode; in ssh mode VMs leave and join by test_lifecycle.py")


@pytest.fixture(scope="module")
def arguments(project: pathlib.Path, tmp_path_factory: pytest.TempPathFactory, site: SiteRun) -> Iterator[list[str]]:
    """What a run needs to deliver the probe beside the shipped DAGs; at the end the cluster is as it was."""
    dags = tmp_path_factory.mktemp("load") / "dags"
    shutil.copytree(project / "dags", dags, ignore=shutil.ignore_patterns("__pycache__"))
    (dags / "probe_load.py").write_text(PROBE)
    source = ["--extra-vars", json.dumps({"airflow_dags_source": str(dags)})]
    try:
        site(*source, playbook="playbooks/deliver_dags.yml")
        yield source
    finally:
        site()


def account(api: airflow_api.AirflowApi, cluster: Cluster, run_id: str, dag: str = ON_ALL) -> None:
    """Each task succeeded by its first try, and did its work once; its log can be read."""
    api.wait_for_run(dag, run_id, seconds=420)
    vms = [str(target["name"]) for target in cluster.targets][: None if dag == ON_ALL else 1]
    tasks = api.task_instances(dag, run_id)
    assert Counter(task.state for task in tasks) == {"success": len(vms) * TASKS_OF_A_VM + TASKS_ANYWHERE}
    assert {task.try_number for task in tasks} == {1}
    for vm in vms:
        lines = cluster.host(vm).run(f"grep -F '{run_id}' /tmp/probe_load").stdout.splitlines()
        mine = [task.task_id for task in tasks if f"_{vm}_" in task.task_id]
        assert Counter(lines) == {f"{when} {run_id} {task}": 1 for when in ("begin", "end") for task in mine}
    for task in tasks[::10]:
        log: list[dict[str, Any]] = api.log(dag, run_id, task)
        assert len(log) > 5, f"{task.label}: no log from {task.hostname}"


def trigger(api: airflow_api.AirflowApi, dag: str = ON_ALL) -> str:
    api.wait_for_dag(dag)
    api.unpause(dag)
    run_id = api.trigger(dag)
    time.sleep(12)
    assert sum(count for state, count in states(api, run_id, dag).items() if state != "success") >= 20
    return run_id


def states(api: airflow_api.AirflowApi, run_id: str, dag: str = ON_ALL) -> dict[str, int]:
    return dict(Counter(str(task.state) for task in api.task_instances(dag, run_id)))


def starts(hosts: Sequence[Host], pattern: str) -> list[str]:
    """When each unit of a pattern was started, on all hosts."""
    show = f"systemctl show --property=ExecMainStartTimestampMonotonic --value '{pattern}'"
    return [value for host in hosts for value in host.check_output(show).split()]


def bare(cluster: Cluster, project: pathlib.Path, name: str, *but: str) -> None:
    """A VM is as it was before it became a part of the cluster, but for these paths.

    In the lab alone, which has taken down what the VM held; copies that user management makes of its files are
    left out.
    """
    host = cluster.host(name)
    assert not host.file("/opt/airflow").exists
    before = project / ".lab" / cluster.inventory_name / "before" / name
    if before.exists():
        changed = set(snapshot(host)) ^ set(before.read_text().splitlines())
        paths = {line.split(" ", 1)[0] for line in changed}
        assert {path for path in paths if not path.startswith("/etc/") or not path.endswith("-")} <= set(but)


def consumers_of(cluster: Cluster, mode: str) -> dict[str, int]:
    """How many consumers each queue has in a mode."""
    laid_out = topology.workers(cluster.targets, mode, cluster.first("scheduler"))
    return {queue: len(workers) for queue, workers in topology.queues(laid_out).items()}


def never_two(cluster: Cluster, watch: WatchedQueues) -> None:
    """No queue of a VM had two workers; each was watched all the time, and is served at the end."""
    assert len(watch.samples) > 100
    for target in cluster.targets:
        counts = watch.counts(target["queue"])
        assert set(counts) == {0, 1}
        assert counts[-1] == 1


def test_tasks_outlive_an_api_server_that_is_away(
    cluster: Cluster, api: airflow_api.AirflowApi, api_url: str, arguments: list[str]
) -> None:
    """A restart takes some ten seconds, and this is more."""
    main = cluster.host(cluster.first("webserver"))
    run_id = trigger(api)
    try:
        main.run("systemctl stop airflow-webserver")
        time.sleep(25)
    finally:
        main.run("systemctl start airflow-webserver")
        for _ in range(90):
            with contextlib.suppress(requests.ConnectionError):
                requests.get(f"{api_url}/api/v2/version", verify=cluster.ca, timeout=10)
                break
            time.sleep(1)
    account(api, cluster, run_id)


def test_a_vm_is_drained_and_resumed_under_load(
    cluster: Cluster, api: airflow_api.AirflowApi, site: SiteRun, arguments: list[str]
) -> None:
    vm = cluster.targets[-1]
    run_id = trigger(api)
    try:
        run = site("--extra-vars", f"vm={vm['name']}", playbook="playbooks/drain_vm.yml")
        said = " ".join(run.stdout.split())
        assert f"{vm['name']} runs no tasks, and " in said
        assert f"{vm['name']} runs no tasks, and 0 wait for it" not in said
        running = [task for task in api.task_instances(ON_ALL, run_id) if task.state == "running"]
        assert vm["queue"] not in {task.queue for task in running}
    finally:
        site("--extra-vars", f"vm={vm['name']}", playbook="playbooks/resume_vm.yml")
    account(api, cluster, run_id)


def test_a_vm_leaves_and_joins_under_load(
    cluster: Cluster, api: airflow_api.AirflowApi, site: SiteRun, arguments: list[str], project: pathlib.Path
) -> None:
    vm = cluster.targets[-1]["name"]
    others = [cluster.host(name) for name in cluster.members["airflow"] if name != vm]
    before = starts(others, "airflow-*.service")
    try:
        run_id = trigger(api, ON_THE_FIRST)
        site(*arguments, "--extra-vars", f"vm={vm} yes=true", playbook="playbooks/remove_vm.yml")
        account(api, cluster, run_id, ON_THE_FIRST)
        bare(cluster, project, vm)
    finally:
        run_id = trigger(api, ON_THE_FIRST)
        site(*arguments, "--limit", f"{vm},{cluster.first('scheduler')}")
    assert starts(others, "airflow-*.service") == before
    # Each daemon in its turn, and those tasks are still under way.
    site(playbook="playbooks/restart.yml")
    account(api, cluster, run_id, ON_THE_FIRST)
    assert not set(starts(others, "airflow-*.service")) & set(before)


def test_a_vm_that_is_switched_off_while_it_is_drained(
    cluster: Cluster, site: SiteRun, arguments: list[str], main: Host
) -> None:
    vm = cluster.targets[-1]
    container = f"airflow-lab-{cluster.inventory_name}-{vm['name']}"
    if not shutil.which("docker") or subprocess.run(["docker", "inspect", container], capture_output=True).returncode:
        pytest.skip("switches a VM of the lab off, and on again")
    argument = ["--extra-vars", f"vm={vm['name']}"]
    note = f"/home/{vm['user']}/switched_off"
    # Four slots, each with a task; the worker has taken four more, and two are in the queue.
    calls(cluster, vm["name"], f"sleep 25; echo done >> {note}", count=10, timeout=0)
    drain = subprocess.Popen(
        ["ansible-playbook", "playbooks/drain_vm.yml", *argument],
        cwd=cluster.project,
        # A host that is silent is to be noticed soon.
        env={
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "ANSIBLE_TIMEOUT": "5",
            "ANSIBLE_SSH_ARGS": "-o ControlMaster=auto -o ControlPersist=60s -o ServerAliveInterval=3",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert drain.stdout is not None
    try:
        for line in drain.stdout:
            if "takes no new tasks" in line:
                break
        time.sleep(5)
        subprocess.run(["docker", "kill", container], check=True, capture_output=True)
        said = " ".join(drain.stdout.read().split())
        assert drain.wait() != 0
        assert f"{vm['name']} cannot be reached any more, and the tasks that it ran had not ended" in said
        assert f"playbooks/remove_vm.yml -e vm={vm['name']} -e vm_is_gone=true" in said
    finally:
        drain.stdout.close()
        drain.kill()
        drain.wait()
        subprocess.run(["docker", "start", container], check=True, capture_output=True)
        back_again(cluster.host(vm["name"]))
        # The first gives a VM without a worker the rest of the drain; its queue keeps what waits.
        site(*argument, playbook="playbooks/drain_vm.yml")
        site(*argument, playbook="playbooks/resume_vm.yml")
    # Those that ran are lost, and what the worker had taken in advance comes back when the broker misses it.
    for _ in range(240):
        lines = cluster.host(vm["name"]).run(f"cat {note}").stdout.split()
        if len(lines) >= 6:
            break
        time.sleep(1)
    assert calls(cluster, vm["name"], "hostname", timeout=60) == [vm["name"]]
    cluster.host(vm["name"]).run(f"rm -f {note}")
    assert set(lines) == {"done"}
    assert 6 <= len(lines) <= 10


def back_again(host: Host) -> None:
    for _ in range(60):
        try:
            if host.run("systemctl is-system-running --wait").stdout.strip() == "running":
                return
        except RuntimeError:  # how testinfra says that ssh has failed
            pass
        time.sleep(1)
    raise AssertionError("the VM did not come back")


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> pathlib.Path | None:
    return request.config.getoption("figures")  # type: ignore[no-any-return]


def note(figures: pathlib.Path | None, to: str, began: float, before: dict[str, int], watch: WatchedQueues) -> None:
    if figures is None:
        return
    entry = {
        "to": to,
        "seconds": round(time.monotonic() - began, 1),
        "tasks_before": before,
        "without_consumer": {queue: round(watch.longest_gap(queue), 1) for queue in watch.queues},
    }
    with figures.open("a") as lines:
        print(json.dumps(entry), file=lines)


def test_switch_to_ssh_mode_under_load_and_killed_on_the_way(
    cluster: Cluster,
    api: airflow_api.AirflowApi,
    site: SiteRun,
    arguments: list[str],
    project: pathlib.Path,
    figures: pathlib.Path | None,
) -> None:
    run_id = trigger(api)
    before = states(api, run_id)
    with watched(cluster, consumers_of(cluster, "ssh")) as watch:
        began = time.monotonic()
        if figures is None:
            # While tasks are waited for, and while what was a worker is taken apart.
            for task in ("Wait until the units have ended", "Remove what the services wrote and ran"):
                killed(cluster, task, *arguments, "--extra-vars", "mode=ssh")
        run = site(*arguments, "--extra-vars", "mode=ssh")
        note(figures, "ssh", began, before, watch)
    assert "switches the cluster from mode celery to mode ssh" in run.stdout
    account(api, cluster, run_id)
    never_two(cluster, watch)
    for target in cluster.targets:
        home = f"/home/{target['user']}"
        bare(cluster, project, target["name"], home, f"{home}/.ssh", f"{home}/.ssh/authorized_keys")
    again = site(*arguments, "--extra-vars", "mode=ssh")
    assert changes(again) == []


def test_switch_back_to_celery_mode_under_load(
    cluster: Cluster,
    api: airflow_api.AirflowApi,
    site: SiteRun,
    arguments: list[str],
    main: Any,
    figures: pathlib.Path | None,
) -> None:
    run_id = trigger(api)
    before = states(api, run_id)
    with watched(cluster, consumers_of(cluster, "celery")) as watch:
        began = time.monotonic()
        run = site(*arguments)
        note(figures, "celery", began, before, watch)
    assert "switches the cluster from mode ssh to mode celery" in run.stdout
    account(api, cluster, run_id)
    never_two(cluster, watch)
    units = main.run("systemctl list-unit-files 'airflow-worker-*' --no-legend").stdout
    assert [line.split()[0] for line in units.splitlines()] == ["airflow-worker-general.service"]


def test_a_switch_of_a_part_is_refused(cluster: Cluster, site: SiteRun) -> None:
    refused = site("--limit", cluster.first("scheduler"), "--extra-vars", "mode=ssh", check=False)
    assert refused.returncode != 0
    assert "Run without --limit" in " ".join(refused.stdout.split())
    assert "changed=0" in refused.stdout.split("PLAY RECAP")[1]
