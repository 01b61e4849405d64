"""The example scripts run as they stand."""

from __future__ import annotations

import runpy
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_runs import table, write_nifti

from monai_anomaly.data import ScanPreprocessing
from monai_anomaly.engines import load_detector, save_detector
from monai_anomaly.networks import DenoisingAutoencoder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*patients of .* scans are not known")
def test_train_and_score(tmp_path: Path) -> None:
    cohort = tmp_path / "cohort"
    for i in range(3):
        write_nifti(cohort / "train" / "normal" / f"n{i}.nii.gz", i)
    write_nifti(cohort / "test" / "normal" / "t.nii.gz", 7)
    write_nifti(cohort / "test" / "abnormal" / "a.nii.gz", 8, cohort / "test" / "masks" / "a.nii.gz")
    script = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "train_and_score.py"))
    figures = script["main"]([str(cohort), str(tmp_path / "out"), "--epochs", "1", "--size", "32", "--alpha", "0.5"])
    counts = [figures.value("ProxyAno", "image", name) for name in ("num_normal", "num_abnormal")]
    assert counts == [1, 1]
    assert 0 <= figures.value("ProxyAno", "pixel", "auroc") <= 1
    assert len(table(tmp_path / "out" / "predictions.csv")) == 2
    assert load_detector(tmp_path / "out" / "models").description["calibration_patients"] == 1


def test_brain_volumes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    detector = DenoisingAutoencoder(channels=(4, 8), mirror_axis=1).eval()
    save_detector(tmp_path / "models", detector, ScanPreprocessing((32, 32)), {})
    volume, mask = tmp_path / "scan.nii.gz", tmp_path / "mask.nii.gz"
    write_nifti(volume, 8, mask)
    script = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "brain_volumes.py"))
    rows = script["main"]([str(tmp_path / "models"), str(tmp_path / "out"), str(volume), str(mask)])
    assert 0 <= rows[0]["auroc"] <= 1
    assert rows[0]["lesion_ml"] == pytest.approx(25 * 20 / 1000)
    written = nib.load(tmp_path / "out" / "1_map.nii.gz")
    scan = nib.as_closest_canonical(nib.load(volume))
    assert written.shape == scan.shape
    assert np.array_equal(written.affine, scan.affine)
    # the map lies where the tissue lies
    assert written.get_fdata()[scan.get_fdata() > 0].mean() > 2 * written.get_fdata()[scan.get_fdata() == 0].mean()
    assert (tmp_path / "out" / "1.png").is_file()
    assert script["back"](script["front_up"](scan.get_fdata())).tolist() == scan.get_fdata().tolist()
