"""The evaluation as one page: no network, no script, no file beside it.

The page carries a content security policy that forbids every request, so that even a hostile name of a file could load
nothing. All text is escaped. Styles are inline, images are data within the page.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from monai_anomaly.io.atomic import atomic_path
from monai_anomaly.io.tables import clean_text
from monai_anomaly.metrics import LEVELS

from .evaluation import CaseList, CaseResult, Evaluation, case_lists
from .findings import findings, number, rate, verdict
from .plots import MOST_CURVES, draw_curves, draw_histogram, shown_curves
from .slices import case_panels, colour_bar, map_top
from .tables import Table, figure_tables

__all__ = ["write_report"]

_TEMPLATE = Path(__file__).with_name("report.html.j2")
# Cases shown first, with their images.
_FIRST_CASES = 3
_MOST_FAILURES = 100
_CURVE_TITLES = {"roc": "ROC curve", "pr": "Precision-recall curve", "froc": "FROC curve"}
# Sides of the cases' images in pixels. The first is taken that keeps all images within the budget (bytes before base64,
# which adds a third), so that the page stays below 15 MB.
_IMAGE_SIDES = (256, 192, 128, 96, 64)
_IMAGE_BUDGET = 9_000_000


def write_report(
    path: str | Path,
    evaluation: Evaluation,
    cases: Sequence[CaseResult],
    *,
    calibration_scores: Sequence[float] | np.ndarray = (),
    show_patients: bool = False,
    cases_per_list: int = 8,
) -> None:
    """Write an evaluation as one self-contained HTML page, whole or not at all.

    In its order: the most anomalous scans in images; one line on what was found and whether it can be believed; what
    the figures say in plain words; the tables; curves and histogram; further cases; cohort, calibration and failures;
    the settings, folded. The page asks for nothing outside itself, needs no script, and stays below 15 MB at the usual
    ``cases_per_list``: the lists are cut there, and images become smaller where many are large.

    Unless ``show_patients`` is set, patients and scans are numbered in the order of the cases, which is that of
    ``predictions.csv``, and failures are counted: names of cases and reasons of failures are made of names of files and
    folders, which may name a patient.

    Args:
        path: the page to write.
        evaluation: what it shows.
        cases: the scans; their names are unique.
        calibration_scores: shape (n,), scores of calibration scans, for the histogram; may be empty.
        show_patients: print ``patient`` and ``name`` of the cases and the failures as they are, which may identify
            someone.
        cases_per_list: cases shown in each of the four lists, at least 1.

    Raises:
        ValueError: if ``cases_per_list`` is below 1.
        InputError: if the folder cannot be written to.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    if cases_per_list < 1:
        raise ValueError(f"cases_per_list is {cases_per_list}: give 1 or more.")
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: clean_text(value) if type(value) is str else value,
    )
    environment.filters["data_uri"] = lambda content, kind: Markup(
        f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
    )
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    calibration = evaluation.settings["calibration"]
    failures = evaluation.settings["failures"]
    if not show_patients:
        digits = len(str(len(cases)))  # equal scores are in the order of the names
        cases = [replace(case, name=f"scan {number:0{digits}d}") for number, case in enumerate(cases, start=1)]
    page = template.render(
        title=f"{evaluation.method}: {'evaluation' if len(evaluation.figures) else 'inference'}",
        version=evaluation.settings["method"]["version"],
        verdict=verdict(evaluation, cases),
        findings=findings(evaluation, cases),
        confounders=evaluation.settings.get("confounders"),
        **_cases(cases, calibration, show_patients, cases_per_list),
        levels=figure_tables(evaluation),
        intervals=evaluation.settings.get("intervals", ""),
        curves=list(_curves(evaluation)),
        scores=_scores(cases, calibration, np.asarray(calibration_scores, dtype=np.float64)),
        cohort=_cohort(evaluation),
        calibration=None if calibration is None else _calibration(calibration),
        drift=[] if calibration is None else calibration["drift"],
        alpha=None if calibration is None or calibration["alpha"] is None else rate(calibration["alpha"]),
        failures=_plain_table(["case", "reason"], [[f["case"], f["error"]] for f in failures[:_MOST_FAILURES]])
        if show_patients
        else None,
        num_failures=len(failures),
        most_failures=_MOST_FAILURES,
        settings=_settings(evaluation),
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")


def _plain_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], notes: Sequence[str] = ()) -> Table:
    return Table("", [(name, []) for name in columns], [("", list(row)) for row in rows], list(notes))


def _settings(evaluation: Evaluation) -> Table:
    method = evaluation.settings["method"]
    rows = [("method", method["name"]), ("version of monai-anomaly", method["version"]), ("weights", method["weights"])]
    rows += [("borrowed weights", method["borrowed_weights"])] if method.get("borrowed_weights") else []
    rows += list(_flat(method["settings"]))
    rows += [(f"SHA-256 of the {side['name']} scans", side["sha256"]) for side in evaluation.settings["cohort"]]
    return _plain_table(["setting", "value"], [[name, str(value)] for name, value in rows])


def _flat(settings: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as ``outer.inner``."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _cohort(evaluation: Evaluation) -> Table:
    columns = ("name", "scans", "patients", "normal", "abnormal")
    rows = [[str(side.get(key, "–")) for key in columns] for side in evaluation.settings["cohort"]]
    return _plain_table(["part of the split", *columns[1:]], rows)


def _calibration(calibration: Mapping[str, Any]) -> Table:
    alpha, patients = calibration["alpha"], calibration["patients"]
    missing = "none was asked for" if alpha is None else "undefined: too few calibration patients for this rate"
    rows = [
        ["rate of normal patients that may lie above a threshold (alpha)", "none" if alpha is None else rate(alpha)],
        ["calibration patients", str(patients)],
        ["smallest possible p-value", f"1/{patients + 1} = {number(1 / (patients + 1))}"],
    ]
    for name, key in (("scores", "score_threshold"), ("maps", "map_threshold")):
        rows.append([f"threshold of {name}", missing if calibration[key] is None else f"{calibration[key]:.5g}"])
    return _plain_table(["calibration", "value"], [*rows, ["rule", calibration["rule"]]])


def _curves(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    for level, title in LEVELS.items():
        for axes, name in _CURVE_TITLES.items():
            curves = [curve for curve in evaluation.curves if (curve.level, curve.axes) == (level, axes)]
            if not curves:
                continue
            chance = evaluation.figures.value(evaluation.method, level, "prevalence")
            caption = f"{name}, {title.lower()}"
            shown = ", ".join(curve.detector for curve in shown_curves(curves, evaluation.kinds))
            yield {
                "svg": draw_curves(curves, evaluation.kinds, chance),
                "caption": caption,
                "alt": f"{caption}, of {shown}. The tables above hold the areas.",
                "more": max(0, len(curves) - MOST_CURVES),
            }


def _scores(
    cases: Sequence[CaseResult], calibration: Mapping[str, Any] | None, calibrated: np.ndarray
) -> dict[str, Any] | None:
    groups = [("calibration", calibrated)]
    for label, name in ((0, "normal"), (1, "abnormal"), (None, "unlabelled")):
        groups.append((name, np.array([case.score for case in cases if case.label == label])))
    groups = [(name, scores) for name, scores in groups if scores.size]
    if not groups:
        return None
    threshold = None if calibration is None else calibration["score_threshold"]
    medians = "; ".join(f"{name}: {scores.size}, median {np.median(scores):.4g}" for name, scores in groups)
    rows = [
        [
            name,
            str(scores.size),
            *(f"{value:.4g}" for value in np.percentile(scores, (0, 25, 50, 75, 100))),
            "–" if threshold is None else str(int((scores > threshold).sum())),
        ]
        for name, scores in groups
    ]
    columns = ["scores", "number", "lowest", "quarter", "median", "three quarters", "highest", "above the threshold"]
    return {
        "svg": draw_histogram(groups, threshold, "anomaly score"),
        "alt": f"Histogram of the anomaly scores. {medians}.",
        "names": ", ".join(name for name, _ in groups),
        "table": _plain_table(columns, rows),
    }


# ---- cases ---------------------------------------------------------------------------------------------------------


def _cases(
    cases: Sequence[CaseResult], calibration: Mapping[str, Any] | None, show_patients: bool, limit: int
) -> dict[str, Any]:
    """Cases and their images, as the template takes them."""
    lists = case_lists(cases)
    chosen = list({case.name: case for listed in lists for case in listed.cases[:limit]}.values())
    anchors = {case.name: f"case-{position}" for position, case in enumerate(chosen, start=1)}
    known = list(dict.fromkeys(case.patient for case in cases if case.patient))
    patients = {name: name if show_patients else str(count) for count, name in enumerate(known, start=1)}
    drawn = {case.name: case.pictures() for case in chosen if case.pictures is not None}
    threshold = None if calibration is None else calibration["map_threshold"]
    top = map_top(list(drawn.values()), threshold) if drawn else 1.0
    panels: dict[str, Any] = {}
    side = 0
    for side in _IMAGE_SIDES:
        panels, size = {}, 0
        for name, given in drawn.items():
            panels[name] = case_panels(name, given, top, side)
            size += sum(len(panel.png) for panel in panels[name])
            if size > _IMAGE_BUDGET:
                break
        if size <= _IMAGE_BUDGET:
            break
    else:
        # with hundreds of cases a list even the smallest images are too many
        panels = {}
    shown = [
        {
            "name": case.name,
            "anchor": anchors[case.name],
            "facts": "; ".join(_facts(case, patients, lists, limit)),
            "where": _where(drawn[case.name]) if case.name in drawn else "",
            "panels": panels.get(case.name),
        }
        for case in chosen
    ]
    return {
        "first_cases": shown[:_FIRST_CASES],
        "other_cases": shown[_FIRST_CASES:],
        "lists": [(listed, _list_table(listed, limit, patients), anchors) for listed in lists],
        "num_cases": len(cases),
        "cases_per_list": limit,
        "hide_patients": bool(patients) and not show_patients,
        "hide_names": not show_patients,
        "any_mask": any(case.marked is not None for case in cases),
        "map_top": f"{top:.4g}",
        "map_threshold": None if threshold is None else f"{threshold:.4g}",
        "image_side": side,
        "images": bool(panels),
        "images_left_out": bool(drawn) and not panels,
        "colour_bar": colour_bar() if panels else b"",
    }


def _where(drawn: Any) -> str:
    """The slice, and what lies at its four sides."""
    places = ("left", "right", "top", "bottom")
    sides = ", ".join(f"{letter} {place}" for letter, place in zip(drawn.letters, places))
    return "; ".join(part for part in (drawn.label, sides) if part)


def _label(case: CaseResult) -> str:
    return {0: "normal", 1: "abnormal", None: "unlabelled"}[case.label]


def _decision(case: CaseResult) -> str:
    return "no threshold" if case.flagged is None else "above" if case.flagged else "not above"


def _lesions(case: CaseResult) -> str:
    if case.lesions is None:
        return "–"
    if not case.lesions:
        return "none"
    if case.lesions_found is None:
        return f"{case.lesions}, no mask"
    return f"{case.lesions_found} found, {case.lesions - case.lesions_found} missed"


def _facts(case: CaseResult, patients: Mapping[str, str], lists: Sequence[CaseList], limit: int) -> Iterator[str]:
    """What is known of a case."""
    p_value = "undefined: not calibrated" if case.p_value is None else number(case.p_value)
    decision = f", {_decision(case)} the threshold" if case.flagged is not None else ""
    yield f"score {case.score:.4g}{decision}, p-value {p_value}"
    yield _label(case)
    yield "no mask" if case.marked is None else "the mask has voxels" if case.marked else "the mask is empty"
    if case.lesions is not None:
        yield f"lesions: {_lesions(case)}"
    if case.patient:
        yield f"patient {patients[case.patient]}"
    places = [listed.title.split(" (")[0].lower() for listed in lists if case in listed.cases[:limit]]
    yield f"in the list: {', '.join(places)}"


def _list_table(listed: CaseList, limit: int, patients: Mapping[str, str]) -> Table:
    columns = ["case", "label", "score", "score against threshold", "p\u2011value", "mask", "lesions in the reference"]
    columns += ["patient"] if patients else []
    rows = []
    for case in listed.cases[:limit]:
        mask = "none" if case.marked is None else "has voxels" if case.marked else "empty"
        p_value = "–" if case.p_value is None else number(case.p_value)
        cells = [case.name, _label(case), f"{case.score:.4g}", _decision(case), p_value, mask, _lesions(case)]
        rows.append([*cells, *([patients.get(case.patient, "–")] if patients else [])])
    return _plain_table(columns, rows)
