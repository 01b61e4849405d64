"""Metrics of whole scans, and of patients: rankings, and decisions at a threshold."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .ranking import checked_scores, rank, rank_sorted, split_by_class

__all__ = [
    "ConfusionCounts",
    "PatientScores",
    "decision_metrics",
    "image_metrics",
    "patient_level",
    "score_gap",
    "sensitivity_at_specificity",
]


class ConfusionCounts:
    """Decisions at one threshold, counted: an element is flagged if its score lies above the threshold.

    "Above" and not "at", since that is what the conformal guarantee of a threshold is about.

    Args:
        threshold: in the unit of the scores.

    Raises:
        ValueError: if the threshold is NaN.
    """

    def __init__(self, threshold: float) -> None:
        if np.isnan(threshold):
            raise ValueError("a threshold is NaN: nothing lies above it or below it.")
        self.threshold = threshold
        self.true_positive = self.false_positive = self.false_negative = self.true_negative = 0

    def add(self, scores: np.ndarray, abnormal: np.ndarray) -> None:
        """Count elements.

        Args:
            scores: of any shape, without NaN.
            abnormal: bool, of the same shape.
        """
        flagged = scores > self.threshold
        found = int(np.count_nonzero(flagged & abnormal))
        num_flagged, num_abnormal = int(np.count_nonzero(flagged)), int(np.count_nonzero(abnormal))
        self.true_positive += found
        self.false_positive += num_flagged - found
        self.false_negative += num_abnormal - found
        self.true_negative += scores.size - num_flagged - num_abnormal + found

    def metrics(self, f1_name: str = "f1", element: str = "voxel") -> dict[str, Any]:
        """What the counts say.

        Args:
            f1_name: the key of F1, which of voxels is called Dice.
            element: what is counted, for the reasons.

        Returns:
            ``threshold``; ``accuracy``, F1, ``sensitivity``, ``specificity``, ``fpr`` and ``precision``, each in [0, 1]
            or None; the four counts; ``undefined``: by metric the reason for each None. F1 without abnormal elements is
            undefined, as recall is.
        """
        tp, fp, fn, tn = self.true_positive, self.false_positive, self.false_negative, self.true_negative
        fractions = {
            "accuracy": (tp + tn, tp + fp + fn + tn, f"no {element}"),
            f1_name: (2 * tp, (2 * tp + fp + fn) * (tp + fn > 0), f"no abnormal {element}"),
            "sensitivity": (tp, tp + fn, f"no abnormal {element}"),
            "specificity": (tn, tn + fp, f"no normal {element}"),
            "fpr": (fp, tn + fp, f"no normal {element}"),
            "precision": (tp, tp + fp, f"no {element} is flagged"),
        }
        return {
            "threshold": self.threshold,
            **{name: part / whole if whole else None for name, (part, whole, _) in fractions.items()},
            "true_positive": tp,
            "false_positive": fp,
            "false_negative": fn,
            "true_negative": tn,
            "undefined": {name: reason for name, (_, whole, reason) in fractions.items() if not whole},
        }


def checked_scans(labels: Sequence[int | None], scores: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Scores as float64, so that no two scans are tied by rounding, and bool labels of the labelled scans."""
    if len(labels) != len(scores):
        raise ValueError(f"{len(labels)} labels but {len(scores)} scores: give one score for each scan.")
    known = [(label, score) for label, score in zip(labels, scores) if label is not None]
    values = np.array([score for _, score in known], dtype=np.float64)
    if np.isnan(values).any():
        raise ValueError("a score is NaN: such scores have no rank.")
    return checked_scores(values, np.array([label for label, _ in known], dtype=np.int64))


def decision_metrics(labels: Sequence[int | None], scores: Sequence[float], threshold: float) -> dict[str, Any]:
    """Accuracy, F1, sensitivity and specificity of whole scans at a threshold.

    Args:
        labels: per scan 0 (normal), 1 (abnormal) or None (unknown; the scan is left out).
        scores: the scans' anomaly scores.
        threshold: a scan is flagged if its score lies above it; from calibration, never from the scans at hand.

    Returns:
        See ``ConfusionCounts.metrics``.

    Raises:
        ValueError: if a score of a labelled scan or the threshold is NaN, a label is neither 0, 1 nor None, or the
            lengths differ.
    """
    counts = ConfusionCounts(float(threshold))
    counts.add(*checked_scans(labels, scores))
    return counts.metrics(element="scan")


def sensitivity_at_specificity(
    labels: Sequence[int | None], scores: Sequence[float], specificity: float = 0.95
) -> dict[str, Any]:
    """The largest sensitivity of a threshold that leaves at least a given share of the normal scans alone.

    The threshold is read off the normal scans at hand: this describes the ranking and is no estimate of a detector in
    use, for which see ``decision_metrics``.

    Args:
        labels: per scan 0 (normal), 1 (abnormal) or None (unknown; the scan is left out).
        scores: the scans' anomaly scores.
        specificity: the share of normal scans that may not be flagged, in (0, 1].

    Returns:
        ``sensitivity``; ``specificity``, the share that is reached; ``threshold``, at or above which a scan is flagged
        (the highest that does equally well); ``undefined``: by key the reason for each None.

    Raises:
        ValueError: as ``decision_metrics``, or if ``specificity`` is out of range.
    """
    if not 0 < specificity <= 1:
        raise ValueError(f"specificity is in (0, 1], got {specificity}")
    normal, abnormal = split_by_class(*checked_scans(labels, scores))
    if not normal.size or not abnormal.size:
        reason = _absent(normal.size, abnormal.size)
        names = ("sensitivity", "specificity", "threshold")
        return {**dict.fromkeys(names), "undefined": dict.fromkeys(names, reason)}
    ranking = rank_sorted(np.sort(normal), np.sort(abnormal), fpr=1.0 - specificity)
    if ranking.threshold is None:
        reason = "every threshold that finds an abnormal scan flags too many normal ones"
        return {"sensitivity": 0.0, "specificity": 1.0, "threshold": None, "undefined": {"threshold": reason}}
    return {
        "sensitivity": ranking.sensitivity,
        "specificity": float(np.mean(normal < ranking.threshold)),
        "threshold": ranking.threshold,
        "undefined": {},
    }


def _absent(normal: int, abnormal: int) -> str:
    return "no labelled scan" if not normal + abnormal else "no abnormal scan" if not abnormal else "no normal scan"


def image_metrics(
    labels: Sequence[int | None],
    scores: Sequence[float],
    threshold: float | None = None,
    specificity: float = 0.95,
) -> dict[str, Any]:
    """Metrics of whole scans.

    Args:
        labels: per scan 0 (normal), 1 (abnormal) or None (unknown; the scan is left out).
        scores: the scans' anomaly scores.
        threshold: of the calibration, above which a scan is flagged; None for rankings alone.
        specificity: that of ``sensitivity_at_specificity``.

    Returns:
        ``auroc``, ``ap`` and ``sensitivity_at_specificity`` (None where a class is absent); ``prevalence``, the share
        of abnormal scans and thus what ``ap`` is for a random ranking; ``specificity``, the setting; the counts
        ``num_normal`` and ``num_abnormal``; ``decision``: what ``decision_metrics`` gives, or None without a threshold;
        ``undefined``: by metric the reason for each None.

    Raises:
        ValueError: if a score of a labelled scan is NaN, a label is neither 0, 1 nor None, or the lengths differ.
    """
    normal, abnormal = split_by_class(*checked_scans(labels, scores))
    at = sensitivity_at_specificity(labels, scores, specificity)
    ranking, total = rank(normal, abnormal), normal.size + abnormal.size
    undefined: dict[str, str] = {}
    if ranking is None:
        names = ("auroc", "ap", "sensitivity_at_specificity")
        undefined = dict.fromkeys(names, _absent(normal.size, abnormal.size))
    if not total:
        undefined["prevalence"] = _absent(0, 0)
    if threshold is None:
        undefined["decision"] = "no threshold"
    return {
        "auroc": ranking.auroc if ranking else None,
        "ap": ranking.average_precision if ranking else None,
        "prevalence": abnormal.size / total if total else None,
        "sensitivity_at_specificity": at["sensitivity"],
        "specificity": specificity,
        "num_normal": int(normal.size),
        "num_abnormal": int(abnormal.size),
        "decision": None if threshold is None else decision_metrics(labels, scores, threshold),
        "undefined": undefined,
    }


def score_gap(labels: Sequence[int | None], scores: Sequence[float]) -> dict[str, Any]:
    """How far the mean scores of normal and of abnormal scans lie apart: ProxyAno's Table II.

    The gap is in the unit of the scores and grows with them; ``gap_in_sd`` (not in the paper) is in standard deviations
    of the normal scans' scores and thus compares between detectors.

    Args:
        labels: per scan 0 (normal), 1 (abnormal) or None (unknown; the scan is left out).
        scores: the scans' anomaly scores (the paper's A_img, Eq. 13).

    Returns:
        ``normal`` and ``abnormal``, the mean scores, ``gap``, the second less the first, and ``gap_in_sd``;
        ``undefined``: by key the reason for each None.

    Raises:
        ValueError: if a score of a labelled scan is NaN, a label is neither 0, 1 nor None, or the lengths differ.

    References:
        Zhou et al., "Proxy-bridged Image Reconstruction Network for Anomaly Detection in Medical Images", IEEE
        Transactions on Medical Imaging, 2022, section IV-C2 and Table II.
    """
    values, truth = checked_scans(labels, scores)
    normal, abnormal = values[~truth], values[truth]
    undefined: dict[str, str] = {}
    if not normal.size:
        undefined |= dict.fromkeys(("normal", "gap", "gap_in_sd"), "no normal scan")
    if not abnormal.size:
        undefined |= dict.fromkeys(("abnormal", "gap", "gap_in_sd"), "no abnormal scan")
    low = float(normal.mean()) if normal.size else None
    high = float(abnormal.mean()) if abnormal.size else None
    gap = high - low if low is not None and high is not None else None
    sd = float(np.std(normal, ddof=1)) if normal.size > 1 else 0.0
    if gap is not None and not sd:
        undefined["gap_in_sd"] = "the scores of normal scans do not vary"
    return {
        "normal": low,
        "abnormal": high,
        "gap": gap,
        "gap_in_sd": gap / sd if gap is not None and sd else None,
        "undefined": undefined,
    }


class PatientScores(NamedTuple):
    """Patients, in the order in which they come first.

    Attributes:
        patients: their names.
        labels: 1 where a scan of the patient is abnormal, None where none is but a label is unknown, else 0.
        scores: the highest score of the patient's scans.
    """

    patients: list[Hashable]
    labels: list[int | None]
    scores: list[float]


def patient_level(patients: Sequence[Hashable], labels: Sequence[int | None], scores: Sequence[float]) -> PatientScores:
    """One label and one score a patient, as calibration sees patients: the highest score of all scans.

    Args:
        patients: of each scan.
        labels: of each scan, 0, 1 or None.
        scores: of each scan.

    Raises:
        ValueError: if the lengths differ, a score is NaN or a label is neither 0, 1 nor None.
    """
    if not len(patients) == len(labels) == len(scores):
        raise ValueError(f"{len(patients)} patients, {len(labels)} labels, {len(scores)} scores: give one of each.")
    found: dict[Hashable, tuple[int | None, float]] = {}
    for patient, label, score in zip(patients, labels, scores, strict=True):
        if label not in (0, 1, None):
            raise ValueError("labels must be 0 (normal), 1 (abnormal) or None (unknown).")
        if np.isnan(score):
            raise ValueError(f"a score of patient {patient} is NaN: such scores have no rank.")
        before = found.get(patient, (0, -np.inf))
        both = (label, before[0])
        found[patient] = (1 if 1 in both else None if None in both else 0), max(before[1], float(score))
    return PatientScores(list(found), [label for label, _ in found.values()], [score for _, score in found.values()])
