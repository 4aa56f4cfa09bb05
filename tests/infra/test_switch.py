"""One variable switches a cluster that is in use, and back: every task runs exactly once.

With ``--figures FILE`` no run is killed on the way, and what a switch takes is appended to the file: a line of
JSON for each, which ``benchmarks/switch.py`` reads.
"""

from __future__ import annotations

import json
import pathlib
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import airflow_api
import cluster as topology
import pytest
from conftest import Cluster, SiteRun, changes, killed, snapshot
from consumers import WatchedQueues, watched

#: Each task leaves a line on its VM before and after its work, so that a second try shows.
PROBE = """
import datetime
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG
from remote_tasks import RemoteCommandOperator, load_targets

NOTE = "echo 'begin {{ run_id }} {{ task.task_id }}' >> /tmp/probe_switch; sleep %s; " \\
       "echo 'end {{ run_id }} {{ task.task_id }}' >> /tmp/probe_switch"
start = datetime.datetime(2024, 5, 1, tzinfo=datetime.timezone.utc)
with DAG("probe_switch", schedule=None, start_date=start, max_active_tasks=500):
    for vm in load_targets():
        for number in range(3):
            RemoteCommandOperator(task_id=f"long_{vm.name}_{number}", vm=vm.name, command=NOTE % 60, priority_weight=10)
        for number in range(26):
            RemoteCommandOperator(task_id=f"short_{vm.name}_{number}", vm=vm.name, command=NOTE % 1)
    for number in range(12):
        BashOperator(task_id=f"anywhere_{number}", bash_command="sleep 2")
"""
TASKS = 2 * (3 + 26) + 12


@pytest.fixture(scope="module", autouse=True)
def from_celery_mode(cluster: Cluster) -> None:
    if cluster.mode != "celery":
        pytest.skip("a switch there and back begins in celery mode")


@pytest.fixture(scope="module")
def arguments(project: pathlib.Path, tmp_path_factory: pytest.TempPathFactory, site: SiteRun) -> Iterator[list[str]]:
    """What a run needs to deliver the probe beside the shipped DAGs; at the end the cluster is as it was."""
    dags = tmp_path_factory.mktemp("switch") / "dags"
    shutil.copytree(project / "dags", dags, ignore=shutil.ignore_patterns("__pycache__"))
    (dags / "probe_switch.py").write_text(PROBE)
    source = ["--extra-vars", json.dumps({"airflow_dags_source": str(dags)})]
    try:
        site(*source, playbook="playbooks/deliver_dags.yml")
        yield source
    finally:
        site()


def account(api: airflow_api.AirflowApi, cluster: Cluster, run_id: str) -> None:
    """Each task succeeded by its first try, and did its work once; its log can be read."""
    api.wait_for_run("probe_switch", run_id, seconds=420)
    tasks = api.task_instances("probe_switch", run_id)
    assert Counter(task.state for task in tasks) == {"success": TASKS}
    assert {task.try_number for task in tasks} == {1}
    for target in cluster.targets:
        lines = cluster.host(target["name"]).run(f"grep -F '{run_id}' /tmp/probe_switch").stdout.splitlines()
        mine = [task.task_id for task in tasks if f"_{target['name']}_" in task.task_id]
        assert Counter(lines) == {f"{when} {run_id} {task}": 1 for when in ("begin", "end") for task in mine}
    for task in tasks[::10]:
        log: list[dict[str, Any]] = api.log("probe_switch", run_id, task)
        assert len(log) > 5, f"{task.label}: no log from {task.hostname}"


def under_way(api: airflow_api.AirflowApi, run_id: str) -> int:
    return sum(task.state != "success" for task in api.task_instances("probe_switch", run_id))


def trigger(api: airflow_api.AirflowApi) -> str:
    api.wait_for_dag("probe_switch")
    api.unpause("probe_switch")
    run_id = api.trigger("probe_switch")
    time.sleep(12)
    assert under_way(api, run_id) >= 40
    return run_id


def states(api: airflow_api.AirflowApi, run_id: str) -> dict[str, int]:
    return dict(Counter(str(task.state) for task in api.task_instances("probe_switch", run_id)))


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


def test_to_ssh_mode_under_load_and_killed_on_the_way(
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
            for task in ("Wait until units of another layout have ended", "Remove what the services wrote and ran"):
                killed(cluster, task, *arguments, "--extra-vars", "mode=ssh")
        run = site(*arguments, "--extra-vars", "mode=ssh")
        note(figures, "ssh", began, before, watch)
    assert "switches the cluster from mode celery to mode ssh" in run.stdout
    account(api, cluster, run_id)
    never_two(cluster, watch)
    for target in cluster.targets:
        host = cluster.host(target["name"])
        assert not host.file("/opt/airflow").exists
        bare = project / ".lab" / cluster.inventory_name / "before" / target["name"]
        if bare.exists():
            changed = set(snapshot(host)) ^ set(bare.read_text().splitlines())
            paths = {line.split(" ", 1)[0] for line in changed}
            # Copies that user management makes of its files, and the one line.
            ours = {path for path in paths if not path.startswith("/etc/") or not path.endswith("-")}
            assert ours <= {"/home/rocky", "/home/rocky/.ssh", "/home/rocky/.ssh/authorized_keys"}
    again = site(*arguments, "--extra-vars", "mode=ssh")
    assert changes(again) == []


def test_back_to_celery_mode_under_load(
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
