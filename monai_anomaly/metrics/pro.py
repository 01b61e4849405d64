"""Per-region overlap: how much of each lesion is found, whatever its size."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["RegionOverlap"]


class RegionOverlap:
    """PRO: the share of a lesion found, averaged over lesions, integrated over the false positive rate.

    A lesion is a connected region of a mask, diagonal neighbours included. At a threshold the overlap of a region is
    the share of its pixels at or above it, and the false positive rate the share of all normal pixels at or above it.
    The area under the curve of mean overlap against false positive rate, from 0 to ``limit`` and divided by ``limit``,
    is computed at every distinct score. A single region counts as much as any other, however small.

    Args:
        limit: largest false positive rate; 0.3 is the customary one.

    Raises:
        ValueError: if ``limit`` is not in (0, 1].

    References:
        P. Bergmann et al., *The MVTec Anomaly Detection Dataset*, IJCV 129, 2021, section 5.1.2.

    Example:
        >>> metric = RegionOverlap()
        >>> metric.update(np.array([[0.1, 0.9]]), np.array([[False, True]]))
        >>> metric.compute()
        1.0
    """

    def __init__(self, limit: float = 0.3) -> None:
        if not 0 < limit <= 1:
            raise ValueError(f"limit is in (0, 1], got {limit}")
        self.limit = limit
        self._normal: list[np.ndarray] = []
        self._regions: list[np.ndarray] = []

    def update(self, anomaly_map: npt.ArrayLike, mask: npt.ArrayLike) -> None:
        """Add one scan.

        Args:
            anomaly_map: scores of any shape, (H, W) as a rule; rounded to float32.
            mask: of the same shape, true on lesions.

        Raises:
            ValueError: if the shapes differ or a score is NaN.
        """
        from scipy.ndimage import label

        scores, lesions = np.asarray(anomaly_map, dtype=np.float32), np.asarray(mask).astype(bool)
        if scores.shape != lesions.shape:
            raise ValueError(f"map of shape {scores.shape} but mask of shape {lesions.shape}.")
        if np.isnan(scores).any():
            raise ValueError("a score is NaN: such scores have no rank.")
        regions, number = label(lesions, structure=np.ones((3,) * lesions.ndim))
        self._normal.append(scores[~lesions])
        self._regions += [scores[regions == i] for i in range(1, number + 1)]

    def compute(self) -> float | None:
        """The area in [0, 1] over all scans added so far; None without normal pixels or without lesions."""
        normal = np.concatenate([np.empty(0, dtype=np.float32), *self._normal])
        if not normal.size or not self._regions:
            return None
        scores = np.concatenate([normal, *self._regions])
        # Each pixel adds its part to one of the two rates once the threshold has come down to it.
        is_normal = np.arange(scores.size) < normal.size
        part = np.concatenate([np.zeros(normal.size), *(np.full(r.size, 1.0 / r.size) for r in self._regions)])
        order = np.argsort(-scores, kind="stable")
        ranked = scores[order]
        last = np.append(ranked[1:] != ranked[:-1], True)  # equal scores cross the threshold together
        rate = np.append(0.0, np.cumsum(is_normal[order])[last] / normal.size)
        overlap = np.append(0.0, np.cumsum(part[order])[last] / len(self._regions))
        end = int(np.argmax(rate >= self.limit))  # the last rate is 1
        reached = (self.limit - rate[end - 1]) / (rate[end] - rate[end - 1])
        x = np.append(rate[:end], self.limit)
        y = np.append(overlap[:end], overlap[end - 1] + reached * (overlap[end] - overlap[end - 1]))
        return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2.0) / self.limit)
