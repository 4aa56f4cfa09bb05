#!/usr/bin/env python3
"""Files from one VM to another, mode ssh: ``remote_tasks.file_transfer`` against ``scp -3`` through the same host.

``./lab bench transfer``, on a running cluster: one large file, and many small ones; in turns. The baseline is scp at
its best: the cipher that the processor does itself, and of its two protocols the one that is faster for what is sent.
Ours compares sha256 and flushes the file to the disk before it gets its name, which scp does not.
"""

from __future__ import annotations

import argparse
import pathlib
import shlex
import statistics
import sys
from collections.abc import Callable, Mapping
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import measured, running

UNIT = "airflow-worker-general"
PROTOCOLS = {"SFTP": "-s", "SCP": "-O"}
CIPHER = "aes128-gcm@openssh.com"

#: One file. Its time is the caller's.
ONE = """
import json, time
import remote_tasks
began = time.perf_counter()
result = remote_tasks.file_transfer(SOURCE, DEST, PATH, GOAL, timeout=600)
assert result["success"], result["error"]
print(json.dumps(time.perf_counter() - began))
"""
#: A directory, as a transfer of one advises: packed by tar.
PACKED = """
import json, shlex, time
import remote_tasks


def run(vm, command):
    result = remote_tasks.execute_on_vm(vm, command, timeout=600)
    assert result["success"], result["error"]


run(SOURCE, "true"), run(DEST, "true")
began = time.perf_counter()
run(SOURCE, f"tar -C {shlex.quote(PATH)} -cf {shlex.quote(PACK)} .")
result = remote_tasks.file_transfer(SOURCE, DEST, PACK, f"{GOAL}.tar", timeout=600)
assert result["success"], result["error"]
run(DEST, f"mkdir {shlex.quote(GOAL)} && tar -C {shlex.quote(GOAL)} -xf {shlex.quote(GOAL)}.tar")
print(json.dumps(time.perf_counter() - began))
"""
#: A transfer for each file, all of them at once.
EACH = """
import json, time
from remote_tasks.client import get_client
client = get_client()
began = time.perf_counter()
calls = [client.submit("remote_tasks.file_transfer", [SOURCE, DEST, f"{PATH}/{number}", f"{GOAL}/"],
                       queue="file_transfer_queue") for number in range(COUNT)]
results = [call.result(600) for call in calls]
assert all(result["success"] for result in results), results
print(json.dumps(time.perf_counter() - began))
"""


def scp_line(source: Mapping[str, Any], dest: Mapping[str, Any], path: str, goal: str, protocol: str) -> str:
    """Return a shell line for main that sends a file or a directory with scp.

    Args:
        source: The VM that has it, as main's targets file has it.
        dest: The VM that gets it.
        path: Its path.
        goal: Its new path.
        protocol: SFTP or SCP.
    """

    def url(target: Mapping[str, Any], at: str) -> str:
        return f"scp://{target['user']}@{target['host']}:{target.get('port', 22)}/{at}"

    options = {
        "BatchMode": "yes",
        "Ciphers": CIPHER,
        "Compression": "no",
        "UserKnownHostsFile": source["known_hosts_file"],
        "StrictHostKeyChecking": "yes",
    }
    words = ["scp", "-3", "-r", "-q", PROTOCOLS[protocol], "-i", str(source["key_file"])]
    words += [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    return shlex.join(["runuser", "-u", "airflow", "--", *words, url(source, path), url(dest, goal)])


class Sending:
    """Sends between two VMs, into a new place each time, and takes the time.

    Args:
        cluster: The cluster.
        source: The VM that has the files.
        dest: The VM that gets them.
        here: A directory on the source.
        there: A directory on the destination.
    """

    def __init__(self, cluster: running.Cluster, source: str, dest: str, here: str, there: str) -> None:
        """Ask main for the targets."""
        self.cluster, self.source, self.dest, self.here, self.there = cluster, source, dest, here, there
        listed = running.said_last(cluster.run(cluster.main, "tr -d '\\n' < /etc/airflow/targets.json"))["targets"]
        self.targets = {target["name"]: target for target in listed}

    def _clean(self) -> None:
        # Not what the one before left to be written: the disk is everybody's.
        self.cluster.run(self.dest, f"rm -rf {shlex.quote(self.there)}/* && sync")

    def scp(self, name: str, protocol: str) -> float:
        """Send with scp.

        Args:
            name: What, in the source's directory.
            protocol: SFTP or SCP.

        Returns:
            Seconds.
        """
        self._clean()
        source, dest = self.targets[self.source], self.targets[self.dest]
        line = scp_line(source, dest, f"{self.here}/{name}", f"{self.there}/{name}", protocol)
        timed = f"began=$(date +%s%N); {line} && echo $(( $(date +%s%N) - began ))"
        return int(self.cluster.run(self.cluster.main, timed)) / 1e9

    def ours(self, name: str, script: str, **values: Any) -> float:
        """Send with a script.

        Args:
            name: What, in the source's directory.
            script: How.
            values: More constants for it.

        Returns:
            Seconds.
        """
        self._clean()
        if script == EACH:
            self.cluster.run(self.dest, f"runuser -u {self.cluster.login(self.dest)} -- mkdir {self.there}/{name}")
        constants = {
            "SOURCE": self.source,
            "DEST": self.dest,
            "PATH": f"{self.here}/{name}",
            "GOAL": f"{self.there}/{pathlib.PurePath(name).name}",
            "PACK": f"{self.here}/{name}.tar",
        }
        return float(self.cluster.python(script, {**constants, **values}))

    def best(self, name: str) -> str:
        """Return the protocol of scp that is the faster one.

        Args:
            name: What is sent.
        """
        return min(PROTOCOLS, key=lambda protocol: self.scp(name, protocol))


def in_turns(rounds: int, **ways: Callable[[], float]) -> dict[str, list[float]]:
    """Take the times of several ways, in turns.

    Args:
        rounds: How often.
        ways: Each returns its seconds.

    Returns:
        Seconds by the way's name.
    """
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            took[name].append(way())
            print(f"  {name}: {took[name][-1]:.2f} s", flush=True)
    return took


def made(cluster: running.Cluster, vm: str, place: str, megabytes: int, count: int) -> None:
    """Make what is sent: a large file, and a directory of files of 10 kB.

    Args:
        cluster: The cluster.
        vm: Where.
        place: The directory for it.
        megabytes: The large file's size, in MiB.
        count: How many small ones.
    """
    line = (
        f"cd {shlex.quote(place)} && head -c {megabytes}M /dev/urandom > large && mkdir small && "
        f"for ((n = 0; n < {count}; n++)); do head -c 10000 /dev/urandom > small/$n; done"
    )
    cluster.run(vm, f"runuser -u {cluster.login(vm)} -- bash -c {shlex.quote(line)} && sync")


def main() -> None:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=1024, help="of the large file, in MiB")
    parser.add_argument("--count", type=int, default=1000, help="how many small files of 10 kB")
    options = parser.parse_args()
    cluster = running.Cluster.read()
    source = cluster.vm("vm2")
    dest = next(name for name in (cluster.vm("vm3"), *cluster.vms) if name != source)
    with (
        running.in_mode(cluster, "ssh"),
        running.scratch(cluster, source, cluster.login(source)) as here,
        running.scratch(cluster, dest, cluster.login(dest)) as there,
    ):
        made(cluster, source, here, options.megabytes, options.count)
        sending = Sending(cluster, source, dest, here, there)
        sending.ours("small/0", ONE)  # connects
        large, small = sending.best("large"), sending.best("small")
        sizes = [cluster.memory(cluster.main, UNIT)]
        with cluster.memory_meanwhile(cluster.main, UNIT) as meanwhile:
            took = in_turns(
                options.rounds,
                ours=lambda: sending.ours("large", ONE),
                scp=lambda: sending.scp("large", large),
            )
        took_small = in_turns(
            options.rounds,
            packed=lambda: sending.ours("small", PACKED),
            each=lambda: sending.ours("small", EACH, COUNT=options.count),
            scp=lambda: sending.scp("small", small),
        )
    rates = {way: [options.megabytes * 1.048576 / seconds for seconds in took[way]] for way in took}
    counts = {way: [options.count / seconds for seconds in took_small[way]] for way in took_small}
    measured.write(
        "transfer",
        [
            measured.Comparison(
                what=f"A file of {options.megabytes} MiB from VM to VM through main",
                against=f"`scp -3 -c {CIPHER}` ({large} protocol)",
                unit="MB/s",
                ours=rates["ours"],
                baseline=rates["scp"],
                at_least=0.9,
                note="Ours compares sha256 and flushes to the disk.",
            ),
            measured.Comparison(
                what="Memory of the worker that sends it, at most",
                against="the same worker, idle",
                unit="MB",
                ours=[max(meanwhile)],
                baseline=sizes,
                at_most=1.2,
            ),
            *(
                measured.Comparison(
                    what=what,
                    against=f"`scp -3 -r -c {CIPHER}` ({small} protocol)",
                    unit="files/s",
                    ours=counts[way],
                    baseline=counts["scp"],
                    at_least=3.0,
                )
                for way, what in (
                    ("packed", f"A directory of {options.count} files of 10 kB, packed by tar"),
                    ("each", f"{options.count} files of 10 kB, a transfer each"),
                )
            ),
        ],
        versions=cluster.versions(),
        notes=[
            f"In turns, {options.rounds} rounds, from {source} to {dest} in mode ssh, from disk to disk. Memory: PSS, "
            f"looked at four times a second; the median was {statistics.median(meanwhile):.0f} MB."
        ],
    )


if __name__ == "__main__":
    main()
