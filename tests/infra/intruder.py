"""Who tries what from where: a stranger on the network, and somebody on a host of the cluster.

The stranger is a container of its own on the lab's network. What is tried stands in attempts.py, which goes to
Python's standard input at the place, so that no secret stands on a command line.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import hmac
import ipaddress
import json
import pathlib
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attempts
import lab
import port_scan
import pytest
import security_tables
from _pytest.mark import ParameterSet
from conftest import Cluster
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

#: Runs a Python script somewhere, and returns what it prints.
Python = Callable[[str], str]

ATTEMPTS = pathlib.Path(attempts.__file__).read_text()
RUN = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor() as pool:
    print(json.dumps(list(pool.map(lambda call: attempt(**call), CALLS))))
"""
#: By itself, if the tests are killed.
LIFE = 1800


def tried(python: Python, calls: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Try things at a place.

    Args:
        python: The place.
        calls: Any names to what attempts.py shall do: its function's name as `do`, and arguments.

    Returns:
        The names, and what came of each.
    """
    said = python(f"{ATTEMPTS}\nCALLS = {[dict(call) for call in calls.values()]!r}\n{RUN}")
    return dict(zip(calls, json.loads(said.splitlines()[-1]), strict=True))


def rows(attempts: Sequence[security_tables.Attempt]) -> list[ParameterSet]:
    """The attempts that are tried by attempts.py, as a test's parameters that are rows of the README."""
    return [pytest.param(row, marks=pytest.mark.shows(row.key), id=row.key) for row in attempts if row.said]


def hold(attempt: security_tables.Attempt, answers: Mapping[str, str]) -> None:
    """Hold an answer to what the table says of it.

    Args:
        attempt: What was tried.
        answers: What `tried` returned.
    """
    answer = answers[attempt.key]
    print(f"{attempt.what}: {answer}")
    if not re.fullmatch(attempt.said, answer):
        pytest.fail(f"{attempt.what}: {answer}\nand the README says: {attempt.gets}", pytrace=False)


def port_rows(cluster: Cluster) -> list[dict[str, Any]]:
    """What a stranger finds at the ports of the hosts that have our firewall."""
    return security_tables.port_rows(cluster.groups, cluster.variables, cluster.mode)


def somebody_on(cluster: Cluster, name: str, user: str) -> Python:
    """A login of a host, with Airflow's environment for want of another that has the clients."""
    command = f"cd / && runuser -u {user} -- /opt/airflow/current/bin/python -"
    return lambda script: cluster.feed(name, command, script)


class Stranger:
    """A machine on the cluster's network that is none of its hosts.

    Attributes:
        name: The container's name.
        address: Its address.
    """

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address

    def python(self, script: str) -> str:
        command = ["docker", "exec", "--interactive", self.name, "python3", "-"]
        run = subprocess.run(command, input=script, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        return run.stdout

    def scan(self, addresses: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Ask all TCP ports; the answer is that of tools/port_scan.py."""
        script = pathlib.Path(port_scan.__file__).read_text()
        start = script.index('if __name__ == "__main__":')
        said = self.python(f"{script[:start]}main({list(addresses)!r})\n")
        return dict(json.loads(said))


def _docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True).stdout


def why_no_lab(cluster: Cluster) -> str:
    """Say why the hosts under test are not the lab's; nothing, when they are."""
    if not shutil.which("docker"):
        return "there is no Docker here"
    for host in cluster.members["cluster"]:
        container = lab.container_name(host, cluster.inventory_name)
        try:
            shown = json.loads(_docker("inspect", container))[0]
        except subprocess.CalledProcessError:
            return f"there is no container {container}"
        addresses = [network["IPAddress"] for network in shown["NetworkSettings"]["Networks"].values()]
        if cluster.address(host) not in addresses:
            return f"{container} has {', '.join(addresses)}, and the inventory says {cluster.address(host)}"
    return ""


@contextlib.contextmanager
def stranger_on(cluster: Cluster) -> Iterator[Stranger]:
    """Start the stranger, or skip where that cannot be."""
    if reason := why_no_lab(cluster):
        pytest.skip(f"the stranger is a container on the lab's network, and these hosts are not the lab's: {reason}")
    network = f"{lab.BRIDGE}-{cluster.inventory_name}"
    image = json.loads(_docker("inspect", lab.container_name(cluster.first("scheduler"), cluster.inventory_name)))
    taken = {cluster.address(host) for host in cluster.members["cluster"]}
    subnet = ipaddress.ip_network(json.loads(_docker("network", "inspect", network))[0]["IPAM"]["Config"][0]["Subnet"])
    # From the end: Docker hands out the first ones.
    address = next(str(free) for free in reversed(list(subnet.hosts())) if str(free) not in taken)
    stranger = Stranger(f"{network}-stranger", address)
    with contextlib.suppress(subprocess.CalledProcessError):
        _docker("rm", "--force", stranger.name)
    place = ["--name", stranger.name, "--network", network, "--ip", address, "--label", f"{lab.BRIDGE}.stranger=yes"]
    _docker("run", "--detach", "--rm", *place, image[0]["Config"]["Image"], "sleep", str(LIFE))
    try:
        yield stranger
    finally:
        _docker("rm", "--force", stranger.name)


def signed_as(token: str, key: str, audience: str) -> str:
    """Sign a token for the first user, or for some task, as the API server signed another.

    Args:
        token: One of its tokens, which says by its head how.
        key: Its key.
        audience: What the new token is for.
    """
    head = token.partition(".")[0]
    _head, _dot, rest = attempts.token(key, audience).partition(".")
    content = f"{head}.{rest.partition('.')[0]}"
    if json.loads(base64.urlsafe_b64decode(f"{head}=="))["alg"].startswith("HS"):
        signature = hmac.digest(key.encode(), content.encode(), "sha512")
    else:
        private = serialization.load_pem_private_key(key.encode(), password=None)
        assert isinstance(private, ed25519.Ed25519PrivateKey)
        signature = private.sign(content.encode())
    return f"{content}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


def foreign_certificates(address: str) -> dict[str, str]:
    """Make a CA that nobody knows, and a certificate by it.

    Args:
        address: The address that the certificate is for.

    Returns:
        `ca`, `cert` and `key`, each as PEM.
    """
    now = datetime.datetime.now(tz=datetime.UTC)

    def signed(name: str, key: ec.EllipticCurvePrivateKey, by: str, by_key: ec.EllipticCurvePrivateKey) -> str:
        builder = x509.CertificateBuilder(
            issuer_name=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, by)]),
            subject_name=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]),
            public_key=key.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=now - datetime.timedelta(hours=1),
            not_valid_after=now + datetime.timedelta(days=1),
        )
        builder = builder.add_extension(x509.BasicConstraints(ca=name == by, path_length=None), critical=True)
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        builder = builder.add_extension(names, critical=False)
        return builder.sign(by_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()

    authority, own = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    key = own.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    return {
        "ca": signed("A CA that nobody knows", authority, "A CA that nobody knows", authority),
        "cert": signed("airflow", own, "A CA that nobody knows", authority),
        "key": key,
    }
