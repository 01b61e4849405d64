"""Exact ranking metrics of anomaly scores against binary labels, for images and for whole sets of voxels.

All metrics read off two sorted arrays: the scores of the normal and of the abnormal elements. Every element is sorted
once, in its own dtype, so that 1e8 float32 scores need about 4 bytes an element beside the input. Each distinct score
is a threshold, hence tied scores are handled exactly: an element counts as detected when its score is at or above the
threshold.

References:
    T. Fawcett, "An introduction to ROC analysis", Pattern Recognition Letters 27(8), 2006 (AUROC, its treatment of
    ties); scikit-learn's user guide, "Precision, recall and F-measures" (average precision).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

__all__ = ["Ranking", "auroc", "average_precision", "best_dice", "rank_sorted"]

# Abnormal elements handled at a time: keeps the int64 and float64 temporaries at some tens of MB.
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Ranking:
    """The ranking metrics of two sets of scores, both classes present.

    Attributes:
        auroc: in [0, 1].
        average_precision: in [0, 1].
        best_dice: over all thresholds (an oracle).
        best_threshold: the threshold of ``best_dice``, in the values that were ranked.
        overlap: the area under mean overlap against false positive rate; None where there are no regions.
        sensitivity: the largest that a threshold reaches whose false positive rate is within the limit.
        dice: at that threshold.
        threshold: that threshold, None where every threshold that finds anything is beyond the limit.
        bounds: by metric, how far its value may be off; what is not named is exact.
    """

    auroc: float
    average_precision: float
    best_dice: float
    best_threshold: float
    overlap: float | None
    sensitivity: float
    dice: float
    threshold: float | None
    bounds: dict[str, float] = field(default_factory=dict)


def checked_labels(labels: npt.ArrayLike) -> np.ndarray:
    """Labels as bool, of any shape; ValueError where one is neither 0 nor 1."""
    truth = np.asarray(labels)
    if truth.dtype == np.bool_:
        return truth
    positive = truth == 1
    if not np.all(positive | (truth == 0)):
        raise ValueError("labels must be 0 (normal) or 1 (abnormal).")
    return positive


def checked_map(anomaly_map: npt.ArrayLike, mask: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """A map as float32 and its mask as bool; ValueError where they do not fit or a score cannot be ranked."""
    scores, lesions = np.asarray(anomaly_map, dtype=np.float32), checked_labels(mask)
    if scores.shape != lesions.shape:
        raise ValueError(f"map of shape {scores.shape} but mask of shape {lesions.shape}.")
    if scores.size and np.isnan(scores.min()):
        raise ValueError("a score is NaN: such scores have no rank.")
    return scores, lesions


def checked_scores(scores: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Flat scores and flat bool labels; ValueError where their numbers differ or one cannot be ranked."""
    flat, truth = np.asarray(scores).reshape(-1), np.asarray(labels).reshape(-1)
    if flat.size != truth.size:
        raise ValueError(f"{flat.size} scores but {truth.size} labels: give one label for each score.")
    if flat.dtype.kind not in "fiub":
        raise ValueError(f"scores of dtype {flat.dtype} cannot be ranked: give real numbers.")
    return flat, checked_labels(truth)


def split_by_class(scores: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Copies of the scores of the normal and of the abnormal elements, in their own dtype; rejects NaN."""
    flat, truth = checked_scores(scores, labels)
    normal, abnormal = flat[~truth], flat[truth]
    # min() carries a NaN through, without an array of flags
    if any(part.size and np.isnan(part.min()) for part in (normal, abnormal)):
        raise ValueError("a score is NaN: such scores have no rank.")
    return normal, abnormal


def _tie_chunks(ranked: np.ndarray) -> Iterator[np.ndarray]:
    """Consecutive parts of a sorted array, none of which ends within a run of equal values."""
    start = 0
    while start < ranked.size:
        stop = min(start + _CHUNK, ranked.size)
        stop = int(np.searchsorted(ranked, ranked[stop - 1], side="right"))
        yield ranked[start:stop]
        start = stop


def rank(normal: np.ndarray, abnormal: np.ndarray) -> Ranking | None:
    """The metrics of two score arrays, which are sorted in place; None where one of them is empty."""
    if not normal.size or not abnormal.size:
        return None
    normal.sort()
    abnormal.sort()
    return rank_sorted(normal, abnormal)


def allowed_false_positives(limit: float, normal: int) -> int:
    """How many of the normal elements may be detected at a false positive rate of at most ``limit``."""
    return math.floor(limit * normal * (1.0 + 1e-12))  # 0.29 * 100 is 28.999999999999996


def overlap_area(before: np.ndarray, at: np.ndarray, limit: float) -> np.ndarray:
    """The area that one unit of overlap adds under the curve of overlap against false positive rate.

    Args:
        before: the false positive rates above the scores at which the unit is found.
        at: the false positive rates at and above them. Between the two the overlap rises linearly.
        limit: where the area ends.

    Returns:
        The areas up to ``limit``, divided by it, each in [0, 1].
    """
    rise = np.minimum(at, limit) - np.minimum(before, limit)
    share = np.divide(rise, at - before, out=np.ones_like(rise), where=at > before)  # of the rise, within the limit
    return (share * rise / 2.0 + limit - np.minimum(at, limit)) / limit


def rank_sorted(
    normal: np.ndarray,
    abnormal: np.ndarray,
    *,
    regions: np.ndarray | None = None,
    sizes: np.ndarray | None = None,
    overlap_limit: float = 1.0,
    fpr: float = 0.05,
) -> Ranking:
    """All metrics of two sorted arrays, neither of which is empty.

    Only scores of abnormal elements need be tried as thresholds: between two of them recall stands still, so that
    average precision and overlap gain nothing, and a lower threshold only adds false positives, so that Dice cannot
    rise.

    Args:
        normal: shape (N,), sorted.
        abnormal: shape (A,), sorted, of the same dtype.
        regions: shape (A,), the number of each abnormal element's region, from 0; None for no overlap.
        sizes: shape (R,), the number of elements of each region.
        overlap_limit: the false positive rate up to which the overlap is integrated, in (0, 1].
        fpr: the false positive rate of ``sensitivity``, ``dice`` and ``threshold``.
    """
    doubled_wins = 0  # twice the pairs ranked rightly, a tie being half a pair: an exact integer
    weighted_precision: list[float] = []
    areas: list[float] = []
    top_dice, top_threshold = -1.0, math.nan
    allowed = allowed_false_positives(fpr, normal.size)
    point: tuple[float, float, float] | None = None
    start = 0  # abnormal elements below the chunk
    for chunk in _tie_chunks(abnormal):
        first = np.concatenate(([0], np.flatnonzero(chunk[1:] != chunk[:-1]) + 1))
        thresholds = chunk[first]
        repeats = np.diff(first, append=chunk.size)
        below = np.searchsorted(normal, thresholds, side="left")
        not_above = np.searchsorted(normal, thresholds, side="right")
        doubled_wins += int(np.sum((below + not_above) * repeats))
        detected = abnormal.size - start - first
        false_alarms = normal.size - below
        weighted_precision.append(float(np.sum(repeats * (detected / (detected + false_alarms)))))
        dice = 2.0 * detected / (abnormal.size + detected + false_alarms)
        best = dice.size - 1 - int(np.argmax(dice[::-1]))  # the highest threshold among equals
        if dice[best] >= top_dice:
            top_dice, top_threshold = float(dice[best]), float(thresholds[best])
        if point is None and false_alarms[-1] <= allowed:
            lowest = int(np.argmax(false_alarms <= allowed))  # they fall from threshold to threshold
            point = float(detected[lowest] / abnormal.size), float(dice[lowest]), float(thresholds[lowest])
        if regions is not None and sizes is not None:
            parts = np.add.reduceat(1.0 / sizes[regions[start : start + chunk.size]], first)
            before, at = (normal.size - not_above) / normal.size, false_alarms / normal.size
            areas.append(float(np.sum(parts * overlap_area(before, at, overlap_limit))))
        start += chunk.size
    sensitivity, dice_at, threshold = point or (0.0, 0.0, None)
    return Ranking(
        auroc=doubled_wins / (2 * normal.size * abnormal.size),
        average_precision=min(math.fsum(weighted_precision) / abnormal.size, 1.0),
        best_dice=top_dice,
        best_threshold=top_threshold,
        overlap=None if sizes is None else min(math.fsum(areas) / sizes.size, 1.0),
        sensitivity=sensitivity,
        dice=dice_at,
        threshold=threshold,
    )


def auroc(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float | None:
    """Area under the receiver operating characteristic.

    The share of (abnormal, normal) pairs in which the abnormal element has the higher score; a tie counts one half.

    Args:
        scores: anomaly scores of any shape, real numbers; higher means more abnormal.
        labels: as many labels, 0 or False for normal, 1 or True for abnormal.

    Returns:
        A value in [0, 1]; None where a class is absent, as the metric is then undefined.

    Raises:
        ValueError: if a score is NaN, a label is neither 0 nor 1, or the sizes differ.
    """
    ranking = rank(*split_by_class(scores, labels))
    return ranking.auroc if ranking else None


def average_precision(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float | None:
    """Average precision: the sum over falling thresholds of (gain in recall) x precision, without interpolation.

    This is scikit-learn's definition (``sklearn.metrics.average_precision_score``).

    Args:
        scores: anomaly scores of any shape, real numbers; higher means more abnormal.
        labels: as many labels, 0 or False for normal, 1 or True for abnormal.

    Returns:
        A value in (0, 1]; None where a class is absent.

    Raises:
        ValueError: if a score is NaN, a label is neither 0 nor 1, or the sizes differ.
    """
    ranking = rank(*split_by_class(scores, labels))
    return ranking.average_precision if ranking else None


def best_dice(scores: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[float, float] | None:
    """The best Dice over all thresholds, and that threshold.

    An oracle: the threshold is chosen with the labels that it is then measured on, so the value is an upper bound of
    what any fixed threshold could reach. It is no estimate of a detector's Dice in use.

    Args:
        scores: anomaly scores of any shape, real numbers; higher means more abnormal.
        labels: as many labels, 0 or False for normal, 1 or True for abnormal.

    Returns:
        Dice in (0, 1] of ``scores >= threshold`` against the labels, over all elements together, and the threshold
        (the highest where several do equally well); None where a class is absent.

    Raises:
        ValueError: if a score is NaN, a label is neither 0 nor 1, or the sizes differ.
    """
    ranking = rank(*split_by_class(scores, labels))
    return (ranking.best_dice, ranking.best_threshold) if ranking else None
