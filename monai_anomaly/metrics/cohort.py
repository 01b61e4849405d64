"""Everything that is measured on a cohort, scan by scan, as one table of figures."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .figures import Figure, FigureTable, group_name_of
from .intervals import bootstrap_intervals, scan_statistics
from .lesions import LesionDetection
from .masks import MaskMetrics
from .scans import image_metrics, patient_level, score_gap
from .voxel_intervals import VoxelIntervals
from .voxels import PixelMetrics

__all__ = ["CohortFigures", "Curve", "Thresholds"]

_COUNTS = ("true_positive", "false_positive", "false_negative", "true_negative")
_RANKINGS = ("auroc", "ap", "sensitivity_at_specificity")
_DECISIONS = ("accuracy", "f1", "sensitivity", "specificity")
_UNCALIBRATED = "not calibrated on normals, so it has no threshold"
# The group of scans that do not say theirs.
_NOT_STATED = "not stated"
_POOLED = "no interval: lesions are pooled over scans"
# Points kept of a curve: a figure is a few hundred pixels wide.
_CURVE_POINTS = 400


class Thresholds(NamedTuple):
    """What a detector's scans, voxels and lesions are decided at, from calibration or from its paper, never from tests.

    Attributes:
        scans: flagged where the score lies above; None for no threshold.
        voxels: by name, such as ``family 0.05`` and ``paper``.
        lesions: by name.
        floor: of the maps, where the free-response curve begins; None for no curve.
    """

    scans: float | None = None
    voxels: Mapping[str, float] = {}
    lesions: Mapping[str, float] = {}
    floor: float | None = None


class Curve(NamedTuple):
    """A curve of one detector.

    Attributes:
        detector: its name.
        level: ``image`` or ``lesion``.
        axes: ``roc`` (false positive rate, sensitivity), ``pr`` (recall, precision) or ``froc`` (false lesions per
            scan, lesion sensitivity).
        x: shape (n,).
        y: shape (n,).
    """

    detector: str
    level: str
    axes: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray

    def thinned(self) -> Curve:
        """At most 400 points of the curve, its ends among them, at about equal distances along it."""
        x, y = np.asarray(self.x), np.asarray(self.y)
        if x.size <= _CURVE_POINTS:
            return self
        steps = sum(np.abs(np.diff(points)) / (np.ptp(points) or 1.0) for points in (x, y))
        length = np.concatenate([[0.0], np.cumsum(steps)])
        keep = np.searchsorted(length, np.linspace(0.0, length[-1], _CURVE_POINTS))
        keep = np.unique(np.concatenate([[0], np.minimum(keep, x.size - 1), [x.size - 1]]))[:_CURVE_POINTS]
        keep[-1] = x.size - 1
        return self._replace(x=x[keep], y=y[keep])


class _Detector:
    """Sums of one detector."""

    def __init__(self, thresholds: Thresholds) -> None:
        self.thresholds = thresholds
        self.pixels, self.voxels = PixelMetrics(thresholds.voxels), VoxelIntervals(thresholds.voxels)
        self.lesions: dict[str, LesionDetection] = {}
        self.scores: list[float] = []


class CohortFigures:
    """Takes in one scan after the other; keeps scores and sums, no volumes.

    Args:
        thresholds: by detector; the first is the method, the others are baselines.
    """

    def __init__(self, thresholds: Mapping[str, Thresholds]) -> None:
        self.detectors = {name: _Detector(each) for name, each in thresholds.items()}
        self.method = next(iter(thresholds))
        self.masks = MaskMetrics()
        self.items: list[dict[str, Any]] = []

    def add(
        self,
        item: Mapping[str, Any],
        scores: Mapping[str, float],
        maps: Mapping[str, np.ndarray],
        reference: np.ndarray | None,
        mask: np.ndarray | None = None,
        kind: str = "volume",
        voxel_volume: float | None = None,
    ) -> None:
        """Take in a scan.

        Args:
            item: with ``patient`` and ``label`` (0, 1 or None), and ``site`` and ``scanner`` where known.
            scores: by detector.
            maps: by detector, of any one shape, without NaN.
            reference: the true lesions, bool, of that shape; None where they are not known.
            mask: the method's, as written; None for none.
            kind: ``volume`` or ``image``: sizes of lesions compare within a kind.
            voxel_volume: in mm3; None for sizes in pixels.
        """
        patient, label = item["patient"], item.get("label")
        self.items.append({key: item.get(key) for key in ("patient", "label", "site", "scanner")})
        for name, found in self.detectors.items():
            found.scores.append(float(scores[name]))
            if reference is None:
                continue
            found.pixels.update(maps[name], reference)
            found.voxels.update(patient, maps[name], reference)
            if found.thresholds.lesions:
                new = LesionDetection(found.thresholds.lesions, floor=found.thresholds.floor)
                found.lesions.setdefault(kind, new).update(maps[name], reference, voxel_volume)
        if mask is not None:
            self.masks.update(patient, label, mask, reference, kind, voxel_volume)

    @property
    def labels(self) -> list[int | None]:
        """Of the scans so far."""
        return [item["label"] for item in self.items]

    def compute(self) -> FigureTable:
        """The table of all scans so far; computing changes nothing."""
        patients: list[Hashable] = [item["patient"] for item in self.items]
        decided = self.detectors[self.method].thresholds.scans is not None
        table: list[Figure] = []
        for name, found in self.detectors.items():
            threshold = found.thresholds.scans
            together = patient_level(patients, self.labels, found.scores)
            own = _scan_rows(name, "image", patients, self.labels, found.scores, threshold, decided)
            table += own
            table += _gap_rows(name, self.labels, found.scores)
            if len(together.patients) < len(patients):
                table += _scan_rows(name, "patient", *together, threshold, decided)
            else:  # a scan a patient
                table += [row._replace(level="patient") for row in own]
            table += self._pixel_rows(name)
            table += self._lesion_rows(name)
            for key in ("site", "scanner"):
                table += self._group_rows(name, key, decided)
        table += _mask_rows(self.method, self.masks.compute()) if self.masks.num_scans else []
        return FigureTable(table)

    def curves(self) -> list[Curve]:
        """ROC, precision-recall and, of lesions, free-response curves; none where a class is absent."""
        from sklearn.metrics import precision_recall_curve, roc_curve

        known = [i for i, label in enumerate(self.labels) if label is not None]
        truth = np.array([self.labels[i] for i in known])
        curves = []
        for name, found in self.detectors.items():
            if len(set(truth.tolist())) == 2:
                scores = np.array([found.scores[i] for i in known], dtype=np.float64)
                false_rate, sensitivity, _ = roc_curve(truth, scores)
                precision, recall, _ = precision_recall_curve(truth, scores)
                curves += [Curve(name, "image", "roc", false_rate, sensitivity)]
                curves += [Curve(name, "image", "pr", recall, precision)]
            # of two kinds of scans the one with more lesions: they have one name in the figure
            ranked = sorted(found.lesions.values(), key=lambda each: -each.compute()["num_lesions"])
            points = [curve for each in ranked if (curve := each.curve()) is not None]
            curves += [Curve(name, "lesion", "froc", points[0][1], points[0][2])] if points else []
        return [curve.thinned() for curve in curves]

    def _pixel_rows(self, name: str) -> Iterator[Figure]:
        found = self.detectors[name]
        pixel = found.pixels.compute()
        bounds = found.voxels.compute({key: pixel[key] for key in ("auroc", "ap")})
        counts = {"aupro": pixel["num_regions"]}
        metrics = ("auroc", "ap", "aupro", "best_dice", "sensitivity_at_fpr", "dice_at_fpr")
        for metric in (*metrics, "prevalence", "best_dice_threshold", "threshold_at_fpr"):
            n = counts.get(metric, pixel["num_voxels"])
            yield _row(name, "pixel", "", metric, pixel, bounds if metric in metrics else None, n)
        for metric, key in (("fpr_limit", "fpr"), ("aupro_limit", "aupro_limit"), ("num_regions", "num_regions")):
            yield Figure(name, "pixel", "", metric, pixel[key])
        for threshold, at in pixel["decisions"].items():
            group = group_name_of({"threshold": threshold})
            for metric in ("dice", "sensitivity", "specificity", "fpr", "precision", "accuracy", "threshold", *_COUNTS):
                own = {"intervals": {metric: bounds["intervals"].get(f"{metric}/{threshold}", {})}}
                drawn = {**own, "undefined": {metric: bounds["undefined"].get(f"{metric}/{threshold}", "")}}
                counted = metric in ("dice", "sensitivity")
                yield _row(name, "pixel", group, metric, at, drawn if counted else None, pixel["num_voxels"])

    def _lesion_rows(self, name: str) -> Iterator[Figure]:
        kinds = self.detectors[name].lesions
        for kind, detection in kinds.items():
            found = detection.compute()
            unit = {"mm3": "mm³", "voxels": "pixels", None: ""}[found["unit"]]
            of_kind = {"scans": "2-D images" if kind == "image" else f"{kind}s"} if len(kinds) > 1 else {}
            lesions, scans = found["num_lesions"], found["num_scans"]

            def row(parts: Mapping[str, str], metric: str, value: float | None, n: int, reason: str) -> Figure:
                note = _POOLED if value is not None else found["undefined"].get(reason, "undefined")  # noqa: B023
                return Figure(name, "lesion", group_name_of({**of_kind, **parts}), metric, value, n=n, note=note)  # noqa: B023

            yield row({}, "froc_score", found["froc_score"], lesions, "froc_score")
            for threshold, at in found["at"].items():
                parts = {"threshold": threshold}
                yield row(parts, "lesions_found", at["sensitivity"], lesions, "sensitivity")
                for metric, n in (("false_lesions_per_scan", scans), ("threshold", lesions)):
                    yield row(parts, metric, at[metric], n, metric)
                for size, of_size in found["size_classes"].items():
                    sized = {**parts, "size": f"{size} (from {of_size['from']:g} {unit})"}
                    of_class = at["sensitivity_by_size"][size]
                    yield row(sized, "lesions_found", of_class, of_size["lesions"], f"sensitivity_by_size/{size}")

    def _group_rows(self, name: str, key: str, decided: bool) -> Iterator[Figure]:
        found = self.detectors[name]
        groups = [_NOT_STATED if item[key] in (None, "") else str(item[key]) for item in self.items]
        for group in sorted(set(groups)) if set(groups) - {_NOT_STATED} else ():
            places = [place for place, own in enumerate(groups) if own == group]
            patients, labels = ([self.items[place][k] for place in places] for k in ("patient", "label"))
            scores, named = [found.scores[place] for place in places], group_name_of({key: group})
            yield from _scan_rows(name, "image", patients, labels, scores, found.thresholds.scans, decided, named)


def _row(
    detector: str,
    level: str,
    group: str,
    metric: str,
    found: Mapping[str, Any],
    bounds: Mapping[str, Any] | None = None,
    n: int | None = None,
) -> Figure:
    """One figure from what a metric returned, with the interval of ``bounds`` or the reason why there is none."""
    value = found[metric]
    if value is None:
        note = found["undefined"].get(metric) or "undefined"
        return Figure(detector, level, group, metric, None, n=n, note=note)
    between = (bounds or {}).get("intervals", {}).get(metric, {})
    low, high = between.get("low"), between.get("high")
    note = ""
    if bounds is not None and low is None:
        note = f"no interval: {bounds.get('undefined', {}).get(metric) or 'it is not resampled'}"
    return Figure(detector, level, group, metric, value, low, high, n, note)


def _scan_rows(
    detector: str,
    level: str,
    patients: Sequence[Hashable],
    labels: Sequence[int | None],
    scores: Sequence[float],
    threshold: float | None,
    decided: bool,
    group: str = "",
) -> list[Figure]:
    """Rankings of scans, or of patients, and, where the method decides, decisions."""
    found = image_metrics(labels, scores, threshold)
    bounds = bootstrap_intervals(patients, labels, scores, scan_statistics(threshold))
    n = found["num_normal"] + found["num_abnormal"]
    rows = [_row(detector, level, group, metric, found, bounds, n) for metric in _RANKINGS]
    rows.append(_row(detector, level, group, "prevalence", found, n=n))
    decision = found["decision"]
    if decision is None and decided:
        rows += [Figure(detector, level, group, metric, None, n=n, note=_UNCALIBRATED) for metric in _DECISIONS]
    elif decision is not None:
        rows += [_row(detector, level, group, metric, decision, bounds, n) for metric in _DECISIONS]
        rows += [_row(detector, level, group, metric, decision, n=n) for metric in ("fpr", "precision", "threshold")]
        rows += [Figure(detector, level, group, metric, decision[metric], n=n) for metric in _COUNTS]
    counted = {"num_patients": len(set(patients)), "num_normal": found["num_normal"]}
    counted["num_abnormal"] = found["num_abnormal"]
    return rows + [Figure(detector, level, group, metric, value) for metric, value in counted.items()]


def _gap_rows(detector: str, labels: Sequence[int | None], scores: Sequence[float]) -> list[Figure]:
    gap, n = score_gap(labels, scores), sum(label is not None for label in labels)
    rows = [_row(detector, "image", "", metric, gap, n=n) for metric in ("gap", "gap_in_sd")]
    return [row if row.note else row._replace(note="no interval: it is not resampled") for row in rows]


def _mask_rows(detector: str, found: Mapping[str, Any]) -> Iterator[Figure]:
    """The masks as written, after any clean-up; the share of normal patients with its exact binomial interval."""
    from scipy.stats import binomtest

    flagged = _row(detector, "mask", "", "normal_patients_flagged", found, n=found["num_normal_patients"])
    if found["num_normal_patients"]:
        test = binomtest(found["num_normal_patients_flagged"], found["num_normal_patients"])
        bounds = test.proportion_ci(0.95, method="exact")
        flagged = flagged._replace(low=bounds.low, high=bounds.high)
    yield flagged
    for metric in ("dice", "sensitivity", "fpr", "precision"):
        yield _row(detector, "mask", "", metric, found)
    for metric in (*_COUNTS, "num_scans"):
        yield Figure(detector, "mask", "", metric, found[metric])
    yield _row(detector, "mask", "", "lesions_found", found, n=found["num_lesions"])
    for kind, lesions in found["lesion"].items():
        of_kind = {"scans": "2-D images" if kind == "image" else f"{kind}s"} if len(found["lesion"]) > 1 else {}
        group = group_name_of(of_kind)
        yield _row(detector, "mask", group, "false_lesions_per_scan", lesions, n=lesions["num_scans"])
