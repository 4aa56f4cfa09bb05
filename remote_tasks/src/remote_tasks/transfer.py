"""Send a file or a directory from one VM to another through this host.

The data flows from a process on the one VM to a process on the other through this host's memory, a
few megabytes at a time; nothing of it touches this host's disk. On the far side it is written under
a temporary name in the final directory, checked by size and sha256, flushed, and renamed. The
far side's script waits for the word to rename and removes the temporary file when that does not
come, so that no failure, this host's death included, leaves a half file under the final name.

A directory travels as an archive of tar's, which is unpacked as it comes. To check it, the far side
packs what it has got once more: the same tree makes the same archive.
"""

from __future__ import annotations

import asyncio
import hashlib
import posixpath
import secrets
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
"""Seconds that a receiver gets to notice that the word to rename does not come."""

_GRACE = {"file": 2.0, "directory": 120.0}
"""Seconds that it gets then to remove what it has written, before it is killed."""

# The same tree makes the same archive on any VM, whose owners and inherited set-id bits differ.
_PACK = """pack() { d=$1 f=$2; shift 2; tar "$@" --format=gnu --sort=name --numeric-owner \\
--owner=0 --group=0 --mode=ug-s -b %(blocks)s -C "$d" -cf "$f" .; }"""

_BLOCKS = 64
"""Of 512 bytes in each of an archive's records, to which its size is rounded up: an SSH packet."""

# One open file from the first look to the last one, so that the file may be renamed or replaced
# meanwhile without mixing two files. The name is looked at again at the end to notice that. A
# directory's archive has a size before it is made: tar reads no file for /dev/null. Of its messages
# the last ones come, after the data, so that nobody need read both at a time.
_SEND = """export LC_ALL=C; say() { echo "%(report)s $*" >&2; }; stop() { say "$@"; exit 1; }
case $src in /*) ;; *) src=./$src ;; esac
if [ ! -e "$src" ]; then stop missing; fi
if [ -d "$src" ]; then
if [ ! -r "$src" ] || [ ! -x "$src" ]; then stop unreadable; fi
if ! command -v tar >/dev/null; then stop notar; fi
%(pack)s
look() { echo "$(stat -L -c %%a -- "$src")" \
"$(cd -- "$src" && find . -printf "%%i %%s %%m %%T@ %%C@ %%p\\0" 2>/dev/null | sha256sum)"; }
size=$(pack "$src" /dev/null --totals 2>&1 | sed -n "s/^Total bytes written: \\([0-9]*\\).*/\\1/p")
case $size in ""|*[!0-9]*) stop notar ;; esac
say directory "$size $(look)"
{ { pack "$src" - >&4; case $? in 0) now="$size $(look)"; say now "$now"; say now "$now" ;;
1) say changed ;; *) say readerror ;; esac; } 2>&1 | tail -n 20 >&2; } 4>&1; exit; fi
if [ ! -f "$src" ]; then stop special; fi
if [ ! -r "$src" ]; then stop unreadable; fi
exec 3<"$src" || stop unreadable
format="%%s %%a %%d:%%i %%y %%z"
stat -L -c "%(report)s file $format" -- /dev/fd/3 >&2 || stop unreadable
cat <&3 || stop readerror
stat -L -c "%(report)s now $format" -- /dev/fd/3 "$src" >&2 || say now gone
"""

# Each program that it starts costs a small file as much as its data, so there are few.
# openssl, where there is one, uses the CPU's own instructions: four times as fast as sha256sum, but
# slower to start. What is large is flushed while it arrives, or the disk would have its turn after
# the network. Command substitution drops newlines at the end, which a path may have: hence the x.
_RECEIVE = """export LC_ALL=C; say() { echo "%(report)s $*" >&2; }; stop() { say "$@"; exit 1; }
lost() { case $e in *": No space left on device"*|*": Disk quota exceeded"*|*": File too large"*)
stop nospace "$e" ;; esac
stop "$1" "$e"; }
large() { [ "$size" -ge "$1" ]; }
digest() { large 4194304 && openssl dgst -sha256 -r 2>/dev/null || sha256sum; }
case $dst in /*) ;; *) dst=./$dst ;; esac
if [ -d "$dst" ]; then dst=${dst%%/}/$base; fi
if [ "$kind" = directory ]; then dst=${dst%%/}; fi
case $dst in */) stop nodirectory ;; esac
dir=${dst%%/*}; dir=${dir:-/}
if [ "$kind" = directory ]; then
if ! command -v tar >/dev/null; then stop notar; fi
%(pack)s
if [ -n "$src" ]; then case $(readlink -f -- "$dir")/ in "$(readlink -f -- "$src")"/*)
stop inside ;; esac; fi
if [ -e "$dst" ] || [ -L "$dst" ]; then stop exists; fi
else
if [ -L "$dst" ]; then t=$(readlink -f -- "$dst" && echo x) || stop dangling; dst=${t%%?x}; fi
if [ -d "$dst" ]; then stop directory; fi
if [ -e "$dst" ] && [ ! -f "$dst" ]; then stop special; fi
if [ -n "$src" ]; then case $src in /*) ;; *) src=./$src ;; esac
if [ "$src" -ef "$dst" ]; then stop same; fi; fi
dir=${dst%%/*}; dir=${dir:-/}; fi
if [ ! -d "$dir" ]; then stop nodirectory; fi
if [ ! -w "$dir" ] || [ ! -x "$dir" ]; then stop unwritable; fi
umask 077; tmp=
trap 'trap "" HUP INT TERM PIPE; if [ -d "$tmp" ]; then chmod -R u+rwX -- "$tmp"; rm -rf -- "$tmp"
elif [ -n "$tmp" ]; then rm -f -- "$tmp"; fi' EXIT; trap "exit 1" HUP INT TERM PIPE
t=$dir/.remote-tasks.$token
if [ "$kind" = directory ]; then e=$(mkdir -- "$t" 2>&1) || lost unwritable
else set -C; e=$( (: >"$t") 2>&1) || lost unwritable; set +C; fi; tmp=$t
if large 1048576; then set -- $(stat -f -c "%%b %%a %%S" -- "$dir" 2>/dev/null)
if [ "${1:-0}" -gt 0 ] && [ $(($2 * $3)) -lt "$size" ]; then
stop nospace "$(($2 * $3 / 1024)) KiB are free"; fi; fi
if [ "$kind" = directory ]; then
e=$(head -c "$size" | tar -C "$tmp" -b %(blocks)s -xp --no-same-owner -f - 2>&1) || lost writeerror
e=$(sync -f "$tmp" 2>&1 || sync -f "$dir" 2>&1) || lost writeerror
sum=$({ pack "$tmp" - || say unreadable; } | digest)
else
if large 67108864; then
(while sleep 0.5 && kill -0 $$ && [ -e "$tmp" ]; do sync -d "$tmp"; done) \\
>/dev/null 2>&1 </dev/null & fi
e=$(dd bs=256k iflag=fullblock,count_bytes count="$size" conv=fsync of="$tmp" 2>&1) ||
lost writeerror
chmod "$mode" "$tmp" || stop writeerror "chmod $mode"
sum=$(digest <"$tmp"); fi
say have "$sum"
IFS= read -r word && [ "$word" = commit ] || exit 1
mv -f -T -- "$tmp" "$dst" || stop writeerror "rename"
tmp=; sync "$dir" 2>/dev/null; say done; printf "%%sx" "$dst"
"""

_VALUES = {"report": _REPORT, "blocks": _BLOCKS, "pack": _PACK % {"blocks": _BLOCKS}}


def send_script(source_path: str) -> str:
    """Build the script that reads a file or a directory.

    Args:
        source_path: Its path on the VM.

    Returns:
        A shell script; the file or the archive goes to stdout, what it finds to stderr.
    """
    return f"src={shlex.quote(source_path)}\n" + _SEND % _VALUES


def receive_script(
    dest_path: str, *, kind: str, basename: str, size: int, mode: str, same_vm_source: str
) -> str:
    """Build the script that writes a file or a directory.

    Args:
        dest_path: The final name, or a directory to put it in.
        kind: ``file`` or ``directory``.
        basename: The name that it gets in a directory.
        size: The size of the file or of the archive, in bytes.
        mode: A file's permissions, in octal; a directory's are in the archive.
        same_vm_source: The source's path when it is on the same VM, else nothing.

    Returns:
        A shell script; it takes the file or the archive and then a line ``commit`` from stdin.
    """
    values = {
        "dst": dest_path,
        "kind": kind,
        "base": basename,
        "size": str(size),
        "mode": mode,
        "src": same_vm_source,
        "token": secrets.token_hex(5),
    }
    head = "".join(f"{key}={shlex.quote(value)}\n" for key, value in values.items())
    return head + _RECEIVE % _VALUES


@dataclass(frozen=True, slots=True)
class TransferResult:
    """A finished transfer.

    Attributes:
        source_vm: The VM that it came from.
        dest_vm: The VM that it went to.
        source_path: Its path there.
        dest_path: Its path here, a directory's name completed.
        size: Its size in bytes; a directory's is its archive's.
        sha256: Its checksum, in hexadecimal, as read back from the far side; a directory's is its
            archive's.
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
        source_vm: The VM that it was to come from.
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

    def __init__(self, transport: Transport, script: str, grace: float | None = None) -> None:
        self.name = str(transport.target)
        self.grace = grace
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
    """Send a file or a directory from one VM to another, or to another place on the same one.

    The permissions are kept, the owner is the login on the far side. An existing file is replaced
    at once and as a whole; a symbolic link is followed. A directory comes with all that is in it,
    with the times of change, and with symbolic links as they are; set-id bits and sockets are left
    out. It is made anew: an existing one is refused, since to replace it would lose what else is
    in it.

    Args:
        source: The way to the VM that has it.
        dest: The way to the VM that gets it.
        source_path: The file or directory; a relative path starts in the login's home.
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
            if word not in _GRACE:
                await _source_trouble(sender, word, source_path)
            kind = word
            size_text, mode = found.split()[:2]
            size = int(size_text)
            receiver = _Side(
                dest,
                receive_script(
                    dest_path,
                    kind=kind,
                    basename=posixpath.basename(source_path.rstrip("/")),
                    size=size,
                    mode=mode,
                    same_vm_source=source_path if same_vm else "",
                ),
                grace=_GRACE[kind],
            )
            sides.append(receiver)
            await receiver.process.start()
            digest = await _stream(sender, receiver, source_path, size)
            await _check_source(sender, source_path, found)
            await _check_arrival(receiver, dest_path, size, digest)
            # From here on the far side renames, whatever happens on this one.
            try:
                await receiver.process.channel.write(b"commit\n")
                word, detail = await receiver.report()
                if word != "done":
                    await _dest_trouble(receiver, word, detail, dest_path, size)
                final = (await receiver.rest_of("stdout")).decode("utf-8", "surrogateescape")
            except (ChannelClosedError, ConnectionLostError) as error:
                if kind == "file":
                    raise  # to send it again does no harm
                raise TransferError(
                    f"{dest_path!r} on {receiver.name}: the connection broke when the directory "
                    "was whole and about to get its name. Look whether it is there."
                ) from error
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
            if word == "now":
                raise _changed(sender, source_path, f"only {sent} of {size} bytes were there")
            await _source_trouble(sender, word, source_path)
    return digest.hexdigest()


async def _check_source(sender: _Side, source_path: str, found: str) -> None:
    """Make sure that the file is the one that was found, and untouched."""
    if await sender.process.read("stdout"):
        return  # it was not read to its end: the far side stopped first, and says why
    for _ in ("as opened", "as named"):
        word, now = await sender.report()
        if word != "now":
            await _source_trouble(sender, word, source_path)
        if now != found:
            raise _changed(sender, source_path, f"before: {found}, after: {now}")


async def _check_arrival(receiver: _Side, dest_path: str, size: int, digest: str) -> None:
    word, have = await receiver.report()
    if word != "have":
        await _dest_trouble(receiver, word, have, dest_path, size)
    there = have.partition(" ")[0]
    if there != digest:
        raise IntegrityError(
            f"{dest_path!r} on {receiver.name}: sent were {size} bytes with sha256 {digest}, "
            f"what was written has {there}. Is its disk or file system sound?"
        )


async def _let_go(sides: list[_Side], settled: bool) -> None:
    """End both processes; a receiver without the word to rename removes what it has written."""
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
                await side.process.kill(side.grace)
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
    if word == "notar":
        raise SourceError(f"{where} is a directory, and that VM has no GNU tar to send it.")
    if word == "changed":
        raise _changed(sender, source_path, sender.said())
    if word == "special":
        raise SourceError(f"{where} is not a regular file or a directory.")
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
    if word == "exists":
        raise DestinationError(
            f"{where} exists. A directory is made anew, since to replace one would lose what else "
            "is in it: remove it first, or give another name."
        )
    if word == "inside":
        raise DestinationError(f"{where} is inside the source; give it another place.")
    if word == "notar":
        raise DestinationError(
            f"{where} becomes a directory, and that VM has no GNU tar to unpack it. Install it."
        )
    if word == "unreadable":
        raise DestinationError(
            f"{where}: the login may not read all that has arrived, so that it cannot be compared. "
            "Let the owners of the source's files read them."
        )
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
