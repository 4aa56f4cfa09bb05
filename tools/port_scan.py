#!/usr/bin/env python3
"""Find every TCP port of a host that answers: all 65535, by SYN alone.

Standard library only, since it is fed to the Python of a machine that has nothing else; needs CAP_NET_RAW.
A scan by connect() would wait for each port that a firewall keeps silent about; here all are asked at once, and
what has not answered is asked a second time: about 5 s a host that refuses, 8 s one that is silent.

Example:
    port_scan.py 192.168.83.129 fe80::1%eth0
"""

from __future__ import annotations

import json
import select
import socket
import struct
import sys
import time
from collections.abc import Iterator, Sequence

ALL_PORTS = range(1, 65536)
ROUNDS = 2
#: So many questions, and then a look at the answers: a burst would overflow the queues on the way.
BATCH = 250
PAUSE = 0.004
#: Seconds for the last answers of a round.
PATIENCE = 1.0
#: Beyond the ports that the kernel hands out, so that no connection of its own is met.
SOURCE_PORT = 61000
SYN, RST, ACK = 0x02, 0x04, 0x10


def sum_of_words(data: bytes) -> int:
    """Return the ones' complement sum of 16 bit words, as TCP's checksum is made of.

    Args:
        data: An even number of bytes.
    """
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def questions(own: bytes, other: bytes, ports: Sequence[int]) -> Iterator[bytes]:
    """Make a SYN for each port.

    Args:
        own: The packed address that they are sent from.
        other: The packed address that they are sent to.
        ports: The ports to ask.

    Yields:
        TCP headers, with their checksums.
    """
    pseudo_header = own + other + struct.pack("!II", 20, socket.IPPROTO_TCP)
    header = struct.Struct("!HHIIBBHHH")
    common = sum_of_words(pseudo_header + header.pack(SOURCE_PORT, 0, 0, 0, 5 << 4, SYN, 1024, 0, 0))
    for port in ports:
        total = common + port
        checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
        yield header.pack(SOURCE_PORT, port, 0, 0, 5 << 4, SYN, 1024, checksum, 0)


def answers(raw: socket.socket, host: str, seconds: float) -> Iterator[tuple[int, int]]:
    """Yield what a host answers, until nothing has come for some time.

    Args:
        raw: A raw TCP socket.
        host: The host's address.
        seconds: How long to wait for more.

    Yields:
        The port that answers, and the flags of its answer.
    """
    while select.select([raw], [], [], seconds)[0]:
        packet, sender = raw.recvfrom(256)
        # An IPv4 socket gives the IP header too, an IPv6 socket does not.
        start = (packet[0] & 0x0F) * 4 if raw.family == socket.AF_INET else 0
        port, to = struct.unpack_from("!HH", packet, start)
        if to == SOURCE_PORT and sender[0].partition("%")[0] == host:
            yield port, packet[start + 13]


def scan(address: str, ports: Sequence[int] = ALL_PORTS) -> dict[int, str]:
    """Ask ports of a host whether somebody listens there.

    Args:
        address: The host's IPv4 or IPv6 address; a link-local one with its ``%interface``.
        ports: The ports to ask.

    Returns:
        Port to ``open`` or ``closed``; without those that are silent, or refused by ICMP.
    """
    found: dict[int, str] = {}
    family, _type, _protocol, _name, where = socket.getaddrinfo(address, 0, type=socket.SOCK_DGRAM)[0]
    host = str(where[0]).partition("%")[0]
    with socket.socket(family, socket.SOCK_DGRAM) as route:
        route.connect((host, SOURCE_PORT, *where[2:]))
        own = str(route.getsockname()[0]).partition("%")[0]
    packed = (socket.inet_pton(family, own), socket.inet_pton(family, host))
    # Not connected: an ICMP error about one port would fail the question to the next.
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)

        def listen(seconds: float) -> None:
            for port, flags in answers(raw, host, seconds):
                if flags & (SYN | ACK) == SYN | ACK:
                    found[port] = "open"
                elif flags & RST:
                    found.setdefault(port, "closed")

        for _round in range(ROUNDS):
            silent = [port for port in ports if port not in found]
            for number, question in enumerate(questions(*packed, silent), 1):
                raw.sendto(question, where)
                if number % BATCH == 0:
                    listen(PAUSE)
            if silent:
                listen(PATIENCE)
    return found


def main(addresses: Sequence[str]) -> int:
    """Print what was found as JSON.

    Args:
        addresses: The hosts' addresses.
    """
    result = {}
    for address in addresses:
        begin = time.monotonic()
        found = scan(address)
        opened = sorted(port for port, state in found.items() if state == "open")
        seconds = round(time.monotonic() - begin, 1)
        result[address] = {"open": opened, "closed": len(found) - len(opened), "seconds": seconds}
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
