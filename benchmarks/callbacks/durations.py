"""How long each task takes on each host: an Ansible callback for ``benchmarks/site.py``.

Writes one JSON file, named by the environment variable ``DURATIONS``, when the play has ended.
"""

from __future__ import annotations

import json
import os
import pathlib
import time
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: durations
type: aggregate
short_description: Notes how long each task takes on each host
description: Writes them as JSON to the file that the environment variable DURATIONS names.
"""


class CallbackModule(CallbackBase):
    """The callback, as Ansible finds it.

    The file has the run's ``seconds`` and its ``tasks`` in order: ``play``, ``task``, ``began`` (s after the run),
    ``hosts`` (name to the seconds from handing the task out to taking its result in) and ``changed`` (names of hosts).
    """

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "durations"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        """Begin to count."""
        super().__init__()
        self._began = time.monotonic()
        self._play = ""
        self._tasks: list[dict[str, Any]] = []
        self._given: dict[tuple[str, str], tuple[int, float]] = {}

    def _now(self) -> float:
        return round(time.monotonic() - self._began, 3)

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """Take down the play's name."""
        self._play = str(play.get_name())

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """Begin a task."""
        self._tasks.append(
            {"play": self._play, "task": str(task.get_name()), "began": self._now(), "hosts": {}, "changed": []}
        )

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        """Take down when a host is given the task."""
        self._given[host.get_name(), task._uuid] = len(self._tasks) - 1, self._now()

    def _end(self, result: Any) -> None:
        host = str(result._host.get_name())
        place, given = self._given.pop((host, result._task._uuid), (len(self._tasks) - 1, self._now()))
        self._tasks[place]["hosts"][host] = round(self._now() - given, 3)
        if result.is_changed():
            self._tasks[place]["changed"].append(host)

    def v2_runner_on_ok(self, result: Any) -> None:
        """Take down a result."""
        self._end(result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """Take down a result."""
        self._end(result)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """Take down a result."""
        self._end(result)

    def v2_runner_on_skipped(self, result: Any) -> None:
        """Take down that there was nothing to do."""
        self._end(result)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Write all of it."""
        if os.environ.get("DURATIONS"):
            figures = {"seconds": self._now(), "tasks": self._tasks}
            pathlib.Path(os.environ["DURATIONS"]).write_text(json.dumps(figures))
