"""Files and the directories above them, for ``write_files``: a filter of the ``airflow`` role."""

from __future__ import annotations

import pathlib
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


class FilterModule:
    """The function above as an Ansible filter."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filter's name and function."""
        return {"files_below": below}
