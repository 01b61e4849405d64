"""One tiny cohort and one tiny training through the bundle, shared by the tests that run it."""

from __future__ import annotations

from pathlib import Path

import pytest
from bundle_runs import detect, train_small, write_dicom, write_nifti


@pytest.fixture(scope="session")
def tiny_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of normals (19 to calibrate on), some of them DICOM series, and two abnormal scans with masks."""
    root = tmp_path_factory.mktemp("cohort")
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
    return root


@pytest.fixture(scope="session")
def trained(tiny_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a training on the tiny cohort; leave it as it is."""
    return train_small(tmp_path_factory.mktemp("trained"), tiny_cohort)


@pytest.fixture(scope="session")
def evaluated(trained: Path, tiny_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of an evaluation of the tiny cohort; leave it as it is."""
    return detect(trained, tmp_path_factory.mktemp("evaluated"), tiny_cohort, "evaluate", overview_slices=1)
