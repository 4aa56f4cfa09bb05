"""What all tests share: where the project is."""

from __future__ import annotations

import pathlib

import pytest

PROJECT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def project() -> pathlib.Path:
    """The project's root directory."""
    return PROJECT
