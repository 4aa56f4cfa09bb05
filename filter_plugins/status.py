"""What a running cluster answers, put together: its state, what is wrong with it, and a table for a person.

Pure functions without I/O, used as filters by ``playbooks/status.yml``. Ansible's registered results come
in as they are, with all that can be missing from them when a host, a daemon or the broker is down.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

UNKNOWN = "unknown"
#: A unit that systemd itself started again this short a time ago, in seconds, may be dying over and over.
RESTARTED_LATELY = 60
#: Seconds that asking a host may take, and that are in the reading of its clock.
CLOCK_NOISE = 2
#: Queues for no tasks: Celery's commands, events, delays and results (named by a UUID), remote_tasks' replies.
INTERNAL = re.compile(
    r".*pidbox|celeryev.*|celery_delayed_.*|(.*\.)?amq\..*|remote_tasks\.reply\..*|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
)
#: What RabbitMQ says of a node, and what that means.
ALARMS = {"mem_alarm": "memory is short", "disk_free_alarm": "disk is short"}

Answer = Mapping[str, Any]
Row = dict[str, Any]
#: Queue to seconds; None when Airflow could not say.
Waiting = Mapping[str, float] | None


def collect(plan: Mapping[str, Any], answers: Mapping[str, Any]) -> dict[str, Any]:
    """Put together what the cluster answered.

    Args:
        plan: What the inventory says: ``mode``, ``hosts`` (name to address), ``airflow`` (hosts that Airflow is
            installed on), ``units`` (host to its units of Airflow), ``services`` (other unit to hosts),
            ``workers`` and ``queues`` (as in ``filter_plugins/cluster.py``), ``urls`` (name to address).
        answers: The registered results: ``hosts`` (name to result), ``airflow``, ``broker`` and ``health``.

    Returns:
        The state: ``mode``, ``recorded_mode`` (of the last site.yml; '' when not known), ``urls``, ``hosts``,
        ``units``, ``queues``, ``workers``, ``daemons``, ``broker``, ``targets`` and ``asking_main`` (what main
        could not say).
    """
    hosts = {name: _host(answers["hosts"].get(name) or {}) for name in plan["hosts"]}
    airflow = _airflow(answers["airflow"])
    broker = _broker(answers["broker"])
    return {
        "mode": plan["mode"],
        "recorded_mode": next((answer["mode"] for answer in hosts.values() if answer["mode"]), ""),
        "urls": dict(plan["urls"]),
        "hosts": [_host_row(name, plan, answer) for name, answer in hosts.items()],
        "units": [row for name, answer in hosts.items() for row in _unit_rows(name, plan, answer)],
        "queues": _queue_rows(plan["queues"], broker, airflow["depths"] or {}, airflow["waiting"]),
        "workers": [_worker_row(worker, airflow["workers"]) for worker in plan["workers"]],
        "daemons": {
            part: (said or {}).get("status") or "absent"
            for part, said in _json_of(answers["health"], {}).items()
            if isinstance(said, Mapping)
        },
        "broker": {"answers": broker["answers"], "error": broker["error"], "alarms": broker["alarms"]},
        "targets": airflow["targets"],
        "asking_main": airflow["error"],
    }


def clocks(hosts: Mapping[str, Answer]) -> dict[str, str]:
    """Take from the hosts' answers what ``cluster_clock_problems`` compares.

    Args:
        hosts: Host to the registered result of asking it.

    Returns:
        Host to its clock and the control node's, with a blank between them; only those that answered.
    """
    readings = {name: _said(answer, "clock") for name, answer in hosts.items()}
    return {name: reading for name, reading in readings.items() if reading}


def _said(answer: Answer, word: str) -> str:
    """Return what follows a word at the beginning of a line of a host's answer."""
    lines = (line.partition(" ") for line in str(answer.get("stdout") or "").splitlines())
    return next((rest for first, _, rest in lines if first == word), "")


def _host(answer: Answer) -> dict[str, Any]:
    text = str(answer.get("stdout") or "")
    clock = _said(answer, "clock").split()
    return {
        "reached": bool(clock),
        "error": "" if clock else _reason(answer),
        "clock_offset": round(float(clock[0]) - float(clock[1]), 1) if clock else None,
        "environment": _said(answer, "environment").removeprefix("env-"),
        "mode": _said(answer, "mode"),
        "disks": _disks(text),
        "units": _units(text, float(_said(answer, "uptime") or 0)),
    }


def _reason(answer: Answer) -> str:
    """Return the end of Ansible's message, which is what the program itself said."""
    if answer.get("skipped"):
        return "its host is not reached"
    message = " ".join(str(answer.get("stderr") or answer.get("msg") or "it was not asked").split())
    return message.removeprefix("Task failed: ").removeprefix("Failed to connect to the host via ssh: ")


def _disks(text: str) -> list[Row]:
    """Read what ``df`` prints: free, size, mount point; several directories may stand on one disk."""
    found = re.findall(r"^ *(\d+) +(\d+) (/.*)$", text, re.MULTILINE)
    disks = {path: {"path": path, "free_mb": int(free), "size_mb": int(size)} for free, size, path in found}
    return list(disks.values())


def _units(text: str, uptime: float) -> dict[str, Row]:
    """Read what ``systemctl show`` prints: a paragraph a unit, and the same unit perhaps twice."""
    units = {}
    for paragraph in re.split(r"\n\s*\n", text):
        says = dict(re.findall(r"^(\w+)=(.*)$", paragraph, re.MULTILINE))
        if not says.get("Id"):
            continue
        # A reload is a change of state, and no restart.
        since = "ActiveEnterTimestamp" if says.get("ActiveState") == "active" else "StateChangeTimestamp"
        changed = int(says.get(f"{since}Monotonic") or 0) / 1e6
        restarts = says.get("NRestarts", "")
        missing = says.get("LoadState") == "not-found"
        units[says["Id"].removesuffix(".service")] = {
            "state": "missing" if missing else says.get("ActiveState", UNKNOWN),
            "sub_state": "" if missing else says.get("SubState", ""),
            "for_seconds": round(max(0.0, uptime - changed)) if changed else None,
            "restarts": int(restarts) if restarts.isdigit() else 0,
        }
    return units


def _host_row(name: str, plan: Mapping[str, Any], answer: Row) -> Row:
    row = {key: answer[key] for key in ("reached", "error", "clock_offset", "environment", "disks")}
    return {"host": name, "address": plan["hosts"][name], "has_airflow": name in plan["airflow"], **row}


def _unit_rows(host: str, plan: Mapping[str, Any], answer: Row) -> list[Row]:
    seen: dict[str, Row] = answer["units"]
    expected = [*plan["units"].get(host, []), *(unit for unit, hosts in plan["services"].items() if host in hosts)]
    # Debian's postgresql.service is an empty one, active even when the database itself is not.
    instances = [unit for unit in seen if unit.startswith("postgresql@")]
    if instances and "postgresql" in expected:
        expected = [unit for unit in expected if unit != "postgresql"] + instances
    stray = [
        unit
        for unit, says in seen.items()
        if unit.startswith("airflow-") and unit not in expected and says["state"] not in ("inactive", "missing")
    ]
    absent = {"state": UNKNOWN if not answer["reached"] else "missing", "sub_state": ""}
    nothing = {**absent, "for_seconds": None, "restarts": None}
    return [{"unit": unit, "host": host, "expected": True, **seen.get(unit, nothing)} for unit in expected] + [
        {"unit": unit, "host": host, "expected": False, **seen[unit]} for unit in stray
    ]


def _json_of(result: Answer, otherwise: Any) -> Any:
    """Return the JSON of an answer with status 200, and nothing of any other."""
    return result.get("json", otherwise) if result.get("status") == 200 else otherwise


def _broker(answer: Answer) -> dict[str, Any]:
    """Read the management API's lists of queues, consumers and nodes: the results of one loop."""
    by_name = {str(result.get("item")): result for result in answer.get("results", ())}
    lists = {name: _json_of(by_name.get(name, {}), None) for name in ("queues", "consumers", "nodes")}
    silent = [name for name, rows in lists.items() if rows is None]
    queues = lists["queues"] or []
    return {
        "answers": not silent,
        "error": _reason(by_name.get(silent[0], answer)) if silent else "",
        "queues": {str(queue["name"]): queue for queue in queues},
        "consumers": Counter(str(consumer["queue"]["name"]) for consumer in lists["consumers"] or []),
        "alarms": [meaning for node in lists["nodes"] or [] for name, meaning in ALARMS.items() if node.get(name)],
    }


def _airflow(answer: Answer) -> dict[str, Any]:
    """Read the lines of ``files/status_airflow.py``; what it could not learn is ``None``."""
    known: dict[str, Any] = dict.fromkeys(("workers", "depths", "waiting", "targets"))
    for line in str(answer.get("stdout") or "").splitlines():
        if line.startswith("{"):
            known.update(json.loads(line))
    failed = [f"{part} ({value['error']})" for part, value in known.items() if value and "error" in value]
    missing = [part for part, value in known.items() if value is None]
    known.update({part: None for part, value in known.items() if value and "error" in value})
    reason = f"{', '.join(missing)} ({_reason(answer)})" if missing else ""
    return {**known, "targets": known["targets"] or {}, "error": ", ".join([*failed, reason] if reason else failed)}


def _queue_rows(
    contract: Mapping[str, Sequence[str]], broker: Answer, depths: Mapping[str, int], waiting: Waiting
) -> list[Row]:
    forgotten = [
        name
        for name, queue in broker["queues"].items()
        if name not in contract and not INTERNAL.fullmatch(name) and queue.get("messages_ready")
    ]
    return [
        _queue_row(name, contract.get(name, ()), broker, depths, waiting)
        for name in [*sorted(contract), *sorted(forgotten)]
    ]


def _queue_row(name: str, workers: Sequence[str], broker: Answer, depths: Mapping[str, int], waiting: Waiting) -> Row:
    queue = broker["queues"].get(name, {})
    ready = depths.get(name, queue.get("messages_ready", 0) if broker["answers"] else None)
    oldest: float | str | None
    if waiting is not None and name in waiting:
        oldest = round(waiting[name])
    else:
        # A message that Airflow knows nothing of, from remote_tasks for instance, carries no time.
        oldest = UNKNOWN if waiting is None or ready else None
    return {
        "queue": name,
        "expected": bool(workers),
        "ready": ready,
        "in_work": queue.get("messages_unacknowledged", 0) if broker["answers"] else None,
        "consumers": broker["consumers"][name] if broker["answers"] else None,
        "consumers_expected": len(workers),
        "workers": list(workers),
        "oldest_waits_seconds": oldest,
    }


def _worker_row(worker: Answer, answered: Mapping[str, Any] | None) -> Row:
    slots = (answered or {}).get(f"celery@{worker['name']}") or {}
    return {
        "worker": worker["name"],
        "host": worker["host"],
        "queues": list(worker["queues"]),
        "answers": None if answered is None else bool(slots),
        "slots": slots.get("slots"),
        "slots_used": slots.get("used"),
    }


def problems(status: Mapping[str, Any], disk_mb: int, others: Sequence[str] = ()) -> list[str]:
    """Say what is wrong with the cluster.

    Args:
        status: The state, as made by :func:`collect`.
        disk_mb: Free disk that each host needs, in MB.
        others: Sentences of other checks (daemons, consumers, clocks).

    Returns:
        One sentence a problem, the ones that explain others first; nothing when the cluster is healthy.
    """
    bare = [row["host"] for row in status["hosts"] if row["has_airflow"] and row["reached"] and not row["environment"]]
    built = [row["host"] for row in status["hosts"] if row["environment"]]
    unreached = [f"{row['host']} cannot be reached: {row['error']}" for row in status["hosts"] if not row["reached"]]
    if bare and not built:
        where = ", ".join(bare)
        return [*unreached, f"No cluster answers here, as Airflow is not installed on {where}: run site.yml."]
    return [
        *unreached,
        *_mode_problems(status["mode"], status["recorded_mode"]),
        *(f"{host}: Airflow is not installed. Run site.yml." for host in bare),
        *_environment_problems(status["hosts"]),
        *(sentence for row in status["units"] for sentence in _unit_problems(row)),
        *_broker_problems(status["broker"]),
        *others,
        *_queue_problems(status["queues"]),
        *(f"{vm}: main does not reach it: {said['error']}" for vm, said in status["targets"].items() if said["error"]),
        *([f"main could not say all: {status['asking_main']}"] if status["asking_main"] else []),
        *_disk_problems(status["hosts"], disk_mb),
    ]


def _mode_problems(asked: str, recorded: str) -> list[str]:
    if recorded in ("", asked):
        return []
    return [
        f"The cluster is in mode {recorded}, and is compared with mode {asked}."
        f" Run site.yml, or add -e mode={recorded}."
    ]


def _environment_problems(hosts: Iterable[Row]) -> list[str]:
    found = {row["host"]: row["environment"] for row in hosts if row["has_airflow"] and row["environment"]}
    if len(set(found.values())) < 2:
        return []
    listed = ", ".join(f"{host} {environment}" for host, environment in found.items())
    return [f"Hosts have different environments: {listed}. Run site.yml on all of them."]


def _unit_problems(row: Row) -> list[str]:
    name = f"{row['unit']} on {row['host']}"
    if not row["expected"]:
        return [f"{name}: runs, and is not in the inventory with this mode. Run site.yml."]
    if row["state"] == UNKNOWN:
        return []  # its host was not reached, which is said
    if row["state"] == "missing":
        return [f"{name}: missing. Run site.yml."]
    if row["state"] != "active":
        since = f" for {duration(row['for_seconds'])}" if row["for_seconds"] is not None else ""
        return [f"{name}: {row['state']}{since} (journalctl -u {row['unit']})."]
    if row["restarts"] and row["for_seconds"] is not None and row["for_seconds"] < RESTARTED_LATELY:
        times = f"{row['restarts']} time{'s' if row['restarts'] > 1 else ''}"
        ago = duration(row["for_seconds"])
        return [f"{name}: restarted {times} by systemd, and last {ago} ago (journalctl -u {row['unit']})."]
    return []


def _broker_problems(broker: Answer) -> list[str]:
    if not broker["answers"]:
        return [f"rabbitmq: the management API does not answer: {broker['error']}"]
    return [f"rabbitmq: alarm: {alarm}, and nobody may publish." for alarm in broker["alarms"]]


def _queue_problems(queues: Iterable[Row]) -> list[str]:
    return [
        f"queue {row['queue']}: {row['ready']} waiting, and no worker in the inventory consumes it."
        for row in queues
        if not row["expected"] and not row["consumers"]
    ]


def _disk_problems(hosts: Iterable[Row], disk_mb: int) -> list[str]:
    return [
        f"{row['host']}: {disk['free_mb']} MB are free on {disk['path']}, and {disk_mb} MB are needed. Free some."
        for row in hosts
        for disk in row["disks"]
        if disk["free_mb"] < disk_mb
    ]


def duration(seconds: float | None) -> str:
    """Write a length of time with its two largest units.

    Args:
        seconds: The time; None for one that is not known.

    Returns:
        For instance ``3 d 4 h``, ``5 min 2 s`` or ``-``.
    """
    if seconds is None:
        return "-"
    rest, parts = int(seconds), list[str]()
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        count, rest = divmod(rest, size)
        if count or parts:
            parts.append(f"{count} {unit}")
    return " ".join(part for part in parts[:2] if not part.startswith("0 ")) or "0 s"


def table(status: Mapping[str, Any], found: Sequence[str]) -> str:
    """Show the state to a person.

    Args:
        status: The state, as made by :func:`collect`.
        found: What is wrong, as made by :func:`problems`.

    Returns:
        Aligned lines, in sections with a blank line between them.
    """
    count = f"{len(found)} problem{'s' if len(found) != 1 else ''}"
    verdict = f"NOT HEALTHY: {count}, listed below" if found else "healthy"
    head = [("mode", status["mode"]), ("state", verdict), *status["urls"].items()]
    sections = [
        _aligned(head),
        _aligned([("HOST", "ADDRESS", "AIRFLOW", "CLOCK", "DISK FREE"), *map(_host_cells, status["hosts"])]),
        _aligned([("UNIT", "HOST", "STATE", "FOR", "RESTARTS"), *map(_unit_cells, status["units"])]),
        _aligned([("QUEUE", "READY", "IN WORK", "CONSUMERS", "OLDEST WAITS"), *map(_queue_cells, status["queues"])]),
        _aligned([("WORKER", "HOST", "SLOTS USED", "QUEUES"), *map(_worker_cells, status["workers"])]),
        _aligned([("PART", "HEALTH"), *_health_cells(status)]),
        _aligned([("TARGET VM", "FROM MAIN"), *((name, _target(said)) for name, said in status["targets"].items())]),
    ]
    return "\n\n".join(section for section in sections if "\n" in section)


def _aligned(rows: Iterable[Sequence[Any]]) -> str:
    texts = [["-" if cell is None else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in texts)
    return "\n".join(line.rstrip() for line in lines)


def _host_cells(row: Row) -> tuple[Any, ...]:
    if not row["reached"]:
        return row["host"], row["address"], "UNREACHABLE", None, None
    installed = row["environment"] or "NOT INSTALLED"
    disks = ", ".join(f"{disk['path']} {_gb(disk['free_mb'])} of {_gb(disk['size_mb'])} GB" for disk in row["disks"])
    return row["host"], row["address"], installed if row["has_airflow"] else None, _clock(row["clock_offset"]), disks


def _gb(megabytes: int) -> str:
    return f"{megabytes / 1024:.1f}"


def _clock(offset: float) -> str:
    return f"within {CLOCK_NOISE} s" if abs(offset) <= CLOCK_NOISE else f"{offset:+.0f} s"


def _unit_cells(row: Row) -> tuple[Any, ...]:
    state = row["state"] if row["state"] == "active" else row["state"].upper()
    if not row["expected"]:
        state = f"{state}, NOT IN INVENTORY"
    elif row["state"] != "active" and row["sub_state"]:
        state = f"{state} ({row['sub_state']})"  # "auto-restart" tells more than "activating"
    return row["unit"], row["host"], state, duration(row["for_seconds"]), row["restarts"]


def _queue_cells(row: Row) -> tuple[Any, ...]:
    consumers = f"{UNKNOWN if row['consumers'] is None else row['consumers']} of {row['consumers_expected']}"
    oldest = row["oldest_waits_seconds"]
    return (
        row["queue"],
        row["ready"],
        row["in_work"],
        consumers,
        oldest if oldest == UNKNOWN else duration(oldest),
    )


def _worker_cells(row: Row) -> tuple[Any, ...]:
    slots = f"{row['slots_used']} of {row['slots']}"
    if not row["answers"]:
        slots = UNKNOWN if row["answers"] is None else "NO ANSWER"
    return row["worker"], row["host"], slots, ", ".join(row["queues"])


def _health_cells(status: Mapping[str, Any]) -> list[tuple[str, str]]:
    broker = status["broker"]
    rabbitmq = "healthy" if broker["answers"] else "NO ANSWER"
    rabbitmq = f"ALARM: {', '.join(broker['alarms'])}" if broker["alarms"] else rabbitmq
    daemons = list(status["daemons"].items()) or [("api server", "NO ANSWER")]
    return [(part, said if said == "healthy" else said.upper()) for part, said in [*daemons, ("rabbitmq", rabbitmq)]]


def _target(said: Answer) -> str:
    return f"NOT REACHED: {said['error']}" if said["error"] else "reached"


class FilterModule:
    """The functions above as Ansible filters, under the prefix ``status_``."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return filter names and functions."""
        exported: tuple[Callable[..., Any], ...] = (collect, clocks, problems, table)
        return {f"status_{function.__name__}": function for function in exported}
