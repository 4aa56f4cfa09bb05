"""What the cluster answers, what is wrong with it, and how it is shown: filter_plugins/status.py."""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

import cluster
import pytest
import status
import yaml

ROOT = pathlib.Path(__file__).parents[2]
GROUPS = {"scheduler": ["main"], "webserver": ["main"], "flower": ["main"], "target_vms": ["vm2", "vm3"]}
ADDRESSES = {"main": "192.0.2.1", "vm2": "192.0.2.2", "vm3": "192.0.2.3"}
TARGETS = [cluster.target({"inventory_hostname": name, "ansible_host": ADDRESSES[name]}) for name in ("vm2", "vm3")]
DAEMONS = ("metadatabase", "scheduler", "dag_processor", "triggerer")
ENVIRONMENT = "3.3.2-0123456789ab"


def plan(mode: str = "celery") -> dict[str, Any]:
    workers = cluster.workers(TARGETS, mode, "main")
    return {
        "mode": mode,
        "hosts": ADDRESSES,
        "airflow": ["main", "vm2", "vm3"] if mode == "celery" else ["main"],
        "units": {host: cluster.unit_names(host, GROUPS, workers) for host in ADDRESSES},
        "services": {"postgresql": ["main"], "rabbitmq-server": ["main"]},
        "workers": workers,
        "queues": cluster.queues(workers),
        "urls": {"UI": "http://192.0.2.1:8080"},
    }


def unit(name: str, state: str = "active", sub: str = "running", since: float = 4000, **more: str) -> str:
    """A paragraph of `systemctl show`, of a host that has been up for 10000 s."""
    says = {
        "NRestarts": "0",
        "Id": f"{name}.service",
        "LoadState": "loaded",
        "ActiveState": state,
        "SubState": sub,
        "StateChangeTimestampMonotonic": str(round((9999 if state == "active" else since) * 1e6)),  # a reload
        "ActiveEnterTimestampMonotonic": str(round((since if state == "active" else 10) * 1e6)),
        **more,
    }
    return "\n".join(f"{key}={value}" for key, value in says.items())


def host(
    units: list[str], environment: str = ENVIRONMENT, offset: float = 0.4, df: str = " 74000 252000 /", mode: str = ""
) -> dict[str, Any]:
    """The registered answer of a host to the shell of playbooks/status.yml."""
    head = [
        f"clock {1000 + offset:.9f} 1000.0",
        "uptime 10000.00",
        f"environment env-{environment}" if environment else "environment ",
        f"mode {mode}",
        " Avail 1M-blocks Mounted on",
        df,
        "",
    ]
    return {"stdout": "\n".join(head) + "\n" + "\n\n".join(units), "rc": 0}


def answers(mode: str = "celery") -> dict[str, Any]:
    """What a healthy cluster of a mode answers."""
    of = plan(mode)
    services = [unit("postgresql", sub="exited"), unit("postgresql@15-main"), unit("rabbitmq-server")]
    hosts = {
        name: host(
            [unit(own) for own in of["units"][name]] + (services if name == "main" else []),
            ENVIRONMENT if name in of["airflow"] else "",
            mode=mode if name == "main" else "",
        )
        for name in ADDRESSES
    }
    slots = {f"celery@{worker['name']}": {"slots": 4, "used": 0} for worker in of["workers"]}
    reached = {"vm2": {"error": ""}, "vm3": {"error": ""}}
    said = [{"workers": slots}, {"depths": dict.fromkeys(of["queues"], 0)}, {"waiting": {}}, {"targets": reached}]
    return {
        "hosts": hosts,
        "airflow": {"stdout": "\n".join(["some warning of Airflow's", *map(json.dumps, said)]), "rc": 0},
        "broker": broker(
            {name: {"messages_ready": 0, "messages_unacknowledged": 0} for name in of["queues"]},
            [name for name, workers in of["queues"].items() for _ in workers],
        ),
        "health": {"status": 200, "json": {part: {"status": "healthy"} for part in DAEMONS}},
    }


def broker(queues: dict[str, Any], consumers: list[str], **node: bool) -> dict[str, Any]:
    """The registered answers of the management API."""
    lists = {
        "queues": [{"name": name, **figures} for name, figures in queues.items()],
        "consumers": [{"queue": {"name": name}} for name in consumers],
        "nodes": [{"name": "rabbit@main", "mem_alarm": False, "disk_free_alarm": False, **node}],
    }
    return {"results": [{"item": name, "status": 200, "json": rows} for name, rows in lists.items()]}


UNREACHABLE = {
    "unreachable": True,
    "msg": "Task failed: Failed to connect to the host via ssh: ssh: connect to host 192.0.2.3 port 22: No route",
}
#: What Ansible registers for a task that was not run since its host is down, and for one with a loop.
SKIPPED = {"skipped": True, "skip_reason": "Conditional result was False"}
SILENT = {"results": [{"item": "queues", "status": -1, "msg": "Request failed: Connection refused"}]}


def collected(mode: str = "celery", **changed: Any) -> dict[str, Any]:
    said = answers(mode)
    said["hosts"].update(changed.pop("hosts", {}))
    return status.collect(plan(mode), {**said, **changed})


def wrong(state: dict[str, Any], disk_mb: int = 1000) -> list[str]:
    return status.problems(state, disk_mb)


def row(state: dict[str, Any], part: str, name: str) -> dict[str, Any]:
    key = part.removesuffix("s")
    return next(entry for entry in state[part] if entry[key] == name)


@pytest.mark.parametrize("mode", ["celery", "ssh"])
def test_a_healthy_cluster_has_no_problem(mode: str) -> None:
    assert wrong(collected(mode)) == []


@pytest.mark.parametrize("mode", ["celery", "ssh"])
def test_everything_of_the_contract_is_told(mode: str) -> None:
    state, of = collected(mode), plan(mode)
    assert [entry["queue"] for entry in state["queues"]] == sorted(of["queues"])
    assert [entry["worker"] for entry in state["workers"]] == [worker["name"] for worker in of["workers"]]
    assert {(entry["host"], entry["unit"]) for entry in state["units"]} == {
        ("main", "postgresql@15-main"),
        ("main", "rabbitmq-server"),
        *((name, own) for name, units in of["units"].items() for own in units),
    }
    assert set(state["daemons"]) == set(DAEMONS)
    shown = status.table(state, [])
    for word in [*of["queues"], *ADDRESSES, ENVIRONMENT, *DAEMONS, "airflow-scheduler", "reached"]:
        assert word in shown
    assert json.loads(json.dumps(state)) == state


def test_a_naked_vm_lacks_nothing() -> None:
    state = collected("ssh")
    assert not row(state, "hosts", "vm2")["has_airflow"]
    assert re.search(r"^vm2 +192\.0\.2\.2 +- +within", status.table(state, []), re.MULTILINE)


def test_a_host_that_is_down_is_one_problem_with_the_reason() -> None:
    state = collected(hosts={"vm3": UNREACHABLE})
    assert wrong(state) == ["vm3 cannot be reached: ssh: connect to host 192.0.2.3 port 22: No route"]
    assert row(state, "units", "airflow-worker-vm3")["state"] == "unknown"
    assert re.search(r"^vm3 +192\.0\.2\.3 +UNREACHABLE", status.table(state, wrong(state)), re.MULTILINE)


def test_a_cluster_whose_main_host_is_down_is_still_shown() -> None:
    skipped = {"results": [{"item": item, **SKIPPED} for item in ("queues", "consumers", "nodes")], **SKIPPED}
    state = collected(hosts={"main": UNREACHABLE}, airflow=SKIPPED, broker=skipped, health=SKIPPED)
    assert wrong(state) == [
        "main cannot be reached: ssh: connect to host 192.0.2.3 port 22: No route",
        "rabbitmq: the management API does not answer: its host is not reached",
        "main could not say all: workers, depths, waiting, targets (its host is not reached)",
    ]
    shown = status.table(state, wrong(state))
    assert "api server  NO ANSWER" in shown
    assert re.search(r"^vm2_queue +- +- +unknown of 1 +unknown$", shown, re.MULTILINE)


def test_nothing_that_was_asked_answers() -> None:
    state = status.collect(
        plan(), {"hosts": {name: {} for name in ADDRESSES}, "airflow": {}, "broker": {}, "health": {}}
    )
    assert len(wrong(state)) == len(ADDRESSES) + 2
    assert status.table(state, wrong(state))


def test_hosts_without_a_cluster_are_told_what_to_run() -> None:
    bare = {name: host([unit("airflow-flower", "inactive", LoadState="not-found")], "") for name in ADDRESSES}
    failed = {"rc": 127, "stdout": "", "stderr": "timeout: failed to run command"}
    state = collected(hosts=bare, airflow=failed, broker=SILENT, health={"status": -1})
    assert wrong(state) == ["No cluster answers here, as Airflow is not installed on main, vm2, vm3: run site.yml."]


def test_a_host_that_was_added_is_told_what_to_run() -> None:
    found = wrong(collected(hosts={"vm3": host([], "")}))
    assert found == [
        "vm3: Airflow is not installed. Run site.yml.",
        "airflow-worker-vm3 on vm3: missing. Run site.yml.",
    ]


def test_hosts_on_different_environments() -> None:
    (found,) = wrong(collected(hosts={"vm3": host([unit("airflow-worker-vm3")], "3.0.0-older")}))
    assert "different environments" in found
    assert "vm3 3.0.0-older" in found


def test_a_unit_that_failed_is_named_with_its_host_and_since_when() -> None:
    state = collected(hosts={"vm2": host([unit("airflow-worker-vm2", "failed", "failed", since=9930)])})
    assert wrong(state) == ["airflow-worker-vm2 on vm2: failed for 1 min 10 s (journalctl -u airflow-worker-vm2)."]
    assert re.search(
        r"^airflow-worker-vm2 +vm2 +FAILED \(failed\) +1 min 10 s +0$", status.table(state, []), re.MULTILINE
    )


@pytest.mark.parametrize(("since", "problems"), [(9995, 1), (9000, 0)])
def test_a_unit_that_dies_over_and_over_is_active_most_of_the_time(since: float, problems: int) -> None:
    found = wrong(collected(hosts={"vm2": host([unit("airflow-worker-vm2", since=since, NRestarts="7")])}))
    assert len(found) == problems
    assert all("restarted 7 times by systemd, and last 5 s ago" in sentence for sentence in found)


def test_a_database_that_is_down_behind_the_unit_of_the_package() -> None:
    """Debian's postgresql.service runs nothing, and stays active."""
    units = [unit(own) for own in plan()["units"]["main"]] + [unit("rabbitmq-server"), unit("postgresql", sub="exited")]
    state = collected(hosts={"main": host([*units, unit("postgresql@15-main", "failed", "failed")])})
    (found,) = wrong(state)
    assert found.startswith("postgresql@15-main on main: failed")


def test_a_cluster_that_was_switched_on_the_command_line() -> None:
    found = wrong(status.collect(plan("celery"), answers("ssh")))
    assert found[0].startswith("The cluster is in mode ssh, and is compared with mode celery")


def test_a_unit_that_the_mode_does_not_have() -> None:
    (found,) = wrong(collected("ssh", hosts={"vm2": host([unit("airflow-worker-vm2")], "")}))
    assert found.startswith("airflow-worker-vm2 on vm2: runs, and is not in the inventory")


def test_a_unit_that_an_earlier_layout_left_and_that_does_not_run_is_not_shown() -> None:
    state = collected("ssh", hosts={"vm2": host([unit("airflow-worker-vm2", "inactive", "dead")], "")})
    assert wrong(state) == []
    assert not [entry for entry in state["units"] if entry["host"] == "vm2"]


def test_depth_and_age_of_a_queue() -> None:
    figures = {"messages_ready": 3, "messages_unacknowledged": 2}
    queues = {name: figures for name in ("vm2_queue", "vm3_queue")}
    parts: list[dict[str, Any]] = [
        {"workers": {}},
        {"depths": {"vm2_queue": 4}},
        {"waiting": {"vm2_queue": 75.4}},
        {"targets": {}},
    ]
    state = collected(broker=broker(queues, ["vm2_queue"]), airflow={"stdout": "\n".join(map(json.dumps, parts))})
    known = row(state, "queues", "vm2_queue")
    # Four: the broker's own three were counted some seconds ago.
    assert (known["ready"], known["in_work"], known["consumers"], known["consumers_expected"]) == (4, 2, 1, 1)
    assert row(state, "queues", "vm3_queue")["ready"] == 3
    assert known["oldest_waits_seconds"] == 75
    # Airflow has no task there: what waits is someone else's, and nobody knows since when.
    assert row(state, "queues", "vm3_queue")["oldest_waits_seconds"] == "unknown"
    assert row(state, "queues", "default")["oldest_waits_seconds"] is None


def test_a_queue_that_no_worker_of_the_inventory_consumes() -> None:
    own = {
        "celery@vm2.celery.pidbox": 0,
        "celery_delayed_27": 1,
        "remote_tasks.reply.1": 1,
        "0d0c1b9e-22a8-4d7e-9b1c-0123456789ab": 2,
    }
    queues = {"vm4_queue": {"messages_ready": 2}, **{name: {"messages_ready": 5} for name in own}}
    consumers = [name for name, workers in plan()["queues"].items() for _ in workers]
    state = collected(broker=broker(queues, consumers))
    assert wrong(state) == ["queue vm4_queue: 2 waiting, and no worker in the inventory consumes it."]


def test_a_broker_that_is_down() -> None:
    state = collected(broker=SILENT)
    assert wrong(state) == ["rabbitmq: the management API does not answer: Request failed: Connection refused"]
    assert "rabbitmq       NO ANSWER" in status.table(state, wrong(state))


def test_an_alarm_of_the_broker() -> None:
    state = collected(broker=broker({}, [], disk_free_alarm=True))
    assert wrong(state) == ["rabbitmq: alarm: disk is short, and nobody may publish."]
    assert "ALARM: DISK IS SHORT" in status.table(state, wrong(state))


def test_a_daemon_that_is_not_healthy_is_shown() -> None:
    health = {"status": 200, "json": {"scheduler": {"status": "unhealthy"}, "triggerer": {"status": None}}}
    state = collected(health=health)
    assert state["daemons"] == {"scheduler": "unhealthy", "triggerer": "absent"}
    assert re.search(r"^scheduler +UNHEALTHY$", status.table(state, []), re.MULTILINE)


def test_slots_of_workers() -> None:
    workers = {"celery@vm2": {"slots": 4, "used": 3}}
    said = "\n".join(map(json.dumps, ({"workers": workers}, {"depths": {}}, {"waiting": {}}, {"targets": {}})))
    state = collected(airflow={"stdout": said})
    assert re.search(r"^vm2 +vm2 +3 of 4 +vm2_queue, default$", status.table(state, []), re.MULTILINE)
    assert re.search(r"^vm3 +vm3 +NO ANSWER", status.table(state, []), re.MULTILINE)


def test_what_main_could_not_learn_is_a_problem_and_not_a_zero() -> None:
    said = "\n".join(map(json.dumps, ({"workers": {"error": "OperationalError"}}, {"depths": {}}, {"waiting": {}})))
    state = collected(airflow={"stdout": said, "stderr": "Terminated"})
    assert wrong(state) == ["main could not say all: workers (OperationalError), targets (Terminated)"]
    assert row(state, "workers", "vm2")["answers"] is None


def test_a_target_that_main_does_not_reach() -> None:
    said = answers("ssh")["airflow"]["stdout"].replace('"vm3": {"error": ""}', '"vm3": {"error": "no route"}')
    state = collected("ssh", airflow={"stdout": said})
    assert wrong(state) == ["vm3: main does not reach it: no route"]


def test_a_disk_that_is_nearly_full_and_one_disk_for_several_directories() -> None:
    df = " 74000 252000 /\n   900  10000 /var/lib with blank\n 74000 252000 /"
    state = collected(hosts={"vm2": host([unit("airflow-worker-vm2")], df=df)})
    assert [disk["path"] for disk in row(state, "hosts", "vm2")["disks"]] == ["/", "/var/lib with blank"]
    assert wrong(state) == ["vm2: 900 MB are free on /var/lib with blank, and 1000 MB are needed. Free some."]
    assert wrong(state, disk_mb=500) == []


def test_clocks_of_those_that_answer() -> None:
    hosts = {"main": host([], offset=0.5), "vm2": host([], offset=-20), "vm3": UNREACHABLE}
    readings = status.clocks(hosts)
    assert set(readings) == {"main", "vm2"}
    asked = max(float(reading.split()[1]) for reading in readings.values())
    assert cluster.clock_problems(readings, asked + 1, 8)
    state = collected(hosts={"vm2": host([unit("airflow-worker-vm2")], offset=-20)})
    assert row(state, "hosts", "vm2")["clock_offset"] == -20
    assert re.search(r"^vm2 .* -20 s ", status.table(state, []), re.MULTILINE)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0, "0 s"), (59.9, "59 s"), (60, "1 min"), (3725, "1 h 2 min"), (90000, "1 d 1 h"), (86460, "1 d")],
)
def test_a_duration_has_two_units_at_most(seconds: float | None, text: str) -> None:
    assert status.duration(seconds) == text


def test_the_verdict_stands_on_top() -> None:
    state = collected()
    assert [line.split() for line in status.table(state, []).splitlines()[:2]] == [
        ["mode", "celery"],
        ["state", "healthy"],
    ]
    assert "NOT HEALTHY: 1 problem," in status.table(state, ["something"])


def test_a_table_survives_yaml_as_it_is() -> None:
    """Ansible prints it as a block only when no line ends in a blank and no tab is in it."""
    shown = status.table(collected(hosts={"vm3": UNREACHABLE}), ["something"])
    assert "\t" not in shown
    assert shown.splitlines() == [line.rstrip() for line in shown.splitlines()]


def test_limits_are_those_of_the_roles() -> None:
    text = (ROOT / "playbooks/status.yml").read_text()
    used = re.findall(r"\b((airflow|preflight)_\w+) \| default\('?(.+?)'?\)", text)
    assert {name for name, _, _ in used} >= {"preflight_disk_mb", "preflight_clock_tolerance", "airflow_install_dir"}
    for name, role, default in used:
        assert str(yaml.safe_load((ROOT / f"roles/{role}/defaults/main.yml").read_text())[name]) == default
