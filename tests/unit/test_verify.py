"""What is found in an environment that is not as its lock says: a small one, made by the tools that make the hosts'."""

from __future__ import annotations

import json
import os
import pathlib
import py_compile
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import locks
import pytest

ROOT = pathlib.Path(__file__).parents[2]
NAME = "locked-example"
SITE = f"lib/python3.{sys.version_info.minor}/site-packages"
MODULE = f"{SITE}/locked_example.py"
COMPILED = f"{SITE}/__pycache__/locked_example.{sys.implementation.cache_tag}.pyc"
BUILT = '[project]\nname = "built-here"\nversion = "2.0"\n'


@pytest.fixture(scope="module")
def installed(
    tmp_path_factory: pytest.TempPathFactory, uv: pathlib.Path, wheel: Callable[[pathlib.Path], pathlib.Path]
) -> pathlib.Path:
    directory = tmp_path_factory.mktemp("install")
    environment = directory / "env-1"
    (directory / "current").symlink_to("env-1")
    settings = {name: value for name, value in os.environ.items() if not name.startswith("UV_")}
    settings |= {
        "UV_NO_CONFIG": "1",
        "UV_OFFLINE": "1",
        "UV_CACHE_DIR": str(directory / "cache"),
        "UV_LINK_MODE": "copy",
    }
    for arguments in (
        ["venv", "--no-python-downloads", f"--python={sys.executable}", str(environment)],
        ["pip", "install", "--compile-bytecode", f"--python={environment}/bin/python", str(wheel(directory))],
    ):
        subprocess.run([str(uv), *arguments], check=True, capture_output=True, env=settings)
    assert (environment / COMPILED).exists()
    return environment


@pytest.fixture
def environment(installed: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    shutil.copytree(installed, tmp_path / "env-1", symlinks=True)
    (tmp_path / "current").symlink_to("env-1")
    return tmp_path / "env-1"


def look(environment: pathlib.Path) -> subprocess.CompletedProcess[str]:
    """As the role does, with the interpreter that the environment has."""
    script = (ROOT / "roles/airflow/files/verify_environment.py").read_text()
    command = [sys.executable, "-ISB", "-", str(environment)]
    return subprocess.run(command, input=script, capture_output=True, text=True, check=False)


def problems(environment: pathlib.Path) -> list[str]:
    answer = look(environment)
    assert answer.returncode == 0, answer.stderr
    found: list[str] = json.loads(answer.stdout)["problems"]
    return found


def test_an_environment_as_it_was_installed(environment: pathlib.Path) -> None:
    answer = json.loads(look(environment).stdout)
    assert answer["problems"] == []
    assert answer["packages"][NAME]["version"] == "1.0"
    assert answer["files"] == sum(1 for path in environment.rglob("*") if path.is_symlink() or path.is_file())
    assert {"pyvenv.cfg", "bin/python", "bin/activate"} <= set(answer["own"])


def appended(environment: pathlib.Path) -> None:
    with (environment / MODULE).open("a") as file:
        file.write("# by hand\n")
    py_compile.compile(str(environment / MODULE), str(environment / COMPILED))


def other_code(environment: pathlib.Path) -> None:
    """What would run is another than the source, whose time and size it has."""
    module, compiled = environment / MODULE, environment / COMPILED
    header = compiled.read_bytes()[:16]
    py_compile.compile(str(ROOT / "tools/report_counts.py"), str(compiled), doraise=True)
    compiled.write_bytes(header + compiled.read_bytes()[16:])
    run = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(module.parent)!r}); import locked_example as x"]
    shown = subprocess.run([*run[:2], run[2] + "; print(x.__doc__)"], capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("Adds up pytest's own reports")


TAMPERED: list[tuple[Callable[[pathlib.Path], Any], str]] = [
    (appended, f"{MODULE} of {NAME} was changed"),
    (other_code, f"{COMPILED} is not what locked_example.py compiles to"),
    (lambda env: (env / COMPILED).write_bytes(b"\0" * 20), f"{COMPILED} is not what locked_example.py compiles to"),
    (lambda env: (env / MODULE).unlink(), f"{MODULE} of {NAME} is missing"),
    (lambda env: (env / SITE / "extra.pth").write_text("import os"), f"{SITE}/extra.pth is of no package"),
    (lambda env: (env / SITE / "extra.pyc").write_text(""), f"{SITE}/extra.pyc is of no package"),
    (
        lambda env: (env / COMPILED).with_name(f"extra.{sys.implementation.cache_tag}.pyc").write_text(""),
        f"{SITE}/__pycache__/extra.{sys.implementation.cache_tag}.pyc is of no package",
    ),
    (lambda env: (env / MODULE).chmod(0o664), f"{MODULE} can be written by others (0664)"),
    (lambda env: (env / SITE).chmod(0o777), f"{SITE} can be written by others (0777)"),
    (lambda env: (env / SITE / "six.py").symlink_to("/srv/six.py"), f"{SITE}/six.py is no plain file"),
]


@pytest.mark.parametrize(("tamper", "problem"), TAMPERED, ids=[problem.split("/")[-1] for _, problem in TAMPERED])
def test_what_was_changed_is_named_and_nothing_else(
    environment: pathlib.Path, tamper: Callable[[pathlib.Path], Any], problem: str
) -> None:
    tamper(environment)
    assert problem in problems(environment)
    assert len(problems(environment)) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_named(environment: pathlib.Path) -> None:
    os.chown(environment / MODULE, 65534, 65534)
    assert problems(environment) == [f"{MODULE} is owned by the user 65534"]


def test_another_environment_in_use_is_named(environment: pathlib.Path) -> None:
    link = environment.with_name("current")
    link.unlink()
    link.symlink_to("env-0")
    assert problems(environment) == [f"{link} points at env-0"]


def test_an_environment_that_is_not_there(tmp_path: pathlib.Path) -> None:
    answer = look(tmp_path / "env-1")
    assert answer.returncode != 0
    assert "Run site.yml" in answer.stderr


LOCK = f"""# a comment
{NAME}==1.0 \\
    --hash=sha256:00 \\
    --hash=sha256:01
    # via somebody
only-new==3.0 ; python_full_version >= '3.12' \\
    --hash=sha256:02
only-arm==4.0 ; platform_machine == 'aarch64' \\
    --hash=sha256:03
"""


def host(packages: dict[str, str], **more: Any) -> dict[str, Any]:
    """A host's answer."""
    found = {name: {"version": version, "record": f"files of {version}"} for name, version in packages.items()}
    said = {"python": "3.11.2", "machine": "x86_64", "packages": found, "own": {}, "files": 9, "problems": [], **more}
    return {"rc": 0, "stdout": json.dumps(said)}


GOOD = {NAME: "1.0", "built-here": "2.0"}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (host(GOOD), []),
        (host({**GOOD, "only-new": "3.0"}, python="3.13.1"), []),
        (host(GOOD, python="3.13.1"), ["only-new 3.0 is missing"]),
        (host({**GOOD, "only-new": "3.0"}), ["only-new 3.0 is not in the lock"]),
        (host({**GOOD, "only-arm": "4.0"}, machine="aarch64"), []),
        (host({**GOOD, NAME: "0.9"}), [f"{NAME} is 0.9, and 1.0 in the lock"]),
        (host({NAME: "1.0"}), ["built-here 2.0 is missing"]),
        (host({**GOOD, "pip": "26.3"}, problems=["x was changed"]), ["pip 26.3 is not in the lock", "x was changed"]),
        ({"rc": 1, "stdout": "", "stderr": "it is\nnot there"}, ["It could not be looked at: it is not there"]),
        ({"failed": True, "msg": "no such file"}, ["It could not be looked at: no such file"]),
    ],
)
def test_a_host_is_held_against_the_lock(answer: dict[str, Any], expected: list[str]) -> None:
    assert locks.differences(answer, LOCK, BUILT, {}) == expected


def test_what_hides_itself_on_one_host_shows_beside_another() -> None:
    other = json.loads(host(GOOD, own={"pyvenv.cfg": "a"})["stdout"])
    other["packages"][NAME]["record"] = "other files"
    other["own"] = {"pyvenv.cfg": "b"}
    answer = {"rc": 0, "stdout": json.dumps(other)}
    reference = host(GOOD, own={"pyvenv.cfg": "a"})
    assert locks.differences(answer, LOCK, BUILT, reference) == [
        f"the list of {NAME}'s files (RECORD) is another than on main",
        "pyvenv.cfg is another than on main",
    ]
    assert locks.differences(answer, LOCK, BUILT, answer) == []
    # Another release of the distribution: other wheels, and another Python.
    elsewhere = host(GOOD, python="3.13.5", own={"pyvenv.cfg": "c"})
    assert locks.differences(answer, LOCK, BUILT, elsewhere) == []


def test_a_host_with_many_problems_is_cut_and_counted() -> None:
    said = locks.differences(host(GOOD, problems=[f"file {n} was changed" for n in range(50)]), LOCK, BUILT, {})
    assert len(said) == locks.SHOWN + 1
    assert said[-1] == "... and 30 more"


def test_the_lock_of_the_hosts_can_be_read() -> None:
    for lock in ROOT.glob("roles/airflow/files/locks/*.txt"):
        for python in ("3.11.2", "3.12.9", "3.13.5"):
            found = locks.packages(lock.read_text(), python, "x86_64")
            assert found["apache-airflow"] == lock.stem
            assert all(version[0].isdigit() for version in found.values())
