"""What every benchmark notes, and where: ``docs/benchmarks/NAME.json``, from which ``report.py`` makes the page.

A figure is of use beside another of the same run alone, since machines differ: a comparison has both, round by round.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import pathlib
import platform
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
FIGURES = ROOT / "docs" / "benchmarks"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two things that were measured side by side.

    Attributes:
        what: What is ours, as a reader of the table knows it.
        against: What it is held against.
        unit: Of both, such as ``s``, ``MB`` or ``calls/s``.
        ours: One figure a round (or a call), in that unit.
        baseline: The same of what it is held against.
        at_most: The largest ratio of the medians (ours to baseline) that is good enough, where less is better.
        at_least: The smallest one, where more is better. One of the two is given.
        note: What a reader must know of it, or why it is missed.
    """

    what: str
    against: str
    unit: str
    ours: Sequence[float]
    baseline: Sequence[float]
    at_most: float | None = None
    at_least: float | None = None
    note: str = ""

    def __post_init__(self) -> None:
        """Refuse what cannot be told.

        Raises:
            ValueError: No figures, or not just one of the two bounds.
        """
        if not self.ours or not self.baseline:
            message = f"{self.what}: figures of both sides are needed"
            raise ValueError(message)
        if (self.at_most is None) == (self.at_least is None):
            message = f"{self.what}: either at_most or at_least is needed"
            raise ValueError(message)

    @property
    def ratio(self) -> float:
        """The median of ours to that of the baseline."""
        return statistics.median(self.ours) / statistics.median(self.baseline)

    @property
    def reached(self) -> bool:
        """Whether the ratio is good enough."""
        if self.at_most is not None:
            return self.ratio <= self.at_most
        return self.at_least is not None and self.ratio >= self.at_least


@dataclasses.dataclass(frozen=True)
class Plot:
    """Lines for a plot.

    Attributes:
        title: What it shows.
        x: What is on the horizontal axis, with its unit.
        y: What is on the vertical axis, with its unit.
        lines: Points (x, y) by the line's name.
    """

    title: str
    x: str
    y: str
    lines: Mapping[str, Sequence[tuple[float, float]]]


def cores() -> int:
    """Return how many cores this machine has, which simulated VMs share."""
    return pathlib.Path("/proc/cpuinfo").read_text().count("\nprocessor") + 1


def machine() -> str:
    """Say what this is measured on."""
    memory = round(int(pathlib.Path("/proc/meminfo").read_text().split()[1]) / 1024 / 1024)
    linux = ".".join(platform.release().split(".")[:2])
    return f"simulated VMs on one machine with {cores()} cores and {memory} GiB, Linux {linux}"


def write(
    name: str,
    comparisons: Sequence[Comparison],
    *,
    versions: Mapping[str, str],
    plots: Sequence[Plot] = (),
    notes: Sequence[str] = (),
    directory: pathlib.Path = FIGURES,
) -> pathlib.Path:
    """Write what a benchmark measured, for the report.

    Args:
        name: The benchmark's name, which is its script's.
        comparisons: What was held against what.
        versions: Of what was measured, by name.
        plots: Lines that the table cannot show.
        notes: Sentences for the page.
        directory: Where figures are kept.

    Returns:
        The file.
    """
    figures: dict[str, Any] = {
        "name": name,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
        "versions": dict(versions),
        "comparisons": [dataclasses.asdict(comparison) for comparison in comparisons],
        "plots": [dataclasses.asdict(plot) for plot in plots],
        "notes": list(notes),
    }
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / f"{name}.json"
    target.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")
    for comparison in comparisons:
        verdict = "reached" if comparison.reached else "MISSED"
        print(f"{name}: {comparison.what}: {comparison.ratio:.3g} x {comparison.against} ({verdict})", flush=True)
    return target
