"""A method of another distribution: a network, a trainer, a bundle, an entry point, and no change to this package."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from bundle_runs import BUNDLES, command, figures_of, table

pytest_plugins = ["bundle_fixtures"]

NETWORK = '''
import torch
from monai.networks.blocks import Convolution
from torch import Tensor

from monai_anomaly.networks import AnomalyDetector, AnomalyOutput


class Smoother(AnomalyDetector):
    """One convolution that learns to give the image back."""

    def __init__(self, spatial_dims: int = 2, in_channels: int = 1, kernel_size: int = 5) -> None:
        super().__init__(spatial_dims, in_channels)
        self.convolution = Convolution(spatial_dims, in_channels, in_channels, kernel_size=kernel_size, conv_only=True)

    def detect(self, image: Tensor) -> AnomalyOutput:
        self.check_input(image)
        restored = self.convolution(image)
        anomaly_map = (image - restored).abs().mean(dim=1, keepdim=True)
        return AnomalyOutput(anomaly_map, anomaly_map.flatten(1).amax(1), restored)
'''
TRAINER = '''
from monai_anomaly.engines import StageTrainer


class SmootherTrainer(StageTrainer):
    """Least squares."""

    stage = "smoothing"

    def __init__(self, network, device, max_epochs, train_data_loader, optimizer, **options):
        super().__init__(network, device, max_epochs, train_data_loader, {"optimizer": optimizer}, **options)
        self.optimizer = optimizer

    def training_step(self, batch):
        loss = self.validation_loss(batch)
        self.optimise(self.optimizer, loss)
        return {"loss": loss}

    def validation_loss(self, batch):
        return ((self.network.convolution(batch["image"]) - batch["image"]) ** 2).mean()
'''


@pytest.fixture
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as an installed distribution has it, and the method's bundle."""
    root = tmp_path_factory.mktemp("outside")
    package, info = root / "outside_method", root / "outside_method-1.0.dist-info"
    package.mkdir()
    info.mkdir()
    (package / "__init__.py").write_text("")
    (package / "network.py").write_text(NETWORK)
    (package / "trainer.py").write_text(TRAINER)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-method\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[monai_anomaly.detectors]\nSmoother = outside_method.network:Smoother\n")
    bundle = root / "bundle"
    (bundle / "configs").mkdir(parents=True)
    for name in ("train.yaml", "inference.yaml", "evaluate.yaml", "metadata.json", "logging.conf"):
        shutil.copy(BUNDLES / "baselines" / "configs" / name, bundle / "configs" / name)
    network = {
        "_target_": "outside_method.network.Smoother",
        "spatial_dims": 2,
        "in_channels": "@in_channels",
        "kernel_size": 5,
    }
    for name, key in (("train.yaml", "network_def"), ("inference.yaml", "definition"), ("evaluate.yaml", "definition")):
        path = bundle / "configs" / name
        content = yaml.safe_load(path.read_text())
        content[key] = network if key == "network_def" else {**network, "_mode_": "callable"}
        if name == "train.yaml":
            trainer = content["train"]["trainer"]
            del trainer["loss_function"], content["train"]["loss_function"]
            trainer["_target_"] = "outside_method.trainer.SmootherTrainer"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
    return root


# What a second process does, which has not trained: it finds the detector by its entry point.
PROGRAM = """
import json, sys
import monai.bundle
from monai_anomaly.__main__ import main
runs, arguments = json.loads(sys.argv[1])
for run in runs:
    monai.bundle.run(**run, logging_file=False)
sys.exit(main(arguments))
"""


@pytest.mark.slow
def test_a_method_from_outside_trains_infers_is_evaluated_and_benchmarked(
    outside: Path, tiny_cohort: Path, tmp_path: Path
) -> None:
    bundle, out = outside / "bundle", tmp_path / "out"
    path = f"{outside}:{BUNDLES.parent}"
    common = {"bundle_root": str(bundle), "dataset_dir": str(tiny_cohort), "output_dir": str(out), "progress": False}
    done = command(
        *("-m", "monai.bundle", "run", "--config_file", bundle / "configs" / "train.yaml"),
        *(f"--{name}={value}" for name, value in common.items()),
        *("--image_size", "[32,32]", "--max_epochs", "2", "--batch_size", "8"),
        folder=tmp_path,
        PYTHONPATH=path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    suite = {
        "title": "Outside",
        "methods": ["smoother"],
        "extra_methods": {
            "smoother": {"title": "Smoother", "bundle": "bundle", "scales": {"smoke": {"max_epochs": 1}}}
        },
        "sets": {"digits": {"image_size": [32, 32], "problems": {"smoke": ["8"]}}},
        "scales": {"smoke": {"train_limit": 40, "test_limit": 40, "resamples": 20, "shown": 2}},
    }
    (outside / "suite.yaml").write_text(yaml.safe_dump(suite))
    runs = [
        {**common, "config_file": str(bundle / "configs" / f"{config}.yaml"), "overview_slices": 0}
        for config in ("inference", "evaluate")
    ]
    benchmark = ["benchmark", "--suite", str(outside / "suite.yaml"), "--scale", "smoke", "--device", "cpu"]
    benchmark += ["--no-progress", "--out", str(tmp_path)]
    done = command("-c", PROGRAM, json.dumps([runs, benchmark]), folder=tmp_path, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr[-3000:]
    described = json.loads((out / "models" / "detector.json").read_text())
    assert described["network"] == {
        "name": "Smoother",
        "arguments": {"spatial_dims": 2, "in_channels": 1, "kernel_size": 5},
    }
    assert len(table(out / "predictions.csv")) == 5
    assert figures_of(out).value("Smoother", "pixel", "auroc") is not None
    assert "Smoother" in (out / "report.html").read_text()
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    (own,) = [row for row in rows if row["method"] == "smoother"]
    assert 0 <= own["metrics"]["image"]["auroc"] <= 1
