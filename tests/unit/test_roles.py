"""Roles as data: their interface, their files, and what each of their tasks must and must not do."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator
from typing import Any

import pytest
import role_readme
import yaml

ROOT = pathlib.Path(__file__).parents[2]
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir())
PHASES = {"main", "preflight", "install", "configure", "service"}
#: Words for which a task that mentions them must hide its values.
SECRET = re.compile(r"password|secret(?!s_dir|_logging|_options)|fernet|basic_auth|definitions_missing")


def load(path: pathlib.Path) -> Any:
    return yaml.safe_load(path.read_text())


def task_files() -> list[pathlib.Path]:
    return sorted(ROOT.glob("roles/*/tasks/*.yml"))


def tasks(entries: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for entry in entries:
        yield entry
        for part in ("block", "rescue", "always"):
            yield from tasks(entry.get(part, []))


def leaves(value: Any) -> Iterator[str]:
    """Return the texts of a task, without those of its blocks' tasks."""
    if isinstance(value, dict):
        for name, entry in value.items():
            if name not in ("block", "rescue", "always"):
                yield from leaves(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from leaves(entry)
    elif isinstance(value, str):
        yield value


@pytest.mark.parametrize("role", ROLES)
def test_the_interface_is_what_the_defaults_are(role: str) -> None:
    options = load(ROOT / "roles" / role / "meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    defaults = load(ROOT / "roles" / role / "defaults/main.yml")
    assert list(options) == list(defaults)
    for name, option in options.items():
        assert option["description"], name
        if option.get("required"):
            assert "undef(" in defaults[name], f"{name} is required, and yet has a default"
        else:
            assert option["default"] == defaults[name], name


@pytest.mark.parametrize("role", ROLES)
def test_every_variable_bears_its_roles_name(role: str) -> None:
    for path in (ROOT / "roles" / role).glob("defaults/*.yml"):
        assert [name for name in load(path) if not name.startswith(f"{role}_")] == []
    for path in (ROOT / "roles" / role).glob("vars/*.yml"):
        assert [name for name in load(path) if not name.startswith(f"__{role}_")] == []


@pytest.mark.parametrize("role", ROLES)
def test_platforms_have_the_same_names(role: str) -> None:
    platforms = {path.stem: set(load(path)) for path in (ROOT / "roles" / role).glob("vars/[A-Z]*.yml")}
    assert set(platforms) in (set(), {"Debian", "RedHat"})
    if platforms:
        assert platforms["Debian"] == platforms["RedHat"]


@pytest.mark.parametrize("role", ROLES)
def test_the_readme_lists_the_interface(role: str) -> None:
    readme = ROOT / "roles" / role / "README.md"
    assert role_readme.render(ROOT / "roles" / role) == readme.read_text(), "run tools/role_readme.py"


@pytest.mark.parametrize("path", task_files(), ids=lambda path: f"{path.parts[-3]}/{path.stem}")
def test_tasks(path: pathlib.Path) -> None:
    for task in tasks(load(path)):
        name = task.get("name")
        assert name, f"{path}: a task without a name"
        if "block" in task:
            continue
        own = {key: value for key, value in task.items() if key not in ("name", "no_log", "when", "register")}
        logging = f"{path.parts[-3]}_secure_logging"
        hidden = task.get("no_log") == f"{{{{ {logging} }}}}"
        including = any("include_role" in key or "import_tasks" in key for key in task)
        names_only = (
            str(own).replace(logging, "").replace("airflow_secrets | list", "").replace("__airflow_secrets_dir", "")
        )
        if path.parts[-3] == "preflight":  # names of secrets, and sentences about them
            names_only = re.sub(
                r"cluster_secret(_problems)?\b|_accept_secrets|secrets_(read_only|directory)", "", names_only
            )
            names_only = names_only.replace("airflow_secrets | ", "").replace("__preflight_secrets", "")
            hidden = hidden or task.get("no_log") is True
        if SECRET.search(names_only) and not including:
            assert hidden, f"{path}: {name!r} handles a secret without no_log"
        assert not task.get("ignore_errors"), f"{path}: {name!r} ignores errors"


@pytest.mark.parametrize("path", task_files(), ids=lambda path: str(path.relative_to(ROOT / "roles")))
def test_no_task_has_an_escape_that_jinja_does_not_know(path: pathlib.Path) -> None:
    r"""Ansible hands ``join('\n')`` on as a backslash and an n, unless YAML has made a newline of it."""
    for task in tasks(load(path) or []):
        assert re.findall(r"""join\(["'][^"']*\\[nt]""", "\x00".join(leaves(task))) == [], task["name"]


def test_nothing_is_installed_outside_a_lock() -> None:
    for path in task_files():
        for task in tasks(load(path)):
            assert "ansible.builtin.pip" not in task, f"{path}: {task['name']!r}: pip outside a lock"
            arguments = task.get("ansible.builtin.command", {}).get("argv", [])
            if {"install", "sync"} & set(arguments):
                # --no-index: what was built from this very tree.
                assert {"--require-hashes", "--no-index"} & set(arguments), f"{path}: {task['name']!r}: no hashes"
                # What builds a source is in no lock.
                wheels = {"--no-build", "--only-binary=:all:", "--no-index"}
                assert wheels & set(arguments), f"{path}: {task['name']!r}: builds sources"


@pytest.mark.parametrize("lock", sorted(ROOT.glob("roles/airflow/files/**/*.txt")), ids=lambda path: path.name)
def test_a_lock_pins_and_hashes_everything(lock: pathlib.Path) -> None:
    logical = re.sub(r"\\\n\s*", " ", lock.read_text()).splitlines()
    requirements = [line for line in logical if line.strip() and not line.lstrip().startswith("#")]
    assert requirements
    for line in requirements:
        assert re.match(r"[a-z0-9.\[\]-]+==[^ ]+ .*--hash=sha256:[0-9a-f]{64}", line), line
    assert not re.search(r"https?://|--index-url", lock.read_text())


@pytest.mark.parametrize(
    "path",
    sorted([*ROOT.glob("roles/*/vars/*.yml"), *ROOT.glob("group_vars/all/*.yml")]),
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_no_variable_has_an_escape_that_jinja_hands_on(path: pathlib.Path) -> None:
    r"""A doubled backslash stays two in a variable: ``'\\1'`` puts a backslash and a 1 in, and not a group."""
    assert [text for text in leaves(load(path)) if re.search(r"\\\\\d", text)] == []


def test_no_name_is_both_kept_and_given() -> None:
    """What a task keeps for the rest of a run wins over what a later task is given under the same name."""
    plays = [play for path in [*sorted(ROOT.glob("playbooks/*.yml")), ROOT / "site.yml"] for play in load(path)]
    files = [load(path) or [] for path in task_files() + sorted(ROOT.glob("playbooks/tasks/*.yml"))]
    every = [task for entries in [*files, *(play.get("tasks", []) for play in plays)] for task in tasks(entries)]
    kept = {task["register"] for task in every if "register" in task}
    kept |= {name for task in every for name in task.get("ansible.builtin.set_fact", {}) if name != "cacheable"}
    given = {name for entry in [*every, *plays] for name in entry.get("vars", {})}
    # The one that playbooks of day 2 read from main, and hand to every host.
    assert kept & given <= {"mode"}
