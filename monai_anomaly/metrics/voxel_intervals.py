"""Intervals of voxel metrics over resampled patients, from counts that are small enough to keep for each patient."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .ranking import checked_map
from .score_digest import order_keys

__all__ = ["VoxelIntervals"]

# Sign, exponent and seven digits of a float32: scores of one cell differ by less than one in 128.
_BITS = 16
# Cells of the resamples that are worked on at a time.
_CHUNK = 1 << 21


class VoxelIntervals:
    """Bootstrap intervals of ``PixelMetrics``, by patient: voxels of one scan are alike, patients are not.

    Of each patient the normal and the abnormal voxels are counted by score, on a grid of which a cell holds scores that
    differ by less than 1/128 of themselves, and at each threshold exactly. A resample of patients is then a weighted
    sum of counts. On the grid AUROC and average precision differ a little from those of the voxels: their intervals are
    widened at both ends by the difference found for all patients together.

    Memory does not grow with the voxels of a patient: 20 bytes a cell in use, some thousand cells at the most for
    maps of a usual range. Where patients are so many that ``most_bytes`` would be exceeded, nothing is kept and there
    are no intervals.

    Args:
        thresholds: as of ``PixelMetrics``.
        most_bytes: held between updates, at the most.

    References:
        C. Field, A. Welsh, "Bootstrapping clustered data", Journal of the Royal Statistical Society B 69(3), 2007.
    """

    def __init__(self, thresholds: Mapping[str, float] | None = None, *, most_bytes: int = 1 << 28) -> None:
        self.thresholds, self.most_bytes = dict(thresholds or {}), most_bytes
        self._cells: dict[Hashable, tuple[np.ndarray, np.ndarray]] = {}
        self._decisions: dict[Hashable, np.ndarray] = {}
        self._too_many = False
        self.nbytes = 0

    def update(self, patient: Hashable, anomaly_map: npt.ArrayLike, mask: npt.ArrayLike) -> None:
        """Add one scan.

        Args:
            patient: whose it is.
            anomaly_map: as of ``PixelMetrics.update``.
            mask: as of ``PixelMetrics.update``.

        Raises:
            ValueError: if the shapes differ, a score is NaN, or a label is neither 0 nor 1.
        """
        scores, lesions = checked_map(anomaly_map, mask)
        if self._too_many:
            return
        flagged = [(scores > threshold) for threshold in self.thresholds.values()]
        decisions = [[np.count_nonzero(f & lesions), np.count_nonzero(f), np.count_nonzero(lesions)] for f in flagged]
        cells = (order_keys(scores) >> np.uint32(32 - _BITS)).astype(np.uint16)
        counts = np.stack([np.bincount(cells[part], minlength=1 << _BITS) for part in (~lesions, lesions)])
        if patient in self._cells:
            used, before = self._cells[patient]
            counts[:, used] += before
            self.nbytes -= used.nbytes + before.nbytes
        used = np.flatnonzero(counts.any(axis=0))
        kept = used.astype(np.uint32), counts[:, used]
        self._cells[patient] = kept
        self._decisions[patient] = self._decisions.get(patient, 0) + np.array(decisions, dtype=np.int64).reshape(-1, 3)
        self.nbytes += sum(part.nbytes for part in kept)
        if self.nbytes > self.most_bytes:
            self._too_many, self.nbytes = True, 0
            self._cells, self._decisions = {}, {}

    def compute(
        self,
        exact: Mapping[str, float | None] | None = None,
        *,
        n: int = 1000,
        level: float = 0.95,
        seed: int = 0,
    ) -> dict[str, Any]:
        """Percentile intervals.

        Patients with an abnormal voxel and those without are drawn apart, as many of each as there are.

        Args:
            exact: ``auroc`` and ``ap`` as ``PixelMetrics`` found them, by which the intervals are widened.
            n: resamples.
            level: of the intervals, in (0, 1).
            seed: of the draws.

        Returns:
            ``intervals``: for ``auroc``, ``ap`` and, of each threshold, ``dice/<name>`` and ``sensitivity/<name>``
            the ``value`` of all patients (on the grid), ``low`` and ``high``, or None; ``undefined``: by figure the
            reason for None; ``num_normal_patients`` (no abnormal voxel), ``num_abnormal_patients`` and the settings.

        Raises:
            ValueError: if a number is out of range.
        """
        if n < 1 or not 0 < level < 1:
            raise ValueError(f"n is positive and level in (0, 1), got {n} and {level}")
        names = ["auroc", "ap", *(f"{kind}/{name}" for name in self.thresholds for kind in ("dice", "sensitivity"))]
        abnormal = [bool(counts[1].any()) for _, counts in self._cells.values()]
        strata = [[i for i, is_abnormal in enumerate(abnormal) if is_abnormal is kind] for kind in (False, True)]
        found: dict[str, Any] = {
            "intervals": {name: dict.fromkeys(("value", "low", "high")) for name in names},
            "undefined": {},
            "num_normal_patients": len(strata[0]),
            "num_abnormal_patients": len(strata[1]),
            "n": n,
            "level": level,
            "seed": seed,
        }
        reason = self._missing(len(strata[0]), len(strata[1]))
        if reason:
            found["undefined"] = dict.fromkeys(names, reason)
            return found
        everyone = self._figures(np.ones((1, len(abnormal))))
        random = np.random.default_rng(seed)
        weights = np.zeros((n, len(abnormal)))
        for members in strata:
            if members:
                weights[:, members] = random.multinomial(len(members), np.full(len(members), 1 / len(members)), size=n)
        drawn = self._figures(weights)
        edges = (0.5 - level / 2, 0.5 + level / 2)
        for name in names:
            value = float(everyone[name][0])
            if not np.isfinite(drawn[name]).all():
                found["undefined"][name] = "undefined in a resample: there is no normal voxel"
                continue
            low, high = (float(q) for q in np.quantile(drawn[name], edges))
            known = (exact or {}).get(name)
            wider = 0.0 if known is None else abs(known - value)
            found["intervals"][name] = {"value": value, "low": max(low - wider, 0.0), "high": min(high + wider, 1.0)}
        return found

    def _missing(self, normal: int, abnormal: int) -> str:
        if self._too_many:
            return f"the patients' counts need more than {self.most_bytes >> 20} MB"
        few = [f"{count} {kind}" for count, kind in ((normal, "normal"), (abnormal, "abnormal")) if count == 1]
        if not abnormal:
            return "no abnormal voxel"
        return f"{' and '.join(few)} patient: too few to resample" if few else ""

    def _figures(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Every figure of each resample.

        Args:
            weights: shape (R, P), how often each patient was drawn.

        Returns:
            By name shape (R,); NaN where undefined.
        """
        from scipy.sparse import csr_array

        columns = np.unique(np.concatenate([used for used, _ in self._cells.values()]))
        ends = np.cumsum([0, *(used.size for used, _ in self._cells.values())])
        places = np.concatenate([np.searchsorted(columns, used) for used, _ in self._cells.values()])
        shape = (len(self._cells), columns.size)
        by_class = [
            csr_array((np.concatenate([counts[c] for _, counts in self._cells.values()]), places, ends), shape=shape)
            for c in (0, 1)
        ]
        parts = max(1, -(-weights.size // max(1, _CHUNK // columns.size)))
        ranked = [self._ranked(w @ by_class[0], w @ by_class[1]) for w in np.array_split(weights, parts) if len(w)]
        figures = {"auroc": np.concatenate([r[0] for r in ranked]), "ap": np.concatenate([r[1] for r in ranked])}
        decisions = np.stack(list(self._decisions.values()))  # patients, thresholds, (true positive, flagged, abnormal)
        for place, name in enumerate(self.thresholds):
            true, flagged, abnormal = (weights @ decisions[:, place]).T
            figures[f"dice/{name}"] = 2 * true / (flagged + abnormal)
            figures[f"sensitivity/{name}"] = true / abnormal
        return figures

    @staticmethod
    def _ranked(normal: np.ndarray, abnormal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """AUROC and average precision of counts of shape (R, cells), the lowest score first."""
        false, found = (np.cumsum(part[:, ::-1], axis=1)[:, ::-1] for part in (normal, abnormal))
        with np.errstate(invalid="ignore", divide="ignore"):
            wins = (abnormal * (false[:, :1] - false + normal / 2)).sum(axis=1)
            auroc = wins / (false[:, 0] * found[:, 0])
            precision = np.where(abnormal > 0, found / (found + false), 0.0)
            ap = (abnormal * precision).sum(axis=1) / found[:, 0]
        return auroc, np.where(false[:, 0] > 0, ap, np.nan)
