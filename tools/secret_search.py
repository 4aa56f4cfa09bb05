"""What a task finds when it looks for secrets: in its environment, in /proc, and in every file that it can read.

Fed to a worker as part of a DAG, with the standard library alone. It knows the secrets by salted hashes only:
generated ones are runs of letters and digits, so every such run is hashed and compared.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping

SHORTEST = 32
#: Letters and digits become ones: what has SHORTEST of them in a row is then found by bytes.find, ten times as
#: quickly as by an expression, and gigabytes of memory are searched.
ONES = bytes(chr(code).isalnum() and code < 128 for code in range(256))
PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/]{40}")
#: What the distribution's packages and the locked wheels bring, which is known to the world.
KNOWN = (
    *("/usr/bin", "/usr/lib", "/usr/sbin", "/usr/share"),
    *("/var/cache", "/var/lib/apt", "/var/lib/dpkg", "/sys", "/proc"),
)
KNOWN_PART = "/site-packages"
LARGEST = 1 << 26
PIECE = 1 << 24
OVERLAP = 256


def runs(content: bytes) -> Iterator[bytes]:
    """Every run of letters and digits that is long enough to be a secret, also with base64's padding."""
    ones = content.translate(ONES)
    start = ones.find(b"\1" * SHORTEST)
    while start >= 0:
        end = ones.find(b"\0", start)
        end = len(ones) if end < 0 else end
        run, padding = content[start:end], content[end : end + 2]
        yield from (run + padding[:count] for count in range(3) if padding[:count] == b"=" * count)
        start = ones.find(b"\1" * SHORTEST, end)


def hashed(salt: str, value: bytes) -> str:
    """The form in which secrets are compared."""
    return hashlib.sha256(salt.encode() + value).hexdigest()


def pieces(path: str) -> Iterator[bytes]:
    """What can be read of a file."""
    try:
        with open(path, "rb") as file:
            tail = b""
            while (piece := file.read(PIECE)) and file.tell() <= LARGEST:
                yield tail + piece
                tail = piece[-OVERLAP:]
    except (OSError, ValueError):
        return


def files() -> Iterator[str]:
    """Every file outside of KNOWN."""
    for directory, below, names in os.walk("/"):
        below[:] = [name for name in below if not f"{directory.rstrip('/')}/{name}".startswith(KNOWN)]
        below[:] = [name for name in below if KNOWN_PART not in f"{directory}/{name}"]
        for name in names:
            path = os.path.join(directory, name)
            if os.path.isfile(path) and not os.path.islink(path):
                yield path


def memory(process: str) -> Iterator[bytes]:
    """What a process has written to its memory, where the kernel lets us look."""
    try:
        with open(f"/proc/{process}/maps") as maps, open(f"/proc/{process}/mem", "rb", 0) as content:
            for line in maps:
                where, rights, *_rest = line.split()
                if "rw" not in rights:
                    continue
                start, end = (int(number, 16) for number in where.split("-"))
                for at in range(start, end, PIECE):
                    content.seek(at)
                    yield content.read(min(PIECE, end - at))
    except OSError:
        return


def places() -> Iterator[tuple[str, bytes]]:
    """Every place where a task can look, and what stands there."""
    yield "environment", "\n".join(f"{name}={value}" for name, value in os.environ.items()).encode()
    for process in filter(str.isdigit, os.listdir("/proc")):
        for name in ("cmdline", "environ"):
            for piece in pieces(f"/proc/{process}/{name}"):
                yield f"/proc/*/{name}", piece
        for piece in memory(process):
            yield "/proc/*/mem", piece
    for path in files():
        for piece in pieces(path):
            yield path, piece


def search(salt: str, hashes: Mapping[str, str]) -> list[tuple[str, str]]:
    """Look for secrets.

    Args:
        salt: Of the hashes.
        hashes: Hash to the secret's name.

    Returns:
        Pairs of a name and the place where it was found; `private key` for a key of any kind.
    """
    found = set()
    seen: set[bytes] = set()
    for place, content in places():
        if b"PRIVATE KEY" in content and PRIVATE_KEY.search(content):
            found.add(("private key", place))
        # What was seen and is no secret is not hashed again.
        for value in set(runs(content)) - seen:
            if name := hashes.get(hashed(salt, value)):
                found.add((name, place))
            else:
                seen.add(value)
    return sorted(found)
