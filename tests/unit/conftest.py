"""A package of one module for tests of installs, and the installer."""

from __future__ import annotations

import base64
import hashlib
import pathlib
import sys
import zipfile
from collections.abc import Callable

import pytest


@pytest.fixture(scope="session")
def uv() -> pathlib.Path:
    """What ./lab installs beside the interpreter that runs the tests."""
    path = pathlib.Path(sys.prefix).parent / "uv" / "bin" / "uv"
    assert path.exists(), "run `./lab test unit` once: it installs uv"
    return path


@pytest.fixture(scope="session")
def wheel() -> Callable[[pathlib.Path], pathlib.Path]:
    """Makes a wheel of one module, locked-example 1.0, in a directory."""
    return _wheel


def _wheel(directory: pathlib.Path) -> pathlib.Path:
    """A wheel of one module."""
    info = "locked_example-1.0.dist-info"
    files = {
        "locked_example.py": "here = True\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: locked-example\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digests = {
        name: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        for name, text in files.items()
    }
    record = "".join(f"{name},sha256={digests[name]},{len(text)}\n" for name, text in files.items())
    path = directory / "locked_example-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}.items():
            archive.writestr(name, text)
    return path
