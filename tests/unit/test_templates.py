"""Every template renders with the shipped inventories, and says what each kind of host must and must not have.

Rendered by Ansible itself, where an undefined variable is an error.
"""

from __future__ import annotations

import configparser
import json
import pathlib
import subprocess

import pytest

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


def test_main_reads_every_secret_from_a_file(rendered: pathlib.Path) -> None:
    main = config(rendered, "main")
    commands = {(s, o) for s in main.sections() for o in main[s] if o.endswith("_cmd")}
    assert commands == {
        ("database", "sql_alchemy_conn_cmd"),
        ("core", "fernet_key_cmd"),
        ("api_auth", "jwt_secret_cmd"),
        ("api", "secret_key_cmd"),
        ("celery", "broker_url_cmd"),
        ("celery", "result_backend_cmd"),
        ("celery", "flower_basic_auth_cmd"),
    }


def test_a_target_has_no_way_to_the_metadata_database(rendered: pathlib.Path) -> None:
    target = config(rendered, INVENTORIES[rendered.name])
    assert not target.has_option("database", "sql_alchemy_conn_cmd")
    assert not target.has_option("core", "fernet_key_cmd")
    assert not target.has_section("api_auth")


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
    assert config(rendered, "main")["core"]["executor"] == "CeleryExecutor"


def test_only_hosts_that_need_a_database_may_log_in_to_it(rendered: pathlib.Path) -> None:
    lines = [line.split() for line in (rendered / "main" / "pg_hba.conf").read_text().splitlines()]
    rules = [tuple(line) for line in lines if line and line[0] != "#"]
    addresses = {"distributed": ["129", "130", "131"], "single_host": ["129"]}[rendered.name]
    assert rules == [
        ("local", "all", "postgres", "peer"),
        ("host", "airflow_db", "airflow_user", "192.168.83.129/32", "scram-sha-256"),
        *(
            (
                "host",
                "airflow_results_db",
                "airflow_results_worker",
                f"192.168.83.{last}/32",
                "scram-sha-256",
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
