"""What the benchmarks make of their figures; the figures themselves come from running clusters."""

from __future__ import annotations

import datetime
import importlib
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import lab
import marked
import pytest
import yaml


@pytest.fixture(scope="module")
def root(project: pathlib.Path) -> Iterator[pathlib.Path]:
    """The checkout, as a place that `benchmarks` is imported from."""
    before = list(sys.path)
    sys.path.insert(0, str(project))
    yield project
    sys.path[:] = before


@pytest.fixture(scope="module")
def module(root: pathlib.Path) -> Callable[[str], ModuleType]:
    """Import a benchmark by its name."""
    return lambda name: importlib.import_module(f"benchmarks.{name}")


def imported(name: str) -> Any:
    """A fixture: the module of this name."""

    @pytest.fixture(scope="module", name=name)
    def fixture(module: Callable[[str], ModuleType]) -> ModuleType:
        return module(name)

    return fixture


switch, report, measured, running, site, growth = map(
    imported, ("switch", "report", "measured", "running", "site", "growth")
)


def compared(measured: ModuleType, **different: Any) -> Any:
    """A comparison: 2 s against 10 s, at most a fifth."""
    fields = {"what": "ours", "against": "theirs", "unit": "s", "ours": [2.0, 1.5, 9.0], "baseline": [10.0]}
    bounds = {} if "at_least" in different else {"at_most": 0.2}
    return measured.Comparison(**{**fields, **bounds, **different})


def figures(report: ModuleType, measured: ModuleType, name: str, *comparisons: Any, **more: Any) -> Any:
    """What a benchmark noted, as the report reads it."""
    own = comparisons or (compared(measured),)
    fields = {"date": "2026-01-02", "machine": "a machine", "versions": {"b": "2", "a": "1"}, "plots": [], "notes": []}
    return report.Figures(**{**fields, "name": name, "comparisons": own, **more})


def test_a_report_of_switches_has_medians_and_ranges(switch: ModuleType) -> None:
    figures = [
        {"to": to, "seconds": seconds, "tasks_before": {"queued": 5}, "without_consumer": {"vm2_queue": seconds / 10}}
        for to in ("ssh", "celery")
        for seconds in (90.0, 80.0, 130.0)
    ]
    report = switch.report(figures, "a machine")
    assert report.count("| `vm2_queue` without a consumer, at a stretch | 9.0 (8.0 to 13.0) |") == 2
    assert "| `site.yml -e mode=ssh`, with the wait for running tasks | 90.0 (80.0 to 130.0) |" in report
    assert "Before, in 3 rounds: 5 tasks (5 queued); 5 tasks (5 queued); 5 tasks (5 queued)." in report


def test_figures_are_written_with_three_digits_and_short_times_in_ms(report: ModuleType) -> None:
    assert report.shown([12.3456, 1.0, 200.0], "s") == "12.3 s (1.00 to 200)"
    assert report.shown([0.0042], "s") == "4.20 ms"
    assert report.shown([12345.6], "tasks/min") == "12,346 tasks/min"


def test_a_goal_that_is_missed_is_said_with_how_much_and_why(report: ModuleType, measured: ModuleType) -> None:
    assert report.verdict(compared(measured)) == "yes"
    assert report.verdict(compared(measured, at_most=0.1)) == "**no**, 100% above it"
    assert report.verdict(compared(measured, at_least=0.4, note="a reason")) == "**no**, 50% below it: a reason"
    assert report.goal(compared(measured, at_most=1 / 3)) == "at most 0.333"


def test_the_page_has_each_comparison_and_names_what_is_not_measured(report: ModuleType, measured: ModuleType) -> None:
    plot = measured.Plot(title="Lines", x="x", y="y", lines={"a": [(1, 2)]})
    some = figures(report, measured, "site", compared(measured), compared(measured, at_most=0.1), plots=[plot, plot])
    page = report.page([some], ["growth", "site", "switch"], ["switch"])
    assert "1 of 2 goals are reached." in page
    row = "| [site](#site) | ours | 2.00 s (1.50 to 9.00) | theirs: 10.0 s | 0.200 x | at most 0.200 | yes |"
    assert row in page.splitlines()
    assert "Not measured yet: `./lab bench growth`." in page
    assert "[switch](benchmarks/switch.md)" in page
    assert "Measured on 2026-01-02, a machine; a 1, b 2." in page
    assert "![Lines](benchmarks/site.svg)" in page
    assert "![Lines](benchmarks/site-2.svg)" in page


def test_the_readme_says_of_figures_that_are_missing_that_they_are(report: ModuleType, measured: ModuleType) -> None:
    noop = compared(measured, what="the same run again, with nothing to change", against="the first run")
    rows = report.headline_rows({"site": figures(report, measured, "site", compared(measured), noop)})
    assert [row[1] for row in rows] == ["2.00 s (1.50 to 9.00)", "not measured yet", "not measured yet"]
    assert rows[0][2:] == ("the first run: 10.0 s", "5.00 x")


def test_headlines_know_what_benchmarks_call_their_comparisons(report: ModuleType, project: pathlib.Path) -> None:
    for headline in report.HEADLINES:
        assert (project / f"benchmarks/{headline.benchmark}.py").exists()


def test_the_pages_are_those_of_the_figures(report: ModuleType, project: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A report that is made anew is the one that is committed, plots and all."""
    copy = tmp_path / "benchmarks"
    copy.mkdir()
    for file in (project / "docs/benchmarks").glob("*"):
        (copy / file.name).write_bytes(file.read_bytes())
    readme = tmp_path / "README.md"
    readme.write_text((project / "README.md").read_text())
    page = tmp_path / "benchmarks.md"
    script = "import sys, pathlib; from benchmarks import report; report.write(*map(pathlib.Path, sys.argv[1:]))"
    python = pathlib.Path(sys.prefix).parent / "bench/bin/python"
    assert python.exists(), "run `./lab test unit` once: it installs matplotlib"
    command = [str(python), "-c", script, str(copy), str(page), str(readme)]
    subprocess.run(command, cwd=project, env={**os.environ, "PYTHONPATH": str(project)}, check=True)
    assert page.read_text() == (project / "docs/benchmarks.md").read_text(), "run: ./lab bench --report"
    assert readme.read_text() == (project / "README.md").read_text()
    for file in copy.glob("*.svg"):
        assert file.read_bytes() == (project / "docs/benchmarks" / file.name).read_bytes()


def test_every_benchmark_is_a_program_and_what_they_share_is_none(report: ModuleType, project: pathlib.Path) -> None:
    programs = set(report.programs(project / "benchmarks"))
    for file in (project / "benchmarks").glob("*.py"):
        assert (file.stem in programs) == file.read_text().startswith("#!/usr/bin/env python3\n"), file
    assert {"growth", "site", "switch"} <= programs
    listed = subprocess.run(["./lab", "bench", "--list"], cwd=project, capture_output=True, text=True, check=True)
    assert listed.stdout.split() == sorted(programs)


PROFILE = {
    "seconds": 12.0,
    "tasks": [
        {"play": "p", "task": "first", "began": 1.0, "hosts": {"main": 2.5, "vm2": 1.0}, "changed": ["vm2"]},
        {"play": "p", "task": "second", "began": 4.0, "hosts": {"main": 0.25}, "changed": []},
        {"play": "q", "task": "third", "began": 4.5, "hosts": {"vm2": 7.0}, "changed": []},
    ],
}


def test_a_profile_has_the_longest_tasks_first_and_sums_the_rest(site: ModuleType) -> None:
    lines = site.profile_tables(PROFILE, ["main", "vm2"], short=1.0)[0].splitlines()
    assert lines[2:] == [
        "| 7.5 | q | third |  | 7.0 |",
        "| 3.0 | p | first | 2.5 | 1.0 |",
        "| 0.5 |  | 1 others | 0.2 |  |",
    ]
    plays = site.profile_tables(PROFILE, ["main", "vm2"], short=1.0)[2].splitlines()
    assert plays[2:] == ["| 3.5 | p | 2 | 2.8 | 1.0 |", "| 7.5 | q | 1 |  | 7.0 |"]
    assert site.changed(PROFILE) == ["first on vm2"]
    assert site.middle([{"seconds": 3.0}, {"seconds": 1.0}, {"seconds": 2.0}]) == {"seconds": 2.0}


def test_runs_are_held_against_the_first_run_and_that_against_the_script(site: ModuleType) -> None:
    took = {"floor": [50.0], "cold": [80.0], "noop": [9.0, 8.0], "ssh": [30.0], "celery": [20.0], "dags": [2.0]}
    found = site.comparisons(took)
    assert [round(one.ratio, 3) for one in found] == [1.6, 0.106, 0.375, 0.25, 0.235]
    assert [one.reached for one in found] == [True, True, False, True, True]


def test_the_callback_notes_each_task_on_each_host(project: pathlib.Path, tmp_path: pathlib.Path) -> None:
    play = [
        {
            "hosts": "all",
            "gather_facts": False,
            "connection": "local",
            "tasks": [
                {"name": "one", "ansible.builtin.command": "true"},
                {"name": "two", "ansible.builtin.debug": {"msg": "x"}, "when": "inventory_hostname == 'a'"},
            ],
        }
    ]
    (tmp_path / "play.yml").write_text(json.dumps(play))
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")},
        "ANSIBLE_CALLBACK_PLUGINS": str(project / "benchmarks/callbacks"),
        "ANSIBLE_CALLBACKS_ENABLED": "durations",
        "DURATIONS": str(tmp_path / "durations.json"),
    }
    python = f"ansible_python_interpreter={sys.executable}"
    command = ["ansible-playbook", "-i", "a,b", "-e", python, str(tmp_path / "play.yml")]
    subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, check=True)
    noted = json.loads((tmp_path / "durations.json").read_text())
    assert [task["task"] for task in noted["tasks"]] == ["one", "two"]
    assert {name for task in noted["tasks"] for name in task["hosts"]} == {"a", "b"}
    assert sorted(noted["tasks"][0]["changed"]) == ["a", "b"]
    assert 0 < noted["tasks"][0]["hosts"]["a"] < noted["seconds"]


def test_vms_are_added_behind_those_that_there_are(growth: ModuleType) -> None:
    present = {"main": "10.1.2.129", "vm2": "10.1.2.130", "vm3": "10.1.2.131"}
    assert growth.added_hosts(present, 3) == {"vm1": "10.1.2.132", "vm4": "10.1.2.133", "vm5": "10.1.2.134"}
    assert growth.added_hosts(present, 0) == {}
    with pytest.raises(ValueError, match="no room"):
        growth.added_hosts({"main": "10.1.2.250"}, 10)


def test_added_vms_have_the_secrets_of_the_inventory(growth: ModuleType, tmp_path: pathlib.Path) -> None:
    assert growth.inventory({"vm4": "10.1.2.132"}, tmp_path)["all"] == {
        "hosts": {"vm4": {"ansible_host": "10.1.2.132", "secrets_directory": str(tmp_path / "secrets")}},
        "children": {"target_vms": {"hosts": {"vm4": {}}}},
    }


def test_an_added_vm_is_made_as_the_lab_makes_its_own(growth: ModuleType) -> None:
    (platform,) = lab.vm_platforms(
        [{"name": "vm4"}], {"vm4": {"ansible_host": "10.1.2.132"}}, "s", "trixie", "/f", "/c"
    )
    options = growth.container_options(platform)
    assert options["name"] == platform["name"]
    assert options["tmpfs"] == {"/run": "", "/run/lock": "", "/tmp": "exec"}  # noqa: S108 (inside the VM)
    assert options["networking_config"][options["network"]]["IPAMConfig"] == {"IPv4Address": "10.1.2.132"}
    assert "privileged" not in options


def test_fewer_vms_than_the_goal_names_do_not_make_it_easier(growth: ModuleType) -> None:
    assert growth.at_most(3, 24) == 2.5
    assert round(growth.at_most(3, 12), 2) == 1.64


def test_growth_is_told_with_what_one_more_vm_costs(growth: ModuleType) -> None:
    took = {3: [6.0, 6.0], 24: [14.0, 13.0, 16.5]}
    found = growth.comparison(took, "ssh")
    assert found.note.startswith("one more VM costs 0.38 s; ")
    assert found.reached
    assert growth.sizes("24,3") == (3, 24)
    assert growth.sizes("") == ()


def test_a_table_stands_between_its_marks(project: pathlib.Path) -> None:
    assert marked.table_in((project / "README.md").read_text(), "benchmarks")


def test_floor_refuses_a_command_that_it_does_not_know(project: pathlib.Path) -> None:
    done = subprocess.run(
        [project / "benchmarks/baselines/floor.sh", "up"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, "floor.sh: no command up\n")


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
    one, eight = {"each": [0.005] * 99 + [0.02], "rate": 190.0}, {"each": [0.02], "rate": 390.0}
    ours = {1: {**one, "busy": 0.004}, 8: {**eight, "busy": 0.005}}
    theirs = {1: {"each": [0.5], "rate": 2.0, "busy": 0.2}, 8: {"each": [0.6], "rate": 13.0, "busy": 0.15}}
    found = module("direct").comparisons(ours, theirs)
    assert [comparison.reached for comparison in found] == [True, True, True, True, True, True]
    assert [round(comparison.ratio, 3) for comparison in found[:3]] == [0.01, 0.01, 95.0]
    assert "takes 5 ms of processor time" in found[-1].note
    assert "one of the reference's 150 ms" in found[-1].note


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
    words = module("transfer").scp_line(target, {**target, "port": 2222}, "/a b", "/c", "SCP")
    assert words[:7] == ["scp", "-3", "-r", "-q", "-O", "-i", "/k"]
    assert words[-2:] == ["scp://rocky@192.168.83.130:22//a b", "scp://rocky@192.168.83.130:2222//c"]
    assert "StrictHostKeyChecking=yes" in words


def test_ways_are_taken_in_turns(module: Any) -> None:
    taken: list[str] = []

    def way(name: str, seconds: float) -> float:
        taken.append(name)
        return seconds

    took = module("transfer").in_turns(2, ours=lambda: way("ours", 1.0), scp=lambda: way("scp", 2.0))
    assert took == {"ours": [1.0, 1.0], "scp": [2.0, 2.0]}
    assert taken == ["ours", "scp", "ours", "scp"]


RECAP = """
TASK [a task that prints changed=5 of something] ***
PLAY RECAP *********************************************************************
main                       : ok=10   changed={main}    unreachable=0    failed=0
vm2                        : ok=10   changed=0    unreachable=0    failed=0
"""


def test_what_a_run_changed_is_told_by_host(running: ModuleType) -> None:
    assert running.changed(RECAP.format(main=0)) == []
    assert running.changed(RECAP.format(main=10)) == ["main : ok=10 changed=10 unreachable=0 failed=0"]


def test_hosts_that_are_not_the_labs_are_not_made_anew(running: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_SUITE", "bookworm")
    monkeypatch.setenv("ANSIBLE_SSH_COMMON_ARGS", "-F '/a lab/distributed/ssh_config' -C")
    assert running.lab_directory() == pathlib.Path("/a lab/distributed")
    monkeypatch.delenv("LAB_SUITE")
    with pytest.raises(running.BenchmarkError, match="lab's VMs"):
        running.lab_directory()


def test_more_vms_may_watch_files_for_as_long_as_they_are_there(
    growth: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    setting = tmp_path / "max_user_instances"
    setting.write_text("128\n")
    monkeypatch.setattr(growth, "WATCHES", setting)
    with growth.more_watches(24):
        assert int(setting.read_text()) >= 128 + 24 * 7
    assert int(setting.read_text()) == 128
