"""Shared fixtures: the folder of real data, where there is one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples in every run: what fails here fails everywhere.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder named by ``MONAI_DATA_DIRECTORY``; tests that ask for it skip where it is absent."""
    folder = os.environ.get("MONAI_DATA_DIRECTORY", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("real data: MONAI_DATA_DIRECTORY does not name a folder")
    return Path(folder)
