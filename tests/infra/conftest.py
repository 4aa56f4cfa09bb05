"""The cluster under test: what the inventory says of it, its hosts over SSH, its APIs.

The inventory is the one that ansible-playbook would use (ANSIBLE_INVENTORY, or ansible.cfg), so the
tests run on the lab and on anybody's VMs alike.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import airflow_api
import cluster as topology
import host_ssh
import pytest
import security_tables
import testinfra
from testinfra.host import Host

SiteRun = Callable[..., subprocess.CompletedProcess[str]]


@dataclasses.dataclass(frozen=True, eq=False)  # by identity, so that methods can be cached
class Cluster:
    """What the inventory says.

    Attributes:
        project: The project's directory.
        groups: Group to hosts.
        variables: Host to its variables, as the inventory and the shared group_vars give them.
    """

    project: pathlib.Path
    groups: Mapping[str, Sequence[str]]
    variables: Mapping[str, Mapping[str, Any]]

    @property
    def mode(self) -> str:
        return str(self.variables[self.groups["scheduler"][0]]["mode"])

    @property
    def targets(self) -> list[dict[str, Any]]:
        return [topology.target(self.variables[name]) for name in self.groups["target_vms"]]

    @property
    def workers(self) -> list[dict[str, Any]]:
        return topology.workers(self.targets, self.mode, self.groups["scheduler"][0])

    @property
    def members(self) -> dict[str, list[str]]:
        return topology.members(self.groups, self.mode)

    @property
    def inventory_name(self) -> str:
        return pathlib.Path(self.variables[self.first("scheduler")]["inventory_dir"]).name

    @property
    def ca(self) -> str:
        """The file of the CA that the cluster's certificates are signed by."""
        return str(pathlib.Path(self.variables[self.first("scheduler")]["inventory_dir"]) / "certificates/ca.pem")

    def address(self, name: str) -> str:
        return topology.address(self.variables[name])

    def first(self, tier: str) -> str:
        return self.groups[tier][0]

    @property
    def secrets_directory(self) -> pathlib.Path:
        return pathlib.Path(self.variables[self.first("scheduler")]["inventory_dir"]) / "secrets"

    def login(self, name: str, usual: str) -> str:
        """The name to log in with that goes with a password, which takes turns with another."""
        return (self.secrets_directory / name).read_text().partition("\nlogin=")[2].strip() or usual

    def secret(self, name: str) -> str:
        value = (self.secrets_directory / name).read_text().partition("\nlogin=")[0].strip()
        # Fernet's key is the base64 of what was generated: see lookup_plugins/cluster_secret.py.
        return base64.b64encode(value.encode()).decode() if name == "fernet_key" else value

    def feed(self, name: str, command: str, text: str) -> str:
        """Run a command as root with this standard input, and return its output.

        For secrets: what stands on a command line, sudo writes to the journal.
        """
        run = subprocess.run(self._ssh(name, command), input=text, capture_output=True, text=True, check=False)
        assert run.returncode in (0, 1), run.stderr
        return run.stdout

    def started(self, name: str, command: str, text: str) -> subprocess.Popen[str]:
        """As `feed`, without waiting for its end; its output is in ``stdout``."""
        process = subprocess.Popen(self._ssh(name, command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdin is not None
        process.stdin.write(text)
        process.stdin.close()
        return process

    def _ssh(self, name: str, command: str) -> list[str]:
        return host_ssh.as_root(self.variables[name], self.address(name), command)

    @functools.cache  # noqa: B019 - one object lives as long as the session
    def host(self, name: str) -> Host:
        """A host over SSH, as root."""
        own = self.variables[name]
        key = os.environ.get("ANSIBLE_PRIVATE_KEY_FILE")
        return testinfra.get_host(
            f"ssh://{own['ansible_user']}@{self.address(name)}:{own.get('ansible_port', 22)}",
            sudo=True,
            controlpersist=60,
            ssh_extra_args=os.environ.get("ANSIBLE_SSH_COMMON_ARGS"),
            **({"ssh_identity_file": key} if key else {}),
        )


#: Behind a command that should end with 255, which testinfra takes for a failure of its own connection.
IS_255 = "; test $? -eq 255 && exit 254"


def changes(run: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines of a recap that tell of a change."""
    recap = run.stdout.split("PLAY RECAP")[1].splitlines()
    return [line for line in recap if "changed=" in line and "changed=0" not in line]


def killed(cluster: Cluster, at: str, *arguments: str, playbook: str = "site.yml") -> None:
    """Start a playbook and end it the hard way, two seconds after it has begun with a task.

    Args:
        cluster: The cluster.
        at: A part of the task's name.
        arguments: Of ansible-playbook.
        playbook: The playbook.
    """
    run = subprocess.Popen(
        ["ansible-playbook", playbook, *arguments],
        cwd=cluster.project,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert run.stdout is not None
    lines: list[str] = []
    try:
        for line in run.stdout:
            lines.append(line)
            if line.startswith("TASK [") and at in line:
                time.sleep(2)
                break
        else:
            raise AssertionError(f"the run came to no task {at!r}: {''.join(lines[-40:])}")
    finally:
        # Each of Ansible's own processes has a session of its own, and would wait for the first forever.
        own = subprocess.run(["pgrep", "--parent", str(run.pid)], capture_output=True, text=True, check=False)
        os.killpg(run.pid, signal.SIGKILL)
        for pid in map(int, own.stdout.split()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        run.stdout.close()
        run.wait()


CALLS = """
import json
from remote_tasks.client import get_client
client = get_client()
calls = [client.submit("remote_tasks.execute_on_vm", [VM, COMMAND], queue=VM + "_queue") for _ in range(COUNT)]
print(json.dumps([call.result(TIMEOUT)["output"] for call in calls] if TIMEOUT else []))
"""


def calls(cluster: Cluster, vm: str, command: str, *, count: int = 1, timeout: int = 30) -> list[str]:
    """Send commands through a VM's queue, as a script on main does.

    Args:
        cluster: The cluster.
        vm: The VM.
        command: The command.
        count: How often.
        timeout: Seconds to wait for each result; 0 to leave them alone.

    Returns:
        What each of them printed.
    """
    values = {"VM": vm, "COMMAND": command, "COUNT": count, "TIMEOUT": timeout}
    head = "".join(f"{name} = {value!r}\n" for name, value in values.items())
    said = cluster.feed(cluster.first("scheduler"), "airflow-python -", head + CALLS)
    return list(json.loads(said.splitlines()[-1]))


def snapshot(host: Host) -> list[str]:
    """What a host holds: a line for each package and each file, as tools/vm_snapshot prints it."""
    script = (pathlib.Path(__file__).parents[2] / "tools/vm_snapshot").read_text()
    answer = host.run(f"sh -c {shlex.quote(script)}")
    assert answer.rc == 0, answer.stderr
    return list(answer.stdout.splitlines())


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that make documents."""
    parser.addoption("--slow", action="store_true", help="also those tests that take many minutes")
    parser.addoption(
        "--figures", type=pathlib.Path, metavar="FILE", help="append what a switch takes (test_under_load.py)"
    )
    parser.addoption(
        "--security-tables",
        action="store_true",
        help="write the README's tables (test_stranger.py, test_vm_attempts.py and test_least_privilege.py together)",
    )


#: Keys of the rows of the README's security section that a passed test has shown.
SHOWN = pytest.StashKey[set[str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Begin with no row."""
    config.stash[SHOWN] = set()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note which rows a passed test shows: the marker ``shows`` has their keys."""
    report = yield
    if call.when == "call" and report.passed:
        item.config.stash[SHOWN].update(key for mark in item.iter_markers("shows") for key in mark.args)
    return report


@pytest.fixture(scope="session", autouse=True)
def written_tables(request: pytest.FixtureRequest) -> Iterator[None]:
    """With ``--security-tables``, write the README's tables, when all of their rows were seen."""
    if not request.config.getoption("--security-tables"):
        yield
        return
    cluster = request.getfixturevalue("cluster")
    assert cluster.mode == "celery", "the tables are those of a cluster in celery mode"
    yield
    shown: set[str] = request.config.stash[SHOWN]
    missing = security_tables.unseen(shown)
    assert not missing, f"not seen, and so nothing is written: {missing}"
    security_tables.write(security_tables.port_rows(cluster.groups, cluster.variables, cluster.mode))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out what takes many minutes, unless it is asked for."""
    marked = item.get_closest_marker("slow")
    if marked and not item.config.getoption("--slow"):
        pytest.skip(f"{marked.args[0]}: pytest tests/infra/{item.path.name} --slow")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests that leave nothing behind at the end."""
    items.sort(key=lambda item: item.get_closest_marker("last") is not None)


@pytest.fixture(scope="session")
def cluster(project: pathlib.Path) -> Cluster:
    """The inventory, as ansible-inventory reads it."""
    listed = subprocess.run(["ansible-inventory", "--list"], cwd=project, capture_output=True, text=True, check=True)
    inventory = json.loads(listed.stdout)
    groups = {name: group["hosts"] for name, group in inventory.items() if "hosts" in group}
    sources = os.environ.get("ANSIBLE_INVENTORY", "inventory/distributed").split(",")
    directory = (project / sources[0]).resolve()
    variables = {
        name: {
            **own,
            "inventory_hostname": name,
            "inventory_dir": str(directory if directory.is_dir() else directory.parent),
        }
        for name, own in inventory["_meta"]["hostvars"].items()
    }
    return Cluster(project, groups, variables)


@pytest.fixture(scope="session")
def main(cluster: Cluster) -> Host:
    """The host of the scheduler."""
    return cluster.host(cluster.first("scheduler"))


@pytest.fixture(scope="session")
def api_url(cluster: Cluster) -> str:
    return f"https://{cluster.address(cluster.first('webserver'))}:8080"


@pytest.fixture(scope="module")  # a rotation changes the password
def api(cluster: Cluster, api_url: str) -> airflow_api.AirflowApi:
    """The REST API, logged in as the administrator."""
    return airflow_api.AirflowApi(api_url, "admin", cluster.secret("admin_password"), ca=cluster.ca)


@pytest.fixture(scope="session")
def broker(cluster: Cluster) -> Callable[..., Any]:
    """What the broker itself says: rabbitmqctl on its host, as data."""
    host = cluster.host(cluster.first("rabbitmq"))

    def ask(*arguments: str) -> Any:
        answer = host.run(f"rabbitmqctl --quiet --formatter json {' '.join(arguments)}")
        assert answer.rc == 0, answer.stderr
        return json.loads(answer.stdout)

    return ask


@pytest.fixture(scope="session")
def site(cluster: Cluster) -> SiteRun:
    """Run a playbook on the cluster, and return what it said."""

    def run(*arguments: str, playbook: str = "site.yml", check: bool = True) -> subprocess.CompletedProcess[str]:
        command = ["ansible-playbook", playbook, *arguments]
        done = subprocess.run(command, cwd=cluster.project, capture_output=True, text=True, check=False)
        if check:
            assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
        return done

    return run
