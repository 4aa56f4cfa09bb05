"""Watches who consumes the queues while something else goes on: many times a second, from main."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
from collections.abc import Iterable, Iterator

from conftest import Cluster

#: Ends by itself when nobody reads it any more, and after an hour in any case.
WATCHER = """
import json, sys, time
from remote_tasks.client import queue_states
names = QUEUES
began = time.monotonic()
while time.monotonic() - began < 3600:
    states = queue_states(names)
    print(json.dumps([time.monotonic() - began, {name: state and state.consumers for name, state in states.items()}]))
    sys.stdout.flush()
    time.sleep(0.1)
"""


@dataclasses.dataclass
class WatchedQueues:
    """What was seen.

    Attributes:
        queues: The queues that are watched.
        samples: Seconds since the watch began, and the consumers of each queue; ``None`` for a queue that is not
            there.
    """

    queues: list[str]
    samples: list[tuple[float, dict[str, int | None]]] = dataclasses.field(default_factory=list)

    def counts(self, queue: str) -> list[int]:
        """Return how many consumers a queue had, sample by sample."""
        return [counts[queue] or 0 for _, counts in self.samples]

    def longest_gap(self, queue: str) -> float:
        """Return for how many seconds at a stretch a queue had no consumer, at the longest."""
        longest = 0.0
        since: float | None = None
        for moment, counts in self.samples:
            if counts[queue]:
                since = None
                continue
            since = moment if since is None else since
            longest = max(longest, moment - since)
        return longest


@contextlib.contextmanager
def watched(cluster: Cluster, queues: Iterable[str]) -> Iterator[WatchedQueues]:
    """Watch queues as long as the block runs.

    Args:
        cluster: The cluster.
        queues: The queues.

    Yields:
        What is seen, which grows meanwhile.
    """
    watch = WatchedQueues(list(queues))
    process = cluster.started(
        cluster.first("scheduler"), "airflow-python -", WATCHER.replace("QUEUES", repr(watch.queues))
    )
    assert process.stdout is not None
    ready = threading.Event()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            moment, counts = json.loads(line)
            watch.samples.append((moment, counts))
            ready.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        assert ready.wait(60), "the queues cannot be watched"
        yield watch
    finally:
        process.terminate()
        process.wait(timeout=20)
        reader.join(timeout=20)
