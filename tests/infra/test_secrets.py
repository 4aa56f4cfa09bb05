"""No secret shows: on a command line, in a log, in an environment, in git, or to another user of a host."""

from __future__ import annotations

import pathlib
import subprocess

import airflow_api
import pytest
from conftest import Cluster, SiteRun, calls, changes
from searching import named, search, watched

SAMPLE = {"celery": "sample_distributed", "ssh": "sample_single_host"}


@pytest.fixture(scope="module")
def secrets(cluster: Cluster) -> dict[str, str]:
    """All of the catalogue, and main's private key."""
    directory = cluster.secrets_directory
    found = {path.name: cluster.secret(path.name) for path in directory.iterdir() if path.name != "rotation"}
    assert len(found) >= 9
    key = cluster.host(cluster.first("scheduler")).file("/etc/airflow/ssh/id_ed25519")
    return {**found, "ssh key": key.content_string}


def test_the_search_finds_what_is_there(cluster: Cluster, secrets: dict[str, str]) -> None:
    """Otherwise the tests below could not fail."""
    main = cluster.first("scheduler")
    text = f"x={secrets['admin_password']}&y"
    assert named(secrets, text) == ["admin_password"]
    told = {"a marker": "kR7mWq2ZxB41vNpd"}
    try:
        with watched(cluster, told) as watch:
            cluster.host(main).run("logger kR7mWq2ZxB41vNpd; echo kR7mWq2ZxB41vNpd > /srv/open; chmod 644 /srv/open")
            cluster.host(main).run("sh -c 'sleep 3; true' kR7mWq2ZxB41vNpd")
        assert (main, "a marker", "cmdline of sh") in watch.found
        assert ("control node", "a marker", "cmdline of ssh") in watch.found
        assert search(cluster, main, told, "journal") == [("a marker", "journal")]
        assert ("a marker", "/srv/open") in search(cluster, main, told, "files")
    finally:
        cluster.host(main).run("rm /srv/open")


def test_a_run_and_its_tasks_show_no_secret(
    cluster: Cluster, secrets: dict[str, str], site: SiteRun, api: airflow_api.AirflowApi
) -> None:
    """A run that writes secrets and passwords anew, with all that Ansible can say, and tasks meanwhile."""
    if cluster.mode != "celery":
        pytest.skip("in celery mode, where more hosts have secrets")
    for name in cluster.members["airflow"]:
        cluster.host(name).run("rm /etc/airflow/secrets/broker_url /etc/airflow/secrets/api_secret_key")
    database = cluster.host(cluster.first("postgresql"))
    with watched(cluster, secrets) as watch:
        database.run("runuser -u postgres -- psql -qc \"ALTER ROLE airflow_user PASSWORD 'other-than-it-was'\"")
        run = site("-vvv", "--diff")
        assert len(changes(run)) == len(cluster.members["airflow"])
        run_id = api.trigger(SAMPLE[cluster.mode])
        for target in cluster.targets:
            calls(cluster, target["name"], "sleep 2")
        api.wait_for_run(SAMPLE[cluster.mode], run_id)
    assert named(secrets, run.stdout + run.stderr) == []
    assert watch.found == set()
    assert set(watch.rounds) == {*cluster.members["cluster"], "control node"}
    assert min(watch.rounds.values()) > 20, watch.rounds


def test_no_journal_has_a_secret(cluster: Cluster, secrets: dict[str, str]) -> None:
    for host in cluster.members["cluster"]:
        assert search(cluster, host, secrets, "journal") == [], host


def test_no_file_that_others_may_read_has_a_secret(cluster: Cluster, secrets: dict[str, str]) -> None:
    for host in cluster.members["cluster"]:
        assert search(cluster, host, secrets, "files") == [], host


def test_no_file_of_the_project_has_a_secret(secrets: dict[str, str], project: pathlib.Path) -> None:
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=project, capture_output=True, text=True, check=True).stdout.split("\0")
    paths = [project / name for name in names if name and (project / name).is_file()]
    assert len(paths) > 100
    for path in paths:
        assert named(secrets, path.read_bytes().decode(errors="replace")) == [], path
    history = subprocess.run(["git", "log", "--patch", "--all"], cwd=project, capture_output=True, check=True).stdout
    assert named(secrets, history.decode(errors="replace")) == []


def test_secrets_on_the_control_node_are_their_users_alone(cluster: Cluster) -> None:
    directory = cluster.secrets_directory
    assert directory.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}
