"""The table of figures: one row for each number that was measured, and what each metric means."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["LEVELS", "METRICS", "Figure", "FigureTable", "Metric", "group_name_of", "group_parts"]

# What is counted, in the order in which tables show it.
LEVELS: Mapping[str, str] = {
    "image": "Scans (image level)",
    "patient": "Patients",
    "pixel": "Pixels or voxels",
    "lesion": "Lesions",
    "mask": "Masks as written",
}


class Figure(NamedTuple):
    """One measured number: a row of ``metrics.csv``.

    Attributes:
        detector: whose it is: the method, a baseline, or an image statistic.
        level: a key of ``LEVELS``.
        group: the part of the data or the threshold that it is of, ``key: value; key: value``; empty for all.
        metric: a key of ``METRICS``.
        value: the number; None where it is undefined.
        low: lower end of its 95 % interval; None without an interval.
        high: upper end; given exactly where ``low`` is.
        n: how many scans, patients, voxels, lesions or seeds it was measured on; None where that says nothing.
        note: why the value is undefined or has no interval, or what a reader must know.
    """

    detector: str
    level: str
    group: str
    metric: str
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    note: str = ""


class Metric(NamedTuple):
    """How a metric is read.

    Attributes:
        label: its name for readers.
        note: what a reader must know; empty for nothing.
        higher_is_better: False for errors; None where neither is better.
        headline: detectors are compared by it.
        chance: what a random ranking has: a number, or the name of the metric of the same row's detector that says so.
    """

    label: str
    note: str = ""
    higher_is_better: bool | None = True
    headline: bool = False
    chance: float | str | None = None


_CALIBRATED = "at the threshold that was calibrated on normal scans alone"
_READ_OFF = "at a threshold read off the normal voxels of the test set itself"
_ORACLE = "an oracle: its threshold is chosen with the labels that it is measured on; no detector in use reaches it"
_SCANS = {
    "auroc": Metric("AUROC", headline=True, chance=0.5),
    "ap": Metric("AP", chance="prevalence"),
    "sensitivity_at_specificity": Metric("sensitivity at 95 % specificity"),
    "accuracy": Metric("accuracy (ACC)", _CALIBRATED),
    "f1": Metric("F1", _CALIBRATED),
    "sensitivity": Metric("sensitivity", _CALIBRATED),
    "specificity": Metric("specificity", _CALIBRATED),
}
_GAP = (
    "mean score of abnormal less that of normal scans, in the unit of the scores, which detectors do not share, and in "
    "standard deviations of the normal scans' scores"
)
_FOUND = "found where a voxel is flagged, false where a connected finding touches no lesion"

# By level and metric, in the order in which tables show them. A metric that is not here stands in the files alone.
METRICS: Mapping[str, Mapping[str, Metric]] = {
    "image": {
        **_SCANS,
        "gap": Metric("score gap", _GAP),
        "gap_in_sd": Metric("score gap in standard deviations", _GAP),
    },
    "patient": _SCANS,
    "pixel": {
        "ap": Metric("AP", headline=True, chance="prevalence"),
        "auroc": Metric("AUROC", chance=0.5),
        "aupro": Metric("AUPRO", "per-region overlap, integrated up to the voxel FPR of metrics.json"),
        "dice_at_fpr": Metric("Dice at the FPR", _READ_OFF),
        "sensitivity_at_fpr": Metric("sensitivity at the FPR", _READ_OFF),
        "best_dice": Metric("best Dice (oracle)", _ORACLE),
        "dice": Metric("Dice"),
        "sensitivity": Metric("sensitivity"),
        "fpr": Metric("voxel FPR", higher_is_better=False),
        "precision": Metric("precision"),
        "accuracy": Metric("accuracy (ACC)"),
    },
    "lesion": {
        "froc_score": Metric("FROC score", "mean share of lesions found at 1/4 to 8 false ones per scan"),
        "lesions_found": Metric("lesions found", _FOUND),
        "false_lesions_per_scan": Metric("false lesions per scan", _FOUND, higher_is_better=False),
    },
    "mask": {
        "normal_patients_flagged": Metric("normal patients flagged", higher_is_better=False),
        "dice": Metric("Dice"),
        "sensitivity": Metric("sensitivity"),
        "fpr": Metric("voxel FPR", higher_is_better=False),
        "precision": Metric("precision"),
        "lesions_found": Metric("lesions found", _FOUND),
        "false_lesions_per_scan": Metric("false lesions per scan", _FOUND, higher_is_better=False),
    },
}


def group_name_of(parts: Mapping[str, Any]) -> str:
    """A group from its parts, such as ``threshold: family 0.05; size: small``."""
    return "; ".join(f"{key}: {value}".replace("; ", ", ") for key, value in parts.items())


def group_parts(group: str) -> dict[str, str]:
    """The parts of a group, as ``group_name_of`` joined them."""
    return dict(part.split(": ", 1) for part in group.split("; ")) if group else {}


class FigureTable(Sequence[Figure]):
    """Figures in their order, one for each detector, level, group and metric.

    Args:
        figures: the rows, as ``Figure`` or, from a file, as mappings with its names.

    Raises:
        ValueError: if a number is NaN or infinite, an undefined value has no reason, an interval has one end or is
            the wrong way round, or two rows are of the same thing.
    """

    def __init__(self, figures: Iterable[Figure | Mapping[str, Any]] = ()) -> None:
        self._rows: dict[tuple[str, str, str, str], Figure] = {}
        for figure in figures:
            self.add(figure if isinstance(figure, Figure) else Figure(**figure))

    def add(self, figure: Figure) -> None:
        """Add a row; see the class for what is rejected."""
        key = figure[:4]
        numbers = [None if x is None else float(x) for x in (figure.value, figure.low, figure.high)]
        if any(x is not None and not math.isfinite(x) for x in numbers):
            raise ValueError(f"{key}: {numbers} is not finite; an undefined figure is None with its reason")
        value, low, high = numbers
        if value is None and not figure.note:
            raise ValueError(f"{key} is undefined: give the reason as its note")
        if (low is None) != (high is None) or (low is not None and high is not None and low > high):
            raise ValueError(f"{key}: no interval from {low} to {high}")
        if key in self._rows:
            raise ValueError(f"{key} is there already")
        self._rows[key] = figure._replace(value=value, low=low, high=high)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Figure]:
        return iter(self._rows.values())

    def __getitem__(self, index: Any) -> Any:
        return list(self._rows.values())[index]

    def find(self, detector: str, level: str, metric: str, group: str = "") -> Figure | None:
        """One row; None where it was not measured."""
        return self._rows.get((detector, level, group, metric))

    def value(self, detector: str, level: str, metric: str, group: str = "") -> float | None:
        """The number of one row; None where it is undefined or was not measured."""
        found = self.find(detector, level, metric, group)
        return None if found is None else found.value

    def where(self, **parts: str) -> list[Figure]:
        """The rows with these values of ``detector``, ``level``, ``group`` or ``metric``."""
        return [row for row in self if all(getattr(row, name) == value for name, value in parts.items())]

    def plain(self) -> list[dict[str, Any]]:
        """The rows as mappings, for JSON and CSV."""
        return [row._asdict() for row in self]
