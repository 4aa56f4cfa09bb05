"""What every Airflow host has, and what a worker VM must not have."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from conftest import Cluster
from testinfra.host import Host

CORE_SECRETS = {"sql_alchemy_conn", "fernet_key", "jwt_private_key", "jwt_public_keys"}
WEBSERVER_SECRETS = {"session_secret_key"}
WORKER_SECRETS = {"broker_url", "result_backend", "api_secret_key"}
#: Names in the catalogue whose values must not appear where they do not belong.
CATALOGUE = (
    "database_password",
    "results_worker_password",
    "broker_password",
    "flower_broker_password",
    "rabbitmq_admin_password",
    "fernet_key",
    "jwt_private_key",
    "api_secret_key",
    "session_secret_key",
    "admin_password",
    "flower_password",
)


def airflow_hosts(cluster: Cluster) -> list[tuple[str, Host]]:
    return [(name, cluster.host(name)) for name in cluster.members["airflow"]]


def units(host: Host) -> list[str]:
    listed = host.run("systemctl list-units 'airflow-*' --all --plain --no-legend --output=json").stdout
    return [unit["unit"] for unit in json.loads(listed)]


def show(host: Host, unit: str, *properties: str) -> dict[str, str]:
    lines = host.run(f"systemctl show {unit} --property={','.join(properties)}").stdout.splitlines()
    return dict(line.split("=", 1) for line in lines)


def test_all_hosts_run_the_same_environment(cluster: Cluster) -> None:
    found = {name: host.file("/opt/airflow/current").linked_to for name, host in airflow_hosts(cluster)}
    assert len(set(found.values())) == 1, found
    frozen = {
        name: host.run(
            "/opt/airflow/current/bin/python -c 'import importlib.metadata as m;"
            " print(sorted((d.name, d.version) for d in m.distributions()))'"
        ).stdout
        for name, host in airflow_hosts(cluster)
    }
    assert len(set(frozen.values())) == 1


def test_the_environment_holds_the_remote_tasks_of_this_checkout(cluster: Cluster) -> None:
    """Its version says nothing: an installer's cache once gave an older build of the same version."""
    source = cluster.project / "remote_tasks/src/remote_tasks"
    wanted = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in source.glob("*.py")}
    for name, host in airflow_hosts(cluster):
        said = host.check_output("cd /opt/airflow/current/lib/python3*/site-packages/remote_tasks && sha256sum -- *.py")
        installed = {file: digest for digest, file in (line.split() for line in said.splitlines())}
        assert installed == wanted, name


def test_tasks_cannot_change_code_or_configuration(cluster: Cluster) -> None:
    for name, host in airflow_hosts(cluster):
        for path in (
            "/opt/airflow/current/bin/airflow",
            "/opt/airflow/dags",
            "/etc/airflow/airflow.cfg",
        ):
            answer = host.run(f"runuser -u airflow -- test -w {path}")
            assert answer.rc == 1, f"{name}: {path}"


def test_nothing_of_the_installer_stays(cluster: Cluster) -> None:
    for _name, host in airflow_hosts(cluster):
        assert not host.file("/opt/airflow/installer").exists


def test_secrets_are_files_for_the_services_alone(cluster: Cluster) -> None:
    for name, host in airflow_hosts(cluster):
        listed = host.run("find /etc/airflow/secrets -type f -printf '%f %m %u %g\\n'").stdout.splitlines()
        assert {line.split(maxsplit=1)[1] for line in listed} == {"640 root airflow"}, name
        directory = host.file("/etc/airflow/secrets")
        assert (directory.user, directory.group, directory.mode) == ("root", "airflow", 0o750)
        assert host.run("runuser -u rocky -- cat /etc/airflow/secrets/broker_url").rc != 0


def test_a_worker_vm_holds_what_a_worker_needs_and_no_more(cluster: Cluster) -> None:
    for name, host in airflow_hosts(cluster):
        secrets = set(host.file("/etc/airflow/secrets").listdir())
        if name in cluster.members["core"]:
            assert secrets >= CORE_SECRETS | WORKER_SECRETS
            assert (name in cluster.groups["webserver"]) == (secrets >= WEBSERVER_SECRETS)
        else:
            assert secrets == WORKER_SECRETS
            assert "sql_alchemy_conn" not in host.file("/etc/airflow/airflow.cfg").content_string


def test_no_file_of_a_worker_vm_has_a_secret_of_main(cluster: Cluster) -> None:
    # By content, whatever the files' names.
    for name, _host in airflow_hosts(cluster):
        if name in cluster.members["core"]:
            continue
        for secret in (
            "database_password",
            "broker_password",
            "flower_broker_password",
            "fernet_key",
            "jwt_private_key",
            "session_secret_key",
            "rabbitmq_admin_password",
            "admin_password",
            *(f"broker_password_{target['name']}" for target in cluster.targets if target["name"] != name),
        ):
            search = "grep -rlFs --exclude-dir=env-* -f - /etc /var/lib/airflow /var/log /opt/airflow /run/systemd"
            told = max(cluster.secret(secret).splitlines(), key=len)  # of a key what is its own, without its frame
            found = cluster.feed(name, search, told)
            assert found == "", f"{name}: {secret} in {found}"


def test_no_process_shows_a_secret(cluster: Cluster) -> None:
    for name, host in airflow_hosts(cluster):
        # Environment and command line of all processes that are not this look itself.
        show_all = "echo; echo process ${p#/proc/}; tr '\\0' '\\n' < $p/environ; tr '\\0' ' ' < $p/cmdline"
        seen = host.run(f"for p in /proc/[0-9]*; do {show_all}; done 2>/dev/null").stdout
        # Of each unit's main process its own lines are there, or a title that it wrote over its environment.
        for unit in units(host):
            look = seen.partition(f"process {show(host, unit, 'MainPID')['MainPID']}\n")[2].partition("\nprocess ")[0]
            assert any(own in look for own in ("AIRFLOW_HOME=", "celeryd: ", "airflow api_server ")), unit
        for secret in CATALOGUE:
            assert cluster.secret(secret) not in seen, f"{name}: {secret}"


def test_no_journal_shows_a_secret(cluster: Cluster) -> None:
    for name in cluster.members["cluster"]:
        journal = cluster.host(name).run("journalctl --no-pager --output=cat").stdout
        assert journal
        for secret in CATALOGUE:
            assert cluster.secret(secret) not in journal, f"{name}: {secret}"


def test_units_run_and_let_tasks_finish(cluster: Cluster) -> None:
    for name, host in airflow_hosts(cluster):
        assert units(host), name
        for unit in units(host):
            found: dict[str, Any] = show(
                host,
                unit,
                "ActiveState",
                "UnitFileState",
                "KillMode",
                "Restart",
                "User",
                "NRestarts",
                "Requires",
            )
            assert found["ActiveState"] == "active", f"{name}: {unit}"
            assert found["UnitFileState"] == "enabled", f"{name}: {unit}"
            assert (found["KillMode"], found["Restart"], found["User"]) == (
                "mixed",
                "always",
                "airflow",
            )
            assert found["NRestarts"] == "0", f"{name}: {unit} was restarted: see its journal"
            assert "airflow" not in found["Requires"]
            runs_with = host.file(f"/run/{unit.removesuffix('.service')}/started-with").content_string.strip()
            assert f"echo {runs_with} >" in host.file(f"/etc/systemd/system/{unit}").content_string


def test_a_worker_stops_no_earlier_than_the_longest_task(cluster: Cluster) -> None:
    for worker in cluster.workers:
        host = cluster.host(worker["host"])
        longest = int(host.run("sed -n 's/^default_task_execution_timeout = //p' /etc/airflow/airflow.cfg").stdout)
        shown = host.run(f"systemctl show {worker['unit']} --property=TimeoutStopUSec --value").stdout.strip()
        seconds = host.run(f"systemd-analyze timespan '{shown}' | sed -n 's/^ *μs: //p'").stdout
        assert int(seconds) / 1e6 >= longest


def test_logs_are_kept_for_a_bounded_time(cluster: Cluster) -> None:
    for _name, host in airflow_hosts(cluster):
        assert "/var/log/airflow - - - 30d" in host.file("/etc/tmpfiles.d/airflow.conf").content_string
        assert host.service("systemd-tmpfiles-clean.timer").is_running


@pytest.mark.parametrize("command", ["dags list-import-errors"])
def test_the_command_line_is_at_hand(main: Host, command: str) -> None:
    answer = main.run(f"airflow {command} -o json")
    assert answer.rc == 0, answer.stderr
    assert "[]" in answer.stdout or "No data found" in answer.stdout
