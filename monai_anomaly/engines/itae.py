"""How ITAE is trained: one stage, in which the network restores normal images from erased versions of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from monai_anomaly.losses import RestorationLoss
from monai_anomaly.networks import ITAE
from monai_anomaly.networks.blocks import ResNet34Encoder

from .stages import StageTrainer, distributed

__all__ = ["HalvingLR", "ITAETrainer"]


class HalvingLR(LRScheduler):
    """Half the learning rate after every ``every`` epochs, which need not be a whole number (section 4.1.1: 50 / T).

    Args:
        optimizer: whose learning rates are the first ones.
        every: epochs; the rate of epoch n (from 0) is the first one times ``0.5 ** floor(n / every)``.

    Raises:
        ValueError: if ``every`` is not positive.
    """

    def __init__(self, optimizer: Optimizer, every: float) -> None:
        if every <= 0:
            raise ValueError(f"a learning rate is halved after a positive number of epochs, got {every}")
        self.every = float(every)
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """The rates of the epoch that begins."""
        halvings = int(self.last_epoch / self.every + 1e-9)  # 50 / (50 / 3) is 3, and a little less in floats
        return [rate * 0.5**halvings for rate in self.base_lrs]


class ITAETrainer(StageTrainer):
    """The stage of ITAE: Eq. 2.

    Args:
        network: the detector.
        device: where the stage runs.
        max_epochs: 500 / T in the paper (section 4.1.1).
        train_data_loader: batches with ``image`` (B, C, *spatial) in [0, 1].
        optimizer: of ``network.autoencoder``; SGD at 0.1 with PyTorch's defaults in the paper (section 4.1.1).
        loss_function: of Eq. 2.
        versions_per_step: ``"all"``: each step restores all T versions of its images; ``"one"``: one version of each
            image, drawn at random. The paper trains for 500 / T epochs, so an epoch stands for T passes: all.
        encoder_weights: file that a ``resnet34`` starts from (see ``ResNet34Encoder.load_weights``), or None.
        options: further arguments of ``StageTrainer``; ``lr_schedulers``: stepped after every epoch; ``HalvingLR`` in
            the paper.

    Raises:
        ValueError: for another ``versions_per_step``, or weights for an encoder other than ``resnet34``.
    """

    stage = "restoration"

    def __init__(
        self,
        network: ITAE,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: DataLoader,
        optimizer: Optimizer,
        loss_function: nn.Module | None = None,
        versions_per_step: str = "all",
        encoder_weights: str | None = None,
        **options: Any,
    ) -> None:
        if versions_per_step not in ("all", "one"):
            raise ValueError(f"versions_per_step is 'all' or 'one', got {versions_per_step!r}")
        if encoder_weights is not None and not isinstance(network.autoencoder.encoder, ResNet34Encoder):
            raise ValueError("encoder_weights are of a network with encoder 'resnet34'")
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
        self.loss_function = loss_function or RestorationLoss()
        self.all_versions = versions_per_step == "all"
        self.encoder_weights = encoder_weights

    def prepare(self) -> None:
        """Load the encoder's first weights."""
        if self.encoder_weights is not None:
            encoder = self.detector.autoencoder.encoder
            assert isinstance(encoder, ResNet34Encoder)
            encoder.load_weights(self.encoder_weights)

    def training_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """See ``StageTrainer.training_step``."""
        self.network.train()
        image = batch["image"]
        x = self.detector.to_network(image)
        if self.all_versions:
            erased, repeats = self.detector.erase(x), self.detector.num_versions
        else:
            # Drawn on the CPU, whose generator every epoch seeds, so that all devices see the same.
            versions = torch.randint(self.detector.num_versions, (len(x),)).tolist()
            erased = torch.cat([self.detector.erasing(x[i : i + 1], version) for i, version in enumerate(versions)])
            repeats = 1
        with self.autocast():
            restored = self.module(erased)
            loss = self._loss(restored, image, repeats)
        self.optimise(self.optimizer, loss)
        return {"loss": loss}

    def validation_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """See ``StageTrainer.validation_loss``: Eq. 2 over all versions."""
        erased = self.detector.erase(self.detector.to_network(batch["image"]))
        return self._loss(self.detector.autoencoder(erased), batch["image"], self.detector.num_versions)

    def _loss(self, restored: Tensor, image: Tensor, repeats: int) -> Tensor:
        """Eq. 2: the target is the image itself, for every erased version of it."""
        target = torch.cat([2.0 * image - 1.0] * repeats)
        return self.loss_function(self.detector.crop(restored, image).float(), target)
