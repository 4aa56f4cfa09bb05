"""Every template renders with the shipped inventories, and says what each kind of host must and must not have.

Rendered by Ansible itself, where an undefined variable is an error.
"""

from __future__ import annotations

import configparser
import json
import pathlib
import re
import subprocess

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
TEMPLATES = sorted(ROOT.glob("roles/*/templates/*.j2"))
#: The sample hosts of each inventory: main, and one that is nothing but a target.
INVENTORIES = {"distributed": "vm2", "single_host": "vm1"}


@pytest.fixture(scope="module", params=sorted(INVENTORIES))
def rendered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Directory with one directory a host, named by the inventory."""
    output = tmp_path_factory.mktemp("render") / str(request.param)
    variables = {
        "output": str(output),
        "secrets_directory": str(output / "secrets"),
        "templates": [str(path) for path in TEMPLATES],
    }
    command = [
        "ansible-playbook",
        "-i",
        f"inventory/{request.param}",
        "tests/unit/render/render.yml",
    ]
    run = subprocess.run(
        [*command, "--extra-vars", json.dumps(variables)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return output


def config(rendered: pathlib.Path, host: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read_string((rendered / host / "airflow.cfg").read_text())
    return parser


def test_every_template_renders_on_every_host(rendered: pathlib.Path) -> None:
    names = {path.name.removesuffix(".j2") for path in TEMPLATES}
    hosts = [path for path in rendered.iterdir() if path.name != "secrets"]
    assert len(hosts) == (3 if rendered.name == "distributed" else 4)
    for host in hosts:
        assert {path.name for path in host.iterdir()} == names


def directives(rendered: pathlib.Path, name: str, file: str = "airflow.service") -> dict[str, list[str]]:
    """Directives of a unit to their values, each of which may stand there more than once."""
    found: dict[str, list[str]] = {}
    for line in (rendered / name / file).read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            directive, value = line.split("=", 1)
            found.setdefault(directive, []).append(value)
    return found


def test_root_commands_learn_of_every_secret_but_flowers(rendered: pathlib.Path) -> None:
    told = set(
        re.findall(r"'(AIRFLOW__\w+)=(?:cat )?/etc/airflow/secrets/\w+'", (rendered / "main" / "command").read_text())
    )
    assert told == {
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_CMD",
        "AIRFLOW__CORE__FERNET_KEY_CMD",
        "AIRFLOW__API_AUTH__JWT_PRIVATE_KEY_PATH",
        "AIRFLOW__API_AUTH__TRUSTED_JWKS_URL",
        "AIRFLOW__API__SECRET_KEY_CMD",
        "AIRFLOW__CELERY__BROKER_URL_CMD",
        "AIRFLOW__CELERY__RESULT_BACKEND_CMD",
    }


def test_a_unit_sees_and_is_told_of_its_own_secrets_alone(rendered: pathlib.Path) -> None:
    """The unit asks for two, of which a target has one."""
    for host, names in {"main": {"broker_url", "fernet_key"}, INVENTORIES[rendered.name]: {"broker_url"}}.items():
        if rendered.name == "single_host" and host != "main":
            continue  # nothing of Airflow's is there
        unit = directives(rendered, host)
        assert {path.removeprefix("/etc/airflow/secrets/") for path in unit["BindReadOnlyPaths"]} == names
        assert "/etc/airflow/secrets:ro" in unit["TemporaryFileSystem"]
        told = {line.split("/")[-1].rstrip('"') for line in unit["Environment"] if "_CMD=" in line}
        assert told == names


def test_a_unit_is_held_by_its_kind_and_by_what_the_site_says(rendered: pathlib.Path) -> None:
    unit = directives(rendered, "main")
    assert unit["CapabilityBoundingSet"] == [""]
    assert unit["NoNewPrivileges"] == ["true"]
    assert unit["SystemCallFilter"] == ["@system-service", "~@privileged", "@chown"]
    assert unit["InaccessiblePaths"] == ["-/etc/airflow/ssh"]
    # The site's: another value, one more, and one left out.
    assert unit["ProtectHome"] == ["read-only"]
    assert unit["MemoryMax"] == ["50%"]
    assert "PrivateDevices" not in unit


def test_workers_are_held_as_far_as_their_tasks_allow(rendered: pathlib.Path) -> None:
    """Commands for the VM that a worker stands on act as its login, by sudo."""
    sandboxes = {
        worker["name"]: worker["sandbox"]
        for host in (path for path in rendered.iterdir() if path.name != "secrets")
        for worker in yaml.safe_load((host / "worker_units.yml").read_text()) or []
    }
    general = {"airflow-worker-general": "tasks"}
    if rendered.name == "distributed":
        assert sandboxes == general | {"airflow-worker-vm2": "open", "airflow-worker-vm3": "open"}
    else:
        assert sandboxes == general | {f"airflow-worker-vm{number}": "tasks" for number in (1, 2, 3)}


def test_a_target_has_no_way_to_the_metadata_database(rendered: pathlib.Path) -> None:
    target = rendered / INVENTORIES[rendered.name]
    for file in ("airflow.cfg", "command", "airflow.service"):
        said = (target / file).read_text().lower()
        assert not [word for word in ("sql_alchemy_conn", "fernet", "jwt") if word in said], file


def test_main_declares_queues_and_a_vm_is_given_its_own(rendered: pathlib.Path) -> None:
    assert config(rendered, "main")["cluster"]["given_queues"] == ""
    given = config(rendered, INVENTORIES[rendered.name])["cluster"]["given_queues"]
    assert given == {"distributed": "vm2_queue,default", "single_host": ""}[rendered.name]


def test_the_sessions_key_is_the_api_servers_alone(rendered: pathlib.Path) -> None:
    with_key = {
        path.name
        for path in rendered.iterdir()
        if path.name != "secrets" and "session_secret_key" in (path / "webserver_config.py").read_text()
    }
    assert with_key == {"main"}


def test_no_secret_stands_in_a_rendered_file(rendered: pathlib.Path) -> None:
    secrets = [path.read_text().strip() for path in (rendered / "secrets").iterdir()]
    assert len(secrets) >= 7
    for host in (path for path in rendered.iterdir() if path.name != "secrets"):
        for path in host.iterdir():
            assert not [secret for secret in secrets if secret in path.read_text()], path


def test_a_percent_sign_survives(rendered: pathlib.Path) -> None:
    assert config(rendered, "main")["core"]["executor"] == "CeleryExecutor:cluster_executor.ClusterExecutor"


def test_only_hosts_that_need_a_database_may_log_in_to_it(rendered: pathlib.Path) -> None:
    lines = [line.split() for line in (rendered / "main" / "pg_hba.conf").read_text().splitlines()]
    rules = [tuple(line) for line in lines if line and line[0] != "#"]
    addresses = {"distributed": ["129", "130", "131"], "single_host": ["129"]}[rendered.name]
    assert rules == [
        ("local", "all", "postgres", "peer"),
        ("hostssl", "airflow_db", "+airflow_user", "192.168.83.129/32", "scram-sha-256", "clientcert=verify-ca"),
        *(
            (
                "hostssl",
                "airflow_results_db",
                "+airflow_results_worker",
                f"192.168.83.{last}/32",
                "scram-sha-256",
                "clientcert=verify-ca",
            )
            for last in addresses
        ),
    ]


def test_the_database_listens_on_every_address_with_one_socket(rendered: pathlib.Path) -> None:
    """Beside localhost, the wildcard's port is taken: PostgreSQL warns, and stays on localhost."""
    assert "\nlisten_addresses = '*'\n" in (rendered / "main" / "airflow.conf").read_text()


def test_a_unit_lets_running_tasks_finish(rendered: pathlib.Path) -> None:
    unit = (rendered / "main" / "airflow.service").read_text()
    for line in (
        "KillMode=mixed",
        "Restart=always",
        "TimeoutStopSec=60",
        "SyslogIdentifier=airflow-test",
    ):
        assert f"\n{line}\n" in unit
    assert "Requires=" not in unit


def test_the_broker_is_more_patient_than_the_longest_task(rendered: pathlib.Path) -> None:
    conf = (rendered / "main" / "rabbitmq.conf").read_text()
    timeout = next(line for line in conf.splitlines() if line.startswith("consumer_timeout"))
    assert int(timeout.split("=")[1]) / 1000 > int(config(rendered, "main")["core"]["default_task_execution_timeout"])
