"""Ensembles: p-values against their definition, a calibration that holds, files that come back, misfits rejected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_runs import cohort_evaluator, table

from monai_anomaly.calibration import ScanTail
from monai_anomaly.data import ScanPreprocessing
from monai_anomaly.engines import (
    StackInferer,
    calibrate,
    load_detector,
    load_members,
    save_detector,
    scan_loader,
)
from monai_anomaly.exceptions import InputError
from monai_anomaly.networks import AnomalyDetector, Autoencoder, Ensemble, IntensityThreshold, ZScore

SIZE = (16, 16)
GRID = ScanPreprocessing(image_size=SIZE)


def write(folder: Path, count: int, seed: int = 0, scans: int = 1) -> list[dict[str, Any]]:
    """Small noisy scans of three slices, by patient."""
    random = np.random.default_rng(seed)
    items = []
    for patient in range(count):
        for number in range(scans):
            voxels = np.zeros((16, 16, 3), dtype=np.float32)
            voxels[2:14, 2:14] = 100 + random.normal(0, 10, (12, 12, 3)) + random.gamma(1, 30, (12, 12, 3))
            path = folder / f"s{seed}_{patient}_{number}.nii.gz"
            nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
            name = f"s{seed}p{patient:03d}"
            items.append({"case": path.name[:-7], "image": str(path), "patient": name, "label": 0, "mask": None})
    return items


def members() -> list[AnomalyDetector]:
    torch.manual_seed(0)
    zscore = ZScore(image_size=SIZE)
    zscore.fit_statistics([torch.rand(6, 1, *SIZE)], [])
    return [IntensityThreshold().eval(), IntensityThreshold(bright=False).eval(), zscore.eval()]


def fitted(member: AnomalyDetector, seed: int, patients: int = 12) -> AnomalyDetector:
    """Calibrated on random figures."""
    random = np.random.default_rng(seed)
    scores = {f"p{i:02d}": float(np.float32(random.random())) for i in range(patients)}
    member.calibration.fit(scores, scores)
    member.calibration.tail.fit({patient: [ScanTail.of(random.random(400))] for patient in scores})
    return member


@pytest.mark.parametrize("combine", ["fisher", "max"])
def test_score_and_map_are_those_of_the_members_p_values(combine: str) -> None:
    detectors = [fitted(member, seed) for seed, member in enumerate(members())]
    ensemble = Ensemble.of(detectors, combine)
    image = torch.rand(3, 1, *SIZE)
    found = ensemble.detect(image)
    outputs = [detector.detect(image) for detector in detectors]
    for i in range(3):
        logs = [
            -np.log((1 + int((d.calibration.scores >= o.anomaly_score[i]).sum())) / 13)
            for d, o in zip(detectors, outputs)
        ]
        assert float(found.anomaly_score[i]) == pytest.approx(2 * sum(logs) if combine == "fisher" else max(logs))
    mean = sum(d.calibration.tail.log_p(o.anomaly_map) for d, o in zip(detectors, outputs)) / 3
    torch.testing.assert_close(found.anomaly_map, mean)
    assert found.restoration is None  # the intensity restores nothing
    both = Ensemble.of([detectors[2], detectors[2]]).detect(image).restoration
    torch.testing.assert_close(both, outputs[2].restoration)


@pytest.mark.slow
def test_calibration_and_files(tmp_path: Path) -> None:
    data = write(tmp_path, 20)
    ensemble = Ensemble.of(members())
    assert calibrate(ensemble, data, GRID, progress=False) == []
    assert ensemble.calibration.scores.shape == (20,)
    assert all(member.calibration.scores.shape == (20,) for member in ensemble.members)
    save_detector(tmp_path / "models", ensemble, GRID, {})
    again = load_detector(tmp_path / "models")
    assert isinstance(again.network, Ensemble)
    assert [member["name"] for member in again.description["network"]["arguments"]["members"]] == [
        "IntensityThreshold",
        "IntensityThreshold",
        "ZScore",
    ]
    state = again.network.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in ensemble.state_dict().items())
    # a whole run, slices without tissue included
    loader = scan_loader(write(tmp_path, 2, seed=1), again.preprocessing)
    evaluator = cohort_evaluator(again.network, again.preprocessing, loader, tmp_path / "out", calibrated_map="logp")
    evaluator.run()
    evaluator.finish()
    assert all(0 < float(row["p_value"]) <= 1 for row in table(tmp_path / "out" / "predictions.csv"))
    assert (tmp_path / "out" / "s1_0_0" / "anomaly_mask.nii.gz").is_file()


def test_a_calibration_patient_is_scored_without_its_own_part(tmp_path: Path) -> None:
    data = write(tmp_path, 6, scans=2)
    ensemble = Ensemble.of(members())
    calibrate(ensemble, data, GRID, progress=False)
    inferer = StackInferer()
    scans = [(item["patient"], GRID.stack(GRID.load(item["image"]))) for item in data]
    per_member = [
        [(patient, float(inferer(stack, member, GRID.tissue(stack)).anomaly_score)) for patient, stack in scans]
        for member in ensemble.members
    ]
    expected: dict[str, float] = {}
    for i, (patient, _) in enumerate(scans):
        total = 0.0
        for scored in per_member:
            others = {p for p, _ in scored} - {patient}
            shares = [np.mean([s >= scored[i][1] for p, s in scored if p == other]) for other in others]
            total -= 2 * np.log((1 + sum(shares)) / 7)
        expected[patient] = max(expected.get(patient, 0.0), total)
    assert ensemble.calibration.scores.tolist() == pytest.approx([expected[p] for p in sorted(expected)], rel=1e-5)
    # new scans meet the whole tables again
    stack = scans[0][1]
    whole = float(inferer(stack, ensemble, GRID.tissue(stack)).anomaly_score)
    assert whole <= float(ensemble.calibration.scores.max())
    assert all(torch.isfinite(m.calibration.item_scores).all() for m in ensemble.members)


def combined(scores: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Fisher's statistic of scores (B, M) by counts in a reference (n, M)."""
    counts = (reference[None] >= scores[:, None]).sum(axis=1)
    return -2 * np.log((1 + counts) / (len(reference) + 1)).sum(axis=1)


@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_error_rate_of_the_scheme(correlation: float) -> None:
    # the arithmetic of calibrate on simulated scores of four members
    random = np.random.default_rng(8)
    n, alpha, trials = 19, 0.1, 3000
    flagged = naive = 0
    for _ in range(trials):
        scores = random.normal(size=(n + 1, 4)) + 3 * correlation * random.normal(size=(n + 1, 1))
        known, new = scores[:n], scores[n:]
        # counted without its own entry, out of n + 1
        own = -2 * np.log(((known[None] >= known[:, None]).sum(axis=1)) / (n + 1)).sum(axis=1)
        at = combined(new, known)[0]
        flagged += (1 + (own >= at - 1e-12).sum()) / (n + 1) <= alpha
        naive += (1 + (combined(known, known) >= at - 1e-12).sum()) / (n + 1) <= alpha
    error = 3 * np.sqrt(alpha * (1 - alpha) / trials)
    assert flagged / trials <= alpha + error
    assert flagged / trials > 0.4 * alpha
    # with its own entry counted a calibration normal looks more normal than a new one
    assert naive > flagged


@pytest.mark.slow
def test_family_wise_rate_of_ensemble_maps(tmp_path: Path) -> None:
    flagged = tested = 0
    for seed in range(8):
        ensemble = Ensemble.of(members()[1:])
        (tmp_path / str(seed)).mkdir()
        calibrate(ensemble, write(tmp_path / str(seed), 9, seed=10 * seed + 1), GRID, progress=False)
        threshold = ensemble.calibration.map_threshold(0.1)
        assert threshold is not None
        for item in write(tmp_path / str(seed), 10, seed=10 * seed + 2):
            stack = GRID.stack(GRID.load(item["image"]))
            output = StackInferer()(stack, ensemble, GRID.tissue(stack))
            flagged += float(GRID.to_scan(output.anomaly_map, stack).max()) > threshold
            tested += 1
    # of 8 cohorts of 10 normals, the spread of a beta-binomial(9, 10) about 0.1
    assert flagged / tested <= 0.1 + 3 * 0.13 / np.sqrt(8)


def test_torchscript_equals_the_ensemble() -> None:
    torch.manual_seed(1)
    autoencoder = Autoencoder(channels=(4, 4), latent_channels=4).eval()
    ensemble = Ensemble.of([fitted(autoencoder, 0), fitted(IntensityThreshold().eval(), 1)])
    image = torch.rand(2, 1, *SIZE)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(ensemble)(image), ensemble(image))


def test_members_that_take_other_images_are_refused(tmp_path: Path) -> None:
    config = IntensityThreshold().config
    with pytest.raises(ValueError, match="two members or more, got 1"):
        Ensemble([config])
    with pytest.raises(ValueError, match="'fisher' or 'max'"):
        Ensemble([config, config], "mean")
    with pytest.raises(ValueError, match=r"member 1 \(IntensityThreshold\) has in_channels 1, member 2 .* 3"):
        Ensemble([config, IntensityThreshold(in_channels=3).config])
    with pytest.raises(ValueError, match="member 2 is an ensemble itself"):
        Ensemble([config, Ensemble([config, config]).config])
    with pytest.raises(ValueError, match="member 'Unheard' is unknown"):
        Ensemble([config, {"name": "Unheard", "arguments": {}}])
    with pytest.raises(ValueError, match="not calibrated"):
        Ensemble([config, config]).detect(torch.rand(1, 1, *SIZE))
    for name, size, network in (("a", 16, ZScore(image_size=SIZE)), ("b", 32, IntensityThreshold())):
        save_detector(tmp_path / name, network, ScanPreprocessing(image_size=(size, size)), {})
    with pytest.raises(InputError, match=r"b: image_size is \[32, 32\], of .*a \[16, 16\]\. Train all members alike"):
        load_members([tmp_path / "a", tmp_path / "b"])
    save_detector(tmp_path / "c", IntensityThreshold(in_channels=3), ScanPreprocessing(image_size=SIZE), {})
    with pytest.raises(InputError, match="has in_channels 1, member 2"):
        load_members([tmp_path / "a", tmp_path / "c"])
    ensemble, preprocessing = load_members([tmp_path / "a", tmp_path / "a"])
    assert preprocessing.config == ScanPreprocessing(image_size=SIZE).config
    assert len(ensemble.members) == 2
