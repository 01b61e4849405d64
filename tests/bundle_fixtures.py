"""One tiny cohort and one tiny training through the bundle, made once for all workers of pytest-xdist."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from bundle_runs import detect, train_small, write_dicom, write_nifti
from filelock import FileLock


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder ``name`` of this test run, which the first worker that asks for it makes."""
    root = factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / name
    done = folder.with_suffix(".done")
    with FileLock(folder.with_suffix(".lock")):
        if not done.exists():
            folder.mkdir(exist_ok=True)
            make(folder)
            done.touch()
    return folder


def write_cohort(root: Path) -> None:
    """A folder of normals (19 to calibrate on), some of them DICOM series, and two abnormal scans with masks."""
    patients = []
    for side, count, dicom in (("train", 5, 1), ("calibration", 19, 1), ("test", 3, 1)):
        for i in range(count):
            seed = 1000 * len(side) + i
            name = f"{side}/normal/{side[0]}{i}"
            if i < dicom:
                write_dicom(root / name, seed + seed % 2)
            else:
                name += ".nii.gz"
                write_nifti(root / name, seed)
            patients.append(f"{name},{side}-{i}")
    for i in range(2):
        write_nifti(root / f"test/abnormal/a{i}.nii.gz", 90 + i, root / f"test/masks/a{i}.nii.gz")
        patients.append(f"test/abnormal/a{i}.nii.gz,abnormal-{i}")
    (root / "patients.csv").write_text("\n".join(["image,patient", *patients]) + "\n")


@pytest.fixture(scope="session")
def tiny_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See ``write_cohort``; leave it as it is."""
    return made_once(tmp_path_factory, "tiny_cohort", write_cohort)


@pytest.fixture(scope="session")
def trained(tiny_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a training on the tiny cohort; leave it as it is."""
    return made_once(tmp_path_factory, "trained", lambda folder: train_small(folder, tiny_cohort))


@pytest.fixture(scope="session")
def evaluated(trained: Path, tiny_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of an evaluation of the tiny cohort; leave it as it is."""
    return made_once(
        tmp_path_factory,
        "evaluated",
        lambda folder: detect(trained, folder, tiny_cohort, "evaluate", overview_slices=1),
    )
