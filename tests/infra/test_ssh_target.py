"""Main and the target VMs: one key, one line, pinned host keys, and nothing else on a naked VM."""

from __future__ import annotations

import pathlib
import shlex

import pytest
from conftest import IS_255, Cluster, SiteRun, changes, snapshot
from testinfra.host import Host

KEY = "/etc/airflow/ssh/id_ed25519"
KNOWN_HOSTS = "/etc/airflow/ssh/known_hosts"


def authorized_keys(cluster: Cluster, name: str) -> list[str]:
    user = next(target["user"] for target in cluster.targets if target["name"] == name)
    home = cluster.host(name).user(user).home
    text: str = cluster.host(name).file(f"{home}/.ssh/authorized_keys").content_string
    return text.splitlines()


def test_a_target_lets_mains_key_in_from_main_and_without_forwarding(cluster: Cluster, main: Host) -> None:
    kind, key = main.file(f"{KEY}.pub").content_string.split()[:2]
    address = cluster.address(cluster.first("scheduler"))
    for target in cluster.targets:
        lines = [line for line in authorized_keys(cluster, target["name"]) if key in line]
        assert lines == [f'from="{address}",restrict,pty {kind} {key} airflow@main'], target["name"]


def test_the_private_key_is_on_main_alone_and_for_the_services_alone(cluster: Cluster, main: Host) -> None:
    file = main.file(KEY)
    assert (file.user, file.mode) == ("airflow", 0o400)
    assert main.run(f"runuser -u rocky -- cat {KEY}").rc != 0
    secret = file.content_string.splitlines()[2]
    for name in cluster.members["cluster"]:
        if name != cluster.first("scheduler"):
            search = "grep -rlFs -f - /etc /home /root /var"
            assert cluster.feed(name, search, secret) == "", name


def test_host_keys_are_pinned_as_they_are(cluster: Cluster, main: Host) -> None:
    pinned = {tuple(line.split()) for line in main.file(KNOWN_HOSTS).content_string.splitlines()}
    for target in cluster.targets:
        shown = cluster.host(target["name"]).run("cat /etc/ssh/ssh_host_*_key.pub").stdout.splitlines()
        theirs = {(target["host"], *line.split()[:2]) for line in shown}
        assert theirs == {entry for entry in pinned if entry[0] == target["host"]}
    assert len({entry[0] for entry in pinned}) == len(cluster.targets)


def test_the_key_forwards_nothing(cluster: Cluster, main: Host) -> None:
    target = cluster.targets[0]
    ssh = f"runuser -u airflow -- ssh -i {KEY} -o UserKnownHostsFile={KNOWN_HOSTS} -o BatchMode=yes"
    login = f"{target['user']}@{target['host']}"
    assert main.run(f"{ssh} {login} hostname").stdout.strip() == target["name"]
    refused = main.run(f"timeout 10 {ssh} -W 127.0.0.1:22 {login}{IS_255}")
    assert refused.rc == 254
    assert "prohibited" in refused.stderr


def test_a_naked_target_differs_in_that_one_line_alone(cluster: Cluster, project: pathlib.Path) -> None:
    """Packages, and every file below /etc, /home, /opt, /root, /srv, /usr and /var but what any login writes."""
    if not cluster.members["naked"]:
        pytest.skip("every target has a worker of its own in this mode")
    before = project / ".lab" / cluster.inventory_name / "before"
    if not before.is_dir():
        pytest.skip("nobody took down what the VMs held before")
    for name in cluster.members["naked"]:
        user = cluster.variables[name]["ansible_user"]
        was = set((before / name).read_text().splitlines())
        now = set(snapshot(cluster.host(name)))
        ssh = f"/home/{user}/.ssh"
        assert {line.split(" ", 1)[0] for line in now - was} <= {f"/home/{user}", ssh, f"{ssh}/authorized_keys"}, name
        assert {line.split(" ", 1)[0] for line in was - now} <= {f"/home/{user}"}, name
        assert len(authorized_keys(cluster, name)) == 1


def test_a_changed_host_key_is_refused_until_it_is_accepted_by_name(
    cluster: Cluster, main: Host, site: SiteRun
) -> None:
    target = cluster.targets[-1]
    before = main.file(KNOWN_HOSTS).content_string
    # As if the VM had been rebuilt: another key is pinned than the one that it has.
    stranger = main.run("ssh-keygen -q -t ed25519 -N '' -f /run/stranger && cat /run/stranger.pub").stdout.split()[1]
    lines = [
        f"{target['host']} ssh-ed25519 {stranger}" if line.startswith(f"{target['host']} ssh-ed25519") else line
        for line in before.splitlines()
    ]
    main.run("rm -f /run/stranger /run/stranger.pub")
    try:
        main.run(f"printf '%s\\n' {' '.join(map(shlex.quote, lines))} > {KNOWN_HOSTS}")
        refused = main.run(f"remote-tasks run {target['name']} -- hostname{IS_255}")
        assert refused.rc == 254
        assert "the host key has CHANGED: expected " in refused.stderr
        assert f"accept_host_key.yml -e vm={target['name']}" in refused.stderr

        run = site(check=False)
        assert run.returncode != 0
        assert f"{target['name']} ({target['host']}): its host key has changed" in " ".join(run.stdout.split())
        assert changes(run) == []
        assert main.file(KNOWN_HOSTS).content_string != before

        site("--extra-vars", f"vm={target['name']}", playbook="playbooks/accept_host_key.yml")
        assert main.file(KNOWN_HOSTS).content_string == before
        assert main.run(f"remote-tasks run {target['name']} -- hostname").stdout.strip() == target["name"]
    finally:
        main.run(f"printf '%s' {shlex.quote(before)} > {KNOWN_HOSTS}")


def test_an_unknown_vm_is_not_accepted(site: SiteRun) -> None:
    refused = site("--extra-vars", "vm=vm99", playbook="playbooks/accept_host_key.yml", check=False)
    assert refused.returncode != 0
    assert "is no target VM. Write -e vm=NAME" in " ".join(refused.stdout.split())
