"""The evaluation as one page: no network, no script, no file beside it.

The page carries a content security policy that forbids every request, so that even a hostile name of a file could load
nothing. All text is escaped. Styles are inline, pictures are data within the page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monai_anomaly.io.atomic import atomic_path
from monai_anomaly.report.cases import cases_html
from monai_anomaly.report.evaluation import Evaluation, ExtraTable, Level, MetricColumn
from monai_anomaly.report.figures import MOST_CURVES, draw_curves, draw_histogram, shown_curves
from monai_anomaly.report.parts import cell_html, data_uri, estimate_cell, plural, table_html, text
from monai_anomaly.report.statements import (
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


def _page(evaluation: Evaluation, show_patients: bool, cases_per_list: int) -> Iterator[str]:
    sections: tuple[tuple[str, str, Callable[[], Iterator[str]]], ...] = (
        ("summary", "What the figures say", lambda: _summary(evaluation)),
        ("cohort", "Cohort", lambda: _cohort(evaluation)),
        ("method", "Method and settings", lambda: _method(evaluation)),
        ("calibration", "Calibration", lambda: _calibration(evaluation)),
        ("figures", "Figures", lambda: _figures(evaluation)),
        ("curves", "Curves", lambda: _curves(evaluation)),
        ("scores", "Scores", lambda: _scores(evaluation)),
        ("cases", "Cases", lambda: cases_html(evaluation, show_patients, cases_per_list)),
        ("failures", "Failures", lambda: _failures(evaluation)),
    )
    title = text(evaluation.title)
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
    yield f"<footer><p>monai-anomaly {text(evaluation.method.version)}. {NOTICE}.</p></footer>"
    yield "</body>"
    yield "</html>"
    yield ""


# ---- tables ------------------------------------------------------------------------------------------------------


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
        verdict = text(statement.verdict)
        detail = f'<p class="detail">{text(statement.detail)}</p>' if statement.detail else ""
        yield f"<li{look}><p>{tag}<strong>{verdict}</strong></p>{detail}</li>"
    yield "</ul>"


def _summary(evaluation: Evaluation) -> Iterator[str]:
    cases = evaluation.cases
    known = [case.label for case in cases if case.label is not None]
    counts = f"{known.count(0)} of them normal and {known.count(1)} abnormal" if known else "without labels"
    yield f"<p>{text(evaluation.method.name)} scored {plural(len(cases), 'scan')}, {counts}.</p>"
    comparisons = comparison_statements(evaluation)
    yield from _findings(comparisons + calibration_statements(evaluation))
    silent = [LEVEL_TITLES[level] for level in evaluation.levels() if evaluation.headline(level) is None]
    if silent:
        yield f"<p>No comparison is made for: {text(', '.join(silent))}, where no metric was chosen for it.</p>"
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
                text(side.name),
                cell_html(side.scans),
                "not stated" if side.patients is None else cell_html(side.patients),
                cell_html(side.normal),
                cell_html(side.abnormal),
                f"<code>{text(side.sha256)}</code>",
            ],
        )
        for side in evaluation.cohort
    ]
    columns = ["side", "scans", "patients", "normal", "abnormal", "SHA-256 of what the scans show"]
    yield from table_html(columns, rows, scroll_name="Cohort")
    for level, share in evaluation.prevalence.items():
        yield f"<p>{LEVEL_TITLES[level]}: the share of abnormal ones in the test set is {number(share)}.</p>"


def _method(evaluation: Evaluation) -> Iterator[str]:
    method = evaluation.method
    rows = [("method", method.name), ("version of monai-anomaly", method.version), ("weights", method.weights)]
    rows += list(_flat(method.settings))
    cells = [("", [text(key), f"<code>{text(value)}</code>"]) for key, value in rows]
    yield from table_html(["setting", "value"], cells, scroll_name="Method and settings")


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
    cells = [("", [text(key), text(value)]) for key, value in rows]
    yield from table_html(["calibration", "value"], cells, scroll_name="Calibration")
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
                text(check.name),
                '<span class="tag">Warning</span>' if check.warning else calm[check.compared],
                text(check.finding),
            ],
        )
        for check in calibration.drift
    ]
    yield from table_html(["check", "outcome", "finding"], checks, scroll_name="Drift checks")


def _figures(evaluation: Evaluation) -> Iterator[str]:
    levels = evaluation.levels()
    if not levels:
        yield "<p>undefined: no labels and no masks to measure against.</p>"
    elif evaluation.intervals:
        yield f"<p>Below each figure its interval: {text(evaluation.intervals)}.</p>"
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
            headings.append(f"{text(methods[0].name)} against it<small>by {text(compared.label)}</small>")
        rows, previous = [], ""
        for detector in detectors:
            statistic = detector.kind == "picture statistic"
            if statistic and not any(column.key in detector.levels.get(level, {}) for column in part):
                continue
            look = ["method"] if detector.kind == "method" else []
            look += ["first"] if previous and detector.kind != previous else []
            previous = detector.kind
            cells = [f"{text(detector.name)}<small>{detector.kind}</small>"]
            for column in part:
                absent = statistic and column.key not in detector.levels[level]
                cells.append("–" if absent else estimate_cell(detector.estimate(column)))
            if verdict and compared is not None:
                cells.append("" if detector.kind == "method" else outcome(methods[0], detector, compared))
            rows.append((" ".join(look), cells))
        name = LEVEL_TITLES[level] + ("" if len(columns) <= _TABLE_COLUMNS else f", from {text(part[0].label)}")
        yield from table_html(headings, rows, scroll_name=name)
    if level == "image" and evaluation.confounds is not None:
        tag = '<span class="tag">Warning.</span> ' if evaluation.confounds.separates else ""
        yield f"<p>{tag}{text(evaluation.confounds.sentence)}</p>"
    if any(d.kind == "picture statistic" and len(d.levels[level]) < len(columns) for d in detectors):
        yield '<p class="note">–: not asked of picture statistics, which are no detectors.</p>'
    noted: dict[str, list[str]] = {}
    for column in columns:
        noted.setdefault(column.note, []).append(column.label)
    yield from (f'<p class="note">{text("; ".join(names))}: {text(note)}.</p>' for note, names in noted.items() if note)
    for note in evaluation.notes.get(level, ()):
        yield f'<p class="note">{text(note)}</p>'
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
    return text(column.label) + "".join(f"<small>{part}</small>" for part in parts)


def _spreads(evaluation: Evaluation) -> Iterator[str]:
    labels = {(column.level, column.key): column.label for column in evaluation.metrics}
    rows = [
        (
            "",
            [
                text(spread.detector),
                LEVEL_TITLES[spread.level],
                text(labels[spread.level, spread.metric]),
                number(spread.mean),
                "undefined: one seed" if spread.std is None else number(spread.std),
                text(", ".join(str(seed) for seed in spread.values)),
            ],
        )
        for spread in evaluation.spreads
    ]
    columns = ["detector", "level", "metric", "mean", "standard deviation", "seeds"]
    yield from table_html(columns, rows, scroll_name="Spread over seeds")


def _extra(table: ExtraTable) -> Iterator[str]:
    yield f"<h3>{text(table.title)}</h3>"
    rows = [("", [cell_html(value) for value in row]) for row in table.rows]
    yield from table_html([text(column) for column in table.columns], rows, scroll_name=text(table.title))
    if table.note:
        yield f'<p class="note">{text(table.note)}</p>'


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
                f'<figure><img src="{data_uri("svg+xml", svg)}" alt="{text(alt)}">'
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
        f'<figure><img src="{data_uri("svg+xml", svg)}" alt="{text(alt)}">'
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
    yield from table_html(columns, rows, scroll_name="Scores")


def _failures(evaluation: Evaluation) -> Iterator[str]:
    if not evaluation.failures:
        yield "<p>None: every scan could be used.</p>"
        return
    rows = [("", [text(case), text(error)]) for case, error in evaluation.failures[:_MOST_FAILURES]]
    yield from table_html(["case", "reason"], rows, scroll_name="Failures")
    if len(evaluation.failures) > _MOST_FAILURES:
        yield f'<p class="note">{_MOST_FAILURES} of {len(evaluation.failures)} are shown; failures.csv has all.</p>'
