"""How ProxyAno is trained: the Proxy Extraction Module, then, that one frozen, the Image Reconstruction Module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from monai_anomaly.losses import ImageReconstructionLoss, SquaredErrorLoss
from monai_anomaly.networks import ProxyAno

from .stages import StageTrainer, distributed

__all__ = ["ImageReconstructionTrainer", "ProxyExtractionTrainer"]


class ProxyExtractionTrainer(StageTrainer):
    """First stage: predict the proxy (Eq. 7) while the memory follows by moving averages (Eq. 6).

    Args:
        network: the detector.
        device: where the stage runs.
        max_epochs: epochs of this stage; the paper gives none.
        train_data_loader: batches with ``image`` (B, C, *spatial) and ``proxy`` (B, P, *spatial).
        optimizer: of ``network.proxy_module``; Adam at 0.001 in the paper (section IV-A).
        loss_function: of Eq. 7.
        options: further arguments of ``StageTrainer``.
    """

    stage = "proxy extraction"

    def __init__(
        self,
        network: ProxyAno,
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
        self.module = distributed(network.proxy_module)
        self.optimizer = optimizer
        self.loss_function = loss_function or SquaredErrorLoss()

    def training_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """See ``StageTrainer.training_step``."""
        self.network.train()
        with self.autocast():
            predicted, auxiliary = self.module(batch["image"])
            error = self.loss_function(predicted, batch["proxy"])
            loss = error + auxiliary
        self.optimise(self.optimizer, loss)
        return {"loss": loss, "error": error}

    def validation_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """See ``StageTrainer.validation_loss``."""
        return self.loss_function(self.detector.proxy_module(batch["image"])[0], batch["proxy"])


class ImageReconstructionTrainer(StageTrainer):
    """Second stage: Eq. 8 to 11 against a discriminator, the Proxy Extraction Module frozen.

    Args:
        network: the detector, its first stage done.
        discriminator: D, from images to a map of logits (a list of maps: its last counts, as in MONAI's
            ``PatchDiscriminator``).
        device: where the stage runs.
        max_epochs: epochs of this stage; the paper gives none.
        train_data_loader: batches with ``image`` and, for the repairing loss, ``pseudo_proxy`` and ``paste_mask``.
        optimizer: of ``network.reconstruction_module``.
        discriminator_optimizer: of the discriminator.
        loss_function: Eq. 8 to 11.
        repair: with the repairing loss (Eq. 9, 10); False is Table IV's rows 4 and 5.
        paste_on: ``"proxy"``: the patch is pasted on P (section III-D); ``"predicted"``: on P-hat.
        options: further arguments of ``StageTrainer``.

    Raises:
        ValueError: for an unknown ``paste_on``, or if the detector has no second module.
    """

    stage = "image reconstruction"

    def __init__(
        self,
        network: ProxyAno,
        discriminator: nn.Module,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: DataLoader,
        optimizer: Optimizer,
        discriminator_optimizer: Optimizer,
        loss_function: ImageReconstructionLoss | None = None,
        repair: bool = True,
        paste_on: str = "proxy",
        **options: Any,
    ) -> None:
        if network.reconstruction_module is None:
            raise ValueError("a detector with bridge=False has no second stage")
        if paste_on not in ("proxy", "predicted"):
            raise ValueError(f"paste_on is 'proxy' or 'predicted', got {paste_on!r}")
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
        self.reconstruction = distributed(network.reconstruction_module)
        self.bare_discriminator = discriminator
        self.discriminator = distributed(discriminator)
        self.optimizer, self.discriminator_optimizer = optimizer, discriminator_optimizer
        self.loss_function = loss_function or ImageReconstructionLoss()
        self.repair = repair
        self.paste_on_predicted = paste_on == "predicted"

    def training_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """See ``StageTrainer.training_step``."""
        image = batch["image"]
        self.network.train()
        self.detector.proxy_module.eval()  # its weights, memory and batch statistics are fixed (section III-C)
        repaired, mask = None, None
        with self.autocast():
            with torch.no_grad():
                proxy = self.detector.proxy_module(image)[0]
            if self.repair:
                pseudo, mask = batch["pseudo_proxy"].to(proxy.dtype), batch["paste_mask"]
                if self.paste_on_predicted:
                    pseudo = mask * pseudo + (1 - mask) * proxy
                # F_g is shared: one pass over both kinds of proxy.
                reconstruction, repaired = self.reconstruction(torch.cat([proxy, pseudo])).chunk(2)
            else:
                reconstruction = self.reconstruction(proxy)
        if self.loss_function.lambda_g:
            self.bare_discriminator.train().requires_grad_(True)
            with self.autocast():
                d_loss = self.loss_function.discriminator(
                    lambda x: _logits(self.discriminator(x)), image, reconstruction, repaired, mask
                )
            self.optimise(self.discriminator_optimizer, d_loss)
        self.bare_discriminator.requires_grad_(False)
        with self.autocast():
            terms = self.loss_function(
                lambda x: _logits(self.bare_discriminator(x)), image, reconstruction, repaired, mask
            )
        self.optimise(self.optimizer, terms["loss"])
        with torch.no_grad():
            error = self.loss_function.squared_error(reconstruction, image)
        return {"loss": terms["loss"], "error": error}

    def validation_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """See ``StageTrainer.validation_loss``: the squared error alone."""
        restored = self.detector.restore(batch["image"])
        return self.loss_function.squared_error(restored, batch["image"])


def _logits(output: Tensor | Sequence[Tensor]) -> Tensor:
    return output if isinstance(output, Tensor) else output[-1]
