#!/usr/bin/env python3
"""How long a switch of the mode takes under load, and how long a queue is without a consumer meanwhile.

On a running cluster in mode celery (``./lab bench switch``): each round switches it to ssh and back with 70 tasks
queued or running, by the tests of ``tests/infra/test_under_load.py``, which also account for every task. Writes a page
of its own, ``docs/benchmarks/switch.md``: there is nothing to hold it against.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import measured, running

Figures = Mapping[str, Any]


def median(figures: Sequence[Figures], of: Callable[[Figures], float]) -> str:
    """Return median and range of a figure, as text.

    Args:
        figures: One entry a switch.
        of: Takes the figure from an entry, in seconds.
    """
    values = sorted(map(of, figures))
    return f"{statistics.median(values):.1f} ({values[0]:.1f} to {values[-1]:.1f})"


def report(figures: Sequence[Figures], machine: str) -> str:
    """Write the report.

    Args:
        figures: What the tests noted: ``to``, ``seconds``, ``tasks_before``, ``without_consumer``.
        machine: What it was measured on.

    Returns:
        Markdown.
    """
    lines = [
        "# A switch of the mode under load",
        "",
        f"Made by `./lab bench switch`, on {machine}: seconds, as median (range) of the rounds.",
        "Each task succeeded by its first try and did its work once, by what the tests that measure this count.",
        "",
    ]
    for to in ("ssh", "celery"):
        own = [entry for entry in figures if entry["to"] == to]
        states = [
            f"{sum(entry['tasks_before'].values())} tasks ("
            + ", ".join(f"{count} {state}" for state, count in sorted(entry["tasks_before"].items()))
            + ")"
            for entry in own
        ]
        lines += [
            f"## To `mode: {to}`",
            "",
            f"Before, in {len(own)} rounds: {'; '.join(states)}.",
            "",
            "| | s |",
            "| --- | --- |",
            f"| `site.yml -e mode={to}`, with the wait for running tasks | {median(own, lambda e: e['seconds'])} |",
        ]
        for queue in own[0]["without_consumer"]:
            gap = median(own, lambda entry, name=queue: entry["without_consumer"][name])  # type: ignore[misc]
            lines.append(f"| `{queue}` without a consumer, at a stretch | {gap} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    if (mode := running.Cluster.read().mode()) != "celery":
        running.leave_out(
            f"it begins in mode celery, and the cluster is in mode {mode}: ./lab playbook site.yml -e mode=celery"
        )
    with tempfile.TemporaryDirectory() as directory:
        noted = pathlib.Path(directory) / "figures"
        for number in range(1, rounds + 1):
            print(f"round {number} of {rounds}", flush=True)
            tests = ["tests/infra/test_under_load.py", "--figures", str(noted), "-k", "test_switch_"]
            subprocess.run([sys.executable, "-m", "pytest", "-q", *tests], cwd=measured.ROOT, check=True)
        figures = [json.loads(line) for line in noted.read_text().splitlines()]
    target = measured.FIGURES / "switch.md"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(report(figures, measured.machine()))
    print(target.read_text())


if __name__ == "__main__":
    main()
