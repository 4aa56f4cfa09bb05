"""What a task would find that looks for secrets."""

from __future__ import annotations

import os
import pathlib

import pytest
import secret_search

SECRET = b"Ab1" * 11
PADDED = b"Zm9vYmFyYmF6cXV4Zm9vYmFyYmF6cXV4Zm9vYmFyYmE="


@pytest.mark.parametrize(
    "content",
    [SECRET, b"amqp://vm2:" + SECRET + b"@main:5671/", b"\0\0" + SECRET + b"\xff", b"key = " + SECRET + b"\n"],
)
def test_a_secret_is_found_between_what_is_no_letter_and_no_digit(content: bytes) -> None:
    assert SECRET in secret_search.runs(content)


def test_padding_of_base64_belongs_to_a_secret() -> None:
    assert PADDED in secret_search.runs(b"fernet_key=" + PADDED + b"\n")


def test_shorter_runs_are_none() -> None:
    assert list(secret_search.runs(SECRET[:31] + b" " + SECRET[:31])) == []


def test_files_environment_and_the_own_memory_are_searched(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {name: f"{name}{os.urandom(24).hex()}" for name in ("infile", "inenvironment")}
    (tmp_path / "some.cfg").write_text(f"url = amqp://vm2:{values['infile']}@main\n")
    (tmp_path / "some.key").write_text("-----BEGIN PRIVATE KEY-----\n" + "MIGHAgEAMBMGByqG" * 4 + "\n")
    monkeypatch.setenv("SOME_URL", f"amqp://vm2:{values['inenvironment']}@main")
    files = [str(path) for path in tmp_path.iterdir()]
    monkeypatch.setattr(secret_search, "files", lambda: files)
    monkeypatch.setattr(os, "listdir", lambda _path: [str(os.getpid())])
    hashes = {secret_search.hashed("salt", value.encode()): name for name, value in values.items()}
    found = secret_search.search("salt", hashes)
    assert ("infile", str(tmp_path / "some.cfg")) in found
    assert ("inenvironment", "environment") in found
    assert ("infile", "/proc/*/mem") in found
    assert ("private key", str(tmp_path / "some.key")) in found
