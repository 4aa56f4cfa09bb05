"""What a host lets in: rules by names turned into rules by addresses, and what is wrong with them.

Pure functions without I/O. A host is asked once, by the role's one command; its answer comes in as text.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")
#: Ports below 1024 where a client of DHCP or NTP waits for answers, which come through a firewall all the same.
_CLIENTS = {68, 123, 546}
_WELL_KNOWN = 1024

Rule = Mapping[str, Any]
Known = Mapping[str, Sequence[str]]


def answer(text: str) -> dict[str, Any]:
    """Read what a host says to the role's question.

    Args:
        text: Lines, each of which begins with a word for what it tells.

    Returns:
        ``installed``, ``running``, ``recorded`` (what was there before is taken down), ``begun`` (or a part of it),
        ``current`` (the rules are loaded as written and as they were after the load), ``addresses`` (host name to
        what the present rules know of it), ``others`` (firewalls that are not firewalld), ``listens`` (protocol,
        port and program of each socket that is open to the network).
    """
    told: dict[str, list[str]] = {}
    for line in text.splitlines():
        kind, _, rest = line.partition(" ")
        told.setdefault(kind, []).append(rest)
    state = told.get("state", [""])[0].split()
    hosts = (re.fullmatch(r"host (\S+): (.*)", line) for line in told.get("file", []))
    return {
        "installed": "package" in told,
        "running": state[:1] == ["active"],
        "recorded": "complete" in told.get("record", []),
        "begun": "record" in told,
        "current": state == ["active", "enabled"]
        and "loaded" in told
        and told["loaded"][0].split() == told["now"][0].split(),
        "addresses": {found[1]: found[2].split() for found in hosts if found},
        "others": told.get("other", []),
        "listens": [socket for line in told.get("listens", []) if (socket := _socket(line))],
    }


def _socket(line: str) -> dict[str, Any] | None:
    words = line.split()
    address, _, port = words[4].rpartition(":")
    bare = address.strip("[]").partition("%")[0]
    if bare != "*" and ipaddress.ip_address(bare).is_loopback:
        return None
    program = re.search(r'"([^"]*)"', line)
    return {"protocol": words[0], "port": int(port), "program": program[1] if program else "?"}


def known(hosts: Sequence[Mapping[str, Any]], before: Known) -> dict[str, list[str]]:
    """Say where the traffic of each host comes from.

    Args:
        hosts: ``name``, ``addresses`` and ``seen`` (in this run) of each host.
        before: Name to the addresses that the present rules know.

    Returns:
        Name to addresses; those of a host that this run leaves out are kept.
    """
    return {
        str(host["name"]): sorted({*host["addresses"], *(() if host["seen"] else before.get(str(host["name"]), ()))})
        for host in hosts
    }


def resolved(rules: Sequence[Rule], hosts: Sequence[Mapping[str, Any]], before: Known) -> list[dict[str, Any]]:
    """Turn rules by names into rules by addresses, one for each port.

    Args:
        rules: ``port`` and ``from`` of each, and ``protocol`` and ``why`` where they are given.
        hosts: See :func:`known`.
        before: See :func:`known`.

    Returns:
        ``port``, ``protocol``, ``from`` (``any``, or addresses and networks) and ``why`` (a list) of each port.
    """
    addresses = known(hosts, before)
    merged: dict[tuple[str, str], dict[str, Any]] = {}
    for rule in rules:
        key = (str(rule["port"]), str(rule.get("protocol", "tcp")))
        entry = merged.setdefault(key, {"port": key[0], "protocol": key[1], "from": [], "why": []})
        entry["why"] += [rule["why"]] if rule.get("why") else []
        if rule["from"] == "any" or entry["from"] == "any":
            entry["from"] = "any"
            continue
        sources = (addresses.get(source, [source] if _network(source) else []) for source in rule["from"])
        entry["from"] = list(dict.fromkeys([*entry["from"], *(source for some in sources for source in some)]))
    return sorted(merged.values(), key=lambda rule: (int(rule["port"].partition("-")[0]), rule["protocol"]))


def named(rules: Sequence[Rule], hosts: Sequence[Mapping[str, Any]], before: Known) -> dict[str, list[str]]:
    """Say what is to be known of the hosts that rules name, so that a run without one of them keeps its access.

    Args:
        rules: See :func:`resolved`.
        hosts: See :func:`known`.
        before: See :func:`known`.

    Returns:
        Name to addresses.
    """
    sources = {str(source) for rule in rules if rule["from"] != "any" for source in rule["from"]}
    return {name: addresses for name, addresses in known(hosts, before).items() if name in sources}


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(str(text), strict=False)
    except ValueError:
        return None


def _covers(port: str, wanted: int) -> bool:
    first, _, last = port.partition("-")
    return int(first) <= wanted <= int(last or first)


def problems(
    host: str, rules: Sequence[Rule], hosts: Sequence[Mapping[str, Any]], said: Mapping[str, Any], login: str
) -> list[str]:
    """Say why rules cannot work on a host, or would shut somebody out.

    Args:
        host: The host's name.
        rules: See :func:`resolved`.
        hosts: See :func:`known`.
        said: What the host has, as made by :func:`answer`.
        login: The host's SSH_CONNECTION: whence it sees the control node, and at which of its ports; '' when the
            control node reaches it in another way.

    Returns:
        One sentence a problem, each with what to write instead.
    """
    addresses = known(hosts, said["addresses"])
    found = [problem for rule in rules for problem in _rule_problems(rule, addresses)]
    if found:
        return [f"{host}: {problem}" for problem in dict.fromkeys(found)]
    allowed = resolved(rules, hosts, said["addresses"])
    return [f"{host}: {problem}" for problem in (*_shut_out(allowed, login), *_others(allowed, said))]


def _rule_problems(rule: Rule, addresses: Known) -> Iterable[str]:
    port, sources = _PORT.fullmatch(str(rule.get("port"))), rule.get("from")
    if not port or not 0 < int(port[1]) <= int(port[2] or port[1]) < 1 << 16:
        yield f"firewall rule {dict(rule)}: port is no port. Write 1 to 65535, or a range such as '8000-8010'."
    if rule.get("protocol", "tcp") not in ("tcp", "udp"):
        yield f"firewall rule {dict(rule)}: protocol is neither tcp nor udp."
    if sources != "any" and (isinstance(sources, str) or not isinstance(sources, Sequence)):
        yield f"firewall rule {dict(rule)}: write 'from: any', or 'from' with a list of addresses and networks."
        return
    for source in () if sources == "any" else sources:
        if source in addresses and not addresses[source]:
            yield (
                f"the address of {source} is not known, which port {rule['port']} is for: its ansible_host is a name,"
                " and this run leaves it out. Run once without --limit, or write its address."
            )
        elif source not in addresses and not _network(source):
            yield (
                f"firewall rule for port {rule['port']}: {source!r} is neither an address (192.168.83.5), nor a network"
                " (192.168.83.0/24), nor a host of the inventory."
            )


def _shut_out(allowed: Sequence[Rule], login: str) -> Iterable[str]:
    if not login:
        return
    client, port = ipaddress.ip_address(login.split()[0].partition("%")[0]), int(login.split()[3])
    if isinstance(client, ipaddress.IPv6Address) and client.ipv4_mapped:
        client = client.ipv4_mapped
    for rule in allowed:
        if rule["protocol"] == "tcp" and _covers(rule["port"], port):
            networks = () if rule["from"] == "any" else tuple(_network(source) for source in rule["from"])
            if rule["from"] != "any" and not any(network and client in network for network in networks):
                yield (
                    f"firewall_ssh_from would shut out this very control node, which the host sees as {client} at port"
                    f" {port}. Add {client} (or its network), or write 'any'."
                )


def _others(allowed: Sequence[Rule], said: Mapping[str, Any]) -> Iterable[str]:
    if said["running"]:
        return
    if said["others"]:
        yield (
            f"{' and '.join(said['others'])} filters packets there already, and firewalld would end that. Either set"
            " firewall_enabled: false for this host, and let in there what roles/firewall/README.md names; or remove"
            " the other firewall."
        )
    closed = (
        {}
        if said["recorded"]
        else {
            (socket["port"], socket["protocol"]): socket["program"]
            for socket in said["listens"]
            if (socket["protocol"] == "tcp" or (socket["port"] < _WELL_KNOWN and socket["port"] not in _CLIENTS))
            and not any(
                rule["protocol"] == socket["protocol"] and _covers(rule["port"], socket["port"]) for rule in allowed
            )
        }
    )
    if closed:
        shown = ", ".join(f"{port}/{protocol} ({program})" for (port, protocol), program in sorted(closed.items()))
        (port, protocol), _ = min(closed.items())
        yield (
            f"there is no firewall yet, and ours would close {shown}. Say in firewall_allow who may go on to use each:"
            f" {{port: {port}, protocol: {protocol}, from: any}}, or 'from: []' for nobody. Or set firewall_enabled:"
            " false for this host."
        )


class FilterModule:
    """The functions above as Ansible filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return filter names and functions."""
        return {f"firewall_{function.__name__}": function for function in (answer, named, resolved, problems)}
