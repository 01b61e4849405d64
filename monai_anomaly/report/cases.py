"""The report's lists of cases, and these cases in pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from monai_anomaly.report.evaluation import CaseList, CaseResult, Evaluation, case_lists
from monai_anomaly.report.figures import Panel, case_panels, colour_bar, load_slice, map_top
from monai_anomaly.report.parts import cell_html, data_uri, plural, table_html, text
from monai_anomaly.report.statements import number

__all__ = ["cases_html"]

# Sides of the cases' pictures in pixels. The first is taken that keeps all pictures within the budget (bytes before
# base64, which adds a third), so that the page stays below 15 MB.
_PICTURE_SIDES = (256, 192, 128, 96, 64)
_PICTURE_BUDGET = 9_000_000


def cases_html(evaluation: Evaluation, show_patients: bool, cases_per_list: int) -> Iterator[str]:
    if not evaluation.cases:
        yield "<p>No scan was scored.</p>"
        return
    lists = case_lists(evaluation)
    chosen = list({case.name: case for listed in lists for case in listed.cases[:cases_per_list]}.values())
    anchors = {case.name: f"case-{position}" for position, case in enumerate(chosen, start=1)}
    patients = _patient_names(evaluation.cases, show_patients)
    drawn = {}
    for case in chosen:
        if case.pictures is not None:
            given = case.pictures() if callable(case.pictures) else case.pictures
            drawn[case.name] = load_slice(case.name, given)
    yield f"<p>{plural(len(evaluation.cases), 'scan')} in all; each list shows {cases_per_list} at most.</p>"
    if not show_patients and patients:
        yield "<p>Patients are numbered in the order of the cases; their identifiers are left out.</p>"
    if any(case.marked is not None for case in evaluation.cases):
        yield (
            "<p>False negatives and false positives go by the score against the threshold of scores. The mask has a "
            "threshold of its own: whether it has any voxel is the column flagged of predictions.csv.</p>"
        )
    for listed in lists:
        yield f"<h3>{text(listed.title)}</h3>"
        yield from _case_table(listed, cases_per_list, anchors, patients)
    yield "<h3>These cases in detail</h3>"
    panels: dict[str, list[Panel]] = {}
    bar, top = "", 1.0
    if drawn:
        threshold = None if evaluation.calibration is None else evaluation.calibration.map_threshold
        top = map_top(list(drawn.values()), threshold)
        for side in _PICTURE_SIDES:
            panels, size = {}, 0
            for name, given in drawn.items():
                panels[name] = case_panels(name, given, top, side)
                size += sum(len(panel.png) for panel in panels[name])
                if size > _PICTURE_BUDGET:
                    break
            if size <= _PICTURE_BUDGET:
                break
        else:
            # with hundreds of cases a list even the smallest pictures are too many
            panels = {}
        marked = "" if threshold is None else f" Masks begin above {threshold:.4g}."
        if panels:
            yield (
                f"<p>All maps share one colour scale, from 0 and below (black) to {top:.4g} and above (light yellow)."
                f"{marked} Pictures are at most {side} pixels wide or high.</p>"
            )
        else:
            yield "<p>Pictures are left out: so many would make the page too large.</p>"
        bar = (
            f'<img class="bar" src="{data_uri("png", colour_bar())}" alt="Colour scale from 0 to {top:.4g}">'
            f'<span class="ends"><span>0</span><span>{top:.4g}</span></span>'
        )
    for case in chosen:
        yield f'<article id="{anchors[case.name]}">'
        yield f"<h4>{text(case.name)}</h4>"
        yield f"<p>{'; '.join(_case_facts(case, patients, listed=lists, limit=cases_per_list))}.</p>"
        if case.name in panels:
            given = drawn[case.name]
            if given.label or given.letters:
                sides = ", ".join(
                    f"{letter} {place}" for letter, place in zip(given.letters, ("left", "right", "top", "bottom"))
                )
                yield f'<p class="detail">{text("; ".join(part for part in (given.label, sides) if part))}</p>'
            yield from _panel_row(panels[case.name], bar)
        else:
            yield '<p class="detail">No picture of this case.</p>'
        yield "</article>"


def _patient_names(cases: Sequence[CaseResult], show_patients: bool) -> dict[str, str]:
    """What the page calls each patient; empty where no case names one."""
    patients = list(dict.fromkeys(case.patient for case in cases if case.patient))
    return {patient: patient if show_patients else str(count) for count, patient in enumerate(patients, start=1)}


def _label(case: CaseResult) -> str:
    return {0: "normal", 1: "abnormal", None: "unlabelled"}[case.label]


def _decision(case: CaseResult) -> str:
    return {True: "above", False: "not above", None: "no threshold"}[case.flagged]


def _mask(case: CaseResult) -> str:
    return {True: "has voxels", False: "empty", None: "none"}[case.marked]


def _lesions(case: CaseResult) -> str:
    if case.lesions is None:
        return "–"
    if not case.lesions:
        return "none"
    if case.lesions_found is None:
        return f"{plural(case.lesions, 'lesion')}, no mask"
    return f"{case.lesions_found} found, {case.lesions - case.lesions_found} missed"


def _case_facts(case: CaseResult, patients: Mapping[str, str], listed: Sequence[CaseList], limit: int) -> Iterator[str]:
    """What is known of a case, as HTML."""
    yield _label(case)
    p_value = "undefined: not calibrated" if case.p_value is None else number(case.p_value)
    decision = f", {_decision(case)} the threshold" if case.flagged is not None else ""
    yield f"score {case.score:.4g}{decision}, p-value {p_value}"
    yield {True: "the mask has voxels", False: "the mask is empty", None: "no mask"}[case.marked]
    if case.lesions is not None:
        yield f"lesions: {_lesions(case)}"
    if case.patient:
        yield f"patient {text(patients[case.patient])}"
    places = [each.title.split(" (")[0].lower() for each in listed if case in each.cases[:limit]]
    yield f"in the list: {text(', '.join(places))}"


def _case_table(listed: CaseList, limit: int, anchors: Mapping[str, str], patients: Mapping[str, str]) -> Iterator[str]:
    if listed.undefined:
        yield f"<p>undefined: {text(listed.undefined)}.</p>"
        return
    if not listed.cases:
        yield "<p>None.</p>"
        return
    columns = ["case", "label", "score", "score against threshold", "p\u2011value", "mask", "lesions in the reference"]
    columns += ["patient"] if patients else []
    rows = []
    for case in listed.cases[:limit]:
        cells = [
            f'<a href="#{anchors[case.name]}">{text(case.name)}</a>',
            _label(case),
            f"{case.score:.4g}",
            _decision(case),
            cell_html(case.p_value),
            _mask(case),
            _lesions(case),
        ]
        if patients:
            cells.append(text(patients.get(case.patient, "–")))
        rows.append(("", cells))
    yield from table_html(columns, rows, scroll_name=text(listed.title), look="cases")
    if len(listed.cases) > limit:
        yield f'<p class="note">{limit} of {len(listed.cases)} are shown.</p>'


def _panel_row(panels: Sequence[Panel], bar: str) -> Iterator[str]:
    yield '<div class="panels">'
    for panel in panels:
        if panel.absent:
            yield f'<figure><div class="absent">No {panel.name}: {text(panel.absent)}</div></figure>'
            continue
        width, height = panel.size
        yield (
            f'<figure><img src="{data_uri("png", panel.png)}" width="{width}" height="{height}" '
            f'alt="{text(panel.alt)}">'
            f"<figcaption>{panel.caption}</figcaption>{bar if panel.name == 'anomaly map' else ''}</figure>"
        )
    yield "</div>"
