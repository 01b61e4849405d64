"""A small evaluation of simulated head slices, every figure computed from them: what the report's tests draw."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from monai_anomaly.calibration import conformal_quantile
from monai_anomaly.metrics import CohortFigures, Figure, Thresholds, count_lesions
from monai_anomaly.report import CaseResult, CaseSlice, Evaluation

SIDE = 96
ALPHA = 0.05
# Would break the page, or run, if it were not escaped.
HOSTILE = '<img src="http://example.com/x.png" onerror=alert(1)>&amp;"\''


def _slices(rng: np.random.Generator, abnormal: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image, the reconstruction of a detector that blurs and keeps some of the lesion, and the lesion mask."""
    rows, columns = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    radius = np.hypot(rows / rng.uniform(0.82, 0.92), columns / rng.uniform(0.68, 0.78))
    tissue = gaussian_filter(rng.standard_normal((SIDE, SIDE)), 3.0)
    clean = np.where(radius < 1, 0.5 + 0.8 * tissue, 0.0) + np.where(np.abs(radius - 1) < 0.06, 0.35, 0.0)
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    if abnormal:
        for _ in range(rng.integers(1, 4)):
            y, x = rng.uniform(-0.5, 0.5, 2)
            mask |= np.hypot(rows - y, columns - x) < rng.uniform(0.05, 0.16)
    mask &= radius < 1
    lesion = rng.uniform(0.1, 0.7) * mask
    image = clean + lesion + 0.02 * rng.standard_normal((SIDE, SIDE))
    return image, gaussian_filter(clean + 0.3 * lesion, 0.7), mask


def settings_of(**changes: Any) -> dict[str, Any]:
    """The settings of a run with nothing in it."""
    method = {"name": "own", "version": "0.0", "weights": "none", "settings": {}}
    return {"method": method, "cohort": [], "calibration": None, "mask": None, "failures": [], **changes}


def demo_evaluation(scans: int = 60, seed: int = 0) -> tuple[Evaluation, list[CaseResult], np.ndarray]:
    """Half of the scans are abnormal, two a patient; three detectors, an image statistic, all levels.

    Returns:
        The evaluation, its cases, and the calibration scores.
    """
    rng = np.random.default_rng(seed)
    data = [_slices(rng, bool(index % 2)) for index in range(scans)]
    calibration = [_slices(rng, False) for _ in range(39)]
    normal = np.stack([image for image, _, _ in calibration])

    def maps_of(image: np.ndarray, restored: np.ndarray) -> dict[str, np.ndarray]:
        z_score = np.abs(image - normal.mean(0)) / (normal.std(0) + 0.05)
        return {"ProxyAno": np.abs(image - restored), "intensity threshold": image, "z-score": z_score}

    calibration_maps = np.stack([maps_of(image, restored)["ProxyAno"] for image, restored, _ in calibration])
    calibration_scores = np.percentile(calibration_maps, 99.5, axis=(1, 2))
    score_threshold = conformal_quantile(torch.from_numpy(calibration_scores), ALPHA)
    map_threshold = conformal_quantile(torch.from_numpy(calibration_maps.max(axis=(1, 2))), ALPHA)
    assert score_threshold is not None
    assert map_threshold is not None
    at = {"family 0.05": map_threshold}
    own = Thresholds(score_threshold, {**at, "paper": 0.5}, at, map_threshold)
    measured = CohortFigures({"ProxyAno": own, "intensity threshold": Thresholds(), "z-score": Thresholds()})
    cases = []
    for index, (image, restored, mask) in enumerate(data):
        maps = maps_of(image, restored)
        scores = {name: float(np.percentile(each, 99.5)) for name, each in maps.items()}
        flagged = maps["ProxyAno"] > map_threshold
        item = {"patient": f"Doe^Jane{index // 4}", "label": index % 2, "site": "AB"[index % 3 == 0]}
        measured.add(item, scores, maps, mask, flagged, "image")
        lesions, found = count_lesions(mask, flagged)
        drawn = CaseSlice(
            image=image,
            restoration=restored,
            anomaly_map=maps["ProxyAno"],
            mask=flagged,
            reference=mask if index % 2 else None,
            window=(0.0, 1.2),
            label="axial slice 12 (highest score)",
            letters=("R", "L", "A", "P"),
        )
        cases.append(
            CaseResult(
                name=f"sub-{index // 2:03d}__slice_{index:03d}.nii.gz",
                score=scores["ProxyAno"],
                label=index % 2,
                p_value=(1 + int((calibration_scores >= scores["ProxyAno"]).sum())) / (1 + calibration_scores.size),
                flagged=scores["ProxyAno"] > score_threshold,
                marked=bool(flagged.any()),
                patient=item["patient"],
                lesions=lesions if index % 2 else None,
                lesions_found=found if index % 2 else None,
                pictures=lambda drawn=drawn: drawn,  # type: ignore[misc]
            )
        )
    worst = max(range(scans), key=lambda index: cases[index].score)
    cases[worst] = replace(cases[worst], name=HOSTILE)
    figures = measured.compute()
    figures.add(Figure("mean brightness", "image", "", "auroc", 0.61, 0.52, 0.7, scans, "higher in abnormal scans"))
    sides = (("training", 232, 45, {}), ("test", scans, scans // 4, {"normal": scans // 2, "abnormal": scans // 2}))
    kinds = {"ProxyAno": "method", "intensity threshold": "baseline", "z-score": "baseline"}
    settings = settings_of(
        method={
            "name": "ProxyAno",
            "version": "0.2.0",
            "weights": "model.pt, SHA-256 " + hashlib.sha256(b"weights").hexdigest(),
            "settings": {"image_size": [SIDE, SIDE], "optimizer": {"name": "Adam", "lr": 1e-3, HOSTILE: None}},
        },
        cohort=[
            {"name": name, "scans": count, "patients": people, "sha256": hashlib.sha256(name.encode()).hexdigest()}
            | labels
            for name, count, people, labels in sides
        ],
        calibration={
            "alpha": ALPHA,
            "patients": calibration_scores.size,
            "score_threshold": score_threshold,
            "map_threshold": map_threshold,
            "rule": "a scan is flagged where its score is above the 38th of 39 calibration scores",
            "drift": [
                {"name": "scores", "finding": "D = 0.11, p = 0.62", "warning": False, "compared": True},
                {"name": "spacing", "finding": "0.8 mm against 1.0 mm", "warning": True, "compared": True},
            ],
        },
        failures=[{"case": "sub-999__broken.nii.gz", "error": f"broken.nii.gz: is no NIfTI file {HOSTILE}."}],
        detectors={**kinds, "mean brightness": "image statistic"},
        confounders={"sentence": "The brightness says little.", "separates": False},
        intervals="95 % bootstrap over patients",
    )
    return Evaluation(settings, figures, measured.curves()), cases, calibration_scores
