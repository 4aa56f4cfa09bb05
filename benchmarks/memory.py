#!/usr/bin/env python3
"""The memory of a worker for a VM without Airflow, mode ssh, after it has run tasks.

``./lab bench memory``, on a running cluster; all four workers of the reference documents are there with the topology
single_host. Proportional set size (PSS): what processes share counts once.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import direct, measured, running

#: "Memory: ~500MB per Celery worker on main machine": the document on the single host, under Resource Usage.
DOCUMENTS_MB = 500.0
#: What four of them may have together.
FOUR_MB = 700.0
WHY = "Each worker imports Airflow for itself: docs/decisions/0015 says what else there is."
DAG = "remote_vm_execution"


def comparisons(
    ours: Mapping[str, Sequence[float]], reference: Sequence[float], used: str
) -> list[measured.Comparison]:
    """Return what was held against what.

    Args:
        ours: Figures in MB by the worker's unit.
        reference: Those of the reference's worker.
        used: The unit of ours that ran the same as that one.
    """
    found = [
        measured.Comparison(
            what="A worker with two slots for a VM, mode ssh",
            against="the 500 MB that the reference documents name",
            unit="MB",
            ours=ours[used],
            baseline=[DOCUMENTS_MB],
            at_most=1 / 3,
            note=WHY,
        ),
        measured.Comparison(
            what="A worker with two slots for a VM, mode ssh",
            against="the reference documents' worker, measured",
            unit="MB",
            ours=ours[used],
            baseline=reference,
            at_most=1.0,
            note="That one runs commands alone; ours runs Airflow's tasks as well.",
        ),
    ]
    if len(ours) >= 4:
        four = [sum(figures) for figures in zip(*list(ours.values())[:4], strict=True)]
        found.append(
            measured.Comparison(
                what="The workers of three VMs and the general one",
                against="700 MB",
                unit="MB",
                ours=four,
                baseline=[FOUR_MB],
                at_most=1.0,
                note=WHY,
            )
        )
    return found


def main() -> None:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="looks at the memory, each after more tasks")
    parser.add_argument("--calls", type=int, default=100, help="commands before each")
    options = parser.parse_args()
    cluster = running.Cluster.read()
    with running.in_mode(cluster, "ssh"):
        units = [f"airflow-worker-{name}" for name in (*cluster.vms, "general")]
        ours: dict[str, list[float]] = {unit: [] for unit in units}
        for _ in range(options.rounds):
            for vm in cluster.vms:
                direct.called(cluster, direct.OURS, vm, 4, options.calls)
            cluster.run_dag(DAG)
            time.sleep(10)  # until the tasks' processes have ended
            for unit in units:
                ours[unit].append(cluster.memory(cluster.main, unit))
            print({unit: round(figures[-1]) for unit, figures in ours.items()}, flush=True)
        theirs = []
        with direct.reference(cluster) as place:
            for _ in range(options.rounds):
                values = {"PLACE": place, "INTERVAL": None}
                direct.called(cluster, direct.THEIRS, cluster.vm(), 4, min(options.calls, 40), values)
                theirs.append(cluster.memory(cluster.main, direct.UNIT))
    # Three VMs and the general one, as the documents have them.
    chosen = {unit: ours[unit] for unit in [*units[:-1][:3], units[-1]]}
    measured.write(
        "memory",
        comparisons(chosen, theirs, f"airflow-worker-{cluster.vm()}"),
        versions=cluster.versions(),
        notes=[
            f"Proportional set size of all processes of a unit, after {options.calls} commands and a run of `{DAG}`: "
            + ", ".join(f"`{unit}` {sorted(figures)[len(figures) // 2]:.0f} MB" for unit, figures in ours.items())
            + ".",
            *(
                []
                if len(chosen) >= 4
                else ["Four workers together: with the VMs of `single_host`, `./lab up single_host`."]
            ),
        ],
    )


if __name__ == "__main__":
    main()
