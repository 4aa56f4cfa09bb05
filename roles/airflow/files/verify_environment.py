"""Looks at an environment file by file, and prints as JSON what is in it and what is not as it was installed.

Given to the distribution's Python by standard input, with the environment as its argument. It imports nothing from
the environment, which it would have to trust then. Each file is held against the hash in its package's RECORD, and
compiled code against its source, since RECORD does not have it and Python runs it unseen.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.util
import json
import marshal
import os
import pathlib
import platform
import re
import stat
import sys
import warnings
from typing import Any

#: Files that are no package's: uv makes them with the environment, and the role signs it off.
OF_THE_ENVIRONMENT = re.compile(
    r"[.]complete|[.]gitignore|[.]lock|CACHEDIR[.]TAG|pyvenv[.]cfg|lib64"
    r"|bin/(activate([._]\w+)*|deactivate[.]bat|pydoc[.]bat|python[0-9.]*)"
)
#: uv's lock, which any user may take, and nobody reads.
OPEN_TO_ALL = {".lock"}


def packages(site: pathlib.Path) -> tuple[dict[str, dict[str, str]], dict[str, tuple[str, str]]]:
    """Read what was installed.

    Args:
        site: The directory site-packages.

    Returns:
        Name to ``version`` and ``record`` (a digest of the list of files); and path below the environment to
        package and hash, as RECORD writes it ('' for RECORD itself).
    """
    found, files = {}, {}
    environment = site.parent.parent.parent
    for information in sorted(site.glob("*.dist-info")):
        metadata = (information / "METADATA").read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
        name = re.sub(r"[-_.]+", "-", re.findall(r"^Name: *(\S+)", metadata, re.MULTILINE)[0]).lower()
        version = re.findall(r"^Version: *(\S+)", metadata, re.MULTILINE)[0]
        record = (information / "RECORD").read_text(encoding="utf-8")
        # uv notes when it read a package that was built here: it differs from host to host.
        lines = [line for line in record.splitlines() if ".dist-info/uv_cache.json," not in line]
        digest = hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()
        found[name] = {"version": version, "record": digest}
        for path, digest, _size in csv.reader(record.splitlines()):
            files[os.path.relpath(site / path, environment)] = (name, digest)
    return found, files


def present(environment: pathlib.Path) -> dict[str, os.stat_result]:
    """Return all that is below the environment: path to its status, directories too."""
    found = {}
    waiting = [""]
    while waiting:
        directory = waiting.pop()
        with os.scandir(environment / directory) as entries:
            for entry in entries:
                path = os.path.join(directory, entry.name)
                found[path] = entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(path)
    return found


def digest_of(path: pathlib.Path, algorithm: str = "sha256") -> str:
    """Return a file's hash as RECORD writes it."""
    digest = hashlib.new(algorithm, path.read_bytes()).digest()
    return f"{algorithm}={base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


def compiled_from(path: str) -> str:
    """Return the source of compiled code, by its path; '' for a path that Python does not use."""
    directory, name = os.path.split(path)
    parent, cache = os.path.split(directory)
    end = f".{sys.implementation.cache_tag}.pyc"
    return os.path.join(parent, name[: -len(end)] + ".py") if cache == "__pycache__" and name.endswith(end) else ""


def is_compiled(code: pathlib.Path, source: pathlib.Path) -> bool:
    """Return whether compiled code is what its source compiles to."""
    content = code.read_bytes()
    if content[:4] != importlib.util.MAGIC_NUMBER:
        return False
    try:
        own = marshal.loads(content[16:])  # noqa: S302 - read, and never run
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return bool(own == compile(source.read_bytes(), str(source), "exec", dont_inherit=True))
    except (EOFError, ValueError, TypeError, SyntaxError):
        return False


def look(environment: pathlib.Path) -> dict[str, Any]:
    """Look at an environment.

    Args:
        environment: Its directory.

    Returns:
        ``python`` and ``machine``; ``packages``, as `packages` gives them; ``own``: the environment's files that are
        no package's, to their hashes; ``files``: how many there are; ``problems``: one sentence for each file that
        is not as it was installed.
    """
    (site,) = environment.glob("lib/python3*/site-packages")
    found, files = packages(site)
    there = present(environment)
    problems: list[str] = []
    own = {}
    current = environment.parent / "current"
    if current.resolve() != environment.resolve():
        problems.append(f"{current} points at {current.resolve().name}")
    for path, (package, _) in sorted(files.items()):
        if path not in there:
            problems.append(f"{path} of {package} is missing")
    for path, status in sorted(there.items()):
        link = stat.S_ISLNK(status.st_mode)
        if status.st_uid != os.geteuid():
            problems.append(f"{path} is owned by the user {status.st_uid}")
        elif not link and status.st_mode & 0o022 and path not in OPEN_TO_ALL:
            problems.append(f"{path} can be written by others ({stat.S_IMODE(status.st_mode):04o})")
        if stat.S_ISDIR(status.st_mode):
            continue
        source = compiled_from(path)
        if OF_THE_ENVIRONMENT.fullmatch(path):
            own[path] = os.readlink(environment / path) if link else digest_of(environment / path)
        elif not stat.S_ISREG(status.st_mode):
            problems.append(f"{path} is no plain file")
        elif path in files:
            package, digest = files[path]
            if digest and digest_of(environment / path, digest.partition("=")[0]) != digest:
                problems.append(f"{path} of {package} was changed")
        elif source not in files:
            problems.append(f"{path} is of no package")
        elif source in there and not is_compiled(environment / path, environment / source):
            problems.append(f"{path} is not what {os.path.basename(source)} compiles to")
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "packages": found,
        "own": own,
        "files": sum(not stat.S_ISDIR(status.st_mode) for status in there.values()),
        "problems": problems,
    }


if __name__ == "__main__":
    if not os.path.isdir(sys.argv[1]):
        sys.exit("it is not there. Run site.yml, or verify with the checkout that the cluster was made from")
    print(json.dumps(look(pathlib.Path(sys.argv[1]))))
