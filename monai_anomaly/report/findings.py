"""The sentences of a report: what the figures say, read off them with their intervals.

Two figures are told apart only where their intervals do not overlap. That is cautious: on the same scans a paired
comparison can tell detectors apart whose own intervals overlap. Without intervals nothing is told apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from monai_anomaly.metrics import LEVELS, METRICS, Figure, Metric

from .evaluation import CaseResult, Evaluation

__all__ = ["compare", "figure_text", "findings", "headline", "number", "outcome", "rate", "verdict"]

Outcome = Literal["better", "worse", "not distinguishable", "no interval", "undefined"]


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


def figure_text(figure: Figure) -> str:
    """A figure with its interval, or why there is none."""
    if figure.value is None:
        return f"undefined: {figure.note}"
    if figure.low is None or figure.high is None:
        return number(figure.value)
    return f"{number(figure.value)} ({number(figure.low)} to {number(figure.high)})"


def headline(level: str) -> tuple[str, Metric] | None:
    """The metric by which detectors are compared at a level; None where there is none."""
    return next(((name, metric) for name, metric in METRICS[level].items() if metric.headline), None)


def compare(one: Figure, other: Figure, higher_is_better: bool = True) -> Outcome:
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


def outcome(evaluation: Evaluation, level: str, rival: str) -> Outcome | None:
    """How the method stands to another detector by the headline metric; None where that was not measured."""
    head = headline(level)
    if head is None:
        return None
    own, other = (evaluation.figures.find(name, level, head[0]) for name in (evaluation.method, rival))
    return None if own is None or other is None else compare(own, other, head[1].higher_is_better is not False)


def a_scan_a_patient(evaluation: Evaluation) -> bool:
    """Whether the figures of patients are those of scans."""
    scans, patients = (evaluation.figures.find(evaluation.method, level, "auroc") for level in ("image", "patient"))
    return scans is not None and patients is not None and scans.n == patients.n


def verdict(evaluation: Evaluation, cases: Sequence[CaseResult]) -> str:
    """One line: what was found, and whether it can be believed."""
    parts = []
    decided = [case for case in cases if case.flagged is not None]
    if decided:
        parts.append(f"{sum(bool(case.flagged) for case in decided)} of {len(decided)} scans lie above the threshold")
    else:
        parts.append(f"{_plural(len(cases), 'scan')} scored, no threshold")
    figures, method = evaluation.figures, evaluation.method
    for level in ("image", "pixel"):
        head = headline(level)
        own = head and figures.find(method, level, head[0])
        if head is None or own is None or own.value is None:
            continue
        baselines = [name for name, kind in evaluation.kinds.items() if kind == "baseline"]
        stands = {"better": "better than", "worse": "WORSE than"}
        against = []
        for name in baselines:
            found, rival = outcome(evaluation, level, name), figures.find(name, level, head[0])
            if found not in (None, "undefined") and rival is not None:
                against.append(f"{stands.get(str(found), 'NOT told apart from')} {name} ({number(rival.value or 0.0)})")
        told = f"{level} {head[1].label} {number(own.value)}"
        parts.append(told + (f", {_listed(against)}" if against else ", without a baseline"))
    calibration = evaluation.settings["calibration"]
    if calibration is None:
        parts.append("not calibrated")
    else:
        parts.append(f"calibrated on {_plural(calibration['patients'], 'normal patient')}")
        drifted = any(check["warning"] for check in calibration["drift"])
        checked = any(check["compared"] for check in calibration["drift"])
        parts.append("DRIFTED from them" if drifted else "no drift found" if checked else "drift not checked")
    if failures := evaluation.settings["failures"]:
        parts.append(f"{_plural(len(failures), 'scan')} FAILED")
    return "; ".join(parts) + "."


def findings(evaluation: Evaluation, cases: Sequence[CaseResult] = ()) -> list[dict[str, Any]]:
    """What the figures say in plain words.

    Args:
        evaluation: its settings and figures.
        cases: the scans, for how many of them are flagged; may be empty.

    Returns:
        Each ``{"level", "warning", "verdict", "detail"}``: for each level first the confounders, then how the method
        stands to chance, the baselines and the image statistics, with a warning unless it is better than every one of
        them; then the calibrated rule, its drift check, and scans that failed.
    """
    found = []
    for level in LEVELS:
        head = headline(level)
        own = head and evaluation.figures.find(evaluation.method, level, head[0])
        if head is None or own is None or (level == "patient" and a_scan_a_patient(evaluation)):
            continue
        confounders = evaluation.settings.get("confounders")
        if level == "image" and confounders:
            found.append(_finding(level, confounders["separates"], f"{LEVELS[level]}: {confounders['sentence']}"))
        found.append(_comparison(evaluation, level, own, head))
    return found + _calibration_findings(evaluation, cases)


def _finding(level: str, warning: bool, text: str, detail: str = "") -> dict[str, Any]:
    return {"level": level, "warning": warning, "verdict": text, "detail": detail}


def _plural(count: int, name: str) -> str:
    return f"{count} {name}" + ("" if count == 1 else "s")


def _listed(names: Sequence[str], last: str = "and") -> str:
    return f" {last} ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _comparison(evaluation: Evaluation, level: str, own: Figure, head: tuple[str, Metric]) -> dict[str, Any]:
    metric, reading = head
    title, method = LEVELS[level], evaluation.method
    if own.value is None:
        text = f"{title}: {method} has no {reading.label} (undefined: {own.note})."
        return _finding(level, True, text)
    rivals = {name: evaluation.figures.find(name, level, metric) for name in evaluation.kinds if name != method}
    groups: dict[Outcome, list[str]] = {}
    for name, figure in rivals.items():
        if figure is not None:
            groups.setdefault(compare(own, figure, reading.higher_is_better is not False), []).append(name)

    def named(kind: Outcome) -> str:
        shown = {name: figure for name, figure in rivals.items() if figure is not None and name in groups[kind]}
        return _listed([f"{name} {figure_text(figure)}" for name, figure in shown.items()])

    sentences = [f"{method} has {reading.label} {figure_text(own)}."]
    texts: dict[Outcome, str] = {
        "better": "Better than {}.",
        "not distinguishable": "Not distinguishable from {}: the intervals overlap.",
        "worse": "Worse than {}.",
        "no interval": "Without intervals nothing can be said of {}.",
        "undefined": "Not compared with {}.",
    }
    sentences += [text.format(named(kind)) for kind, text in texts.items() if groups.get(kind)]
    chance = _against_chance(evaluation, level, own, reading)
    sentences += [chance] if chance else []

    verdicts = []
    for kind in ("baseline", "image statistic"):
        counted = [n for n in rivals if evaluation.kinds[n] == kind and rivals[n] is not None]
        counted = [name for name in counted if name not in groups.get("undefined", [])]
        unsure = [name for name in counted if name in groups.get("no interval", [])]
        lost = [name for name in counted if name not in groups.get("better", []) and name not in unsure]
        if lost:
            verdicts.append(f"does NOT beat the {kind}{'s' if len(lost) > 1 else ''} {_listed(lost, 'or')}")
        if unsure:
            names = f"the {kind}{'s' if len(unsure) > 1 else ''} {_listed(unsure, 'or')}"
            verdicts.append(f"cannot be said to beat {names}, as an interval is missing")
        if lost or unsure:
            continue
        if counted:
            verdicts.append(f"beats every {kind} that was compared ({_listed(counted)})")
        elif kind == "baseline":
            verdicts.append("stands without a baseline, so its figure says little")
    warning = any(not text.startswith("beats") for text in verdicts) or bool(chance)
    return _finding(level, warning, f"{title}: {method} {'; it '.join(verdicts)}.", " ".join(sentences))


def _against_chance(evaluation: Evaluation, level: str, own: Figure, reading: Metric) -> str:
    """A sentence where a figure is not above chance, empty where it is or where there is no telling."""
    chance = reading.chance
    if isinstance(chance, str):
        chance = evaluation.figures.value(own.detector, level, chance)
    if chance is None or own.low is None:
        return ""
    found = compare(own, own._replace(value=chance, low=chance, high=chance), reading.higher_is_better is not False)
    return {
        "not distinguishable": f"Not distinguishable from chance ({number(chance)}).",
        "worse": f"Worse than chance ({number(chance)}).",
    }.get(found, "")


def _calibration_findings(evaluation: Evaluation, cases: Sequence[CaseResult]) -> list[dict[str, Any]]:
    """What the calibrated rule did, whether its guarantee holds, and how many scans failed."""
    calibration, found = evaluation.settings["calibration"], []
    if calibration is None:
        text = "The detector is not calibrated: its scores rank scans, but no scan is called normal or abnormal."
        found.append(_finding("", True, text))
    elif calibration["alpha"] is None:
        text = "No threshold: none was asked for, so no scan is called normal or abnormal."
        found.append(_finding("", True, text))
    elif calibration["score_threshold"] is None:
        needed = math.ceil(1.0 / calibration["alpha"] - 1e-9) - 1
        text = (
            f"No threshold: {calibration['patients']} calibration patients are too few for a rate of "
            f"{rate(calibration['alpha'])}, which needs {needed}."
        )
        found.append(_finding("", True, text))
    else:
        text = (
            f"The threshold of scores is set so that at most {rate(calibration['alpha'])} of new normal patients have "
            f"a score above it, from {calibration['patients']} calibration patients."
        )
        found.append(_finding("", False, text, _flagged(cases)))
    if calibration is not None:
        drifted = [check["name"] for check in calibration["drift"] if check["warning"]]
        missed = _listed([check["name"] for check in calibration["drift"] if not check["compared"]])
        if drifted:
            text = (
                f"The guarantee no longer holds: these scans differ from the calibration scans in {_listed(drifted)}."
            )
            found.append(_finding("", True, text))
        elif any(check["compared"] for check in calibration["drift"]):
            text = "No drift from the calibration scans was found; a small one can escape these checks."
            found.append(_finding("", False, text, f"Not compared: {missed}." if missed else ""))
        else:
            text = (
                "Whether these scans are like the calibration scans was not checked; the rate holds only if they are."
            )
            found.append(_finding("", True, text))
    if failed := len(evaluation.settings["failures"]):
        verb = "is" if failed == 1 else "are"
        text = f"{_plural(failed, 'scan')} could not be used and {verb} missing from every figure."
        found.append(_finding("", True, text))
    return found


def _flagged(cases: Sequence[CaseResult]) -> str:
    sentences = []
    for label, name in ((0, "normal"), (1, "abnormal"), (None, "unlabelled")):
        of_kind = [case for case in cases if case.label == label and case.flagged is not None]
        if not of_kind:
            continue
        flagged = [case for case in of_kind if case.flagged]
        text = f"{len(flagged)} of {len(of_kind)} {name} scans ({rate(len(flagged) / len(of_kind))})"
        patients = {case.patient for case in of_kind}
        if all(patients) and len(patients) < len(of_kind):
            text += f", {len({case.patient for case in flagged})} of {len(patients)} of their patients,"
        text += " have a score above the threshold"
        masks = [case for case in of_kind if case.marked is not None]
        if masks:
            text += f"; {sum(bool(case.marked) for case in masks)} have a mask that is not empty"
        sentences.append(f"{text}.")
    return " ".join(sentences)
