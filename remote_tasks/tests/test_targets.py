from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from remote_tasks.errors import TargetsFileError, UnknownTargetError
from remote_tasks.targets import Settings, Target, load_targets, parse_targets, queue_for

VM2: dict[str, Any] = {
    "name": "vm2",
    "transport": "ssh",
    "host": "192.168.83.132",
    "port": 22,
    "user": "rocky",
    "key_file": "/etc/airflow/ssh/id_ed25519",
    "known_hosts_file": "/etc/airflow/ssh/known_hosts",
    "queue": "vm2_queue",
    "description": "Target VM 2",
}
VM1: dict[str, Any] = {
    "name": "vm1",
    "transport": "local",
    "host": "192.168.83.131",
    "queue": "vm1_queue",
}


def parse(*targets: object, **top: object) -> Any:
    return parse_targets(json.dumps({"targets": list(targets), **top}), "targets.json")


def test_a_full_file() -> None:
    targets = parse(VM1, VM2, settings={"command_timeout": 600, "retry_max": 5})
    assert [target.name for target in targets] == ["vm1", "vm2"]
    assert targets.get("vm2") == Target(**VM2)
    assert targets.get("vm1").transport == "local"
    assert targets.settings == Settings(command_timeout=600, retry_max=5)
    assert len(targets) == 2


def test_a_target_says_who_it_is() -> None:
    assert str(Target(**VM2)) == "vm2 (rocky@192.168.83.132 port 22)"
    assert str(Target(**VM1)) == "vm1 (local, 192.168.83.131)"
    assert str(Target(**VM1, user="rocky")) == "vm1 (local as rocky, 192.168.83.131)"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": None}, 'target number 1: field "name": None'),
        ({"name": "vm 2"}, "'vm 2' is not a name"),
        ({"transport": "telnet"}, "field \"transport\": 'telnet' will not do; write one of local"),
        ({"host": ""}, "field \"host\": '' will not do; write an address"),
        ({"port": "22"}, "field \"port\": '22' will not do; write a number from 1 to 65535"),
        ({"port": 70000}, "from 1 to 65535"),
        ({"port": True}, "from 1 to 65535"),
        ({"user": 5}, "the login on the VM"),
        ({"key_file": "id_ed25519"}, "the absolute path of the private key"),
        ({"queue": 5}, "a queue's name like 'vm2_queue'"),
        ({"known_hosts_file": ""}, "the absolute path of the pinned host keys"),
        ({"colour": "red"}, 'unknown field "colour"; the fields are: description, host'),
        ({"description": 5}, "write a text"),
    ],
)
def test_a_wrong_field_is_named_with_what_to_write(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TargetsFileError) as caught:
        parse({**VM2, **change})
    assert message in str(caught.value)
    assert str(caught.value).startswith("targets.json: target ")


@pytest.mark.parametrize("key", ["name", "transport", "host", "queue", "user", "key_file"])
def test_a_missing_field_is_named(key: str) -> None:
    with pytest.raises(TargetsFileError, match=f'field "{key}" is missing; write '):
        parse({k: v for k, v in VM2.items() if k != key})


def test_local_and_none_need_no_login() -> None:
    targets = parse(VM1, {**VM1, "name": "vm9", "queue": "vm9_queue", "transport": "none"})
    assert targets.get("vm9").transport == "none"


def test_a_local_target_may_have_a_login() -> None:
    assert parse({**VM1, "user": "rocky"}).get("vm1").user == "rocky"
    with pytest.raises(TargetsFileError, match="write the login on the VM"):
        parse({**VM1, "user": 5})


def test_names_and_queues_are_unique() -> None:
    with pytest.raises(TargetsFileError, match='target "vm2": field "name": used twice'):
        parse(VM2, VM2)
    with pytest.raises(TargetsFileError, match="already belongs to 'vm2'; write 'vm3_queue'"):
        parse(VM2, {**VM2, "name": "vm3"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"connect_timeout": 0}, "seconds, above 0"),
        ({"command_timeout": "1m"}, "or null for no limit"),
        ({"output_limit": 5}, "bytes, 1024 or more"),
        ({"retry_max": -1}, "a whole number, 0 or more"),
        ({"retry_maximum": 1}, 'unknown field "retry_maximum"'),
        ([], "expected an object, got list"),
    ],
)
def test_wrong_settings_are_named(settings: object, message: str) -> None:
    with pytest.raises(TargetsFileError, match=r"targets\.json: settings") as caught:
        parse(VM2, settings=settings)
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"targets": {}}', '{"targets": [5]}', "{}"])
def test_any_other_text_is_refused_by_name(text: str) -> None:
    with pytest.raises(TargetsFileError, match=r"^targets\.json: "):
        parse_targets(text, "targets.json")


def test_an_unknown_vm_lists_the_known_ones() -> None:
    with pytest.raises(
        UnknownTargetError, match=r"Unknown VM 'vm7'. Known are: vm1, vm2"
    ) as caught:
        parse(VM1, VM2).get("vm7")
    assert isinstance(caught.value, ValueError)


def test_the_file_is_found_by_its_variable_and_read_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps({"targets": [VM1]}))
    monkeypatch.setenv("REMOTE_TASKS_TARGETS", str(path))
    first = load_targets()
    assert load_targets() is first
    new = tmp_path / "new"
    new.write_text(json.dumps({"targets": [VM2]}))
    new.rename(path)
    assert [target.name for target in load_targets()] == ["vm2"]


def test_no_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TargetsFileError, match=r"no such file\. Run the playbook"):
        load_targets(tmp_path / "none.json")
    with pytest.raises(TargetsFileError, match="cannot be read"):
        load_targets(tmp_path)


def test_the_queue_is_known_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, targets_file: Callable[..., Path]
) -> None:
    monkeypatch.setenv("REMOTE_TASKS_TARGETS", str(tmp_path / "none.json"))
    assert queue_for("vm2") == "vm2_queue"
    assert queue_for("{{ params.vm }}") == "all_vms_queue"
    targets_file(Target(**{**VM2, "queue": "special"}))
    assert queue_for("vm2") == "special"
    with pytest.raises(UnknownTargetError):
        queue_for("vm7")
