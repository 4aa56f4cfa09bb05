#!/usr/bin/env python3
"""A command on a VM from a script on main, by one caller and by eight at once, mode ssh.

``./lab bench direct``, on a running cluster. Ours is ``remote_tasks.execute_on_vm``, through the VM's worker with its
two slots. The baseline is ``baselines/reference_tasks.py``, in a worker with two slots beside it on the same host, as a
transient unit, which is gone afterwards with its queue and its results.
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import shlex
import statistics
import sys
from collections.abc import Iterator
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import measured, running

REFERENCE = running.ROOT / "benchmarks/baselines" / "reference_tasks.py"
UNIT = "benchmark-reference"
QUEUE = "benchmark_reference_queue"
CALLERS = (1, 8)

#: Calls, and the seconds that each took and all of them together. COUNT is that of all callers.
CALLS = """
import concurrent.futures, json, time


def timed(number):
    began = time.perf_counter()
    assert call()["output"] == VM
    return time.perf_counter() - began


with concurrent.futures.ThreadPoolExecutor(CALLERS) as pool:
    list(pool.map(timed, range(WARM)))
    worked, began = busy(), time.perf_counter()
    each = list(pool.map(timed, range(COUNT)))
    print(json.dumps({"each": each, "all": time.perf_counter() - began, "busy": busy() - worked}))
"""
OURS = """
import remote_tasks


def call():
    return remote_tasks.execute_on_vm(VM, "hostname", timeout=60)
"""
# Its results have a mark, by which they are removed.
THEIRS = """
import sys, uuid
sys.path.insert(0, PLACE)
from reference_tasks import QUEUE, TASK, app


def call():
    sent = app.send_task(TASK, args=[VM, "hostname"], queue=QUEUE, task_id=f"benchmark-{uuid.uuid4()}")
    return sent.get(timeout=120, **({"interval": INTERVAL} if INTERVAL else {}))
"""
FIRST = """
import json
print(json.dumps(call()["success"]))
"""


def called(
    cluster: running.Cluster, script: str, vm: str, callers: int, count: int, values: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Call from main.

    Args:
        cluster: The cluster.
        script: How to make one call.
        vm: The VM.
        callers: How many call at a time.
        count: The calls of all of them.
        values: More constants for the script.

    Returns:
        The seconds of each call, as `each`; the calls a second, as `rate`; and for how many seconds one core works for
        a call, wherever it does, as `busy`.
    """
    constants = {"VM": vm, "CALLERS": callers, "COUNT": count, "WARM": 2 * callers + 4, **(values or {})}
    took = cluster.python(script + running.BUSY + CALLS, constants)
    return {"each": took["each"], "rate": count / took["all"], "busy": took["busy"] / count}


@contextlib.contextmanager
def reference(cluster: running.Cluster) -> Iterator[str]:
    """Run the reference's worker on main, and remove all of it afterwards.

    Args:
        cluster: The cluster.

    Yields:
        The directory on main where its module lies.
    """
    with running.scratch(cluster, cluster.main) as place:
        cluster.run(cluster.main, f"cat > {place}/reference_tasks.py", REFERENCE.read_text())
        worker = [
            "/usr/local/bin/airflow-python", "-m", "celery", "--workdir", place, "-A", "reference_tasks", "worker",
            "--queues", QUEUE, "--hostname", "celery@benchmark-reference", "--concurrency", "2", "--loglevel", "ERROR",
            "--without-gossip", "--without-mingle",
        ]  # fmt: skip
        start = ["systemd-run", "--quiet", "--collect", "--unit", UNIT, "--property", "KillMode=control-group", *worker]
        try:
            cluster.run(cluster.main, shlex.join(start))
            try:
                # Its queue is made by the first to ask for it, and the call waits until the worker is there.
                cluster.python(THEIRS + FIRST, {"PLACE": place, "VM": cluster.vm(), "INTERVAL": None})
            except running.BenchmarkError as error:
                said = cluster.run(cluster.main, f"journalctl -u {UNIT} -n 20 --no-pager -o cat")
                message = f"the reference's worker does not work: {error} {said}"
                raise running.BenchmarkError(message) from error
            yield place
        finally:
            # Neither is there when its worker did not start.
            cluster.run(cluster.main, f"! systemctl cat {UNIT} > /dev/null 2>&1 || systemctl stop {UNIT}")
            queues = "rabbitmqctl -q -p airflow_host"
            there = f"{queues} list_queues name | grep -qx {QUEUE}"
            cluster.run(cluster.groups["rabbitmq"][0], f"! {there} || {queues} delete_queue {QUEUE}")
            cluster.query("airflow_results_db", "DELETE FROM celery_taskmeta WHERE task_id LIKE 'benchmark-%'")


def comparisons(ours: dict[int, dict[str, Any]], theirs: dict[int, dict[str, Any]]) -> list[measured.Comparison]:
    """Return what was held against what.

    Args:
        ours: `each`, `rate` and `busy` by the number of callers.
        theirs: The same of the reference.
    """
    found = []
    for callers in ours:
        who = "one caller" if callers == 1 else f"{callers} callers"
        limit = (
            f"a call takes {ours[callers]['busy'] * 1000:.0f} ms of processor time of caller, broker, worker and VM, "
            f"which share {measured.cores()} cores here; one of the reference's {theirs[callers]['busy'] * 1000:.0f} ms"
        )
        common: dict[str, Any] = {"against": "the reference documents' task", "note": limit if callers > 1 else ""}
        times = {"ours": ours[callers]["each"], "baseline": theirs[callers]["each"], "unit": "s", **common}
        last = {
            **times,
            "ours": [running.percentile(times["ours"], 99)],
            "baseline": [running.percentile(times["baseline"], 99)],
        }
        found += [
            measured.Comparison(what=f"`hostname` on a VM from a script on main, {who}", at_most=0.05, **times),
            measured.Comparison(what=f"the same, 99th percentile, {who}", at_most=0.05, **last),
            measured.Comparison(
                what=f"Commands a second, {who}",
                unit="calls/s",
                ours=[ours[callers]["rate"]],
                baseline=[theirs[callers]["rate"]],
                at_least=20.0,
                **common,
            ),
        ]
    return found


def main() -> None:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=500, help="calls of ours by all callers together")
    parser.add_argument("--reference-rounds", type=int, default=200, help="calls of the reference, which is slower")
    options = parser.parse_args()
    cluster = running.Cluster.read()
    vm = cluster.vm()
    with running.in_mode(cluster, "ssh"):
        with reference(cluster) as place:
            values = {"PLACE": place, "INTERVAL": None}
            theirs = {
                callers: called(cluster, THEIRS, vm, callers, options.reference_rounds, values) for callers in CALLERS
            }
            polled = called(cluster, THEIRS, vm, 1, options.reference_rounds, {**values, "INTERVAL": 0.01})
        ours = {callers: called(cluster, OURS, vm, callers, options.rounds) for callers in CALLERS}
    measured.write(
        "direct",
        comparisons(ours, theirs),
        versions=cluster.versions(),
        notes=[
            "The reference waits for results as its documents do, by `.get()`, which looks into the database each half "
            f"second. With a look each 10 ms, one caller of its has a median of "
            f"{statistics.median(polled['each']) * 1000:.0f} ms; ours is "
            f"{statistics.median(ours[1]['each']) / statistics.median(polled['each']):.3f} of that.",
        ],
    )


if __name__ == "__main__":
    main()
