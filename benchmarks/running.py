"""The running cluster as the benchmarks reach it: its hosts over SSH, its REST API, and playbooks that change it.

The inventory is the one that ansible-playbook would use (``ANSIBLE_INVENTORY``, or ansible.cfg): the lab's VMs after
``eval "$(./lab env)"``, or anybody's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tools"))

import airflow_api
import host_ssh

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODES = ("celery", "ssh")
#: Exit status of a benchmark that cannot be run on these hosts, as test programs have it.
LEFT_OUT = 77

#: Arguments: a unit, and the seconds between two looks, 0 for one look. Ends with the standard input.
MEMORY = """
import json, pathlib, select, sys
unit, every = f"/{sys.argv[1]}.service", float(sys.argv[2])


def look():
    total = 0
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if any(line.endswith(unit) for line in (process / "cgroup").read_text().splitlines()):
                lines = (process / "smaps_rollup").read_text().splitlines()
                total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
        except OSError:
            pass  # it has ended
    return total / 1e6


figures = [look()]
while every and not select.select([sys.stdin], [], [], every)[0]:
    figures.append(look())
print(json.dumps(figures))
"""


class BenchmarkError(Exception):
    """What a benchmark needs is not there, or a command of its failed."""


#: Python, on a host: for how many seconds its machine's cores have worked, all together. Simulated VMs share one.
BUSY = """
import os


def busy():
    with open("/proc/stat") as file:
        user, nice, system, _idle, _iowait, irq, softirq, *_ = map(int, file.readline().split()[1:])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
"""


def said_last(output: str) -> Any:
    """Return what a script printed as its last line, which is JSON; Airflow's warnings may stand before it.

    Args:
        output: All that it printed.

    Raises:
        BenchmarkError: There is no such line.
    """
    lines = output.strip().splitlines()
    try:
        return json.loads(lines[-1])
    except (IndexError, ValueError) as error:
        message = f"no JSON at the end of: {output[-500:]!r}"
        raise BenchmarkError(message) from error


def with_values(script: str, values: Mapping[str, Any]) -> str:
    """Return a Python script with its constants before it.

    Args:
        script: The script, which uses them by name.
        values: Name to value.
    """
    return "".join(f"{name} = {value!r}\n" for name, value in values.items()) + script


def percentile(figures: Sequence[float], percent: float) -> float:
    """Return the smallest figure that is not below so many of a hundred of them.

    Args:
        figures: Some figures.
        percent: Of them, such as 99.
    """
    ordered = sorted(figures)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


@dataclasses.dataclass(frozen=True)
class Cluster:
    """What the inventory says.

    Attributes:
        groups: Group to its hosts.
        variables: Host to its variables.
        directory: The inventory's, where its secrets are.
    """

    groups: Mapping[str, Sequence[str]]
    variables: Mapping[str, Mapping[str, Any]]
    directory: pathlib.Path

    @classmethod
    def read(cls) -> Cluster:
        """Read the inventory."""
        listed = subprocess.run(["ansible-inventory", "--list"], cwd=ROOT, capture_output=True, text=True, check=True)
        inventory = json.loads(listed.stdout)
        source = (ROOT / os.environ.get("ANSIBLE_INVENTORY", "inventory/distributed").split(",")[0]).resolve()
        return cls(
            groups={name: group["hosts"] for name, group in inventory.items() if "hosts" in group},
            variables=inventory["_meta"]["hostvars"],
            directory=source if source.is_dir() else source.parent,
        )

    @property
    def main(self) -> str:
        """The host of the scheduler."""
        return self.groups["scheduler"][0]

    @property
    def vms(self) -> Sequence[str]:
        """The target VMs."""
        return self.groups["target_vms"]

    def vm(self, wanted: str = "vm2") -> str:
        """Return a target VM: this one, or the first where there is none of that name.

        Args:
            wanted: Its name.
        """
        return wanted if wanted in self.vms else self.vms[0]

    def address(self, name: str) -> str:
        """Return the address that a host is reached by.

        Args:
            name: Its name in the inventory.
        """
        return str(self.variables[name].get("ansible_host", name))

    def login(self, name: str) -> str:
        """Return the login of a target VM that commands run as.

        Args:
            name: Its name in the inventory.
        """
        own = self.variables[name]
        return str(own.get("target_user", own["ansible_user"]))

    def mode(self) -> str:
        """Return the mode that the cluster is in, which may be another than the inventory's."""
        return self.run(self.main, "cat /etc/airflow/mode").strip()

    def run(self, name: str, command: str, text: str = "", *, check: bool = True) -> str:
        """Run a command on a host as root, and return what it printed.

        Args:
            name: The host.
            command: A line for bash. No secret: sudo writes it to the journal.
            text: Its standard input.
            check: Whether it has to succeed.

        Raises:
            BenchmarkError: It failed.
        """
        done = subprocess.run(self._ssh(name, command), input=text, capture_output=True, text=True, check=False)
        if check and done.returncode != 0:
            message = f"{name}: {command}: {done.returncode}: {(done.stdout + done.stderr)[-2000:]}"
            raise BenchmarkError(message)
        return done.stdout

    def start(self, name: str, command: str) -> subprocess.Popen[str]:
        """As `run`, without waiting for its end, which it comes to when its standard input is closed.

        Args:
            name: The host.
            command: A line for bash. No secret: sudo writes it to the journal.

        Returns:
            The process here.
        """
        return subprocess.Popen(self._ssh(name, command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def _ssh(self, name: str, command: str) -> list[str]:
        return host_ssh.as_root(self.variables[name], self.address(name), command)

    def python(self, script: str, values: Mapping[str, Any] | None = None) -> Any:
        """Run a script on main in Airflow's environment, and return what it printed last, as JSON.

        Args:
            script: The script.
            values: Constants for it.
        """
        return said_last(self.run(self.main, "airflow-python -", with_values(script, values or {})))

    def busy(self) -> float:
        """Return for how many seconds the cores of main's machine have worked; simulated VMs share one machine."""
        return float(self.run(self.main, "python3 -", BUSY + "print(busy())\n"))

    def query(self, database: str, statement: str) -> str:
        """Ask PostgreSQL, as its administrator.

        Args:
            database: The database.
            statement: In SQL.

        Returns:
            The rows, without a head.
        """
        host = self.groups["postgresql"][0]
        command = f"cd / && runuser -u postgres -- psql --no-psqlrc -qtA -v ON_ERROR_STOP=1 -d {shlex.quote(database)}"
        return self.run(host, command, statement).strip()

    def api(self) -> airflow_api.AirflowApi:
        """Return the REST API, for the administrator."""
        password = (self.directory / "secrets/admin_password").read_text().partition("\nlogin=")[0].strip()
        url = f"https://{self.address(self.groups['webserver'][0])}:8080"
        return airflow_api.AirflowApi(url, "admin", password, ca=str(self.directory / "certificates/ca.pem"))

    def run_dag(self, dag_id: str) -> None:
        """Run a DAG from beginning to end.

        Args:
            dag_id: The DAG.

        Raises:
            BenchmarkError: The run did not succeed.
        """
        api = self.api()
        run_id = api.run_dag(dag_id)
        if (state := api.run_state(dag_id, run_id)) != "success":
            message = f"{dag_id}, {run_id}: {state}"
            raise BenchmarkError(message)

    def forget_dag(self, dag_id: str) -> None:
        """Remove what the database holds of a DAG whose file is gone.

        Args:
            dag_id: The DAG.
        """
        with contextlib.suppress(airflow_api.AirflowApiError):
            self.api().request("DELETE", f"dags/{dag_id}")

    def memory(self, name: str, unit: str) -> float:
        """Return the memory of a unit's processes, in MB: what is shared counts in parts (PSS).

        Args:
            name: The host.
            unit: The unit, without .service.
        """
        return self._ended(self.start(name, f"python3 -c {shlex.quote(MEMORY)} {shlex.quote(unit)} 0"))[0]

    @contextlib.contextmanager
    def memory_meanwhile(self, name: str, unit: str, every: float = 0.25) -> Iterator[list[float]]:
        """Look again and again at the memory of a unit's processes.

        Args:
            name: The host.
            unit: The unit, without .service.
            every: Seconds between two looks.

        Yields:
            A list that has the figures in MB afterwards.
        """
        figures: list[float] = []
        sampler = self.start(name, f"python3 -c {shlex.quote(MEMORY)} {shlex.quote(unit)} {every}")
        try:
            yield figures
        finally:
            figures += self._ended(sampler)

    def _ended(self, sampler: subprocess.Popen[str]) -> list[float]:
        printed, _ = sampler.communicate()
        return list(said_last(printed))

    def versions(self) -> dict[str, str]:
        """Return the versions of what is measured, by name."""
        script = """
import importlib.metadata, json
names = ("apache-airflow", "celery", "asyncssh", "paramiko")
print(json.dumps({name: importlib.metadata.version(name) for name in names}))
"""
        return dict(self.python(script))


def leave_out(reason: str) -> NoReturn:
    """End a benchmark that cannot be run on these hosts; ./lab bench goes on with the others.

    Args:
        reason: Why, and what to do.
    """
    print(f"left out: {reason}", file=sys.stderr, flush=True)
    sys.exit(LEFT_OUT)


def lab_directory() -> pathlib.Path:
    """Return where the lab keeps what it knows of its VMs, below .lab.

    Raises:
        BenchmarkError: The inventory in use is not the lab's: real hosts may stand there.
    """
    arguments = shlex.split(os.environ.get("ANSIBLE_SSH_COMMON_ARGS", ""))
    if "LAB_SUITE" not in os.environ or "-F" not in arguments:
        message = 'this is about the lab\'s VMs: ./lab bench, or eval "$(./lab env)" first'
        raise BenchmarkError(message)
    return pathlib.Path(arguments[arguments.index("-F") + 1]).parent


def changed(output: str) -> list[str]:
    """Return the lines of a recap about hosts that were changed.

    Args:
        output: All that ansible-playbook printed.
    """
    recap = output.rpartition("PLAY RECAP")[2].splitlines()
    return [" ".join(line.split()) for line in recap if "changed=" in line and "changed=0 " not in line]


def playbook(
    name: str = "site.yml", *arguments: str, values: Mapping[str, Any] | None = None, may_change: bool = True
) -> float:
    """Run a playbook.

    Args:
        name: The playbook.
        arguments: More of ansible-playbook's.
        values: Variables that win over all others; no secrets.
        may_change: Whether there can be something to change.

    Returns:
        The seconds that it took.

    Raises:
        BenchmarkError: It failed, or changed what it had no reason to.
    """
    extra = ["--extra-vars", json.dumps(dict(values))] if values else []
    said = " ".join(f"{key}={value}" for key, value in (values or {}).items())
    print(f"ansible-playbook {name} {' '.join(arguments)} {said}".rstrip(), flush=True)
    began = time.monotonic()
    done = subprocess.run(
        ["ansible-playbook", name, *arguments, *extra], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        message = f"{name} failed: {done.stdout[-6000:]}{done.stderr[-2000:]}"
        raise BenchmarkError(message)
    seconds = time.monotonic() - began
    if not may_change and changed(done.stdout):
        message = f"{name} had nothing to change: {'; '.join(changed(done.stdout))}: {done.stdout[-6000:]}"
        raise BenchmarkError(message)
    return seconds


@contextlib.contextmanager
def in_mode(cluster: Cluster, mode: str) -> Iterator[None]:
    """Have the cluster in a mode, and afterwards in the one that it was in.

    Args:
        cluster: The cluster.
        mode: celery or ssh.

    Yields:
        Nothing, while it is in that mode.
    """
    before = cluster.mode()
    if before == mode:
        yield
        return
    try:
        playbook(values={"mode": mode})
        yield
    finally:
        playbook(values={"mode": before})


@contextlib.contextmanager
def scratch(cluster: Cluster, name: str, owner: str = "airflow") -> Iterator[str]:
    """Make a directory on a host for the time of a benchmark.

    Args:
        cluster: The cluster.
        name: The host.
        owner: The user whose it is.

    Yields:
        Its path there. It is on a disk: /tmp may be memory.
    """
    path = cluster.run(
        name,
        f"umask 022 && directory=$(mktemp -d /var/tmp/benchmark.XXXXXXXX) && "
        f"chmod 0755 $directory && chown {shlex.quote(owner)} $directory && echo $directory",
    ).strip()
    try:
        yield path
    finally:
        cluster.run(name, f"rm -rf -- {shlex.quote(path)}")


@contextlib.contextmanager
def more_dags(files: Mapping[str, str]) -> Iterator[pathlib.Path]:
    """Make a directory with the shipped DAGs and some more, to be delivered in the place of those alone.

    Args:
        files: Name to content.

    Yields:
        The directory, on this machine.
    """
    with tempfile.TemporaryDirectory() as directory:
        dags = pathlib.Path(directory) / "dags"
        subprocess.run(["cp", "-R", str(ROOT / "dags"), str(dags)], check=True)
        for name, content in files.items():
            (dags / name).write_text(content)
        yield dags
