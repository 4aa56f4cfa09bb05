"""What an intruder tries, each answered by a sentence.

Fed to the Python of another machine (see intruder.py), hence with the standard library alone; what begins with
`own` or `with_own` uses what a host of the cluster holds, and needs its Airflow environment.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import json
import pathlib
import socket
import ssl
import struct
import tempfile
import time
import urllib.parse
import uuid
from collections.abc import Iterator, Sequence
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any

SECONDS = 8.0
SECRETS = "/etc/airflow/secrets"
TLS = "/etc/airflow/tls"
Tls = dict[str, str]


def _context(tls: Tls) -> ssl.SSLContext:
    """A client's context; `ca`, `cert` and `key` are paths, or the PEM itself."""
    with tempfile.TemporaryDirectory() as directory:

        def path(name: str) -> str:
            if "-----BEGIN" not in tls[name]:
                return tls[name]
            file = pathlib.Path(directory, name)
            file.write_text(tls[name])
            return str(file)

        context = ssl.create_default_context(cafile=path("ca")) if "ca" in tls else ssl.create_default_context()
        if "cert" in tls:
            context.load_cert_chain(path("cert"), path("key"))
        return context


def _sentence(error: Exception) -> str:
    """An error as a stranger sees it: that there is no connection, or why the other side ended it."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate refused by the client: {error.verify_message}"
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return "closed during the TLS handshake"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {str(error.reason).lower().replace('_', ' ')}"
    if isinstance(error, HTTPException | ConnectionResetError | BrokenPipeError):
        return "closed without an answer"
    if isinstance(error, TimeoutError):
        return "silence"
    return f"no connection: {error}"


def _connected(host: str, port: int) -> socket.socket:
    try:
        return socket.create_connection((host, port), timeout=SECONDS)
    except OSError as error:
        raise OSError("timed out" if isinstance(error, TimeoutError) else error.strerror) from None


def _received(connection: socket.socket) -> bytes:
    """What comes until the other side closes, or says no more for a while."""
    received = b""
    with contextlib.suppress(TimeoutError):
        while len(received) < 4096 and (piece := connection.recv(4096)):
            received += piece
            connection.settimeout(1)
    return received


def plain(host: str, port: int, text: str) -> str:
    """Say something in plain text to a port (escapes as in a Python string)."""
    with _connected(host, port) as connection:
        connection.sendall(text.encode("latin-1"))
        received = _received(connection)
    if not received:
        return "closed without an answer"
    # A TLS alert: type 21, version 3.x.
    return "closed by a TLS alert" if received[:2] == b"\x15\x03" else f"answered: {received[:200]!r}"


def http(
    host: str,
    port: int,
    path: str = "/",
    tls: Tls | None = None,
    method: str = "GET",
    body: Any = None,
    headers: dict[str, str] | None = None,
    login: tuple[str, str] | None = None,
    content: bool = False,
) -> str:
    """Ask a web server for something, in plain text without `tls`; the answer is its status, or its content."""
    sent = dict(headers or {})
    if login:
        sent["Authorization"] = "Basic " + base64.b64encode(":".join(login).encode()).decode()
    if body is not None:
        sent["Content-Type"] = "application/json"
    _connected(host, port).close()
    connection = (
        HTTPConnection(host, port, timeout=SECONDS)
        if tls is None
        else HTTPSConnection(host, port, timeout=SECONDS, context=_context(tls))
    )
    with contextlib.closing(connection):
        connection.request(method, path, None if body is None else json.dumps(body), sent)
        answer = connection.getresponse()
        return answer.read().decode() if content else str(answer.status)


@contextlib.contextmanager
def _postgresql(host: str, port: int, tls: Tls | None) -> Iterator[socket.socket]:
    with _connected(host, port) as connection:
        if tls is None:
            yield connection
            return
        connection.sendall(struct.pack("!II", 8, 80877103))  # SSLRequest
        if connection.recv(1) != b"S":
            raise OSError("the server does not offer TLS")
        with _context(tls).wrap_socket(connection, server_hostname=host) as wrapped:
            yield wrapped


def postgresql(host: str, port: int, user: str, database: str, tls: Tls | None = None) -> str:
    """Begin a login, as far as the server asks for a password; without `tls` in plain text."""
    parameters = b"".join(part.encode() + b"\0" for part in ("user", user, "database", database)) + b"\0"
    with _postgresql(host, port, tls) as connection:
        connection.sendall(struct.pack("!II", len(parameters) + 8, 196608) + parameters)
        received = _received(connection)
    if received[:1] == b"R":
        return "asked for a password"
    if received[:1] != b"E":
        return "closed without an answer"
    fields = {field[:1]: field[1:].decode() for field in received[5:].split(b"\0") if field}
    return f"refused: {fields[b'M']}"


def amqp(host: str, port: int, tls: Tls) -> str:
    """Greet the broker over TLS, as far as it asks for a login."""
    with _connected(host, port) as connection, _context(tls).wrap_socket(connection, server_hostname=host) as wrapped:
        # A refused certificate is told after the handshake (TLS 1.3), and not at all to who sends first.
        wrapped.settimeout(1)
        with contextlib.suppress(TimeoutError):
            wrapped.recv(1)
        wrapped.settimeout(SECONDS)
        wrapped.sendall(b"AMQP\0\0\x09\x01")
        received = _received(wrapped)
    return "asked for a login" if received[:1] == b"\x01" else f"closed: {received[:100]!r}"


def read(paths: Sequence[str]) -> str:
    """Read files."""
    said = []
    for path in paths:
        try:
            said.append(f"{path}: {len(pathlib.Path(path).read_bytes())} bytes")
        except OSError as error:
            said.append(f"{path}: {error.strerror}")
    return "; ".join(said)


def token(key: str, audience: str) -> str:
    """A token for the first user, who is the administrator, or for some task, signed by a key."""

    def part(value: bytes) -> str:
        return base64.urlsafe_b64encode(value).decode().rstrip("=")

    now = int(time.time())
    subject = str(uuid.UUID(int=1)) if audience.endswith(":task") else "1"
    claims = {
        "sub": subject,
        "aud": audience,
        "iss": [],
        "iat": now,
        "nbf": now,
        "exp": now + 600,
        "scope": "execution",
    }
    content = ".".join(part(json.dumps(value).encode()) for value in ({"alg": "HS512", "typ": "JWT"}, claims))
    return f"{content}.{part(hmac.digest(key.encode(), content.encode(), 'sha512'))}"


def own_secret(name: str) -> str:
    """What stands in a file of this host's secrets."""
    return pathlib.Path(SECRETS, name).read_text()


def own_passwords() -> list[str]:
    """Everything that this host could try as a password."""
    passwords = []
    for path in pathlib.Path(SECRETS).iterdir():
        value = path.read_text()
        passwords.append(urllib.parse.unquote(urllib.parse.urlsplit(value).password or "") or value)
    return passwords


def with_own_passwords(way: str, host: str, port: int, path: str, user: str, tls: Tls) -> str:
    """Log in to a web server with everything that this host could try as a password: `basic` or for a `token`."""

    def answer(password: str) -> str:
        if way == "basic":
            return http(host, port, path, tls, login=(user, password))
        return http(host, port, path, tls, method="POST", body={"username": user, "password": password})

    return " ".join(sorted({answer(password) for password in own_passwords()}))


def with_token(audience: str, key: str = "", **request: Any) -> str:
    """Ask a web server for something, with a token signed by a key: without one, by that which this host has."""
    signed = token(key or own_secret("api_secret_key"), audience)
    return http(**request, headers={"Authorization": f"Bearer {signed}"})


def own_broker(user: str = "", password: str = "") -> str:
    """Log in to the broker with this host's own certificate, and its login or what is made of that."""
    import amqp

    url = urllib.parse.urlsplit(own_secret("broker_url"))
    tls = {"ca_certs": f"{TLS}/ca.pem", "certfile": f"{TLS}/host.pem", "keyfile": f"{TLS}/host.key"}
    connection = amqp.Connection(
        url.netloc.rpartition("@")[2],
        userid=user or urllib.parse.unquote(url.username or ""),
        password=password or urllib.parse.unquote(url.password or ""),
        virtual_host=url.path[1:],
        connect_timeout=SECONDS,
        ssl={**tls, "cert_reqs": ssl.CERT_REQUIRED} if url.scheme == "amqps" else False,
    )
    try:
        connection.connect()
        return "in"
    except amqp.exceptions.AMQPError as error:
        return f"refused: {error}"
    finally:
        with contextlib.suppress(Exception):
            connection.close()


def attempt(do: str, **arguments: Any) -> str:
    """Do what a name and its arguments say, and say what came of it."""
    try:
        return str(globals()[do](**arguments))
    except Exception as error:
        return _sentence(error)
