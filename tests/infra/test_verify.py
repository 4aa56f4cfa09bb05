"""playbooks/verify.yml: environments are what their lock says, and what is not is named."""

from __future__ import annotations

from conftest import Cluster, SiteRun, changes

PLAYBOOK = "playbooks/verify.yml"


def test_the_environment_of_each_host_is_what_its_lock_says(cluster: Cluster, site: SiteRun) -> None:
    run = site(playbook=PLAYBOOK)
    assert run.stdout.count(" packages: as the lock says") == len(cluster.members["airflow"])
    assert changes(run) == []


def test_what_was_changed_by_hand_is_named(cluster: Cluster, site: SiteRun) -> None:
    name = cluster.members["airflow"][-1]
    host = cluster.host(name)
    site_packages = host.check_output("echo /opt/airflow/current/lib/python3*/site-packages")
    changed, kept, extra = f"{site_packages}/kombu/common.py", "/root/common.py", f"{site_packages}/by_hand.pth"
    try:
        host.check_output(f"cp --archive {changed} {kept}")
        host.check_output(f"echo '# by hand' >> {changed}; touch {extra}")
        run = site(playbook=PLAYBOOK, check=False)
    finally:
        host.run(f"rm --force {extra}; [ ! -e {kept} ] || mv {kept} {changed}")
    assert run.returncode != 0
    said = " ".join(run.stdout.split())
    assert f"on {name} is not what its lock says" in said
    assert "site-packages/kombu/common.py of kombu was changed" in said
    assert "site-packages/by_hand.pth is of no package" in said
    # Of the other hosts, and of other files, nothing.
    assert said.count("is not what its lock says: - ") == said.count(f"on {name} is not what its lock says: - ") > 0
    assert "... and" not in said
    site(playbook=PLAYBOOK)
