"""Inference from Python, with detectors simple enough to compute by hand."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_runs import SHAPE, head, table, write_nifti
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from monai_anomaly.engines import CohortEvaluator, StackInferer, calibrate, scan_loader
from monai_anomaly.exceptions import InputError
from monai_anomaly.networks import AnomalyDetector, AnomalyOutput
from monai_anomaly.transforms import ScanPreprocessing

GRID = ScanPreprocessing(image_size=SHAPE[:2])  # heads of even seed are not resampled


class BrightVoxels(AnomalyDetector):
    """The map is the image times a weight, the score its largest value, the restoration its half."""

    def __init__(self, spatial_dims: int = 2) -> None:
        super().__init__(spatial_dims, in_channels=1)
        self.weight = torch.nn.Parameter(torch.tensor(3.0))

    def detect(self, image: Tensor) -> AnomalyOutput:
        self.check_input(image)
        return AnomalyOutput(image * self.weight, image.flatten(1).amax(1) * self.weight, image / 2)


def item(path: Path, patient: str = "", label: int | None = None, mask: Path | None = None) -> dict[str, object]:
    case = path.name.removesuffix(".nii.gz")
    return {
        "case": case,
        "image": str(path),
        "patient": patient or case,
        "label": label,
        "mask": None if mask is None else str(mask),
    }


@settings(max_examples=20, deadline=None)
@given(batch=st.integers(1, 7), chosen=st.lists(st.booleans(), min_size=1, max_size=6).filter(any))
def test_stack_inferer_runs_the_chosen_slices_alone(batch: int, chosen: list[bool]) -> None:
    stack = torch.rand(1, 4, 5, len(chosen), generator=torch.Generator().manual_seed(batch))
    output = StackInferer(batch)(stack, BrightVoxels().eval(), torch.tensor(chosen))
    tissue = torch.tensor(chosen)
    assert torch.equal(output.anomaly_map, stack * 3 * tissue)
    assert torch.equal(output.restoration, torch.where(tissue, stack / 2, stack))
    assert torch.equal(output.anomaly_score, (stack[..., tissue].max() * 3)[None])


def test_stack_inferer_gives_a_three_dimensional_detector_the_stack_whole() -> None:
    stack = torch.rand(1, 4, 5, 6)
    output = StackInferer(2)(stack, BrightVoxels(spatial_dims=3).eval())
    assert torch.equal(output.anomaly_map, stack * 3)
    assert torch.equal(output.restoration, stack / 2)
    assert torch.equal(output.anomaly_score, (stack.max() * 3)[None])


def test_stack_inferer_refuses_an_empty_batch() -> None:
    with pytest.raises(ValueError, match="batch_size must be positive, got 0"):
        StackInferer(0)


def test_calibration_keeps_the_highest_of_each_patient_and_lists_failures(tmp_path: Path) -> None:
    scans = [write_nifti(tmp_path / f"s{seed}.nii.gz", seed) for seed in (2, 4, 6)]
    (tmp_path / "bad.nii.gz").write_text("no scan")
    data = [item(scans[0], "b"), item(tmp_path / "bad.nii.gz"), item(scans[1], "a"), item(scans[2], "b")]
    network = BrightVoxels()
    failures = calibrate(network, data, GRID, progress=False)
    assert [failure["case"] for failure in failures] == ["bad"]
    highest = [float(3 * GRID.stack(GRID.load(str(scan))).max()) for scan in scans]
    expected = torch.tensor([highest[1], max(highest[0], highest[2])])  # patients in the order of their names
    assert torch.equal(network.calibration.scores, expected)
    assert torch.equal(network.calibration.map_maxima, expected)


def test_evaluator_masks_above_the_calibrated_threshold(tmp_path: Path) -> None:
    network = BrightVoxels()
    maxima = {str(i): 2.0 + 0.01 * i for i in range(19)}
    network.calibration.fit(maxima, maxima)
    scan = write_nifti(tmp_path / "a.nii.gz", 2, tmp_path / "m.nii.gz")
    moved = write_nifti(tmp_path / "b.nii.gz", 4)
    data = [item(scan, label=1, mask=tmp_path / "m.nii.gz"), item(moved, label=1, mask=tmp_path / "m.nii.gz")]
    evaluator = CohortEvaluator(
        network, GRID, scan_loader(data, GRID), tmp_path / "out", evaluate=True, overview_slices=0, progress=False
    )
    evaluator.run()
    written = {
        name: nib.load(tmp_path / "out" / "a" / f"{name}.nii.gz").get_fdata(dtype=np.float32)
        for name in ("anomaly_map", "anomaly_mask", "restoration")
    }
    normalised = GRID.intensity(GRID.load(str(scan)))[0].numpy()
    tissue = np.arange(SHAPE[2]) < 3
    np.testing.assert_allclose(written["anomaly_map"], 3 * normalised * tissue, atol=1e-6)
    np.testing.assert_array_equal(written["anomaly_mask"], written["anomaly_map"] > np.float32(2.18))
    # half the normalised intensity, in the scan's own unit
    voxels = head(2, lesion=True)[0]
    low, high = np.percentile(voxels[voxels > 0.1 * np.percentile(voxels, 99)], [0.5, 90])
    high = low + 1.6 * (high - low)
    # the scan less what the detector took away; where it took nothing, the scan itself
    expected = voxels - np.clip((voxels - low) / (high - low), 0, 1) / 2 * (high - low)
    np.testing.assert_allclose(written["restoration"][..., tissue], expected[..., tissue], rtol=1e-5)
    # a mask that belongs to another scan makes its case a failure, and neither a row nor a metric
    assert [row["case"] for row in table(tmp_path / "out" / "predictions.csv")] == ["a"]
    with pytest.raises(SystemExit, match=r"b: .*m\.nii\.gz: the mask's affine differs"):
        evaluator.finish()
    mask = nib.load(tmp_path / "m.nii.gz").get_fdata() > 0
    assert evaluator.metrics()["pixel"]["prevalence"] == mask.mean()
    image = evaluator.metrics()["image"]
    assert (image["auroc"], image["ap"], image["num_normal"], image["num_abnormal"]) == (None, None, 0, 1)


def test_evaluator_refuses_no_scans(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the cohort has no scan to read"):
        CohortEvaluator(BrightVoxels(), GRID, scan_loader([], GRID), tmp_path)


def test_workers_read_ahead_and_errors_cross_over(tmp_path: Path) -> None:
    (tmp_path / "bad.nii.gz").write_text("no scan")
    data = [item(write_nifti(tmp_path / "a.nii.gz", 2)), item(tmp_path / "bad.nii.gz")]
    first, second = scan_loader(data, GRID, num_workers=1)
    assert torch.equal(first["stack"].as_tensor(), GRID.stack(GRID.load(data[0]["image"])).as_tensor())
    assert "cannot be read as NIfTI" in second["error"]
