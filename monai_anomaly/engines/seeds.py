"""Evaluations of the same method and cohort with other training seeds, beside the one at hand."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_anomaly.exceptions import InputError
from monai_anomaly.metrics import Figure, FigureTable, mean_and_spread

__all__ = ["read_evaluations", "seed_figures"]


def read_evaluations(folders: Sequence[str | Path]) -> dict[str, dict[str, Any]]:
    """What earlier evaluations found.

    Args:
        folders: the ``output_dir`` of each.

    Returns:
        By folder the content of its ``metrics.json``.

    Raises:
        InputError: if there is none, or it cannot be read.
    """
    found = {}
    for folder in map(Path, folders):
        path = folder / "metrics.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            found[str(folder)] = {"settings": content["settings"], "figures": FigureTable(content["figures"])}
        except (OSError, ValueError, LookupError, TypeError) as error:
            problem = f"cannot be read as the metrics of an evaluation ({error})"
            raise InputError(path, problem, "Name the output_dir of a finished evaluate run.") from error
    return found


def seed_figures(
    settings: Mapping[str, Any], figures: FigureTable, others: Mapping[str, Mapping[str, Any]]
) -> list[Figure]:
    """The method's figures over several seeds.

    Args:
        settings: of the evaluation at hand (see ``run_settings``).
        figures: its table.
        others: of ``read_evaluations``.

    Returns:
        For each of the method's ungrouped figures that has a value in any run, one of the group ``seeds: 0, 1, ...``:
        the mean over the seeds, the least and the highest as its ends, the number of seeds, and the standard deviation
        as its note. None without others.

    Raises:
        InputError: if a run is of another method, other settings or other test scans, of no known seed, or of a seed
            that is there already.
    """
    if not others:
        return []
    runs: dict[int, FigureTable] = {}
    for where, run in {"this evaluation": {"settings": settings, "figures": figures}, **others}.items():
        for what, part in (("method and settings", _method), ("test scans", _test_scans)):
            if part(run["settings"]) != part(settings):
                raise InputError(where, f"has other {what}", "Name runs that differ in their training seed alone.")
        seed = run["settings"]["method"]["settings"].get("training", {}).get("seed")
        if seed is None or seed in runs:
            problem = "does not know its training seed" if seed is None else f"has seed {seed}, as another run does"
            raise InputError(where, problem, "Name runs that differ in their training seed alone.")
        runs[seed] = run["figures"]
    name, found = settings["method"]["name"], []
    group = f"seeds: {', '.join(str(seed) for seed in sorted(runs))}"
    for row in figures.where(detector=name, group=""):
        spread = mean_and_spread([table.value(name, row.level, row.metric) for table in runs.values()])
        if spread["mean"] is not None:
            sd = "one seed" if spread["sd"] is None else f"standard deviation {spread['sd']:.4g}"
            note = f"{sd}; the interval is from the least to the highest"
            ends = spread["min"], spread["max"]
            found.append(Figure(name, row.level, group, row.metric, spread["mean"], *ends, spread["n"], note))
    return found


def _method(settings: Mapping[str, Any]) -> Any:
    """Name and settings, without the seed."""
    method = copy.deepcopy(settings["method"])
    method["settings"].get("training", {}).pop("seed", None)
    return json.loads(json.dumps([method["name"], method["settings"]], default=str))


def _test_scans(settings: Mapping[str, Any]) -> list[str]:
    return [side["sha256"] for side in settings["cohort"] if side["name"] == "test"]
