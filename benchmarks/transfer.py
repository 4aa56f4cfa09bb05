#!/usr/bin/env python3
"""Files from one VM to another, mode ssh: ``remote_tasks.file_transfer`` against ``scp -3`` through the same host.

``./lab bench transfer``, on a running cluster: one large file, a directory of many small ones, and some of these one by
one; in turns. The baseline is scp at its best: the cipher that the processor does itself, of its two protocols the one
that is faster for what is sent, and for files one by one connections that are kept and several at once. Ours compares
sha256 and flushes to the disk before anything gets its name, which scp does not.
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
AT_ONCE = 8

#: One file, or one directory. Its time is the caller's, who has called before.
ONE = """
import json, time
import remote_tasks
remote_tasks.execute_on_vm(SOURCE, "true", timeout=600)
began = time.perf_counter()
result = remote_tasks.file_transfer(SOURCE, DEST, PATH, GOAL, timeout=600)
assert result["success"], result["error"]
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


def scp_line(source: Mapping[str, Any], dest: Mapping[str, Any], path: str, goal: str, protocol: str) -> list[str]:
    """Return the words that send a file or a directory with scp, on main.

    Args:
        source: The VM that has it, as main's targets file has it.
        dest: The VM that gets it.
        path: Its path.
        goal: Its new path.
        protocol: SFTP or SCP.

    Returns:
        A program and its arguments.
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
    return [*words, url(source, path), url(dest, goal)]


def as_airflow(line: str) -> str:
    """Return a shell line for main that runs one as the login that may use the key.

    Args:
        line: A shell line.
    """
    return f"runuser -u airflow -- bash -c {shlex.quote(line)}"


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
        words = scp_line(source, dest, f"{self.here}/{name}", f"{self.there}/{name}", protocol)
        return self._timed(shlex.join(words))

    def scp_each(self, name: str, protocol: str, count: int) -> float:
        """Send files one by one with scp, several at once, over connections that are kept.

        Args:
            name: Their directory in the source's; they are numbered from 0.
            protocol: SFTP or SCP.
            count: How many.

        Returns:
            Seconds.
        """
        self._clean()
        self.cluster.run(self.dest, f"runuser -u {self.cluster.login(self.dest)} -- mkdir {self.there}/{name}")
        source, dest = self.targets[self.source], self.targets[self.dest]
        words = scp_line(source, dest, f"{self.here}/{name}/FILE", f"{self.there}/{name}/FILE", protocol)
        kept = ["-o", "ControlMaster=auto", "-o", "ControlPath=/tmp/scp-%C", "-o", "ControlPersist=10"]
        one = shlex.join([words[0], *kept, *words[1:]])
        # Connects. What stays behind of it would keep our end of its messages open.
        self.cluster.run(self.cluster.main, as_airflow(one.replace("FILE", "0") + " 2> /dev/null"))
        return self._timed(f"seq 0 {count - 1} | xargs -P {AT_ONCE} -I FILE {one}")

    def _timed(self, line: str) -> float:
        timed = f"began=$(date +%s%N); {as_airflow(line)} && echo $(( $(date +%s%N) - began ))"
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
    parser.add_argument("--each", type=int, default=200, help="how many of them are sent one by one")
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
        sending.ours("small", EACH, COUNT=2 * AT_ONCE)  # connects
        large, small = sending.best("large"), sending.best("small")
        each = min(PROTOCOLS, key=lambda protocol: sending.scp_each("small", protocol, 2 * AT_ONCE))
        sizes = [cluster.memory(cluster.main, UNIT)]
        with cluster.memory_meanwhile(cluster.main, UNIT) as meanwhile:
            took = in_turns(
                options.rounds,
                ours=lambda: sending.ours("large", ONE),
                scp=lambda: sending.scp("large", large),
            )
        took_small = in_turns(
            options.rounds,
            ours=lambda: sending.ours("small", ONE),
            scp=lambda: sending.scp("small", small),
        )
        took_each = in_turns(
            options.rounds,
            ours=lambda: sending.ours("small", EACH, COUNT=options.each),
            scp=lambda: sending.scp_each("small", each, options.each),
        )
    rates = {way: [options.megabytes * 1.048576 / seconds for seconds in took[way]] for way in took}
    counts = {way: [options.count / seconds for seconds in took_small[way]] for way in took_small}
    counts_each = {way: [options.each / seconds for seconds in took_each[way]] for way in took_each}
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
                note="Ours compares sha256 and flushes to the disk; and each packet goes through Python.",
            ),
            measured.Comparison(
                what="Memory of the worker that sends it, at most",
                against="the same worker, idle",
                unit="MB",
                ours=[max(meanwhile)],
                baseline=sizes,
                at_most=1.2,
            ),
            measured.Comparison(
                what=f"A directory of {options.count} files of 10 kB, by one transfer",
                against=f"`scp -3 -r -c {CIPHER}` ({small} protocol)",
                unit="files/s",
                ours=counts["ours"],
                baseline=counts["scp"],
                at_least=3.0,
            ),
            measured.Comparison(
                what=f"{options.each} of these files, a transfer each",
                against=f"a `scp -3` each ({each} protocol), {AT_ONCE} at once over kept connections",
                unit="files/s",
                ours=counts_each["ours"],
                baseline=counts_each["scp"],
                at_least=1.0,
                note="For many small files there is the transfer of their directory.",
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
