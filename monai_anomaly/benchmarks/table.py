"""Tables of benchmark results beside the papers' figures."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from monai_anomaly.exceptions import InputError
from monai_anomaly.io.image_files import natural_key
from monai_anomaly.metrics import mean_and_spread

__all__ = [
    "FORMATS",
    "Cell",
    "ResultTable",
    "build_tables",
    "compare",
    "paper_figures",
    "render",
]

FORMATS = ("markdown", "csv", "latex")

# Percentage points within which a figure counts as even with the paper's, whatever the spread.
_EVEN = 0.5
# Seeds from which on their spread says how far the mean is off.
_LEAST_SEEDS = 3

_PAPERS = {"ddrid": "DDR-ID", "itae": "ITAE", "hfrae": "HFR-AE", "daad": "DAAD", "proxyano": "ProxyAno"}

_MARKS = {"ahead": "▲", "even": "=", "behind": "▼"}
_LATEX_MARKS = {"ahead": r"$\uparrow$", "even": "$=$", "behind": r"$\downarrow$"}

_RULE = "Percent, mean ± standard deviation over seeds."
_BESIDE_PAPER = (
    f"In brackets the paper's figure: {_MARKS['ahead']} ours is ahead, {_MARKS['behind']} behind, {_MARKS['even']} "
    f"even (within {_EVEN} points or, of {_LEAST_SEEDS} seeds or more, one standard error of our mean)."
)
_UNDER_TRAINED = "† a stage was stopped while it still improved (under-trained)."
_PART = "‡ a part of the images."
_OTHER_SCALE = "Scale {} is not the paper's schedule."


class Cell(NamedTuple):
    """A figure of a method: a line of the CSV.

    Attributes:
        suite: that was run.
        scale: that it was run at.
        set: of the images.
        metric: such as ``image.auroc``.
        method: its key.
        title: its name.
        problem: or ``mean``.
        mean: over the seeds, in percent; None where no run has it.
        sd: over the seeds; None for a single one.
        seeds: that it is of.
        paper: the paper's figure, in percent, or None.
        source: the table and paper that it is of, such as ``Table 2 of DDR-ID``; empty without one.
        mark: ``ahead``, ``even``, ``behind``, or None where there is nothing to compare.
        under_trained: whether any of the method's runs was stopped while it still improved.
        whole: whether all its runs had all images.
        reason: why there is no figure; empty where there is one.
    """

    suite: str
    scale: str
    set: str
    metric: str
    method: str
    title: str
    problem: str
    mean: float | None
    sd: float | None
    seeds: int
    paper: float | None
    source: str
    mark: str | None
    under_trained: bool
    whole: bool
    reason: str


class ResultTable(NamedTuple):
    """One metric of one set at one scale.

    Attributes:
        cells: method by method.
        notes: what was left out, and why.
    """

    cells: tuple[Cell, ...]
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> dict[str, dict[str, Cell]]:
        """By method its cells, by problem; the last is the mean."""
        rows: dict[str, dict[str, Cell]] = {}
        for cell in self.cells:
            rows.setdefault(cell.method, {})[cell.problem] = cell
        return rows


@cache
def paper_figures() -> tuple[dict[str, Any], ...]:
    """The figures of the papers, as they are committed beside this file."""
    content = yaml.safe_load((Path(__file__).parent / "paper_figures.yaml").read_text(encoding="utf-8"))
    return tuple(content)


def compare(mean: float, sd: float | None, paper: float, seeds: int = 1) -> str:
    """Whether a figure is ahead of the paper's, even with it or behind it.

    Args:
        mean: ours, in percent.
        sd: over the seeds, in points; None for a single seed.
        paper: the paper's, in percent.
        seeds: that ours is the mean of.

    Returns:
        ``even`` where they differ by no more than half a point or, of three seeds or more, one standard error of our
        mean, whichever is more; else ``ahead`` or ``behind``.
    """
    difference = mean - paper
    # the spread of two seeds says next to nothing, and that of a single run would make unstable methods even
    error = (sd or 0.0) / math.sqrt(seeds) if seeds >= _LEAST_SEEDS else 0.0
    # a rounding error is no difference
    if abs(difference) <= max(_EVEN, error) + 1e-9:
        return "even"
    return "ahead" if difference > 0 else "behind"


def build_tables(
    results: Sequence[Mapping[str, Any]], figures: Sequence[Mapping[str, Any]] | None = None, suite: str | None = None
) -> list[ResultTable]:
    """Tables of all suites, scales, sets and metrics that there are results of.

    Args:
        results: rows of ``read_results``.
        figures: of the papers; None: those of ``paper_figures()``.
        suite: one suite alone.

    Raises:
        InputError: if there is no result.
    """
    rows = [row for row in results if suite is None or row["suite"] == suite]
    if not rows:
        raise InputError(suite or "results", "no finished run", "Run the benchmark first, or name another folder.")
    known = paper_figures() if figures is None else figures
    tables = []
    for key in dict.fromkeys((row["suite"], row["scale"], row["set"]) for row in rows):
        part, notes = _comparable([row for row in rows if (row["suite"], row["scale"], row["set"]) == key])
        metrics = dict.fromkeys(metric for row in part for metric in row["table"]["metrics"])
        for metric in metrics:
            paper = part[-1]["table"]["paper"]
            fitting = [f for f in known if (f["paper"], f["set"], f["metric"]) == (paper, key[2], metric)]
            tables.append(_table(key, metric, part, fitting, notes))
    return tables


def _comparable(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], tuple[str, ...]]:
    """Runs that differ in nothing but the seed, each seed once: of each method on a problem those like its last run.

    Returns:
        The rows, and a note for what was left out.
    """
    kept: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    left: dict[str, int] = {}
    settings = {(row["problem"], row["method"]): _settings(row) for row in rows}
    for row in rows:
        if _settings(row) == settings[row["problem"], row["method"]]:
            kept[row["problem"], row["method"], row["seed"]] = row
        else:
            left[row["table"]["title"]] = left.get(row["table"]["title"], 0) + 1
    notes = [
        f"Left out, earlier runs with other settings or images: {count} of {title}." for title, count in left.items()
    ]
    return list(kept.values()), tuple(notes)


def _settings(row: Mapping[str, Any]) -> str:
    # watching the test AUROC changes nothing of a run
    given = {k: v for k, v in row.get("configuration", {}).items() if k not in ("seed", "track_auroc")}
    return json.dumps(given, sort_keys=True)


def _table(
    key: tuple[str, str, str],
    metric: str,
    part: Sequence[Mapping[str, Any]],
    figures: Sequence[Mapping[str, Any]],
    notes: tuple[str, ...],
) -> ResultTable:
    order = [str(problem) for figure in figures for problem in figure.get("problems") or ()]
    present = {row["problem"] for row in part}
    problems = [problem for problem in dict.fromkeys(order) if problem in present]
    problems += sorted(present - set(problems), key=natural_key)
    cells = []
    for method in dict.fromkeys(row["method"] for row in part):
        runs = [row for row in part if row["method"] == method]
        figure = next((f for f in figures if method in f["rows"]), None)
        theirs = _theirs(figure, method)
        found = {
            problem: _figures([_value(row, metric) for row in runs if row["problem"] == problem], theirs.get(problem))
            for problem in problems
        }
        found["mean"] = _mean_figures(runs, metric, problems, figure, theirs)
        source = "" if figure is None else f"{figure['table']} of {_PAPERS.get(figure['paper'], figure['paper'])}"
        cells += [
            Cell(
                *key,
                metric,
                method,
                runs[-1]["table"]["title"],
                problem,
                **figures,
                source="" if figures["paper"] is None else source,
                under_trained=any(row["under_trained"] for row in runs),
                whole=all(row["pictures"]["whole"] for row in runs),
            )
            for problem, figures in found.items()
        ]
    return ResultTable(tuple(cells), notes)


def _theirs(figure: Mapping[str, Any] | None, method: str) -> dict[str, float]:
    """The paper's figures of a method by problem, and of the mean."""
    if figure is None:
        return {}
    entry = figure["rows"][method]
    values = {
        str(p): float(v) for p, v in zip(figure.get("problems") or (), entry.get("values") or ()) if v is not None
    }
    return {**values, **({"mean": float(entry["mean"])} if "mean" in entry else {})}


def _value(row: Mapping[str, Any], metric: str) -> tuple[float | None, str]:
    """A metric of a result in percent, or why it has none."""
    level, name = metric.split(".")
    found = row["metrics"].get(level)
    if found is None:
        return None, f"the set gives no {level} level"
    value = found.get(name)
    if value is None:
        return None, found.get("undefined", {}).get(name, "undefined")
    return 100.0 * value, ""


def _figures(values: Sequence[tuple[float | None, str]], paper: float | None) -> dict[str, Any]:
    """What a cell says of the values of the runs, each with why it has none."""
    found = mean_and_spread([value for value, _ in values])
    reason = "" if found["mean"] is not None else values[0][1] if values else "not run"
    mark = None if reason or paper is None else compare(found["mean"], found["sd"], paper, found["n"])
    return {
        "mean": found["mean"],
        "sd": found["sd"],
        "seeds": found["n"],
        "paper": paper,
        "mark": mark,
        "reason": reason,
    }


def _mean_figures(
    runs: Sequence[Mapping[str, Any]],
    metric: str,
    problems: Sequence[str],
    figure: Mapping[str, Any] | None,
    theirs: Mapping[str, float],
) -> dict[str, Any]:
    """The mean over the problems: of each seed first, so that the spread is that of the mean."""
    by_seed: dict[int, dict[str, float | None]] = {}
    for row in runs:
        by_seed.setdefault(row["seed"], {})[row["problem"]] = _value(row, metric)[0]
    complete = [
        [float(v) for v in found.values() if v is not None]
        for found in by_seed.values()
        if set(found) == set(problems) and None not in found.values()
    ]
    if not complete:
        return _figures([(None, "no seed has all problems")], theirs.get("mean"))
    # The paper's mean is over all its problems: that of a part is no match for it.
    count = 0 if figure is None else figure.get("count") or len(figure.get("problems") or ())
    paper = theirs.get("mean") if count == len(problems) else None
    return _figures([(sum(values) / len(values), "") for values in complete], paper)


def render(tables: Sequence[ResultTable], form: str = "markdown") -> str:
    """Tables as text.

    Args:
        tables: of ``build_tables``.
        form: one of ``FORMATS``; CSV has a line for each method and column.

    Raises:
        ValueError: for another form.
    """
    if form not in FORMATS:
        raise ValueError(f"form is one of {', '.join(FORMATS)}, got {form!r}")
    return {"markdown": _markdown, "csv": _csv, "latex": _latex}[form](tables)


def _shown(table: ResultTable) -> tuple[str, ...]:
    """The columns for readers: the mean of a single problem repeats it, unless the paper gives the mean alone."""
    rows = list(table.rows.values())
    if len(rows[0]) != 2:
        return tuple(rows[0])
    problem, mean = rows[0]
    return (mean,) if any(row[mean].paper is not None and row[problem].paper is None for row in rows) else (problem,)


def _side_by_side(tables: Sequence[ResultTable]) -> list[list[ResultTable]]:
    """Tables of one problem that differ in the metric alone, together."""

    def key(table: ResultTable) -> tuple[Any, ...]:
        return *table.cells[0][:3], _shown(table), list(table.rows)

    groups: list[list[ResultTable]] = []
    for table in tables:
        if groups and len(_shown(table)) == 1 and key(groups[-1][0]) == key(table):
            groups[-1].append(table)
        else:
            groups.append([table])
    return groups


def _markdown(tables: Sequence[ResultTable]) -> str:
    parts = []
    for group in _side_by_side(tables):
        first, columns = group[0], _shown(group[0])
        headings = columns if len(group) == 1 else [table.cells[0].metric.replace(".", " ") for table in group]
        lines = [f"### {_caption(group)}", "", f"| method | {' | '.join(headings)} |", f"|---|{'---|' * len(headings)}"]
        for method, row in first.rows.items():
            cells = [_text(table.rows[method][column], _MARKS, "±") for table in group for column in columns]
            lines.append(f"| {_title(row, '†', '‡')} | {' | '.join(cells)} |")
        parts.append("\n".join([*lines, *dict.fromkeys(note for table in group for note in _notes(table))]))
    return "\n\n".join([*parts, _rule(tables)]) + "\n"


def _latex(tables: Sequence[ResultTable]) -> str:
    parts = []
    for table in tables:
        columns = _shown(table)
        lines = [
            f"% {_caption([table])}",
            rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
            r"\hline",
            " & ".join(["method", *map(_escape, columns)]) + r" \\",
            r"\hline",
        ]
        for row in table.rows.values():
            cells = [_text(row[column], _LATEX_MARKS, r"$\pm$", "--") for column in columns]
            lines.append(" & ".join([_title(row, r"\dag", r"\ddag", _escape), *cells]) + r" \\")
        parts.append("\n".join([*lines, r"\hline", r"\end{tabular}", *(f"% {note}" for note in _notes(table) if note)]))
    return "\n\n".join([*parts, f"% {_rule(tables)}"]) + "\n"


def _csv(tables: Sequence[ResultTable]) -> str:
    forms = {"mean": ".4f", "sd": ".4f", "paper": "g", "under_trained": "d", "whole": "d"}
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(Cell._fields)
    for cell in (cell for table in tables for cell in table.cells):
        values = cell._asdict().items()
        writer.writerow("" if value is None else format(value, forms.get(name, "")) for name, value in values)
    return file.getvalue()


def _caption(tables: Sequence[ResultTable]) -> str:
    first = tables[0].cells[0]
    sources = dict.fromkeys(cell.source for table in tables for cell in table.cells if cell.source)
    beside = f", beside {', '.join(sources)}" if sources else ""
    scale = "the paper's schedule" if first.scale == "paper" else f"scale {first.scale}"
    metric = f", {first.metric.replace('.', ' ')}" if len(tables) == 1 else ""
    return f"{first.set}{metric}, suite {first.suite}, {scale}{beside}"


def _rule(tables: Sequence[ResultTable]) -> str:
    """What the marks mean that these tables have."""
    cells = [cell for table in tables for cell in table.cells]
    scales = sorted({cell.scale for cell in cells} - {"paper"})
    told = (
        (any(cell.paper is not None for cell in cells), _BESIDE_PAPER),
        (any(cell.under_trained for cell in cells), _UNDER_TRAINED),
        (not all(cell.whole for cell in cells), _PART),
        (bool(scales), _OTHER_SCALE.format(" and ".join(scales))),
    )
    return " ".join([_RULE, *(text for fits, text in told if fits)])


def _title(row: Mapping[str, Cell], under_trained: str, part: str, escape: Any = str) -> str:
    method = row["mean"]
    flags = (under_trained if method.under_trained else "") + ("" if method.whole else part)
    return escape(method.title) + (f" {flags}" if flags else "")


def _text(cell: Cell, marks: Mapping[str, str], plus_minus: str, nothing: str = "–") -> str:
    if cell.mean is None:
        return nothing + ("" if cell.paper is None else f" ({cell.paper:g})")
    spread = "" if cell.sd is None else f" {plus_minus} {cell.sd:.1f}"
    beside = "" if cell.paper is None else f" ({cell.paper:g} {marks[str(cell.mark)]})"
    return f"{cell.mean:.1f}{spread}{beside}"


def _notes(table: ResultTable) -> list[str]:
    """Below a table: how many seeds, and why figures are missing."""
    counts = sorted({cell.seeds for cell in table.cells if cell.seeds})
    notes = [f"Seeds: {counts[0]}{f' to {counts[-1]}' if len(counts) > 1 else ''}."] if counts else []
    reasons: dict[str, list[str]] = {}
    for cell in table.cells:
        if cell.reason:
            reasons.setdefault(cell.reason, []).append(f"{cell.title} {cell.problem}")
    notes += [f"No figure of {', '.join(places)}: {reason}." for reason, places in reasons.items()]
    notes += table.notes
    return ["", *notes] if notes else []


def _escape(text: str) -> str:
    return re.sub(r"([&%$#_{}])", r"\\\1", text)
