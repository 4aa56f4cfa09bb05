#!/usr/bin/env python3
"""Airflow's own tasks with our settings and with Airflow's: dispatch, throughput, and what an idle cluster costs.

``./lab bench tasks``, on a running cluster. In each mode, and with both settings on the same VMs:

- dispatch: from the trigger by REST of a run with one task, ``hostname`` on a VM, until the API shows its success;
- throughput, in mode celery: tasks that do nothing, one after the other in the four slots of one worker;
- the load of the metadata database while nothing runs.

The baseline is ``baselines/stock_settings.yml``. Afterwards the cluster has its mode, its settings and its DAGs again.
"""

from __future__ import annotations

import argparse
import datetime
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import measured, running

STOCK = running.ROOT / "benchmarks/baselines" / "stock_settings.yml"
DISPATCH = "benchmark_dispatch"
NOTHING = "benchmark_nothing"
SLOTS = 4
#: Seconds between two looks at a run; the same for both sides.
LOOK = 0.02
#: What a run takes longer in mode ssh.
SSH = (
    "each task of Airflow's is a process with an SSH connection of its own, whose handshake and first session come "
    "before the command"
)

DAGS = """
import datetime

from airflow.sdk import dag, task
from remote_tasks import RemoteCommandOperator

START = datetime.datetime(2024, 5, 1, tzinfo=datetime.timezone.utc)


@dag(dag_id=DISPATCH, schedule=None, start_date=START)
def dispatch():
    RemoteCommandOperator(task_id="hostname", vm=VM, command="hostname")


@dag(dag_id=NOTHING, schedule=None, start_date=START, max_active_tasks=1000)
def nothing():
    @task(queue=QUEUE)
    def do(number: int) -> None:
        pass

    do.expand(number=list(range(COUNT)))


dispatch()
nothing()
"""

DEFAULTS = """
import json
from airflow.configuration import retrieve_configuration_description
described = retrieve_configuration_description(include_providers=True)
print(json.dumps([described.get(section, {}).get("options", {}).get(option, {}).get("default")
                  for section, option in OPTIONS]))
"""


def rate(started: Sequence[datetime.datetime], slots: int) -> float:
    """Return the tasks a minute that a worker with full slots gets through.

    A slot counts as taken from one task's start to the next one's: what a worker does after a task is part of it.

    Args:
        started: When each task started.
        slots: How many run at a time. As many tasks start before the rate is a steady one.

    Raises:
        ValueError: There are too few tasks for that.
    """
    if len(started) <= slots:
        message = f"{len(started)} tasks do not fill {slots} slots twice"
        raise ValueError(message)
    ordered = sorted(started)
    seconds = (ordered[-1] - ordered[slots - 1]).total_seconds()
    return 60 * (len(ordered) - slots) / seconds


def differing(stock: Mapping[str, Mapping[str, Any]], defaults: Mapping[tuple[str, str], str | None]) -> list[str]:
    """Name the settings that are not what Airflow has by itself.

    Args:
        stock: Section to option to value, as the baseline has them.
        defaults: What Airflow's own description says by (section, option); None for what it does not know, which is
            off.

    Returns:
        A line for each that differs.
    """
    wrong = []
    for (section, option), default in defaults.items():
        mine = stock[section][option]
        same = mine is False if default is None else float(mine) == float(default)
        if not same:
            wrong.append(f"[{section}] {option} is {mine} here, and {default} in Airflow")
    return wrong


def read_stock(cluster: running.Cluster) -> dict[str, Any]:
    """Return the baseline's variables, with which all is Airflow's own.

    Args:
        cluster: Where an Airflow is that can be asked.

    Raises:
        running.BenchmarkError: They are not.
    """
    variables: dict[str, Any] = yaml.safe_load(STOCK.read_text())
    stock = variables["airflow_config"]
    options = [(section, option) for section, values in stock.items() for option in values]
    defaults = dict(zip(options, cluster.python(DEFAULTS, {"OPTIONS": options}), strict=True))
    if wrong := differing(stock, defaults):
        message = f"{STOCK.name} is not what this Airflow has by itself: {'; '.join(wrong)}"
        raise running.BenchmarkError(message)
    return variables


def dispatched(api: Any, rounds: int) -> list[float]:
    """Return the seconds from a run's trigger until the API shows its success.

    Args:
        api: The REST API.
        rounds: How many runs.

    Raises:
        running.BenchmarkError: A run failed, or took a minute.
    """
    figures = []
    for _ in range(rounds):
        began = time.monotonic()
        run_id = api.trigger(DISPATCH)
        while (state := api.run_state(DISPATCH, run_id)) != "success":
            if state == "failed" or time.monotonic() - began > 60:
                message = f"{DISPATCH}, {run_id}: {state} after {time.monotonic() - began:.0f} s"
                raise running.BenchmarkError(message)
            time.sleep(LOOK)
        figures.append(time.monotonic() - began)
    return figures


def throughput(cluster: running.Cluster, api: Any, rounds: int) -> tuple[list[float], list[float]]:
    """Measure the tasks a minute of one worker.

    Args:
        cluster: The cluster.
        api: Its REST API.
        rounds: How many runs.

    Returns:
        The tasks a minute, and for how many seconds one core works for a task, wherever it does; one figure a run.

    Raises:
        running.BenchmarkError: A run failed.
    """
    figures, busy = [], []
    for _ in range(rounds):
        before = cluster.busy()
        run_id = api.trigger(NOTHING)
        if (state := api.wait_for_run(NOTHING, run_id)) != "success":
            message = f"{NOTHING}, {run_id}: {state}"
            raise running.BenchmarkError(message)
        path = f"dags/{NOTHING}/dagRuns/{run_id}/taskInstances"
        tasks = api.request("GET", path, params={"limit": 100})["task_instances"]
        busy.append((cluster.busy() - before) / len(tasks))
        figures.append(rate([datetime.datetime.fromisoformat(task["start_date"]) for task in tasks], SLOTS))
    return figures, busy


def transactions(cluster: running.Cluster, rounds: int, seconds: float) -> list[float]:
    """Return the transactions a second in the metadata database, one figure a round.

    Args:
        cluster: The cluster; nothing runs on it.
        rounds: How often to look.
        seconds: How long.
    """
    count = (
        "SELECT xact_commit + xact_rollback, extract(epoch FROM clock_timestamp()) FROM pg_stat_database "
        "WHERE datname = 'airflow_db'"
    )

    def look() -> tuple[float, float]:
        number, _, when = cluster.query("postgres", count).partition("|")
        return float(number), float(when)

    figures = []
    for _ in range(rounds):
        begin = look()
        time.sleep(seconds)
        end = look()
        figures.append((end[0] - begin[0]) / (end[1] - begin[1]))
    return figures


def both(
    name: str,
    ours: Mapping[str, Sequence[float]],
    stock: Mapping[str, Sequence[float]],
    **bounds: Any,
) -> measured.Comparison | None:
    """Hold one figure of ours against the same with Airflow's settings.

    Args:
        name: Which one.
        ours: Figures by name.
        stock: The same.
        bounds: The other fields of the comparison.

    Returns:
        The comparison, or None where it was not measured.
    """
    if name not in ours:
        return None
    return measured.Comparison(
        against="Airflow's own settings, same cluster", ours=ours[name], baseline=stock[name], **bounds
    )


def comparisons(
    figures: Mapping[tuple[str, str], Mapping[str, Sequence[float]]], modes: Sequence[str]
) -> list[measured.Comparison]:
    """Return what was held against what.

    Args:
        figures: What was measured, by mode and settings (ours, stock).
        modes: The modes.
    """
    found = []
    for mode in modes:
        ours, stock = figures[mode, "ours"], figures[mode, "stock"]
        found += [
            both(
                "dispatch",
                ours,
                stock,
                what=f"From the trigger of `hostname` on a VM to the run's success in the API, mode {mode}",
                unit="s",
                at_most=0.25,
                note=SSH if mode == "ssh" else "",
            ),
            both(
                "throughput",
                ours,
                stock,
                what=f"Tasks that do nothing through one worker with {SLOTS} slots, mode {mode}",
                unit="tasks/min",
                at_least=4.0,
                note=f"a task takes {statistics.median(ours.get('busy', [0])):.2f} s of processor time of scheduler, "
                f"API server, database and worker, which share {measured.cores()} cores here",
            ),
            both(
                "transactions",
                ours,
                stock,
                what=f"Transactions in the metadata database of an idle cluster, mode {mode}",
                unit="1/s",
                at_most=1.0,
            ),
        ]
    return [comparison for comparison in found if comparison]


def measure(cluster: running.Cluster, options: argparse.Namespace, mode: str) -> dict[str, list[float]]:
    """Measure with the settings that the cluster has now.

    Args:
        cluster: The cluster.
        options: How much.
        mode: The mode that it is in.

    Returns:
        Figures by name.
    """
    api = cluster.api()
    for dag in (DISPATCH, NOTHING):
        api.wait_for_dag(dag)
        api.unpause(dag)
    dispatched(api, 3)  # until each process has imported what it needs
    figures = {"dispatch": dispatched(api, options.rounds)}
    if mode == "celery":  # a worker has two slots in the other
        throughput(cluster, api, 1)
        figures["throughput"], figures["busy"] = throughput(cluster, api, options.runs)
    time.sleep(10)
    figures["transactions"] = transactions(cluster, 3, options.idle / 3)
    for name, values in figures.items():
        print(f"  {name}: median {statistics.median(values):.4g} of {len(values)}", flush=True)
    return figures


def measure_all(
    cluster: running.Cluster,
    options: argparse.Namespace,
    settle: Callable[[str, bool], None],
) -> dict[tuple[str, str], dict[str, list[float]]]:
    """Measure in each mode with both settings, with as few switches as it takes.

    Args:
        cluster: The cluster.
        options: How much.
        settle: Gives the cluster a mode, and Airflow's settings or ours.

    Returns:
        Figures by mode and settings.
    """
    figures = {}
    order = ["ours", "stock"]
    for mode in options.modes:
        for settings in order:
            settle(mode, settings == "stock")
            print(f"mode {mode}, settings: {settings}", flush=True)
            figures[mode, settings] = measure(cluster, options, mode)
        order.reverse()
    return figures


def main() -> None:
    """Measure, put all back, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="runs of one task, for the dispatch")
    parser.add_argument("--runs", type=int, default=3, help="runs of many tasks, for the throughput")
    parser.add_argument("--count", type=int, default=24, help="tasks in each of these")
    # Three looks, each as long as the DAG processor's turn through all files.
    parser.add_argument("--idle", type=float, default=90, help="seconds to look at the idle database")
    parser.add_argument("--modes", nargs="+", choices=running.MODES, help="by default both, that of now first")
    parser.add_argument("--ours", type=json.loads, default={}, help="airflow_config in the place of ours, as JSON")
    options = parser.parse_args()
    cluster = running.Cluster.read()
    before = cluster.mode()
    options.modes = options.modes or sorted(running.MODES, key=lambda mode: mode != before)
    stock = read_stock(cluster)
    vm = cluster.vm()
    values = {"DISPATCH": DISPATCH, "NOTHING": NOTHING, "VM": vm, "QUEUE": f"{vm}_queue", "COUNT": options.count}
    with running.more_dags({"benchmark.py": running.with_values(DAGS, values)}) as dags:

        def settle(mode: str, is_stock: bool) -> None:
            given = stock if is_stock else {"airflow_config": options.ours} if options.ours else {}
            running.playbook(values={"mode": mode, "airflow_dags_source": str(dags), **given})

        try:
            # With our settings new DAGs are found within seconds, whatever is measured first.
            running.playbook("playbooks/deliver_dags.yml", values={"airflow_dags_source": str(dags)})
            for dag in (DISPATCH, NOTHING):
                cluster.api().wait_for_dag(dag)
            figures = measure_all(cluster, options, settle)
        finally:
            running.playbook(values={"mode": before})
            for dag in (DISPATCH, NOTHING):
                cluster.forget_dag(dag)
    measured.write(
        "tasks",
        comparisons(figures, options.modes),
        versions=cluster.versions(),
        notes=[
            f"Dispatch: median of {options.rounds} runs, looked at each {LOOK * 1000:.0f} ms. Throughput: by the times "
            f"at which {options.count} mapped tasks of a run started, {options.runs} runs. The database: transactions "
            f"that PostgreSQL counted in {options.idle:.0f} s without any run.",
            "Both settings on the same VMs, by site.yml; TLS, quorum queues and the rest are those of the roles in "
            "both.",
        ],
    )


if __name__ == "__main__":
    main()
