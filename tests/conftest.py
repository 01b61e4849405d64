"""Shared settings and fixtures: one thread, the same examples in every run, the folder of real data."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

# Before torch is imported, here and in processes that tests start: the workers of pytest-xdist share the cores, and
# another number of threads sums in another order.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
from hypothesis import settings

# The same examples in every run: what fails here fails everywhere.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def _temporary_files(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What libraries and killed processes leave behind goes with the folders of the test run."""
    os.environ["TMPDIR"] = str(tmp_path_factory.mktemp("temporary"))
    tempfile.tempdir = None


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder named by ``MONAI_DATA_DIRECTORY``; tests that ask for it skip where it is absent."""
    folder = os.environ.get("MONAI_DATA_DIRECTORY", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("real data: MONAI_DATA_DIRECTORY does not name a folder")
    return Path(folder)
