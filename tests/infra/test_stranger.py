"""A stranger on the cluster's network: which ports answer, and what comes of trying the services behind them.

The stranger is a container of its own on the lab's network, so these tests know no other cluster. The firewall
keeps most services from it; that those refuse too is tried from a host that the firewall lets in, by a login that
may not read Airflow's files. What is held to be seen stands in tools/security_tables.py, and so in the README.
"""

from __future__ import annotations

import json
import pathlib
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any

import cluster as topology
import pytest
import security_tables
from conftest import Cluster
from intruder import Stranger, foreign_certificates, hold, port_rows, rows, signed_as, somebody_on, stranger_on, tried

#: With a good margin: eight seconds a host that is silent.
SECONDS_OF_A_SCAN = 60
#: A resolver's, say, that gets no answer at first.
SECONDS_OF_A_QUESTION = 12
NOT_THE_PASSWORD = "not-the-password"
#: What the API server looks for in a token.
API_AUDIENCE = "apache-airflow"
EXECUTION_AUDIENCE = "urn:airflow.apache.org:task"


@pytest.fixture(scope="module")
def stranger(cluster: Cluster) -> Iterator[Stranger]:
    with stranger_on(cluster) as stranger:
        yield stranger


@pytest.fixture(scope="module")
def addresses(cluster: Cluster) -> dict[str, str]:
    """All addresses at which the hosts can be reached, with the host's name."""
    found = {cluster.address(name): name for name in cluster.members["cluster"]}
    for name in cluster.members["cluster"]:
        shown = cluster.host(name).check_output("ip -oneline -6 address show")
        for line in shown.splitlines():
            _number, interface, _family, address, *_rest = line.split()
            address = address.partition("/")[0]
            if interface != "lo":
                # The stranger's own interface, which Docker names.
                found[f"{address}%eth0" if address.startswith("fe80:") else address] = name
    return found


@pytest.fixture(scope="module")
def scanned(stranger: Stranger, addresses: dict[str, str]) -> dict[str, dict[str, Any]]:
    found = stranger.scan(list(addresses))
    for address, said in found.items():
        print(f"{addresses[address]} {address}: all 65535 TCP ports in {said['seconds']} s,", end=" ")
        print(f"open {said['open']}, refused by RST {said['closed']}")
    print(f"IPv6: {sum(':' in address for address in addresses)} addresses. UDP: not scanned.")
    return found


def test_the_scan_is_no_burden(scanned: dict[str, dict[str, Any]]) -> None:
    assert sum(said["seconds"] for said in scanned.values()) < SECONDS_OF_A_SCAN


@pytest.mark.shows("ports")
def test_a_stranger_reaches_what_the_contract_opens_and_nothing_else(
    cluster: Cluster, scanned: dict[str, dict[str, Any]], addresses: dict[str, str]
) -> None:
    if not cluster.variables[cluster.first("scheduler")].get("firewall_enabled", True):
        pytest.skip("firewall_enabled is false: which ports answer is the site's affair")
    contract = port_rows(cluster)
    wanted: dict[str, dict[int, str]] = {
        name: {row["port"]: row["why"] for row in contract if row["host"] == name and row["open"]}
        for name in cluster.members["cluster"]
    }
    for name in cluster.members["naked"]:
        wanted[name] = {topology.target(cluster.variables[name])["port"]: "SSH, on a VM that is the site's own"}
    closed = {(row["host"], row["port"]): f"{row['why']}; open to {row['who']}" for row in contract if not row["open"]}
    differences = []
    for address, said in scanned.items():
        name = addresses[address]
        differences += [
            f"{name} {address}, port {port}: answers, and should not ({closed.get((name, port), 'nothing of ours')})"
            for port in said["open"]
            if port not in wanted[name]
        ]
        differences += [
            f"{name} {address}, port {port}: no answer, and there should be one ({why})"
            for port, why in wanted[name].items()
            if port not in said["open"]
        ]
    assert not differences, "\n".join(["", *differences])


def udp_sockets(cluster: Cluster, name: str) -> set[str]:
    """UDP sockets of a host that are open to others; with the processes that have them in the test's output."""
    said = cluster.host(name).check_output("ss --no-header --listening --udp --numeric --processes").splitlines()
    print(name, *said, sep="\n")
    return {name + " " + line.split()[3] for line in said if not line.split()[3].startswith(("127.", "[::1]"))}


def test_no_service_listens_on_udp(cluster: Cluster, stranger: Stranger) -> None:
    """UDP is not scanned: silence says nothing there. So the hosts are asked themselves.

    A service's socket stays. That of a client who asks somebody something looks the same, for as long as that takes.
    """
    found = {socket for name in cluster.members["cluster"] for socket in udp_sockets(cluster, name)}
    deadline = time.monotonic() + SECONDS_OF_A_QUESTION
    while found and time.monotonic() < deadline:
        time.sleep(1)
        found &= {socket for name in cluster.members["cluster"] for socket in udp_sockets(cluster, name)}
    assert found == set()


@pytest.fixture(scope="module")
def authority(cluster: Cluster) -> str:
    """The CA's certificate, which is no secret: without it a stranger's client would refuse to talk."""
    return pathlib.Path(cluster.ca).read_text()


def test_the_ways_that_are_tried_are_ways_in(cluster: Cluster, stranger: Stranger, authority: str) -> None:
    """With what is right in place of what is wrong: else a service that is down would pass for one that refuses."""
    ui = {"host": cluster.address(cluster.first("webserver")), "port": 8080, "tls": {"ca": authority}}
    login = {"username": "admin", "password": cluster.secret("admin_password")}
    asked = {"do": "http", **ui, "path": "/auth/token", "method": "POST", "body": login, "content": True}
    token = json.loads(tried(stranger.python, {"login": asked})["login"])["access_token"]
    key = cluster.secret("jwt_private_key")

    def signed(audience: str, path: str) -> dict[str, Any]:
        return {
            "do": "http",
            **ui,
            "path": path,
            "headers": {"Authorization": f"Bearer {signed_as(token, key, audience)}"},
        }

    assert tried(
        stranger.python,
        {
            "rest": signed(API_AUDIENCE, "/api/v2/dags"),
            "execution": signed(EXECUTION_AUDIENCE, "/execution/variables/any"),
        },
    ) == {"rest": "200", "execution": "404"}
    name = inside(cluster)
    own = {
        "tls": {
            "ca": "/etc/airflow/tls/ca.pem",
            "cert": "/etc/airflow/tls/host.pem",
            "key": "/etc/airflow/tls/host.key",
        }
    }
    assert tried(
        somebody_on(cluster, name, "airflow"),
        {
            "postgresql": {"do": "postgresql", **results_login(cluster, name), **own},
            "broker": {"do": "amqp", "host": cluster.address(cluster.first("rabbitmq")), "port": 5671, **own},
        },
    ) == {"postgresql": "asked for a password", "broker": "asked for a login"}


def inside(cluster: Cluster) -> str:
    """A host that the firewall lets in: a worker VM, or in ssh mode, where none has the way, main."""
    workers = [name for name in cluster.members["airflow"] if name not in cluster.members["core"]]
    return (workers or [cluster.first("scheduler")])[0]


def results_login(cluster: Cluster, name: str) -> dict[str, Any]:
    """The database that a host has a login to, without the password."""
    url = urllib.parse.urlsplit(cluster.host(name).file("/etc/airflow/secrets/result_backend").content_string)
    return {"host": url.hostname, "port": url.port, "user": url.username, "database": url.path[1:]}


@pytest.fixture(scope="module")
def from_outside(cluster: Cluster, stranger: Stranger, authority: str) -> dict[str, str]:
    ui: dict[str, Any] = {"do": "http", "host": cluster.address(cluster.first("webserver")), "port": 8080}
    flower: dict[str, Any] = {"do": "http", "host": cluster.address(cluster.first("flower")), "port": 5555}
    tls = {"tls": {"ca": authority}}
    other = {"tls": {"ca": foreign_certificates(ui["host"])["ca"]}}

    def forged(audience: str) -> dict[str, Any]:
        return {"do": "with_token", "key": "a-key-that-is-not-the-one" * 3, "audience": audience}

    wrong = {"username": "admin", "password": NOT_THE_PASSWORD}
    return tried(
        stranger.python,
        {
            "ui-plain": {**ui, "path": "/api/v2/monitor/health"},
            "flower-plain": flower,
            "ui-other-ca": {**ui, **other},
            "flower-other-ca": {**flower, **other},
            "rest-no-login": {**ui, **tls, "path": "/api/v2/dags"},
            "rest-forged": {**ui, **tls, **forged(API_AUDIENCE), "path": "/api/v2/dags"},
            "rest-wrong-password": {**ui, **tls, "path": "/auth/token", "method": "POST", "body": wrong},
            "execution-no-token": {**ui, **tls, "path": "/execution/variables/any"},
            "execution-forged": {**ui, **tls, **forged(EXECUTION_AUDIENCE), "path": "/execution/variables/any"},
            "flower-no-login": {**flower, **tls},
            "flower-api-no-login": {**flower, **tls, "path": "/api/workers"},
            "flower-wrong-password": {**flower, **tls, "path": "/api/workers", "login": ("admin", NOT_THE_PASSWORD)},
            "flower-healthcheck": {**flower, **tls, "path": "/healthcheck"},
            "flower-metrics": {**flower, **tls, "path": "/metrics"},
        },
    )


@pytest.mark.parametrize("attempt", rows(security_tables.OUTSIDE))
def test_from_another_machine(attempt: security_tables.Attempt, from_outside: dict[str, str]) -> None:
    hold(attempt, from_outside)


@pytest.fixture(scope="module")
def from_inside(cluster: Cluster, authority: str, stranger: Stranger) -> dict[str, str]:
    name = inside(cluster)
    broker = cluster.address(cluster.first("rabbitmq"))
    foreign = foreign_certificates(broker)
    results = {"do": "postgresql", **results_login(cluster, name)}
    greeting = {"do": "amqp", "host": broker, "port": 5671}
    plain = {"do": "plain", "host": broker, "text": "AMQP\0\0\x09\x01"}
    other_ca, bare = {"tls": {"ca": foreign["ca"]}}, {"tls": {"ca": authority}}
    foreign_cert = {"tls": {**foreign, "ca": authority}}
    return tried(
        somebody_on(cluster, name, "nobody"),
        {
            "postgresql-plain": results,
            "postgresql-other-ca": {**results, **other_ca},
            "postgresql-no-certificate": {**results, **bare},
            "postgresql-foreign-certificate": {**results, **foreign_cert},
            "broker-plain": {**plain, "port": 5671},
            "broker-5672": {**plain, "port": 5672},
            "broker-other-ca": {**greeting, **other_ca},
            "broker-no-certificate": {**greeting, **bare},
            "broker-foreign-certificate": {**greeting, **foreign_cert},
            "secrets-of-airflow": {
                "do": "read",
                "paths": ["/etc/airflow/secrets/broker_url", "/etc/airflow/tls/host.key"],
            },
        },
    )


@pytest.mark.parametrize("attempt", rows(security_tables.INSIDE))
def test_from_a_host_of_the_cluster(attempt: security_tables.Attempt, from_inside: dict[str, str]) -> None:
    hold(attempt, from_inside)
