"""An evaluation's figures as plain values for ``metrics.json``, and as CSV."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from monai_anomaly.io.tables import write_csv
from monai_anomaly.report.evaluation import Estimate, Evaluation, case_lists, clean_text
from monai_anomaly.report.statements import calibration_statements, comparison_statements

__all__ = ["evaluation_json", "write_metrics_csv"]


def _plain(value: Any) -> Any:
    """Settings as JSON has them: what is neither a number, a text, a list nor a mapping becomes text."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {clean_text(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return clean_text(value)


def evaluation_json(evaluation: Evaluation, cases_per_list: int = 8) -> dict[str, Any]:
    """The report's figures as plain values for ``metrics.json``.

    No patient is named, as on the page; the scores of the cases are in ``predictions.csv``.

    Args:
        evaluation: what to write.
        cases_per_list: names kept of each list of cases, as many as the page shows.

    Returns:
        Mappings, lists, texts, numbers and None, as :func:`monai_anomaly.io.write_json` takes them. Undefined
        figures are ``{"value": null, ..., "undefined": reason}``; curves are thinned to 400 points each.
    """

    def estimate(figure: Estimate) -> dict[str, Any]:
        return {"value": figure.value, "low": figure.low, "high": figure.high, "undefined": figure.undefined or None}

    calibration = evaluation.calibration
    detectors: dict[str, dict[str, Any]] = {
        detector.name: {"name": detector.name, "kind": detector.kind, "levels": {}} for detector in evaluation.detectors
    }
    for detector, column, figure in evaluation.figures():
        detectors[detector.name]["levels"].setdefault(column.level, {})[column.key] = estimate(figure)
    statements = comparison_statements(evaluation) + calibration_statements(evaluation)
    plain = {
        "title": evaluation.title,
        "method": {
            "name": evaluation.method.name,
            "version": evaluation.method.version,
            "weights": evaluation.method.weights,
            "settings": evaluation.method.settings,
        },
        "cohort": [vars(side) for side in evaluation.cohort],
        "calibration": calibration
        and {
            "alpha": calibration.alpha,
            "patients": calibration.patients,
            "score_threshold": calibration.score_threshold,
            "map_threshold": calibration.map_threshold,
            "rule": calibration.rule,
            "drift": [vars(check) for check in calibration.drift],
        },
        "metrics": [vars(column) for column in evaluation.metrics],
        "intervals": evaluation.intervals or None,
        "notes": evaluation.notes,
        "prevalence": evaluation.prevalence,
        "detectors": list(detectors.values()),
        "spreads": [
            {
                "detector": spread.detector,
                "level": spread.level,
                "metric": spread.metric,
                "values": spread.values,
                "mean": spread.mean,
                "std": spread.std,
            }
            for spread in evaluation.spreads
        ],
        "tables": [
            {
                "title": table.title,
                "columns": table.columns,
                "rows": [[estimate(c) if isinstance(c, Estimate) else c for c in row] for row in table.rows],
                "note": table.note,
                "detector": table.detector or None,
                "level": table.level,
            }
            for table in evaluation.tables
        ],
        "curves": [vars(curve.thinned()) for curve in evaluation.curves],
        "statements": [vars(statement) for statement in statements],
        "case_lists": {
            listed.key: {
                "number": None if listed.undefined else len(listed.cases),
                "first": [case.name for case in listed.cases[:cases_per_list]],
                "undefined": listed.undefined or None,
            }
            for listed in case_lists(evaluation)
        },
        "scans": len(evaluation.cases),
        "failures": [{"case": case, "error": error} for case, error in evaluation.failures],
    }
    return _plain(plain)


def write_metrics_csv(path: str | Path, evaluation: Evaluation) -> None:
    """Write the figures of the tables as CSV, one line for each.

    The columns are ``detector``, ``kind``, ``level``, ``metric`` (its key), ``value``, ``low``, ``high``,
    ``undefined`` (the reason) and ``group``: empty for all scans, else the row of the further table that the figure is
    from (``scanner: A``), whose ``metric`` is the column's name. What is undefined has an empty ``value``.

    Args:
        path: the file to write.
        evaluation: what to write.

    Raises:
        InputError: if the folder cannot be written to.
    """

    def line(detector: str, kind: str, level: str, metric: str, figure: Estimate, group: str = "") -> dict[str, Any]:
        return {
            "detector": clean_text(detector),
            "kind": kind,
            "level": level,
            "metric": clean_text(metric),
            "value": figure.value,
            "low": figure.low,
            "high": figure.high,
            "undefined": clean_text(figure.undefined),
            "group": clean_text(group),
        }

    rows = [
        line(detector.name, detector.kind, column.level, column.key, figure)
        for detector, column, figure in evaluation.figures()
    ]
    kinds = {detector.name: detector.kind for detector in evaluation.detectors}
    for table in evaluation.tables:
        if table.level is None:
            continue
        for first, *cells in table.rows:
            for column, cell in zip(table.columns[1:], cells):
                if isinstance(cell, str) or cell is None:
                    continue
                figure = cell if isinstance(cell, Estimate) else Estimate(float(cell))
                group = f"{table.columns[0]}: {first}"
                rows.append(line(table.detector, kinds[table.detector], table.level, column, figure, group))
    columns = ["detector", "kind", "level", "metric", "value", "low", "high", "undefined", "group"]
    write_csv(path, rows, columns)
