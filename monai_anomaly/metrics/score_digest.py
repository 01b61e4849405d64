"""Counts of normal and abnormal voxels by score in fixed memory; the ranking metrics, and what they may be off by.

A float32 score, its bits put in order, is an integer of 32 bits. The digest is a set of dyadic intervals of these
integers, each with the numbers of normal and of abnormal voxels in it and the weight of the latter. An interval of one
integer is exact. When there are too many, subtrees of intervals are replaced by their smallest common interval, if the
intervals around any one score then hold at most a share, the tolerance, of

- the normal voxels, the abnormal voxels and the weight (this bounds false positive rate, recall and overlap), and
- the voxels that surely score higher (this bounds precision, which a share of all voxels does not: where one voxel in
  a thousand is abnormal, 1e-4 of the voxels are a tenth of the abnormal ones).

All of these only grow as voxels come in, hence what was allowed once stays so. The rank of a score is therefore off by
the tolerance at most, whatever the order of the voxels, and so, up to small factors, are the metrics. They are computed
with their lower and upper bounds from the intervals as they are, so that the bound reached is known and not assumed.

References:
    N. Shrivastava et al., "Medians and Beyond: New Aggregation Techniques for Sensor Networks", SenSys 2004 (digests of
    dyadic intervals); G. Cormode et al., "Space- and Time-Efficient Deterministic Algorithms for Biased Quantiles over
    Data Streams", PODS 2006 (errors relative to the rank).
"""

from __future__ import annotations

import numpy as np

from .ranking import Ranking, allowed_false_positives, overlap_area

__all__ = ["ScoreDigest", "order_keys", "score_of_key"]

_BITS = 32
_SIGN = 1 << 31


def order_keys(scores: np.ndarray) -> np.ndarray:
    """Unsigned integers in the order of the scores.

    Args:
        scores: float32 without NaN, of any shape.

    Returns:
        uint32 of the same shape; equal exactly where the scores are (-0 and 0 are), greater where they are.
    """
    bits = (scores + np.float32(0.0)).view(np.uint32)  # -0 + 0 = 0
    # IEEE 754: positive numbers are in the order of their bits, negative ones in the reverse
    return np.where(bits & np.uint32(_SIGN), ~bits, bits | np.uint32(_SIGN))


def score_of_key(key: int) -> float:
    """The score that ``order_keys`` gives this integer for."""
    bits = np.uint32(key ^ _SIGN if key & _SIGN else ~key & 0xFFFFFFFF)
    return float(bits.view(np.float32))


class _Cumulative:
    """Sums of a quantity over the intervals above or below a place."""

    def __init__(self, low: np.ndarray, high: np.ndarray, by_high: np.ndarray, values: np.ndarray) -> None:
        self._low, self._high = low, high
        zero = np.zeros(1, dtype=values.dtype)
        self.from_low = np.concatenate([zero, np.cumsum(values)])
        self._from_high = np.concatenate([zero, np.cumsum(values[by_high])])
        self.total = self.from_low[-1]

    def below(self, keys: np.ndarray) -> np.ndarray:
        """Over the intervals that end below."""
        return self._from_high[np.searchsorted(self._high, keys, side="left")]

    def above(self, keys: np.ndarray) -> np.ndarray:
        """Over the intervals that start above."""
        return self.total - self.from_low[np.searchsorted(self._low, keys, side="right")]

    def surely_reach(self, keys: np.ndarray) -> np.ndarray:
        """Over the intervals all of which is at or above."""
        return self.total - self.from_low[np.searchsorted(self._low, keys, side="left")]

    def may_reach(self, keys: np.ndarray) -> np.ndarray:
        """Over the intervals some of which is at or above."""
        return self.total - self.below(keys)


class ScoreDigest:
    """Counts by score, exact while there are few distinct scores and within a tolerance beyond.

    Args:
        tolerance: the share of voxels by which the rank of a score may be off.
        capacity: intervals kept between calls, 32 bytes each. If the tolerance needs more, it is doubled, so that
            memory stays as it is and the bounds of the metrics tell.

    Raises:
        ValueError: if ``tolerance`` is not in (0, 1), or the capacity below 256.
    """

    def __init__(self, tolerance: float = 2e-5, capacity: int = 3 << 19) -> None:
        if not 0 < tolerance < 1:
            raise ValueError(f"tolerance is in (0, 1), got {tolerance}")
        if capacity < 256:  # the highest scores are never put together: up to an interval for each of 32 levels
            raise ValueError(f"capacity is at least 256, got {capacity}")
        self.tolerance, self.capacity = tolerance, capacity
        # low << 6 | 32 - level: sorted, an interval comes before those within it
        self._codes = np.empty(0, dtype=np.uint64)
        self._normal = np.empty(0, dtype=np.int64)
        self._abnormal = np.empty(0, dtype=np.int64)
        self._weight = np.empty(0, dtype=np.float64)

    def __len__(self) -> int:
        return self._codes.size

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(part.nbytes for part in (self._codes, self._normal, self._abnormal, self._weight))

    @property
    def num_normal(self) -> int:
        """Normal voxels counted."""
        return int(self._normal.sum())

    @property
    def num_abnormal(self) -> int:
        """Abnormal voxels counted."""
        return int(self._abnormal.sum())

    def add(self, normal: np.ndarray, abnormal: np.ndarray, weights: np.ndarray) -> None:
        """Count voxels.

        Args:
            normal: their keys (see ``order_keys``), shape (N,).
            abnormal: their keys, shape (A,).
            weights: of the abnormal voxels, shape (A,), float64: 1 / the size of the region.
        """
        keys, counts = np.unique(normal, return_counts=True)
        order = np.argsort(abnormal, kind="stable")
        found, first, repeats = np.unique(abnormal[order], return_index=True, return_counts=True)
        weight = np.add.reduceat(weights[order], first) if found.size else np.empty(0)
        self._absorb(
            np.concatenate([keys, found]).astype(np.uint64) << np.uint64(6) | np.uint64(_BITS),
            np.concatenate([counts, np.zeros_like(repeats)]),
            np.concatenate([np.zeros_like(counts), repeats]),
            np.concatenate([np.zeros(keys.size), weight]),
        )

    def _absorb(self, codes: np.ndarray, normal: np.ndarray, abnormal: np.ndarray, weight: np.ndarray) -> None:
        if not codes.size:
            return
        codes = np.concatenate([self._codes, codes])
        order = np.argsort(codes, kind="stable")
        codes = codes[order]
        first = np.flatnonzero(np.concatenate([[True], codes[1:] != codes[:-1]]))
        self._codes = codes[first]
        self._normal = np.add.reduceat(np.concatenate([self._normal, normal])[order], first)
        self._abnormal = np.add.reduceat(np.concatenate([self._abnormal, abnormal])[order], first)
        self._weight = np.add.reduceat(np.concatenate([self._weight, weight])[order], first)
        if len(self) > self.capacity:
            self._compact()
            while len(self) > self.capacity:
                self.tolerance *= 2.0
                self._compact()

    def _intervals(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The lowest and the highest key of each interval and its level: it spans 2 ** level keys."""
        level = _BITS - (self._codes & np.uint64(63)).astype(np.int64)
        low = (self._codes >> np.uint64(6)).astype(np.int64)
        return low, low + (np.int64(1) << level) - 1, level

    def _compact(self) -> None:
        """Replace every largest subtree that the tolerance allows by its smallest common interval.

        From the bottom up: what is not allowed for an interval is not allowed for one around it either.
        """
        low, high, level = self._intervals()
        by_high = np.argsort(high, kind="stable")
        number = np.arange(len(self))
        parts, around = [], []
        for own in (self._normal, self._abnormal, self._weight):
            sums = _Cumulative(low, high[by_high], by_high, own)
            parts.append(sums.from_low)
            # what comes before an interval either ends below it or lies around it
            around.append(sums.from_low[number] - sums.below(low))
        higher = parts[0][-1] + parts[1][-1] - parts[0] - parts[1]  # from an interval on
        # Blocks are ranges [first, last) of intervals. One that may not be a block blocks those around it.
        first = np.flatnonzero(level == 0)
        last, place, allowed = first + 1, low[first], np.ones(first.size, dtype=bool)
        span = np.zeros(first.size, dtype=np.int64)
        done: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for k in range(1, _BITS + 1):
            joining = np.flatnonzero(level == k)
            if joining.size:
                order = np.argsort(np.concatenate([first, joining]), kind="stable")
                first = np.concatenate([first, joining])[order]
                last = np.concatenate([last, joining + 1])[order]
                place = np.concatenate([place, low[joining]])[order]
                span = np.concatenate([span, np.full(joining.size, k)])[order]
                allowed = np.concatenate([allowed, np.ones(joining.size, dtype=bool)])[order]
            if not first.size:
                continue
            parent = place >> k
            start = np.flatnonzero(np.concatenate([[True], parent[1:] != parent[:-1]]))
            members = np.diff(start, append=first.size)
            if start.size == first.size:
                continue
            a, b = first[start], last[start + members - 1]
            normal, abnormal, weight = (part[b] - part[a] + outer[a] for part, outer in zip(parts, around, strict=True))
            fits = (
                (normal + abnormal <= self.tolerance * higher[b])
                & (normal <= self.tolerance * parts[0][-1])
                & (abnormal <= self.tolerance * parts[1][-1])
                & (weight <= self.tolerance * parts[2][-1])
                & np.logical_and.reduceat(allowed, start)
            )
            several = members > 1
            final = np.repeat(several & ~fits, members) & allowed
            done.append((first[final], place[final], span[final]))
            joined = several & fits
            allowed = np.where(several, fits, allowed[start])
            span = np.where(joined, k, span[start])
            place = np.where(joined, parent[start] << k, place[start])
            first, last = a, b
        done.append((first[allowed], place[allowed], span[allowed]))
        kept, place, span = (np.concatenate(part) for part in zip(*done, strict=True))
        order = np.argsort(kept)
        kept, place, span = kept[order], place[order], span[order]
        self._codes = place.astype(np.uint64) << np.uint64(6) | (_BITS - span).astype(np.uint64)
        self._normal = np.add.reduceat(self._normal, kept)
        self._abnormal = np.add.reduceat(self._abnormal, kept)
        self._weight = np.add.reduceat(self._weight, kept)

    def ranking(self, num_regions: int, overlap_limit: float, fpr: float) -> Ranking | None:
        """The metrics, each in the middle between its bounds; thresholds as keys.

        A threshold is one at which the lower bound of its metric is reached: the false positive rate at
        ``Ranking.threshold`` is surely within the limit.

        Args:
            num_regions: what the weights sum to.
            overlap_limit: the false positive rate up to which the overlap is integrated, in (0, 1].
            fpr: the false positive rate of ``Ranking.sensitivity``, ``dice`` and ``threshold``.

        Returns:
            The metrics and half the distance of their bounds; None where a class is absent.
        """
        low, high, level = self._intervals()
        by_high = np.argsort(high, kind="stable")
        sorted_high = high[by_high]
        normal = _Cumulative(low, sorted_high, by_high, self._normal)
        abnormal = _Cumulative(low, sorted_high, by_high, self._abnormal)
        total_normal, total_abnormal = int(normal.total), int(abnormal.total)
        if not total_normal or not total_abnormal:
            return None
        with_abnormal = np.flatnonzero(self._abnormal)
        low, high = low[with_abnormal], high[with_abnormal]
        single = level[with_abnormal] == 0
        own, weight = self._abnormal[with_abnormal], self._weight[with_abnormal]
        # of each interval with abnormal voxels: normal ones below, above, of the same score, and either
        below, above = normal.below(low), normal.above(high)
        tied = np.where(single, self._normal[with_abnormal], 0)
        unsure = total_normal - below - above - tied
        values: dict[str, tuple[float, float]] = {}
        pairs = float(total_normal) * total_abnormal
        wins = float(np.dot(own.astype(np.float64), below + tied / 2.0))
        values["auroc"] = wins / pairs, (wins + float(np.dot(own.astype(np.float64), unsure))) / pairs
        found_above = abnormal.above(high)
        found_unsure = total_abnormal - abnormal.below(low) - found_above - np.where(single, own, 0)
        fewest = found_above + np.where(single, own, 1)  # a voxel finds itself
        most = found_above + np.where(single, own, 0) + found_unsure
        fewest_false, most_false = above + tied, above + tied + unsure
        values["average_precision"] = (
            float(np.dot(own, fewest / (fewest + most_false))) / total_abnormal,
            float(np.dot(own, most / (most + fewest_false))) / total_abnormal,
        )
        before, at = above / total_normal, (above + tied) / total_normal
        later = unsure / total_normal
        values["overlap"] = (
            float(np.dot(weight, overlap_area(before + later, at + later, overlap_limit))) / max(num_regions, 1),
            float(np.dot(weight, overlap_area(before, at, overlap_limit))) / max(num_regions, 1),
        )
        # Between two ends of intervals with abnormal voxels the bounds of Dice are best at these ends.
        hits, false = abnormal.surely_reach(low), normal.may_reach(low)
        dice = 2.0 * hits / (total_abnormal + hits + false)
        most_hits, least_false = abnormal.may_reach(high), normal.surely_reach(high)
        most_dice = 2.0 * most_hits / (total_abnormal + most_hits + least_false)
        best = dice.size - 1 - int(np.argmax(dice[::-1]))
        values["best_dice"] = float(dice[best]), float(most_dice.max())
        allowed = allowed_false_positives(fpr, total_normal)
        within = least_false <= allowed
        most_sensitive = float(most_hits[within].max()) / total_abnormal if within.any() else 0.0
        lowest = int(np.argmax(false <= allowed))  # false positives fall from interval to interval
        threshold: float | None = None
        values["sensitivity"] = 0.0, most_sensitive
        values["dice"] = 0.0, 0.0
        if false[lowest] <= allowed:
            key = low[lowest : lowest + 1]
            threshold = float(key[0])
            values["sensitivity"] = float(hits[lowest]) / total_abnormal, most_sensitive
            reached, false_there = int(abnormal.may_reach(key)[0]), int(normal.surely_reach(key)[0])
            values["dice"] = float(dice[lowest]), 2.0 * reached / (total_abnormal + reached + false_there)
        middle = {name: min(max((a + b) / 2.0, 0.0), 1.0) for name, (a, b) in values.items()}
        return Ranking(
            auroc=middle["auroc"],
            average_precision=middle["average_precision"],
            best_dice=middle["best_dice"],
            best_threshold=float(low[best]),
            overlap=middle["overlap"] if num_regions else None,
            sensitivity=middle["sensitivity"],
            dice=middle["dice"],
            threshold=threshold,
            # an upper bound beyond 1 by rounding must not make the bound larger, nor one below the lower negative
            bounds={name: max((min(b, 1.0) - a) / 2.0, 0.0) for name, (a, b) in values.items()},
        )
