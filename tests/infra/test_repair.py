"""What a killed run or a stray hand leaves behind is put right by the next run."""

from __future__ import annotations

import json
import re

import cluster as topology
import pytest
from conftest import Cluster, SiteRun, changes, killed
from testinfra.host import Host


@pytest.fixture(scope="module", autouse=True)
def in_celery_mode(cluster: Cluster) -> None:
    if cluster.mode != "celery":
        pytest.skip("minutes for what the same tasks do in celery mode, on more hosts")


def test_one_run_puts_right_what_killed_runs_and_stray_hands_left(cluster: Cluster, main: Host, site: SiteRun) -> None:
    """Killed with a changed configuration, so that every daemon is to be restarted on the way."""
    target = cluster.workers[0]
    vm = cluster.host(target["host"])
    environment = vm.run("readlink -f /opt/airflow/current").stdout.strip()
    database = cluster.host(cluster.first("postgresql"))
    broker = cluster.host(cluster.first("rabbitmq"))
    psql = "runuser -u postgres -- psql -XAtq airflow_results_db"
    on_vms = [worker for worker in cluster.workers if worker["host"] not in cluster.members["core"]]
    changed = ["--extra-vars", '{"airflow_config": {"core": {"parallelism": 33}}}']
    try:
        for task in ("Write the configuration", "Start the units"):
            killed(cluster, task, *changed)
        # As if killed while it installed: an environment without its signature, with a part missing.
        vm.run(f"rm -r {environment}/.complete {environment}/lib/python3*/site-packages/kombu")
        # As if killed between a file and the restart: a unit that runs with something else.
        vm.run(f"echo something-else > /run/{target['unit']}/started-with")
        main.run("echo broken > /etc/airflow/secrets/jwt_private_key")
        broker.run("rm /etc/rabbitmq/.started-with")
        broker.run("rabbitmqctl --quiet clear_permissions -p airflow_host airflow_user")
        for sql in (
            "ALTER ROLE airflow_results_worker PASSWORD 'other-than-it-was'",
            "GRANT DELETE ON celery_taskmeta TO airflow_results_worker",
        ):
            assert database.run(f'{psql} -c "{sql}"').rc == 0
        for worker in on_vms:
            broker.run(f"rabbitmqctl --quiet set_permissions -p airflow_host {worker['name']} '.*' '.*' '.*'")
        site(*changed)
        assert changes(site(*changed, "--check")) == []
        unit_file = vm.file(f"/etc/systemd/system/{target['unit']}.service").content_string
        running = vm.file(f"/run/{target['unit']}/started-with").content_string.strip()
        assert f"echo {running} >" in unit_file
        for worker in on_vms:
            listed = broker.check_output(f"rabbitmqctl -q --formatter json list_user_permissions {worker['name']}")
            assert json.loads(listed) == [{"vhost": "airflow_host", **topology.worker_permissions(worker)}]
        rights = "SELECT has_table_privilege('airflow_results_worker', 'celery_taskmeta', 'DELETE')"
        assert database.check_output(f'{psql} -c "{rights}"') == "f"
    finally:
        site()


def test_clocks_that_are_apart_are_refused(cluster: Cluster, site: SiteRun) -> None:
    """Containers share one clock: a `date` that is an hour ahead stands in for a clock that is.

    What is said is the least that it can be: the time that the hosts took to answer is left out.
    """
    name = cluster.targets[-1]["name"]
    vm = cluster.host(name)
    program = "/usr/local/bin/date"
    try:
        vm.run(f'printf \'#!/bin/sh\nexec /usr/bin/date -d "+3600 seconds" "$@"\n\' > {program}; chmod 0755 {program}')
        refused = site(check=False)
    finally:
        vm.run(f"rm {program}")
    assert refused.returncode != 0
    said = re.search(rf"clocks: {name} is (\d+) s ahead of", " ".join(refused.stdout.split()))
    assert said and 3480 <= int(said[1]) <= 3600
    assert changes(refused) == []


def test_a_run_that_would_split_versions_is_refused(cluster: Cluster, site: SiteRun) -> None:
    """Main alone with another environment, while a worker VM stays out of the run."""
    others = [name for name in cluster.members["airflow"] if name != cluster.first("scheduler")]
    if not others:
        return
    vm = cluster.host(others[-1])
    present = vm.file("/opt/airflow/current").linked_to
    try:
        vm.run("ln -sfn env-3.0.0-older /opt/airflow/current")
        refused = site("--limit", cluster.first("scheduler"), check=False)
    finally:
        vm.run(f"ln -sfn {present.rpartition('/')[2]} /opt/airflow/current")
    assert refused.returncode != 0
    assert f"{others[-1]} has the environment 3.0.0-older" in refused.stdout
    assert "changed=0" in refused.stdout.split("PLAY RECAP")[1]
