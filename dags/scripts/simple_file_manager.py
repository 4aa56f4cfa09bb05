"""Print the figures of one file as one JSON object: simple_file_manager.py PATH.

Reads the file once, in constant memory, and changes nothing. For any Python from 3.6, whatever its
locale: what it prints is ASCII.
"""

import codecs
import datetime
import hashlib
import json
import os
import stat
import sys

CHUNK = 64 * 1024


class Counter:
    """Counts what passes by, wherever it is cut into chunks."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.size = self.words = self._newlines = 0
        self.utf8 = True
        self._sha256 = hashlib.sha256()
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._last = b"\n"

    def add(self, chunk: bytes) -> None:
        """Count the next bytes, of which there is at least one."""
        self.size += len(chunk)
        self._newlines += chunk.count(b"\n")
        in_word = not self._last.isspace() and not chunk[:1].isspace()
        self.words += len(chunk.split()) - in_word
        self._sha256.update(chunk)
        self._last = chunk[-1:]
        self._decode(chunk)

    def _decode(self, chunk: bytes, final: bool = False) -> None:
        try:
            if self.utf8:
                self._decoder.decode(chunk, final)
        except UnicodeDecodeError:
            self.utf8 = False

    def figures(self) -> dict:
        """Return what was counted; a last line without an end is a line."""
        self._decode(b"", final=True)
        return {
            "size": self.size,
            "lines": self._newlines + (self._last != b"\n"),
            "words": self.words,
            "sha256": self._sha256.hexdigest(),
            "utf8": self.utf8,
        }


def examine(path: str) -> dict:
    """Return the figures of a file.

    Args:
        path: The file.

    Returns:
        ``path``, ``modified`` (ISO 8601, UTC), ``size`` in bytes, ``lines``, ``words``, ``sha256`` and ``utf8``:
        whether it is valid in that encoding.

    Raises:
        OSError: It cannot be read, or is no regular file.
    """
    # Looked at before it is opened: opening a pipe would wait for a writer.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(f"not a regular file: {path!r}")
    counter = Counter()
    with open(path, "rb") as file:
        seconds = int(os.fstat(file.fileno()).st_mtime)
        for chunk in iter(lambda: file.read(CHUNK), b""):
            counter.add(chunk)
    # The name as its bytes say: a Python 3.6 without a locale has read them as ASCII.
    name = os.fsencode(path).decode("utf-8", "replace")
    modified = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return dict(counter.figures(), path=name, modified=modified.isoformat())


def main(arguments: list) -> int:
    """Print the figures of the file that is named.

    Args:
        arguments: One path.

    Returns:
        The exit code: 1 when the file cannot be read, 2 for a wrong call.
    """
    if len(arguments) != 1:
        print("usage: simple_file_manager.py PATH", file=sys.stderr)
        return 2
    try:
        print(json.dumps(examine(arguments[0]), sort_keys=True))
    except OSError as error:
        print(f"simple_file_manager: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
