"""The layout of a report's tables: which figures stand beside each other. Nothing is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from monai_anomaly.metrics import LEVELS, METRICS, Figure, group_parts

from .evaluation import Evaluation
from .findings import a_scan_a_patient, headline, number, outcome

__all__ = ["Table", "figure_cell", "figure_tables"]

# Metrics side by side in one table: more do not fit a printed page.
_COLUMNS = 5
_GROUP_TITLES = {"threshold": "by threshold", "size": "by size", "seeds": "over training seeds"}


class Table(NamedTuple):
    """A table of the page.

    Attributes:
        title: its heading.
        columns: (name, small lines below it).
        rows: (look, cells), a cell a text or ``{"value", "small"}``; the first names the row.
        notes: sentences below it.
    """

    title: str
    columns: list[tuple[str, list[str]]]
    rows: list[tuple[str, list[Any]]]
    notes: list[str]


def figure_cell(figure: Figure | None) -> dict[str, str]:
    """The figure, its interval below it, or why there is none."""
    if figure is None:
        return {"value": "–", "small": ""}
    if figure.value is None:
        return {"value": "", "small": f"undefined: {figure.note}"}
    between = "" if figure.low is None else f"{number(figure.low)} to {number(figure.high or 0.0)}"
    return {"value": number(figure.value), "small": between}


def figure_tables(evaluation: Evaluation) -> list[tuple[str, list[Table]]]:
    """All tables of figures, by the title of their level.

    At each level one table of all scans together, with every method and baseline, and one for each way of grouping
    (site, threshold, lesion size, ...).
    """
    found = []
    for level, title in LEVELS.items():
        rows = evaluation.figures.where(level=level)
        if not rows or (level == "patient" and a_scan_a_patient(evaluation)):
            continue
        kinds: dict[tuple[str, ...], list[Figure]] = {}
        for row in rows:
            if row.metric in METRICS[level]:
                kinds.setdefault(tuple(group_parts(row.group)), []).append(row)
        tables = [table for keys, members in kinds.items() for table in _tables(evaluation, level, keys, members)]
        found.append((title, tables))
    return found


def _tables(evaluation: Evaluation, level: str, keys: tuple[str, ...], rows: Sequence[Figure]) -> list[Table]:
    metrics = [name for name in METRICS[level] if any(row.metric == name for row in rows)]
    title = ", ".join(_GROUP_TITLES.get(key, f"by {key}") for key in keys)
    tables = []
    for start in range(0, len(metrics), _COLUMNS):
        part = metrics[start : start + _COLUMNS]
        of_part = [row for row in rows if row.metric in part]
        tables.append(_table(evaluation, level, keys, of_part, part, title, compared=start == 0 and not keys))
    return tables


def _table(
    evaluation: Evaluation,
    level: str,
    keys: tuple[str, ...],
    rows: Sequence[Figure],
    metrics: Sequence[str],
    title: str,
    compared: bool,
) -> Table:
    head = headline(level) if compared else None
    columns: list[tuple[str, list[str]]] = [("detector", []), *((key, []) for key in keys)]
    columns += [("n", [])] if keys else []
    columns += [(METRICS[level][name].label, _small(evaluation, level, name)) for name in metrics]
    columns += [(f"{evaluation.method} against it", [f"by {head[1].label}"])] if head else []
    lines, previous = [], ""
    for detector, kind in evaluation.kinds.items():
        own = [row for row in rows if row.detector == detector]
        for group in dict.fromkeys(row.group for row in own):
            found = {row.metric: row for row in own if row.group == group}
            looks = ["method"] if kind == "method" else []
            looks += ["first"] if previous and kind != previous else []
            previous = kind
            cells: list[Any] = [{"value": detector, "small": kind}, *group_parts(group).values()]
            if keys:
                n = next(iter(found.values())).n
                cells.append("–" if n is None else f"{n}")
            cells += [figure_cell(found.get(name)) for name in metrics]
            cells += [("" if kind == "method" else outcome(evaluation, level, detector) or "–")] if head else []
            lines.append((" ".join(looks), cells))
    return Table(title, columns, lines, _notes(evaluation, level, rows, metrics))


def _small(evaluation: Evaluation, level: str, name: str) -> list[str]:
    metric = METRICS[level][name]
    chance = metric.chance
    if isinstance(chance, str):
        chance = evaluation.figures.value(evaluation.method, level, chance)
    parts = ["lower is better"] if metric.higher_is_better is False else []
    return parts + ([] if chance is None else [f"chance {number(chance)}"])


def _notes(evaluation: Evaluation, level: str, rows: Sequence[Figure], metrics: Sequence[str]) -> list[str]:
    """What the metrics mean, and which of the method's figures have no interval."""
    said: dict[str, list[str]] = {}
    for name in metrics:
        said.setdefault(METRICS[level][name].note, []).append(METRICS[level][name].label)
    for row in rows:
        if row.detector == evaluation.method and row.value is not None and row.note:
            labels = said.setdefault(row.note, [])
            label = METRICS[level][row.metric].label
            labels += [] if label in labels else [label]
    return [f"{'; '.join(labels)}: {note}." for note, labels in said.items() if note]
