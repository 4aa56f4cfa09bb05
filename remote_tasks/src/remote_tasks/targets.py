"""The VMs that commands can be sent to, read from the file that Ansible renders on each host.

The file is JSON. A target says how *this host* reaches the VM: ``ssh``, ``local`` (this host is the
VM) or ``none`` (known, but only its queue leads there).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from remote_tasks.errors import TargetsFileError, UnknownTargetError

DEFAULT_TARGETS_FILE = "/etc/airflow/targets.json"
TARGETS_FILE_VARIABLE = "REMOTE_TASKS_TARGETS"

ALL_VMS_QUEUE = "all_vms_queue"
FILE_TRANSFER_QUEUE = "file_transfer_queue"

TRANSPORTS = ("local", "ssh", "none")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def queue_by_contract(vm: str) -> str:
    """Return the queue that belongs to a VM by the naming rule alone.

    Args:
        vm: The VM's name.

    Returns:
        The queue's name, ``vm2_queue`` for ``vm2``.
    """
    return f"{vm}_queue"


@dataclass(frozen=True, slots=True)
class Target:
    """One VM.

    Attributes:
        name: The VM's name in the inventory.
        transport: How this host reaches it: ``ssh``, ``local`` or ``none``.
        host: Its address.
        queue: The queue whose worker acts for it.
        port: The port of its sshd.
        user: The login on it that commands run as; with ``local`` by default the worker's own user.
        key_file: The private key for it, on this host.
        known_hosts_file: The file that pins its host key, on this host.
        description: For people.
    """

    name: str
    transport: str
    host: str
    queue: str
    port: int = 22
    user: str = ""
    key_file: str = ""
    known_hosts_file: str = ""
    description: str = ""

    def __str__(self) -> str:
        """Name the VM as error messages do."""
        if self.transport == "local" and self.user:
            return f"{self.name} (local as {self.user}, {self.host})"
        if self.transport != "ssh":
            return f"{self.name} ({self.transport}, {self.host})"
        return f"{self.name} ({self.user}@{self.host} port {self.port})"


@dataclass(frozen=True, slots=True)
class Settings:
    """Limits and times that hold for all targets.

    Attributes:
        connect_timeout: Seconds to be connected and logged in, and to get a session.
        command_timeout: Seconds a command may run; ``None`` for as long as it takes.
        output_limit: Bytes kept of each of stdout and stderr, the last ones.
        kill_grace: Seconds between SIGTERM and SIGKILL.
        keepalive_interval: Seconds of silence after which the VM is asked whether it is there.
        keepalive_count: Unanswered questions after which the connection counts as dead.
        max_sessions: Commands on one connection at once; sshd's own MaxSessions is 10.
        max_connections: Connections to one VM from one process.
        retry_delay: Seconds between two tries of a Celery task.
        retry_max: Tries after the first one.
    """

    connect_timeout: float = 10.0
    command_timeout: float | None = None
    output_limit: int = 1024 * 1024
    kill_grace: float = 3.0
    keepalive_interval: float = 15.0
    keepalive_count: int = 3
    max_sessions: int = 10
    max_connections: int = 4
    retry_delay: float = 60.0
    retry_max: int = 3


@dataclass(frozen=True, slots=True)
class Targets:
    """All targets of this host.

    Attributes:
        by_name: The targets in the file's order.
        settings: The common settings.
        source: The file they come from.
    """

    by_name: Mapping[str, Target]
    settings: Settings = field(default_factory=Settings)
    source: str = ""

    def __iter__(self) -> Iterator[Target]:
        """Iterate over the targets in the file's order."""
        return iter(self.by_name.values())

    def __len__(self) -> int:
        """Return the number of targets."""
        return len(self.by_name)

    def get(self, name: str) -> Target:
        """Return one target.

        Args:
            name: The VM's name.

        Returns:
            The target.

        Raises:
            UnknownTargetError: No VM has this name.
        """
        try:
            return self.by_name[name]
        except (KeyError, TypeError):
            known = ", ".join(self.by_name) or "none"
            raise UnknownTargetError(
                f"Unknown VM {name!r}. Known are: {known} (from {self.source or 'memory'})."
            ) from None


def targets_path() -> Path:
    """Return the path of the targets file.

    Returns:
        The value of ``REMOTE_TASKS_TARGETS``, else ``/etc/airflow/targets.json``.
    """
    return Path(os.environ.get(TARGETS_FILE_VARIABLE) or DEFAULT_TARGETS_FILE)


_cache: dict[tuple[str, int, int, int], Targets] = {}


def load_targets(path: str | os.PathLike[str] | None = None) -> Targets:
    """Load and validate the targets file; an unchanged file is parsed once in a process.

    Args:
        path: The file; by default as `targets_path` says.

    Returns:
        The targets.

    Raises:
        TargetsFileError: The file cannot be read or is wrong; the message says where.
    """
    file = Path(path) if path is not None else targets_path()
    try:
        status = file.stat()
        # The inode is part of the key: Ansible replaces the file, within one tick of the clock too.
        key = (str(file), status.st_mtime_ns, status.st_size, status.st_ino)
        if key in _cache:
            return _cache[key]
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise TargetsFileError(
            f"{file}: no such file. Run the playbook for this host, or set "
            f"{TARGETS_FILE_VARIABLE} to the path of a targets file."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise TargetsFileError(f"{file}: cannot be read: {error}") from error
    targets = parse_targets(text, str(file))
    _cache.clear()
    _cache[key] = targets
    return targets


def parse_targets(text: str, source: str) -> Targets:
    """Parse and validate the text of a targets file.

    Args:
        text: JSON with ``targets``, a list, and optionally ``settings``, an object.
        source: What to call the file in messages.

    Returns:
        The targets.

    Raises:
        TargetsFileError: With file, target and field, and what to write instead.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise TargetsFileError(f"{source}: not JSON: {error}") from error
    top = _object(data, source)
    _refuse_unknown(top, {"targets", "settings"}, source)
    entries = top.get("targets")
    if not isinstance(entries, list):
        raise TargetsFileError(
            f'{source}: field "targets": expected a list of objects, got {_kind(entries)}.'
        )
    settings = _settings(top.get("settings", {}), source)
    by_name: dict[str, Target] = {}
    queues: dict[str, str] = {}
    for position, entry in enumerate(entries):
        target = _target(entry, source, position)
        where = f'{source}: target "{target.name}"'
        if target.name in by_name:
            raise TargetsFileError(f'{where}: field "name": used twice; give each VM its own name.')
        if target.queue in queues:
            raise TargetsFileError(
                f'{where}: field "queue": {target.queue!r} already belongs to '
                f"{queues[target.queue]!r}; write {queue_by_contract(target.name)!r}."
            )
        by_name[target.name] = target
        queues[target.queue] = target.name
    return Targets(by_name=by_name, settings=settings, source=source)


def queue_for(vm: str) -> str:
    """Return the queue for a VM, wherever this is asked, a dag-processor without the file included.

    Args:
        vm: The VM's name; one that is only known at run time (a template) is served by the general
            worker, which reaches every VM in both modes.

    Returns:
        The queue's name.

    Raises:
        UnknownTargetError: There is a targets file, and it has no such VM.
    """
    if "{{" in vm or "{%" in vm:
        return ALL_VMS_QUEUE
    try:
        targets = load_targets()
    except TargetsFileError:
        return queue_by_contract(vm)
    return targets.get(vm).queue


def _target(entry: object, source: str, position: int) -> Target:
    label = entry.get("name") if isinstance(entry, dict) else None
    where = f'{source}: target "{label}"' if label else f"{source}: target number {position + 1}"
    data = _object(entry, where)
    _refuse_unknown(data, {f.name for f in fields(Target)}, where)
    name = _checked(data, "name", where, _is_text, "a name like 'vm2'")
    if not _NAME.fullmatch(name):
        raise TargetsFileError(
            f'{where}: field "name": {name!r} is not a name; use letters, digits, ".", "_", "-".'
        )
    transport = _checked(
        data, "transport", where, lambda v: v in TRANSPORTS, f"one of {', '.join(TRANSPORTS)}"
    )
    needed = ("user", "key_file", "known_hosts_file") if transport == "ssh" else ()
    values: dict[str, Any] = {"name": name, "transport": transport}
    for key, meaning in (
        ("host", "an address like '192.168.83.130'"),
        ("queue", f"a queue's name like {queue_by_contract(name)!r}"),
    ):
        values[key] = _checked(data, key, where, _is_text, meaning)
    for key, meaning in (
        ("user", "the login on the VM"),
        ("key_file", "the absolute path of the private key"),
        ("known_hosts_file", "the absolute path of the pinned host keys"),
    ):
        if key in needed or data.get(key):
            check = _is_text if key == "user" else _is_path
            values[key] = _checked(data, key, where, check, meaning)
    if "port" in data:
        values["port"] = _checked(data, "port", where, _is_port, "a number from 1 to 65535")
    if "description" in data:
        values["description"] = _checked(
            data, "description", where, lambda v: isinstance(v, str), "a text"
        )
    return Target(**values)


def _settings(entry: object, source: str) -> Settings:
    where = f"{source}: settings"
    data = _object(entry, where)
    _refuse_unknown(data, {f.name for f in fields(Settings)}, where)
    checks: dict[str, tuple[Callable[[Any], bool], str]] = {
        "connect_timeout": (_is_positive, "seconds, above 0"),
        "command_timeout": (
            lambda v: v is None or _is_positive(v),
            "seconds, above 0, or null for no limit",
        ),
        "output_limit": (lambda v: _is_count(v) and v >= 1024, "bytes, 1024 or more"),
        "kill_grace": (lambda v: v == 0 or _is_positive(v), "seconds, 0 or more"),
        "keepalive_interval": (_is_positive, "seconds, above 0"),
        "keepalive_count": (lambda v: _is_count(v) and v >= 1, "a whole number, 1 or more"),
        "max_sessions": (lambda v: _is_count(v) and v >= 1, "a whole number, 1 or more"),
        "max_connections": (lambda v: _is_count(v) and v >= 1, "a whole number, 1 or more"),
        "retry_delay": (lambda v: v == 0 or _is_positive(v), "seconds, 0 or more"),
        "retry_max": (_is_count, "a whole number, 0 or more"),
    }
    values = {key: _checked(data, key, where, *checks[key]) for key in data}
    return Settings(**values)


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TargetsFileError(f"{where}: expected an object, got {_kind(value)}.")
    return value


def _refuse_unknown(data: Mapping[str, Any], known: set[str], where: str) -> None:
    if unknown := sorted(set(data) - known):
        raise TargetsFileError(
            f'{where}: unknown field "{unknown[0]}"; the fields are: {", ".join(sorted(known))}.'
        )


def _checked(
    data: Mapping[str, Any], key: str, where: str, check: Callable[[Any], bool], meaning: str
) -> Any:  # noqa: ANN401 - the value has the type that the check accepts
    value = data.get(key, MISSING)
    if value is MISSING:
        raise TargetsFileError(f'{where}: field "{key}" is missing; write {meaning}.')
    if not check(value):
        raise TargetsFileError(f'{where}: field "{key}": {value!r} will not do; write {meaning}.')
    return value


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def _is_path(value: object) -> bool:
    return _is_text(value) and str(value).startswith("/")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_port(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 65535


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e9


def _kind(value: object) -> str:
    return "nothing" if value is None else f"{type(value).__name__} ({value!r:.40})"
