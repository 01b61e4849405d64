"""Inference from Python, with detectors simple enough to compute by hand."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import weakref
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_runs import EMPTY_SLICE, SHAPE, cohort_evaluator, figures_of, head, table, write_nifti
from hypothesis import given, settings
from hypothesis import strategies as st
from ignite.engine import Events
from monai.data import MetaTensor, list_data_collate
from monai.transforms import Compose, Invertd
from torch import Tensor

from monai_anomaly.calibration import ScanTail
from monai_anomaly.data import ScanPreprocessing
from monai_anomaly.engines import (
    CohortEvaluator,
    MaskAboveThresholdd,
    MetricsHandler,
    PredictionsHandler,
    SaveCased,
    StackInferer,
    ToScanVoxelsd,
    calibrate,
    scan_loader,
)
from monai_anomaly.exceptions import InputError
from monai_anomaly.networks import (
    DAAD,
    DCAE,
    DDRID,
    HFRAE,
    ITAE,
    AnomalyDetector,
    AnomalyOutput,
    Autoencoder,
    GANomaly,
    MemAE,
    ProxyAno,
)

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


@pytest.mark.slow
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


class Hungry(BrightVoxels):
    """Takes more memory than there is for more than two slices, and for any of a bright scan."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.seen = kind, list[int]()

    def detect(self, image: Tensor) -> AnomalyOutput:
        self.seen.append(len(image))
        if len(image) > 2 or image.max() > 1:
            if self.kind == "GPU":
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            _ = torch.empty(1 << 58) if self.kind == "torch" else np.empty(1 << 58)
        return super().detect(image)


@pytest.mark.parametrize("kind", ["GPU", "torch", "numpy"])
def test_out_of_memory_takes_smaller_batches_and_then_fails(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    stack = torch.rand(1, 4, 5, 11)
    network = Hungry(kind).eval()
    output = StackInferer(8)(stack, network)
    assert network.seen == [8, 4, 2, 2, 2, 2, 2, 1]
    assert torch.equal(output.anomaly_map, stack * 3)
    assert caplog.messages == [f"out of memory with {n} slices at once: goes on with {n // 2}" for n in (8, 4)]
    with pytest.raises((MemoryError, RuntimeError), match="allocate"):
        StackInferer(8)(stack + 1, network)
    assert network.seen[8:] == [8, 4, 2, 1]


def test_out_of_memory_ends_one_scan_alone(tmp_path: Path) -> None:
    data = [item(write_nifti(tmp_path / f"{i}.nii.gz", 2 * i)) for i in range(3)]

    class Failing(BrightVoxels):
        def detect(self, image: Tensor) -> AnomalyOutput:
            self.scans = getattr(self, "scans", 0) + 1
            if self.scans == 4:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
            return super().detect(image)

    evaluator = cohort_evaluator(Failing(), GRID, scan_loader(data, GRID), tmp_path / "out", alpha=None, report=False)
    evaluator.inferer = StackInferer(1)
    evaluator.run()
    assert [row["case"] for row in table(tmp_path / "out" / "predictions.csv")] == ["0", "2"]
    assert evaluator.failures[0]["error"] == "OutOfMemoryError: CUDA out of memory."


def test_what_lies_on_the_detectors_grid_goes_once_it_lies_on_the_scans(tmp_path: Path) -> None:
    made: list[weakref.ref[Tensor]] = []

    class Watched(StackInferer):
        def __call__(self, inputs: Tensor, network: AnomalyDetector, tissue: Tensor | None = None) -> Any:
            output = super().__call__(inputs, network, tissue)
            made.extend(map(weakref.ref, (inputs, output.anomaly_map, output.restoration)))
            return output

    def look(data: dict[str, Any]) -> dict[str, Any]:
        assert [kept() for kept in made] == [None] * 3
        return data

    data = [item(write_nifti(tmp_path / "a.nii.gz", 0))]
    evaluator = cohort_evaluator(BrightVoxels(), GRID, scan_loader(data, GRID), tmp_path / "out", alpha=None)
    evaluator.inferer = Watched()
    evaluator.scan_postprocessing = Compose([evaluator.scan_postprocessing, look])
    evaluator.run()
    assert evaluator.failures == []
    assert len(made) == 3


def test_stack_inferer_refuses_an_empty_batch() -> None:
    with pytest.raises(ValueError, match="batch_size must be positive, got 0"):
        StackInferer(0)


SMALL_DETECTORS: dict[str, tuple[type[AnomalyDetector], dict[str, Any]]] = {
    "autoencoder": (Autoencoder, {"channels": (4, 8, 8, 8)}),
    "daad": (DAAD, {"image_size": (32, 32), "channels": (4, 8, 8, 8), "num_items": 20, "division_rates": (2, 2, 1)}),
    "dcae": (DCAE, {"image_size": (32, 32)}),
    "ddrid": (DDRID, {"image_size": (32, 32), "channels": 4}),
    "ganomaly": (GANomaly, {"image_size": (32, 32), "channels": 4, "latent_channels": 8}),
    "hfrae": (HFRAE, {"encoder": "strided", "encoder_channels": (4, 8, 8, 8)}),
    "itae": (ITAE, {"channels": (4, 8, 8, 8, 8)}),
    "memae": (MemAE, {"channels": (4, 8, 8, 8)}),
    "proxyano": (ProxyAno, {"channels": (4, 8, 8, 8), "num_items": 8}),
}


def small_detector(name: str) -> AnomalyDetector:
    torch.manual_seed(3)
    kind, arguments = SMALL_DETECTORS[name]
    return kind(**arguments).eval()


@pytest.mark.parametrize("name", SMALL_DETECTORS)
def test_channels_last_gives_the_same_maps_and_scores(name: str) -> None:
    network = small_detector(name)
    weights = {key: value.clone() for key, value in network.state_dict().items()}
    stack = torch.rand(1, 32, 32, 5)
    plain, other = (StackInferer(2, channels_last=form)(stack, network) for form in (False, True))
    scale = float(plain.anomaly_map.abs().max())
    torch.testing.assert_close(other.anomaly_map, plain.anomaly_map, rtol=0, atol=1e-4 * scale)
    torch.testing.assert_close(other.anomaly_score, plain.anomaly_score, rtol=1e-4, atol=0)
    assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())


def test_channels_last_is_taken_where_the_detector_is_faster_with_it() -> None:
    class Formats(BrightVoxels):
        """Notes the memory format that it is given."""

        def detect(self, image: Tensor) -> AnomalyOutput:
            seen.append(image.is_contiguous(memory_format=torch.channels_last))
            return AnomalyOutput(image[:, :1], image.flatten(1).amax(1), None)

    seen: list[bool] = []
    network, stack = Formats(), torch.rand(2, 4, 5, 2)
    network.in_channels = 2
    for told, faster in ((None, False), (None, True), (True, False), (False, True)):
        network.channels_last = faster
        StackInferer(2, channels_last=told)(stack, network)
    assert seen == [False, True, True, False]


@pytest.mark.parametrize("name", SMALL_DETECTORS)
def test_half_precision_gives_numbers(name: str) -> None:
    """As mixed precision on a GPU does; a memory's tiny constants once made it no number."""
    network = small_detector(name)
    image = torch.rand(2, 1, 32, 32)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.float16):
        output = network.detect(image)
    assert torch.isfinite(output.anomaly_map).all()
    assert torch.isfinite(output.anomaly_score).all()


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
    evaluator = cohort_evaluator(network, GRID, scan_loader(data, GRID), tmp_path / "out", evaluate=True)
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
    figures = evaluator.state.evaluation.figures
    assert figures.value("BrightVoxels", "pixel", "prevalence") == mask.mean()
    image = [figures.value("BrightVoxels", "image", name) for name in ("auroc", "ap", "num_normal", "num_abnormal")]
    assert image == [None, None, 0, 1]


def test_a_killed_run_would_leave_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    data = [item(write_nifti(tmp_path / f"s{seed}.nii.gz", seed)) for seed in (2, 4)]
    evaluator = cohort_evaluator(BrightVoxels(), GRID, scan_loader(data, GRID), tmp_path / "out", alpha=None)
    left: list[str] = []
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda: left.extend(os.listdir(tmp_path / "temporary")))
    evaluator.run()
    assert left == []
    assert (tmp_path / "out" / "report.html").is_file()


def test_evaluator_refuses_no_scans(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the cohort has no scan to read"):
        CohortEvaluator(BrightVoxels(), scan_loader([], GRID))


def test_workers_read_ahead_and_errors_cross_over(tmp_path: Path) -> None:
    (tmp_path / "bad.nii.gz").write_text("no scan")
    data = [item(write_nifti(tmp_path / "a.nii.gz", 2)), item(tmp_path / "bad.nii.gz")]
    first, second = scan_loader(data, GRID, num_workers=1)
    assert torch.equal(first["stack"].as_tensor(), GRID.stack(GRID.load(data[0]["image"])).as_tensor())
    assert "cannot be read as NIfTI" in second["error"]


def foreground(scan: Path) -> np.ndarray:
    voxels = nib.load(scan).get_fdata(dtype=np.float32)
    low, high = voxels.min(), np.percentile(voxels, 99)
    return voxels > low + 0.1 * (high - low)


def test_calibration_keeps_tissue_voxels_places_and_facts_by_patient(tmp_path: Path) -> None:
    scans = [write_nifti(tmp_path / f"s{seed}.nii.gz", seed) for seed in (2, 4, 6)]
    network = BrightVoxels()
    calibrate(network, [item(scan, patient) for scan, patient in zip(scans, "bab")], GRID, progress=False)
    maps, kept = [], []
    for scan in scans:
        normalised = GRID.intensity(GRID.load(str(scan)))[0].numpy() * (np.arange(SHAPE[2]) < 3)
        maps.append(3 * normalised)
        kept.append(maps[-1][foreground(scan)])
    calibration = network.calibration
    assert calibration.item_patients.tolist() == [0, 1, 1]
    assert calibration.item_scores.tolist() == pytest.approx([maps[i].max() for i in (1, 0, 2)])
    for rate in (0.3, 0.05):
        threshold = calibration.voxel_threshold(rate)
        assert threshold is not None
        # what is flagged is at most the rate, and the next lower voxel would be too much
        lower = max(values[values <= threshold].max() for values in kept)
        above, with_lower = (
            np.mean([np.mean([share[0], share[2]]), share[1]])
            for share in ([(v > threshold).mean() for v in kept], [(v >= lower).mean() for v in kept])
        )
        assert above <= rate * 1.01
        assert with_lower >= rate * 0.95
    assert calibration.places.mean.shape == (10, *SHAPE[:2], 1)
    assert calibration.facts.values.shape == (2, 9)
    intensity = [float(nib.load(s).get_fdata()[foreground(s)].mean()) for s in scans]
    expected = [intensity[1], (intensity[0] + intensity[2]) / 2]
    assert calibration.facts.values[:, 0].tolist() == pytest.approx(expected, rel=1e-3)


def calibrated(**fit: Any) -> BrightVoxels:
    network = BrightVoxels()
    maxima = {str(i): 2.0 + 0.01 * i for i in range(19)}
    network.calibration.fit(maxima, maxima, **fit)
    return network


def evaluate(network: BrightVoxels, data: list[dict[str, object]], out: Path, **options: Any) -> CohortEvaluator:
    evaluator = cohort_evaluator(network, GRID, scan_loader(data, GRID), out, **options)
    evaluator.run()
    evaluator.finish()
    return evaluator


def test_predictions_state_p_values_of_scans_and_patients(tmp_path: Path) -> None:
    scans = [write_nifti(tmp_path / f"s{seed}.nii.gz", seed) for seed in (2, 4, 6)]
    network = calibrated(items={str(i): [0.0, 2.0 + 0.01 * i] for i in range(19)})
    scores = [float(3 * GRID.stack(GRID.load(str(scan))).max()) for scan in scans]
    # thresholds in between, so that the three scans have three p-values
    network.calibration.item_scores += np.median(scores) - 2.095
    network.calibration.scores += np.median(scores) - 2.095
    evaluate(network, [item(scan, patient) for scan, patient in zip(scans, "xyx")], tmp_path / "out", alpha=0.1)
    rows = table(tmp_path / "out" / "predictions.csv")
    kept, items = network.calibration.scores.numpy(), network.calibration.item_scores.numpy()
    for row, score in zip(rows, scores):
        highest = max(s for s, other in zip(scores, "xyx") if other == row["patient"])
        assert float(row["p_value"]) == pytest.approx((1 + (items >= np.float32(score)).sum() / 2) / 20)
        assert float(row["patient_p_value"]) == pytest.approx((1 + (kept >= np.float32(highest)).sum()) / 20)
        mask = nib.load(tmp_path / "out" / row["case"] / "anomaly_mask.nii.gz")
        assert int(row["flagged"]) == int(mask.get_fdata().any())
        assert float(row["threshold"]) == pytest.approx(2.17)
        assert float(row["alpha"]) == 0.1
        described = mask.header["descrip"].item().decode()
        assert described == "map > 2.17: any voxel in <= 0.1 of normals (n=19)"


@pytest.mark.parametrize("rule", ["family", "voxel"])
def test_detector_without_calibration_has_scores_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, rule: str
) -> None:
    with caplog.at_level(logging.WARNING):
        evaluate(BrightVoxels(), [item(write_nifti(tmp_path / "a.nii.gz", 2))], tmp_path / "out", mask_rule=rule)
    (row,) = table(tmp_path / "out" / "predictions.csv")
    assert row["no_mask"] == "the detector is not calibrated; a rate of 0.05 needs 19 normal patients"
    assert f"no masks: {row['no_mask']}" in caplog.text
    assert [row[name] for name in ("p_value", "patient_p_value", "flagged", "threshold", "alpha")] == [""] * 5
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"a", "predictions.csv", "report.html"}
    assert {p.name for p in (tmp_path / "out" / "a").glob("*.nii.gz")} == {"anomaly_map.nii.gz", "restoration.nii.gz"}


@pytest.mark.parametrize("rule", ["family", "voxel"])
def test_clean_up_takes_voxels_away_and_is_stated(tmp_path: Path, rule: str) -> None:
    network = calibrated()
    random = np.random.default_rng(0)
    network.calibration.tail.fit({"a": [ScanTail.of(random.uniform(0, 2.4, 1000))]})
    scan = write_nifti(tmp_path / "a.nii.gz", 2, tmp_path / "m.nii.gz")
    raw, cleaned = tmp_path / "raw", tmp_path / "cleaned"
    # a bright voxel in the corner, 2 x 2 x 3 mm
    image = nib.load(scan)
    voxels = image.get_fdata(dtype=np.float32)
    voxels[12, 1, 1] = voxels.max()
    nib.save(nib.Nifti1Image(voxels, image.affine), scan)
    options = {"mask_rule": rule, "alpha": 0.1}
    evaluate(network, [item(scan)], raw, **options)
    evaluate(network, [item(scan)], cleaned, least_lesion_mm3=50, inside_foreground=True, **options)
    before, after = (nib.load(out / "a" / "anomaly_mask.nii.gz") for out in (raw, cleaned))
    assert not (after.get_fdata() > before.get_fdata()).any()
    assert after.get_fdata().sum() < before.get_fdata().sum()
    assert after.header["descrip"].item().decode() == before.header["descrip"].item().decode() + "; >=50mm3; in fg"


def test_longest_description_fits_the_header(tmp_path: Path) -> None:
    network = BrightVoxels()
    maxima = {str(i): 1.2345678e-5 * (1 + i) for i in range(20000)}
    network.calibration.fit(maxima, maxima)
    data = [item(write_nifti(tmp_path / "a.nii.gz", 2))]
    evaluate(network, data, tmp_path / "out", alpha=0.01234567, least_lesion_mm3=1234.5678, inside_foreground=True)
    assert (tmp_path / "out" / "a" / "anomaly_mask.nii.gz").is_file()


@pytest.mark.slow
def test_drift_is_written_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    network = BrightVoxels()
    normals = [write_nifti(tmp_path / f"n{seed}.nii.gz", seed) for seed in range(0, 20, 2)]
    calibrate(network, [item(scan) for scan in normals], GRID, progress=False)
    alike = [item(write_nifti(tmp_path / f"t{seed}.nii.gz", seed)) for seed in (20, 22)]
    with caplog.at_level(logging.WARNING):
        evaluate(network, alike, tmp_path / "alike", alpha=0.1)
    assert not json.loads((tmp_path / "alike" / "drift.json").read_text())["drift"]
    assert "no longer hold" not in caplog.text
    image = nib.load(normals[0])
    affine = image.affine @ np.diag([1, 1, 3, 1])
    nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32) * 50, affine), tmp_path / "other.nii.gz")
    with caplog.at_level(logging.WARNING):
        evaluate(network, [item(tmp_path / "other.nii.gz")], tmp_path / "other", alpha=0.1)
    report = json.loads((tmp_path / "other" / "drift.json").read_text())
    assert report["drift"]
    assert {"intensity_mean", "intensity_spread", "spacing_s", "extent_s"} <= set(report["drifted"])
    assert report["statement"] in caplog.text
    assert "no longer hold" in report["statement"]


@pytest.mark.parametrize(("patients", "alpha", "needed"), [(19, 0.049, 20), (19, 0.01, 99), (1, 0.4, 2)])
def test_a_rate_finer_than_the_patients_is_refused(tmp_path: Path, patients: int, alpha: float, needed: int) -> None:
    network = BrightVoxels()
    maxima = {str(i): 2.0 + i for i in range(patients)}
    network.calibration.fit(maxima, maxima)
    loader = scan_loader([item(write_nifti(tmp_path / "a.nii.gz", 2))], GRID)
    with pytest.raises(InputError, match=rf"alpha {alpha:g}: needs {needed} normal .* there are {patients}\."):
        cohort_evaluator(network, GRID, loader, tmp_path / "out", alpha=alpha)
    assert not (tmp_path / "out").exists()
    # the voxel-wise rate is one of voxels, and is bounded by their number
    assert MaskAboveThresholdd(network, alpha, "voxel").settings["threshold"] is None
    assert MaskAboveThresholdd(network, 0.5).settings["threshold"] == 2.0 + patients // 2
    assert MaskAboveThresholdd(network, None).settings["threshold"] is None


@pytest.mark.parametrize("name", ["logp", "zscore"])
def test_calibrated_maps_need_a_table(tmp_path: Path, name: str) -> None:
    loader = scan_loader([item(write_nifti(tmp_path / "a.nii.gz", 2))], GRID)
    with pytest.raises(InputError, match=f"calibrated_map {name}: the detector's calibration has nothing"):
        cohort_evaluator(calibrated(), GRID, loader, tmp_path, calibrated_map=name)


@pytest.mark.parametrize(
    "options", [{"mask_rule": "best"}, {"calibrated_map": "raw"}, {"least_lesion_mm3": -1}, {"alpha": 0.0}]
)
def test_impossible_options(tmp_path: Path, options: dict[str, Any]) -> None:
    loader = scan_loader([item(write_nifti(tmp_path / "a.nii.gz", 2))], GRID)
    with pytest.raises(ValueError, match=next(iter(options))):
        cohort_evaluator(calibrated(), GRID, loader, tmp_path, **options)


def test_voxel_rates_finer_than_the_table_give_no_mask(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    network = calibrated()
    network.calibration.tail.fit({"a": [ScanTail.of(np.arange(100.0))]})
    with caplog.at_level(logging.WARNING):
        evaluate(network, [item(write_nifti(tmp_path / "a.nii.gz", 2))], tmp_path / "o", mask_rule="voxel", alpha=1e-3)
    assert "no masks: the calibration voxels tell rates of 0.01 and above, not 0.001" in caplog.text
    assert not (tmp_path / "o" / "a" / "anomaly_mask.nii.gz").exists()


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["family", "voxel"])
def test_decisions_are_of_the_raw_map_and_of_the_masks_as_written(tmp_path: Path, rule: str) -> None:
    lesion = tmp_path / "m.nii.gz"
    normals = [write_nifti(tmp_path / f"n{seed}.nii.gz", seed) for seed in (4, 6)]
    scans = [write_nifti(tmp_path / "a.nii.gz", 2, lesion), *normals]
    image = nib.load(scans[1])
    voxels = image.get_fdata(dtype=np.float32)
    voxels[12, 1, 1] = 300  # in air, one voxel of 20 mm3
    nib.save(nib.Nifti1Image(voxels, image.affine), scans[1])
    data = [item(scans[0], label=1, mask=lesion), item(scans[1], "n", 0), item(scans[2], "n", 0)]
    network = calibrated()
    network.calibration.tail.fit({"a": [ScanTail.of(np.random.default_rng(0).uniform(0, 2.4, 1000))]})
    found = {}
    for out, clean_up in (("raw", {}), ("cleaned", {"least_lesion_mm3": 30.0})):
        evaluate(network, data, tmp_path / out, evaluate=True, mask_rule=rule, alpha=0.1, **clean_up)
        figures = figures_of(tmp_path / out)
        mask = {row.metric: row for row in figures.where(level="mask")}
        found[out] = mask
        masks = [nib.load(tmp_path / out / each["case"] / "anomaly_mask.nii.gz").get_fdata() > 0 for each in data]
        truth = nib.load(lesion).get_fdata() > 0
        flagged, both = sum(mask.sum() for mask in masks), (masks[0] & truth).sum()
        assert mask["dice"].value == pytest.approx(2 * both / (flagged + truth.sum()))
        assert mask["sensitivity"].value == pytest.approx(both / truth.sum())
        assert mask["fpr"].value == pytest.approx((flagged - both) / (3 * truth.size - truth.sum()))
        assert mask["normal_patients_flagged"].n == 1
        assert mask["normal_patients_flagged"].value == float(masks[1].any() or masks[2].any())
        assert (mask["lesions_found"].n, mask["lesions_found"].value) == (1, float(both > 0))
        decided = {row.metric: row.value for row in figures.where(level="pixel", group=f"threshold: {rule} 0.1")}
        if out == "raw":
            assert [decided[name] for name in ("dice", "fpr")] == [mask[name].value for name in ("dice", "fpr")]
            raw = decided
    # the clean-up is seen by the masks, and not by the map
    assert decided == raw
    assert found["cleaned"]["false_positive"].value < found["raw"]["false_positive"].value


def test_without_masks_there_are_no_figures_of_them(tmp_path: Path) -> None:
    evaluate(BrightVoxels(), [item(write_nifti(tmp_path / "a.nii.gz", 2), label=0)], tmp_path / "out", evaluate=True)
    assert figures_of(tmp_path / "out").where(level="mask") == []


def test_a_list_without_an_item_does_without_it(tmp_path: Path) -> None:
    """Each handler and each transform is usable alone."""
    network, data = calibrated(), [item(write_nifti(tmp_path / "a.nii.gz", 2), label=0)]
    evaluator = CohortEvaluator(
        network,
        scan_loader(data, GRID),
        postprocessing=ToScanVoxelsd(GRID),
        val_handlers=[MetricsHandler(tmp_path, network, alpha=None)],
        progress=False,
    )
    evaluator.run()
    evaluator.finish()
    assert {path.name for path in tmp_path.iterdir()} == {"a.nii.gz", "metrics.csv", "metrics.json"}
    assert evaluator.state.evaluation.figures.value("BrightVoxels", "image", "num_normal") == 1


def test_tables_are_kept_where_the_run_is_interrupted(tmp_path: Path) -> None:
    class Stops(SaveCased):
        def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
            if data["item"]["case"] == "b":
                raise KeyboardInterrupt
            return super().__call__(data)

    network = calibrated()
    data = [item(write_nifti(tmp_path / f"{name}.nii.gz", 2)) for name in "ab"]
    evaluator = CohortEvaluator(
        network,
        scan_loader(data, GRID),
        postprocessing=Compose([ToScanVoxelsd(GRID), Stops(tmp_path / "out", 0)]),
        val_handlers=[PredictionsHandler(tmp_path / "out", network)],
        progress=False,
    )
    with pytest.raises(KeyboardInterrupt):
        evaluator.run()
    assert [row["case"] for row in table(tmp_path / "out" / "predictions.csv")] == ["a"]


@pytest.mark.parametrize("size", [(32, 32), (32, 32, 16)])
def test_a_batch_and_invertd_give_the_map_on_the_scan_as_monai_users_expect(
    tmp_path: Path, size: tuple[int, ...]
) -> None:
    affine = np.array([[-1.5, 0, 0, 40], [0, 2, 0, -30], [0, 0, 3, -12], [0, 0, 0, 1]])
    voxels = np.random.default_rng(0).gamma(2, 300, (30, 26, 12)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "scan.nii.gz")
    preprocessing = ScanPreprocessing(image_size=size)
    item = preprocessing({"image": str(tmp_path / "scan.nii.gz")})
    network = BrightVoxels(len(size)).eval()
    alone = StackInferer()(item["image"], network).anomaly_map
    batch = StackInferer(batch_size=3)(torch.stack([item["image"], 2 * item["image"]]), network)
    assert batch.shape == (2, 1, *item["image"].shape[1:])
    assert torch.equal(torch.as_tensor(batch[0]), alone)
    assert torch.equal(torch.as_tensor(batch[1]), 2 * alone)

    way_back = Invertd(keys="pred", transform=preprocessing, orig_keys="image")
    native = way_back({**item, "pred": MetaTensor(batch[0])})["pred"]
    assert torch.equal(native.as_tensor(), preprocessing.to_scan(alone, item["image"]))
    assert np.array_equal(native.affine, affine)
    assert native.shape == (1, 30, 26, 12)
    with pytest.raises(ValueError, match="four dimensions"):
        StackInferer()(item["image"][0], network)


@pytest.mark.parametrize("collated", [True, False])
def test_a_batch_runs_the_slices_with_tissue_alone(tmp_path: Path, collated: bool) -> None:
    scans = [GRID({"image": str(write_nifti(tmp_path / f"{seed}.nii.gz", seed))})["image"] for seed in (2, 4)]
    # a value that tells where the detector looked
    scans = [scan.clone() for scan in scans]
    for scan in scans:
        scan[..., EMPTY_SLICE] = scan.meta["foreground_level"][0]
    inferer, network = StackInferer(preprocessing=GRID), BrightVoxels().eval()
    if collated:
        maps = inferer(list_data_collate([{"image": scan} for scan in scans])["image"], network)
    else:
        maps = torch.cat([inferer(scan[None], network) for scan in scans])
    for one, scan in zip(maps, scans):
        alone = inferer(scan, network, GRID.tissue(scan)).anomaly_map
        assert torch.equal(torch.as_tensor(one), alone)
        assert not alone[..., EMPTY_SLICE].any()
    with pytest.raises(ValueError, match="MetaTensors"):
        inferer(torch.rand(1, 1, *SHAPE), network)


def test_what_is_flagged_is_what_the_peak_of_the_map_says(tmp_path: Path) -> None:
    """A scan whose score is the lowest of all may be flagged: the score is another test, and the row holds both."""
    network = BrightVoxels()
    network.calibration.fit({f"p{i}": 1e3 + i for i in range(19)}, {f"p{i}": 0.05 * i for i in range(19)})
    preprocessing = ScanPreprocessing((32, 32))
    items = [
        {"image": str(write_nifti(tmp_path / f"{seed}.nii.gz", seed)), "case": f"c{seed}", "patient": f"n{seed}"}
        for seed in range(4)
    ]
    evaluator = cohort_evaluator(network, preprocessing, scan_loader(items, preprocessing), tmp_path / "out", alpha=0.2)
    evaluator.run()
    rows = table(tmp_path / "out" / "predictions.csv")
    assert {row["p_value"] for row in rows} == {"1.0"}
    assert [row["flagged"] == "1" for row in rows] == [float(row["peak_p_value"]) <= 0.2 for row in rows]
    assert {row["flagged"] for row in rows} == {"1"}
    assert {row["mask_rule"] for row in rows} == {"family"}
