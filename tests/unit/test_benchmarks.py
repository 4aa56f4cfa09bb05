"""What the benchmarks make of their figures; the figures themselves come from running clusters."""

from __future__ import annotations

import importlib.util
import pathlib
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def switch(project: pathlib.Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("switch", project / "benchmarks/switch.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_report_of_switches_has_medians_and_ranges(switch: ModuleType) -> None:
    figures = [
        {"to": to, "seconds": seconds, "tasks_before": {"queued": 5}, "without_consumer": {"vm2_queue": seconds / 10}}
        for to in ("ssh", "celery")
        for seconds in (90.0, 80.0, 130.0)
    ]
    report = switch.report(figures, "A machine")
    assert report.count("| `vm2_queue` without a consumer, at a stretch | 9.0 (8.0 to 13.0) |") == 2
    assert "| `site.yml -e mode=ssh`, with the wait for running tasks | 90.0 (80.0 to 130.0) |" in report
    assert "Before, in 3 rounds: 5 tasks (5 queued); 5 tasks (5 queued); 5 tasks (5 queued)." in report
