"""Evaluations of several training seeds, told together."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from bundle_runs import detect, figures_of

from monai_anomaly.engines.seeds import read_evaluations, seed_figures
from monai_anomaly.exceptions import InputError
from monai_anomaly.metrics import Figure, FigureTable

pytest_plugins = ["bundle_fixtures"]


def run(seed: int, auroc: float | None, **changes: Any) -> dict[str, Any]:
    """What an evaluation writes, as far as it matters here."""
    settings = {
        "method": {"name": "A", "settings": {"width": 4, "training": {"seed": seed, "epochs": [3]}}},
        "cohort": [{"name": "training", "sha256": f"{seed}"}, {"name": "test", "sha256": "same"}],
        **changes,
    }
    own = Figure("A", "image", "", "auroc", auroc, note="" if auroc is not None else "one class")
    return {"settings": settings, "figures": FigureTable([Figure("B", "image", "", "auroc", 0.1), own])}


def test_values_are_those_of_the_method_by_seed() -> None:
    (figure,) = seed_figures(*run(0, 0.5).values(), {"one": run(1, 0.7), "two": run(2, None)})
    assert figure[:4] == ("A", "image", "seeds: 0, 1, 2", "auroc")
    assert (figure.value, figure.low, figure.high, figure.n) == (pytest.approx(0.6), 0.5, 0.7, 2)
    assert figure.note.startswith("standard deviation 0.1414;")


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        (run(0, 0.7), "has seed 0, as another run does"),
        (run(1, 0.7, cohort=[{"name": "test", "sha256": "another"}]), "has other test scans"),
        (run(1, 0.7, method={"name": "C", "settings": {}}), "has other method and settings"),
        (
            run(1, 0.7, method={"name": "A", "settings": {"width": 8, "training": {"seed": 1, "epochs": [3]}}}),
            "settings",
        ),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(other: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=f"OUT1: {problem}|OUT1: has other method and {problem}"):
        seed_figures(*run(0, 0.5).values(), {"OUT1": other})


def test_a_run_of_no_known_seed_is_refused() -> None:
    nameless = copy.deepcopy(run(0, 0.5))
    del nameless["settings"]["method"]["settings"]["training"]["seed"]
    with pytest.raises(InputError, match="does not know its training seed"):
        seed_figures(*nameless.values(), {"OUT1": nameless})


def test_a_folder_without_metrics_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone/metrics\.json: cannot be read as the metrics of an evaluation"):
        read_evaluations([tmp_path / "gone"])


@pytest.mark.slow
def test_the_report_tells_the_spread(trained: Path, evaluated: Path, tiny_cohort: Path, tmp_path: Path) -> None:
    # the same weights under another seed: what is told must be the mean of two equal figures
    other = tmp_path / "other"
    shutil.copytree(trained / "models", other / "models")
    described = other / "models" / "detector.json"
    content = json.loads(described.read_text())
    content["training"]["seed"] += 1
    described.write_text(json.dumps(content))
    out = detect(other, tmp_path / "out", tiny_cohort, "evaluate", overview_slices=0, other_seeds=[str(evaluated)])
    figures = figures_of(out)
    [group] = {row.group for row in figures if row.group.startswith("seeds")}
    spread = figures.find("ProxyAno", "image", "auroc", group)
    assert spread is not None
    assert (spread.n, spread.value) == (2, pytest.approx(figures.value("ProxyAno", "image", "auroc")))
    assert "over training seeds" in (out / "report.html").read_text()
