"""How DAAD and DAAD+ are trained: one stage, the generator against the discriminator where there is one."""

from __future__ import annotations

from typing import Any

import torch
from monai.utils import convert_to_tensor
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from monai_anomaly.exceptions import InputError
from monai_anomaly.losses import DAADLoss
from monai_anomaly.networks import DAAD

from .stages import StageTrainer, distributed

__all__ = ["DAADTrainer"]


class DAADTrainer(StageTrainer):
    """Eq. 3 to 6: a step of the discriminator, then one of the generator.

    The paper does not say in which order; a step of each for every batch is that of the generative adversarial network
    that it refers to.

    Args:
        network: the detector.
        device: where the stage runs.
        max_epochs: 1000 in the paper (section 4.1).
        train_data_loader: batches with ``image`` (B, C, *spatial) in [0, 1].
        optimizer: of ``network.generator`` alone; Adam at 2e-4, without a discriminator 1e-4 (section 4.1).
        discriminator_optimizer: of ``network.discriminator`` alone; None where ``lambda_adv`` is 0.
        loss_function: Eq. 3 to 6; None: ``DAADLoss``, of a detector without discriminator with its first term alone.
        options: further arguments of ``StageTrainer``.

    Raises:
        ValueError: if loss, detector and optimisers do not agree on whether there is a discriminator to train.
    """

    stage = "divide and assemble"

    def __init__(
        self,
        network: DAAD,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: DataLoader,
        optimizer: Optimizer,
        discriminator_optimizer: Optimizer | None = None,
        loss_function: DAADLoss | None = None,
        **options: Any,
    ) -> None:
        if loss_function is None:
            plus = network.discriminator is not None
            loss_function = DAADLoss() if plus else DAADLoss(lambda_adv=0.0, lambda_ali=0.0)
        if loss_function.needs_discriminator and network.discriminator is None:
            raise ValueError("lambda_adv and lambda_ali are 0 for a detector without discriminator")
        if bool(loss_function.lambda_adv) != (discriminator_optimizer is not None):
            raise ValueError(
                "a discriminator_optimizer goes with lambda_adv above 0, which trains the discriminator; "
                f"lambda_adv is {loss_function.lambda_adv}, the optimiser {type(discriminator_optimizer).__name__}"
            )
        optimizers = {"optimizer": optimizer}
        if discriminator_optimizer is not None:
            optimizers["discriminator_optimizer"] = discriminator_optimizer
        super().__init__(
            network,
            device,
            max_epochs,
            train_data_loader,
            optimizers,
            **options,
        )
        self.detector = network
        self.generator = distributed(network.generator)
        self.discriminator = None
        if network.discriminator is not None and discriminator_optimizer is not None:
            self.discriminator = distributed(network.discriminator)
        self.optimizer, self.discriminator_optimizer = optimizer, discriminator_optimizer
        self.loss_function = loss_function

    def prepare(self) -> None:
        """Reject now what the scales of the scores could not be fitted on afterwards.

        Raises:
            InputError: if the detector needs held-out images and there is only one.
        """
        loader = self.val_data_loader
        if self.detector.needs_held_out and loader is not None and len(loader.dataset) == 1:  # type: ignore[arg-type]
            raise InputError(
                "the validation scans",
                "are one image, which gives the scores no range",
                "Raise --validation_fraction, or list more scans under validation.",
            )

    def training_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """See ``StageTrainer.training_step``."""
        x = self._x(batch)
        self.network.train()
        with self.autocast():
            x_hat = self.generator(x)
        bare = self.detector.discriminator
        if bare is not None and self.discriminator is not None and self.discriminator_optimizer is not None:
            bare.requires_grad_(True)
            with self.autocast():
                d_loss = self.loss_function.discriminator(x, x_hat, self.discriminator)
            self.optimise(self.discriminator_optimizer, d_loss)
        if bare is not None:
            bare.requires_grad_(False)
        with self.autocast():
            terms = self.loss_function(x, x_hat, bare)
        self.optimise(self.optimizer, terms["loss"])
        return {"loss": terms["loss"], "error": terms["rec"]}

    def validation_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """See ``StageTrainer.validation_loss``: L_rec alone (Eq. 4)."""
        x = self._x(batch)
        return self.loss_function.distance(x, self.detector.generator(x))

    def _x(self, batch: dict[str, Tensor]) -> Tensor:
        # Flips leave a tensor with metadata, which slows every operation down.
        return self.detector.normalise(convert_to_tensor(batch["image"]))
