"""Nothing of a detector depends on the labels or masks of the test side, or on the test side at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundle_runs import BUNDLES, run_bundle
from test_all_bundles import COMMON, OVERLAYS, TINY

from monai_anomaly.data import load_cohort
from monai_anomaly.engines import load_detector

pytestmark = pytest.mark.slow
pytest_plugins = ["bundle_fixtures"]

ALPHAS = (0.05, 0.1, 0.3, 0.5)


def permuted(test: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every label turned round, and the masks given to the scans that are now called abnormal."""
    masks = [item["mask"] for item in test if item["mask"]]
    turned = [{**item, "label": 1 - item["label"], "mask": None} for item in test]
    for item, mask in zip([item for item in turned if item["label"] == 1], masks):
        item["mask"] = mask
    return turned


VARIANTS = {
    "as it is": lambda test: test,
    "permuted": permuted,
    "deleted": lambda test: [{"image": item["image"], "patient": item["patient"]} for item in test],
    "no test side": lambda test: [],
}


@pytest.fixture(scope="module", params=["ddrid", "proxyano"])
def detectors(
    request: pytest.FixtureRequest, tiny_cohort: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The folder ``models/`` of one training for each variant of the test side, with the epoch chosen too."""
    name = request.param
    root = tmp_path_factory.mktemp(name)
    cohort = load_cohort(tiny_cohort)
    trained = {}
    for variant, change in VARIANTS.items():
        output = root / variant.replace(" ", "_")
        output.mkdir()
        sides = {"training": cohort.training, "calibration": cohort.calibration, "test": change(cohort.test)}
        (output / "cohort.json").write_text(json.dumps(sides))
        run_bundle(
            ["train", *OVERLAYS.get(name, [])],
            output,
            output / "cohort.json",
            bundle=BUNDLES / name,
            **{**COMMON, **TINY[name], "max_epochs": 2, "validation_fraction": 0.3, "select_by": "synthetic_lesions"},
        )
        trained[variant] = output / "models"
    return trained


def test_the_variants_are_of_one_cohort_but_for_its_test_side(tiny_cohort: Path) -> None:
    test = load_cohort(tiny_cohort).test
    assert sorted(item["label"] for item in test) == [0, 0, 0, 1, 1]
    assert sorted(item["label"] for item in permuted(test)) == [0, 0, 1, 1, 1]
    assert sum(item["mask"] is not None for item in permuted(test)) == 2


@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if variant != "as it is"])
def test_the_model_and_every_threshold_are_the_same_to_the_bit(detectors: dict[str, Path], variant: str) -> None:
    ours, theirs = detectors["as it is"], detectors[variant]
    assert (ours / "model.pt").read_bytes() == (theirs / "model.pt").read_bytes()
    state, other = (load_detector(folder).network for folder in (ours, theirs))
    assert state.calibration.scores.shape == (19,)
    assert state.calibration.scores.std() > 0
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in state.state_dict().items())
    thresholds = [state.calibration.map_threshold(alpha) for alpha in ALPHAS]
    assert thresholds == [other.calibration.map_threshold(alpha) for alpha in ALPHAS]
    assert np.isfinite(thresholds).all()


@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if variant != "as it is"])
def test_the_baselines_are_the_same_to_the_bit(detectors: dict[str, Path], variant: str) -> None:
    ours, theirs = (detectors[v] / "baselines" for v in ("as it is", variant))
    for baseline in ("intensity", "zscore"):
        for name in ("model.pt", "detector.json"):
            assert (ours / baseline / name).read_bytes() == (theirs / baseline / name).read_bytes()
        assert load_detector(ours / baseline).network.calibration.scores.numel() == 19
    assert load_detector(ours / "zscore").network.mean.std() > 0


@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if variant != "as it is"])
def test_the_description_differs_in_the_test_side_alone(detectors: dict[str, Path], variant: str) -> None:
    found = [json.loads((detectors[v] / "detector.json").read_text()) for v in ("as it is", variant)]
    tests = [description["training"]["split"]["sides"].pop("test") for description in found]
    assert found[0] == found[1]
    # the hashes are of the images: labels leave no trace in them
    assert (tests[0] == tests[1]) == (variant != "no test side")
    assert "label" not in json.dumps(found[0])
