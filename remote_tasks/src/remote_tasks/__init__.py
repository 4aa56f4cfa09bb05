"""Commands and files on target VMs, whether a VM has a worker of its own or only an sshd.

From a script on the main host, through the VM's queue::

    import remote_tasks
    print(remote_tasks.execute_on_vm("vm2", "hostname")["output"])

From a DAG: ``@task.remote``, `RemoteCommandOperator`, `RemoteFileSensor`,
`RemoteFileTransferOperator`. From a shell: ``remote-tasks``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from remote_tasks.client import (
        check_vm_status,
        execute_on_all_vms,
        execute_on_vm,
        file_transfer,
    )
    from remote_tasks.operators import RemoteCommandOperator, RemoteFileTransferOperator
    from remote_tasks.sensors import RemoteFileSensor
    from remote_tasks.targets import Target, Targets, load_targets

__version__ = "1.0.0"

# Loaded when used: a DAG needs no broker library, a script no Airflow.
_HOMES = {
    "check_vm_status": "client",
    "execute_on_all_vms": "client",
    "execute_on_vm": "client",
    "file_transfer": "client",
    "RemoteCommandOperator": "operators",
    "RemoteFileTransferOperator": "operators",
    "RemoteFileSensor": "sensors",
    "Target": "targets",
    "Targets": "targets",
    "load_targets": "targets",
}

__all__ = [
    "RemoteCommandOperator",
    "RemoteFileSensor",
    "RemoteFileTransferOperator",
    "Target",
    "Targets",
    "check_vm_status",
    "execute_on_all_vms",
    "execute_on_vm",
    "file_transfer",
    "load_targets",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - one of the above
    if name in _HOMES:
        return getattr(import_module(f"remote_tasks.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'remote_tasks' has no attribute {name!r}")
