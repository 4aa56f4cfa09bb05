#!/usr/bin/env python3
"""How long ``site.yml`` takes: from bare VMs, again with nothing to change, to switch the mode, and for one DAG file.

``./lab bench site``, about half an hour, with the VMs of the scenario distributed, which it makes anew in each round.
The first run is held against ``baselines/floor.sh``, which sets up the same by hand, and the others against runs of
ours. Both sides begin with the same caches of packages. Where the time goes is written to
``docs/benchmarks/profile.md``: each task of a first and of an unchanged run, host by host.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
sys.path.insert(1, f"{sys.path[0]}/tools")

import marked

from benchmarks import measured, running

FLOOR = measured.ROOT / "benchmarks/baselines/floor.sh"
#: With the project's own, which ansible.cfg names and the variable replaces.
CALLBACKS = (measured.ROOT / "benchmarks/callbacks", measured.ROOT / "callback_plugins")
SCENARIO = "distributed"
DAG = "sample_distributed"
#: Tasks of the profile that take less than this, in seconds, share one row: of a first run, of an unchanged one.
SHORT = {"cold": 1.0, "noop": 0.1}
#: Seconds that the baseline may take; it takes one or two minutes.
FLOOR_TIMEOUT = 900

#: What the callback `durations` writes.
Profile = Mapping[str, Any]


def lab(*arguments: str) -> None:
    """Run ``./lab``.

    Args:
        arguments: Its own.

    Raises:
        running.BenchmarkError: It failed.
    """
    done = subprocess.run(["./lab", *arguments], cwd=measured.ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        message = f"./lab {' '.join(arguments)} failed: {(done.stdout + done.stderr)[-2000:]}"
        raise running.BenchmarkError(message)


def make_bare() -> None:
    """Have bare VMs in the place of those that there are; caches of packages stay."""
    print("making bare VMs", flush=True)
    lab("down")
    lab("create", SCENARIO)


def run_floor(directory: pathlib.Path, command: str, cluster: running.Cluster) -> float:
    """Run the baseline.

    Args:
        directory: Where it keeps what it writes to the hosts, and finds it.
        command: take or install.
        cluster: The cluster.

    Returns:
        The seconds that it took.

    Raises:
        running.BenchmarkError: It failed, or hangs.
    """
    password = directory / "password"
    password.touch(mode=0o600)
    password.write_text((cluster.directory / "secrets/rabbitmq_admin_password").read_text().partition("\nlogin=")[0])
    environment = {
        "UV_SYSTEM_CERTS": "1",  # as ./lab has it
        **os.environ,
        "FLOOR_SSH_CONFIG": str(running.lab_directory() / "ssh_config"),
        "FLOOR_UV": str(measured.ROOT / ".lab/uv/bin/uv"),
        "FLOOR_PASSWORD_FILE": str(password),
    }
    began = time.monotonic()
    done = subprocess.run(
        ["timeout", str(FLOOR_TIMEOUT), str(FLOOR), command, str(directory / "files"), cluster.main, *cluster.vms],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.monotonic() - began
    if done.returncode != 0:
        message = f"floor.sh {command} failed: {(done.stdout + done.stderr)[-4000:]}"
        raise running.BenchmarkError(message)
    if command == "install":
        print(done.stdout.rstrip(), flush=True)
    return seconds


@contextlib.contextmanager
def profiled() -> Iterator[dict[str, Any]]:
    """Take down how long each task takes on each host.

    Yields:
        The profile, which is filled afterwards.
    """
    profile: dict[str, Any] = {}
    before = dict(os.environ)
    with tempfile.TemporaryDirectory() as directory:
        file = pathlib.Path(directory) / "durations.json"
        try:
            os.environ |= {
                "ANSIBLE_CALLBACK_PLUGINS": ":".join(str(path) for path in CALLBACKS),
                "ANSIBLE_CALLBACKS_ENABLED": "durations",
                "DURATIONS": str(file),
            }
            yield profile
        finally:
            os.environ.clear()
            os.environ.update(before)
        profile |= json.loads(file.read_text())


def changed(profile: Profile) -> list[str]:
    """Return the tasks that changed something.

    Args:
        profile: Of a run.
    """
    return [f"{task['task']} on {', '.join(task['changed'])}" for task in profile["tasks"] if task["changed"]]


def spans(profile: Profile) -> list[dict[str, Any]]:
    """Return the tasks of a run with their times, the longest first.

    Args:
        profile: Of the run.

    Returns:
        ``play``, ``task``, ``hosts`` (name to seconds) and ``seconds``: from its beginning to the next one's.
    """
    tasks = profile["tasks"]
    ends = [*(task["began"] for task in tasks[1:]), profile["seconds"]]
    found = [
        {**task, "seconds": end - task["began"]}
        for task, end in zip(tasks, ends, strict=True)
        if task["task"] != "meta"
    ]
    return sorted(found, key=lambda task: -float(task["seconds"]))


def profile_tables(profile: Profile, hosts: Sequence[str], short: float) -> list[str]:
    """Write a run's profile.

    Args:
        profile: Of the run.
        hosts: The columns.
        short: Tasks that take fewer seconds share one row.

    Returns:
        Lines of Markdown: a table of tasks, and one of plays.
    """
    tasks = spans(profile)
    long = [task for task in tasks if task["seconds"] >= short]
    rest = [task for task in tasks if task["seconds"] < short]

    def spent(chosen: Sequence[Mapping[str, Any]], host: str) -> str:
        seconds = [task["hosts"][host] for task in chosen if host in task["hosts"]]
        return f"{sum(seconds):.1f}" if seconds else ""

    def row(seconds: float, play: str, what: str, chosen: Sequence[Mapping[str, Any]]) -> list[str]:
        return [f"{seconds:.1f}", play, what, *(spent(chosen, host) for host in hosts)]

    rows = [row(task["seconds"], task["play"], task["task"], [task]) for task in long]
    rows.append(row(sum(task["seconds"] for task in rest), "", f"{len(rest)} others", rest))
    by_play: dict[str, list[dict[str, Any]]] = {}
    for task in sorted(tasks, key=lambda task: float(task["began"])):
        by_play.setdefault(task["play"], []).append(task)
    plays = [row(sum(task["seconds"] for task in own), name, f"{len(own)}", own) for name, own in by_play.items()]
    return [
        marked.table(["s", "play", "task", *hosts], rows),
        "",
        marked.table(["s", "play", "tasks", *hosts], plays),
        "",
    ]


def profile_page(cold: Profile, noop: Profile, hosts: Sequence[str], machine: str) -> str:
    """Write the page of the profile.

    Args:
        cold: A first run.
        noop: A run with nothing to change.
        hosts: All hosts.
        machine: What it was measured on.

    Returns:
        Markdown.
    """
    lines = [
        "# Where the time of site.yml goes",
        "",
        f"Made by `./lab bench site`, on {machine}. Under `s` the time from a task's beginning to that of the next,",
        "which is the run's; under a host's name the time until its own result was there. Hosts work at a time, and",
        "share the machine with each other and with Ansible.",
        "",
        f"## From bare VMs: {cold['seconds']:.0f} s",
        "",
        *profile_tables(cold, hosts, SHORT["cold"]),
        f"## With nothing to change: {noop['seconds']:.1f} s",
        "",
        *profile_tables(noop, hosts, SHORT["noop"]),
    ]
    return "\n".join(lines).rstrip() + "\n"


def middle(profiles: Sequence[Profile]) -> Profile:
    """Return the run in the middle, by its seconds.

    Args:
        profiles: Some runs.
    """
    return sorted(profiles, key=lambda profile: float(profile["seconds"]))[(len(profiles) - 1) // 2]


def measure_ours(noops: int, number: int, profiles: dict[str, list[Profile]]) -> dict[str, list[float]]:
    """Measure ours on bare VMs.

    Args:
        noops: How often with nothing to change.
        number: Of the round.
        profiles: Takes the profiles, by ``cold`` and ``noop``.

    Returns:
        Seconds by ``cold``, ``noop``, ``ssh`` and ``celery`` (a switch to it) and ``dags``.

    Raises:
        running.BenchmarkError: A run with nothing to change changed something.
    """
    figures: dict[str, list[float]] = {}
    with profiled() as profile:
        figures["cold"] = [running.playbook()]
    profiles["cold"].append(profile)
    figures["noop"] = []
    for _ in range(noops):
        with profiled() as profile:
            figures["noop"].append(running.playbook())
        if changed(profile):
            message = f"a run with nothing to change changed: {'; '.join(changed(profile))}"
            raise running.BenchmarkError(message)
        profiles["noop"].append(profile)
    try:
        for mode in ("ssh", "celery"):
            figures[mode] = [running.playbook(values={"mode": mode})]
    except BaseException:
        running.playbook()
        raise
    try:
        text = (measured.ROOT / f"dags/{DAG}.py").read_text() + f"\n# round {number}\n"
        with running.more_dags({f"{DAG}.py": text}) as dags:
            values = {"airflow_dags_source": str(dags)}
            figures["dags"] = [running.playbook("playbooks/deliver_dags.yml", values=values)]
    finally:
        running.playbook("playbooks/deliver_dags.yml")
    return figures


def comparisons(figures: Mapping[str, Sequence[float]]) -> list[measured.Comparison]:
    """Return what was held against what.

    Args:
        figures: Seconds by ``floor`` and what `measure_ours` returns.
    """
    cold: dict[str, Any] = {"against": "the first run", "baseline": figures["cold"]}
    switched = "A switch of an idle cluster to `mode: {}`"
    common: dict[str, Any] = {"unit": "s"}
    return [
        measured.Comparison(
            what="`site.yml` on three bare VMs, until healthy",
            against="the same by a parallel shell script",
            ours=figures["cold"],
            baseline=figures["floor"],
            at_most=2.0,
            note="the hosts' work shares the cores with Ansible's own, "
            f"{statistics.median(figures['noop']):.0f} s of which are there with nothing to change",
            **common,
        ),
        measured.Comparison(
            what="the same run again, with nothing to change", ours=figures["noop"], at_most=0.2, **cold, **common
        ),
        measured.Comparison(
            what=switched.format("ssh"),
            ours=figures["ssh"],
            at_most=1 / 3,
            note="takes from each VM what a run has brought there, and leaves it as it was before",
            **cold,
            **common,
        ),
        measured.Comparison(
            what=switched.format("celery"),
            ours=figures["celery"],
            at_most=1 / 3,
            note="makes Airflow's environment and the rest anew on each VM, which was naked",
            **cold,
            **common,
        ),
        measured.Comparison(
            what="one changed DAG file to all hosts, by `playbooks/deliver_dags.yml`",
            against="a run with nothing to change",
            ours=figures["dags"],
            baseline=figures["noop"],
            at_most=1 / 3,
            **common,
        ),
    ]


@contextlib.contextmanager
def made_anew() -> Iterator[None]:
    """Have the lab's VMs with a cluster of ours afterwards, also where something fails.

    Yields:
        Nothing, while they may be made anew, and may be the baseline's.
    """
    try:
        yield
    except BaseException:
        make_bare()
        running.playbook()
        raise


def write(
    cluster: running.Cluster, figures: Mapping[str, Sequence[float]], profiles: Mapping[str, Sequence[Profile]]
) -> None:
    """Write the figures and the profile of the rounds until now.

    Args:
        cluster: The cluster.
        figures: Seconds, as `comparisons` takes them.
        profiles: Of the runs, by ``cold`` and ``noop``.
    """
    hosts = [cluster.main, *cluster.vms]
    page = profile_page(middle(profiles["cold"]), middle(profiles["noop"]), hosts, measured.machine())
    measured.FIGURES.mkdir(parents=True, exist_ok=True)
    (measured.FIGURES / "profile.md").write_text(page)
    measured.write(
        "site",
        comparisons(figures),
        versions=versions(cluster),
        notes=[
            "The script has all files, SQL and broker definitions ready before its time begins, as `site.yml` made "
            "them on an earlier cluster; it installs the same packages and the same locked environment, checks nothing "
            "but health, and cannot run twice. Not in its time: the 8 s that every unit must have run before "
            "`site.yml` calls a cluster healthy.",
            "Both sides begin with the same caches of apt and of uv, and with the secrets and certificates of the "
            "inventory. All hosts share the machine's cores with each other and with the control node.",
            "[Where the time goes](benchmarks/profile.md), task by task.",
        ],
    )


def versions(cluster: running.Cluster) -> dict[str, str]:
    """Return the versions of what is measured, by name.

    Args:
        cluster: The cluster.
    """
    debian = cluster.run(cluster.main, ". /etc/os-release && echo $VERSION_ID").strip()
    return {
        **cluster.versions(),
        "ansible-core": importlib.metadata.version("ansible-core"),
        "Debian": debian,
    }


def main() -> None:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="first runs of each side")
    parser.add_argument("--noops", type=int, default=3, help="in each round, runs with nothing to change")
    options = parser.parse_args()
    cluster = running.Cluster.read()
    if cluster.directory.name != SCENARIO:
        running.leave_out(f"it is about the VMs of {SCENARIO}: ./lab down, then ./lab bench site")
    running.lab_directory()
    figures: dict[str, list[float]] = {}
    profiles: dict[str, list[Profile]] = {"cold": [], "noop": []}
    with tempfile.TemporaryDirectory() as place, made_anew():
        directory = pathlib.Path(place)
        running.playbook()  # fills the caches of packages, and makes what the script has ready
        run_floor(directory, "take", cluster)
        for number in range(1, options.rounds + 1):
            print(f"round {number} of {options.rounds}", flush=True)
            make_bare()
            floor = run_floor(directory, "install", cluster)
            print(f"floor.sh: {floor:.1f} s", flush=True)
            cluster.run_dag(DAG)
            make_bare()
            ours = measure_ours(options.noops, number, profiles)
            cluster.run_dag(DAG)
            for name, seconds in {"floor": [floor], **ours}.items():
                figures.setdefault(name, []).extend(seconds)
                print(f"{name}: {statistics.median(seconds):.1f} s", flush=True)
            write(cluster, figures, profiles)


if __name__ == "__main__":
    main()
