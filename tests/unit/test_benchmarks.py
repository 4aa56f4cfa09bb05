"""What the benchmarks make of their figures; the figures themselves come from running clusters."""

from __future__ import annotations

import datetime
import importlib
import importlib.util
import pathlib
from types import ModuleType
from typing import Any

import pytest
import yaml


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


@pytest.fixture
def module(project: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a benchmark by its name."""
    monkeypatch.syspath_prepend(str(project))
    return lambda name: importlib.import_module(f"benchmarks.{name}")


def test_a_percentile_is_a_figure_that_was_seen(module: Any) -> None:
    percentile = module("running").percentile
    assert percentile([3.0, 1.0, 2.0], 99) == 3.0
    assert percentile([float(number) for number in range(1, 101)], 99) == 99.0
    assert percentile([float(number) for number in range(1, 201)], 50) == 100.0
    assert percentile([7.0], 1) == 7.0


def test_the_last_line_of_a_script_is_its_answer(module: Any) -> None:
    running = module("running")
    assert running.said_last("a warning\n[1, 2]\n") == [1, 2]
    for wrong in ("", "a warning\n"):
        with pytest.raises(running.BenchmarkError, match="no JSON"):
            running.said_last(wrong)


def test_constants_of_a_script_are_what_was_given(module: Any) -> None:
    values = {"VM": "vm'2", "COUNTS": [1, 2], "INTERVAL": None}
    seen: dict[str, Any] = {}
    exec(module("running").with_values("both = VM, COUNTS, INTERVAL", values), seen)  # noqa: S102 - written above
    assert seen["both"] == ("vm'2", [1, 2], None)


def test_the_rate_of_a_worker_begins_when_its_slots_are_full(module: Any) -> None:
    rate = module("tasks").rate
    began = datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC)
    # Four slots, each task holds one for three seconds; given in any order.
    starts = [began + datetime.timedelta(seconds=3 * (number // 4)) for number in range(24)]
    assert rate(starts[::-1], 4) == pytest.approx(80.0)
    with pytest.raises(ValueError, match="do not fill"):
        rate(starts[:4], 4)


def test_stock_settings_that_are_not_airflows_own_are_named(module: Any) -> None:
    differing = module("tasks").differing
    stock: dict[str, dict[str, Any]] = {
        "scheduler": {"idle": 1},
        "broker": {"confirm_publish": False},
        "workers": {"beat": 5},
    }
    options = [(section, option) for section, values in stock.items() for option in values]
    assert differing(stock, dict(zip(options, ["1", None, "5"], strict=True))) == []
    assert differing(stock, dict(zip(options, ["0.5", None, "5"], strict=True))) == [
        "[scheduler] idle is 1 here, and 0.5 in Airflow"
    ]
    assert len(differing({"broker": {"confirm_publish": True}}, {("broker", "confirm_publish"): None})) == 1


def test_the_baseline_undoes_all_that_the_role_tunes(project: pathlib.Path) -> None:
    stock = yaml.safe_load((project / "benchmarks/baselines/stock_settings.yml").read_text())["airflow_config"]
    ours = yaml.safe_load((project / "roles/airflow/vars/main.yml").read_text())["__airflow_config"]
    assert {section: set(values) for section, values in stock.items()} == {
        section: {option for option in ours[section] if "health_check" not in option} for section in stock
    }
    assert set(stock) >= {"scheduler", "dag_processor", "workers"}


def test_what_tasks_held_against_what(module: Any) -> None:
    ours = {"dispatch": [0.5, 0.4, 0.6], "throughput": [200.0], "transactions": [9.0]}
    stock = {"dispatch": [2.5], "throughput": [40.0], "transactions": [6.0]}
    figures = {
        ("celery", "ours"): ours,
        ("celery", "stock"): stock,
        ("ssh", "ours"): {"dispatch": [1.0]},
        ("ssh", "stock"): {"dispatch": [2.0]},
    }
    found = module("tasks").comparisons(figures, ["celery", "ssh"])
    assert [(comparison.unit, comparison.reached) for comparison in found] == [
        ("s", True),
        ("tasks/min", True),
        ("1/s", False),
        ("s", False),
    ]


def test_direct_calls_are_held_against_the_references(module: Any) -> None:
    ours = {1: {"each": [0.005] * 99 + [0.02], "rate": 190.0}, 8: {"each": [0.02], "rate": 390.0}}
    theirs = {1: {"each": [0.5], "rate": 2.0}, 8: {"each": [0.6], "rate": 13.0}}
    found = module("direct").comparisons(ours, theirs)
    assert [comparison.reached for comparison in found] == [True, True, True, True, True, True]
    assert [round(comparison.ratio, 3) for comparison in found[:3]] == [0.01, 0.01, 95.0]


def test_a_fan_out_is_tried_for_one_vm_and_for_all(module: Any) -> None:
    counts = module("fan_out").counts
    assert counts(1) == [1]
    assert counts(3) == [1, 2, 3]
    assert counts(24) == [1, 2, 3, 4, 6, 8, 12, 16, 24]
    assert counts(25)[-2:] == [24, 25]


def test_four_workers_together_are_held_against_their_limit(module: Any) -> None:
    comparisons = module("memory").comparisons
    few = comparisons({"airflow-worker-vm2": [150.0], "airflow-worker-general": [170.0]}, [140.0], "airflow-worker-vm2")
    assert [round(comparison.ratio, 2) for comparison in few] == [0.3, 1.07]
    units = {f"airflow-worker-{name}": [150.0, 160.0] for name in ("vm1", "vm2", "vm3", "general")}
    four = comparisons(units, [140.0], "airflow-worker-vm2")[-1]
    assert (list(four.ours), four.reached) == ([600.0, 640.0], True)


def test_scp_is_given_both_ends_and_its_protocol(module: Any) -> None:
    target = {"user": "rocky", "host": "192.168.83.130", "key_file": "/k", "known_hosts_file": "/h"}
    line = module("transfer").scp_line(target, {**target, "port": 2222}, "/a b", "/c", "SCP")
    assert line.startswith("runuser -u airflow -- scp -3 -r -q -O -i /k ")
    assert line.endswith("'scp://rocky@192.168.83.130:22//a b' scp://rocky@192.168.83.130:2222//c")
    assert "StrictHostKeyChecking=yes" in line


def test_ways_are_taken_in_turns(module: Any) -> None:
    taken: list[str] = []

    def way(name: str, seconds: float) -> float:
        taken.append(name)
        return seconds

    took = module("transfer").in_turns(2, ours=lambda: way("ours", 1.0), scp=lambda: way("scp", 2.0))
    assert took == {"ours": [1.0, 1.0], "scp": [2.0, 2.0]}
    assert taken == ["ours", "scp", "ours", "scp"]
