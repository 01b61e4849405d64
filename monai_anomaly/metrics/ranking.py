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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["PixelMetrics", "auroc", "average_precision", "best_dice", "image_metrics", "ranking_metrics"]

# Abnormal elements handled at a time: keeps the int64 and float64 temporaries at some tens of MB.
_CHUNK = 1 << 20


@dataclass(frozen=True)
class _Ranking:
    """The metrics of one pair of sorted score arrays, both classes present."""

    auroc: float
    average_precision: float
    best_dice: float
    best_threshold: float


def _checked(scores: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Flat scores and flat bool labels, or ValueError."""
    flat, truth = np.asarray(scores).reshape(-1), np.asarray(labels).reshape(-1)
    if flat.size != truth.size:
        raise ValueError(f"{flat.size} scores but {truth.size} labels: give one label for each score.")
    if flat.dtype.kind not in "fiub":
        raise ValueError(f"scores of dtype {flat.dtype} cannot be ranked: give real numbers.")
    if truth.dtype != np.bool_:
        positive = truth == 1
        if not np.all(positive | (truth == 0)):
            raise ValueError("labels must be 0 (normal) or 1 (abnormal).")
        truth = positive
    return flat, truth


def _split(scores: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Copies of the scores of the normal and of the abnormal elements, in their own dtype; refuses NaN."""
    flat, truth = _checked(scores, labels)
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


def _rank(normal: np.ndarray, abnormal: np.ndarray) -> _Ranking | None:
    """The metrics of two score arrays, which are sorted in place; None where one of them is empty.

    Only scores of abnormal elements need be tried as thresholds: between two of them recall stands still, so that
    average precision gains nothing, and a lower threshold only adds false positives, so that Dice cannot rise.
    """
    if not normal.size or not abnormal.size:
        return None
    normal.sort()
    abnormal.sort()
    doubled_wins = 0  # twice the pairs ranked rightly, a tie being half a pair: an exact integer
    weighted_precision: list[float] = []
    top_dice, top_threshold = -1.0, math.nan
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
        start += chunk.size
    return _Ranking(
        auroc=doubled_wins / (2 * normal.size * abnormal.size),
        average_precision=math.fsum(weighted_precision) / abnormal.size,
        best_dice=top_dice,
        best_threshold=top_threshold,
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
    ranking = _rank(*_split(scores, labels))
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
    ranking = _rank(*_split(scores, labels))
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
    ranking = _rank(*_split(scores, labels))
    return (ranking.best_dice, ranking.best_threshold) if ranking else None


def _as_dict(normal: np.ndarray, abnormal: np.ndarray) -> dict[str, float | None]:
    ranking, total = _rank(normal, abnormal), normal.size + abnormal.size
    return {
        "auroc": ranking.auroc if ranking else None,
        "ap": ranking.average_precision if ranking else None,
        "best_dice": ranking.best_dice if ranking else None,
        "prevalence": abnormal.size / total if total else None,
    }


def ranking_metrics(scores: npt.ArrayLike, labels: npt.ArrayLike) -> dict[str, float | None]:
    """All ranking metrics from one sort.

    Args:
        scores: anomaly scores of any shape, real numbers; higher means more abnormal.
        labels: as many labels, 0 or False for normal, 1 or True for abnormal.

    Returns:
        ``auroc``, ``ap`` and ``best_dice`` (an oracle, see :func:`best_dice`), each None where a class is absent, and
        ``prevalence``, the share of abnormal elements (None for no elements): what ``ap`` is for a random ranking.

    Raises:
        ValueError: if a score is NaN, a label is neither 0 nor 1, or the sizes differ.
    """
    return _as_dict(*_split(scores, labels))


def image_metrics(labels: Sequence[int | None], scores: Sequence[float]) -> dict[str, float | int | None]:
    """Ranking metrics of whole scans.

    Args:
        labels: per scan 0 (normal), 1 (abnormal) or None (unknown; the scan is left out).
        scores: the scans' anomaly scores.

    Returns:
        ``auroc`` and ``ap`` (None where a class is absent) and the counts ``num_normal`` and ``num_abnormal``.

    Raises:
        ValueError: if a score of a labelled scan is NaN, a label is neither 0, 1 nor None, or the lengths differ.
    """
    if len(labels) != len(scores):
        raise ValueError(f"{len(labels)} labels but {len(scores)} scores: give one score for each scan.")
    known = [(label, score) for label, score in zip(labels, scores) if label is not None]
    truth = np.array([label for label, _ in known], dtype=np.int64)
    # float64, so that no two scores are tied by rounding
    normal, abnormal = _split(np.array([score for _, score in known], dtype=np.float64), truth)
    metrics = _as_dict(normal, abnormal)
    return {
        "auroc": metrics["auroc"],
        "ap": metrics["ap"],
        "num_normal": int(normal.size),
        "num_abnormal": int(abnormal.size),
    }


class PixelMetrics:
    """Ranking metrics over the pooled pixels or voxels of many scans.

    Scores are kept as float32, parted by class, so no labels need be kept: 4 bytes a voxel. :meth:`compute` needs as
    much again while it runs.

    Example:
        >>> metrics = PixelMetrics()
        >>> metrics.update(np.array([0.1, 0.9, 0.4]), np.array([False, True, False]))
        >>> metrics.compute()["auroc"]
        1.0
    """

    def __init__(self) -> None:
        self._normal: list[np.ndarray] = []
        self._abnormal: list[np.ndarray] = []

    def update(self, anomaly_map: npt.ArrayLike, mask: npt.ArrayLike) -> None:
        """Add one scan.

        Args:
            anomaly_map: scores of any shape, (X, Y, Z) as a rule; rounded to float32.
            mask: labels of the same shape, True or 1 on lesions; all False for a normal scan.

        Raises:
            ValueError: if the shapes differ, a score is NaN, or a label is neither 0 nor 1.
        """
        if np.shape(anomaly_map) != np.shape(mask):
            raise ValueError(f"map of shape {np.shape(anomaly_map)} but mask of shape {np.shape(mask)}.")
        normal, abnormal = _split(np.asarray(anomaly_map, dtype=np.float32), mask)
        self._normal.append(normal)
        self._abnormal.append(abnormal)

    def compute(self) -> dict[str, float | None]:
        """The metrics over all voxels added so far.

        Returns:
            As :func:`ranking_metrics`.
        """
        return _as_dict(_joined(self._normal), _joined(self._abnormal))


def _joined(parts: Iterable[np.ndarray]) -> np.ndarray:
    """One new float32 array of all the parts."""
    return np.concatenate([np.empty(0, dtype=np.float32), *parts])
