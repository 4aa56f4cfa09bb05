"""What each unit may do and see, asked of systemd, of its processes and of tasks that try; and that a task which
eats memory dies alone.
"""

from __future__ import annotations

import json
import pathlib
import shlex
import shutil
from collections.abc import Iterator
from typing import Any

import airflow_api
import pytest
from conftest import Cluster, SiteRun
from test_airflow import airflow_hosts, show, units
from testinfra.host import Host

#: The most that systemd may count against a unit, from 0 (held as far as can be) to 10, by how it is held. Commands
#: for the VM that a worker stands on act as its login, by sudo: nothing can be taken from those.
EXPOSURE = {"daemon": 1.5, "parser": 1.5, "commands": 2.0, "tasks": 2.5, "open": 9.6}

#: What each unit finds in the directory of secrets. Workers find the same on every host.
SECRETS = {
    "airflow-scheduler": {
        "sql_alchemy_conn",
        "fernet_key",
        "jwt_private_key",
        "jwt_public_keys",
        "broker_url",
        "result_backend",
    },
    "airflow-dag-processor": {"sql_alchemy_conn", "fernet_key"},
    "airflow-triggerer": {"sql_alchemy_conn", "fernet_key", "api_secret_key"},
    "airflow-webserver": {
        "sql_alchemy_conn",
        "fernet_key",
        "jwt_private_key",
        "jwt_public_keys",
        "api_secret_key",
        "session_secret_key",
    },
    "airflow-flower": {"flower_broker_url", "flower_basic_auth"},
}
WORKER_SECRETS = {"broker_url", "result_backend", "api_secret_key"}
#: Those that reach target VMs, or may be asked to.
WITH_KEY = {"airflow-triggerer", "airflow-worker-general"}


def kind(cluster: Cluster, unit: str) -> str:
    """How a unit is held by default."""
    if "-worker-" not in unit:
        return "parser" if unit in ("airflow-dag-processor", "airflow-triggerer") else "daemon"
    (worker,) = [worker for worker in cluster.workers if worker["unit"] == unit]
    if worker["role"] == "ssh_worker":
        return "commands"
    return "open" if worker["host"] in cluster.groups["target_vms"] else "tasks"


def all_units(cluster: Cluster) -> list[tuple[str, Host, str]]:
    """Host name, host and unit name of every unit of Airflow's."""
    return [
        (name, host, unit.removesuffix(".service")) for name, host in airflow_hosts(cluster) for unit in units(host)
    ]


def processes(host: Host, unit: str) -> list[str]:
    """The unit's processes, the main one first."""
    main = show(host, unit, "MainPID")["MainPID"]
    others = host.check_output(f"pgrep --parent {main} || true").split()
    return [main, *others]


def test_systemd_finds_every_unit_held(cluster: Cluster) -> None:
    found: dict[tuple[str, str], float] = {}
    for name, host in airflow_hosts(cluster):
        rated = json.loads(host.check_output("systemd-analyze security --no-pager --json=short"))
        found |= {
            (name, rating["unit"].removesuffix(".service")): float(rating["exposure"])
            for rating in rated
            if rating["unit"].startswith("airflow-")
        }
    print(json.dumps({f"{name} {unit}": exposure for (name, unit), exposure in found.items()}, indent=2))
    assert set(found) == {(name, unit) for name, _host, unit in all_units(cluster)}
    over = {key: exposure for key, exposure in found.items() if exposure > EXPOSURE[kind(cluster, key[1])]}
    assert not over


def test_a_unit_finds_its_own_secrets_and_no_others(cluster: Cluster) -> None:
    """Seen through its processes, with root's eyes."""
    for name, host, unit in all_units(cluster):
        wanted = SECRETS.get(unit, WORKER_SECRETS)
        if unit in {worker["unit"] for worker in cluster.workers if not worker["serves_logs"]}:
            wanted = wanted - {"api_secret_key"}
        for pid in processes(host, unit):
            found = host.check_output(f"find /proc/{pid}/root/etc/airflow/secrets -type f -size +0 -printf '%f\\n'")
            assert set(found.split()) == wanted, f"{name}: {unit}"


def test_the_key_for_target_vms_is_seen_by_those_that_connect(cluster: Cluster, main: Host) -> None:
    for name, host, unit in all_units(cluster):
        if name != cluster.first("scheduler"):
            continue
        pid = processes(host, unit)[0]
        seen = main.run(f"test -s /proc/{pid}/root/etc/airflow/ssh/id_ed25519").succeeded
        assert seen == (unit in WITH_KEY or kind(cluster, unit) == "commands"), unit


def test_daemons_write_to_logs_at_most(cluster: Cluster, main: Host) -> None:
    """And have nothing in AIRFLOW_HOME, whose plugins they would run: a task may write there."""
    for name, _host, unit in all_units(cluster):
        if name != cluster.first("scheduler") or kind(cluster, unit) not in ("daemon", "parser"):
            continue
        pid = processes(main, unit)[0]
        assert main.check_output(f"ls -A /proc/{pid}/root/var/lib/airflow") == "", unit
        mounts = [line.split() for line in main.check_output(f"cat /proc/{pid}/mountinfo").splitlines()]
        writable = {
            fields[4]
            for fields in mounts
            if "rw" in fields[5].split(",") and not fields[4].startswith(("/dev", "/proc", "/sys"))
        }
        logs = {"/var/log/airflow"} if kind(cluster, unit) == "parser" else set()
        # Left out: /run (root's alone) and /run/lock (open to all) stayed writable mounts in the lab's containers.
        assert writable - {"/run", "/run/lock"} == logs | {"/tmp", "/var/tmp", f"/run/{unit}"}, unit  # noqa: S108 - its own ones


def test_every_unit_leaves_the_host_some_room(cluster: Cluster) -> None:
    for name, host, unit in all_units(cluster):
        found = show(host, unit, "MemoryMax", "TasksMax", "OOMPolicy", "OOMScoreAdjust", "CPUWeight")
        memory = 1024 * int(host.check_output("awk '/^MemTotal:/ {print $2}' /proc/meminfo"))
        assert 0 < int(found["MemoryMax"]) <= 0.75 * memory, f"{name}: {unit}"
        assert 0 < int(found["TasksMax"]) <= 4096
        if "-worker-" in unit:
            assert (found["OOMPolicy"], found["OOMScoreAdjust"], found["CPUWeight"]) == ("continue", "500", "50")
        pid = processes(host, unit)[0]
        assert host.check_output(f"cat /proc/{pid}/oom_score_adj") == found["OOMScoreAdjust"]


#: A task on main looks for what it should not find. It says what it found, never what stood there. The second one
#: takes memory until somebody objects.
PROBE = """
import datetime
from airflow.sdk import DAG, task

start = datetime.datetime(2024, 5, 1, tzinfo=datetime.timezone.utc)

with DAG("probe_held", schedule=None, start_date=start):

    @task(queue="all_vms_queue")
    def look():
        import glob, os, subprocess

        def opens(path):
            try:
                with open(path, "rb") as file:
                    return bool(file.read(1))
            except OSError:
                return False

        def links(path):
            try:
                return bool(os.readlink(path))
            except OSError:
                return False

        def text(path):
            try:
                with open(path) as file:
                    return file.read()
            except OSError:
                return None

        def exists(process):
            try:
                os.kill(process, 0)
            except ProcessLookupError:
                return False
            except PermissionError:
                pass
            return True

        # /proc may not list them, so every number is tried.
        there = [process for process in range(1, int(text("/proc/sys/kernel/pid_max"))) if exists(process)]
        cgroup = text("/proc/self/cgroup")
        own = [process for process in there if text(f"/proc/{process}/cgroup") == cgroup]
        others = sorted(set(there) - set(own))
        readable = [
            path
            for process in others
            for path in (f"/proc/{process}/environ", f"/proc/{process}/maps", f"/proc/{process}/mem")
            if opens(path)
        ] + [
            path
            for process in others
            for path in (f"/proc/{process}/root", f"/proc/{process}/cwd", *glob.glob(f"/proc/{process}/fd/*"))
            if links(path)
        ]
        return {
            "own": len(own),
            "others": len(others),
            "readable": readable,
            "secrets": sorted(os.path.basename(path) for path in glob.glob("/etc/airflow/secrets/*") if opens(path)),
            "becomes_root": subprocess.run(["sudo", "-n", "true"], capture_output=True).returncode == 0,
            "writes": sorted(path for path in ("/etc", "/usr", "/opt/airflow", "/tmp") if os.access(path, os.W_OK)),
        }

    look()

with DAG("probe_memory", schedule=None, start_date=start):

    @task(queue="QUEUE")
    def eat():
        held = []
        while True:
            held.append(bytearray(16 * 1024 * 1024))

    eat()
"""


@pytest.fixture(scope="module")
def probes(
    cluster: Cluster, project: pathlib.Path, tmp_path_factory: pytest.TempPathFactory, site: SiteRun
) -> Iterator[None]:
    """Deliver the probes beside the shipped DAGs, and take them back."""
    dags = tmp_path_factory.mktemp("probes") / "dags"
    shutil.copytree(project / "dags", dags, ignore=shutil.ignore_patterns("__pycache__"))
    (dags / "probe_held.py").write_text(PROBE.replace("QUEUE", cluster.targets[0]["queue"]))
    try:
        source = json.dumps({"airflow_dags_source": str(dags)})
        site("--extra-vars", source, playbook="playbooks/deliver_dags.yml")
        yield
    finally:
        site(playbook="playbooks/deliver_dags.yml")


def test_a_task_on_main_finds_nothing_of_others(api: airflow_api.AirflowApi, probes: None, main: Host) -> None:
    run = api.run_dag("probe_held")
    found: dict[str, Any] = api.xcom("probe_held", run, "look")
    # It did look: at what belongs to it, and at all the rest of the host.
    assert found["own"] > 1
    assert found["others"] > 20
    assert found["readable"] == []
    assert set(found["secrets"]) == WORKER_SECRETS
    assert not found["becomes_root"]
    assert found["writes"] == ["/tmp"]  # noqa: S108 - the host's


@pytest.fixture
def small(cluster: Cluster) -> Iterator[tuple[Host, str]]:
    """The worker of the first target with little memory: tests must not fill the machine."""
    (worker,) = [worker for worker in cluster.workers if cluster.targets[0]["queue"] in worker["queues"]]
    host, unit = cluster.host(worker["host"]), worker["unit"]
    before = show(host, unit, "MemoryMax")["MemoryMax"]
    host.check_output(f"systemctl set-property --runtime {unit} MemoryMax=900M")
    try:
        yield host, unit
    finally:
        host.check_output(f"systemctl revert {unit}")
        assert show(host, unit, "MemoryMax")["MemoryMax"] == before


def worker_is(host: Host, unit: str) -> dict[str, str]:
    return show(host, unit, "MainPID", "NRestarts", "ActiveState", "ExecMainStartTimestampMonotonic")


def test_a_task_that_eats_memory_dies_alone(
    api: airflow_api.AirflowApi, probes: None, small: tuple[Host, str], cluster: Cluster
) -> None:
    host, unit = small
    before = worker_is(host, unit)
    run = api.run_dag("probe_memory")
    (task,) = api.task_instances("probe_memory", run)
    assert task.state == "failed"
    log = " ".join(str(entry) for entry in api.log("probe_memory", run, task))
    assert "SIGKILL" in log or "-9" in log, log[-3000:]
    assert worker_is(host, unit) == before
    # And it goes on.
    answer = cluster.host(cluster.first("scheduler")).run(
        f"remote-tasks run --queue {cluster.targets[0]['name']} -- hostname"
    )
    assert answer.rc == 0, answer.stderr


def test_a_command_that_eats_memory_dies_alone(small: tuple[Host, str], cluster: Cluster, main: Host) -> None:
    """On the VM that the worker stands on, as the login: it counts among the worker's."""
    if cluster.mode != "celery":
        pytest.skip("the command is no process of the worker's host")
    host, unit = small
    before = worker_is(host, unit)
    eat = "python3 -c 'held = []\nwhile True: held.append(bytearray(2**24))'"
    answer = main.run(f"remote-tasks run --queue --json {cluster.targets[0]['name']} -- {shlex.quote(eat)}")
    assert "-9" in answer.stdout or "137" in answer.stdout or "KILL" in answer.stdout, answer.stdout + answer.stderr
    assert worker_is(host, unit) == before
