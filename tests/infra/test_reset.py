"""The cluster is taken apart: without its data, which a new run goes on with, and then with them.

Nothing is left afterwards: these tests run last, and in Molecule's own VMs only.
"""

from __future__ import annotations

import os
import pathlib
import re

import airflow_api
import pytest
from conftest import Cluster, SiteRun, changes, snapshot
from testinfra.host import Host

RESET = "playbooks/reset.yml"
DAG = "remote_vm_execution"

#: What packages leave by their own doing when they are purged: their users (postgres, rabbitmq), and ucf's history.
LEFT_BY_PACKAGES = re.compile(r"/etc/(passwd|group|shadow|gshadow)-?$|/var/lib/ucf/")

pytestmark = [
    pytest.mark.last,
    pytest.mark.skipif("MOLECULE_SCENARIO_NAME" not in os.environ, reason="takes the cluster apart: in Molecule's VMs"),
]


@pytest.fixture(scope="module", autouse=True)
def in_ssh_mode(cluster: Cluster) -> None:
    if cluster.mode != "ssh":
        pytest.skip("minutes for what a switch does with the workers' VMs, and the other scenario with main")


def test_another_word_and_no_answer_are_refused(site: SiteRun) -> None:
    for arguments, said in (
        (["--extra-vars", "data=all"], "Write -e data=keep"),
        ([], "Nothing was changed. Write 'reset' when asked"),
        (["--extra-vars", "data=remove"], "Nothing was changed. Write 'remove' when asked"),
    ):
        refused = site(*arguments, playbook=RESET, check=False)
        assert refused.returncode != 0
        assert said in " ".join(refused.stdout.split())
        assert changes(refused) == []


def test_the_data_survive_a_reset_and_the_next_run_goes_on_with_them(
    cluster: Cluster, main: Host, site: SiteRun, api: airflow_api.AirflowApi, api_url: str
) -> None:
    api.wait_for_dag(DAG)
    api.unpause(DAG)
    run_id = api.trigger(DAG)
    assert api.wait_for_run(DAG, run_id) == "success"

    site("--extra-vars", "yes=true", playbook=RESET)
    assert main.run("systemctl list-unit-files --no-legend 'airflow-*'").stdout == ""
    for path in ("/opt/airflow", "/etc/airflow", "/var/lib/airflow", "/usr/local/bin/remote-tasks"):
        assert not main.file(path).exists
    assert main.service("postgresql").is_running
    assert main.service("rabbitmq-server").is_running
    for target in cluster.targets:
        assert not cluster.host(target["name"]).file(f"/home/{target['user']}/.ssh").exists

    site()
    again = airflow_api.AirflowApi(api_url, "admin", cluster.secret("admin_password"), ca=cluster.ca)
    assert again.run_state(DAG, run_id) == "success"
    task = again.task_instances(DAG, run_id)[0]
    assert len(again.log(DAG, run_id, task)) > 5
    assert changes(site("--check")) == []


def test_nothing_is_left_when_the_data_go_too(cluster: Cluster, site: SiteRun, project: pathlib.Path) -> None:
    secrets = pathlib.Path(cluster.variables[cluster.first("scheduler")]["inventory_dir"]) / "secrets"
    assert secrets.is_dir()
    site("--extra-vars", "yes=true", playbook=RESET)
    site("--extra-vars", "yes=true data=remove", playbook=RESET)
    assert list(secrets.iterdir()) == []
    assert not (secrets.parent / "certificates").exists()
    for name in cluster.members["cluster"]:
        host = cluster.host(name)
        assert not host.user("airflow").exists
        assert host.run("systemctl list-unit-files --no-legend 'airflow-*'").stdout == ""
        for path in ("/var/log/airflow", "/var/lib/airflow-baseline", "/var/lib/postgresql", "/var/lib/rabbitmq"):
            assert not host.file(path).exists
        before = (project / ".lab" / cluster.inventory_name / "before" / name).read_text().splitlines()
        changed = sorted(set(snapshot(cluster.host(name))) ^ set(before))
        assert [line for line in changed if not LEFT_BY_PACKAGES.match(line.split(" ", 1)[0])] == [], name
    # A second time there is nothing to do, and no secret is made on the way.
    assert changes(site("--extra-vars", "yes=true data=remove", playbook=RESET)) == []
    assert list(secrets.iterdir()) == []
