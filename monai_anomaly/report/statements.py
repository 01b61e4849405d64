"""The sentences of a report: what the figures say, worked out from them with their intervals.

Two figures are told apart only where their intervals do not overlap. That is cautious: on the same scans a paired
comparison can tell detectors apart whose own intervals overlap. Without intervals nothing is told apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from monai_anomaly.report.evaluation import DetectorFigures, Estimate, Evaluation, MetricColumn

__all__ = ["Statement", "calibration_statements", "comparison_statements"]

Outcome = Literal["better", "worse", "not distinguishable", "no interval", "undefined"]

LEVEL_TITLES = {
    "image": "Scans (image level)",
    "patient": "Patients",
    "pixel": "Pixels or voxels",
    "lesion": "Lesions",
}
# A statistic nearer to chance than this separates nothing that matters, however many scans make it certain.
_CONFOUND_DISTANCE = 0.1


@dataclass(frozen=True)
class Statement:
    """One finding in plain words.

    Attributes:
        level: the level that it is about; empty for none.
        warning: True where a reader must not pass over it.
        verdict: the finding, one sentence.
        detail: the figures behind it; may be empty.
    """

    level: str
    warning: bool
    verdict: str
    detail: str = ""


def number(value: float) -> str:
    """A figure for reading: three decimals about one, more for small ones."""
    size = abs(value)
    if size == 0:
        return "0"
    if size < 0.001:
        return f"{value:.2g}"
    if size < 0.1:
        return f"{value:.4f}"
    if size < 10:
        return f"{value:.3f}"
    return f"{value:.4g}" if size < 10000 else f"{value:,.0f}"


def rate(share: float) -> str:
    """A share as per cent."""
    return f"{100 * share:.3g} %"


def estimate_text(estimate: Estimate) -> str:
    """A figure with its interval, or why there is none."""
    if estimate.value is None:
        return f"undefined: {estimate.undefined}"
    if estimate.low is None or estimate.high is None:
        return number(estimate.value)
    return f"{number(estimate.value)} ({number(estimate.low)} to {number(estimate.high)})"


def _listed(names: Sequence[str], last: str = "and") -> str:
    return f" {last} ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _strength(detector: DetectorFigures, column: MetricColumn) -> Estimate:
    """A figure as rivals are measured by it: a two-sided statistic that falls with disease is read in reverse."""
    figure = detector.estimate(column)
    if not (column.two_sided and detector.kind == "picture statistic") or figure.value is None:
        return figure
    if column.chance is None or figure.value >= column.chance:
        return figure
    fold = 2 * column.chance
    if figure.low is None or figure.high is None:
        return Estimate(fold - figure.value)
    return Estimate(fold - figure.value, fold - figure.high, fold - figure.low)


def compare(one: Estimate, other: Estimate, higher_is_better: bool) -> Outcome:
    """How one figure stands to another.

    Args:
        one: of the detector that is spoken of.
        other: of its rival.
        higher_is_better: False for errors.

    Returns:
        ``better`` or ``worse`` where the intervals lie apart, ``not distinguishable`` where they touch,
        ``no interval`` where one of them has none, ``undefined`` where one has no value.
    """
    if one.value is None or other.value is None:
        return "undefined"
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return "no interval"
    if one.low <= other.high and other.low <= one.high:
        return "not distinguishable"
    return "better" if (one.low > other.high) == higher_is_better else "worse"


def outcome(method: DetectorFigures, rival: DetectorFigures, column: MetricColumn) -> Outcome:
    """How a method stands to a rival in one metric; a statistic that falls with disease counts by its distance."""
    return compare(_strength(method, column), _strength(rival, column), column.higher_is_better is not False)


def comparison_statements(evaluation: Evaluation) -> list[Statement]:
    """Per level, where each method stands to chance, the baselines and the picture statistics.

    Args:
        evaluation: its detectors and metrics. A level without a headline metric has no statement.

    Returns:
        For each level first its confounds, then one statement a method, with a warning unless it is better than every
        baseline and every picture statistic of that level.
    """
    statements: list[Statement] = []
    for level in evaluation.levels():
        column = evaluation.headline(level)
        if column is None:
            continue
        rows = evaluation.rows(level)
        if level == "image" and evaluation.confounds is not None:
            finding = evaluation.confounds
            statements.append(Statement(level, finding.separates, f"{LEVEL_TITLES[level]}: {finding.sentence}"))
        else:
            statements += _confounds(rows, column)
        for method in rows:
            if method.kind == "method":
                rivals = [rival for rival in rows if rival.kind != "method"]
                statements.append(_comparison(method, rivals, column))
    return statements


def _confounds(rows: Sequence[DetectorFigures], column: MetricColumn) -> list[Statement]:
    """One warning that names the picture statistics that separate the classes by themselves."""
    if column.chance is None:
        return []
    found = []
    for row in rows:
        figure = _strength(row, column)
        if row.kind != "picture statistic" or figure.value is None:
            continue
        sign = -1.0 if column.higher_is_better is False else 1.0
        near = figure.value if figure.low is None or figure.high is None else (figure.low if sign > 0 else figure.high)
        if sign * (near - column.chance) > 0 and sign * (figure.value - column.chance) >= _CONFOUND_DISTANCE - 1e-9:
            found.append(f"{row.name} {estimate_text(row.estimate(column))}")
    if not found:
        return []
    return [
        Statement(
            column.level,
            True,
            f"{LEVEL_TITLES[column.level]}: a picture statistic alone separates the classes, so the figures of any "
            "method prove little at this level.",
            f"{column.label} of {_listed(found)}; chance is {number(column.chance)}. Normal and abnormal scans differ "
            "in how they were taken or cut, or disease changes this statistic.",
        )
    ]


def _comparison(method: DetectorFigures, rivals: Sequence[DetectorFigures], column: MetricColumn) -> Statement:
    title, figure = LEVEL_TITLES[column.level], method.estimate(column)
    if figure.value is None:
        verdict = f"{title}: {method.name} has no {column.label} (undefined: {figure.undefined})."
        return Statement(column.level, True, verdict)
    groups: dict[Outcome, list[DetectorFigures]] = {}
    for rival in rivals:
        groups.setdefault(outcome(method, rival, column), []).append(rival)

    def named(kind: Outcome, with_reason: bool = False) -> str:
        texts = []
        for rival in groups[kind]:
            what = rival.estimate(column)
            shown = what.undefined if with_reason else estimate_text(what)
            texts.append(f"{rival.name} ({shown})" if with_reason else f"{rival.name} {shown}")
        return _listed(texts)

    sentences = [f"{method.name} has {column.label} {estimate_text(figure)}."]
    if groups.get("better"):
        sentences.append(f"Better than {named('better')}.")
    if groups.get("not distinguishable"):
        sentences.append(f"Not distinguishable from {named('not distinguishable')}: the intervals overlap.")
    if groups.get("worse"):
        sentences.append(f"Worse than {named('worse')}.")
    if groups.get("no interval"):
        sentences.append(f"Without intervals nothing can be said of {named('no interval')}.")
    if groups.get("undefined"):
        sentences.append(f"Not compared with {named('undefined', with_reason=True)}.")
    chance = _against_chance(figure, column)
    if chance:
        sentences.append(chance)

    verdicts = []
    for kind in ("baseline", "picture statistic"):
        counted = [rival for rival in rivals if rival.kind == kind and rival not in groups.get("undefined", [])]
        unsure = [rival.name for rival in counted if rival in groups.get("no interval", [])]
        lost = [rival.name for rival in counted if rival not in groups.get("better", []) and rival.name not in unsure]
        if lost:
            verdicts.append(f"does NOT beat the {kind}{'s' if len(lost) > 1 else ''} {_listed(lost, 'or')}")
        if unsure:
            names = f"the {kind}{'s' if len(unsure) > 1 else ''} {_listed(unsure, 'or')}"
            verdicts.append(f"cannot be said to beat {names}, as an interval is missing")
        if lost or unsure:
            continue
        if counted:
            verdicts.append(f"beats every {kind} that was compared ({_listed([rival.name for rival in counted])})")
        elif kind == "baseline":
            verdicts.append("stands without a baseline, so its figure says little")
    warning = any(not verdict.startswith("beats") for verdict in verdicts) or bool(chance)
    text = f"{title}: {method.name} {'; it '.join(verdicts)}."
    return Statement(column.level, warning, text, " ".join(sentences))


def _against_chance(figure: Estimate, column: MetricColumn) -> str:
    """A sentence where a figure is not above chance, empty where it is or where there is no telling."""
    if column.chance is None or figure.low is None or figure.high is None:
        return ""
    outcome = compare(
        figure, Estimate(column.chance, column.chance, column.chance), column.higher_is_better is not False
    )
    return {
        "not distinguishable": f"Not distinguishable from chance ({number(column.chance)}).",
        "worse": f"Worse than chance ({number(column.chance)}).",
    }.get(outcome, "")


def calibration_statements(evaluation: Evaluation) -> list[Statement]:
    """What the calibrated rule did, and whether its guarantee holds.

    Args:
        evaluation: its calibration and cases.

    Returns:
        A statement on the rule, one on its drift check, and one on scans that failed, where there are any.
    """
    calibration = evaluation.calibration
    statements = []
    if calibration is None:
        verdict = "The detector is not calibrated: its scores rank scans, but no scan is called normal or abnormal."
        statements.append(Statement("", True, verdict))
    elif calibration.alpha is None:
        statements.append(
            Statement("", True, "No threshold: none was asked for, so no scan is called normal or abnormal.")
        )
    elif calibration.score_threshold is None:
        needed = math.ceil(1.0 / calibration.alpha - 1e-9) - 1
        verdict = (
            f"No threshold: {calibration.patients} calibration patients are too few for a rate of "
            f"{rate(calibration.alpha)}, which needs {needed}."
        )
        statements.append(Statement("", True, verdict))
    else:
        verdict = (
            f"The threshold of scores is set so that at most {rate(calibration.alpha)} of new normal patients have a "
            f"score above it, from {calibration.patients} calibration patients."
        )
        statements.append(Statement("", False, verdict, _flagged(evaluation)))
    if calibration is not None:
        drifted = [check.name for check in calibration.drift if check.warning]
        if drifted:
            verdict = (
                f"The guarantee no longer holds: these scans differ from the calibration scans in {_listed(drifted)}."
            )
            statements.append(Statement("", True, verdict))
        elif any(check.compared for check in calibration.drift):
            verdict = "No drift from the calibration scans was found; a small one can escape these checks."
            missed = _listed([check.name for check in calibration.drift if not check.compared])
            statements.append(Statement("", False, verdict, f"Not compared: {missed}." if missed else ""))
        else:
            verdict = (
                "Whether these scans are like the calibration scans was not checked; the rate holds only if they are."
            )
            statements.append(Statement("", True, verdict))
    if evaluation.failures:
        number_failed = len(evaluation.failures)
        what = "1 scan" if number_failed == 1 else f"{number_failed} scans"
        verdict = f"{what} could not be used and {'is' if number_failed == 1 else 'are'} missing from every figure."
        statements.append(Statement("", True, verdict))
    return statements


def _flagged(evaluation: Evaluation) -> str:
    sentences = []
    for label, name in ((0, "normal"), (1, "abnormal"), (None, "unlabelled")):
        cases = [case for case in evaluation.cases if case.label == label and case.flagged is not None]
        if not cases:
            continue
        flagged = [case for case in cases if case.flagged]
        text = f"{len(flagged)} of {len(cases)} {name} scans ({rate(len(flagged) / len(cases))})"
        patients = {case.patient for case in cases}
        if all(patients) and len(patients) < len(cases):
            text += f", {len({case.patient for case in flagged})} of {len(patients)} of their patients,"
        text += " have a score above the threshold"
        masks = [case for case in cases if case.marked is not None]
        if masks:
            text += f"; {sum(bool(case.marked) for case in masks)} have a mask that is not empty"
        sentences.append(f"{text}.")
    return " ".join(sentences)
