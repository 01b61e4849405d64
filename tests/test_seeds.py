"""Evaluations of several training seeds, told together."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from bundle_runs import detect

from monai_anomaly.exceptions import InputError
from monai_anomaly.report.seeds import read_evaluations, seed_spreads

pytest_plugins = ["bundle_fixtures"]


def run(seed: int, auroc: float | None, **changes: Any) -> dict[str, Any]:
    """What an evaluation writes, as far as it matters here."""
    estimate = {"value": auroc, "undefined": None if auroc is not None else "one class"}
    return {
        "method": {"name": "A", "settings": {"width": 4, "training": {"seed": seed, "epochs": [3]}}},
        "cohort": [{"name": "training", "sha256": f"{seed}"}, {"name": "test", "sha256": "same"}],
        "metrics": [{"level": "image", "key": "auroc"}],
        "detectors": [
            {"name": "B", "levels": {"image": {"auroc": {"value": 0.1}}}},
            {"name": "A", "levels": {"image": {"auroc": estimate}}},
        ],
        **changes,
    }


def test_values_are_those_of_the_method_by_seed() -> None:
    (spread,) = seed_spreads(run(0, 0.5), {"one": run(1, 0.7), "two": run(2, None)})
    assert (spread.detector, spread.level, spread.metric) == ("A", "image", "auroc")
    assert spread.values == {0: 0.5, 1: 0.7}
    assert spread.mean == pytest.approx(0.6)


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
        seed_spreads(run(0, 0.5), {"OUT1": other})


def test_a_run_of_no_known_seed_is_refused() -> None:
    nameless = copy.deepcopy(run(0, 0.5))
    del nameless["method"]["settings"]["training"]["seed"]
    with pytest.raises(InputError, match="does not know its training seed"):
        seed_spreads(nameless, {})


def test_a_folder_without_metrics_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone/metrics\.json: cannot be read as the metrics of an evaluation"):
        read_evaluations([tmp_path / "gone"])


def test_the_report_tells_the_spread(trained: Path, evaluated: Path, tiny_cohort: Path, tmp_path: Path) -> None:
    # the same weights under another seed: what is told must be the mean of two equal figures
    other = tmp_path / "other"
    shutil.copytree(trained / "models", other / "models")
    described = other / "models" / "detector.json"
    content = json.loads(described.read_text())
    content["training"]["seed"] += 1
    described.write_text(json.dumps(content))
    out = detect(other, tmp_path / "out", tiny_cohort, "evaluate", overview_slices=0, other_seeds=[str(evaluated)])
    found = json.loads((out / "metrics.json").read_text())
    (spread,) = [s for s in found["evaluation"]["spreads"] if (s["level"], s["metric"]) == ("image", "auroc")]
    assert len(spread["values"]) == 2
    assert spread["mean"] == pytest.approx(found["image"]["auroc"])
    assert "Spread over seeds" in (out / "report.html").read_text()
