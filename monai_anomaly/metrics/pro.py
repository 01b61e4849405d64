"""Per-region overlap: how much of each lesion is found, whatever its size."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .voxels import PixelMetrics

__all__ = ["RegionOverlap"]


class RegionOverlap:
    """PRO: the share of a lesion found, averaged over lesions, integrated over the false positive rate.

    A lesion is a connected region of a mask, diagonal neighbours included. At a threshold the overlap of a region is
    the share of its pixels at or above it, and the false positive rate the share of all normal pixels at or above it.
    The area under the curve of mean overlap against false positive rate, from 0 to ``limit`` and divided by ``limit``,
    is that of ``PixelMetrics``, as its ``aupro``. A single region counts as much as any other, however small.

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
        self._metrics = PixelMetrics(overlap_limit=limit)

    @property
    def num_regions(self) -> int:
        """Lesions added so far."""
        return self._metrics.num_regions

    def update(self, anomaly_map: npt.ArrayLike, mask: npt.ArrayLike) -> None:
        """Add one scan.

        Args:
            anomaly_map: scores of any shape, (H, W) as a rule; rounded to float32.
            mask: of the same shape, true on lesions.

        Raises:
            ValueError: if the shapes differ or a score is NaN.
        """
        self._metrics.update(anomaly_map, np.asarray(mask).astype(bool))

    def compute(self) -> float | None:
        """The area in [0, 1] over all scans added so far; None without normal pixels or without lesions."""
        return self._metrics.compute()["aupro"]
