#!/usr/bin/env python3
"""A small client of Airflow's REST API (v2, FabAuthManager): run a DAG and see what its tasks did.

Example:
    airflow_api.py run-dag sample_distributed --url https://192.168.83.129:8080 \
        --user admin --password-file inventory/distributed/secrets/admin_password
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

import requests

FINISHED = frozenset({"success", "failed"})
PAGE = 100  # the server's own upper bound


class AirflowApiError(Exception):
    """The API refused, did not answer in time, or a run did not end as it should."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskInstance:
    """One task of a run, or one of its mapped copies.

    Attributes:
        task_id: The task's name in the DAG.
        map_index: Which copy of a mapped task; -1 when it is not mapped.
        state: Airflow's state; None while it is not scheduled.
        queue: The Celery queue that it went to.
        hostname: The host whose worker took it.
        duration: Seconds; None until it ends.
        try_number: The last attempt, whose log is the one to read.
    """

    task_id: str
    map_index: int
    state: str | None
    queue: str | None
    hostname: str
    duration: float | None
    try_number: int

    @property
    def label(self) -> str:
        """The name to show: a mapped copy carries its index."""
        return self.task_id if self.map_index < 0 else f"{self.task_id}[{self.map_index}]"

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TaskInstance:
        """Return the task instance that the API describes.

        Args:
            data: One entry of the API's answer.
        """
        return cls(
            task_id=data["task_id"],
            map_index=data["map_index"],
            state=data["state"],
            queue=data["queue"],
            hostname=data["hostname"] or "",
            duration=data["duration"],
            try_number=data["try_number"],
        )


class AirflowApi:
    """A logged-in session with one api-server."""

    def __init__(self, url: str, user: str, password: str, *, ca: str | None = None, timeout: float = 30) -> None:
        """Remember where and as whom; the first request logs in.

        Args:
            url: The UI's address, such as https://192.168.83.129:8080.
            user: A user of Airflow.
            password: The user's password.
            ca: The file of the CA that signed the server's certificate; by default those that requests brings.
            timeout: Seconds to wait for one answer.
        """
        self.url = url.rstrip("/")
        self._user = user
        self._password = password
        self._timeout = timeout
        self._session = requests.Session()
        # The cluster is near; a proxy meant for the internet would not reach it.
        self._session.trust_env = False
        self._session.verify = ca or True

    def _login(self) -> None:
        response = self._session.post(
            f"{self.url}/auth/token",
            json={"username": self._user, "password": self._password},
            timeout=self._timeout,
        )
        if response.status_code in {400, 401}:
            message = f"{self.url} refuses the login of user {self._user!r}: {response.text}"
            raise AirflowApiError(message)
        response.raise_for_status()
        self._session.headers["Authorization"] = f"Bearer {response.json()['access_token']}"

    def request(self, method: str, path: str, **options: Any) -> Any:
        """Return the JSON answer to a request below /api/v2.

        Args:
            method: The HTTP method.
            path: The path below /api/v2, without a leading slash.
            options: As for requests.request.

        Raises:
            AirflowApiError: The server answered with an error; the message is the server's.
        """
        if "Authorization" not in self._session.headers:
            self._login()
        url = f"{self.url}/api/v2/{path}"
        headers = {"Accept": "application/json"}
        options = {"timeout": self._timeout, "headers": headers, **options}
        response = self._session.request(method, url, **options)
        if response.status_code == requests.codes.unauthorized:  # the token has expired
            self._login()
            response = self._session.request(method, url, **options)
        if not response.ok:
            message = f"{method} {url}: {response.status_code} {response.text[:500]}"
            raise AirflowApiError(message)
        return response.json() if response.content else None

    def _pages(self, path: str, key: str) -> Iterator[Mapping[str, Any]]:
        offset = 0
        while True:
            answer = self.request("GET", path, params={"limit": PAGE, "offset": offset})
            yield from answer[key]
            offset += PAGE
            if offset >= answer["total_entries"]:
                return

    def health(self) -> dict[str, Any]:
        """Return what each of Airflow's components says of itself."""
        answer: dict[str, Any] = self.request("GET", "monitor/health")
        return answer

    def import_errors(self) -> list[str]:
        """Return the files that could not be parsed, with the reason."""
        return [
            f"{error['filename']}: {error['stack_trace']}" for error in self._pages("importErrors", "import_errors")
        ]

    def wait_for_dag(self, dag_id: str, seconds: float = 120) -> None:
        """Wait until the dag-processor has parsed a DAG.

        Args:
            dag_id: The DAG.
            seconds: How long to wait.

        Raises:
            AirflowApiError: It did not appear in time, or the API cannot be reached.
        """
        end = time.monotonic() + seconds
        while True:
            try:
                if not self.request("GET", f"dags/{quote(dag_id)}")["is_stale"]:
                    return
                reason = "it is marked stale"
            except (AirflowApiError, requests.ConnectionError) as error:
                reason = str(error)
            if time.monotonic() > end:
                message = (
                    f"DAG {dag_id} did not appear within {seconds:.0f} s ({reason}); "
                    f"import errors: {self.import_errors() or 'none'}"
                )
                raise AirflowApiError(message)
            time.sleep(1)

    def unpause(self, dag_id: str) -> None:
        """Let the scheduler run a DAG.

        Args:
            dag_id: The DAG.
        """
        self.request("PATCH", f"dags/{quote(dag_id)}", json={"is_paused": False})

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None) -> str:
        """Start a run and return its id.

        Args:
            dag_id: The DAG.
            conf: Parameters of the run.
        """
        body = {"logical_date": None, "conf": dict(conf or {})}
        answer = self.request("POST", f"dags/{quote(dag_id)}/dagRuns", json=body)
        return str(answer["dag_run_id"])

    def run_state(self, dag_id: str, run_id: str) -> str:
        """Return the state of a run.

        Args:
            dag_id: The DAG.
            run_id: The run.
        """
        return str(self.request("GET", _run_path(dag_id, run_id))["state"])

    def task_instances(self, dag_id: str, run_id: str) -> list[TaskInstance]:
        """Return the tasks of a run, in the order of their names.

        Args:
            dag_id: The DAG.
            run_id: The run.
        """
        path = f"{_run_path(dag_id, run_id)}/taskInstances"
        tasks = [TaskInstance.from_json(entry) for entry in self._pages(path, "task_instances")]
        return sorted(tasks, key=lambda task: (task.task_id, task.map_index))

    def log(self, dag_id: str, run_id: str, task: TaskInstance) -> list[dict[str, Any]]:
        """Return the log of a task's last attempt, as the UI would fetch it.

        Args:
            dag_id: The DAG.
            run_id: The run.
            task: One of the run's tasks.
        """
        path = f"{_task_path(dag_id, run_id, task.task_id)}/logs/{task.try_number}"
        parameters: dict[str, str | int | bool] = {
            "map_index": task.map_index,
            "full_content": True,
        }
        content = self.request("GET", path, params=parameters)["content"]
        return [{"event": entry} if isinstance(entry, str) else dict(entry) for entry in content]

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value", map_index: int = -1) -> Any:
        """Return a value that a task handed on.

        Args:
            dag_id: The DAG.
            run_id: The run.
            task_id: The task.
            key: The value's name.
            map_index: Which copy of a mapped task.
        """
        path = f"{_task_path(dag_id, run_id, task_id)}/xcomEntries/{quote(key)}"
        parameters: dict[str, str | int | bool] = {"map_index": map_index, "deserialize": True}
        return self.request("GET", path, params=parameters)["value"]

    def wait_for_run(
        self,
        dag_id: str,
        run_id: str,
        seconds: float = 300,
        progress: Callable[[str], None] = lambda message: None,
    ) -> str:
        """Wait until a run has ended and return its state.

        Args:
            dag_id: The DAG.
            run_id: The run.
            seconds: How long to wait.
            progress: Called with a line whenever the count of finished tasks changes.

        Raises:
            AirflowApiError: It did not end in time; the message says what each task was doing.
        """
        end = time.monotonic() + seconds
        said = ""
        while (state := self.run_state(dag_id, run_id)) not in FINISHED:
            tasks = self.task_instances(dag_id, run_id)
            message = _progress_line(state, tasks)
            if message != said:
                progress(message)
                said = message
            if time.monotonic() > end:
                states = ", ".join(f"{task.label} {task.state} in {task.queue}" for task in tasks)
                message = f"run {run_id} of {dag_id} did not end within {seconds:.0f} s: {states}"
                raise AirflowApiError(message)
            time.sleep(0.5)
        return state

    def run_dag(
        self,
        dag_id: str,
        conf: Mapping[str, Any] | None = None,
        seconds: float = 300,
        progress: Callable[[str], None] = lambda message: None,
    ) -> str:
        """Run a DAG from beginning to end; return the run's id, whether it succeeded or not.

        Args:
            dag_id: The DAG; it is unpaused.
            conf: Parameters of the run.
            seconds: How long the run may take.
            progress: Called with a line about what happens.
        """
        self.wait_for_dag(dag_id)
        self.unpause(dag_id)
        run_id = self.trigger(dag_id, conf)
        progress(f"{dag_id}: run {run_id} triggered")
        self.wait_for_run(dag_id, run_id, seconds, progress)
        return run_id


def _run_path(dag_id: str, run_id: str) -> str:
    return f"dags/{quote(dag_id)}/dagRuns/{quote(run_id)}"


def _task_path(dag_id: str, run_id: str, task_id: str) -> str:
    return f"{_run_path(dag_id, run_id)}/taskInstances/{quote(task_id)}"


def _progress_line(state: str, tasks: Iterable[TaskInstance]) -> str:
    counts: dict[str, int] = {}
    for task in tasks:
        counts[task.state or "waiting"] = counts.get(task.state or "waiting", 0) + 1
    return f"run {state}: " + ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def printed_lines(log: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return what a task itself printed, without what Airflow says around it.

    Args:
        log: The structured events of the task's log.
    """
    lines = []
    in_command = False
    for entry in log:
        event = str(entry.get("event", ""))
        logger = str(entry.get("logger", ""))
        if logger.endswith("SubprocessHook"):  # BashOperator: its output stands between two remarks
            if event.startswith("Command exited with return code"):
                in_command = False
            if in_command:
                lines.append(event)
            if event == "Output:":
                in_command = True
        elif (
            ".remote_tasks.operators." in logger
            or logger.startswith("task.std")
            or entry.get("chan") in {"stdout", "stderr"}
        ):
            lines.append(event)
    return lines


def show_run(api: AirflowApi, dag_id: str, run_id: str) -> None:
    """Print each task of a run: state, queue, host, and what it printed.

    Args:
        api: The api-server.
        dag_id: The DAG.
        run_id: The run.
    """
    for task in api.task_instances(dag_id, run_id):
        seconds = "" if task.duration is None else f" in {task.duration:.1f} s"
        print(f"  {task.label}: {task.state}{seconds}, queue {task.queue}, host {task.hostname}")
        log = api.log(dag_id, run_id, task)
        lines = printed_lines(log)
        if task.state == "failed":
            lines = [str(entry.get("event", "")) for entry in log][-20:]
        for text in lines:
            print(f"      {text}")


def run_dag_command(options: argparse.Namespace) -> int:
    """Run a DAG and show it; the exit status is 0 when the run succeeded.

    Args:
        options: The parsed command line.
    """
    password = pathlib.Path(options.password_file).read_text(encoding="utf-8").strip()
    api = AirflowApi(options.url, options.user, password, ca=options.ca)
    run_id = api.run_dag(options.dag_id, seconds=options.seconds, progress=lambda line: print(line, flush=True))
    state = api.run_state(options.dag_id, run_id)
    print(f"{options.dag_id}: run {run_id} {state}")
    show_run(api, options.dag_id, run_id)
    return 0 if state == "success" else 1


def main(arguments: list[str]) -> int:
    """Run the command line.

    Args:
        arguments: Without the program's name.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run-dag", help="run a DAG and show what its tasks printed, and where")
    run.add_argument("dag_id")
    run.add_argument("--url", required=True, help="such as https://192.168.83.129:8080")
    run.add_argument("--user", default="admin")
    run.add_argument("--password-file", required=True)
    run.add_argument("--ca", help="the CA that signed the server's certificate; a file")
    run.add_argument("--seconds", type=float, default=300, help="how long the run may take")
    options = parser.parse_args(arguments)
    try:
        return run_dag_command(options)
    except (AirflowApiError, requests.RequestException, OSError) as error:
        print(f"airflow_api: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
