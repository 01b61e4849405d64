"""From an evaluation's metrics to the tables and curves of its report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from monai_anomaly.calibration import ConformalCalibration
from monai_anomaly.metrics import LesionDetection
from monai_anomaly.report.evaluation import CohortSide, Curve, DriftCheck, Estimate, ExtraTable, MetricColumn

__all__ = [
    "cohort_sides",
    "detector_settings",
    "drift_checks",
    "froc_curves",
    "group_tables",
    "lesion_floor",
    "lesion_tables",
    "lesion_thresholds",
    "level_notes",
    "mask_rule_text",
    "mask_table",
    "metric_columns",
    "scan_curves",
    "table_figures",
]

# Rates of false alarms that lesions are counted at beside alpha itself: multiples of alpha for the family-wise ones,
# as they are for the voxel-wise ones.
_FAMILY_MULTIPLES = (1, 2, 4)
_VOXEL_RATES = (1e-2, 1e-3)

_NOT_CALIBRATED = "not calibrated on normals, so it has no threshold"
_NO_PAPER = "no paper states a threshold of its maps"
_RANKINGS = {"auroc": "AUROC", "ap": "AP", "sensitivity_at_specificity": "sensitivity at 95 % specificity"}
_DECISIONS = {"accuracy": "accuracy (ACC)", "f1": "F1"}
_GAPS = {"gap": "score gap", "gap_in_sd": "score gap in standard deviations"}
_RULES = {"family": "family-wise threshold", "voxel": "voxel-wise threshold", "paper": "the paper's threshold"}
_LESION = {
    "sensitivity": "lesions found",
    "false_lesions_per_scan": "false lesions per scan",
    "froc_score": "FROC score",
}
# Facts of ``drift_report`` that make one line of the report.
_DRIFT_LINES: tuple[tuple[str, dict[str, str]], ...] = (
    ("intensity", {"mean": "intensity_mean", "spread": "intensity_spread"}),
    ("spacing (mm; pictures: pixels)", {"R": "spacing_r", "A": "spacing_a", "S": "spacing_s"}),
    ("field of view (mm; pictures: pixels)", {"R": "extent_r", "A": "extent_a", "S": "extent_s"}),
    ("foreground (share of voxels)", {"": "foreground_share"}),
)


def lesion_thresholds(calibration: ConformalCalibration, alpha: float) -> dict[str, float]:
    """The thresholds that lesions are counted at, all of them from calibration normals.

    Args:
        calibration: of the detector.
        alpha: rate that its mask is set for.

    Returns:
        ``family`` and ``voxel``, at ``alpha`` as of ``ConformalCalibration``, and ``family <rate>`` and
        ``voxel <rate>`` at further rates; those alone that the number of calibration patients allows.
    """
    found = {
        "family" if multiple == 1 else f"family {multiple * alpha:g}": calibration.map_threshold(multiple * alpha)
        for multiple in _FAMILY_MULTIPLES
        if multiple * alpha < 1
    }
    found["voxel"] = calibration.voxel_threshold(alpha)
    found |= {f"voxel {rate:g}": calibration.voxel_threshold(rate) for rate in _VOXEL_RATES if rate < alpha}
    return {name: value for name, value in found.items() if value is not None}


def lesion_floor(thresholds: Mapping[str, float]) -> float | None:
    """Where the candidates of the free-response curve begin; None without any threshold.

    Args:
        thresholds: of ``lesion_thresholds``. Voxel-wise ones at coarse rates join half a scan into one candidate, so
            that the lowest of the others is taken, where there is one.
    """
    finest = f"voxel {min(_VOXEL_RATES):g}"
    usable = [value for name, value in thresholds.items() if name.startswith("family") or name == finest]
    return min(usable or thresholds.values(), default=None)


def _rule(name: str) -> str:
    rule, _, rate = name.partition(" ")
    return _RULES.get(rule, rule) + (f" at {rate}" if rate else "")


def metric_columns(
    metrics: Mapping[str, Any], thresholds: Mapping[str, float], score_threshold: float | None
) -> list[MetricColumn]:
    """What the tables of the report show, level by level.

    Args:
        metrics: of ``EvaluationRecorder.metrics``.
        thresholds: of maps, by name, that the method's voxels were decided at.
        score_threshold: of scans; None where there is none.
    """
    decided = "at the threshold that was calibrated on normals alone"
    columns = []
    scan_levels: tuple[Literal["image", "patient"], ...] = ("image", "patient")
    for level in scan_levels:
        columns += [
            MetricColumn(
                level,
                key,
                label,
                headline=key == "auroc",
                chance={"auroc": 0.5, "ap": metrics[level]["prevalence"]}.get(key),
                two_sided=level == "image" and key == "auroc",
            )
            for key, label in _RANKINGS.items()
        ]
        if score_threshold is not None:
            columns += [MetricColumn(level, key, label, note=decided) for key, label in _DECISIONS.items()]
    gap = (
        "mean score of abnormal less that of normal scans, in the unit of the scores, which detectors do not share, "
        "and in standard deviations of the normal scans' scores"
    )
    columns += [MetricColumn("image", key, label, note=gap) for key, label in _GAPS.items()]

    pixel = metrics["pixel"]
    rate = f"{100 * pixel['fpr']:g} % voxel FPR"
    read_off = "at a threshold read off the normal voxels of the test set itself"
    oracle = "an oracle: its threshold is chosen with the labels that it is measured on; no detector in use reaches it"
    share = pixel["prevalence"]
    columns += [
        MetricColumn("pixel", "ap", "AP", headline=share is not None, chance=share),
        MetricColumn("pixel", "auroc", "AUROC", chance=0.5, headline=share is None),
        MetricColumn("pixel", "aupro", f"AUPRO up to {pixel['aupro_limit']:g}"),
    ]
    for name, value in thresholds.items():
        shown, note = {"dice": "Dice", "sensitivity": "sensitivity"}, decided
        if name == "paper":
            shown = {"accuracy": "accuracy (ACC)", "dice": "F1 (= Dice)", "sensitivity": "sensitivity"}
            note = f"above {value:g}, where the method's paper puts it whatever the data: no rate of false alarms holds"
        columns += [
            MetricColumn("pixel", f"{key}/{name}", f"{label}, {_rule(name)}", note=note) for key, label in shown.items()
        ]
    columns += [
        MetricColumn("pixel", "dice_at_fpr", f"Dice at {rate}", note=read_off),
        MetricColumn("pixel", "sensitivity_at_fpr", f"sensitivity at {rate}", note=read_off),
        MetricColumn("pixel", "best_dice", "best Dice (oracle)", note=oracle),
    ]
    for kind, found in metrics["lesion"].items():
        suffix = f", {kind}s" if len(metrics["lesion"]) > 1 else ""
        for key, label in _LESION.items():
            if key != "froc_score" and "family" not in found["at"]:
                continue
            note = f"at the {_rule('family')}; found where a voxel lies above it, false where no true lesion is touched"
            if key == "froc_score":
                note = "mean share of lesions found at 1/4, 1/2, 1, 2, 4 and 8 false lesions per scan"
            higher = key != "false_lesions_per_scan"
            columns.append(
                MetricColumn("lesion", f"{kind}/{key}", f"{label}{suffix}", higher_is_better=higher, note=note)
            )
    return columns


def table_figures(
    columns: Sequence[MetricColumn], found: Mapping[str, Any], intervals: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Estimate]]:
    """A detector's figures, by level and column.

    Args:
        columns: of ``metric_columns``.
        found: its metrics: ``image``, ``patient``, ``pixel``, ``gap`` and ``lesion``.
        intervals: by level what ``bootstrap_intervals`` or ``VoxelIntervals.compute`` gave.
    """
    levels: dict[str, dict[str, Estimate]] = {}
    for column in columns:
        value, reason = _figure(column.level, column.key, found)
        bounds = intervals.get(column.level, {}).get("intervals", {}).get(column.key)
        levels.setdefault(column.level, {})[column.key] = _estimate(value, reason, bounds)
    return levels


def _estimate(value: float | None, reason: str, bounds: Mapping[str, Any] | None = None) -> Estimate:
    if value is None:
        return Estimate(None, undefined=reason or "undefined")
    return Estimate(value, (bounds or {}).get("low"), (bounds or {}).get("high"))


def _figure(level: str, key: str, found: Mapping[str, Any]) -> tuple[float | None, str]:
    """A value, or None with the reason."""
    if level == "lesion":
        kind, _, name = key.partition("/")
        of_kind = found.get("lesion", {}).get(kind)
        if of_kind is None:
            return None, _NOT_CALIBRATED
        value = of_kind["froc_score"] if name == "froc_score" else of_kind["at"]["family"][name]
        return value, of_kind["undefined"].get(name, "")
    if key in _GAPS:
        return found["gap"][key], found["gap"]["undefined"].get(key, "")
    part, missing = found[level], _NOT_CALIBRATED
    if level == "pixel" and "/" in key:
        key, _, threshold = key.partition("/")
        part = part["decisions"].get(threshold)
        missing = _NO_PAPER if threshold == "paper" else missing
    elif key in _DECISIONS:
        part = part["decision"]
    if part is None:
        return None, missing
    return part[key], part["undefined"].get(key, "")


def level_notes(columns: Sequence[MetricColumn], intervals: Mapping[str, Mapping[str, Any]]) -> dict[Any, list[str]]:
    """Level by level, which figures of the method have no interval, and why, and where the curve of lesions begins.

    Args:
        columns: of ``metric_columns``.
        intervals: of the method, as for ``table_figures``.
    """
    notes: dict[Any, list[str]] = {}
    for level in dict.fromkeys(column.level for column in columns):
        if level == "lesion":
            notes[level] = [
                "No intervals: lesions are pooled over scans, not kept by patient.",
                "The FROC curve begins at the lowest of the family-wise thresholds below and the voxel-wise one at "
                f"{min(_VOXEL_RATES):g}; further down, candidates run into one another.",
            ]
            continue
        reasons: dict[str, list[str]] = {}
        bounds = intervals.get(level, {})
        for column in columns:
            if column.level != level or bounds.get("intervals", {}).get(column.key, {}).get("low") is not None:
                continue
            reason = bounds.get("undefined", {}).get(column.key, "it is not resampled")
            reasons.setdefault(reason, []).append(column.label)
        notes[level] = [f"No interval of {'; '.join(labels)}: {reason}." for reason, labels in reasons.items()]
    return notes


def mask_rule_text(settings: Mapping[str, Any]) -> str:
    """How masks were made, in words.

    Args:
        settings: of ``EvaluationRecorder.mask_settings``.
    """
    parts = ["voxels outside of the foreground"] if settings["inside_foreground"] else []
    if settings["least_lesion_mm3"]:
        parts.append(f"findings below {settings['least_lesion_mm3']:g} mm³ (of pictures: pixels)")
    cleaned = f"cleaned of {' and '.join(parts)}" if parts else "not cleaned up"
    return f"a mask holds the voxels above the {_rule(settings['rule'])} of maps, {cleaned}"


def mask_table(found: Mapping[str, Any], detector: str) -> list[ExtraTable]:
    """The figures of the masks as written; none without masks.

    Args:
        found: ``decisions``, ``mask`` of ``EvaluationRecorder.metrics``.
        detector: its name.
    """
    from scipy.stats import binomtest

    settings, undefined = found["settings"], found["undefined"]
    if settings is None:
        return []
    flagged = _estimate(found["normal_patients_flagged"], undefined.get("normal_patients_flagged", ""))
    if found["num_normal_patients"]:
        test = binomtest(found["num_normal_patients_flagged"], found["num_normal_patients"])
        bounds = test.proportion_ci(0.95, method="exact")
        flagged = Estimate(flagged.value, bounds.low, bounds.high)
    family = settings["rule"] == "family"
    cells: dict[str, Any] = {
        "mask": f"{settings['rule']} {settings['alpha']:g}",
        "alpha": Estimate(settings["alpha"]),
        "normal patients flagged": flagged,
        "normal patients": found["num_normal_patients"],
        "Dice": _estimate(found["dice"], undefined.get("dice", "")),
        "sensitivity": _estimate(found["sensitivity"], undefined.get("sensitivity", "")),
        "voxel FPR": _estimate(found["fpr"], undefined.get("fpr", "")),
        "lesions found": _estimate(found["lesion_sensitivity"], undefined.get("lesion_sensitivity", "")),
        "lesions": found["num_lesions"],
    }
    for kind, lesions in found["lesion"].items():
        suffix = f", {kind}s" if len(found["lesion"]) > 1 else ""
        cells[f"false lesions per scan{suffix}"] = _estimate(
            lesions["false_lesions_per_scan"], lesions["undefined"].get("false_lesions_per_scan", "")
        )
    rate = "normal patients with any flagged voxel" if family else "normal tissue voxels that are flagged"
    note = (
        f"The figures of the files: {mask_rule_text(settings)}. alpha is the promised rate of {rate}. Of the normal "
        "patients here the share whose masks have any voxel, with its exact binomial 95 % interval. A lesion is found "
        "where the mask touches it."
    )
    return [ExtraTable("Masks as written", list(cells), [list(cells.values())], note, detector=detector, level="pixel")]


def lesion_tables(metrics: Mapping[str, Any], detector: str, alpha: float) -> list[ExtraTable]:
    """Lesions found by their size, and false ones, at each of the calibrated thresholds.

    Args:
        metrics: of ``EvaluationRecorder.metrics``, or of one of its ``baselines``.
        detector: its name.
        alpha: the rate of the thresholds whose names have none.
    """
    tables = []
    for kind, found in metrics["lesion"].items():
        unit = {"mm3": "mm³", "voxels": "pixels" if kind == "picture" else "voxels", None: ""}[found["unit"]]
        sizes = found["size_classes"]
        heads = [f"{name} (from {size['from']:g} {unit}, n = {size['lesions']})" for name, size in sizes.items()]
        rows: list[list[str | Estimate]] = []
        for name, at in found["at"].items():
            overall = found["undefined"].get("sensitivity", "")
            by_size = [
                _estimate(at["sensitivity_by_size"][size], found["undefined"].get(f"sensitivity_by_size/{size}", ""))
                for size in sizes
            ]
            false = _estimate(at["false_lesions_per_scan"], found["undefined"].get("false_lesions_per_scan", ""))
            rule, _, rate = name.partition(" ")
            rows.append([f"{rule} {rate or f'{alpha:g}'}", _estimate(at["sensitivity"], overall), *by_size, false])
        rows.sort(key=lambda row: getattr(row[-1], "value", None) or 0.0)
        tables.append(
            ExtraTable(
                f"Lesions found by {detector}, by size ({kind}s)",
                ["threshold", f"all (n = {found['num_lesions']})", *heads, "false lesions per scan"],
                rows,
                "Shares of the reference's connected lesions of which a voxel lies above the threshold. All thresholds "
                "come from calibration normals, at a rate: family, of normal patients with any voxel above it; voxel, "
                "of normal tissue voxels above it.",
                detector=detector,
                level="lesion",
            )
        )
    return tables


def group_tables(by_group: Mapping[str, Mapping[str, Any]], detector: str) -> list[ExtraTable]:
    """Results by site and scanner.

    Args:
        by_group: by key and group what ``by_group`` gave, with ``intervals`` of ``bootstrap_intervals``.
        detector: its name.
    """
    tables = []
    for key, groups in by_group.items():
        if not groups:
            continue
        decided = any(found["decision"] is not None for found in groups.values())
        names = {**_RANKINGS, **(_DECISIONS if decided else {})}
        rows = []
        for group, found in groups.items():
            cells = [
                _estimate(*_figure("image", name, {"image": found}), found["intervals"]["intervals"].get(name))
                for name in names
            ]
            counts = [found["num_scans"], found["num_patients"], found["num_normal"], found["num_abnormal"]]
            rows.append([group, *counts, *cells])
        tables.append(
            ExtraTable(
                f"{detector}, by {key}",
                [key, "scans", "patients", "normal", "abnormal", *names.values()],
                rows,
                f"Scans of each {key} by themselves, at the same threshold.",
                detector=detector,
                level="image",
            )
        )
    return tables


def scan_curves(detector: str, labels: Sequence[int | None], scores: Mapping[str, Sequence[float]]) -> list[Curve]:
    """ROC and precision-recall curves of scans; none where a class is absent.

    Args:
        detector: the method's name; the others are baselines.
        labels: of each scan, 0, 1 or None.
        scores: by the name of a detector, of each scan.
    """
    from sklearn.metrics import precision_recall_curve, roc_curve

    known = [i for i, label in enumerate(labels) if label is not None]
    truth = np.array([labels[i] for i in known])
    if len(set(truth.tolist())) < 2:
        return []
    curves = []
    for name, own in scores.items():
        kind: Literal["method", "baseline"] = "method" if name == detector else "baseline"
        values = np.array([own[i] for i in known], dtype=np.float64)
        false_rate, sensitivity, _ = roc_curve(truth, values)
        precision, recall, _ = precision_recall_curve(truth, values)
        curves.append(Curve(name, kind, "image", "roc", false_rate, sensitivity))
        curves.append(Curve(name, kind, "image", "pr", recall, precision))
    return curves


def froc_curves(detector: str, lesions: Mapping[str, LesionDetection], is_method: bool = True) -> list[Curve]:
    """The free-response curves, from the lowest usable threshold up; none without lesions.

    Args:
        detector: its name.
        lesions: by the kind of scan. Of two kinds the one with more lesions is drawn: they have one name in the figure.
        is_method: False for a baseline.
    """
    points = [found.curve() for found in sorted(lesions.values(), key=lambda each: -each.compute()["num_lesions"])]
    known = [each for each in points if each is not None]
    kind: Literal["method", "baseline"] = "method" if is_method else "baseline"
    return [Curve(detector, kind, "lesion", "froc", known[0][1], known[0][2])] if known else []


def drift_checks(report: Mapping[str, Any] | None) -> list[DriftCheck]:
    """The checks of ``drift_report``, one line each for scores, intensity, spacing, field of view and foreground.

    Args:
        report: of ``drift_report``; None for no check.
    """
    if report is None:
        return []
    scores, drifted = report["scores"], set(report["drifted"])
    if "statistic" in scores:
        text = (
            f"D = {scores['statistic']:.3g}, p = {scores['p_value']:.2g} ({scores['compared']}, {scores['patients']}); "
            f"median {scores['new']['median']:.4g} here against {scores['calibration']['median']:.4g} in calibration"
        )
    else:
        text = scores["reason"]
    checks = [DriftCheck("scores (Kolmogorov-Smirnov)", text, "scores" in drifted, "statistic" in scores)]
    facts = report["facts"]
    for name, parts in _DRIFT_LINES:
        if facts is None:
            checks.append(DriftCheck(name, report["facts_reason"], compared=False))
            continue
        found = [
            f"{part} {facts[key]['new']['median']:.4g} against {facts[key]['calibration']['median']:.4g} "
            f"(p = {facts[key]['p_value']:.2g}, {100 * facts[key]['outside']:.0f} % out of range)".lstrip()
            for part, key in parts.items()
        ]
        text = f"medians, here against calibration: {'; '.join(found)}"
        checks.append(DriftCheck(name, text, not drifted.isdisjoint(parts.values())))
    return checks


def detector_settings(network: Mapping[str, Any], description: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a detector was made and trained with.

    Args:
        network: the arguments of its class.
        description: the content of ``detector.json``; None where it is not known.
    """
    description = description or {}
    training = description.get("training") or {}
    stages = {
        f"stage {number}": {
            "batch_size": stage.get("batch_size"),
            **{f"{name} lr": optimizer.get("lr") for name, optimizer in stage.get("optimizers", {}).items()},
        }
        for number, stage in enumerate(training.get("stages", ()), start=1)
    }
    chosen = {key: training[key] for key in ("seed", "epochs", "selection", "choices", "proxy") if key in training}
    parts = {"preprocessing": description.get("preprocessing"), "training": {**chosen, **stages}}
    return {**network, **{name: part for name, part in parts.items() if part}}


def cohort_sides(
    description: Mapping[str, Any] | None, rows: Sequence[Mapping[str, Any]], digests: Sequence[str]
) -> list[CohortSide]:
    """The sides of the split that the detector remembers, and the scans at hand.

    Args:
        description: the content of ``detector.json``; None where it is not known.
        rows: of ``predictions.csv``.
        digests: what the files of the scans at hand show, in any order.
    """

    def together(parts: Sequence[str]) -> str:
        return hashlib.sha256(json.dumps(sorted(set(parts))).encode()).hexdigest()

    split = ((description or {}).get("training") or {}).get("split") or {}
    sides = [
        CohortSide(name, side["scans"], side["patients"], together(side["digests"]))
        for name, side in split.get("sides", {}).items()
        if name != "test" and side["scans"]
    ]
    labels = [row["label"] for row in rows]
    counts = (labels.count(0), labels.count(1)) if any(label is not None for label in labels) else (None, None)
    patients = len({row["patient"] for row in rows})
    return [*sides, CohortSide("test", len(rows), patients, together(digests), *counts)]
