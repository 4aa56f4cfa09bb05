"""Output of commands: bounded in memory, decoded safely, cut where the person can see it."""

from __future__ import annotations

import codecs
from collections import deque

MAX_LINE = 16 * 1024
"""Bytes after which a line without an end is passed on in pieces."""


class MarkerFilter:
    """Drop what a login shell prints before the command starts.

    Args:
        token: The marker that the wrapper prints first, followed by words and a newline.
    """

    _KEPT = 4096

    def __init__(self, token: str) -> None:
        self._token = token.encode()
        self._head = b""
        self.words: list[str] | None = None

    @property
    def preface(self) -> str:
        """What came before the marker: the place where a broken login explains itself."""
        return self._head.decode(errors="replace").strip()

    def feed(self, data: bytes) -> bytes:
        """Take bytes of the stream.

        Args:
            data: The next bytes.

        Returns:
            The bytes that belong to the command.
        """
        if self.words is not None:
            return data
        self._head += data
        start = self._head.find(self._token)
        end = self._head.find(b"\n", start)
        if start < 0 or end < 0:
            # A login that prints without end must not fill the memory, nor hide the marker.
            if start < 0:
                self._head = self._head[-self._KEPT :]
            return b""
        self.words = self._head[start + len(self._token) : end].decode(errors="replace").split()
        rest = self._head[end + 1 :]
        self._head = self._head[:start]
        return rest


class TailBuffer:
    """The last bytes of a stream, and how many were let go.

    Args:
        limit: Bytes to keep.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: deque[bytes] = deque()
        self._kept = 0
        self.total = 0

    def feed(self, data: bytes) -> None:
        """Take bytes of the stream.

        Args:
            data: The next bytes.
        """
        self.total += len(data)
        if len(data) >= self._limit:
            self._parts.clear()
            self._parts.append(data[len(data) - self._limit :])
            self._kept = self._limit
            return
        # Tiny writes are joined: a part costs far more memory than its bytes.
        if self._parts and len(self._parts[-1]) + len(data) <= 4096:
            self._parts[-1] += data
        else:
            self._parts.append(data)
        self._kept += len(data)
        while self._kept - len(self._parts[0]) >= self._limit:
            self._kept -= len(self._parts.popleft())

    @property
    def cut(self) -> int:
        """Bytes that are not in `text`."""
        return max(0, self.total - self._limit)

    def text(self) -> str:
        """Return the kept end of the stream as text.

        Returns:
            The text; bytes that are no UTF-8 are replaced. When something was cut, the first line
            says how many bytes.
        """
        data = b"".join(self._parts)
        if not self.cut:
            return data.decode(errors="replace")
        data = data[len(data) - self._limit :]
        # The cut may fall inside a character: its rest is not the command's fault.
        skip = 0
        while skip < min(3, len(data)) and data[skip] & 0xC0 == 0x80:
            skip += 1
        mark = f"[... the first {self.cut + skip} of {self.total} bytes are cut ...]\n"
        return mark + data[skip:].decode(errors="replace")


class LineSplitter:
    """Turn a stream of bytes into lines of text as they are complete.

    Args:
        max_line: Bytes after which an unfinished line is passed on as it is.
    """

    def __init__(self, max_line: int = MAX_LINE) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._max = max_line
        self._rest = ""

    def feed(self, data: bytes, *, final: bool = False) -> list[str]:
        """Take bytes of the stream.

        Args:
            data: The next bytes.
            final: Whether these are the last ones.

        Returns:
            The lines that are complete now, without their ends.
        """
        *lines, self._rest = (self._rest + self._decoder.decode(data, final)).split("\n")
        while len(self._rest) > self._max:
            lines.append(self._rest[: self._max])
            self._rest = self._rest[self._max :]
        if final and self._rest:
            lines.append(self._rest)
            self._rest = ""
        return [line.removesuffix("\r") for line in lines]
