"""ReconstructionTrainer: its objective, that it learns, that a stopped run goes on to the same weights, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from monai_anomaly.engines import ReconstructionTrainer, train_stages
from monai_anomaly.losses import SquaredErrorLoss
from monai_anomaly.networks import AnomalyDetector, AnomalyOutput, Autoencoder, MemAE, ZScore

DETECTORS: dict[str, tuple[type[AnomalyDetector], dict[str, Any]]] = {
    "plain": (Autoencoder, {"channels": (4, 8), "latent_channels": 4}),
    "skip and memory": (
        Autoencoder,
        {"channels": (4, 8), "latent_channels": 4, "skip": True, "memory": "shrinkage", "num_items": 10},
    ),
    "MemAE": (MemAE, {"channels": (4, 8), "num_items": 10, "entropy_weight": 0.01}),
}


def loader(count: int = 10, seed: int = 0) -> DataLoader:
    """Small images that differ in a slope."""
    random = torch.Generator().manual_seed(seed)
    ramp = torch.linspace(0, 1, 16)[:, None] * torch.linspace(0.3, 1, 16)
    images = [ramp[None] * torch.rand(1, 1, 1, generator=random) for _ in range(count)]
    return DataLoader([{"image": image} for image in images], batch_size=4, shuffle=True)


class Run:
    """A detector and its trainer, small."""

    def __init__(self, name: str, epochs: int = 6, schedule: bool = False, **options: Any) -> None:
        torch.manual_seed(0)
        kind, kwargs = DETECTORS[name]
        self.network = kind(**kwargs)
        optimizer = torch.optim.Adam(self.network.parameters(), lr=0.01)
        schedulers = [torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)] if schedule else []
        self.trainer = ReconstructionTrainer(
            self.network,
            "cpu",
            epochs,
            loader(),
            optimizer,
            val_data_loader=loader(3, 1),
            lr_schedulers=schedulers,
            **options,
        )

    def go(self, folder: Path) -> list[dict[str, Any]]:
        return train_stages([self.trainer], self.network, folder, seed=3, progress=False)


@pytest.mark.parametrize("name", DETECTORS)
def test_training_lowers_the_error(name: str, tmp_path: Path) -> None:
    history = Run(name, 9).go(tmp_path)
    assert {row["stage"] for row in history} == {"reconstruction"}
    assert history[-1]["train_loss"] < 0.7 * history[0]["train_loss"]
    assert history[-1]["val_loss"] < history[0]["val_loss"]


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_a_stopped_run_goes_on_to_the_same_weights(name: str, tmp_path: Path) -> None:
    whole = Run(name, 5, schedule=True)
    expected = whole.go(tmp_path / "whole")
    Run(name, 3, schedule=True).go(tmp_path / "parts")
    resumed = Run(name, 5, schedule=True)
    assert resumed.go(tmp_path / "parts") == expected
    for key, value in resumed.network.state_dict().items():
        assert torch.equal(value, whole.network.state_dict()[key]), key
    assert resumed.trainer.optimizer.param_groups[0]["lr"] == 0.01 * 0.5**2


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_objective_is_the_error_and_what_the_detector_adds(reduction: str) -> None:
    run = Run("MemAE", loss_function=SquaredErrorLoss(reduction))
    batch = {"image": torch.rand(3, 1, 16, 16)}
    with torch.no_grad():
        restored, auxiliary = run.network.train().reconstruct(batch["image"])
    losses = run.trainer.training_step(batch)
    squared = (restored - batch["image"]).double().square()
    error = float(squared.mean() if reduction == "mean" else squared.sum() / 3)
    assert float(auxiliary) > 0
    assert losses["error"].item() == pytest.approx(error, rel=1e-5)
    assert losses["loss"].item() == pytest.approx(error + float(auxiliary), rel=1e-5)


def test_the_validation_loss_is_the_error_in_eval_mode() -> None:
    run = Run("plain")
    images = [item["image"] for item in run.trainer.val_data_loader.dataset]
    value = run.trainer.mean_validation_loss()
    assert not run.network.training
    with torch.no_grad():
        restored = run.network.reconstruct(torch.stack(images))[0]
    assert value == pytest.approx(float((restored - torch.stack(images)).square().mean()), rel=1e-5)


class Scaled(AnomalyDetector):
    """Reconstructs without an auxiliary loss."""

    def __init__(self) -> None:
        super().__init__(2, 1)
        self.factor = nn.Parameter(torch.tensor(0.0))

    def reconstruct(self, image: Tensor) -> Tensor:
        return self.factor * image

    def detect(self, image: Tensor) -> AnomalyOutput:
        anomaly_map = (image - self.reconstruct(image)).abs()
        return AnomalyOutput(anomaly_map, anomaly_map.flatten(1).mean(dim=1), None)


def test_a_reconstruction_alone_will_do(tmp_path: Path) -> None:
    network = Scaled()
    trainer = ReconstructionTrainer(network, "cpu", 9, loader(), torch.optim.SGD(network.parameters(), lr=3.0))
    train_stages([trainer], network, tmp_path, progress=False)
    assert float(network.factor.detach()) == pytest.approx(1.0, abs=0.02)


def test_a_detector_that_does_not_reconstruct_is_refused() -> None:
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))])
    with pytest.raises(ValueError, match="ZScore has no method reconstruct"):
        ReconstructionTrainer(ZScore(image_size=(8, 8)), "cpu", 1, loader(), optimizer)
