"""How the DCAE and Deep SVDD are trained."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from monai_anomaly.losses import OneClassLoss, SoftBoundaryLoss, SquaredErrorLoss
from monai_anomaly.networks import DCAE, DeepSVDD

from .ddrid import fit_range, mean_latent, training_images
from .stages import StageTrainer, distributed

__all__ = ["DCAETrainer", "DeepSVDDTrainer"]


class DCAETrainer(StageTrainer):
    """An autoencoder on normal images: the DCAE's whole training, and Deep SVDD's first stage.

    Args:
        network: a detector with an ``autoencoder``.
        device: where the stage runs.
        max_epochs: epochs; 150 (DDR-ID, section 4.1).
        train_data_loader: batches with ``image`` (B, C, S, S).
        optimizer: of ``network.autoencoder``.
        loss_function: the sum of the squared error over an image's elements where None.
        options: further arguments of ``StageTrainer``; ``lr_schedulers``: 1e-4, then 1e-5 after 50 epochs (DDR-ID,
            section 4.1).
    """

    stage = "autoencoder"

    def __init__(
        self,
        network: DCAE | DeepSVDD,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: DataLoader,
        optimizer: Optimizer,
        loss_function: nn.Module | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            network,
            device,
            max_epochs,
            train_data_loader,
            {"optimizer": optimizer},
            **options,
        )
        self.detector = network
        self.module = distributed(network.autoencoder)
        self.optimizer = optimizer
        self.loss_function = loss_function or SquaredErrorLoss("sum")

    def prepare(self) -> None:
        """The range of the training images; see ``StageTrainer.prepare``."""
        fit_range(self, self.detector.normalisation)

    def training_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """See ``StageTrainer.training_step``."""
        self.network.train()
        x = self.detector.normalise(batch["image"])[0]
        with self.autocast():
            loss = self.loss_function(self.module(x)[0], x)
        self.optimise(self.optimizer, loss)
        return {"loss": loss}

    def validation_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """See ``StageTrainer.validation_loss``."""
        x = self.detector.normalise(batch["image"])[0]
        return self.loss_function(self.detector.autoencoder(x)[0], x)


class DeepSVDDTrainer(StageTrainer):
    """Deep SVDD's second stage: the encoder, started from the autoencoder's, draws the normals to the centre.

    Before the first epoch the encoder takes over the pretrained weights and the centre becomes its mean latent vector.

    Args:
        network: the detector, its autoencoder trained.
        device: where the stage runs.
        max_epochs: epochs of this stage; 100 (DDR-ID, section 4.1).
        train_data_loader: batches with ``image`` (B, C, S, S).
        optimizer: of ``network.encoder``.
        radius_interval: epochs between line searches for R, 5 (DDR-ID, section 4.1).
        warm_up_epochs: epochs with R = 0 before the first line search, 10 as in the published implementation.
        options: further arguments of ``StageTrainer``; ``lr_schedulers``: 1e-4, then 1e-5 after 50 epochs (DDR-ID,
            section 4.1).

    Raises:
        ValueError: if ``radius_interval`` is below one.
    """

    stage = "hypersphere"

    def __init__(
        self,
        network: DeepSVDD,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: DataLoader,
        optimizer: Optimizer,
        radius_interval: int = 5,
        warm_up_epochs: int = 10,
        **options: Any,
    ) -> None:
        if radius_interval < 1:
            raise ValueError(f"radius_interval is at least one epoch, got {radius_interval}")
        super().__init__(
            network,
            device,
            max_epochs,
            train_data_loader,
            {"optimizer": optimizer},
            **options,
        )
        self.detector = network
        self.encoder = distributed(network.encoder)
        self.optimizer = optimizer
        self.radius_interval, self.warm_up_epochs = radius_interval, warm_up_epochs
        self.one_class, self.soft_boundary = OneClassLoss(), SoftBoundaryLoss(network.nu)

    def prepare(self) -> None:
        """The encoder's start and the centre; see ``StageTrainer.prepare``."""
        detector = self.detector
        detector.encoder.load_state_dict(detector.autoencoder.encoder.state_dict())
        self.network.eval()
        latent = (detector.encoder(detector.normalise(image)[0]) for image in training_images(self))
        detector.centre.copy_(mean_latent(latent, detector.centre_margin))
        detector.radius.zero_()

    def epoch_completed(self, epoch: int) -> None:
        """The line search for R; see ``StageTrainer.epoch_completed``."""
        due = epoch >= self.warm_up_epochs and (epoch - self.warm_up_epochs) % self.radius_interval == 0
        if not (self.detector.soft_boundary and due):
            return
        self.network.eval()
        with torch.no_grad():
            distances = [
                self.detector.squared_distance(self.detector.normalise(image)[0]) for image in training_images(self)
            ]
        self.detector.set_radius(_gathered(torch.cat(distances)))

    def training_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """See ``StageTrainer.training_step``."""
        self.network.train()
        x = self.detector.normalise(batch["image"])[0]
        with self.autocast():
            loss = self._objective(self.encoder(x))
        self.optimise(self.optimizer, loss)
        return {"loss": loss}

    def validation_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """See ``StageTrainer.validation_loss``."""
        return self._objective(self.detector.encoder(self.detector.normalise(batch["image"])[0]))

    def _objective(self, z: Tensor) -> Tensor:
        if self.detector.soft_boundary:
            return self.soft_boundary(z, self.detector.centre, self.detector.radius)
        return self.one_class(z, self.detector.centre)


def _gathered(values: Tensor) -> Tensor:
    """The values of all processes, in one tensor."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return values
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, values.cpu())
    return torch.cat(parts).to(values.device)
