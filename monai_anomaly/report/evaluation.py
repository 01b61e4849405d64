"""What a report shows: the run's settings, its table of figures, and its cases; all of it comes in finished."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from monai_anomaly.metrics import Curve, FigureTable

__all__ = ["CaseList", "CaseResult", "CaseSlice", "Evaluation", "case_lists"]

# Kinds of detectors, in the order in which tables show them.
KINDS = ("method", "baseline", "image statistic")


@dataclass(frozen=True)
class Evaluation:
    """A run: the content of ``metrics.json``.

    Attributes:
        settings: ``method``, ``cohort``, ``calibration``, ``mask`` and ``failures`` (see ``run_settings`` of the
            engines); of an evaluation also ``detectors`` (by name ``method``, ``baseline`` or ``image statistic``),
            ``confounders`` (``sentence`` and ``separates``) and ``intervals`` (what they are).
        figures: the table; empty for an inference without labels.
        curves: of these detectors.
    """

    settings: Mapping[str, Any]
    figures: FigureTable = field(default_factory=FigureTable)
    curves: Sequence[Curve] = ()

    @property
    def method(self) -> str:
        """The name of the detector that is reported on."""
        return self.settings["method"]["name"]

    @property
    def kinds(self) -> dict[str, str]:
        """By detector its kind, the method first."""
        kinds = self.settings.get("detectors", {})
        return dict(sorted(kinds.items(), key=lambda item: KINDS.index(item[1])))

    def plain(self) -> dict[str, Any]:
        """As JSON-able values."""
        curves = [
            {**curve._asdict(), "x": np.asarray(curve.x).tolist(), "y": np.asarray(curve.y).tolist()}
            for curve in self.curves
        ]
        return {"settings": dict(self.settings), "figures": self.figures.plain(), "curves": curves}


@dataclass(frozen=True)
class CaseSlice:
    """One slice of a case, to be drawn.

    Attributes:
        image: (rows, columns) gray or (rows, columns, 3) colour.
        restoration: as ``image``, in its units; None where the detector reconstructs nothing.
        anomaly_map: (rows, columns), finite scores.
        mask: (rows, columns), nonzero where an anomaly is reported; None for no mask.
        reference: (rows, columns), nonzero where an expert marked a lesion; None for no reference.
        window: the values of ``image`` shown black and white; None for its minimum and maximum.
        aspect: height of a pixel divided by its width.
        label: which slice it is, ``axial slice 12``.
        letters: what lies at the left, right, top and bottom of the image (``R L A P``); empty where unknown.
    """

    image: np.ndarray
    restoration: np.ndarray | None
    anomaly_map: np.ndarray
    mask: np.ndarray | None = None
    reference: np.ndarray | None = None
    window: tuple[float, float] | None = None
    aspect: float = 1.0
    label: str = ""
    letters: tuple[str, ...] = ()


@dataclass(frozen=True)
class CaseResult:
    """One scan.

    Attributes:
        name: the case's name, made of its file's name. Printed only where asked for.
        score: its anomaly score, finite.
        label: 0 normal, 1 abnormal, None unknown.
        p_value: its conformal p-value, in (0, 1]; None without calibration.
        flagged: whether its score is above the calibrated threshold; None without a threshold.
        marked: whether its mask has any voxel, which is the column ``flagged`` of ``predictions.csv``; None without a
            mask.
        patient: who it is of, empty where unknown. Printed only where asked for.
        lesions: lesions in the reference; None without a reference.
        lesions_found: of these, those that the mask touches; None without a reference or a mask.
        images: gives the slice to draw, called only for the cases that the page shows; None for no image.
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
    pictures: Callable[[], CaseSlice] | None = None


@dataclass(frozen=True)
class CaseList:
    """One of the lists of cases.

    Attributes:
        title: its heading.
        cases: all of them, the most telling first.
        undefined: why there is no such list; empty where there is.
    """

    title: str
    cases: tuple[CaseResult, ...]
    undefined: str = ""


def case_lists(cases: Sequence[CaseResult]) -> list[CaseList]:
    """The cases worth a look.

    Args:
        cases: all.

    Returns:
        The most anomalous (highest score first), the most normal (lowest first), the false negatives (abnormal, score
        not above the threshold, lowest first) and the false positives (normal, score above it, highest first). Equal
        scores are in the order of their names. The last two are undefined without labels, or without a threshold.
    """
    rising = sorted(cases, key=lambda case: (case.score, case.name))
    falling = sorted(cases, key=lambda case: (-case.score, case.name))

    def errors(title: str, ranked: Sequence[CaseResult], label: int, flagged: bool) -> CaseList:
        known = [case for case in ranked if case.label == label]
        if not known:
            return CaseList(title, (), f"no scan is labelled {'abnormal' if label else 'normal'}")
        decided = [case for case in known if case.flagged is not None]
        if not decided:
            return CaseList(title, (), "no calibrated threshold of scores")
        return CaseList(title, tuple(case for case in decided if case.flagged == flagged))

    return [
        CaseList("Most anomalous", tuple(falling)),
        CaseList("Most normal", tuple(rising)),
        errors("False negatives (abnormal, score not above the threshold)", rising, 1, False),
        errors("False positives (normal, score above the threshold)", falling, 0, True),
    ]
