"""The entry point by which Airflow finds this package."""

from __future__ import annotations

from typing import Any

from remote_tasks import __version__


def get_provider_info() -> dict[str, Any]:
    """Describe the package to Airflow.

    Returns:
        What Airflow's provider schema asks for.
    """
    return {
        "package-name": "remote-tasks",
        "name": "Remote tasks",
        "description": "Commands and files on target VMs, over SSH or on the spot.",
        "versions": [__version__],
        "operators": [
            {"integration-name": "Remote tasks", "python-modules": ["remote_tasks.operators"]}
        ],
        "sensors": [
            {"integration-name": "Remote tasks", "python-modules": ["remote_tasks.sensors"]}
        ],
        "integrations": [
            {
                "integration-name": "Remote tasks",
                "external-doc-url": "https://asyncssh.readthedocs.io/",
                "tags": ["software"],
            }
        ],
        "task-decorators": [
            {"name": "remote", "class-name": "remote_tasks.decorators.remote_task"}
        ],
    }
