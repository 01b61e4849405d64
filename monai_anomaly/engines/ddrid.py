"""How DDR-ID is trained: two autoencoders, then both of them finetuned together (Algorithm 1)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from monai_anomaly.losses import DDRIDLoss, SquaredErrorLoss
from monai_anomaly.networks import DDRID
from monai_anomaly.networks.blocks import ContrastNormalization

from .stages import StageTrainer, distributed, sum_over_processes

__all__ = ["DDRIDPretrainer", "DDRIDTrainer"]


class DDRIDPretrainer(StageTrainer):
    """First stage: R_C and R_N each as an autoencoder (Eq. 1, 2).

    Before the first epoch the range of the contrast-normalised training images is found.

    Args:
        network: the detector.
        device: where the stage runs.
        max_epochs: epochs of this stage; 150 in the paper (section 4.1), 100 on GTSRB (section 4.4).
        train_data_loader: batches with ``image`` (B, C, S, S).
        optimizer: of both networks; Adam in the paper (section 4.1).
        loss_function: of Eq. 1 and 2; the sum over an image's elements, as printed, where None.
        options: further arguments of ``StageTrainer``; ``lr_schedulers``: 1e-4, then 1e-5 after 50 epochs in the paper
            (section 4.1).
    """

    stage = "pretraining"

    def __init__(
        self,
        network: DDRID,
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
        self.class_network = distributed(network.class_network)
        self.residual_network = distributed(network.residual_network)
        self.optimizer = optimizer
        self.loss_function = loss_function or SquaredErrorLoss("sum")

    def prepare(self) -> None:
        """The range of the training images; see ``StageTrainer.prepare``."""
        fit_range(self, self.detector.normalisation)

    def training_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """See ``StageTrainer.training_step``; ``loss`` and ``error`` are Eq. 1 + Eq. 2."""
        self.network.train()
        x = self.detector.normalise(batch["image"])[0]
        with self.autocast():
            loss = self.loss_function(self.class_network(x)[0], x) + self.loss_function(self.residual_network(x)[0], x)
        self.optimise(self.optimizer, loss)
        return {"loss": loss}

    def validation_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """See ``StageTrainer.validation_loss``."""
        x = self.detector.normalise(batch["image"])[0]
        networks = (self.detector.class_network, self.detector.residual_network)
        first, second = (self.loss_function(network(x)[0], x) for network in networks)
        return first + second


class DDRIDTrainer(StageTrainer):
    """Second stage: finetuning by Eq. 3 to 6 against D_L, with Z_C fixed (Algorithm 1).

    Before the first epoch Z_C becomes the mean latent vector of the training images.

    Args:
        network: the detector, its first stage done.
        discriminator: D_L, from latent vectors (B, D) to logits (B, 1).
        device: where the stage runs.
        max_epochs: epochs of this stage; 100 in the paper (section 4.1), 450 on GTSRB (section 4.4).
        train_data_loader: batches with ``image`` (B, C, S, S).
        optimizer: of R_C and R_N.
        discriminator_optimizer: of D_L.
        loss_function: Eq. 3 to 6.
        options: further arguments of ``StageTrainer``.

    Notes:
        A last batch of one image has no batch statistics for D_L's normalisation: its running ones serve there.
    """

    stage = "finetuning"

    def __init__(
        self,
        network: DDRID,
        discriminator: nn.Module,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: DataLoader,
        optimizer: Optimizer,
        discriminator_optimizer: Optimizer,
        loss_function: DDRIDLoss | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            network,
            device,
            max_epochs,
            train_data_loader,
            {"optimizer": optimizer, "discriminator_optimizer": discriminator_optimizer},
            modules={"discriminator": discriminator},
            **options,
        )
        self.detector = network
        self.class_network = distributed(network.class_network)
        self.residual_network = distributed(network.residual_network)
        self.bare_discriminator = discriminator
        self.discriminator = distributed(discriminator)
        self.optimizer, self.discriminator_optimizer = optimizer, discriminator_optimizer
        self.loss_function = loss_function or DDRIDLoss()

    def prepare(self) -> None:
        """Z_C (section 3.2.1); see ``StageTrainer.prepare``."""
        self.network.eval()
        detector = self.detector
        latent = (detector.class_network.encoder(detector.normalise(image)[0]) for image in training_images(self))
        detector.centre.copy_(mean_latent(latent, detector.centre_margin))

    def training_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """See ``StageTrainer.training_step``; ``error`` is Eq. 3 + Eq. 5."""
        self.network.train()
        x, centre = self.detector.normalise(batch["image"])[0], self.detector.centre
        with self.autocast():
            component, z = self.class_network(x)
            residual = self.residual_network(x)[0]
        self.bare_discriminator.train(len(x) > 1).requires_grad_(True)
        with self.autocast():
            d_loss = self.loss_function.discriminator(self.discriminator, z, centre)
        self.optimise(self.discriminator_optimizer, d_loss)
        self.bare_discriminator.requires_grad_(False)
        with self.autocast():
            terms = self.loss_function(self.bare_discriminator, x, (component, residual), z, centre)
        self.optimise(self.optimizer, terms["loss"])
        return {"loss": terms["loss"], "error": terms["error"]}

    def validation_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """See ``StageTrainer.validation_loss``: Eq. 3 + Eq. 5."""
        x = self.detector.normalise(batch["image"])[0]
        component, z = self.detector.class_network(x)
        residual = self.detector.residual_network(x)[0]
        one_class = self.loss_function.one_class(z, self.detector.centre)
        return one_class + self.loss_function.reconstruction(x, (component, residual))


def training_images(trainer: StageTrainer) -> Iterator[Tensor]:
    """The images that a stage trains on, once, on its device; this process's share of them."""
    loader: Any = trainer.data_loader
    for batch in loader:
        yield trainer.to_device(batch)["image"]


def fit_range(trainer: StageTrainer, normalisation: ContrastNormalization) -> None:
    """Fit the range of the training images where the normalisation needs one."""
    if normalisation.rescale == "training":
        normalisation.fit(training_images(trainer))


@torch.no_grad()
def mean_latent(latent: Iterator[Tensor], margin: float) -> Tensor:
    """The mean of latent vectors over all batches and processes, kept away from 0.

    Args:
        latent: batches of shape (B, D).
        margin: coordinates nearer to 0 than this are moved that far from it, to the side that they are on.

    Returns:
        Shape (D,).
    """
    total: Tensor | float = 0.0
    for z in latent:
        # the last entry counts the vectors
        total = total + torch.cat([z.double().sum(dim=0), z.new_tensor([len(z)], dtype=torch.float64)])
    assert isinstance(total, Tensor)  # a data loader is never empty
    total = sum_over_processes(total)
    mean = (total[:-1] / total[-1]).float()
    moved = torch.where(mean < 0, -margin, margin).to(mean)
    return torch.where(mean.abs() < margin, moved, mean)
