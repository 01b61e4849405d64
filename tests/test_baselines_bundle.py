"""Every baseline through the bundle: trained or fitted, calibrated, written, loaded and run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundle_runs import BUNDLES, detect, figures_of, run_bundle, table

from monai_anomaly.engines import load_detector

pytest_plugins = ["bundle_fixtures"]
BUNDLE = BUNDLES / "baselines"
SMALL: dict[str, Any] = {"image_size": [32, 32], "max_epochs": 1, "batch_size": 8, "num_workers": 1, "progress": False}
NARROW = {"network_def#channels": [4, 8]}
BASELINES: dict[str, tuple[str, dict[str, Any]]] = {
    "autoencoder_skip": ("Autoencoder", NARROW),
    "memae": ("MemAE", {**NARROW, "network_def#decoder_channels": [4], "network_def#num_items": 10}),
    "ganomaly": (
        "GANomaly",
        {"network_def#channels": 2, "discriminator#channels": 2, "network_def#latent_channels": 4},
    ),
    "intensity": ("IntensityThreshold", {}),
    "zscore": ("ZScore", {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("override_config", BASELINES)
def test_each_baseline_goes_from_scans_to_maps(override_config: str, tiny_cohort: Path, tmp_path: Path) -> None:
    name, options = BASELINES[override_config]
    trained, found = tmp_path / "trained", tmp_path / "found"
    run_bundle(["train", override_config], trained, tiny_cohort, BUNDLE, **{**SMALL, **options})
    network = load_detector(trained / "models").network
    assert type(network).__name__ == name
    assert network.calibration.scores.numel() == 19
    untrained = override_config in ("intensity", "zscore")
    assert (trained / "training" / "losses.csv").is_file() != untrained
    if override_config == "zscore":
        assert float(network.mean.max()) > 0.2
        assert float(network.std.max()) < 1.0
    detect(trained, found, tiny_cohort, "evaluate" if untrained else "inference", report=False)
    scores = np.array([float(row["anomaly_score"]) for row in table(found / "predictions.csv")])
    assert len(scores) == 5
    assert np.isfinite(scores).all()
    if untrained:  # the lesions are bright, and nothing has to be learnt to see them
        assert figures_of(found).where(level="pixel", metric="auroc")[0].value > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("override_config", ["zscore", "autoencoder_skip"])
def test_volumes_go_whole(override_config: str, tiny_cohort: Path, tmp_path: Path) -> None:
    name, options = BASELINES[override_config]
    small = {**SMALL, "image_size": [16, 16, 16], "spacing": 4.0, **options}
    run_bundle(["train", "volumes", override_config], tmp_path, tiny_cohort, BUNDLE, **small)
    network = load_detector(tmp_path / "models").network
    assert (type(network).__name__, network.spatial_dims) == (name, 3)
    with torch.no_grad():
        assert network(torch.rand(1, 1, 16, 16, 16)).shape == (1, 1, 16, 16, 16)
