"""The words with which tests and benchmarks reach a host."""

from __future__ import annotations

import host_ssh
import pytest


def test_a_command_is_handed_on_as_one_word_and_by_ansibles_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANSIBLE_SSH_COMMON_ARGS", "-F '/a place/ssh_config'")
    monkeypatch.setenv("ANSIBLE_PRIVATE_KEY_FILE", "/a/key")
    words = host_ssh.as_root({"ansible_user": "rocky", "ansible_port": 2222}, "192.0.2.7", "echo 'a b' | wc")
    assert words[:7] == ["ssh", "-F", "/a place/ssh_config", "-i", "/a/key", "-p", "2222"]
    assert words[7:] == ["rocky@192.0.2.7", "sudo", "bash", "-c", "'echo '\"'\"'a b'\"'\"' | wc'"]


def test_without_settings_ssh_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANSIBLE_SSH_COMMON_ARGS", raising=False)
    monkeypatch.delenv("ANSIBLE_PRIVATE_KEY_FILE", raising=False)
    words = host_ssh.as_root({"ansible_user": "rocky"}, "192.0.2.7", "true")
    assert words == ["ssh", "-p", "22", "rocky@192.0.2.7", "sudo", "bash", "-c", "true"]
