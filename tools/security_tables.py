"""The tables of the README's security section: who can open which port, and what intruders try and get.

The rows stand here. tests/infra/test_stranger.py, test_vm_attempts.py and test_least_privilege.py hold a cluster to
them, and with ``--security-tables`` write them into the README, once they have seen all.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import cluster
import marked

README = pathlib.Path(__file__).resolve().parents[1] / "README.md"
#: What a stranger meets at a port that is open to anybody; at others there is no connection.
MET = {
    "SSH": "the site's own sshd",
    "UI, REST API and execution API": "TLS, and 401 without a login",
    "Flower": "TLS, and 401 without a login, but for `/healthcheck` and `/metrics`",
}
NO_CONNECTION = "no connection"
NOBODY = "nobody else"
OTHERS = "all others"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attempt:
    """Something that an intruder tries.

    Attributes:
        key: By which tests know it.
        what: What is tried, for a reader.
        gets: What comes of it, for a reader.
        said: An expression for what comes of it, as attempts.py says it; empty for what other tests try.
    """

    key: str
    what: str
    gets: str
    said: str = ""


_NO_CONNECTION = r"no connection: .*|silence"
_CLOSED = r"closed .*|TLS: .*"
_REFUSED_BY_CLIENT = r"certificate refused by the client: (unable to get local issuer|self.signed).*"
_REFUSED_CERTIFICATE = r"TLS: .*alert (unknown ca|bad certificate|certificate required)|closed .*"
_NO_ENTRY = "`no pg_hba.conf entry`"
_ACCESS_REFUSED = r"refused: .*\(403\) ACCESS_REFUSED.*"

#: From the network.
OUTSIDE = (
    Attempt(key="ui-plain", what="8080 in plain HTTP", gets="closed", said=_CLOSED),
    Attempt(key="flower-plain", what="5555 in plain HTTP", gets="closed", said=_CLOSED),
    Attempt(
        key="ui-other-ca",
        what="8080 with a client that trusts another CA",
        gets="the client refuses the certificate",
        said=_REFUSED_BY_CLIENT,
    ),
    Attempt(
        key="flower-other-ca",
        what="5555 with a client that trusts another CA",
        gets="the client refuses the certificate",
        said=_REFUSED_BY_CLIENT,
    ),
    Attempt(key="rest-no-login", what="the REST API without a login", gets="401", said="401"),
    Attempt(key="rest-forged", what="the REST API with a forged token", gets="403", said="403"),
    Attempt(key="rest-wrong-password", what="a token for `admin` with a wrong password", gets="401", said="401"),
    Attempt(key="execution-no-token", what="the execution API without a token", gets="401", said="401"),
    Attempt(key="execution-forged", what="the execution API with a forged token", gets="403", said="403"),
    Attempt(key="flower-no-login", what="Flower's pages without a login", gets="401", said="401"),
    Attempt(key="flower-api-no-login", what="Flower's API without a login", gets="401", said="401"),
    Attempt(key="flower-wrong-password", what="Flower with a wrong password", gets="401", said="401"),
    Attempt(
        key="flower-healthcheck", what="Flower's `/healthcheck` without a login", gets="200, open by design", said="200"
    ),
    Attempt(
        key="flower-metrics",
        what="Flower's `/metrics` without a login",
        gets="200, open by design: names of workers and tasks, and counts",
        said="200",
    ),
)
#: From a host that the firewall lets in, by a login without any right to Airflow's files.
INSIDE = (
    Attempt(
        key="postgresql-plain",
        what="PostgreSQL without TLS",
        gets="`no pg_hba.conf entry ... no encryption`",
        said=r"refused: no pg_hba\.conf entry .* no encryption",
    ),
    Attempt(
        key="postgresql-other-ca",
        what="PostgreSQL with a client that trusts another CA",
        gets="the client refuses the certificate",
        said=_REFUSED_BY_CLIENT,
    ),
    Attempt(
        key="postgresql-no-certificate",
        what="PostgreSQL without a client certificate",
        gets="`connection requires a valid client certificate`",
        said=r"refused: connection requires a valid client certificate",
    ),
    Attempt(
        key="postgresql-foreign-certificate",
        what="PostgreSQL with a client certificate by another CA",
        gets="refused in the TLS handshake",
        said=_REFUSED_CERTIFICATE,
    ),
    Attempt(key="broker-plain", what="RabbitMQ in plain AMQP, on 5671", gets="closed", said=_CLOSED),
    Attempt(key="broker-5672", what="RabbitMQ in plain AMQP, on 5672", gets=NO_CONNECTION, said=_NO_CONNECTION),
    Attempt(
        key="broker-other-ca",
        what="RabbitMQ with a client that trusts another CA",
        gets="the client refuses the certificate",
        said=_REFUSED_BY_CLIENT,
    ),
    Attempt(
        key="broker-no-certificate",
        what="RabbitMQ without a client certificate",
        gets="refused in the TLS handshake",
        said=_REFUSED_CERTIFICATE,
    ),
    Attempt(
        key="broker-foreign-certificate",
        what="RabbitMQ with a client certificate by another CA",
        gets="refused in the TLS handshake",
        said=_REFUSED_CERTIFICATE,
    ),
    Attempt(
        key="secrets-of-airflow",
        what="to read the host's own `/etc/airflow/secrets` and the key of its certificate",
        gets="permission denied",
        said=r"\S+: Permission denied; \S+: Permission denied",
    ),
)
#: From a target VM in celery mode, with all that it holds. Those without an answer are tried in
#: tests/infra/test_least_privilege.py, by the tests that are marked with the key.
VM = (
    Attempt(key="other-queues", what="read or empty the queue of another VM, or hear of its tasks", gets="403"),
    Attempt(key="write-queues", what="write to a queue of tasks, be it its own", gets="403"),
    Attempt(key="command", what="command another worker", gets="403"),
    Attempt(key="declare", what="declare or delete a queue or an exchange", gets="403"),
    Attempt(key="guest", what="log in to the broker as `guest`", gets="403", said=_ACCESS_REFUSED),
    Attempt(
        key="main-login",
        what="log in to the broker as main's user, with its own password",
        gets="403",
        said=_ACCESS_REFUSED,
    ),
    Attempt(key="other-databases", what="read another database than that of the results", gets=_NO_ENTRY),
    Attempt(
        key="metadata-owner",
        what="read the metadata database as its owner",
        gets=_NO_ENTRY,
        said=r"refused: no pg_hba\.conf entry.*",
    ),
    Attempt(key="results", what="delete results, or change their tables", gets="`permission denied`"),
    Attempt(key="other-logs", what="fetch the task logs of another VM", gets=NO_CONNECTION, said=_NO_CONNECTION),
    Attempt(key="main-logs", what="fetch the task logs of main", gets=NO_CONNECTION, said=_NO_CONNECTION),
    Attempt(key="trigger", what="trigger a DAG, with a token signed by the key that it holds", gets="401 or 403"),
    Attempt(key="session", what="open the UI, with a cookie signed by that key", gets="the login page"),
    Attempt(
        key="execution", what="the execution API, with a token signed by that key and no task", gets="403", said="403"
    ),
    Attempt(key="admin", what="log in as `admin` with the passwords that it holds", gets="401", said="401"),
    Attempt(key="flower", what="log in to Flower with them", gets="401", said="401"),
    Attempt(
        key="task",
        what="run a task that looks for secrets in its environment, `/proc` and every file",
        gets="those of its worker, named below",
    ),
)


ATTEMPTS = (*OUTSIDE, *INSIDE, *VM)


def port_rows(groups: cluster.Groups, variables: Mapping[str, cluster.HostVars], mode: str) -> list[dict[str, Any]]:
    """Say what a stranger finds at the ports of the hosts that have our firewall.

    Args:
        groups: The inventory's groups.
        variables: Host to its variables.
        mode: ``celery`` or ``ssh``.

    Returns:
        ``host``, ``port``, ``why``, ``who`` may (for a reader), and whether it is ``open`` to a stranger.
    """
    targets = [cluster.target(variables[name]) for name in groups["target_vms"]]
    workers = cluster.workers(targets, mode, groups["scheduler"][0])
    ours = cluster.unique([*cluster.members(groups, mode)["airflow"], *groups["postgresql"], *groups["rabbitmq"]])
    return [
        {
            "host": host,
            "port": rule["port"],
            "why": rule["why"],
            "who": "anybody" if rule["from"] == "any" else ", ".join(rule["from"]) or NOBODY,
            "open": rule["from"] == "any",
        }
        for host in ours
        for rule in cluster.open_ports(host, groups, workers)
    ]


def port_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Render the table of ports; hosts whose rows are the same share them.

    Args:
        rows: As made by `port_rows`.
    """
    by_host: dict[str, list[tuple[str, ...]]] = {}
    for host, own in itertools.groupby(rows, key=lambda row: str(row["host"])):
        ports: dict[tuple[str, ...], list[int]] = {}
        for row in sorted(own, key=lambda row: int(row["port"])):
            met = MET[str(row["why"])] if row["open"] else NO_CONNECTION
            ports.setdefault((str(row["why"]), str(row["who"]), met), []).append(int(row["port"]))
        cells = [(", ".join(map(str, numbers)), *rest) for rest, numbers in ports.items()]
        by_host[host] = [*cells, (OTHERS, "", f"{NOBODY}, unless the site's own rules say so", NO_CONNECTION)]
    alike: dict[tuple[tuple[str, ...], ...], list[str]] = {}
    for host, cells in by_host.items():
        alike.setdefault(tuple(cells), []).append(host)
    lines = [(", ".join(hosts), *cells) for shared, hosts in alike.items() for cells in shared]
    return marked.table(("host", "TCP port", "for", "who may connect", "what a stranger gets"), lines)


def attempt_table(titles: Sequence[str], *parts: tuple[str, Sequence[Attempt]]) -> str:
    """Render a table of attempts.

    Args:
        titles: The columns' titles: with one for the place when there is more than one.
        parts: The place, for a reader, and what is tried from there.
    """
    where = len(parts) > 1
    rows = [
        (*([place] if where else []), attempt.what, attempt.gets) for place, attempts in parts for attempt in attempts
    ]
    return marked.table(titles, rows)


def tables(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Render all tables.

    Args:
        rows: As made by `port_rows`.
    """
    return {
        "ports": port_table(rows),
        "stranger": attempt_table(
            ("from", "tried without a login", "what comes of it"),
            ("another machine", OUTSIDE),
            ("a host of the cluster", INSIDE),
        ),
        "vm": attempt_table(("tried with all that a worker VM holds", "what comes of it"), ("", VM)),
    }


def unseen(keys: Collection[str]) -> list[str]:
    """Say which rows are not among those that were seen.

    Args:
        keys: The attempts that were seen to come out as the table says, and ``ports``.
    """
    return [key for key in ("ports", *(attempt.key for attempt in ATTEMPTS)) if key not in keys]


def write(rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the tables into the README.

    Args:
        rows: As made by `port_rows`.
    """
    README.write_text(marked.written(README.read_text(), tables(rows)))
