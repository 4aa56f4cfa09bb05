"""Watches who consumes the queues while something else goes on: many times a second, at the broker."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
from collections.abc import Iterable, Iterator

from conftest import Cluster

#: Ends by itself when nobody reads it any more, and after an hour in any case. From the management API, since a
#: queue that is asked itself counts workers that take no more messages as long as they work on some.
WATCHER = """
import base64, collections, json, time, urllib.request
began = time.monotonic()
request = urllib.request.Request("http://127.0.0.1:15672/api/consumers/airflow_host")
request.add_header("Authorization", "Basic " + base64.b64encode(LOGIN.encode()).decode())
while time.monotonic() - began < 3600:
    with urllib.request.urlopen(request, timeout=10) as answer:
        consumers = json.load(answer)
    counts = collections.Counter(consumer["queue"]["name"] for consumer in consumers if consumer["active"])
    print(json.dumps([time.monotonic() - began, counts]), flush=True)
    time.sleep(0.1)
"""


@dataclasses.dataclass
class WatchedQueues:
    """What was seen.

    Attributes:
        queues: The queues that are watched.
        samples: Seconds since the watch began, and the consumers of each queue that has some.
    """

    queues: list[str]
    samples: list[tuple[float, dict[str, int]]] = dataclasses.field(default_factory=list)

    def counts(self, queue: str) -> list[int]:
        """Return how many consumers a queue had, sample by sample."""
        return [counts.get(queue, 0) for _, counts in self.samples]

    def longest_gap(self, queue: str) -> float:
        """Return for how many seconds at a stretch a queue had no consumer, at the longest."""
        longest = 0.0
        since: float | None = None
        for moment, counts in self.samples:
            if counts.get(queue):
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
    login = f"airflow_admin:{cluster.secret('rabbitmq_admin_password')}"
    script = WATCHER.replace("LOGIN", repr(login))
    process = cluster.started(cluster.first("rabbitmq"), "python3 -", script)
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
        assert process.poll() is None, "the watch has ended early"
    finally:
        process.terminate()
        process.wait(timeout=20)
        reader.join(timeout=20)
        process.stdout.close()
