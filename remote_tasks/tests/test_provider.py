from __future__ import annotations

import importlib
import json
import subprocess
import sys
from importlib.metadata import entry_points, version

import remote_tasks
from remote_tasks.provider import get_provider_info


def test_airflow_finds_it() -> None:
    names = {entry.value for entry in entry_points(group="apache_airflow_provider")}
    assert "remote_tasks.provider:get_provider_info" in names
    assert version("remote-tasks") == remote_tasks.__version__


def test_what_it_names_exists() -> None:
    info = get_provider_info()
    for decorator in info["task-decorators"]:
        module, _, name = decorator["class-name"].rpartition(".")
        assert callable(getattr(importlib.import_module(module), name))
    for kind in ("operators", "sensors"):
        for entry in info[kind]:
            for module in entry["python-modules"]:
                importlib.import_module(module)


def test_it_fits_airflows_schema() -> None:
    import jsonschema
    from airflow.providers_manager import _create_provider_info_schema_validator

    validator = _create_provider_info_schema_validator()
    try:
        validator.validate(json.loads(json.dumps(get_provider_info())))
    except jsonschema.ValidationError as error:
        raise AssertionError(str(error)) from error


def test_everything_public_can_be_had_from_the_top() -> None:
    for name in remote_tasks.__all__:
        assert getattr(remote_tasks, name) is not None


def test_the_top_costs_nothing() -> None:
    """A DAG file is read every half a minute; a script wants no Airflow."""
    code = "import sys, remote_tasks; print(any(m in sys.modules for m in ('celery', 'airflow')))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "False\n"
