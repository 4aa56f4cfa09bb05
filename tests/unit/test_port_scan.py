"""The scan of all TCP ports that plays a stranger, on this machine's own loopback addresses."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import port_scan
import pytest


@pytest.fixture(autouse=True)
def raw_sockets() -> None:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP).close()
    except PermissionError:
        pytest.skip("raw sockets are root's")


@pytest.fixture(params=["127.0.0.1", "::1"])
def listener(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with socket.socket(family) as listening:
        try:
            listening.bind((request.param, 0))
        except OSError:
            pytest.skip(f"{request.param} is not here")
        listening.listen()
        yield listening


def test_an_open_port_is_told_from_a_closed_one(listener: socket.socket) -> None:
    address, port = listener.getsockname()[:2]
    with socket.socket(listener.family) as bound_only:
        bound_only.bind((address, 0))
        closed = bound_only.getsockname()[1]
        assert port_scan.scan(address, [port, closed]) == {port: "open", closed: "closed"}
