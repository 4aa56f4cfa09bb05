"""Looks for secrets where they must not be: what a host's processes show, what its journal and its files say.

Only names of secrets come back, and never a value.
"""

from __future__ import annotations

import base64
import contextlib
import json
import pathlib
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping

from conftest import Cluster

#: Runs on a host, by standard input. It knows the values; neither its command line nor its environment shows them.
SEARCH = """
import json, os, stat, subprocess, sys, time

def named(data):
    return [name for name, forms in SECRETS.items() if any(form.encode() in data for form in forms)]

def processes():
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for part in ("cmdline", "environ"):
            try:
                with open(f"/proc/{pid}/{part}", "rb") as file:
                    data = file.read()
                with open(f"/proc/{pid}/comm") as file:
                    command = file.read().strip()
            except OSError:
                continue  # it has ended
            found.update((name, f"{part} of {command}") for name in named(data))
    return found

def journal():
    said = subprocess.run(["journalctl", "--quiet", "--no-pager", "--output=export"], stdout=subprocess.PIPE).stdout
    assert len(said) > 10000
    return {(name, "journal") for name in named(said)}

def files():
    found, read = set(), 0
    for top in ("/etc", "/var", "/opt/airflow", "/run", "/tmp", "/home", "/usr/local", "/srv"):
        for directory, below, names in os.walk(top):
            # What others cannot enter, they cannot read; environments hold packages alone.
            below[:] = [
                name for name in below
                if not name.startswith("env-") and not os.path.islink(os.path.join(directory, name))
                and os.stat(os.path.join(directory, name)).st_mode & stat.S_IXOTH
            ]
            for name in names:
                path = os.path.join(directory, name)
                with_mode = os.lstat(path)
                if stat.S_ISREG(with_mode.st_mode) and with_mode.st_mode & stat.S_IROTH and with_mode.st_size < 2**24:
                    with open(path, "rb") as file:
                        found.update((secret, path) for secret in named(file.read()))
                        read += 1
    assert read > 100
    return found

def watch():
    # Until nobody reads any more.
    rounds = 0
    while True:
        rounds += 1
        print(json.dumps([rounds, sorted(processes())]), flush=True)
        time.sleep(0.2)
"""


def forms(value: str) -> list[str]:
    """The ways in which a secret may be written down: as it is, in a URL, in JSON, in base64."""
    plain = value.strip()
    found = {plain, urllib.parse.quote(plain, safe=""), json.dumps(plain)[1:-1]}
    encoded = base64.b64encode(plain.encode()).decode()
    # The end of base64 depends on what follows.
    found.add(encoded[: len(encoded) // 4 * 4 - 4])
    if "\n" in plain:  # a key in PEM: its lines
        lines = [line for line in plain.splitlines() if len(line) > 30 and not line.startswith("---")]
        # What follows in PKCS 8 is the public key, which the certificate shows as well.
        found = set(lines[:2] if "BEGIN PRIVATE KEY" in plain else lines)
    return sorted(found)


def named(secrets: Mapping[str, str], text: str) -> list[str]:
    """Name the secrets that a text holds."""
    return [name for name, value in secrets.items() if any(form in text for form in forms(value))]


def script(secrets: Mapping[str, str], call: str) -> str:
    return f"SECRETS = { ({name: forms(value) for name, value in secrets.items()})!r}\n{SEARCH}\n{call}\n"


def search(cluster: Cluster, host: str, secrets: Mapping[str, str], what: str) -> list[tuple[str, str]]:
    """Look at ``journal``, ``files`` or ``processes`` of a host.

    Returns:
        Name of a secret and where it is.
    """
    said = cluster.feed(host, "python3 -", script(secrets, f"print(json.dumps(sorted({what}())))"))
    return [(name, where) for name, where in json.loads(said)]


class Watch:
    """What processes showed while they were watched: on hosts, and on this machine."""

    def __init__(self) -> None:
        self.rounds: dict[str, int] = {}
        self.found: set[tuple[str, str, str]] = set()


@contextlib.contextmanager
def watched(cluster: Cluster, secrets: Mapping[str, str]) -> Iterator[Watch]:
    """Sample command lines and environments of all processes as long as the block runs."""
    watch = Watch()
    stop = threading.Event()
    text = script(secrets, "watch()")
    started = {host: cluster.started(host, "python3 -", text) for host in cluster.members["cluster"]}

    def read(host: str) -> None:
        output = started[host].stdout
        assert output is not None
        for line in output:
            rounds, found = json.loads(line)
            watch.rounds[host] = rounds
            watch.found.update((host, name, where) for name, where in found)

    def look_here() -> None:
        while not stop.is_set():
            watch.rounds["control node"] = watch.rounds.get("control node", 0) + 1
            for process in pathlib.Path("/proc").glob("[0-9]*"):
                for part in ("cmdline", "environ"):
                    with contextlib.suppress(OSError):
                        for name in named(secrets, (process / part).read_bytes().decode(errors="replace")):
                            watch.found.add(
                                ("control node", name, f"{part} of {(process / 'comm').read_text().strip()}")
                            )
            time.sleep(0.2)

    threads = [threading.Thread(target=read, args=(host,), daemon=True) for host in started]
    threads.append(threading.Thread(target=look_here, daemon=True))
    for thread in threads:
        thread.start()
    try:
        yield watch
        assert all(process.poll() is None for process in started.values()), "a watch has ended early"
    finally:
        stop.set()
        for process in started.values():
            process.terminate()
            process.wait(timeout=20)
        for thread in threads:
            thread.join(timeout=20)
        for process in started.values():
            if process.stdout is not None:
                process.stdout.close()
