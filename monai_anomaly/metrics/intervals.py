"""How far a figure may be trusted: intervals over patients, and the spread over repeated trainings."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from .ranking import auroc, average_precision
from .scans import ConfusionCounts, sensitivity_at_specificity

__all__ = ["bootstrap_intervals", "mean_and_spread", "scan_statistics"]

# Of the labels (0, 1) and the scores of some scans; None where it is undefined.
Statistic = Callable[[np.ndarray, np.ndarray], float | None]

# Draws for each one that is wanted, before a metric counts as undefined too often.
_DRAWS = 10
# Up to so many patients, what a draw gave is kept for the next one that is the same.
_FEW = 16


def scan_statistics(threshold: float | None = None, specificity: float = 0.95) -> dict[str, Statistic]:
    """The metrics of scans as functions of labels and scores.

    Args:
        threshold: of the calibration; with it ``accuracy``, ``f1``, ``sensitivity`` and ``specificity`` too.
        specificity: that of ``sensitivity_at_specificity``.

    Returns:
        ``auroc``, ``ap``, ``sensitivity_at_specificity``, and those at the threshold.
    """

    def at_specificity(labels: np.ndarray, scores: np.ndarray) -> float | None:
        return sensitivity_at_specificity(labels.tolist(), scores.tolist(), specificity)["sensitivity"]

    def decision(name: str, value: float) -> Statistic:
        def at_threshold(labels: np.ndarray, scores: np.ndarray) -> float | None:
            counts = ConfusionCounts(value)
            counts.add(scores, labels.astype(bool))
            return counts.metrics()[name]

        return at_threshold

    found: dict[str, Statistic] = {
        "auroc": lambda labels, scores: auroc(scores, labels),
        "ap": lambda labels, scores: average_precision(scores, labels),
        "sensitivity_at_specificity": at_specificity,
    }
    if threshold is not None:
        found |= {name: decision(name, threshold) for name in ("accuracy", "f1", "sensitivity", "specificity")}
    return found


def bootstrap_intervals(
    patients: Sequence[Hashable],
    labels: Sequence[int | None],
    scores: Sequence[float],
    metrics: Mapping[str, Statistic] | None = None,
    *,
    n: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    stratified: bool = True,
) -> dict[str, Any]:
    """Percentile intervals of metrics from resampled patients.

    Scans of one patient are alike, so that patients are drawn, with replacement and with all their scans. Stratified,
    patients with an abnormal scan and those without are drawn apart, as many of each as there are: how many there are
    is as a rule chosen by who puts the test set together, and average precision and accuracy depend on it. A resample
    in which a metric is undefined is drawn again for all of them, and counted. For few patients the intervals are too
    narrow; for a single one of a kind there are none. Where all patients have an abnormal scan, or none has, they are
    drawn as one kind: their scans can be of both classes all the same.

    Args:
        patients: of each scan.
        labels: per scan 0 (normal), 1 (abnormal) or None (unknown; the scan is left out).
        scores: of each scan.
        metrics: by name, functions of the labels and the scores of some scans; by default ``scan_statistics()``.
        n: resamples.
        level: of the interval, in (0, 1).
        seed: of the draws.
        stratified: see above.

    Returns:
        ``intervals``: by metric ``value`` (of all scans), ``low`` and ``high``, or None; ``undefined``: by metric the
        reason for None; ``redrawn``: how many resamples were; ``num_normal_patients`` and ``num_abnormal_patients``;
        and the settings ``n``, ``level``, ``seed`` and ``stratified``.

    Raises:
        ValueError: if the lengths differ, a number is out of range, a score is NaN or a label is none.

    References:
        B. Efron, R. Tibshirani, *An Introduction to the Bootstrap*, Chapman & Hall, 1993, chapter 13; C. Field, A.
        Welsh, "Bootstrapping clustered data", Journal of the Royal Statistical Society B 69(3), 2007.
    """
    if not len(patients) == len(labels) == len(scores):
        raise ValueError(f"{len(patients)} patients, {len(labels)} labels, {len(scores)} scores: give one of each.")
    if n < 1 or not 0 < level < 1:
        raise ValueError(f"n is positive and level in (0, 1), got {n} and {level}")
    known = [i for i, label in enumerate(labels) if label is not None]
    truth = np.array([labels[i] for i in known], dtype=np.int64)
    values = np.array([scores[i] for i in known], dtype=np.float64)
    if np.isnan(values).any() or not np.isin(truth, (0, 1)).all():
        raise ValueError("a score is NaN, or a label neither 0 (normal), 1 (abnormal) nor None (unknown).")
    scans: dict[Hashable, list[int]] = {}
    for place, i in enumerate(known):
        scans.setdefault(patients[i], []).append(place)
    groups = [np.array(members) for members in scans.values()]
    abnormal = [bool(truth[members].any()) for members in groups]
    strata = [[g for g, is_abnormal in enumerate(abnormal) if is_abnormal is kind] for kind in (False, True)]
    statistics = dict(scan_statistics() if metrics is None else metrics)
    found = {name: statistic(truth, values) for name, statistic in statistics.items()}
    undefined = {name: "undefined for these scans" for name, value in found.items() if value is None}
    few = [
        f"{len(members)} {kind} patient(s)"
        for members, kind in zip(strata, ("normal", "abnormal"), strict=True)
        if len(members) == 1
    ]
    if few:
        undefined |= {name: f"{' and '.join(few)}: too few to resample" for name in found if name not in undefined}
    drawn: dict[str, list[float]] = {name: [] for name in found if name not in undefined}
    redrawn, done, random = 0, 0, np.random.default_rng(seed)
    pools = [stratum for stratum in strata if stratum] if stratified else [[*strata[0], *strata[1]]]
    known_draws: dict[bytes, dict[str, float | None]] = {}
    while drawn and done < n and done + redrawn < _DRAWS * n:
        chosen = np.concatenate([random.choice(pool, len(pool)) for pool in pools])
        # of few patients the same ones are drawn again and again
        key = np.sort(chosen).tobytes() if len(chosen) <= _FEW else b""
        once = known_draws.get(key)
        if once is None:
            places = np.concatenate([groups[g] for g in chosen])
            once = {name: statistics[name](truth[places], values[places]) for name in drawn}
            if key:
                known_draws[key] = once
        if None in once.values():
            redrawn += 1
            continue
        done += 1
        for name, value in once.items():
            drawn[name].append(float(value))  # type: ignore[arg-type]
    if done < n:
        undefined |= dict.fromkeys(drawn, "undefined in too many resamples")
    edges = (0.5 - level / 2, 0.5 + level / 2)
    intervals: dict[str, dict[str, float | None]] = {}
    for name, value in found.items():
        low, high = (None, None) if name in undefined else (float(q) for q in np.quantile(drawn[name], edges))
        intervals[name] = {"value": value, "low": low, "high": high}
    return {
        "intervals": intervals,
        "undefined": undefined,
        "redrawn": redrawn,
        "num_normal_patients": len(strata[0]),
        "num_abnormal_patients": len(strata[1]),
        "n": n,
        "level": level,
        "seed": seed,
        "stratified": stratified,
    }


def mean_and_spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean and standard deviation of a figure over repeated runs, such as trainings with other seeds.

    Args:
        values: one a run; None for a run in which the figure is undefined.

    Returns:
        ``mean``; ``sd``, the sample's, with n - 1, for two runs or more; ``min`` and ``max``; ``n``, the runs that
        count, and ``num_undefined``, those that do not; ``undefined``: by key the reason for each None.
    """
    known = [float(value) for value in values if value is not None]
    result: dict[str, Any] = {
        "mean": math.fsum(known) / len(known) if known else None,
        "sd": float(np.std(known, ddof=1)) if len(known) > 1 else None,
        "min": min(known, default=None),
        "max": max(known, default=None),
    }
    reason = "a single run has no spread" if known else "no run with a defined value"
    return {
        **result,
        "n": len(known),
        "num_undefined": len(values) - len(known),
        "undefined": {name: reason for name, value in result.items() if value is None},
    }
