"""What a lock does not vouch for is not installed: the role's own commands, on a lock of one package in a directory."""

from __future__ import annotations

import hashlib
import io
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable

import pytest

ROOT = pathlib.Path(__file__).parents[2]
NAME = "locked-example"
MakeWheel = Callable[[pathlib.Path], pathlib.Path]


def source(directory: pathlib.Path, wheel: MakeWheel) -> pathlib.Path:
    """The source of the same, which builds without anything else."""
    built = wheel(directory)
    backend = f"""
import pathlib, shutil
def build_wheel(directory, *_):
    shutil.copy(pathlib.Path(__file__).with_name({built.name!r}), directory)
    return {built.name!r}
"""
    files = {
        "pyproject.toml": b'[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "backend.py": backend.encode(),
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1.0\n".encode(),
        built.name: built.read_bytes(),
    }
    built.unlink()
    path = directory / "locked_example-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"locked_example-1.0/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def command(step: str, environment: pathlib.Path) -> list[str]:
    """A step of what makes the environment on a host; it is run in the installer's directory."""
    program = ROOT / "roles/airflow/files/make_environment"
    script = f'source "$1"; environment=$2 python=$3; {step}'
    return ["bash", "-euc", script, "bash", str(program), str(environment), sys.executable]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Packages from the directory `index` alone; no settings of whoever runs the tests."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_"))}
    cache = str(tmp_path_factory.mktemp("cache"))
    return own | {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": "index",
        "PIP_CACHE_DIR": cache,
        "UV_NO_CONFIG": "1",
        "UV_OFFLINE": "1",
        "UV_FIND_LINKS": "index",
        "UV_CACHE_DIR": cache,
    }


@pytest.fixture(scope="module")
def installer(tmp_path_factory: pytest.TempPathFactory, settings: dict[str, str], uv: pathlib.Path) -> pathlib.Path:
    """The installer's own environment, with the pip that Python brings, and with uv."""
    directory = tmp_path_factory.mktemp("installer")
    (directory / "installer.txt").touch()
    prepare = command("prepare_installer", directory / "environment")
    subprocess.run(prepare, check=True, capture_output=True, env=settings, cwd=directory)
    (directory / "venv/bin/uv").symlink_to(uv)
    return directory


@pytest.mark.parametrize("kind", ["good", "wrong", "none", "source"])
@pytest.mark.parametrize("tool", ["uv", "pip"])
def test_only_what_the_lock_vouches_for_is_installed(
    tmp_path: pathlib.Path, settings: dict[str, str], installer: pathlib.Path, wheel: MakeWheel, tool: str, kind: str
) -> None:
    index = tmp_path / "index"
    index.mkdir()
    package = source(index, wheel) if kind == "source" else wheel(index)
    digest = "0" * 64 if kind == "wrong" else hashlib.sha256(package.read_bytes()).hexdigest()
    lock = f"{NAME}==1.0" + ("" if kind == "none" else f" --hash=sha256:{digest}")
    environment = tmp_path / "environment"
    if tool == "uv":
        (installer / "airflow.txt").write_text(lock)
        install = command("install_airflow", environment)
    else:
        environment = installer / "venv"
        (installer / "installer.txt").write_text(lock)
        install = command("prepare_installer", environment)
    (installer / "index").unlink(missing_ok=True)
    (installer / "index").symlink_to(index)
    done = subprocess.run(install, check=False, capture_output=True, text=True, env=settings, cwd=installer)
    said = done.stdout + done.stderr
    left = [*environment.glob("lib/python3*/site-packages/locked_example*")]
    for path in left:  # where pip installs, the next test does too
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert (done.returncode == 0, bool(left)) == (kind == "good", kind == "good"), said
    assert {"good": "", "wrong": "hash", "none": "hash", "source": NAME}[kind] in said.lower()
