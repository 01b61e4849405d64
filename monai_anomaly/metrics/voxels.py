"""Metrics of the pooled pixels or voxels of many scans, which come in one by one."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .ranking import Ranking, checked_map, rank_sorted
from .scans import ConfusionCounts
from .score_digest import ScoreDigest, order_keys, score_of_key

__all__ = ["PixelMetrics"]

# Voxels that wait until they are worth counting in one go.
_BLOCK = 1 << 20
# With ranks off by e of the voxels, the metric off most is the overlap up to 0.3, by e / 0.3. So this keeps the bound.
_RANK_SHARE = 0.2


@dataclass
class _Parts:
    """Voxels as they came: keys of the normal ones, keys and regions of the abnormal ones."""

    normal: list[np.ndarray]
    abnormal: list[np.ndarray]
    regions: list[np.ndarray]
    size: int = 0


class PixelMetrics:
    """Ranking metrics, overlap with regions and decisions at given thresholds, over all voxels together.

    Up to ``exact_voxels`` every voxel is kept, parted by class: 4 bytes a normal and 8 bytes an abnormal one, and
    ``compute`` needs as much again while it runs. Beyond, the voxels are counted by score in a ``ScoreDigest``, whose
    memory does not grow: with the defaults, half a GB is held at most, and 1 GB more while counting, for any number of
    voxels; about a million are counted in a second. The metrics come with the bounds that were reached. Those of AUROC,
    of the overlap up to 0.3 and of Dice are proved to be ``tolerance`` at most; those of average precision and of the
    sensitivity at a false positive rate are as a rule as small, but have to be looked at.

    A region is a connected part of a mask, diagonal neighbours included. Its overlap at a threshold is the share of its
    voxels at or above it. The area under the mean overlap against the false positive rate (AUPRO) ends at
    ``overlap_limit`` and is divided by it; a small lesion counts as much as a large one.

    Args:
        thresholds: by name, values that a voxel must lie above to be flagged, such as those of a calibration.
        exact_voxels: voxels up to which the metrics are exact; 0 counts from the first on.
        tolerance: what a metric may be off by beyond that.
        overlap_limit: the false positive rate up to which the overlap is integrated, in (0, 1].
        fpr: the false positive rate at which sensitivity and Dice are given, in [0, 1).

    Raises:
        ValueError: if a limit is out of range or a threshold is NaN.

    References:
        P. Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 129, 2021, section 5.1.2 (overlap of regions).

    Example:
        >>> metrics = PixelMetrics()
        >>> metrics.update(np.array([0.1, 0.9, 0.4]), np.array([False, True, False]))
        >>> metrics.compute()["auroc"]
        1.0
    """

    def __init__(
        self,
        thresholds: Mapping[str, float] | None = None,
        *,
        exact_voxels: int = 50_000_000,
        tolerance: float = 1e-4,
        overlap_limit: float = 0.3,
        fpr: float = 0.05,
    ) -> None:
        if not 0 < overlap_limit <= 1:
            raise ValueError(f"overlap_limit is in (0, 1], got {overlap_limit}")
        if not 0 <= fpr < 1:
            raise ValueError(f"fpr is in [0, 1), got {fpr}")
        if exact_voxels < 0:
            raise ValueError(f"exact_voxels is at least 0, got {exact_voxels}")
        self.exact_voxels, self.tolerance = exact_voxels, tolerance
        self.overlap_limit, self.fpr = overlap_limit, fpr
        self.counts = {name: ConfusionCounts(float(value)) for name, value in (thresholds or {}).items()}
        self._digest = ScoreDigest(_RANK_SHARE * tolerance)
        self._counting = False
        self._kept = _Parts([], [], [])
        self._sizes: list[np.ndarray] = []
        self.num_regions = self.num_normal = self.num_abnormal = 0

    @property
    def nbytes(self) -> int:
        """Bytes held between updates."""
        kept = (*self._kept.normal, *self._kept.abnormal, *self._kept.regions, *self._sizes)
        return self._digest.nbytes + sum(part.nbytes for part in kept)

    @property
    def exact(self) -> bool:
        """Whether all voxels are kept as they came."""
        return not self._counting

    def update(self, anomaly_map: npt.ArrayLike, mask: npt.ArrayLike) -> None:
        """Add one scan.

        Args:
            anomaly_map: scores of any shape, (X, Y, Z) as a rule; rounded to float32.
            mask: labels of the same shape, True or 1 on lesions; all False for a normal scan.

        Raises:
            ValueError: if the shapes differ, a score is NaN, or a label is neither 0 nor 1.
        """
        from scipy.ndimage import label

        scores, lesions = checked_map(anomaly_map, mask)
        keys = order_keys(scores)
        normal, abnormal = keys[~lesions], keys[lesions]
        regions = np.empty(0, dtype=np.uint32)
        if abnormal.size:
            numbered, number = label(lesions, structure=np.ones((3,) * lesions.ndim))
            regions = (numbered[lesions] - 1).astype(np.uint32)
            self._sizes.append(np.bincount(regions, minlength=number))
            regions += np.uint32(self.num_regions)
            self.num_regions += number
        for counts in self.counts.values():
            counts.add(scores, lesions)
        self._keep(normal, abnormal, regions)

    def _keep(self, normal: np.ndarray, abnormal: np.ndarray, regions: np.ndarray) -> None:
        self.num_normal += normal.size
        self.num_abnormal += abnormal.size
        self._kept.normal.append(normal)
        self._kept.abnormal.append(abnormal)
        self._kept.regions.append(regions)
        self._kept.size += normal.size + abnormal.size
        if self._kept.size > (_BLOCK if self._counting else self.exact_voxels):
            self._count()

    def _count(self) -> None:
        """Move the voxels that are kept to the digest, a block at a time."""
        self._counting = True
        kept, self._kept = self._kept, _Parts([], [], [])
        nothing = np.empty(0, dtype=np.uint32)
        waiting: list[np.ndarray] = []
        while kept.normal:
            waiting.append(kept.normal.pop())
            if not kept.normal or sum(part.size for part in waiting) >= _BLOCK:
                for block in _blocks(np.concatenate(waiting)):
                    self._digest.add(block, nothing, np.empty(0))
                waiting = []
        weights = 1.0 / np.concatenate([np.ones(0), *self._sizes])
        abnormal, regions = np.concatenate([nothing, *kept.abnormal]), np.concatenate([nothing, *kept.regions])
        for keys, numbers in zip(_blocks(abnormal), _blocks(regions)):
            self._digest.add(nothing, keys, weights[numbers])

    def compute(self) -> dict[str, Any]:
        """The metrics over all voxels added so far; computing changes nothing.

        Returns:
            ``auroc``, ``ap``, ``best_dice`` (an oracle, see ``best_dice``) with ``best_dice_threshold``, ``aupro``,
            ``sensitivity_at_fpr`` and ``dice_at_fpr`` with ``threshold_at_fpr`` (voxels at or above it are flagged; of
            the thresholds within ``fpr`` that find most, the highest), each in [0, 1] but for thresholds, and None
            where a class is absent; ``prevalence``; ``num_voxels`` and ``num_regions``; the settings ``fpr`` and
            ``aupro_limit``; ``decisions``: by the name of a threshold what ``decision_metrics`` gives; ``exact``;
            ``bounds``: what each metric may be off by, 0 where exact; ``undefined``: the reason for each None.
        """
        ranking = self._ranking()
        total = self.num_normal + self.num_abnormal
        no_class = "no voxel" if not total else "no abnormal voxel" if not self.num_abnormal else "no normal voxel"
        names = {
            "auroc": "auroc",
            "ap": "average_precision",
            "best_dice": "best_dice",
            "aupro": "overlap",
            "sensitivity_at_fpr": "sensitivity",
            "dice_at_fpr": "dice",
        }
        values: dict[str, Any] = {name: getattr(ranking, attribute, None) for name, attribute in names.items()}
        undefined = {name: no_class for name, value in values.items() if value is None}
        for name, key in (
            ("best_dice_threshold", ranking.best_threshold if ranking else None),
            ("threshold_at_fpr", ranking.threshold if ranking else None),
        ):
            score = None if key is None else score_of_key(int(key))
            values[name] = score if score is not None and np.isfinite(score) else None
            if values[name] is None:
                nothing = "every threshold that finds anything is beyond the rate"
                undefined[name] = no_class if ranking is None else nothing if score is None else "the score is infinite"
        values["prevalence"] = self.num_abnormal / total if total else None
        if not total:
            undefined["prevalence"] = no_class
        return {
            **values,
            "num_voxels": total,
            "num_regions": self.num_regions,
            "fpr": self.fpr,
            "aupro_limit": self.overlap_limit,
            "decisions": {name: counts.metrics("dice") for name, counts in self.counts.items()},
            "exact": self.exact,
            "bounds": {
                name: ranking.bounds.get(attribute, 0.0) for name, attribute in names.items() if ranking is not None
            },
            "undefined": undefined,
        }

    def _ranking(self) -> Ranking | None:
        if self._counting:
            if self._kept.size:
                self._count()
            return self._digest.ranking(self.num_regions, self.overlap_limit, self.fpr)
        if not self.num_normal or not self.num_abnormal:
            return None
        normal = np.concatenate(self._kept.normal)
        normal.sort()
        # A key and its region in one integer, so that the two are sorted together in place.
        packed = np.concatenate(self._kept.abnormal).astype(np.uint64)
        packed <<= np.uint64(32)
        packed |= np.concatenate(self._kept.regions)
        packed.sort()
        halves = packed.view(np.uint32)
        high = int(sys.byteorder == "little")
        return rank_sorted(
            normal,
            halves[high::2],
            regions=halves[1 - high :: 2],
            sizes=np.concatenate(self._sizes),
            overlap_limit=self.overlap_limit,
            fpr=self.fpr,
        )


def _blocks(values: np.ndarray) -> list[np.ndarray]:
    return [values[start : start + _BLOCK] for start in range(0, values.size, _BLOCK)]
