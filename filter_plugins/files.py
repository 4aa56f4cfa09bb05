"""Files that hosts are to have: filters of the ``airflow`` role."""

from __future__ import annotations

import hashlib
import os
import pathlib
import stat
from collections.abc import Callable, Mapping
from typing import Any


def below(texts: Mapping[str, str], root: str) -> list[dict[str, Any]]:
    """Place texts below a directory, as root's and for all to read.

    Args:
        texts: Path of each, relative to the directory, to its text.
        root: The directory, an absolute path.

    Returns:
        What ``write_files`` takes: each directory once, those above others first, and then the files.
    """
    files = {pathlib.PurePosixPath(root, path): text for path, text in texts.items()}
    parents = {parent for file in files for parent in file.parents if parent.is_relative_to(root)}
    directories = [{"path": str(path), "mode": "0755"} for path in sorted(parents)]
    return directories + [{"path": str(path), "mode": "0644", "content": text} for path, text in files.items()]


def tree_digest(root: str) -> str:
    """Return the digest of a directory as `Look at the DAGs` of the role asks for it on a host.

    Args:
        root: The directory. What is in any ``__pycache__`` does not count, nor do special files.

    Returns:
        The sha256 of two lists, one after the other: of type, mode, path and target of links, where directories have
        0755 and files 0644; and of each file's sha256 and path.

    Raises:
        OSError: Something in it cannot be read.
    """
    top = os.fsencode(root)
    entries, sums = [b"d 755  "], []
    for directory, names, files in os.walk(top):
        names[:] = [name for name in names if name != b"__pycache__"]
        for path in (os.path.join(directory, name) for name in (*names, *files)):
            kind, shown = os.lstat(path).st_mode, os.path.relpath(path, top)
            if stat.S_ISLNK(kind):
                entries.append(b"l 777 %s %s" % (shown, os.readlink(path)))
            elif stat.S_ISDIR(kind):
                entries.append(b"d 755 %s " % shown)
            elif stat.S_ISREG(kind):
                entries.append(b"f 644 %s " % shown)
                digest = hashlib.sha256(pathlib.Path(os.fsdecode(path)).read_bytes()).hexdigest()
                sums.append((shown, b"%s  %s" % (digest.encode(), shown)))
    lines = sorted(entries) + [line for _, line in sorted(sums)]
    return hashlib.sha256(b"".join(b"%s\n" % line for line in lines)).hexdigest()


class FilterModule:
    """The functions above as Ansible filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return each filter's name and function."""
        return {"files_below": below, "tree_digest": tree_digest}
