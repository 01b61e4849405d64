"""What an evaluation found, as plain values: the input of the report and of its JSON and CSV (``evaluation_files``).

Nothing is computed here that a metric would compute: figures, intervals and curves come in finished. What the report
adds (case lists, sentences) is derived from them, so that page, JSON and CSV cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

__all__ = [
    "CaseResult",
    "CaseSlice",
    "CohortSide",
    "Confounds",
    "Curve",
    "DetectorFigures",
    "DriftCheck",
    "Estimate",
    "Evaluation",
    "ExtraTable",
    "MetricColumn",
    "ReportCalibration",
    "ReportMethod",
    "SeedSpread",
    "case_lists",
]

Kind = Literal["method", "baseline", "picture statistic"]
Level = Literal["image", "patient", "pixel", "lesion"]

# In the order in which tables show them.
KINDS: tuple[Kind, ...] = ("method", "baseline", "picture statistic")
LEVELS: tuple[Level, ...] = ("image", "patient", "pixel", "lesion")
# Points kept of a curve: a figure is a few hundred pixels wide.
_CURVE_POINTS = 400
NOT_EVALUATED = "not evaluated at this level"


def _finite(name: str, value: float | None) -> float | None:
    """As a Python float; NaN and infinity are refused."""
    if value is None:
        return None
    value = float(value)
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value}: give None, with the reason where there is room for one.")
    return value


@dataclass(frozen=True)
class Estimate:
    """One figure with its interval, or the reason why there is none.

    Attributes:
        value: the figure; None where it is undefined.
        low: lower end of its interval; None for no interval.
        high: upper end; given exactly where ``low`` is.
        undefined: why ``value`` is None; empty exactly where it is given.

    Raises:
        ValueError: if a number is NaN or infinite, an undefined value has no reason or a defined one has, only one
            end of the interval is given, or the ends are the wrong way round.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    undefined: str = ""

    def __post_init__(self) -> None:
        for name in ("value", "low", "high"):
            object.__setattr__(self, name, _finite(name, getattr(self, name)))
        if (self.value is None) != bool(self.undefined):
            raise ValueError("an estimate has either a value or the reason why it is undefined.")
        if (self.low is None) != (self.high is None):
            raise ValueError("an interval has two ends.")
        if self.low is not None and self.high is not None and (self.value is None or self.low > self.high):
            raise ValueError(f"no interval of {self.value}: {self.low} to {self.high}.")


@dataclass(frozen=True)
class MetricColumn:
    """What a metric is called, and how it is read.

    Attributes:
        level: ``image``, ``patient``, ``pixel`` or ``lesion``.
        key: its key in ``DetectorFigures.levels[level]``.
        label: its name for readers, ``AUROC``.
        headline: the metric by which the summary compares detectors; one for each level at most.
        higher_is_better: False for errors and false alarms, None where neither is better (a prevalence).
        chance: what a random ranking reaches (0.5 for AUROC, the prevalence for AP); None where that is not defined.
        two_sided: a picture statistic as far below chance separates the classes as well as one above (AUROC of a
            statistic that may rise or fall with disease); needs ``chance``.
        note: what a reader must know, such as that a best Dice is an oracle; printed below the table.
    """

    level: Level
    key: str
    label: str
    headline: bool = False
    higher_is_better: bool | None = True
    chance: float | None = None
    two_sided: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f"level is {self.level!r}: choose one of {LEVELS}.")
        if self.two_sided and self.chance is None:
            raise ValueError(f"{self.label} is two-sided: give its chance.")
        if self.headline and self.higher_is_better is None:
            raise ValueError(f"{self.label} cannot compare detectors: say whether higher is better.")
        object.__setattr__(self, "chance", _finite("chance", self.chance))


@dataclass(frozen=True)
class DetectorFigures:
    """The figures of one detector.

    Attributes:
        name: unique among the detectors.
        kind: ``method``, ``baseline`` (what every method must beat) or ``picture statistic`` (a confound such as the
            mean brightness).
        levels: level -> metric key -> figure. Levels and metrics that are left out count as not evaluated.
    """

    name: str
    kind: Kind
    levels: Mapping[str, Mapping[str, Estimate]]

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}: choose one of {KINDS}.")

    def estimate(self, column: MetricColumn) -> Estimate:
        """The figure in a column, with a reason where it is missing."""
        figures = self.levels.get(column.level, {})
        return figures.get(column.key) or Estimate(None, undefined=NOT_EVALUATED)


@dataclass(frozen=True)
class Curve:
    """A curve of one detector.

    Attributes:
        detector: its name, as in the tables.
        kind: the kind of its detector.
        level: what is counted.
        axes: ``roc`` (false positive rate, sensitivity), ``pr`` (recall, precision) or ``froc`` (false lesions per
            scan, lesion sensitivity).
        x: shape (n,), finite.
        y: shape (n,), finite.
    """

    detector: str
    kind: Kind
    level: Level
    axes: Literal["roc", "pr", "froc"]
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray

    def __post_init__(self) -> None:
        if self.axes not in ("roc", "pr", "froc"):
            raise ValueError(f"axes is {self.axes!r}: choose roc, pr or froc.")
        x, y = (np.asarray(points, dtype=np.float64) for points in (self.x, self.y))
        if x.ndim != 1 or x.shape != y.shape or not (np.isfinite(x).all() and np.isfinite(y).all()):
            raise ValueError(f"the curve of {self.detector} needs as many finite x as y.")
        object.__setattr__(self, "x", x)
        object.__setattr__(self, "y", y)

    def thinned(self) -> Curve:
        """At most 400 points of the curve, its ends among them, at about equal distances along it.

        Curves over voxels have millions of points, most of them in one corner.
        """
        x, y = np.asarray(self.x), np.asarray(self.y)
        if x.size <= _CURVE_POINTS:
            return self
        steps = sum(np.abs(np.diff(points)) / (np.ptp(points) or 1.0) for points in (x, y))
        length = np.concatenate([[0.0], np.cumsum(steps)])
        keep = np.searchsorted(length, np.linspace(0.0, length[-1], _CURVE_POINTS))
        keep = np.unique(np.concatenate([[0], np.minimum(keep, x.size - 1), [x.size - 1]]))[:_CURVE_POINTS]
        keep[-1] = x.size - 1
        return replace(self, x=x[keep], y=y[keep])


@dataclass(frozen=True)
class CohortSide:
    """One side of the split.

    Attributes:
        name: ``training``, ``validation``, ``calibration`` or ``test``.
        scans: how many.
        patients: how many; None where the cohort does not say.
        sha256: hash of what its scans' files show, whatever they are called, hexadecimal.
        normal: of the scans, those labelled normal; None where there are no labels.
        abnormal: of the scans, those labelled abnormal.
    """

    name: str
    scans: int
    patients: int | None
    sha256: str
    normal: int | None = None
    abnormal: int | None = None


@dataclass(frozen=True)
class ReportMethod:
    """The detector that is reported on.

    Attributes:
        name: as in the tables.
        version: of this package.
        weights: where the weights come from, a label or a hash.
        settings: what it was made and trained with: plain values, nested mappings allowed. They are printed as they
            are, so give none that name a patient.
    """

    name: str
    version: str
    weights: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DriftCheck:
    """One comparison of new scans with the calibration scans.

    Attributes:
        name: what is compared, ``scores (Kolmogorov-Smirnov)``.
        finding: the outcome in words and figures.
        warning: True where the guarantee of the calibration can no longer be relied on.
        compared: False where the two could not be compared, for the reason in ``finding``.
    """

    name: str
    finding: str
    warning: bool = False
    compared: bool = True


@dataclass(frozen=True)
class ReportCalibration:
    """How scores became decisions.

    Attributes:
        alpha: rate of normal patients that may be flagged, in (0, 1); None where none was asked for.
        patients: calibration patients, none of whom was trained on.
        score_threshold: scans with a higher score are flagged; None with too few patients or no ``alpha``.
        map_threshold: voxels with a higher value are in the mask, in the units of the map; None where there is none.
        rule: how the thresholds follow from the calibration scores, in words.
        scores: shape (n,), scores of calibration scans in the units of the cases' scores, for the histogram; may be
            empty.
        drift: the checks of this cohort against the calibration; empty where none was made.
    """

    alpha: float | None
    patients: int
    score_threshold: float | None
    map_threshold: float | None
    rule: str
    scores: Sequence[float] | np.ndarray = ()
    drift: Sequence[DriftCheck] = ()

    def __post_init__(self) -> None:
        for name in ("alpha", "score_threshold", "map_threshold"):
            object.__setattr__(self, name, _finite(name, getattr(self, name)))
        if self.alpha is not None and not 0.0 < self.alpha < 1.0:
            raise ValueError(f"alpha is a rate between 0 and 1, got {self.alpha}")
        if not np.isfinite(np.asarray(self.scores, dtype=np.float64)).all():
            raise ValueError("a calibration score is NaN or infinite.")


@dataclass(frozen=True)
class CaseSlice:
    """One slice of a case, to be drawn. Arrays, or files that Pillow reads.

    Attributes:
        image: (rows, columns) gray or (rows, columns, 3) colour.
        restoration: as ``image``, in its units; None where the detector restores nothing.
        anomaly_map: (rows, columns), finite scores; as a file a single-channel one of scores (``anomaly_map.tiff``),
            not a colour rendering.
        mask: (rows, columns), nonzero where an anomaly is reported; None for no mask.
        reference: (rows, columns), nonzero where an expert marked a lesion; None for no reference.
        window: the values of ``image`` shown black and white; None for its minimum and maximum.
        aspect: height of a pixel divided by its width.
        label: which slice it is, ``axial slice 12``.
        letters: what lies at the left, right, top and bottom of the picture (``R L A P``); empty where unknown.
    """

    image: np.ndarray | str | Path
    restoration: np.ndarray | str | Path | None
    anomaly_map: np.ndarray | str | Path
    mask: np.ndarray | str | Path | None = None
    reference: np.ndarray | str | Path | None = None
    window: tuple[float, float] | None = None
    aspect: float = 1.0
    label: str = ""
    letters: tuple[str, ...] = ()


@dataclass(frozen=True)
class CaseResult:
    """One scan of the test set.

    Attributes:
        name: the case's name, made of its file's name. It is always printed.
        score: its anomaly score, finite.
        label: 0 normal, 1 abnormal, None unknown.
        p_value: its conformal p-value, in (0, 1]; None without calibration.
        flagged: whether its score is above the calibrated threshold; None without a threshold.
        marked: whether its mask has any voxel, which is the column ``flagged`` of ``predictions.csv``; None without a
            mask.
        patient: who it is of, empty where unknown. Printed only where asked for.
        lesions: lesions in the reference; None without a reference.
        lesions_found: of these, those that the mask touches; None without a reference or a mask.
        pictures: the slice to draw, or a function that gives it, called only for the cases that the page shows;
            None for no picture.
    """

    name: str
    score: float
    label: int | None = None
    p_value: float | None = None
    flagged: bool | None = None
    marked: bool | None = None
    patient: str = ""
    lesions: int | None = None
    lesions_found: int | None = None
    pictures: CaseSlice | Callable[[], CaseSlice] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "score", _finite(f"the score of {self.name}", self.score))
        object.__setattr__(self, "p_value", _finite(f"the p-value of {self.name}", self.p_value))
        if self.label not in (None, 0, 1):
            raise ValueError(f"the label of {self.name} is {self.label!r}: give 0, 1 or None.")
        for name in ("flagged", "marked"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else bool(value))


@dataclass(frozen=True)
class SeedSpread:
    """One metric over repeated trainings.

    Attributes:
        detector: its name.
        level: its level.
        metric: the metric's key.
        values: seed -> value.
    """

    detector: str
    level: Level
    metric: str
    values: Mapping[int, float]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError(f"no seed of {self.detector}.")
        values = {int(seed): _finite(f"seed {seed}", value) for seed, value in self.values.items()}
        object.__setattr__(self, "values", values)

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return float(np.mean(list(self.values.values())))

    @property
    def std(self) -> float | None:
        """Sample standard deviation over the seeds; None for one seed."""
        return float(np.std(list(self.values.values()), ddof=1)) if len(self.values) > 1 else None


@dataclass(frozen=True)
class ExtraTable:
    """A table of its own, such as results by scanner or lesion size.

    Attributes:
        title: its heading.
        columns: the names of its columns.
        rows: as many cells each; None is printed as a dash.
        note: printed below.
        detector: whose figures these are; they then go to ``metrics.csv`` too, each under the name of its column and
            with the first cell of its row as its group. Empty for a table that does not.
        level: at which they were measured; given where ``detector`` is.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | int | float | Estimate | None]]
    note: str = ""
    detector: str = ""
    level: Level | None = None

    def __post_init__(self) -> None:
        if bool(self.detector) != (self.level is not None):
            raise ValueError(f"{self.title}: give both a detector and a level, or neither.")
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{self.title}: a row has {len(row)} cells, the table {len(self.columns)} columns.")
            for cell in row:
                if isinstance(cell, float | np.floating):
                    _finite(f"a cell of {self.title}", float(cell))


@dataclass(frozen=True)
class Confounds:
    """Whether trivial statistics of the pictures tell the test set's classes apart.

    Attributes:
        sentence: the finding in plain words.
        separates: True where one of them does by itself.
    """

    sentence: str
    separates: bool


@dataclass(frozen=True)
class Evaluation:
    """All that a report shows.

    Attributes:
        title: the page's heading.
        method: the detector that is reported on.
        cohort: the sides of the split, in their order.
        metrics: the columns of the tables, in their order; empty for an inference without labels.
        detectors: the figures, the method's own among them. A level that any of them has is a table in which every
            method and baseline stands.
        calibration: None where the detector is not calibrated.
        intervals: what the intervals are (``95 % bootstrap, resampled by patient``); empty for no intervals.
        prevalence: level -> share of abnormal elements in the test set, the precision of chance.
        curves: any number.
        cases: the scored scans of the test set; names are unique.
        spreads: metrics over seeds.
        tables: further tables.
        failures: (case, reason) of scans that could not be used.
        confounds: the finding on picture statistics; None has it worked out from their figures.
        notes: level -> sentences printed below its table, such as why a figure has no interval.
        scores_of: what a score is (``latent distance``), the axis of the histogram.

    Raises:
        ValueError: if names repeat, a figure belongs to no column, a level has several headline metrics, or a curve or
            a spread names an unknown detector or metric.
    """

    title: str
    method: ReportMethod
    cohort: Sequence[CohortSide]
    metrics: Sequence[MetricColumn] = ()
    detectors: Sequence[DetectorFigures] = ()
    calibration: ReportCalibration | None = None
    intervals: str = ""
    prevalence: Mapping[str, float] = field(default_factory=dict)
    curves: Sequence[Curve] = ()
    cases: Sequence[CaseResult] = ()
    spreads: Sequence[SeedSpread] = ()
    tables: Sequence[ExtraTable] = ()
    failures: Sequence[tuple[str, str]] = ()
    confounds: Confounds | None = None
    notes: Mapping[Level, Sequence[str]] = field(default_factory=dict)
    scores_of: str = "anomaly score"

    def __post_init__(self) -> None:
        names = [detector.name for detector in self.detectors]
        repeatable: tuple[tuple[str, list[str]], ...] = (
            ("detector", names),
            ("case", [case.name for case in self.cases]),
            ("metric", [f"{column.level} {column.key}" for column in self.metrics]),
            ("headline metric of the level", [str(column.level) for column in self.metrics if column.headline]),
        )
        for what, listed in repeatable:
            twice = (
                sorted({name for name in listed if listed.count(name) > 1}) if len(listed) > len(set(listed)) else []
            )
            if twice:
                raise ValueError(f"more than one {what} {twice[0]!r}.")
        known = {(column.level, column.key) for column in self.metrics}
        used = [(d.name, level, key) for d in self.detectors for level, figures in d.levels.items() for key in figures]
        used += [(spread.detector, spread.level, spread.metric) for spread in self.spreads]
        for name, level, key in used:
            if (level, key) not in known:
                raise ValueError(f"{name} has a figure {level} {key}, which is no column of metrics.")
        named = [curve.detector for curve in self.curves] + [spread.detector for spread in self.spreads]
        for name in named + [table.detector for table in self.tables]:
            if name and name not in names:
                raise ValueError(f"a curve, spread or table names the detector {name!r}, which has no figures.")
        for noted in self.notes:
            if noted not in LEVELS:
                raise ValueError(f"there are notes on {noted!r}, which is no level.")
        for level, share in self.prevalence.items():
            if level not in LEVELS or not 0.0 <= share <= 1.0:
                raise ValueError(f"prevalence of {level!r} is {share}.")

    def columns(self, level: str) -> list[MetricColumn]:
        """The metrics of a level."""
        return [column for column in self.metrics if column.level == level]

    def headline(self, level: str) -> MetricColumn | None:
        """The metric that compares detectors at a level; None where there is none."""
        return next((column for column in self.columns(level) if column.headline), None)

    def levels(self) -> list[Level]:
        """The levels at which any detector has a figure, in their usual order."""
        return [level for level in LEVELS if any(detector.levels.get(level) for detector in self.detectors)]

    def rows(self, level: str) -> list[DetectorFigures]:
        """Who stands in the table of a level: every method and baseline, and the picture statistics that have figures.

        A statistic of a whole picture has no map, so it has no row where pixels are counted.
        """
        return [
            detector
            for kind in KINDS
            for detector in self.detectors
            if detector.kind == kind and (kind != "picture statistic" or detector.levels.get(level))
        ]

    def figures(self) -> Iterator[tuple[DetectorFigures, MetricColumn, Estimate]]:
        """Every cell of every table."""
        for level in self.levels():
            for detector in self.rows(level):
                for column in self.columns(level):
                    yield detector, column, detector.estimate(column)


@dataclass(frozen=True)
class CaseList:
    """One of the lists of cases.

    Attributes:
        key: its name in the JSON.
        title: its heading.
        cases: all of them, the most telling first.
        undefined: why there is no such list; empty where there is.
    """

    key: str
    title: str
    cases: tuple[CaseResult, ...]
    undefined: str = ""


def case_lists(evaluation: Evaluation) -> list[CaseList]:
    """The cases worth a look.

    Args:
        evaluation: its ``cases``.

    Returns:
        The most anomalous (highest score first), the most normal (lowest first), the false negatives (abnormal, score
        not above the threshold, lowest first) and the false positives (normal, score above it, highest first). Equal
        scores are in the order of their names. The last two are undefined without labels, or without a threshold.
    """
    rising = sorted(evaluation.cases, key=lambda case: (case.score, case.name))
    falling = sorted(evaluation.cases, key=lambda case: (-case.score, case.name))

    def errors(key: str, title: str, cases: Sequence[CaseResult], label: int, flagged: bool) -> CaseList:
        known = [case for case in cases if case.label == label]
        if not known:
            return CaseList(key, title, (), f"no scan is labelled {'abnormal' if label else 'normal'}")
        decided = [case for case in known if case.flagged is not None]
        if not decided:
            return CaseList(key, title, (), "no calibrated threshold of scores")
        return CaseList(key, title, tuple(case for case in decided if case.flagged is flagged))

    return [
        CaseList("most_anomalous", "Most anomalous", tuple(falling)),
        CaseList("most_normal", "Most normal", tuple(rising)),
        errors("false_negatives", "False negatives (abnormal, score not above the threshold)", rising, 1, False),
        errors("false_positives", "False positives (normal, score above the threshold)", falling, 0, True),
    ]


def clean_text(text: Any) -> str:
    """Text that UTF-8 and HTML can hold: undecodable bytes of file names and control characters are spelt out."""
    kept = str(text).encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c in "\t\n" or (c >= " " and not "\x7f" <= c <= "\x9f") else f"\\x{ord(c):02x}" for c in kept)
