"""One scan in one call gives what the bundles' evaluator writes."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from bundle_runs import cohort_evaluator, refusal, table, write_dicom, write_nifti
from test_inference import BrightVoxels

from monai_anomaly.data import ScanPreprocessing
from monai_anomaly.engines import load_detector, predict, save_detector, scan_loader


@pytest.fixture
def models(tmp_path: Path) -> Path:
    network = BrightVoxels()
    network.calibration.fit({f"p{i}": 1e-3 * i for i in range(19)}, {f"p{i}": 0.02 * i for i in range(19)})
    save_detector(tmp_path / "out" / "models", network, ScanPreprocessing((32, 32)), {})
    return tmp_path / "out" / "models"


def test_predict_gives_what_the_evaluator_writes(models: Path, tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "scan.nii.gz", 5)
    found = predict(models.parent, path)
    files = load_detector(models)
    item = {"image": str(path), "case": "case", "patient": "p"}
    evaluator = cohort_evaluator(
        files.network, files.preprocessing, scan_loader([item], files.preprocessing), tmp_path / "all"
    )
    evaluator.run()
    evaluator.finish()
    for name, tensor in (("map", found.anomaly_map), ("mask", found.anomaly_mask)):
        written = nibabel.load(tmp_path / "all" / "case" / f"anomaly_{name}.nii.gz")
        assert tensor is not None
        np.testing.assert_array_equal(tensor[0].numpy(), written.get_fdata().astype(np.float32))
        np.testing.assert_allclose(tensor.affine.numpy(), written.affine, atol=1e-5)
    (row,) = table(tmp_path / "all" / "predictions.csv")
    assert (found.anomaly_score, found.p_value) == (float(row["anomaly_score"]), float(row["p_value"]))
    assert found.restoration is not None
    restored = nibabel.load(tmp_path / "all" / "case" / "restoration.nii.gz").get_fdata()
    np.testing.assert_array_equal(found.restoration[0].numpy(), restored.astype(np.float32))
    # a loaded detector, a list of one channel, and no mask
    again = predict(files, [path], alpha=None)
    assert again.anomaly_mask is None
    np.testing.assert_array_equal(again.anomaly_map.numpy(), found.anomaly_map.numpy())


def test_a_series_keeps_its_source(models: Path, tmp_path: Path) -> None:
    affine = write_dicom(tmp_path / "series", 4)
    found = predict(models, tmp_path / "series")
    np.testing.assert_allclose(found.anomaly_map.affine.numpy(), affine, atol=1e-6)
    assert found.anomaly_map.meta["source"] == [str(tmp_path / "series")]


def test_what_cannot_be_predicted_is_one_line(models: Path, tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "scan.nii.gz", 5)
    assert "no such file" in refusal(predict, tmp_path / "nowhere", path)
    assert "no such file" in refusal(predict, models, tmp_path / "missing.nii.gz")
    assert "2 channel(s), the detector takes 1" in refusal(predict, models, [path, path])
    assert "needs 99 normal calibration patients" in refusal(predict, models, path, alpha=0.01)
