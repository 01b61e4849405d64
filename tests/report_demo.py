"""A small evaluation of simulated head slices, every figure computed from them: what the report's tests draw."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
from scipy.ndimage import gaussian_filter, label
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from monai_anomaly.calibration import conformal_quantile
from monai_anomaly.report.evaluation import (
    CaseResult,
    CaseSlice,
    CohortSide,
    Curve,
    DetectorFigures,
    DriftCheck,
    Estimate,
    Evaluation,
    ExtraTable,
    MetricColumn,
    ReportCalibration,
    ReportMethod,
    SeedSpread,
)

SIDE = 96
ALPHA = 0.05
# Would break the page, or run, if it were not escaped.
HOSTILE = '<img src="http://example.com/x.png" onerror=alert(1)>&amp;"\''


def _slices(rng: np.random.Generator, abnormal: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image, what a detector restores that blurs and keeps some of the lesion, and the lesion mask."""
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


def _bootstrap(
    metric: Callable[[np.ndarray, np.ndarray], float], truth: np.ndarray, scores: np.ndarray, rng: np.random.Generator
) -> Estimate:
    values = []
    while len(values) < 50:
        drawn = rng.integers(0, truth.size, truth.size)
        if 0 < truth[drawn].sum() < truth.size:
            values.append(metric(truth[drawn], scores[drawn]))
    low, high = np.percentile(values, (2.5, 97.5))
    return Estimate(metric(truth, scores), low, high)


def demo_evaluation(scans: int = 60, seed: int = 0) -> Evaluation:
    """Half of the scans are abnormal, two a patient; three detectors, four picture statistics, all levels."""
    rng = np.random.default_rng(seed)
    truth = np.arange(scans) % 2
    data = [_slices(rng, bool(abnormal)) for abnormal in truth]
    calibration_data = [_slices(rng, False) for _ in range(39)]
    images, masks = np.stack([image for image, _, _ in data]), np.stack([mask for _, _, mask in data])
    normals = np.stack([image for image, _, _ in calibration_data])
    maps = {
        "ProxyAno": np.stack([np.abs(image - restored) for image, restored, _ in data]),
        "intensity threshold": images,
        "z-score": np.abs(images - normals.mean(0)) / (normals.std(0) + 0.05),
    }
    calibration_maps = np.stack([np.abs(image - restored) for image, restored, _ in calibration_data])
    statistics = {
        "mean brightness": images.mean(axis=(1, 2)),
        "standard deviation": images.std(axis=(1, 2)),
        "sharpness": -np.abs(np.diff(images, axis=1)).mean(axis=(1, 2)),
        "slice position": rng.random(scans),
    }
    prevalence = {"image": float(truth.mean()), "pixel": float(masks.mean())}
    metrics = (
        MetricColumn("image", "auroc", "AUROC", headline=True, chance=0.5, two_sided=True),
        MetricColumn("image", "ap", "AP", chance=prevalence["image"]),
        MetricColumn("image", "sensitivity", "sensitivity at 95 % specificity"),
        MetricColumn("patient", "auroc", "AUROC", headline=True, chance=0.5, two_sided=True),
        MetricColumn("pixel", "ap", "AP", headline=True, chance=prevalence["pixel"]),
        MetricColumn("pixel", "auroc", "AUROC", chance=0.5),
        MetricColumn(
            "pixel",
            "best_dice",
            "best Dice",
            note="an oracle: its threshold was chosen with the labels it is measured on",
        ),
        MetricColumn("lesion", "found", "lesions found", headline=True),
        MetricColumn("lesion", "false", "false lesions per scan", higher_is_better=False),
    )

    def image_level(scores: np.ndarray) -> dict[str, Estimate]:
        specificity, sensitivity, _ = roc_curve(truth, scores)
        return {
            "auroc": _bootstrap(roc_auc_score, truth, scores, rng),
            "ap": _bootstrap(average_precision_score, truth, scores, rng),
            "sensitivity": Estimate(float(sensitivity[specificity <= 0.05].max())),
        }

    detectors, curves = [], []
    scan_scores = {name: np.percentile(each, 99.5, axis=(1, 2)) for name, each in maps.items()} | statistics
    for name, scores in scan_scores.items():
        kind = "method" if name == "ProxyAno" else "baseline" if name in maps else "picture statistic"
        levels: dict[str, dict[str, Estimate]] = {"image": image_level(scores)}
        false_rate, sensitivity, _ = roc_curve(truth, scores)
        precision, recall, _ = precision_recall_curve(truth, scores)
        curves += [
            Curve(name, kind, "image", "roc", false_rate, sensitivity),
            Curve(name, kind, "image", "pr", recall, precision),
        ]
        if name in maps:
            flat, wanted = maps[name].ravel(), masks.ravel()
            precision, recall, _ = precision_recall_curve(wanted, flat)
            curves.append(Curve(name, kind, "pixel", "pr", recall, precision))
            by_scan = [
                average_precision_score(mask.ravel(), each.ravel())
                for mask, each in zip(masks, maps[name])
                if mask.any()
            ]
            spread = 2 * float(np.std(by_scan)) / np.sqrt(len(by_scan))
            value = float(average_precision_score(wanted, flat))
            levels["pixel"] = {
                "ap": Estimate(value, max(0.0, value - spread), value + spread),
                "auroc": Estimate(float(roc_auc_score(wanted, flat))),
                "best_dice": Estimate(float(np.max(2 * precision * recall / np.maximum(precision + recall, 1e-9)))),
            }
        detectors.append(DetectorFigures(name, kind, levels))

    calibration_scores = np.percentile(calibration_maps, 99.5, axis=(1, 2))
    import torch

    score_threshold = conformal_quantile(torch.from_numpy(calibration_scores), ALPHA)
    map_threshold = conformal_quantile(torch.from_numpy(calibration_maps.max(axis=(1, 2))), ALPHA)
    assert score_threshold is not None
    assert map_threshold is not None
    scores, own_maps = scan_scores["ProxyAno"], maps["ProxyAno"]
    cases, found, lesions, false_lesions = [], 0, 0, 0
    for index, (image, restored, mask) in enumerate(data):
        flagged_pixels = own_maps[index] > map_threshold
        labelled, count = label(mask)
        hit = len(set(labelled[flagged_pixels].tolist()) - {0})
        found, lesions = found + hit, lesions + count
        false_lesions += label(flagged_pixels & ~mask)[1]
        reference = mask if truth[index] else None
        cases.append(
            CaseResult(
                name=f"sub-{index // 2:03d}__slice_{index:03d}.nii.gz" if index != scores.argmax() else HOSTILE,
                score=float(scores[index]),
                label=int(truth[index]),
                p_value=(1 + int((calibration_scores >= scores[index]).sum())) / (1 + calibration_scores.size),
                flagged=bool(scores[index] > score_threshold),
                marked=bool(flagged_pixels.any()),
                patient=f"Doe^Jane{index // 4}",
                lesions=count if truth[index] else None,
                lesions_found=hit if truth[index] else None,
                pictures=CaseSlice(
                    image=image,
                    restoration=restored,
                    anomaly_map=own_maps[index],
                    mask=flagged_pixels,
                    reference=reference,
                    window=(0.0, 1.2),
                    label="axial slice 12 (highest score)",
                    letters=("R", "L", "A", "P"),
                ),
            )
        )
    patients = list(dict.fromkeys(case.patient for case in cases))
    patient_truth = np.array([max(case.label or 0 for case in cases if case.patient == name) for name in patients])
    one_class = len(set(patient_truth.tolist())) == 1
    assert one_class  # every simulated patient has an abnormal slice
    reason = "no patient of the test set is normal"
    detectors = [
        DetectorFigures(
            each.name,
            each.kind,
            {
                **each.levels,
                "patient": {"auroc": Estimate(None, undefined=reason)},
                **(
                    {"lesion": {"found": Estimate(found / lesions), "false": Estimate(false_lesions / scans)}}
                    if each.kind == "method"
                    else {}
                ),
            },
        )
        for each in detectors
    ]
    own_auroc = detectors[0].levels["image"]["auroc"].value
    assert own_auroc is not None
    resampled = {each: _bootstrap(roc_auc_score, truth, scores, np.random.default_rng(each)).low for each in range(3)}
    return Evaluation(
        title=f"ProxyAno on simulated heads {HOSTILE}",
        method=ReportMethod(
            name="ProxyAno",
            version="0.2.0",
            weights="model.pt, SHA-256 " + hashlib.sha256(b"weights").hexdigest(),
            settings={"image_size": [SIDE, SIDE], "optimizer": {"name": "Adam", "lr": 1e-3}, "mask clean-up": None},
        ),
        cohort=[
            CohortSide(name, count, people, hashlib.sha256(name.encode()).hexdigest(), *split)
            for name, count, people, split in (
                ("training", 232, 45, (232, 0)),
                ("calibration", 39, 39, (39, 0)),
                ("test", scans, len(patients), (int((truth == 0).sum()), int(truth.sum()))),
            )
        ],
        metrics=metrics,
        detectors=detectors,
        calibration=ReportCalibration(
            alpha=ALPHA,
            patients=calibration_scores.size,
            score_threshold=score_threshold,
            map_threshold=map_threshold,
            rule="a scan is flagged where its score is above the 38th of 39 calibration scores",
            scores=calibration_scores,
            drift=[
                DriftCheck("scores (Kolmogorov-Smirnov)", "D = 0.11, p = 0.62"),
                DriftCheck("spacing", "0.8 mm against 1.0 mm in calibration", warning=True),
            ],
        ),
        intervals="95 % bootstrap, 50 resamples of scans",
        prevalence=prevalence,
        curves=curves,
        cases=cases,
        spreads=[
            SeedSpread("ProxyAno", "image", "auroc", {each: value for each, value in resampled.items() if value}),
        ],
        tables=[
            ExtraTable(
                "By scanner",
                ["scanner", "scans", "image AUROC"],
                [
                    ["A", scans, detectors[0].levels["image"]["auroc"]],
                    ["B", 0, Estimate(None, undefined="no scan")],
                ],
                detector="ProxyAno",
                level="image",
            )
        ],
        failures=[("sub-999__broken.nii.gz", f"sub-999/broken.nii.gz: is no NIfTI file {HOSTILE}.")],
        scores_of="99.5th percentile of the anomaly map",
    )
