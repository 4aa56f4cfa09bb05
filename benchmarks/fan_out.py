#!/usr/bin/env python3
"""How long a command on all VMs takes as these become more.

``./lab bench fan_out``, on a running cluster in either mode; `growth.py` calls `measure` with more VMs. On main, by the
code that ``execute_on_all_vms`` runs in the general worker: over kept connections, and all VMs at once.
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import sys
from collections.abc import Sequence

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import measured, running

#: What takes a second on a VM and nearly nothing of a processor, which simulated VMs share. And what takes no time.
WORK = "sleep 1"
NOTHING = "hostname"
NOTES = {WORK: "", NOTHING: "Nearly all of it is processor time, of which simulated VMs have one machine's together."}

#: A targets file for each number of VMs; the first round of each connects, and is not counted.
SCRIPT = """
import json, os, pathlib, tempfile, time
from remote_tasks import actions
from remote_tasks.targets import TARGETS_FILE_VARIABLE, targets_path

whole = json.loads(targets_path().read_text())
entries = {target["name"]: target for target in whole["targets"]}
took = []
with tempfile.TemporaryDirectory() as directory:
    file = pathlib.Path(directory) / "targets.json"
    os.environ[TARGETS_FILE_VARIABLE] = str(file)
    for count in COUNTS:
        file.write_text(json.dumps({**whole, "targets": [entries[name] for name in NAMES[:count]]}))
        times = []
        for number in range(ROUNDS + 1):
            began = time.perf_counter()
            results = actions.run_on_all(COMMAND)
            times.append(time.perf_counter() - began)
            assert len(results) == count and all(result["success"] for result in results.values()), results
        took.append([count, times[1:]])
print(json.dumps(took))
"""


def counts(number: int) -> list[int]:
    """Return the numbers of VMs to measure: 1, 2, 3, 4, 6, 8, 12, 16, 24 and so on, and all.

    Args:
        number: How many there are.
    """
    steps = {step * 2**power for step in (2, 3) for power in range(number.bit_length())}
    return sorted({1, number} | {step for step in steps if step <= number})


def times(vm_names: Sequence[str], command: str = WORK, rounds: int = 5) -> list[tuple[int, list[float]]]:
    """Run a command on the first VM, on the first two and so on.

    Args:
        vm_names: VMs that main's targets file has.
        command: The command.
        rounds: How often.

    Returns:
        For each number of VMs that was tried: it, and the seconds of each round.
    """
    values = {"NAMES": list(vm_names), "COUNTS": counts(len(vm_names)), "ROUNDS": rounds, "COMMAND": command}
    return [(count, took) for count, took in running.Cluster.read().python(SCRIPT, values)]


def measure(vm_names: Sequence[str], command: str = WORK, rounds: int = 5) -> list[tuple[int, float]]:
    """As `times`, with the median of the rounds.

    Args:
        vm_names: VMs that main's targets file has.
        command: The command.
        rounds: How often.

    Returns:
        The number of VMs and the seconds, for each number that was tried.
    """
    return [(count, statistics.median(took)) for count, took in times(vm_names, command, rounds)]


def main() -> None:
    """Measure on the VMs that there are, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    cluster = running.Cluster.read()
    figures = {command: times(cluster.vms, command, rounds) for command in (WORK, NOTHING)}
    number = len(cluster.vms)
    measured.write(
        "fan_out",
        [
            measured.Comparison(
                what=f"`{command}` on {number} VMs at once",
                against="the same on one",
                unit="s",
                ours=took[-1][1],
                baseline=took[0][1],
                at_most=2.0,
                note=NOTES[command],
            )
            for command, took in figures.items()
        ],
        versions=cluster.versions(),
        plots=[
            measured.Plot(
                title="A command on all VMs at once",
                x="VMs",
                y="s",
                lines={
                    command: [(count, statistics.median(each)) for count, each in took]
                    for command, took in figures.items()
                },
            )
        ],
    )


if __name__ == "__main__":
    main()
