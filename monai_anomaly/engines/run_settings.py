"""What a run was made with: detector, cohort, calibration and drift, as plain values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from monai_anomaly import __version__
from monai_anomaly.io.tables import plain_values
from monai_anomaly.networks import AnomalyDetector

__all__ = ["mask_rule_text", "run_settings"]

# Facts of ``drift_report`` that make one line.
_DRIFT_LINES: tuple[tuple[str, dict[str, str]], ...] = (
    ("intensity", {"mean": "intensity_mean", "spread": "intensity_spread"}),
    ("spacing (mm; 2-D images: pixels)", {"R": "spacing_r", "A": "spacing_a", "S": "spacing_s"}),
    ("field of view (mm; 2-D images: pixels)", {"R": "extent_r", "A": "extent_a", "S": "extent_s"}),
    ("foreground (share of voxels)", {"": "foreground_share"}),
)


def run_settings(
    network: AnomalyDetector,
    description: Mapping[str, Any] | None,
    alpha: float | None,
    *,
    labels: Sequence[int | None],
    patients: Sequence[str],
    digests: Sequence[str],
    mask: Mapping[str, Any] | None = None,
    drift: Mapping[str, Any] | None = None,
    failures: Sequence[Mapping[str, str]] = (),
) -> dict[str, Any]:
    """The settings of a run.

    Args:
        network: the detector.
        description: the content of ``detector.json``; None where it is not known.
        alpha: rate that thresholds are set for; None for none.
        labels: of the scans that were used, 0, 1 or None.
        patients: of these scans.
        digests: what their files show, in any order.
        mask: ``mask_settings`` of ``MaskAboveThresholdd`` and ``CleanMaskd``; None without masks.
        drift: of ``drift_report``; None where it was not checked.
        failures: of the scans that could not be used.

    Returns:
        JSON-able: ``method`` (name, version, weights, settings), ``cohort`` (a mapping for each side of the split),
        ``calibration`` (None where there is none), ``mask`` and ``failures``.
    """
    description = description or {}
    config: Any = network.config
    digest = description.get("model_sha256")
    calibration = network.calibration
    calibrated = None
    if calibration.scores.numel():
        rule = "the threshold of scores is the conformal quantile of the calibration patients' highest scores"
        calibrated = {
            "alpha": alpha,
            "patients": int(calibration.scores.numel()),
            "score_threshold": None if alpha is None else calibration.score_threshold(alpha),
            "map_threshold": (mask or {}).get("threshold"),
            "rule": rule + (f"; {mask_rule_text(mask)}" if mask and mask["threshold"] is not None else ""),
            "drift": _drift_checks(drift),
        }
    found = {
        "method": {
            "name": type(network).__name__,
            "version": __version__,
            "weights": f"model.pt, SHA-256 {digest}" if digest else "in memory, not loaded from a file",
            "borrowed_weights": network.borrowed_weights(),
            "settings": _detector_settings(config["arguments"], description),
        },
        "cohort": _sides(description, labels, patients, digests),
        "calibration": calibrated,
        "mask": None
        if mask is None or mask["threshold"] is None
        else {k: v for k, v in mask.items() if k != "no_mask"},
        "failures": [{"case": failure["case"], "error": failure["error"]} for failure in failures],
    }
    return plain_values(found)


def mask_rule_text(mask: Mapping[str, Any]) -> str:
    """How masks were made, in words.

    Args:
        mask: ``mask_settings`` of ``MaskAboveThresholdd`` and ``CleanMaskd``.
    """
    parts = ["voxels outside of the foreground"] if mask.get("inside_foreground") else []
    if mask.get("least_lesion_mm3"):
        parts.append(f"findings below {mask['least_lesion_mm3']:g} mm³ (2-D images: pixels)")
    cleaned = f"cleaned of {' and '.join(parts)}" if parts else "not cleaned up"
    rule = {"family": "family-wise", "voxel": "per-voxel"}[mask["rule"]]
    return f"a mask holds the voxels above the {rule} threshold of maps, {cleaned}"


def _drift_checks(report: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """One line each for scores, intensity, spacing, field of view and foreground."""
    if report is None:
        return []
    scores, drifted = report["scores"], set(report["drifted"])

    def check(name: str, finding: str, warning: bool = False, compared: bool = True) -> dict[str, Any]:
        return {"name": name, "finding": finding, "warning": warning, "compared": compared}

    text = scores.get("reason", "")
    if "statistic" in scores:
        text = (
            f"D = {scores['statistic']:.3g}, p = {scores['p_value']:.2g} ({scores['compared']}, {scores['patients']}); "
            f"median {scores['new']['median']:.4g} here against {scores['calibration']['median']:.4g} in calibration"
        )
    checks = [check("scores (Kolmogorov-Smirnov)", text, "scores" in drifted, "statistic" in scores)]
    facts = report["facts"]
    for name, parts in _DRIFT_LINES:
        if facts is None:
            checks.append(check(name, report["facts_reason"], compared=False))
            continue
        found = [
            f"{part} {facts[key]['new']['median']:.4g} against {facts[key]['calibration']['median']:.4g} "
            f"(p = {facts[key]['p_value']:.2g}, {100 * facts[key]['outside']:.0f} % out of range)".lstrip()
            for part, key in parts.items()
        ]
        text = f"medians, here against calibration: {'; '.join(found)}"
        checks.append(check(name, text, not drifted.isdisjoint(parts.values())))
    return checks


def _detector_settings(network: Mapping[str, Any], description: Mapping[str, Any]) -> dict[str, Any]:
    """What a detector was made and trained with."""
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


def _sides(
    description: Mapping[str, Any], labels: Sequence[int | None], patients: Sequence[str], digests: Sequence[str]
) -> list[dict[str, Any]]:
    """The sides of the split that the detector remembers, and the scans at hand."""

    def together(parts: Sequence[str]) -> str:
        return hashlib.sha256(json.dumps(sorted(set(parts))).encode()).hexdigest()

    def side(name: str, scans: int, people: int, parts: Sequence[str], **counts: int) -> dict[str, Any]:
        return {"name": name, "scans": scans, "patients": people, "sha256": together(parts), **counts}

    known = ((description.get("training") or {}).get("split") or {}).get("sides", {})
    sides = [
        side(name, each["scans"], each["patients"], each["digests"])
        for name, each in known.items()
        if name != "test" and each["scans"]
    ]
    labelled = any(label is not None for label in labels)
    counts = {"normal": list(labels).count(0), "abnormal": list(labels).count(1)} if labelled else {}
    return [*sides, side("test", len(labels), len(set(patients)), digests, **counts)]
