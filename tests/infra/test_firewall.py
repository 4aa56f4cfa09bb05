"""The firewall: what the inventory promises is what the kernel does, and a run puts right what is not."""

from __future__ import annotations

import json
import pathlib
import re
import shlex
import socket
import subprocess

import cluster as topology
import pytest
from conftest import Cluster, SiteRun, changes
from testinfra.host import Host

POLICY = pathlib.PurePath("/etc/firewalld/policies/airflow.xml")
#: A port that nothing of ours uses, for rules that a stray hand adds.
STRAY = 9999


def firewalled(cluster: Cluster) -> list[str]:
    return topology.unique([*cluster.members["airflow"], *cluster.groups["postgresql"], *cluster.groups["rabbitmq"]])


def expected(cluster: Cluster, name: str) -> set[str]:
    """The contract of a host: `port/any`, `port/address` for each that may, and `port/-` for all others."""
    rules = topology.open_ports(name, cluster.groups, cluster.workers)
    lines = set()
    for rule in rules:
        if rule["from"] == "any":
            lines.add(f"{rule['port']}/any")
            continue
        lines.add(f"{rule['port']}/-")
        lines |= {f"{rule['port']}/{cluster.address(source)}" for source in rule["from"]}
    return lines


def live(host: Host) -> set[str]:
    """The same, as the kernel has it. IPv6 is left to the tests without a host: the lab has none but link-local."""
    asked = host.run("nft --json list table inet firewalld")
    if "No such file or directory" in asked.stderr:
        return set()
    listed = json.loads(asked.stdout)["nftables"]
    found = set()
    for entry in listed:
        rule = entry.get("rule", {})
        if not re.fullmatch(r"filter_IN_policy_airflow_(pre|log|deny|allow|post)", rule.get("chain", "")):
            continue
        matches = {
            next(iter(match["left"]["payload"].values())) + match["left"]["payload"]["field"]: match["right"]
            for match in (part["match"] for part in rule["expr"] if "match" in part)
        }
        port = next(value for key, value in matches.items() if key.endswith("dport"))
        source = next((value for key, value in matches.items() if key.endswith("saddr")), None)
        refused = any("reject" in part for part in rule["expr"])
        found.add(f"{port}/{'-' if refused else source or 'any'}")
    return found


def is_open(address: str, port: int) -> bool:
    """Whether this control node, which is no host of the cluster, gets a connection."""
    try:
        with socket.create_connection((address, port), timeout=5):
            return True
    except OSError:
        return False


@pytest.fixture
def vm(cluster: Cluster) -> Host:
    """The host of the last worker."""
    return cluster.host(cluster.workers[-1]["host"])


def test_what_the_inventory_promises_is_what_the_kernel_does(cluster: Cluster) -> None:
    wrong = {}
    for name in firewalled(cluster):
        wanted, has = expected(cluster, name), live(cluster.host(name))
        if wanted != has:
            wrong[name] = {"missing": sorted(wanted - has), "too much": sorted(has - wanted)}
    assert wrong == {}


def test_it_runs_and_starts_at_boot_on_our_hosts_alone(cluster: Cluster) -> None:
    for name in firewalled(cluster):
        assert cluster.host(name).service("firewalld").is_running
        assert cluster.host(name).service("firewalld").is_enabled
    for name in set(cluster.members["cluster"]) - set(firewalled(cluster)):
        assert not cluster.host(name).file(str(POLICY)).exists
        assert not cluster.host(name).exists("firewall-cmd")


def test_a_stranger_reaches_what_is_open_to_all_and_nothing_else(cluster: Cluster) -> None:
    for name in firewalled(cluster):
        listening = {
            int(line.split()[3].rpartition(":")[2])
            for line in cluster.host(name).check_output("ss --no-header --listening --numeric --tcp").splitlines()
        }
        to_all = {int(line.partition("/")[0]) for line in expected(cluster, name) if line.endswith("/any")}
        reached = {port for port in listening if is_open(cluster.address(name), port)}
        assert reached == listening & to_all, name


def test_the_brokers_own_ports_are_bound_to_the_loopback_address(cluster: Cluster) -> None:
    """Behind the firewall, and without it."""
    host = cluster.host(cluster.first("rabbitmq"))
    bound = [line.split()[3] for line in host.check_output("ss --no-header --listening --numeric --tcp").splitlines()]
    for port in (4369, 15672, 25672):
        assert [address for address in bound if address.endswith(f":{port}")] == [f"127.0.0.1:{port}"]
    assert host.run("rabbitmqctl --quiet status").rc == 0


#: One for each host that has a firewall, in turn; what tells them apart is tested without a host.
FAULTS = (
    f"firewall-cmd --policy=airflow --add-port={STRAY}/tcp",
    "systemctl stop firewalld && systemctl disable firewalld",
    f"nft delete table inet firewalld && echo >> {POLICY}",
)


def test_a_run_puts_right_what_a_hand_has_done(cluster: Cluster, site: SiteRun) -> None:
    if cluster.mode != "celery":
        pytest.skip("in celery mode, where more hosts have a firewall")
    names = firewalled(cluster)
    try:
        for name, fault in zip(names, FAULTS, strict=False):
            done = cluster.host(name).run(fault)
            assert done.rc == 0, done.stderr
            assert live(cluster.host(name)) != expected(cluster, name)
    finally:
        run = site()
    assert sorted(line.split()[0] for line in changes(run)) == sorted(names[: len(FAULTS)])
    for name in names:
        assert live(cluster.host(name)) == expected(cluster, name)
        assert cluster.host(name).service("firewalld").is_running
        assert cluster.host(name).service("firewalld").is_enabled


def test_a_connection_outlives_a_restart(cluster: Cluster, vm: Host) -> None:
    """A session of a worker's host with the broker, while the broker's firewall is stopped and started."""
    broker = cluster.host(cluster.first("rabbitmq"))
    count = "ss --no-header --numeric --tcp state established '( sport = :5671 )' | awk '{print $3, $4}' | sort"
    before = set(broker.check_output(count).splitlines())
    assert before
    assert broker.run("systemctl restart firewalld").rc == 0
    broker.run(
        "for try in $(seq 60); do nft list chain inet firewalld filter_IN_policy_airflow && break; sleep 1; done"
    )
    assert before - set(broker.check_output(count).splitlines()) == set()


def test_nobody_is_shut_out(cluster: Cluster, site: SiteRun) -> None:
    refused = site("--extra-vars", '{"firewall_ssh_from": ["192.0.2.0/24"]}', check=False)
    assert refused.returncode != 0
    assert "firewall_ssh_from would shut out this very control node" in " ".join(refused.stdout.split())
    assert changes(refused) == []


@pytest.mark.slow("two runs")
def test_ssh_from_some_alone(cluster: Cluster, vm: Host, site: SiteRun) -> None:
    """From here, and from main, which sends commands; the vm's own neighbours are refused."""
    name, main = cluster.workers[-1]["host"], cluster.first("scheduler")
    if name == main:
        pytest.skip("main has no neighbour with a firewall")
    here = vm.run("echo $SSH_CONNECTION").stdout.split()
    login = here[0] if here else ""
    if not login:  # sudo takes it away
        route = ["ip", "-json", "route", "get", cluster.address(name)]
        login = json.loads(subprocess.run(route, capture_output=True, text=True, check=True).stdout)[0]["prefsrc"]
    narrow = ["--limit", f"{name},{main}", "--extra-vars", json.dumps({"firewall_ssh_from": [login]})]
    try:
        site(*narrow)
        assert {line for line in live(vm) if line.startswith("22/")} == {
            "22/-",
            f"22/{login}",
            f"22/{cluster.address(main)}",
        }
        greeting = f"timeout 5 bash -c {shlex.quote(f'head -c 3 < /dev/tcp/{cluster.address(name)}/22')}"
        assert cluster.host(main).run(greeting).stdout == "SSH"
        assert is_open(cluster.address(name), 22)
        others = [target["name"] for target in cluster.targets if target["name"] != name]
        assert [cluster.host(other).run(greeting).stdout for other in others] == [""] * len(others)
    finally:
        site("--limit", f"{name},{main}")
