"""The baselines that every training leaves for its evaluations: fitted on what, where they are, when there is none."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_runs import figures_of, table

from monai_anomaly.data import Cohort
from monai_anomaly.engines import DetectorTraining, TrainingData, fit_baselines, load_baselines, load_detector
from monai_anomaly.exceptions import InputError
from monai_anomaly.networks import AnomalyDetector, IntensityThreshold, ZScore

pytest_plugins = ["bundle_fixtures"]
SIZE = (16, 12)


def items(folder: Path, slices: int, seeds: range) -> list[dict[str, Any]]:
    """Small scans of a bright box with texture."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for seed in seeds:
        volume = np.zeros((*SIZE, slices), dtype=np.float32)
        volume[2:14, 2:10] = 500 + 100 * np.random.default_rng(seed).random((12, 8, slices))
        path = folder / f"{seed}.nii.gz"
        nib.save(nib.Nifti1Image(volume, np.eye(4)), path)
        found.append({"image": str(path), "case": str(seed), "patient": str(seed), "label": 0, "mask": None})
    return found


def train(
    network: AnomalyDetector, folder: Path, scans: int = 3, slices: int = 3, first: int = 0, **options: Any
) -> TrainingData:
    size = SIZE if network.spatial_dims == 2 else (*SIZE, 4)
    training = items(folder / "scans", slices, range(first, first + scans))
    calibration = items(folder / "scans", slices, range(100, 102))
    cohort = Cohort(folder, training, calibration, [])
    data = TrainingData(cohort, image_size=size, spacing=1.0, progress=False)
    DetectorTraining(network, [], data, folder, progress=False, **options).run()
    return data


def baselines(models: Path) -> dict[str, AnomalyDetector]:
    return load_baselines(models, load_detector(models))


def images(data: TrainingData) -> np.ndarray:
    return torch.cat(list(data.train_dataset.scans())).double().numpy()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("volume_score", ["standardised", "maximum"])
def test_it_is_the_detector_that_a_training_of_its_own_gives(tmp_path: Path, dims: int, volume_score: str) -> None:
    data = train(IntensityThreshold(dims), tmp_path / "one", volume_score=volume_score)
    baseline = baselines(tmp_path / "one" / "models")["z-score"]
    assert isinstance(baseline, ZScore)
    assert not baseline.training
    np.testing.assert_allclose(baseline.mean.numpy(), images(data).mean(axis=0), rtol=1e-5, atol=1e-7)
    spread = images(data).std(axis=0, ddof=1).clip(min=0.05)
    np.testing.assert_allclose(baseline.std.numpy(), spread, rtol=1e-4)
    own = ZScore(dims, 1, data.preprocessing.config["image_size"])
    train(own, tmp_path / "two", volume_score=volume_score)
    other = own.state_dict()
    assert baseline.calibration.scores.numel() == 2
    assert all(torch.equal(baseline.state_dict()[key], other[key]) for key in other)
    # a z-score beside itself would be one row twice
    assert {path.name for path in (tmp_path / "two" / "models" / "baselines").iterdir()} == {"intensity"}
    assert list(baselines(tmp_path / "two" / "models")) == ["intensity threshold"]


def test_it_gives_the_same_again_and_leaves_the_detector_alone(tmp_path: Path) -> None:
    data = train(IntensityThreshold(), tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "models").rglob("*") if path.is_file()}
    assert len(before) == 4
    calibration = data.cohort.calibration
    fit_baselines(
        tmp_path / "models", IntensityThreshold(), data.train_dataset, data.preprocessing, calibration, progress=False
    )
    assert before == {path: path.read_bytes() for path in before}


def test_one_training_picture_gives_none_and_says_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    models = tmp_path / "models"
    train(IntensityThreshold(), tmp_path)
    assert list(baselines(models)) == ["z-score"]
    assert not [record for record in caplog.records if "z-score" in record.message]
    with caplog.at_level(logging.WARNING):
        train(IntensityThreshold(), tmp_path, scans=1, slices=1, first=50)
    (line,) = [record.message for record in caplog.records if "z-score" in record.message]
    assert line.endswith("a standard deviation needs two training images or more, got 1")
    assert "\n" not in line
    # nor is the one of the other normals, trained before into the same folder, left to be taken for this one's
    assert list(baselines(models)) == []
    assert load_detector(models).description["calibration_patients"] == 2


def test_folders_without_it_and_with_another_trainings(tmp_path: Path) -> None:
    train(IntensityThreshold(), tmp_path / "a")
    models = tmp_path / "a" / "models"
    shutil.copytree(models, tmp_path / "old", ignore=shutil.ignore_patterns("baselines"))
    assert list(baselines(tmp_path / "old")) == []
    described = models / "detector.json"
    content = json.loads(described.read_text())
    content["preprocessing"]["spacing"] = 2.0
    described.write_text(json.dumps(content))
    with pytest.raises(InputError, match="zscore: is of scans that were prepared otherwise"):
        baselines(models)


@pytest.mark.slow
def test_it_stands_in_every_table_of_an_evaluation(evaluated: Path) -> None:
    figures = figures_of(evaluated)
    kinds = json.loads((evaluated / "metrics.json").read_text())["settings"]["detectors"]
    assert {name for name, kind in kinds.items() if kind == "baseline"} == {"intensity threshold", "z-score"}
    for key in ("num_regions", "prevalence"):
        assert figures.value("z-score", "pixel", key) == figures.value("ProxyAno", "pixel", key)
    rows = {(row["level"], row["metric"]) for row in table(evaluated / "metrics.csv") if row["detector"] == "z-score"}
    assert rows >= {(level, name) for level in ("image", "patient", "pixel") for name in ("auroc", "ap")}
    assert "z-score" in (evaluated / "report.html").read_text()
