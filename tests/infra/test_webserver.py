"""The API server and the UI."""

from __future__ import annotations

import airflow_api
import pytest
import requests
from conftest import Cluster, SiteRun


def test_all_parts_are_healthy(api: airflow_api.AirflowApi) -> None:
    health = api.health()
    assert {part: health[part]["status"] for part in ("metadatabase", "scheduler", "dag_processor", "triggerer")} == {
        "metadatabase": "healthy",
        "scheduler": "healthy",
        "dag_processor": "healthy",
        "triggerer": "healthy",
    }


def test_the_execution_api_answers_workers(api_url: str, cluster: Cluster) -> None:
    assert requests.get(f"{api_url}/execution/health", verify=cluster.ca, timeout=30).status_code == 200


def test_nobody_gets_in_without_a_login(api_url: str, cluster: Cluster) -> None:
    assert requests.get(f"{api_url}/api/v2/dags", verify=cluster.ca, timeout=10).status_code == 401


def test_a_browser_sends_no_cookie_in_plain_text(api_url: str, cluster: Cluster) -> None:
    cookies = requests.get(f"{api_url}/auth/login/", verify=cluster.ca, timeout=30).cookies
    assert {cookie.name: cookie.secure for cookie in cookies} == {"session": True}


def test_a_wrong_password_is_refused(api_url: str, cluster: Cluster) -> None:
    with pytest.raises(airflow_api.AirflowApiError):
        airflow_api.AirflowApi(api_url, "admin", "not-the-password", ca=cluster.ca).request("GET", "dags")


def test_the_password_follows_the_variable(cluster: Cluster, api_url: str, site: SiteRun) -> None:
    """Creating alone would leave an existing account as it is."""
    if cluster.mode != "celery":
        pytest.skip("two minutes for what does not depend on the mode")
    other = "another-password-of-admin"
    host = cluster.first("webserver")
    former = airflow_api.AirflowApi(api_url, "admin", cluster.secret("admin_password"), ca=cluster.ca)
    try:
        site("--limit", host, "--extra-vars", f'{{"webserver_admin_password": "{other}"}}')
        airflow_api.AirflowApi(api_url, "admin", other, ca=cluster.ca).request("GET", "dags")
        with pytest.raises(airflow_api.AirflowApiError):
            airflow_api.AirflowApi(api_url, "admin", cluster.secret("admin_password"), ca=cluster.ca).request(
                "GET", "dags"
            )
    finally:
        site("--limit", host)
    former.request("GET", "dags")
