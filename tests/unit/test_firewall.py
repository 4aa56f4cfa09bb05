"""Who may open what: the contract by names (filter_plugins/cluster.py), and the role's rules by addresses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cluster
import firewall_rules as firewall
import pytest

MAIN = {tier: ["main"] for tier in ("postgresql", "rabbitmq", "scheduler", "webserver", "flower")}
ONE_MAIN = {**MAIN, "target_vms": ["vm2", "vm3"]}
SPREAD = {
    "postgresql": ["db"],
    "rabbitmq": ["mq"],
    "scheduler": ["sch", "sch2"],
    "webserver": ["web", "web2"],
    "flower": ["fl"],
    "target_vms": ["vm2"],
}
RABBITMQ_OWN: dict[int, list[str]] = {4369: [], 15672: [], 25672: []}


def workers(groups: dict[str, list[str]], mode: str) -> list[dict[str, Any]]:
    targets = [cluster.target({"inventory_hostname": name, "ansible_user": "rocky"}) for name in groups["target_vms"]]
    return cluster.workers(targets, mode, groups["scheduler"][0])


def ports(host: str, groups: dict[str, list[str]], mode: str, *leaving: str, **choices: Any) -> dict[int, Any]:
    found = cluster.open_ports(host, groups, workers(groups, mode), leaving, **choices)
    assert all(rule["why"] for rule in found)
    return {rule["port"]: rule["from"] for rule in found}


def test_in_celery_mode_the_workers_hosts_reach_main() -> None:
    vms = ["vm2", "vm3"]
    assert ports("main", ONE_MAIN, "celery") == {
        22: "any",
        5432: vms,
        5671: vms,
        **RABBITMQ_OWN,
        8080: "any",
        5555: "any",
        8793: [],
        8794: [],
    }
    assert ports("vm2", ONE_MAIN, "celery") == {22: "any", 8793: ["main"]}


def test_in_ssh_mode_nobody_reaches_mains_database_and_broker() -> None:
    assert ports("main", ONE_MAIN, "ssh") == {
        22: "any",
        5432: [],
        5671: [],
        **RABBITMQ_OWN,
        8080: "any",
        5555: "any",
        8793: [],
        8794: [],
    }


def test_hosts_that_are_left_keep_their_access_until_their_tasks_have_ended() -> None:
    found = ports("main", ONE_MAIN, "ssh", "vm2")
    assert (found[5432], found[5671]) == (["vm2"], ["vm2"])
    narrow = ports("main", ONE_MAIN, "ssh", "vm2", ui_from=["10.0.0.0/8"])
    assert narrow[8080] == ["10.0.0.0/8", "vm2"]


def test_tiers_on_several_hosts_open_only_what_is_theirs() -> None:
    assert ports("db", SPREAD, "celery") == {22: "any", 5432: ["sch", "sch2", "web", "web2", "vm2"]}
    assert ports("mq", SPREAD, "celery") == {
        22: "any",
        5671: ["sch", "sch2", "web", "web2", "fl", "vm2"],
        **RABBITMQ_OWN,
    }
    assert ports("sch", SPREAD, "celery") == {22: "any", 8793: ["web", "web2"], 8794: ["web", "web2"]}
    assert ports("sch2", SPREAD, "celery") == {22: "any", 8794: ["web", "web2"]}
    assert ports("fl", SPREAD, "celery") == {22: "any", 5555: "any"}
    assert ports("web", SPREAD, "celery", ui_from=[]) == {22: "any", 8080: ["sch", "vm2"]}


def test_narrow_ssh_lets_main_reach_its_targets_and_nothing_else() -> None:
    choices = {"ssh_from": ["192.168.83.1"], "ssh_ports": [22, 2222]}
    assert ports("vm2", ONE_MAIN, "celery", **choices) == {
        22: ["192.168.83.1", "main"],
        2222: ["192.168.83.1", "main"],
        8793: ["main"],
    }
    assert ports("main", ONE_MAIN, "celery", **choices)[22] == ["192.168.83.1"]


FACTS = {
    "interfaces": ["lo", "eth0", "eth1", "docker0", "br-0123456789ab", "br-lan"],
    "lo": {"ipv4": {"address": "127.0.0.1"}, "ipv6": [{"address": "::1"}]},
    "eth0": {
        "ipv4": {"address": "10.0.0.5"},
        "ipv4_secondaries": [{"address": "10.0.0.6"}],
        "ipv6": [{"address": "fe80::1"}, {"address": "fd00::5"}],
    },
    "eth1": {},
    "docker0": {"ipv4": {"address": "172.17.0.1"}},
    "br_0123456789ab": {"ipv4": {"address": "172.18.0.1"}},
    "br_lan": {"ipv4": {"address": "192.168.83.130"}},
}


@pytest.mark.parametrize(
    ("host", "addresses", "seen"),
    [
        # Its own, of both families; of a bridge of the site's, and of none that Docker made.
        (
            {"ansible_host": "10.0.0.5", "ansible_facts": FACTS},
            ["10.0.0.5", "10.0.0.6", "fd00::5", "192.168.83.130"],
            1,
        ),
        # Behind NAT: the address that it is reached at, and its own.
        (
            {"ansible_host": "203.0.113.9", "ansible_facts": FACTS},
            ["203.0.113.9", "10.0.0.5", "10.0.0.6", "fd00::5", "192.168.83.130"],
            1,
        ),
        (
            {"ansible_host": "vm2.example", "ansible_facts": FACTS},
            ["10.0.0.5", "10.0.0.6", "fd00::5", "192.168.83.130"],
            1,
        ),
        ({"ansible_host": "10.0.0.5"}, ["10.0.0.5"], 0),
        ({"ansible_host": "vm2.example"}, [], 0),
    ],
)
def test_where_traffic_comes_from(host: dict[str, Any], addresses: list[str], seen: int) -> None:
    found = cluster.seen_at({"inventory_hostname": "vm2", **host})
    assert found == {"name": "vm2", "addresses": addresses, "seen": bool(seen)}


VM2 = {"name": "vm2", "addresses": ["10.0.0.2", "fd00::2"], "seen": True}
LEFT_OUT = {"name": "vm3", "addresses": ["10.0.0.3"], "seen": False}
BEFORE = {"vm2": ["10.0.0.99"], "vm3": ["fd00::3"]}


def test_a_run_without_a_host_keeps_what_was_known_of_it() -> None:
    rules = [{"port": 5432, "from": ["vm2", "vm3"], "why": "PostgreSQL"}]
    assert firewall.resolved(rules, [VM2, LEFT_OUT], BEFORE) == [
        {
            "port": "5432",
            "protocol": "tcp",
            "from": ["10.0.0.2", "fd00::2", "10.0.0.3", "fd00::3"],
            "why": ["PostgreSQL"],
        }
    ]
    assert firewall.named(rules[:1], [VM2, LEFT_OUT], BEFORE)["vm3"] == ["10.0.0.3", "fd00::3"]
    assert firewall.named([{"port": 22, "from": "any"}], [VM2], BEFORE) == {}


def test_rules_for_one_port_are_one_rule() -> None:
    rules = [
        {"port": 8080, "from": ["vm2"], "why": "workers"},
        {"port": 8080, "from": ["192.168.0.0/16"]},
        {"port": 53, "from": ["10.0.0.7"], "protocol": "udp"},
        {"port": 53, "from": "any"},
    ]
    assert [(rule["port"], rule["protocol"], rule["from"]) for rule in firewall.resolved(rules, [VM2], {})] == [
        ("53", "tcp", "any"),
        ("53", "udp", ["10.0.0.7"]),
        ("8080", "tcp", ["10.0.0.2", "fd00::2", "192.168.0.0/16"]),
    ]
    opened = [{"port": 8080, "from": "any"}, {"port": 8080, "from": ["vm2"]}]
    for order in (opened, opened[::-1]):
        assert firewall.resolved(order, [VM2], {})[0]["from"] == "any"


BARE = "state inactive \nnow  aa\n"
LISTENERS = """\
listens udp UNCONN 0 0 0.0.0.0:68 0.0.0.0:* users:(("dhclient",pid=9,fd=3))
listens tcp LISTEN 0 128 0.0.0.0:22 0.0.0.0:* users:(("sshd",pid=38,fd=3))
listens tcp LISTEN 0 128 [::]:22 [::]:* users:(("sshd",pid=38,fd=4))
listens tcp LISTEN 0 128 127.0.0.53%lo:53 0.0.0.0:* users:(("systemd-resolve",pid=2,fd=4))
listens tcp LISTEN 0 128 *:10050 *:* users:(("zabbix_agentd",pid=5,fd=4))
listens udp UNCONN 0 0 0.0.0.0:161 0.0.0.0:* users:(("snmpd",pid=6,fd=3))
listens udp UNCONN 0 0 0.0.0.0:41234 0.0.0.0:* users:(("ntpd",pid=7,fd=3))
"""
OURS = "package installed\nrecord complete\nrecord begun\nfile host vm3: 10.0.0.3 fd00::3\nfile </description>\n"


def wrong(rules: Sequence[dict[str, Any]], text: str = BARE, login: str = "") -> str:
    return " ".join(firewall.problems("vm2", rules, [VM2, LEFT_OUT], firewall.answer(text), login))


SSH: dict[str, Any] = {"port": 22, "from": "any"}


def test_an_answer_is_read() -> None:
    bare = firewall.answer(BARE + LISTENERS)
    assert not any(bare[key] for key in ("installed", "running", "recorded", "begun", "current"))
    assert [(s["protocol"], s["port"], s["program"]) for s in bare["listens"]][-3:] == [
        ("tcp", 10050, "zabbix_agentd"),
        ("udp", 161, "snmpd"),
        ("udp", 41234, "ntpd"),
    ]
    ours = firewall.answer(OURS + "state active enabled\nnow aa  bb \nloaded aa bb\n")
    assert ours["current"] and ours["recorded"] and ours["running"]
    assert ours["addresses"] == {"vm3": ["10.0.0.3", "fd00::3"]}


@pytest.mark.parametrize(
    "stale",
    [
        "state active enabled\nnow aa bb\n",  # killed before it was noted
        "state active enabled\nnow aa bb\nloaded aa cc\n",  # changed by hand
        "state active enabled\nnow aa bb\nloaded cc bb\n",  # killed between the file and the load
        "state inactive enabled\nnow aa bb\nloaded aa bb\n",
        "state active disabled\nnow aa bb\nloaded aa bb\n",
    ],
)
def test_what_is_not_as_it_was_loaded_is_loaded_again(stale: str) -> None:
    assert not firewall.answer(stale)["current"]


def test_what_listens_is_not_closed_by_surprise() -> None:
    said = wrong([SSH], BARE + LISTENERS)
    assert "would close 161/udp (snmpd), 10050/tcp (zabbix_agentd)." in said
    assert "{port: 161, protocol: udp, from: any}" in said
    allowed = [SSH, {"port": "10000-10100", "from": []}, {"port": 161, "protocol": "udp", "from": ["10.0.0.0/8"]}]
    assert wrong(allowed, BARE + LISTENERS) == ""
    # A firewall that stands, ours or the site's, has decided about them before.
    assert wrong([SSH], "package installed\nstate active enabled\n" + LISTENERS) == ""
    assert wrong([SSH], OURS + "state inactive enabled\n" + LISTENERS) == ""


def test_another_firewall_is_not_taken_over() -> None:
    said = wrong([SSH], BARE + "other ufw\nother nftables\n")
    assert "ufw and nftables filters packets there already" in said
    assert "firewall_enabled: false" in said
    assert wrong([SSH], "state active enabled\nother iptables\n") == ""


@pytest.mark.parametrize("login", ["192.168.83.1 50000 192.168.83.130 22", "::ffff:192.168.83.1 5 ::ffff:10.0.0.1 22"])
def test_the_control_node_is_never_shut_out(login: str) -> None:
    for sources in (["192.168.84.0/24"], [], ["fd00::/8", "vm3"]):
        said = wrong([{"port": 22, "from": sources}], login=login)
        assert "firewall_ssh_from would shut out this very control node, which the host sees as 192.168.83.1" in said
    for admitted in ("any", ["192.168.83.0/24"], ["fd00::/8", "192.168.83.1"]):
        assert wrong([{"port": 22, "from": admitted}], login=login) == ""


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"port": 0, "from": "any"}, "port is no port"),
        ({"port": 65536, "from": "any"}, "port is no port"),
        ({"port": "90-80", "from": "any"}, "port is no port"),
        ({"from": "any"}, "port is no port"),
        ({"port": 80, "protocol": "icmp", "from": "any"}, "protocol is neither tcp nor udp"),
        ({"port": 80}, "write 'from: any'"),
        ({"port": 80, "from": "10.0.0.1"}, "write 'from: any'"),
        ({"port": 80, "from": ["10.0.0"]}, "'10.0.0' is neither an address"),
        ({"port": 80, "from": ["vm9"]}, "'vm9' is neither an address"),
    ],
)
def test_a_rule_that_cannot_work_is_refused(rule: dict[str, Any], said: str) -> None:
    assert said in wrong([SSH, rule])


def test_a_host_whose_address_nobody_knows_is_named() -> None:
    unknown = {"name": "vm4", "addresses": [], "seen": False}
    rules = [{"port": 5432, "from": ["vm4"]}]
    (said,) = firewall.problems("main", rules, [unknown], firewall.answer(BARE), "")
    assert said.startswith("main: the address of vm4 is not known, which port 5432 is for")
    assert "without --limit" in said
    assert firewall.problems("main", rules, [unknown], firewall.answer(BARE + "file host vm4: 10.0.0.4\n"), "") == []
