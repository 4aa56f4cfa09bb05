"""The modules that the role airflow gives to Airflow's processes, in Airflow's own environment."""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "roles/airflow/files"))
