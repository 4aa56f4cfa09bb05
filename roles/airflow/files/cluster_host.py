"""The address under which the cluster knows this host, for Airflow's ``[core] hostname_callable``.

A VM's own idea of its name need not resolve elsewhere, and the API server fetches task logs by the
name that a worker reports: so the name is the address in the inventory.
"""

from __future__ import annotations

from airflow.configuration import conf


def address() -> str:
    """Return ``[cluster] address`` of airflow.cfg.

    Raises:
        airflow.exceptions.AirflowConfigException: The option is missing.
    """
    return str(conf.get_mandatory_value("cluster", "address"))
