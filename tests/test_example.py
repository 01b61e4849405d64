"""The example script runs as it stands."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from bundle_runs import table, write_nifti

from monai_anomaly.engines import load_detector


@pytest.mark.filterwarnings("ignore:.*patients of .* scans are not known")
def test_train_and_score(tmp_path: Path) -> None:
    cohort = tmp_path / "cohort"
    for i in range(3):
        write_nifti(cohort / "train" / "normal" / f"n{i}.nii.gz", i)
    write_nifti(cohort / "test" / "normal" / "t.nii.gz", 7)
    write_nifti(cohort / "test" / "abnormal" / "a.nii.gz", 8, cohort / "test" / "masks" / "a.nii.gz")
    script = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "train_and_score.py"))
    metrics = script["main"]([str(cohort), str(tmp_path / "out"), "--epochs", "1", "--size", "32", "--alpha", "0.5"])
    assert metrics["image"]["num_normal"] == metrics["image"]["num_abnormal"] == 1
    assert 0 <= metrics["pixel"]["auroc"] <= 1
    assert len(table(tmp_path / "out" / "predictions.csv")) == 2
    assert load_detector(tmp_path / "out" / "models").description["calibration_patients"] == 1
