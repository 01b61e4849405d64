"""How GANomaly is trained: S. Akcay et al., ACCV 2018, section 3."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from monai_anomaly.losses import GANomalyLoss
from monai_anomaly.networks import GANomaly, GANomalyDiscriminator
from monai_anomaly.networks.nets.ganomaly import start_weights

from .stages import StageTrainer, distributed, sum_over_processes

__all__ = ["GANomalyTrainer"]


class GANomalyTrainer(StageTrainer):
    """The discriminator's step, then the generator's (Eq. 4), for each batch.

    Args:
        network: the detector.
        discriminator: D, of the same ``image_size`` and channels.
        device: where the stage runs.
        max_epochs: epochs; 15 (section 4).
        train_data_loader: batches with ``image`` (B, C, *spatial).
        optimizer: of ``network.generator``; Adam at 0.0002 with betas (0.5, 0.999) (section 4).
        discriminator_optimizer: of the discriminator; the same.
        loss_function: Eq. 1 to 4.
        restart_below: D starts anew when its loss of images or of reconstructions falls below this in a step, as in the
            published implementation; the paper does not mention it. 0 never does.
        options: further arguments of ``StageTrainer``.
    """

    stage = "adversarial reconstruction"

    def __init__(
        self,
        network: GANomaly,
        discriminator: GANomalyDiscriminator,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: DataLoader,
        optimizer: Optimizer,
        discriminator_optimizer: Optimizer,
        loss_function: GANomalyLoss | None = None,
        restart_below: float = 1e-5,
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
        self.generator = distributed(network.generator)
        self.bare_discriminator = discriminator
        self.discriminator = distributed(discriminator)
        self.optimizer, self.discriminator_optimizer = optimizer, discriminator_optimizer
        self.loss_function = loss_function or GANomalyLoss()
        self.restart_below = restart_below

    def training_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """See ``StageTrainer.training_step``; ``error`` is L_con (Eq. 2)."""
        x = self.detector.normalise(batch["image"])
        self.network.train()
        self.bare_discriminator.train().requires_grad_(True)
        with self.autocast():
            x_hat, z, z_hat = self.generator(x)
            real, fake = self.discriminator(x)[0], self.discriminator(x_hat.detach())[0]
            d_loss = self.loss_function.discriminator(real, fake)
        self.optimise(self.discriminator_optimizer, d_loss)
        self.bare_discriminator.requires_grad_(False)
        with self.autocast():
            fake_logits, fake_features = self.bare_discriminator(x_hat)
            real_features = self.bare_discriminator(x)[1]
            terms = self.loss_function(x, x_hat, z, z_hat, real_features, fake_features, fake_logits)
        self.optimise(self.optimizer, terms["loss"])
        self._restart_where_won(real.detach(), fake.detach())
        return {"loss": terms["loss"], "error": terms["con"]}

    def _restart_where_won(self, real: Tensor, fake: Tensor) -> None:
        if self.restart_below <= 0:
            return
        losses = torch.stack([F.softplus(-real.float()).mean(), F.softplus(fake.float()).mean()])
        if float(sum_over_processes(losses).min()) >= self.restart_below:
            return
        self.bare_discriminator.apply(start_weights)
        if dist.is_available() and dist.is_initialized():
            for parameter in self.bare_discriminator.parameters():
                dist.broadcast(parameter.data, 0)

    def validation_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """See ``StageTrainer.validation_loss``: L_con (Eq. 2)."""
        x = self.detector.normalise(batch["image"])
        return self.loss_function.contextual(x, self.detector.generator(x)[0])
