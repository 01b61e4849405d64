"""The example scripts run as they stand."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from bundle_runs import table, write_nifti
from dicom_series import complete
from test_dicom import series, write

from monai_anomaly.data import ScanPreprocessing
from monai_anomaly.engines import predict, save_detector
from monai_anomaly.networks import DenoisingAutoencoder


def example(name: str) -> Any:
    """The ``main`` of a script."""
    return runpy.run_path(str(Path(__file__).parents[1] / "examples" / f"{name}.py"))["main"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*patients of .* scans are not known")
def test_train_score_and_segment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(10):
        write_nifti(tmp_path / "normals" / f"n{i}.nii.gz", i)
    models = example("train")([str(tmp_path / "normals"), str(tmp_path / "out"), "--epochs", "1", "--size", "32"])
    assert "calibrated on 2 patients, masks for alpha >= 0.333" in capsys.readouterr().out

    for i in range(2):
        write_nifti(tmp_path / "scans" / f"s{i}.nii.gz", 20 + i)
    scores = example("score")([str(models), str(tmp_path / "scans"), str(tmp_path / "results"), "--alpha", "0.34"])
    rows = table(scores)
    assert [row["case"] for row in rows] == ["s0", "s1"]
    for row in rows:
        scan, found = (
            nib.load(folder / f"{row['case']}{end}.nii.gz")
            for folder, end in ((tmp_path / "scans", ""), (tmp_path / "results", "_map"))
        )
        assert found.shape == scan.shape
        np.testing.assert_allclose(found.affine, scan.affine, atol=1e-5)
        mask = nib.load(tmp_path / "results" / f"{row['case']}_mask.nii.gz").get_fdata()
        assert int(row["flagged_voxels"]) == mask.sum()
        assert float(row["anomaly_score"]) > 0

    pytest.importorskip("highdicom", reason="highdicom is not installed")
    folder = write(tmp_path / "series", complete(series(np.random.default_rng(0).integers(1, 999, (6, 20, 24)))))
    path = example("dicom_to_seg")([str(models), str(folder), str(tmp_path / "seg.dcm"), "--alpha", "0.34"])
    made = pydicom.dcmread(path)
    assert (made.NumberOfFrames, made.Rows, made.Columns) == (6, 20, 24)
    assert made.PatientID == "MRN-7"
    expected = predict(models, folder, alpha=0.34)
    assert expected.anomaly_mask is not None
    assert made.pixel_array.sum() == int(expected.anomaly_mask.sum())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*patients of .* scans are not known")
def test_compare_methods(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(3):
        write_nifti(tmp_path / "cohort" / "train" / "normal" / f"n{i}.nii.gz", i)
    for i in range(2):
        write_nifti(tmp_path / "cohort" / "test" / "normal" / f"t{i}.nii.gz", 20 + i)
        mask = tmp_path / "cohort" / "test" / "masks" / f"a{i}.nii.gz"
        write_nifti(tmp_path / "cohort" / "test" / "abnormal" / f"a{i}.nii.gz", 30 + i, mask)
    arguments = [str(tmp_path / "cohort"), str(tmp_path / "out"), "--epochs", "1", "--size", "32"]
    found = example("compare_methods")(arguments)
    for detector in ("DenoisingAutoencoder", "Autoencoder", "intensity threshold", "z-score"):
        assert list(found[detector]) == ["image auroc", "image ap", "pixel auroc", "pixel ap"]
        assert all(0 <= row.value <= 1 for row in found[detector].values())
    assert f"Autoencoder: image auroc {found['Autoencoder']['image auroc'].value:.3f}" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*patients of .* scans are not known")
def test_own_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(6):
        write_nifti(tmp_path / "normals" / f"n{i}.nii.gz", i)
    scan = write_nifti(tmp_path / "scan.nii.gz", 20)
    found = example("own_network")(
        [str(tmp_path / "normals"), str(tmp_path / "out"), str(scan), "--epochs", "1", "--size", "64"]
    )
    assert found.restoration is not None
    assert found.restoration.shape[1:] == found.anomaly_map.shape[1:] == nib.load(scan).shape
    assert 0 < found.p_value <= 1
    assert f"score {found.anomaly_score:.4g}" in capsys.readouterr().out


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
