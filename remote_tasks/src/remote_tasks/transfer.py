"""Send a file from one VM to another through this host.

The data flows from a process on the one VM to a process on the other through this host's memory, a
few megabytes at a time; nothing of it touches this host's disk. On the far side it is written under
a temporary name in the final directory, checked by size and sha256, flushed, and renamed. The
far side's script waits for the word to rename and removes the temporary file when that does not
come, so that no failure, this host's death included, leaves a half file under the final name.
"""

from __future__ import annotations

import asyncio
import hashlib
import posixpath
import shlex
import time
from dataclasses import dataclass
from typing import Any, NoReturn

from remote_tasks.commands import Command
from remote_tasks.errors import (
    ConnectionLostError,
    DestinationError,
    IntegrityError,
    NoSpaceError,
    SameFileError,
    SourceChangedError,
    SourceError,
    TransferError,
    TransportError,
)
from remote_tasks.execution import RemoteProcess
from remote_tasks.transport import ChannelClosedError, Stream, Transport

_REPORT = "remote-tasks:"
"""Begins the lines on stderr by which the scripts report; all else there is a program's message."""

_TIDY_UP = 2.0
"""Seconds that a receiver gets to remove its temporary file before it is killed."""

# One open file from the first look to the last one, so that the file may be renamed or replaced
# meanwhile without mixing two files. The name is looked at again at the end to notice that.
_SEND = """export LC_ALL=C; say() { echo "%(report)s $*" >&2; }; stop() { say "$@"; exit 1; }
case $src in /*) ;; *) src=./$src ;; esac
if [ -d "$src" ]; then stop directory; fi
if [ ! -e "$src" ]; then stop missing; fi
if [ ! -f "$src" ]; then stop special; fi
if [ ! -r "$src" ]; then stop unreadable; fi
exec 3<"$src" || stop unreadable
look() { stat -L -c "%%s %%a %%d:%%i %%y %%z" -- "$1"; }
say file "$(look /dev/fd/3)"
cat <&3 || stop readerror
say then "$(look /dev/fd/3)"; say named "$(look "$src" 2>&1)"
"""

# openssl, where there is one, uses the CPU's own instructions: four times as fast as sha256sum.
# Command substitution drops newlines at the end, which a path may have: hence the x.
_RECEIVE = """export LC_ALL=C; say() { echo "%(report)s $*" >&2; }; stop() { say "$@"; exit 1; }
case $dst in /*) ;; *) dst=./$dst ;; esac
if [ -d "$dst" ]; then dst=${dst%%/}/$base; fi
case $dst in */) stop nodirectory ;; esac
if [ -L "$dst" ]; then t=$(readlink -f -- "$dst" && echo x) || stop dangling; dst=${t%%?x}; fi
if [ -d "$dst" ]; then stop directory; fi
if [ -e "$dst" ] && [ ! -f "$dst" ]; then stop special; fi
if [ -n "$src" ]; then case $src in /*) ;; *) src=./$src ;; esac
if [ "$src" -ef "$dst" ]; then stop same; fi; fi
dir=${dst%%/*}; dir=${dir:-/}
if [ ! -d "$dir" ]; then stop nodirectory; fi
if [ ! -w "$dir" ] || [ ! -x "$dir" ]; then stop unwritable; fi
umask 077; tmp=
trap 'if [ -n "$tmp" ]; then rm -f -- "$tmp"; fi' EXIT; trap "exit 1" HUP INT TERM PIPE
t=$(mktemp "$dir/.remote-tasks.XXXXXXXXXX" && echo x) || stop unwritable; tmp=${t%%?x}
free=$(df -k --output=avail -- "$dir" 2>/dev/null | tail -n 1 | tr -d " ")
case $free in ""|*[!0-9]*) ;; *)
if [ "$free" -lt $((size / 1024)) ]; then stop nospace "$free KiB are free"; fi ;; esac
if ! e=$(head -c "$size" 2>&1 >"$tmp"); then
case $e in *"No space"*|*quota*|*"too large"*) stop nospace "$e" ;; *) stop writeerror "$e" ;; esac
fi
chmod "$mode" "$tmp" || stop writeerror "chmod $mode"
if ! e=$(sync "$tmp" 2>&1); then
case $e in *"No space"*|*quota*) stop nospace "$e" ;; *) stop writeerror "$e" ;; esac; fi
sum=$(openssl dgst -sha256 -r <"$tmp" 2>/dev/null) || sum=$(sha256sum <"$tmp")
say have "$(stat -c %%s "$tmp") $sum"
IFS= read -r word && [ "$word" = commit ] || exit 1
mv -f -T -- "$tmp" "$dst" || stop writeerror "rename"
tmp=; sync "$dir" 2>/dev/null; say done; printf "%%sx" "$dst"
"""


def send_script(source_path: str) -> str:
    """Build the script that reads a file.

    Args:
        source_path: The file on the VM.

    Returns:
        A shell script; the file goes to stdout, what it finds to stderr.
    """
    return f"src={shlex.quote(source_path)}\n" + _SEND % {"report": _REPORT}


def receive_script(
    dest_path: str, *, basename: str, size: int, mode: str, same_vm_source: str
) -> str:
    """Build the script that writes a file.

    Args:
        dest_path: The final name, or a directory to put the file in.
        basename: The name that it gets in a directory.
        size: Its size in bytes.
        mode: Its permissions, in octal.
        same_vm_source: The source's path when it is on the same VM, else nothing.

    Returns:
        A shell script; it takes the file and then a line ``commit`` from stdin.
    """
    values = {
        "dst": dest_path,
        "base": basename,
        "size": str(size),
        "mode": mode,
        "src": same_vm_source,
    }
    head = "".join(f"{key}={shlex.quote(value)}\n" for key, value in values.items())
    return head + _RECEIVE % {"report": _REPORT}


@dataclass(frozen=True, slots=True)
class TransferResult:
    """A finished transfer.

    Attributes:
        source_vm: The VM that the file came from.
        dest_vm: The VM that it went to.
        source_path: Its path there.
        dest_path: Its path here, a directory's name completed.
        size: Its size in bytes.
        sha256: Its checksum, in hexadecimal, as read back from the far side.
        duration: How long it took, in seconds.
    """

    source_vm: str
    dest_vm: str
    source_path: str
    dest_path: str
    size: int
    sha256: str
    duration: float

    def to_dict(self) -> dict[str, Any]:
        """Return the result as Celery, XCom and JSON carry it.

        Returns:
            ``source_vm``, ``dest_vm``, ``source_path``, ``dest_path``, ``success``, ``output``,
            ``error``; beside these ``size``, ``sha256`` and ``duration``.
        """
        rate = self.size / 1e6 / max(self.duration, 1e-3)
        return {
            "source_vm": self.source_vm,
            "dest_vm": self.dest_vm,
            "source_path": self.source_path,
            "dest_path": self.dest_path,
            "success": True,
            "output": f"{self.size} bytes in {self.duration:.2f} s ({rate:.1f} MB/s), "
            f"sha256 {self.sha256}",
            "error": "",
            "size": self.size,
            "sha256": self.sha256,
            "duration": self.duration,
        }


def failed_transfer(
    source_vm: str, dest_vm: str, source_path: str, dest_path: str, error: Exception
) -> dict[str, Any]:
    """Return the dictionary for a transfer that was refused or broke.

    Args:
        source_vm: The VM that the file was to come from.
        dest_vm: The VM that it was to go to.
        source_path: Its path there.
        dest_path: Its path here.
        error: What went wrong.

    Returns:
        The same keys as `TransferResult.to_dict`.
    """
    return {
        "source_vm": source_vm,
        "dest_vm": dest_vm,
        "source_path": source_path,
        "dest_path": dest_path,
        "success": False,
        "output": "",
        "error": f"{type(error).__name__}: {error}",
        "size": None,
        "sha256": None,
        "duration": None,
    }


class _Side:
    """One end of a transfer: its process, and what it reports on stderr."""

    def __init__(self, transport: Transport, script: str) -> None:
        self.name = str(transport.target)
        self.process = RemoteProcess(transport, Command.of(script))
        self._rest = b""
        self.messages: list[str] = []

    async def report(self) -> tuple[str, str]:
        """Return the next report as its first word and the rest; both empty at the end."""
        while True:
            line, newline, rest = self._rest.partition(b"\n")
            if not newline:
                data = await self.process.read("stderr")
                if data:
                    self._rest = (self._rest + data)[-65536:]
                    continue
                if not self._rest:
                    return "", ""
            self._rest = rest
            text = line.decode(errors="replace")
            if text.startswith(_REPORT):
                word, _, detail = text.removeprefix(_REPORT).strip().partition(" ")
                return word, detail
            self.messages.append(text)

    async def rest_of(self, stream: Stream) -> bytes:
        """Return what a stream still holds."""
        parts = []
        while data := await self.process.read(stream):
            parts.append(data)
        return b"".join(parts)

    def said(self) -> str:
        """Return what the programs wrote, for a message."""
        return " ".join(self.messages[-5:]).strip() or "nothing"


async def transfer(
    source: Transport,
    dest: Transport,
    source_path: str,
    dest_path: str,
    *,
    timeout: float | None = None,
) -> TransferResult:
    """Send a file from one VM to another, or to another place on the same one.

    The permissions are kept, the owner is the login on the far side. An existing file is replaced
    at once and as a whole; a symbolic link is followed.

    Args:
        source: The way to the VM that has the file.
        dest: The way to the VM that gets it.
        source_path: The file; a relative path starts in the login's home.
        dest_path: Its new name, or an existing directory that it keeps its name in.
        timeout: Seconds that it may take; ``None`` for as long as it takes.

    Returns:
        What was transferred.

    Raises:
        TransferError: It was refused or failed; the type says why. Nothing is left behind.
        TransportError: A VM could not be reached, or the connection broke.
        CommandError: A path cannot be used as given.
    """
    for what, path in (("source", source_path), ("destination", dest_path)):
        if not path:
            raise TransferError(f"The {what} path is empty.")
    same_vm = source.target.name == dest.target.name
    began = time.monotonic()
    sender = _Side(source, send_script(source_path))
    sides = [sender]
    settled = False
    try:
        async with asyncio.timeout(timeout):
            await sender.process.start()
            word, found = await sender.report()
            if word != "file":
                await _source_trouble(sender, word, source_path)
            size_text, mode = found.split()[:2]
            size = int(size_text)
            receiver = _Side(
                dest,
                receive_script(
                    dest_path,
                    basename=posixpath.basename(source_path),
                    size=size,
                    mode=mode,
                    same_vm_source=source_path if same_vm else "",
                ),
            )
            sides.append(receiver)
            await receiver.process.start()
            digest = await _stream(sender, receiver, source_path, size)
            await _check_source(sender, source_path, found)
            await _check_arrival(receiver, dest_path, size, digest)
            # From here on the far side renames, whatever happens on this one.
            await receiver.process.channel.write(b"commit\n")
            word, detail = await receiver.report()
            if word != "done":
                await _dest_trouble(receiver, word, detail, dest_path, size)
            final = (await receiver.rest_of("stdout")).decode("utf-8", "surrogateescape")
            settled = True
    except TimeoutError:
        raise TransferError(
            f"{source_path!r} from {sender.name} to {dest.target}: not done within {timeout:g} s."
        ) from None
    except ChannelClosedError:
        raise ConnectionLostError(
            f"{dest.target}: the connection broke while {dest_path!r} was being written."
        ) from None
    finally:
        task = asyncio.ensure_future(_let_go(sides, settled))
        while not task.done():
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                if task.cancelled():
                    raise
    return TransferResult(
        source_vm=source.target.name,
        dest_vm=dest.target.name,
        source_path=source_path,
        dest_path=final[:-1].removeprefix("./"),
        size=size,
        sha256=digest,
        duration=time.monotonic() - began,
    )


async def _stream(sender: _Side, receiver: _Side, source_path: str, size: int) -> str:
    """Move the data; return its sha256."""
    loop = asyncio.get_running_loop()
    digest = hashlib.sha256()
    sent = 0
    while data := await sender.process.read("stdout"):
        sent += len(data)
        if sent > size:
            raise _changed(sender, source_path, f"it grew beyond {size} bytes")
        try:
            # hashlib lets other threads run, so that hashing costs no time of its own.
            hashing = loop.run_in_executor(None, digest.update, data)
            await receiver.process.channel.write(data)
            await hashing
        except ChannelClosedError:
            break  # the far side has stopped: it says why
    else:
        if sent < size:
            word, _ = await sender.report()
            if word == "then":
                raise _changed(sender, source_path, f"only {sent} of {size} bytes were there")
            await _source_trouble(sender, word, source_path)
    return digest.hexdigest()


async def _check_source(sender: _Side, source_path: str, found: str) -> None:
    """Make sure that the file is the one that was found, and untouched."""
    if await sender.process.read("stdout"):
        return  # it was not read to its end: the far side stopped first, and says why
    for expected in ("then", "named"):
        word, now = await sender.report()
        if word != expected:
            await _source_trouble(sender, word, source_path)
        if now != found:
            raise _changed(sender, source_path, f"before: {found}, after: {now}")


async def _check_arrival(receiver: _Side, dest_path: str, size: int, digest: str) -> None:
    word, have = await receiver.report()
    if word != "have":
        await _dest_trouble(receiver, word, have, dest_path, size)
    there_size, there_digest = have.split()[:2]
    if (there_size, there_digest) != (str(size), digest):
        raise IntegrityError(
            f"{dest_path!r} on {receiver.name}: sent were {size} bytes with sha256 {digest}, "
            f"written were {there_size} with {there_digest}. Is its disk or file system sound?"
        )


async def _let_go(sides: list[_Side], settled: bool) -> None:
    """End both processes; a receiver without the word to rename removes its temporary file."""
    for side in reversed(sides):
        if not side.process.started:
            continue
        # The sender ends by itself when nobody takes its output any more.
        if not settled and side is not sides[0]:
            await side.process.channel.write_eof()
            try:
                async with asyncio.timeout(_TIDY_UP):
                    await side.rest_of("stderr")
                    await side.process.channel.wait()
            except (TransportError, TimeoutError):
                await side.process.kill()
        await side.process.close()


def _changed(sender: _Side, source_path: str, detail: str) -> SourceChangedError:
    return SourceChangedError(
        f"{source_path!r} on {sender.name} was changed while it was being read ({detail}). "
        "Try again when whoever writes it is done."
    )


async def _source_trouble(sender: _Side, word: str, source_path: str) -> NoReturn:
    where = f"{source_path!r} on {sender.name}"
    if word == "missing":
        raise SourceError(f"{where}: no such file.")
    if word == "directory":
        raise SourceError(f"{where} is a directory; a transfer takes one file. Pack it with tar.")
    if word == "special":
        raise SourceError(f"{where} is not a regular file.")
    if word == "unreadable":
        raise SourceError(f"{where}: the login may not read it.")
    await _end_of(sender)
    raise SourceError(f"{where} could not be read; the VM says: {sender.said()}")


async def _dest_trouble(
    receiver: _Side, word: str, detail: str, dest_path: str, size: int
) -> NoReturn:
    where = f"{dest_path!r} on {receiver.name}"
    if word == "nodirectory":
        raise DestinationError(f"{where}: its directory does not exist. Make it first.")
    if word == "directory":
        raise DestinationError(f"{where}: a directory has the final name.")
    if word == "special":
        raise DestinationError(f"{where} exists and is not a regular file.")
    if word == "dangling":
        raise DestinationError(f"{where} is a symbolic link that leads nowhere.")
    if word == "unwritable":
        raise DestinationError(f"{where}: the login may not write to its directory.")
    if word == "same":
        raise SameFileError(f"{where} is the source itself; give it another name.")
    if word == "nospace":
        raise NoSpaceError(f"{where}: no room for {size} bytes ({detail}). Nothing is left there.")
    if word == "writeerror":
        raise DestinationError(f"{where} could not be written: {detail}")
    await _end_of(receiver)
    raise DestinationError(f"{where} could not be written; the VM says: {receiver.said()}")


async def _end_of(side: _Side) -> None:
    """Read the rest of the messages; raise what the transport knows about the end."""
    while (await side.report())[0]:
        pass
    if not await side.process.read("stdout"):
        await side.process.wait()
