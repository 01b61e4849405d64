"""Lesions one by one: a table of those that were flagged, and how many of the true ones are found."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from .ranking import checked_labels, checked_map

__all__ = ["LESION_COLUMNS", "PIXEL_CLASSES", "VOLUME_CLASSES", "LesionDetection", "count_lesions", "lesion_table"]

LESION_COLUMNS = (
    "lesion",
    "voxels",
    "volume_ml",
    "peak",
    "mean",
    "peak_x_mm",
    "peak_y_mm",
    "peak_z_mm",
    "peak_row",
    "peak_column",
    "p_value",
)

# Each class starts at its size. In mm3: spheres of 5.8 and 12.4 mm across.
VOLUME_CLASSES: Mapping[str, float] = {"small": 0.0, "medium": 100.0, "large": 1000.0}
# In pixels: the classes of COCO's detection metrics (Lin et al., ECCV 2014).
PIXEL_CLASSES: Mapping[str, float] = {"small": 0.0, "medium": 32.0**2, "large": 96.0**2}

# Reasons for what is undefined.
_NO_LESION, _NO_SCAN = "no lesion of this size", "no scan"


def _components(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Connected parts, diagonal neighbours included, numbered from 1; 0 elsewhere."""
    from scipy.ndimage import label

    return label(mask, structure=np.ones((3,) * mask.ndim))


def _peak_places(scores: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Where each part has its highest score, the first place of equals: flat indices, in the order of the parts."""
    inside = np.flatnonzero(parts)
    numbers = parts.ravel()[inside]
    order = np.lexsort((inside, -scores.ravel()[inside], numbers))
    return inside[order[np.unique(numbers[order], return_index=True)[1]]]


def count_lesions(reference: npt.ArrayLike, mask: npt.ArrayLike | None) -> tuple[int, int | None]:
    """How many true lesions there are, and how many of them a mask touches.

    Args:
        reference: of any shape, True or 1 on lesions.
        mask: of the same shape, true where flagged; None for none.

    Returns:
        The number of connected parts of the reference, and of those with a flagged voxel; None without a mask.

    Raises:
        ValueError: if the shapes differ, or a label is neither 0 nor 1.
    """
    lesions = checked_labels(reference)
    flagged = None if mask is None else checked_labels(mask)
    if flagged is not None and flagged.shape != lesions.shape:
        raise ValueError(f"reference of shape {lesions.shape} but mask of shape {flagged.shape}.")
    parts, number = _components(lesions)
    return int(number), None if flagged is None else int(np.unique(parts[flagged & (parts > 0)]).size)


def lesion_table(
    anomaly_map: npt.ArrayLike,
    mask: npt.ArrayLike,
    affine: npt.ArrayLike | None = None,
    p_value: Callable[[float], float | None] | None = None,
) -> list[dict[str, Any]]:
    """The connected lesions of a predicted mask, the one with the highest peak first.

    Parts that touch at a corner are one lesion. Of equal peaks the larger lesion comes first, then the one whose first
    voxel does.

    Args:
        anomaly_map: shape (X, Y, Z) of a volume; (rows, columns) or (rows, columns, 1) of an image.
        mask: of the same shape, true where flagged.
        affine: shape (4, 4), from voxel indices to mm, right, anterior and superior positive (RAS); None for an image,
            which has no millimetres.
        p_value: of a peak, such as its conformal p-value against the maxima of calibration maps.

    Returns:
        A row a lesion, with the keys ``LESION_COLUMNS``: ``lesion``, its number from 1; ``voxels``, or pixels;
        ``volume_ml``; ``peak`` and ``mean`` of the map; the place of the peak (the first of several) in mm (RAS) or as
        row and column, from 0; ``p_value``. None where a column does not apply.

    Raises:
        ValueError: if the shapes do not fit, a score is NaN, or the affine is not finite and invertible.
    """
    from scipy.ndimage import find_objects

    scores, flagged = checked_map(anomaly_map, mask)
    to_world = None if affine is None else np.asarray(affine, dtype=np.float64)
    if to_world is None:
        if scores.ndim != 2 and (scores.ndim != 3 or scores.shape[2] != 1):
            raise ValueError(f"an image is (rows, columns) or (rows, columns, 1), got {scores.shape}; give an affine.")
    elif scores.ndim != 3 or to_world.shape != (4, 4):
        raise ValueError(f"a volume has three axes and an affine of shape (4, 4), got {scores.shape}, {to_world.shape}")
    elif not np.isfinite(to_world).all() or np.linalg.det(to_world[:3, :3]) == 0:
        raise ValueError("the affine is not finite and invertible: lesions have no volume.")
    if not flagged.any():
        return []
    # what lies around the lesions needs no numbers
    box = find_objects(flagged.view(np.uint8))[0]
    scores, flagged = scores[box], flagged[box]
    regions, number = _components(flagged)
    index = np.arange(1, number + 1)
    sizes = np.bincount(regions[flagged])[1:]
    highest = _peak_places(scores, regions)
    peaks, places = scores.ravel()[highest], np.stack(np.unravel_index(highest, scores.shape), axis=1)
    places += [side.start for side in box]
    sums = np.bincount(regions[flagged], weights=scores[flagged])[1:]  # float64
    rows = []
    for rank, i in enumerate(np.lexsort((index, -sizes, -peaks.astype(np.float64))), start=1):
        row: dict[str, Any] = dict.fromkeys(LESION_COLUMNS)
        row |= {"lesion": rank, "voxels": int(sizes[i]), "peak": float(peaks[i]), "mean": float(sums[i] / sizes[i])}
        if to_world is None:
            row |= {"peak_row": int(places[i][0]), "peak_column": int(places[i][1])}
        else:
            world = to_world[:3, :3] @ places[i] + to_world[:3, 3]
            row |= dict(zip(("peak_x_mm", "peak_y_mm", "peak_z_mm"), world.tolist()))
            row["volume_ml"] = float(sizes[i] * abs(np.linalg.det(to_world[:3, :3])) / 1000.0)
        row["p_value"] = None if p_value is None else p_value(row["peak"])
        rows.append(row)
    return rows


class LesionDetection:
    """Which lesions are found, by their size, and how many false ones are flagged, over scans that come one by one.

    At a given threshold a lesion is found if at least ``min_overlap`` of its voxels, and one in any case, lie above the
    threshold, and a false lesion is a connected part above it that touches no true one.

    Free-response curve (FROC): candidates are the connected parts above ``floor``, each with its peak. One whose peak
    lies in a true lesion finds it, one whose peak lies outside of all is false. At a threshold the candidates count
    whose peak lies at or above it, and a lesion found twice counts once. This is CAMELYON16's rule, and MONAI's. It
    tells candidates apart by their peaks alone, hence ``floor`` should be a threshold that could be used: with too low
    a one everything is a single candidate.

    Memory is a few numbers a lesion and candidate. Parts that touch at a corner are one.

    Args:
        thresholds: by name, values above which voxels are flagged, such as those of a calibration.
        floor: of the candidates; None for the lowest of ``thresholds``, and no curve where there is none.
        size_classes: by name the sizes from which they start, rising from 0, in mm3 (or in voxels where scans are
            added without their voxels' volume); by default ``VOLUME_CLASSES`` and ``PIXEL_CLASSES``.
        min_overlap: the share of a lesion's voxels that make it found at a threshold, in [0, 1].

    Raises:
        ValueError: if a threshold is NaN, a share out of range, or the classes do not rise from 0.

    References:
        B. Ehteshami Bejnordi et al., "Diagnostic Assessment of Deep Learning Algorithms for Detection of Lymph Node
        Metastases in Women With Breast Cancer", JAMA 318(22), 2017 (FROC of CAMELYON16).
    """

    # False lesions a scan at which CAMELYON16 averages the sensitivity.
    RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)

    def __init__(
        self,
        thresholds: Mapping[str, float],
        *,
        floor: float | None = None,
        size_classes: Mapping[str, float] | None = None,
        min_overlap: float = 0.0,
    ) -> None:
        values = [*thresholds.values(), *([] if floor is None else [floor])]
        if any(math.isnan(value) for value in values):
            raise ValueError("a threshold is NaN: nothing lies above it or below it.")
        if not 0 <= min_overlap <= 1:
            raise ValueError(f"min_overlap is in [0, 1], got {min_overlap}")
        if size_classes is not None:
            starts = list(size_classes.values())
            if not starts or starts[0] != 0 or any(b <= a for a, b in pairwise(starts)):
                raise ValueError(f"size classes start at rising sizes, the first at 0, got {starts}")
        self.floor = min(values) if values and floor is None else floor
        self.min_overlap = min_overlap
        self.num_scans = 0
        self._classes = size_classes
        self._thresholds = dict(thresholds)
        self._in_mm: bool | None = None
        self._sizes: list[float] = []  # of the true lesions, in mm3 or voxels
        self._levels: list[float] = []  # the highest score that enough of the lesion's voxels reach
        self._hits: list[float] = []  # the highest candidate that finds the lesion, -inf for none
        self._false_at = dict.fromkeys(thresholds, 0)
        self._false: list[float] = []  # peaks of the false candidates

    def update(self, anomaly_map: npt.ArrayLike, mask: npt.ArrayLike, voxel_volume: float | None = None) -> None:
        """Add one scan.

        Args:
            anomaly_map: scores of any shape, (X, Y, Z) as a rule; rounded to float32.
            mask: of the same shape, True or 1 on lesions; all False for a normal scan.
            voxel_volume: in mm3; None for sizes in voxels, or pixels. One or the other for all scans.

        Raises:
            ValueError: if the shapes differ, a score is NaN, a label is neither 0 nor 1, the volume is not positive, or
                only some scans have one.
        """
        scores, lesions = checked_map(anomaly_map, mask)
        if voxel_volume is not None and not 0 < voxel_volume < math.inf:
            raise ValueError(f"voxel_volume is positive, got {voxel_volume}")
        if self._in_mm is not None and self._in_mm is not (voxel_volume is not None):
            raise ValueError("some scans have a voxel volume and some have none: sizes do not compare.")
        self._in_mm = voxel_volume is not None
        self.num_scans += 1
        regions, number = _components(lesions)
        if number:
            self._add_lesions(scores[lesions], regions[lesions], number, voxel_volume or 1.0)
        for name, threshold in self._thresholds.items():
            parts, count = _components(scores > threshold)
            self._false_at[name] += count - np.unique(parts[lesions & (parts > 0)]).size
        if self.floor is not None:
            self._add_candidates(scores, regions, number)

    def _add_lesions(self, scores: np.ndarray, regions: np.ndarray, number: int, voxel_volume: float) -> None:
        order = np.lexsort((-scores, regions))  # lesion by lesion, the highest score first
        sizes = np.bincount(regions, minlength=number + 1)[1:]
        first = np.cumsum(sizes) - sizes
        needed = np.maximum(np.ceil(self.min_overlap * sizes - 1e-9).astype(np.int64), 1)
        self._sizes += (sizes * voxel_volume).tolist()
        self._levels += scores[order[first + needed - 1]].tolist()

    def _add_candidates(self, scores: np.ndarray, regions: np.ndarray, number: int) -> None:
        highest = _peak_places(scores, _components(scores > self.floor)[0])
        peaks, lesion = scores.ravel()[highest].astype(np.float64), regions.ravel()[highest]
        self._false += peaks[lesion == 0].tolist()
        hits = np.full(number + 1, -np.inf)
        np.maximum.at(hits, lesion, peaks)
        self._hits += hits[1:].tolist()

    def curve(self) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """The free-response curve.

        Returns:
            Thresholds, falling; false lesions a scan and sensitivity at each, neither of which falls. The first point
            is that of no candidate, at an infinite threshold. None without scans, lesions or floor.
        """
        if not self.num_scans or not self._sizes or self.floor is None:
            return None
        false, hits = np.sort(np.array(self._false)), np.sort(np.array(self._hits))
        scores = np.unique(np.concatenate([false, hits[np.isfinite(hits)]]))[::-1]
        thresholds = np.concatenate([[np.inf], scores])
        num_false = false.size - np.searchsorted(false, thresholds, side="left")
        found = hits.size - np.searchsorted(hits, thresholds, side="left")
        num_false[0] = found[0] = 0  # even of infinite scores
        return thresholds, num_false / self.num_scans, found / hits.size

    def compute(self) -> dict[str, Any]:
        """What was found in all scans so far.

        Returns:
            ``num_scans``, ``num_lesions``; ``unit`` of size, ``mm3``, ``voxels`` or None; ``size_classes``: by name the
            size each starts ``from`` and its ``lesions``; ``at``: by the name of a threshold its ``threshold``,
            ``sensitivity`` over all lesions, ``sensitivity_by_size`` and ``false_lesions_per_scan``; ``froc_score``,
            the mean sensitivity at 1/4, 1/2, 1, 2, 4 and 8 false lesions a scan; ``undefined``: the reason for each
            None, by its key, that of a size class with the class after a slash.
        """
        from monai.metrics import compute_froc_score

        unit = None if self._in_mm is None else "mm3" if self._in_mm else "voxels"
        classes = self._classes or (PIXEL_CLASSES if unit == "voxels" else VOLUME_CLASSES)
        names, sizes, levels = list(classes), np.array(self._sizes), np.array(self._levels)
        member = np.searchsorted(np.array(list(classes.values())), sizes, side="right") - 1
        counts = {name: int(np.count_nonzero(member == i)) for i, name in enumerate(names)}
        undefined = {f"sensitivity_by_size/{name}": _NO_LESION for name, count in counts.items() if not count}
        if not sizes.size:
            undefined["sensitivity"] = "no lesion"
        if not self.num_scans:
            undefined |= {"false_lesions_per_scan": _NO_SCAN, "unit": _NO_SCAN}
        at: dict[str, dict[str, Any]] = {}
        for name, threshold in self._thresholds.items():
            found = levels > threshold
            at[name] = {
                "threshold": threshold,
                "sensitivity": float(found.mean()) if sizes.size else None,
                "sensitivity_by_size": {
                    size: float(found[member == i].mean()) if counts[size] else None for i, size in enumerate(names)
                },
                "false_lesions_per_scan": self._false_at[name] / self.num_scans if self.num_scans else None,
            }
        curve, froc_score = self.curve(), None
        if curve is not None:  # MONAI wants the points from the last to the first
            froc_score = float(compute_froc_score(curve[1][::-1], curve[2][::-1], self.RATES))
        else:
            undefined["froc_score"] = _NO_SCAN if not self.num_scans else "no lesion" if not sizes.size else "no floor"
        return {
            "num_scans": self.num_scans,
            "num_lesions": int(sizes.size),
            "unit": unit,
            "size_classes": {name: {"from": float(classes[name]), "lesions": counts[name]} for name in names},
            "at": at,
            "froc_score": froc_score,
            "undefined": undefined,
        }
