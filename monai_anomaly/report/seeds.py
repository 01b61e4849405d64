"""Evaluations of the same method and cohort with other training seeds, beside the one at hand."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_anomaly.exceptions import InputError
from monai_anomaly.report.evaluation import SeedSpread

__all__ = ["read_evaluations", "seed_spreads"]


def read_evaluations(folders: Sequence[str | Path]) -> dict[str, dict[str, Any]]:
    """What earlier evaluations found.

    Args:
        folders: the ``output_dir`` of each.

    Returns:
        By folder the part ``evaluation`` of its ``metrics.json``.

    Raises:
        InputError: if there is none, or it cannot be read.
    """
    found = {}
    for folder in map(Path, folders):
        path = folder / "metrics.json"
        try:
            found[str(folder)] = json.loads(path.read_text(encoding="utf-8"))["evaluation"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            problem = f"cannot be read as the metrics of an evaluation ({error})"
            raise InputError(path, problem, "Name the output_dir of a finished evaluate run.") from error
    return found


def seed_spreads(evaluation: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]) -> list[SeedSpread]:
    """The method's figures over several seeds.

    Args:
        evaluation: at hand, as ``evaluation_json`` gives it.
        others: of ``read_evaluations``.

    Returns:
        For each metric that has a value its values by seed; a run in which it is undefined is left out of it.

    Raises:
        InputError: if a run is of another method, other settings or other test scans, of no known seed, or of a seed
            that is there already.
    """
    runs: dict[int, Mapping[str, Any]] = {}
    for where, run in {"this evaluation": evaluation, **others}.items():
        for what, part in (("method and settings", _method), ("test scans", _test_scans)):
            if part(run) != part(evaluation):
                raise InputError(where, f"has other {what}", "Name runs that differ in their training seed alone.")
        seed = _seed(run)
        if seed is None or seed in runs:
            problem = "does not know its training seed" if seed is None else f"has seed {seed}, as another run does"
            raise InputError(where, problem, "Name runs that differ in their training seed alone.")
        runs[seed] = run
    name, spreads = evaluation["method"]["name"], []
    figures = {seed: next(each for each in run["detectors"] if each["name"] == name) for seed, run in runs.items()}
    for column in evaluation["metrics"]:
        level, key = column["level"], column["key"]
        found = {seed: each["levels"].get(level, {}).get(key, {}).get("value") for seed, each in figures.items()}
        values = {seed: value for seed, value in found.items() if value is not None}
        if values:
            spreads.append(SeedSpread(name, level, key, values))
    return spreads


def _seed(run: Mapping[str, Any]) -> int | None:
    return run["method"]["settings"].get("training", {}).get("seed")


def _method(run: Mapping[str, Any]) -> Any:
    """Name and settings, without the seed."""
    settings = copy.deepcopy(run["method"]["settings"])
    settings.get("training", {}).pop("seed", None)
    return json.loads(json.dumps([run["method"]["name"], settings], default=str))


def _test_scans(run: Mapping[str, Any]) -> list[str]:
    return [side["sha256"] for side in run["cohort"] if side["name"] == "test"]
