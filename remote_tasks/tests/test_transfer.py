from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import SETTINGS, Sshd, eventually
from remote_tasks.errors import (
    CommandError,
    ConnectError,
    ConnectionLostError,
    DestinationError,
    IntegrityError,
    NoSpaceError,
    SameFileError,
    SourceChangedError,
    SourceError,
    TransferError,
)
from remote_tasks.runtime import get_runtime
from remote_tasks.targets import Target
from remote_tasks.transfer import (
    TransferResult,
    failed_transfer,
    receive_script,
    send_script,
    transfer,
)
from remote_tasks.transport import CHUNK, Channel, Stream, Transport

MEGABYTE = 1_000_000


def send(
    source: Target, dest: Target, source_path: object, dest_path: object, timeout: float = 30
) -> TransferResult:
    runtime = get_runtime()

    async def work() -> TransferResult:
        return await transfer(
            runtime.transport(source, SETTINGS),
            runtime.transport(dest, SETTINGS),
            str(source_path),
            str(dest_path),
            timeout=timeout,
        )

    return runtime.call(work())


def leftovers(directory: Path) -> list[str]:
    return [entry.name for entry in directory.iterdir() if "remote-tasks" in entry.name]


@pytest.fixture(params=["ssh-ssh", "ssh-local", "local-ssh", "local-local"])
def pair(
    request: pytest.FixtureRequest, here: Target, vm2: Target, vm3: Target
) -> tuple[Target, Target]:
    source, dest = request.param.split("-")
    other = Target(name="vm8", transport="local", host="127.0.0.1", queue="vm8_queue")
    return (here if source == "local" else vm2), (other if dest == "local" else vm3)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(random.randbytes(3 * MEGABYTE))
    path.chmod(0o640)
    return path


@pytest.fixture
def dest_dir(tmp_path: Path) -> Path:
    path = tmp_path / "dest"
    path.mkdir()
    return path


def test_a_file_arrives_whole_with_its_mode(
    pair: tuple[Target, Target], source: Path, dest_dir: Path
) -> None:
    result = send(*pair, source, dest_dir / "file")
    assert (dest_dir / "file").read_bytes() == source.read_bytes()
    assert (dest_dir / "file").stat().st_mode & 0o7777 == 0o640
    assert os.listdir(dest_dir) == ["file"]
    assert result.to_dict() == {
        "source_vm": pair[0].name,
        "dest_vm": pair[1].name,
        "source_path": str(source),
        "dest_path": str(dest_dir / "file"),
        "success": True,
        "output": result.to_dict()["output"],
        "error": "",
        "size": 3 * MEGABYTE,
        "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "duration": result.duration,
    }


@pytest.mark.parametrize("size", [0, 1, 32768, 262144, 262145])
def test_any_size(vm2: Target, vm3: Target, tmp_path: Path, size: int) -> None:
    (tmp_path / "a").write_bytes(random.randbytes(size))
    assert send(vm2, vm3, tmp_path / "a", tmp_path / "b").size == size
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()


NAMES = st.text(
    st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=20
).filter(lambda name: name not in (".", ".."))


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(NAMES, NAMES)
def test_any_name(vm2: Target, vm3: Target, tmp_path: Path, first: str, second: str) -> None:
    for directory in ("from", "to"):
        (tmp_path / directory).mkdir(exist_ok=True)
    (tmp_path / "from" / first).write_bytes(first.encode())
    result = send(vm2, vm3, tmp_path / "from" / first, tmp_path / "to" / second)
    assert (tmp_path / "to" / second).read_bytes() == first.encode()
    assert result.dest_path == str(tmp_path / "to" / second)


@pytest.mark.parametrize("name", ["a b", "it's", 'a"b', "a\nb\n", "\n", "-rf", "$HOME", "*", "ü"])
def test_awkward_names(vm2: Target, vm3: Target, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    (tmp_path / "to").mkdir()
    send(vm2, vm3, tmp_path / name, tmp_path / "to")
    assert os.listdir(tmp_path / "to") == [name]


def test_a_directory_takes_the_file_under_its_own_name(
    vm2: Target, vm3: Target, source: Path, dest_dir: Path
) -> None:
    for path in (dest_dir, f"{dest_dir}/"):
        assert send(vm2, vm3, source, path).dest_path == str(dest_dir / "source")
    assert os.listdir(dest_dir) == ["source"]


def test_a_relative_path_starts_at_home(vm2: Target, here: Target, source: Path) -> None:
    home = Path.home()
    (home / ".remote-tasks-test").write_text("x")
    try:
        send(here, vm2, ".remote-tasks-test", source)
        assert source.read_text() == "x"
        result = send(vm2, here, source, ".remote-tasks-test")
        assert result.dest_path == ".remote-tasks-test"
    finally:
        (home / ".remote-tasks-test").unlink()


def test_an_old_file_is_replaced_and_a_link_is_followed(
    vm2: Target, vm3: Target, source: Path, dest_dir: Path
) -> None:
    (dest_dir / "real").write_text("old")
    (dest_dir / "link").symlink_to("real")
    result = send(vm2, vm3, source, dest_dir / "link")
    assert (dest_dir / "link").is_symlink()
    assert (dest_dir / "real").read_bytes() == source.read_bytes()
    assert result.dest_path == str(dest_dir / "real")


def test_what_cannot_be_sent_is_refused(vm2: Target, vm3: Target, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        (tmp_path / "none", "no such file"),
        (tmp_path / "pipe", "not a regular file"),
        ("/dev/null", "not a regular file"),
    ):
        with pytest.raises(SourceError, match=message):
            send(vm2, vm3, path, tmp_path / "x")
    with pytest.raises(TransferError, match="source path is empty"):
        send(vm2, vm3, "", tmp_path / "x")
    with pytest.raises(CommandError, match="NUL"):
        send(vm2, vm3, "/a\0b", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_where_nothing_can_be_written_is_refused(
    vm2: Target, vm3: Target, source: Path, dest_dir: Path
) -> None:
    os.mkfifo(dest_dir / "pipe")
    (dest_dir / "dangling").symlink_to("/no/such/place")
    (dest_dir / "sub" / "source").mkdir(parents=True)
    for path, message in (
        (dest_dir / "none" / "x", "its directory does not exist"),
        (f"{dest_dir}/none/", "its directory does not exist"),
        (dest_dir / "pipe", "not a regular file"),
        (dest_dir / "dangling", "leads nowhere"),
        (dest_dir / "sub", "a directory has the final name"),
        (source / "x", "its directory does not exist"),
        ("/proc/x", "may not write"),
    ):
        with pytest.raises(DestinationError, match=message):
            send(vm2, vm3, source, path)
    with pytest.raises(TransferError, match="destination path is empty"):
        send(vm2, vm3, source, "")
    assert not leftovers(dest_dir)


def test_the_same_file_is_refused_under_any_name(vm2: Target, source: Path, tmp_path: Path) -> None:
    before = source.read_bytes()
    (tmp_path / "link").symlink_to(source)
    os.link(source, tmp_path / "hard")
    for path in (source, tmp_path, f"{tmp_path}/./source", tmp_path / "link", tmp_path / "hard"):
        with pytest.raises(SameFileError, match="is the source itself"):
            send(vm2, vm2, source, path)
    assert source.read_bytes() == before
    assert send(vm2, vm2, source, tmp_path / "copy").size == len(before)


@pytest.mark.skipif(os.geteuid() != 0, reason="root is needed to become somebody else")
def test_without_permission(sshd_factory: Callable[..., Sshd], source: Path) -> None:
    """As nobody: root may do everything."""
    script = receive_script(
        "/root/x", kind="file", basename="source", size=1, mode="600", same_vm_source=""
    )
    done = subprocess.run(
        ["sh", "-c", script], user=65534, capture_output=True, text=True, cwd="/", timeout=10
    )
    assert done.stderr.strip() in ("remote-tasks: unwritable", "remote-tasks: nodirectory")
    assert done.returncode == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("a small file system can be mounted by root only")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_disk_without_room_is_noticed_before(
    vm2: Target, vm3: Target, source: Path, small_disk: Path
) -> None:
    with pytest.raises(NoSpaceError, match=r"no room for 3000000 bytes \(2048 KiB are free\)"):
        send(vm2, vm3, source, small_disk / "file")
    assert os.listdir(small_disk) == []


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory with what directories have in them."""
    path = tmp_path / "tree"
    (path / "empty").mkdir(parents=True)
    (path / "a b" / "c\nd").mkdir(parents=True)
    (path / "a b" / "c\nd" / "ü").write_bytes(random.randbytes(MEGABYTE))
    (path / ".hidden").write_text("hidden")
    (path / ".hidden").chmod(0o604)
    (path / "run").write_text("#!/bin/sh")
    (path / "run").chmod(0o4755)
    os.link(path / "run", path / "hard")
    (path / "link").symlink_to("a b/c\nd/ü")
    (path / "dangling").symlink_to("/no/such/place")
    (path / "sealed").mkdir()
    (path / "sealed" / "file").write_text("sealed")
    (path / "sealed").chmod(0o2555)
    os.utime(path / ".hidden", (1_000_000_000, 1_000_000_000))
    os.utime(path / "empty", (1_100_000_000, 1_100_000_000))
    path.chmod(0o750)
    return path


def contents(path: Path) -> dict[str, tuple[int, int, bytes | str | None]]:
    """Return mode, second of change and content of all that is in a directory, itself included."""
    found: dict[str, tuple[int, int, bytes | str | None]] = {}
    for entry in (path, *path.rglob("*")):
        status = entry.lstat()
        content: bytes | str | None = None
        if entry.is_symlink():
            content = os.readlink(entry)
        elif entry.is_file():
            content = entry.read_bytes()
        found[str(entry.relative_to(path))] = (
            status.st_mode & ~0o6000,
            0 if entry.is_symlink() else int(status.st_mtime),
            content,
        )
    return found


def test_a_directory_arrives_whole(pair: tuple[Target, Target], tree: Path, dest_dir: Path) -> None:
    before = contents(tree)
    result = send(*pair, tree, dest_dir / "new")
    assert contents(dest_dir / "new") == before == contents(tree)
    assert (dest_dir / "new/hard").samefile(dest_dir / "new/run")
    assert os.listdir(dest_dir) == ["new"]
    assert result.size > MEGABYTE
    assert result.dest_path == str(dest_dir / "new")
    assert result.to_dict()["success"]


def test_a_directory_takes_a_directory_under_its_own_name(
    vm2: Target, vm3: Target, tree: Path, dest_dir: Path
) -> None:
    (dest_dir / "sub").mkdir()
    for source, dest, final in (
        (tree, dest_dir, "tree"),
        (f"{tree}/", f"{dest_dir}/sub/", "sub/tree"),
        (f"{tree}/", f"{dest_dir}/other/", "other"),
        (tree / "empty", dest_dir / "nothing", "nothing"),
    ):
        assert send(vm2, vm3, source, dest).dest_path == str(dest_dir / final)
    assert sorted(os.listdir(dest_dir)) == ["nothing", "other", "sub", "tree"]


def test_a_directory_is_refused_where_something_is(
    vm2: Target, vm3: Target, tree: Path, dest_dir: Path
) -> None:
    (dest_dir / "tree").mkdir()
    (dest_dir / "file").write_text("x")
    (dest_dir / "dangling").symlink_to("/no/such/place")
    for path in (dest_dir, dest_dir / "file", dest_dir / "dangling"):
        with pytest.raises(DestinationError, match=r"exists\. A directory is made anew"):
            send(vm2, vm3, tree, path)
    for path in (tree / "copy", tree / "sealed", tree / "empty" / "copy"):
        with pytest.raises(DestinationError, match="is inside the source"):
            send(vm2, vm2, tree, path)
    with pytest.raises(DestinationError, match="its directory does not exist"):
        send(vm2, vm3, tree, dest_dir / "none" / "x")
    assert not leftovers(dest_dir)
    assert not leftovers(tree)


def test_a_directory_without_room_leaves_nothing(
    vm2: Target, vm3: Target, tree: Path, small_disk: Path
) -> None:
    (tree / "more").write_bytes(random.randbytes(2 * MEGABYTE))
    with pytest.raises(NoSpaceError, match=r"no room for \d+ bytes \(2048 KiB are free\)"):
        send(vm2, vm3, tree, small_disk / "new")
    (tree / "more").write_bytes(b"")
    (small_disk / "small").write_bytes(b"x" * 1_000_000)
    (tree / "small").write_bytes(random.randbytes(10_000))
    for number in range(500):  # a page each, where the archive has 1 kB
        (tree / str(number)).write_text("x")
    with pytest.raises(NoSpaceError):
        send(vm2, vm3, tree, small_disk / "new")
    assert os.listdir(small_disk) == ["small"]


class Interfering:
    """A transport whose first data of a file waits until something has been done about it."""

    def __init__(self, inner: Transport, happens: Callable[[], None]) -> None:
        self.inner = inner
        self.target = inner.target
        self.settings = inner.settings
        self.happens: Callable[[], None] | None = happens

    async def open(self, line: str, *, urgent: bool = False) -> Channel:
        channel = await self.inner.open(line, urgent=urgent)
        read = channel.read

        async def interfering(stream: Stream, limit: int = CHUNK) -> bytes:
            data = await read(stream, limit)
            if stream == "stdout" and len(data) > 1000 and self.happens is not None:
                happens, self.happens = self.happens, None
                await asyncio.get_running_loop().run_in_executor(None, happens)
            return data

        channel.read = interfering  # type: ignore[method-assign]
        return channel

    async def close(self) -> None:
        await self.inner.close()


def send_while(
    source: Target,
    dest: Target,
    source_path: object,
    dest_path: object,
    happens: Callable[[], None],
    timeout: float = 30,
) -> TransferResult:
    runtime = get_runtime()

    async def work() -> TransferResult:
        return await transfer(
            Interfering(runtime.transport(source, SETTINGS), happens),
            runtime.transport(dest, SETTINGS),
            str(source_path),
            str(dest_path),
            timeout=timeout,
        )

    return runtime.call(work())


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Larger than everything that may be under way."""
    path = tmp_path / "large"
    path.write_bytes(random.randbytes(25 * MEGABYTE))
    return path


def test_a_disk_that_fills_up_meanwhile_keeps_the_old_file(
    vm2: Target, vm3: Target, source: Path, small_disk: Path
) -> None:
    """Somebody else's file, or a quota: the look at the free space said that there was room."""
    source.write_bytes(random.randbytes(1_500_000))
    (small_disk / "file").write_text("old")

    def fill() -> None:
        assert eventually(lambda: leftovers(small_disk))
        with contextlib.suppress(OSError):
            (small_disk / "other").write_bytes(b"x" * 3_000_000)

    with pytest.raises(NoSpaceError, match="No space left"):
        send_while(vm2, vm3, source, small_disk / "file", fill)
    assert sorted(os.listdir(small_disk)) == ["file", "other"]
    assert (small_disk / "file").read_text() == "old"


def write_inside(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(20 * MEGABYTE)
        file.write(b"changed")


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def truncate(path: Path) -> None:
    os.truncate(path, 9 * MEGABYTE)


def replace(path: Path) -> None:
    path.with_name("new").write_bytes(b"new")
    path.with_name("new").rename(path)


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("change", [write_inside, append, truncate, replace, remove])
def test_a_source_that_changes_meanwhile_is_noticed(
    vm2: Target, vm3: Target, large: Path, dest_dir: Path, change: Callable[[Path], None]
) -> None:
    with pytest.raises(SourceChangedError, match="was changed while it was being read"):
        send_while(vm2, vm3, large, dest_dir / "file", lambda: change(large))
    assert os.listdir(dest_dir) == []


def grow_in(tree: Path) -> None:
    (tree / "zz").write_text("more")


def shrink_in(tree: Path) -> None:
    os.truncate(tree / "large", 9 * MEGABYTE)


def touch_in(tree: Path) -> None:
    os.utime(tree / "large")


def rewrite_what_was_sent(tree: Path) -> None:
    (tree / "a" / "file").write_text("other")


def add_where_tar_has_been(tree: Path) -> None:
    (tree / "a" / "new").write_text("more")


@pytest.mark.parametrize(
    "change",
    [grow_in, shrink_in, touch_in, rewrite_what_was_sent, add_where_tar_has_been, shutil.rmtree],
)
def test_a_directory_that_changes_meanwhile_is_noticed(
    vm2: Target, vm3: Target, large: Path, dest_dir: Path, change: Callable[[Path], None]
) -> None:
    tree = large.parent / "changing"
    (tree / "a").mkdir(parents=True)
    (tree / "a" / "file").write_text("first")
    large.rename(tree / "large")
    with pytest.raises(SourceChangedError, match="was changed while it was being read"):
        send_while(vm2, vm3, tree, dest_dir / "new", lambda: change(tree))
    assert os.listdir(dest_dir) == []


def test_a_directory_that_was_tampered_with_is_not_renamed(
    vm2: Target, vm3: Target, tree: Path, large: Path, dest_dir: Path
) -> None:
    large.rename(tree / "z")

    def tamper() -> None:
        def unpacked() -> bool:
            return bool(list(dest_dir.glob(".remote-tasks.*/.hidden")))

        assert eventually(unpacked)
        next(dest_dir.glob(".remote-tasks.*/.hidden")).write_text("Hidden")

    tampering = threading.Thread(target=tamper)
    with pytest.raises(IntegrityError, match="with sha256"):
        send_while(vm2, vm3, tree, dest_dir / "new", tampering.start)
    tampering.join()
    assert os.listdir(dest_dir) == []


def test_a_connection_that_breaks_at_the_end_of_a_directory_is_not_tried_again(
    vm2: Target, vm3: Target, sshd3: Sshd, tree: Path, dest_dir: Path
) -> None:
    """It may be there under its final name, and another try would be refused for that."""
    runtime = get_runtime()

    class Cutting(Interfering):
        async def open(self, line: str, *, urgent: bool = False) -> Channel:
            channel = await self.inner.open(line, urgent=urgent)
            write = channel.write

            async def cutting(data: bytes) -> None:
                await write(data)
                if data == b"commit\n":
                    await asyncio.get_running_loop().run_in_executor(None, sshd3.kill_sessions)

            channel.write = cutting  # type: ignore[method-assign]
            return channel

    async def work() -> TransferResult:
        return await transfer(
            runtime.transport(vm2, SETTINGS),
            Cutting(runtime.transport(vm3, SETTINGS), lambda: None),
            str(tree),
            str(dest_dir / "new"),
        )

    with pytest.raises(TransferError, match="Look whether it is there"):
        runtime.call(work())
    assert eventually(lambda: not leftovers(dest_dir))


@pytest.mark.parametrize("end", ["source", "dest"])
def test_a_connection_that_breaks_in_a_directory_leaves_nothing(
    vm2: Target,
    vm3: Target,
    sshd2: Sshd,
    sshd3: Sshd,
    tree: Path,
    large: Path,
    dest_dir: Path,
    end: str,
) -> None:
    large.rename(tree / "sealed" / "large")
    cut = (sshd2 if end == "source" else sshd3).kill_sessions
    with pytest.raises(ConnectionLostError, match="vm2" if end == "source" else "vm3"):
        send_while(vm2, vm3, tree, dest_dir / "new", cut)
    assert eventually(lambda: os.listdir(dest_dir) == [])


@pytest.mark.parametrize("end", ["source", "dest"])
def test_a_connection_that_breaks_midway_leaves_nothing(
    vm2: Target, vm3: Target, sshd2: Sshd, sshd3: Sshd, large: Path, dest_dir: Path, end: str
) -> None:
    (dest_dir / "file").write_text("old")
    cut = (sshd2 if end == "source" else sshd3).kill_sessions
    with pytest.raises(ConnectionLostError, match="vm2" if end == "source" else "vm3"):
        send_while(vm2, vm3, large, dest_dir / "file", cut)
    assert eventually(lambda: os.listdir(dest_dir) == ["file"])
    assert (dest_dir / "file").read_text() == "old"
    assert send(vm2, vm3, large, dest_dir / "file").size == 25 * MEGABYTE


def test_a_directory_that_vanishes_midway_is_an_error(
    vm2: Target, vm3: Target, large: Path, dest_dir: Path
) -> None:
    with pytest.raises(DestinationError):
        send_while(vm2, vm3, large, dest_dir / "file", lambda: shutil.rmtree(dest_dir))


def test_a_file_that_was_tampered_with_is_not_renamed(
    vm2: Target, vm3: Target, large: Path, dest_dir: Path
) -> None:
    def tamper() -> None:
        assert eventually(lambda: leftovers(dest_dir))
        (name,) = leftovers(dest_dir)
        with (dest_dir / name).open("r+b") as file:
            file.seek(24 * MEGABYTE)
            file.write(b"x")  # beyond the end: a hole, which the real data will cover
        with (dest_dir / name).open("ab") as file:
            file.write(b"x" * 2 * MEGABYTE)

    with pytest.raises(IntegrityError, match="sent were 25000000 bytes"):
        send_while(vm2, vm3, large, dest_dir / "file", tamper)
    assert os.listdir(dest_dir) == []


def test_a_time_out_leaves_nothing(
    pair: tuple[Target, Target], large: Path, dest_dir: Path
) -> None:
    with pytest.raises(TransferError, match=r"not done within 0\.5 s"):
        send_while(*pair, large, dest_dir / "file", lambda: time.sleep(1), timeout=0.5)
    assert eventually(lambda: os.listdir(dest_dir) == [])


def test_cancel_leaves_nothing(pair: tuple[Target, Target], large: Path, dest_dir: Path) -> None:
    runtime = get_runtime()
    reached = threading.Event()

    async def work() -> TransferResult:
        return await transfer(
            Interfering(
                runtime.transport(pair[0], SETTINGS), lambda: (reached.set(), time.sleep(0.3))[1]
            ),
            runtime.transport(pair[1], SETTINGS),
            str(large),
            str(dest_dir / "file"),
        )

    job = runtime.start(work())
    assert reached.wait(5)
    job.cancel()
    assert job.wait(10)
    assert os.listdir(dest_dir) == []


def test_when_this_host_dies_the_far_side_tidies_up(
    vm2: Target, vm3: Target, large: Path, dest_dir: Path
) -> None:
    child = os.fork()
    if child == 0:
        try:
            send_while(vm2, vm3, large, dest_dir / "file", lambda: time.sleep(60))
        finally:
            os._exit(1)
    assert eventually(lambda: leftovers(dest_dir))
    os.kill(child, 9)
    os.waitpid(child, 0)
    assert eventually(lambda: os.listdir(dest_dir) == [])


def test_a_vm_that_is_down(vm2: Target, down: Target, source: Path, dest_dir: Path) -> None:
    with pytest.raises(ConnectError, match="vm9"):
        send(vm2, down, source, dest_dir / "x")
    with pytest.raises(ConnectError, match="vm9"):
        send(down, vm2, source, dest_dir / "x")
    assert os.listdir(dest_dir) == []


def words_of(stderr: bytes) -> list[str]:
    """Return what a script reported."""
    lines = [line.split() for line in stderr.decode().splitlines()]
    return [words[1] for words in lines if words[0] == "remote-tasks:"]


def test_another_tar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tar").write_text(
        "#!/bin/sh\necho 'unrecognized option: sort' >&2; exit 1\n"
    )
    (tmp_path / "bin" / "tar").chmod(0o755)
    done = subprocess.run(
        ["sh", "-c", send_script(str(tmp_path))],
        env={"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"},
        capture_output=True,
        timeout=10,
    )
    assert words_of(done.stderr) == ["notar"]


@pytest.mark.skipif(os.geteuid() != 0, reason="root is needed to become somebody else")
def test_what_the_login_cannot_read_back_is_said(tmp_path: Path) -> None:
    """Root sends what it alone may read; nobody gets it, with its mode."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "shadow").write_text("x")
    (source / "shadow").chmod(0)
    sent = subprocess.run(["sh", "-c", send_script(str(source))], capture_output=True, timeout=10)
    assert words_of(sent.stderr) == ["directory", "now", "now"]
    outside = Path(tempfile.mkdtemp())
    outside.chmod(0o777)
    try:
        script = receive_script(
            str(outside / "new"),
            kind="directory",
            basename="source",
            size=len(sent.stdout),
            mode="755",
            same_vm_source="",
        )
        done = subprocess.run(
            ["sh", "-c", script],
            user=65534,
            group=65534,
            cwd="/",
            input=sent.stdout,
            capture_output=True,
            timeout=10,
        )
        assert words_of(done.stderr)[0] == "unreadable"
        assert os.listdir(outside) == []
    finally:
        shutil.rmtree(outside)


@pytest.mark.skipif(os.geteuid() != 0, reason="root is needed to become somebody else")
def test_what_a_login_may_not_do_with_a_directory() -> None:
    """As nobody, who may read neither the directory nor what is in it."""
    outside = tempfile.mkdtemp()
    Path(outside).chmod(0o755)
    closed, partly = Path(outside, "closed"), Path(outside, "partly")
    closed.mkdir(mode=0o700)
    partly.mkdir(mode=0o755)
    (partly / "secret").write_text("x")
    (partly / "secret").chmod(0o600)
    try:
        for path, words in ((closed, ["unreadable"]), (partly, ["directory", "readerror"])):
            done = subprocess.run(
                ["sh", "-c", send_script(str(path))],
                user=65534,
                capture_output=True,
                cwd="/",
                timeout=10,
            )
            assert words_of(done.stderr) == words
    finally:
        shutil.rmtree(outside)


def test_memory_stays_flat(vm2: Target, vm3: Target, tmp_path: Path) -> None:
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(100 * MEGABYTE)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    send(vm2, vm3, path, tmp_path / "warm")
    before, peak, stop = resident(), [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.01):
            peak[0] = max(peak[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    send(vm2, vm3, path, tmp_path / "copy")
    stop.set()
    watcher.join()
    assert peak[0] - before < 40 * MEGABYTE


def test_a_failure_has_the_same_keys(source: Path) -> None:
    result = failed_transfer("vm2", "vm3", "/a", "/b", SourceError("no such file"))
    good = TransferResult("vm2", "vm3", "/a", "/b", 1, "0" * 64, 0.1).to_dict()
    assert result.keys() == good.keys()
    assert (result["success"], result["error"]) == (False, "SourceError: no such file")
