"""The evaluation as one page: no network, no script, no file beside it.

The page carries a content security policy that forbids every request, so that even a hostile name of a file could load
nothing. All text is escaped. Styles are inline, pictures are data within the page.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from monai_anomaly.writers.atomic import atomic_path
from monai_anomaly.writers.evaluation import (
    CaseList,
    CaseResult,
    Estimate,
    Evaluation,
    ExtraTable,
    Level,
    MetricColumn,
    case_lists,
    clean_text,
)
from monai_anomaly.writers.report_figures import (
    MOST_CURVES,
    Panel,
    case_panels,
    colour_bar,
    draw_curves,
    draw_histogram,
    load_slice,
    map_top,
    shown_curves,
)
from monai_anomaly.writers.report_statements import (
    LEVEL_TITLES,
    Statement,
    calibration_statements,
    comparison_statements,
    number,
    outcome,
    rate,
)

__all__ = ["write_report"]

NOTICE = "Research use only, not for diagnosis"
# Metrics side by side in one table: more do not fit a printed page.
_TABLE_COLUMNS = 5
# Sides of the cases' pictures in pixels. The first is taken that keeps all pictures within the budget (bytes before
# base64, which adds a third), so that the page stays below 15 MB.
_PICTURE_SIDES = (256, 192, 128, 96, 64)
_PICTURE_BUDGET = 9_000_000
_MOST_FAILURES = 100
_CURVE_TITLES = {"roc": "ROC curve", "pr": "Precision-recall curve", "froc": "FROC curve"}

# Sizes in rem of the reader's own font size. Nothing is told by colour alone.
_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; background: #fff; color: #1a1a1a;
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif;
  -webkit-text-size-adjust: 100%; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .4rem; }
h2 { font-size: 1.3rem; margin: 2.2rem 0 .6rem; padding-top: .6rem; border-top: 2px solid #1a1a1a; }
h3 { font-size: 1.08rem; margin: 1.4rem 0 .4rem; }
h4 { font-size: 1rem; margin: 0; overflow-wrap: anywhere; }
p { margin: .4rem 0; max-width: 48rem; }
a { color: #0b4f8a; }
.notice { font-weight: 700; color: #8f0000; border: 2px solid #8f0000; padding: .3rem .7rem; display: inline-block; }
nav ul { list-style: none; margin: .8rem 0 0; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; }
nav a { display: inline-block; padding: .25rem 0; }
.findings { list-style: none; margin: 0; padding: 0; max-width: 56rem; }
.findings li { margin: .6rem 0; padding: .1rem 0 .1rem .8rem; border-left: 4px solid #8a8a8a; }
.findings li.warning { border-left-color: #8f0000; }
.tag { font-weight: 700; color: #8f0000; }
.detail, .note { color: #3d3d3d; font-size: .92rem; }
.scroll { overflow-x: auto; margin: .6rem 0; max-width: 100%; }
table { border-collapse: separate; border-spacing: 0; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid #c9c9c9; }
thead th { border-bottom: 2px solid #1a1a1a; vertical-align: bottom; }
tbody th { font-weight: 400; position: sticky; left: 0; background: #fff; min-width: 7rem; overflow-wrap: anywhere; }
td { min-width: 4.5rem; }
td:has(> code) { min-width: 11rem; }
.cases td { white-space: nowrap; }
tr.method th, tr.method td { font-weight: 700; }
tr.first td, tr.first th { border-top: 1px solid #1a1a1a; }
td small, th small { display: block; font-size: .85rem; font-weight: 400; color: #3d3d3d; white-space: nowrap; }
td small.why { white-space: normal; min-width: 8rem; }
code { font: .88rem/1.4 ui-monospace, "Liberation Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); gap: 1rem;
  align-items: start; }
figure { margin: 0; }
.figures img { width: 100%; max-width: 27rem; height: auto; display: block; }
figcaption { font-size: .9rem; }
article { margin: 1rem 0; padding: .7rem 0 .2rem; border-top: 1px solid #8a8a8a; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.2rem, 1fr)); gap: .6rem; margin-top: .5rem; }
.panels img { width: 100%; height: auto; display: block; image-rendering: pixelated; background: #000; }
.panels .bar { height: .7rem; margin-top: .25rem; border: 1px solid #1a1a1a; }
.panels .absent { border: 1px dashed #8a8a8a; padding: .6rem; font-size: .9rem; color: #3d3d3d; }
.ends { display: flex; justify-content: space-between; }
footer { margin-top: 2.5rem; border-top: 2px solid #1a1a1a; padding-top: .6rem; font-size: .92rem; }
@media print {
  @page { margin: 13mm; }
  html { font-size: 9.5pt; }
  body { padding: 0; max-width: none; }
  nav { display: none; }
  a { color: inherit; text-decoration: none; }
  .scroll { overflow: visible; }
  th, td { padding-right: .5rem; }
  tbody th { position: static; min-width: 0; overflow-wrap: break-word; }
  td, td:has(> code) { min-width: 0; }
  h2, h3, h4 { break-after: avoid; }
  tr, li, figure, article { break-inside: avoid; }
  thead { display: table-header-group; }
  .figures { grid-template-columns: 1fr 1fr; }
  .panels { grid-template-columns: repeat(5, 1fr); gap: .4rem; }
  .panels img, .bar, .findings li { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""


def write_report(
    path: str | Path, evaluation: Evaluation, *, show_patients: bool = False, cases_per_list: int = 8
) -> None:
    """Write an evaluation as one self-contained HTML page, whole or not at all.

    In its order: what the figures say in plain words, above all where the method does not beat a trivial baseline or a
    picture statistic; the cohort; the method; the calibration and its drift check; the tables; curves and histogram;
    the most anomalous and most normal cases, the false negatives and false positives with their pictures; failures. The
    page asks for nothing outside itself, needs no script, and stays below 15 MB at the usual ``cases_per_list``: the
    lists are cut there, and pictures become smaller where many are large.

    Patients are numbered in the order of the cases unless ``show_patients`` is set. Names of cases, which are made of
    file names, settings, and the reasons of failures are always printed.

    Args:
        path: the page to write.
        evaluation: what it shows.
        show_patients: print ``patient`` of the cases as it is, which may identify someone.
        cases_per_list: cases shown in each of the four lists, at least 1.

    Raises:
        ValueError: if ``cases_per_list`` is below 1.
        InputError: if the folder cannot be written to, or a picture of a case that is shown cannot be read or does not
            fit its map.
    """
    if cases_per_list < 1:
        raise ValueError(f"cases_per_list is {cases_per_list}: give 1 or more.")
    page = "\n".join(_page(evaluation, show_patients, cases_per_list))
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")


def _text(value: Any) -> str:
    """Escaped for HTML, in text and in attributes."""
    return escape(clean_text(value), quote=True)


def _data(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _plural(count: int, name: str) -> str:
    return f"{count} {name}" + ("" if count == 1 else "s")


def _page(evaluation: Evaluation, show_patients: bool, cases_per_list: int) -> Iterator[str]:
    sections: tuple[tuple[str, str, Callable[[], Iterator[str]]], ...] = (
        ("summary", "What the figures say", lambda: _summary(evaluation)),
        ("cohort", "Cohort", lambda: _cohort(evaluation)),
        ("method", "Method and settings", lambda: _method(evaluation)),
        ("calibration", "Calibration", lambda: _calibration(evaluation)),
        ("figures", "Figures", lambda: _figures(evaluation)),
        ("curves", "Curves", lambda: _curves(evaluation)),
        ("scores", "Scores", lambda: _scores(evaluation)),
        ("cases", "Cases", lambda: _cases(evaluation, show_patients, cases_per_list)),
        ("failures", "Failures", lambda: _failures(evaluation)),
    )
    title = _text(evaluation.title)
    yield "<!DOCTYPE html>"
    yield '<html lang="en">'
    yield "<head>"
    yield '<meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    yield f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    yield '<meta name="referrer" content="no-referrer">'
    yield '<link rel="icon" href="data:,">'
    yield f"<title>{title}</title>"
    yield f"<style>{_STYLE}</style>"
    yield "</head>"
    yield "<body>"
    yield "<header>"
    yield f"<h1>{title}</h1>"
    yield f'<p class="notice">{NOTICE}</p>'
    yield '<nav aria-label="Sections"><ul>'
    yield from (f'<li><a href="#{key}">{name}</a></li>' for key, name, _ in sections)
    yield "</ul></nav>"
    yield "</header>"
    yield "<main>"
    for key, name, content in sections:
        yield f'<section aria-labelledby="{key}">'
        yield f'<h2 id="{key}">{name}</h2>'
        yield from content()
        yield "</section>"
    yield "</main>"
    yield f"<footer><p>monai-anomaly {_text(evaluation.method.version)}. {NOTICE}.</p></footer>"
    yield "</body>"
    yield "</html>"
    yield ""


# ---- tables ------------------------------------------------------------------------------------------------------


def _estimate_cell(estimate: Estimate) -> str:
    """The figure, its interval below it, or why there is none."""
    if estimate.value is None:
        return f'<small class="why">undefined: {_text(estimate.undefined)}</small>'
    if estimate.low is None or estimate.high is None:
        return number(estimate.value)
    return f"{number(estimate.value)} <small>{number(estimate.low)} to {number(estimate.high)}</small>"


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, Estimate):
        return _estimate_cell(value)
    if isinstance(value, float | np.floating):
        return number(float(value))
    return _text(value)


def _table(
    columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], scroll_name: str, look: str = ""
) -> Iterator[str]:
    """A table that scrolls within its own box on a narrow screen.

    Args:
        columns: headings, as HTML.
        rows: (class, cells as HTML); the first cell names the row.
        scroll_name: what a screen reader calls the box, as HTML.
        look: class of the table.
    """
    # focusable, so that it can be scrolled by the keyboard
    yield f'<div class="scroll" tabindex="0" role="region" aria-label="{scroll_name}">'
    yield f'<table class="{look}">' if look else "<table>"
    yield "<thead><tr>" + "".join(f'<th scope="col">{column}</th>' for column in columns) + "</tr></thead>"
    yield "<tbody>"
    for row_look, (head, *cells) in rows:
        row_class = f' class="{row_look}"' if row_look else ""
        yield f'<tr{row_class}><th scope="row">{head}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    yield "</tbody>"
    yield "</table>"
    yield "</div>"


def _flat(settings: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as ``outer.inner``."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


# ---- sections ----------------------------------------------------------------------------------------------------


def _findings(statements: Sequence[Statement]) -> Iterator[str]:
    yield '<ul class="findings">'
    for statement in statements:
        look, tag = (' class="warning"', '<span class="tag">Warning.</span> ') if statement.warning else ("", "")
        verdict = _text(statement.verdict)
        detail = f'<p class="detail">{_text(statement.detail)}</p>' if statement.detail else ""
        yield f"<li{look}><p>{tag}<strong>{verdict}</strong></p>{detail}</li>"
    yield "</ul>"


def _summary(evaluation: Evaluation) -> Iterator[str]:
    cases = evaluation.cases
    known = [case.label for case in cases if case.label is not None]
    counts = f"{known.count(0)} of them normal and {known.count(1)} abnormal" if known else "without labels"
    yield f"<p>{_text(evaluation.method.name)} scored {_plural(len(cases), 'scan')}, {counts}.</p>"
    comparisons = comparison_statements(evaluation)
    yield from _findings(comparisons + calibration_statements(evaluation))
    silent = [LEVEL_TITLES[level] for level in evaluation.levels() if evaluation.headline(level) is None]
    if silent:
        yield f"<p>No comparison is made for: {_text(', '.join(silent))}, where no metric was chosen for it.</p>"
    if not evaluation.detectors:
        yield "<p>Without labels or masks nothing can be measured: this page shows scores, not how good they are.</p>"
    elif comparisons:
        yield (
            '<p class="note">Two figures are called not distinguishable where their intervals overlap. A comparison in '
            "pairs, scan by scan, may tell them apart all the same.</p>"
        )


def _cohort(evaluation: Evaluation) -> Iterator[str]:
    if not evaluation.cohort:
        yield "<p>The cohort was not described.</p>"
        return
    rows = [
        (
            "",
            [
                _text(side.name),
                _cell(side.scans),
                "not stated" if side.patients is None else _cell(side.patients),
                _cell(side.normal),
                _cell(side.abnormal),
                f"<code>{_text(side.sha256)}</code>",
            ],
        )
        for side in evaluation.cohort
    ]
    columns = ["side", "scans", "patients", "normal", "abnormal", "SHA-256 of what the scans show"]
    yield from _table(columns, rows, scroll_name="Cohort")
    for level, share in evaluation.prevalence.items():
        yield f"<p>{LEVEL_TITLES[level]}: the share of abnormal ones in the test set is {number(share)}.</p>"


def _method(evaluation: Evaluation) -> Iterator[str]:
    method = evaluation.method
    rows = [("method", method.name), ("version of monai-anomaly", method.version), ("weights", method.weights)]
    rows += list(_flat(method.settings))
    cells = [("", [_text(key), f"<code>{_text(value)}</code>"]) for key, value in rows]
    yield from _table(["setting", "value"], cells, scroll_name="Method and settings")


def _calibration(evaluation: Evaluation) -> Iterator[str]:
    calibration = evaluation.calibration
    if calibration is None:
        yield "<p>The detector is not calibrated: there is no threshold, no p-value and no mask.</p>"
        return
    alpha = None if calibration.alpha is None else rate(calibration.alpha)
    missing = "undefined: too few calibration patients for this rate" if alpha else "none was asked for"
    rows = [
        ("rate of normal patients that may lie above a threshold (alpha)", alpha or "none"),
        ("calibration patients", str(calibration.patients)),
        ("smallest possible p-value", f"1/{calibration.patients + 1} = {number(1 / (calibration.patients + 1))}"),
    ]
    for name, threshold in (("scores", calibration.score_threshold), ("maps", calibration.map_threshold)):
        rows.append((f"threshold of {name}", missing if threshold is None else f"{threshold:.5g}"))
    rows.append(("rule", calibration.rule))
    cells = [("", [_text(key), _text(value)]) for key, value in rows]
    yield from _table(["calibration", "value"], cells, scroll_name="Calibration")
    if alpha:
        yield (
            f"<p>The rate of {alpha} is kept on average over calibration sets, for new normal "
            "patients like those of the calibration: same scanner, protocol and population.</p>"
        )
    yield "<h3>Drift from the calibration scans</h3>"
    if not calibration.drift:
        yield "<p>Not checked.</p>"
        return
    calm = {True: "no drift", False: "not compared"}
    checks = [
        (
            "",
            [
                _text(check.name),
                '<span class="tag">Warning</span>' if check.warning else calm[check.compared],
                _text(check.finding),
            ],
        )
        for check in calibration.drift
    ]
    yield from _table(["check", "outcome", "finding"], checks, scroll_name="Drift checks")


def _figures(evaluation: Evaluation) -> Iterator[str]:
    levels = evaluation.levels()
    if not levels:
        yield "<p>undefined: no labels and no masks to measure against.</p>"
    elif evaluation.intervals:
        yield f"<p>Below each figure its interval: {_text(evaluation.intervals)}.</p>"
    else:
        yield "<p>No intervals were computed.</p>"
    for level in levels:
        yield f"<h3>{LEVEL_TITLES[level]}</h3>"
        yield from _level_tables(evaluation, level)
    if evaluation.spreads:
        yield "<h3>Spread over seeds</h3>"
        yield from _spreads(evaluation)
    for table in evaluation.tables:
        yield from _extra(table)


def _level_tables(evaluation: Evaluation, level: Level) -> Iterator[str]:
    columns, detectors = evaluation.columns(level), evaluation.rows(level)
    headline = evaluation.headline(level)
    methods = [detector for detector in detectors if detector.kind == "method"]
    # with several methods "against which" would need a table of its own; the summary has the sentences
    compared = headline if len(methods) == 1 else None
    for start in range(0, len(columns), _TABLE_COLUMNS):
        part = columns[start : start + _TABLE_COLUMNS]
        verdict = start == 0 and compared is not None
        headings = ["detector", *(_heading(column) for column in part)]
        if verdict and compared is not None:
            headings.append(f"{_text(methods[0].name)} against it<small>by {_text(compared.label)}</small>")
        rows, previous = [], ""
        for detector in detectors:
            statistic = detector.kind == "picture statistic"
            if statistic and not any(column.key in detector.levels.get(level, {}) for column in part):
                continue
            look = ["method"] if detector.kind == "method" else []
            look += ["first"] if previous and detector.kind != previous else []
            previous = detector.kind
            cells = [f"{_text(detector.name)}<small>{detector.kind}</small>"]
            for column in part:
                absent = statistic and column.key not in detector.levels[level]
                cells.append("–" if absent else _estimate_cell(detector.estimate(column)))
            if verdict and compared is not None:
                cells.append("" if detector.kind == "method" else outcome(methods[0], detector, compared))
            rows.append((" ".join(look), cells))
        name = LEVEL_TITLES[level] + ("" if len(columns) <= _TABLE_COLUMNS else f", from {_text(part[0].label)}")
        yield from _table(headings, rows, scroll_name=name)
    if level == "image" and evaluation.confounds is not None:
        tag = '<span class="tag">Warning.</span> ' if evaluation.confounds.separates else ""
        yield f"<p>{tag}{_text(evaluation.confounds.sentence)}</p>"
    if any(d.kind == "picture statistic" and len(d.levels[level]) < len(columns) for d in detectors):
        yield '<p class="note">–: not asked of picture statistics, which are no detectors.</p>'
    noted: dict[str, list[str]] = {}
    for column in columns:
        noted.setdefault(column.note, []).append(column.label)
    yield from (
        f'<p class="note">{_text("; ".join(names))}: {_text(note)}.</p>' for note, names in noted.items() if note
    )
    for note in evaluation.notes.get(level, ()):
        yield f'<p class="note">{_text(note)}</p>'
    if not any(detector.kind == "baseline" for detector in detectors):
        warning = "No baseline was evaluated: these figures stand without a comparison."
        yield f'<p><span class="tag">Warning.</span> {warning}</p>'
    if not any(detector.kind == "picture statistic" for detector in detectors):
        yield '<p class="note">No picture statistic was evaluated at this level.</p>'


def _heading(column: MetricColumn) -> str:
    parts = []
    if column.higher_is_better is False:
        parts.append("lower is better")
    if column.chance is not None:
        parts.append(f"chance {number(column.chance)}")
    return _text(column.label) + "".join(f"<small>{part}</small>" for part in parts)


def _spreads(evaluation: Evaluation) -> Iterator[str]:
    labels = {(column.level, column.key): column.label for column in evaluation.metrics}
    rows = [
        (
            "",
            [
                _text(spread.detector),
                LEVEL_TITLES[spread.level],
                _text(labels[spread.level, spread.metric]),
                number(spread.mean),
                "undefined: one seed" if spread.std is None else number(spread.std),
                _text(", ".join(str(seed) for seed in spread.values)),
            ],
        )
        for spread in evaluation.spreads
    ]
    columns = ["detector", "level", "metric", "mean", "standard deviation", "seeds"]
    yield from _table(columns, rows, scroll_name="Spread over seeds")


def _extra(table: ExtraTable) -> Iterator[str]:
    yield f"<h3>{_text(table.title)}</h3>"
    rows = [("", [_cell(value) for value in row]) for row in table.rows]
    yield from _table([_text(column) for column in table.columns], rows, scroll_name=_text(table.title))
    if table.note:
        yield f'<p class="note">{_text(table.note)}</p>'


def _curves(evaluation: Evaluation) -> Iterator[str]:
    groups: dict[tuple[str, str], list[Any]] = {}
    for curve in evaluation.curves:
        groups.setdefault((curve.level, curve.axes), []).append(curve)
    if not groups:
        yield "<p>undefined: no curve can be drawn without both normal and abnormal elements.</p>"
        return
    yield '<div class="figures">'
    for level in LEVEL_TITLES:
        for axes, title in _CURVE_TITLES.items():
            curves = groups.get((level, axes), [])
            if not curves:
                continue
            svg = draw_curves(curves, evaluation.prevalence.get(level))
            names = ", ".join(curve.detector for curve in shown_curves(curves))
            caption = f"{title}, {LEVEL_TITLES[level].lower()}"
            alt = f"{caption}, of {names}. The tables above hold the areas."
            more = (
                f" {len(curves) - MOST_CURVES} further curves are in metrics.json." if len(curves) > MOST_CURVES else ""
            )
            yield (
                f'<figure><img src="{_data("svg+xml", svg)}" alt="{_text(alt)}">'
                f"<figcaption>{caption}.{more}</figcaption></figure>"
            )
    yield "</div>"


def _scores(evaluation: Evaluation) -> Iterator[str]:
    calibration = evaluation.calibration
    groups = [("calibration", np.asarray(() if calibration is None else calibration.scores, dtype=np.float64))]
    for label, name in ((0, "normal"), (1, "abnormal"), (None, "unlabelled")):
        groups.append((name, np.array([case.score for case in evaluation.cases if case.label == label])))
    groups = [(name, scores) for name, scores in groups if scores.size]
    if not groups:
        yield "<p>undefined: no scan was scored.</p>"
        return
    threshold = None if calibration is None else calibration.score_threshold
    svg = draw_histogram(groups, threshold, evaluation.scores_of)
    medians = "; ".join(f"{name}: {scores.size}, median {np.median(scores):.4g}" for name, scores in groups)
    alt = f"Histogram of the {evaluation.scores_of}. {medians}."
    yield '<div class="figures">'
    yield (
        f'<figure><img src="{_data("svg+xml", svg)}" alt="{_text(alt)}">'
        f"<figcaption>Scores of {', '.join(name for name, _ in groups)} scans, as shares of each group.</figcaption>"
        "</figure>"
    )
    yield "</div>"
    rows = [
        (
            "",
            [
                name,
                str(scores.size),
                *(f"{value:.4g}" for value in np.percentile(scores, (0, 25, 50, 75, 100))),
                "–" if threshold is None else f"{int((scores > threshold).sum())}",
            ],
        )
        for name, scores in groups
    ]
    columns = ["scores", "number", "lowest", "quarter", "median", "three quarters", "highest", "above the threshold"]
    yield from _table(columns, rows, scroll_name="Scores")


def _cases(evaluation: Evaluation, show_patients: bool, cases_per_list: int) -> Iterator[str]:
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
    yield f"<p>{_plural(len(evaluation.cases), 'scan')} in all; each list shows {cases_per_list} at most.</p>"
    if not show_patients and patients:
        yield "<p>Patients are numbered in the order of the cases; their identifiers are left out.</p>"
    if any(case.marked is not None for case in evaluation.cases):
        yield (
            "<p>False negatives and false positives go by the score against the threshold of scores. The mask has a "
            "threshold of its own: whether it has any voxel is the column flagged of predictions.csv.</p>"
        )
    for listed in lists:
        yield f"<h3>{_text(listed.title)}</h3>"
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
            f'<img class="bar" src="{_data("png", colour_bar())}" alt="Colour scale from 0 to {top:.4g}">'
            f'<span class="ends"><span>0</span><span>{top:.4g}</span></span>'
        )
    for case in chosen:
        yield f'<article id="{anchors[case.name]}">'
        yield f"<h4>{_text(case.name)}</h4>"
        yield f"<p>{'; '.join(_case_facts(case, patients, listed=lists, limit=cases_per_list))}.</p>"
        if case.name in panels:
            given = drawn[case.name]
            if given.label or given.letters:
                sides = ", ".join(
                    f"{letter} {place}" for letter, place in zip(given.letters, ("left", "right", "top", "bottom"))
                )
                yield f'<p class="detail">{_text("; ".join(part for part in (given.label, sides) if part))}</p>'
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
        return f"{_plural(case.lesions, 'lesion')}, no mask"
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
        yield f"patient {_text(patients[case.patient])}"
    places = [each.title.split(" (")[0].lower() for each in listed if case in each.cases[:limit]]
    yield f"in the list: {_text(', '.join(places))}"


def _case_table(listed: CaseList, limit: int, anchors: Mapping[str, str], patients: Mapping[str, str]) -> Iterator[str]:
    if listed.undefined:
        yield f"<p>undefined: {_text(listed.undefined)}.</p>"
        return
    if not listed.cases:
        yield "<p>None.</p>"
        return
    columns = ["case", "label", "score", "score against threshold", "p\u2011value", "mask", "lesions in the reference"]
    columns += ["patient"] if patients else []
    rows = []
    for case in listed.cases[:limit]:
        cells = [
            f'<a href="#{anchors[case.name]}">{_text(case.name)}</a>',
            _label(case),
            f"{case.score:.4g}",
            _decision(case),
            _cell(case.p_value),
            _mask(case),
            _lesions(case),
        ]
        if patients:
            cells.append(_text(patients.get(case.patient, "–")))
        rows.append(("", cells))
    yield from _table(columns, rows, scroll_name=_text(listed.title), look="cases")
    if len(listed.cases) > limit:
        yield f'<p class="note">{limit} of {len(listed.cases)} are shown.</p>'


def _panel_row(panels: Sequence[Panel], bar: str) -> Iterator[str]:
    yield '<div class="panels">'
    for panel in panels:
        if panel.absent:
            yield f'<figure><div class="absent">No {panel.name}: {_text(panel.absent)}</div></figure>'
            continue
        width, height = panel.size
        yield (
            f'<figure><img src="{_data("png", panel.png)}" width="{width}" height="{height}" alt="{_text(panel.alt)}">'
            f"<figcaption>{panel.caption}</figcaption>{bar if panel.name == 'anomaly map' else ''}</figure>"
        )
    yield "</div>"


def _failures(evaluation: Evaluation) -> Iterator[str]:
    if not evaluation.failures:
        yield "<p>None: every scan could be used.</p>"
        return
    rows = [("", [_text(case), _text(error)]) for case, error in evaluation.failures[:_MOST_FAILURES]]
    yield from _table(["case", "reason"], rows, scroll_name="Failures")
    if len(evaluation.failures) > _MOST_FAILURES:
        yield f'<p class="note">{_MOST_FAILURES} of {len(evaluation.failures)} are shown; failures.csv has all.</p>'
