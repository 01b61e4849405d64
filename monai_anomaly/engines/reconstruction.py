"""How a detector that reconstructs its input is trained."""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from monai_anomaly.losses import SquaredErrorLoss
from monai_anomaly.networks import AnomalyDetector

from .stages import StageTrainer, distributed

__all__ = ["Reconstruction", "ReconstructionTrainer"]


class _Reconstructs(Protocol):
    def reconstruct(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]: ...


class Reconstruction(nn.Module):
    """``network.reconstruct`` as a module's forward, which is what averages gradients over processes."""

    def __init__(self, network: AnomalyDetector) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        output = cast(_Reconstructs, self.network).reconstruct(image)
        if isinstance(output, Tensor):
            return output, torch.zeros((), device=output.device)
        return output


class ReconstructionTrainer(StageTrainer):
    """Reconstruct normal images: the error, and what the detector adds to it.

    Args:
        network: a detector with ``reconstruct(image)``, which gives the reconstruction in the image's shape and range,
            alone or with an auxiliary loss (a scalar, weighted) that is added to the error.
        device: where the stage runs.
        max_epochs: epochs.
        train_data_loader: batches with ``image`` (B, C, *spatial).
        optimizer: of the detector's parameters.
        loss_function: error of reconstruction and image; the mean squared error where None.
        options: further arguments of ``StageTrainer``.

    Raises:
        ValueError: if the detector does not reconstruct.
    """

    stage = "reconstruction"

    def __init__(
        self,
        network: AnomalyDetector,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: DataLoader,
        optimizer: Optimizer,
        loss_function: nn.Module | None = None,
        **options: Any,
    ) -> None:
        if not callable(getattr(network, "reconstruct", None)):
            raise ValueError(f"{type(network).__name__} has no method reconstruct(image)")
        super().__init__(
            network,
            device,
            max_epochs,
            train_data_loader,
            {"optimizer": optimizer},
            **options,
        )
        self.bare = Reconstruction(network)
        self.module = distributed(self.bare)
        self.optimizer = optimizer
        self.loss_function = loss_function or SquaredErrorLoss()

    def training_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """See ``StageTrainer.training_step``."""
        image = batch["image"]
        self.network.train()
        with self.autocast():
            restored, auxiliary = self.module(image)
            error = self.loss_function(restored, image)
            loss = error + auxiliary
        self.optimise(self.optimizer, loss)
        return {"loss": loss, "error": error}

    def validation_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """See ``StageTrainer.validation_loss``: the error alone."""
        return self.loss_function(self.bare(batch["image"])[0], batch["image"])
