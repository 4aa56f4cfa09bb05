"""The control node's tools agree with each other."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys
import tomllib

import yaml


def lock(project: pathlib.Path) -> dict[str, str]:
    packages = tomllib.loads((project / "uv.lock").read_text())["package"]
    return {package["name"]: package["version"] for package in packages}


def test_requirements_are_the_collections_of_the_locked_ansible_package(
    project: pathlib.Path,
) -> None:
    wanted = yaml.safe_load((project / "requirements.yml").read_text())["collections"]
    program = pathlib.Path(sys.executable).parent / "ansible-galaxy"
    answer = subprocess.run(
        [program, "collection", "list", "--format", "json"],
        check=True,
        capture_output=True,
        text=True,
    )
    installed = {
        name: entry["version"]
        for collections in json.loads(answer.stdout).values()
        for name, entry in collections.items()
    }
    assert {entry["name"]: entry["version"] for entry in wanted} == {
        entry["name"]: installed.get(entry["name"]) for entry in wanted
    }


def test_every_collection_that_is_used_is_required(project: pathlib.Path) -> None:
    required = {entry["name"] for entry in yaml.safe_load((project / "requirements.yml").read_text())["collections"]}
    names = re.compile(r"^[ -]*((?:ansible|community)\.(?!builtin)\w+)\.\w+:", re.MULTILINE)
    used = {
        match
        for directory in ("roles", "playbooks", "molecule")
        for file in (project / directory).rglob("*.yml")
        for match in names.findall(file.read_text())
    }
    assert used <= required


def test_every_direct_dependency_is_pinned_to_the_version_of_the_lock(
    project: pathlib.Path,
) -> None:
    locked = lock(project)
    pyproject = tomllib.loads((project / "pyproject.toml").read_text())
    direct = pyproject["project"]["dependencies"] + [
        each for group in pyproject["dependency-groups"].values() for each in group
    ]
    for requirement in direct:
        match = re.fullmatch(r"([a-z0-9-]+)(?:\[\w+\])?==([0-9.]+)", requirement)
        assert match, f"{requirement} is not pinned"
        assert locked[match[1]] == match[2]


def test_what_runs_beside_the_lock_is_hashed(project: pathlib.Path) -> None:
    for name in ("uv-requirements.txt", "airflow-test-requirements.txt"):
        text = (project / "tools" / name).read_text()
        for line in text.replace("\\\n", " ").splitlines():
            if line and not line.startswith("#"):
                assert "==" in line and "--hash=sha256:" in line, f"{name}: {line[:60]}"


def test_the_lock_of_the_tools_has_wheels_from_the_index_alone_each_with_its_hash(project: pathlib.Path) -> None:
    first, *packages = tomllib.loads((project / "uv.lock").read_text())["package"]
    assert first["source"] == {"virtual": "."}  # this project, which is not installed
    assert packages
    for package in packages:
        assert list(package["source"]) == ["registry"], package["name"]
        assert package["wheels"], package["name"]
        assert all(wheel["hash"].startswith("sha256:") for wheel in package["wheels"]), package["name"]


def test_passwords_below_an_inventory_are_not_read_as_hosts(project: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "hosts.yml").write_text("all: {hosts: {main: {}}}")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "admin_password").write_text("a-password")
    answer = subprocess.run(
        [pathlib.Path(sys.executable).parent / "ansible-inventory", "-i", tmp_path, "--list"],
        check=True,
        capture_output=True,
        text=True,
        cwd=project,
        env={"ANSIBLE_CONFIG": str(project / "ansible.cfg"), "PATH": "/usr/bin:/bin"},
    )
    assert "a-password" not in answer.stdout


def test_ci_runs_the_command_that_the_readme_names(project: pathlib.Path) -> None:
    assert "\n./lab test\n" in (project / ".ci" / "run").read_text()
