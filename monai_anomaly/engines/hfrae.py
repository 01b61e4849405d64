"""How HFR-AE is trained: the decoder on a frozen encoder (section 3.2)."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from monai_anomaly.exceptions import InputError
from monai_anomaly.losses import HierarchicalFeatureLoss
from monai_anomaly.networks import HFRAE

from .stages import StageTrainer, distributed

__all__ = ["FeatureCache", "HFRAETrainer"]

logger = logging.getLogger(__name__)


class FeatureCache:
    """Features of a frozen encoder, computed once for each image and kept in memory in half precision.

    An image is known by the SHA-256 of its values, so that order and batches do not matter. What comes from the memory
    equals what was just computed: both are rounded, and images are encoded one by one.

    Args:
        encode: from images (B, C, H, W) to feature maps, a whole number for each image; it must not change.
        gibibytes: bound of the memory; images beyond it are encoded anew each time.

    Attributes:
        encoded: how many images went through the encoder.
    """

    def __init__(self, encode: Callable[[Tensor], list[Tensor]], gibibytes: float) -> None:
        self.encode = encode
        self.bytes_left = int(gibibytes * 2**30)
        self.encoded = 0
        self._kept: dict[bytes, list[Tensor]] = {}

    def __call__(self, image: Tensor) -> list[Tensor]:
        """Feature maps of a batch on its device, in its precision."""
        features = [self._of_one(one[None]) for one in image]
        return [torch.cat(level).to(image.device, image.dtype) for level in zip(*features, strict=True)]

    def _of_one(self, image: Tensor) -> list[Tensor]:
        key = hashlib.sha256(image.cpu().numpy().tobytes()).digest()
        if key in self._kept:
            return self._kept[key]
        self.encoded += 1
        features = [level.detach().half().cpu() for level in self.encode(image)]
        size = sum(level.nbytes for level in features)
        if size <= self.bytes_left:
            self.bytes_left -= size
            self._kept[key] = features
        return features


class HFRAETrainer(StageTrainer):
    """The decoder against Eq. 8; the encoder is frozen.

    Args:
        network: the detector, its encoder filled.
        device: where the stage runs.
        max_epochs: epochs; the paper gives none.
        train_data_loader: batches with ``image``.
        optimizer: of ``network.decoder``.
        loss_function: Eq. 7, 8.
        options: further arguments of ``StageTrainer``; ``lr_schedulers``: stepped after each epoch; the paper calls
            0.4 the initial rate and gives no schedule.
        allow_random: train on an encoder with random weights: for tests.
        feature_cache: GiB of memory for the encoder's features, which then are computed once (see ``FeatureCache``);
            0: none, which is right for augmented images.
    """

    stage = "feature reconstruction"

    def __init__(
        self,
        network: HFRAE,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: DataLoader,
        optimizer: Optimizer,
        loss_function: nn.Module | None = None,
        allow_random: bool = False,
        feature_cache: float = 0.0,
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
        self.decoder = distributed(network.decoder)
        self.optimizer = optimizer
        self.loss_function = loss_function or HierarchicalFeatureLoss()
        self.allow_random = allow_random
        # The encoder does not change within this stage.
        self.encode = FeatureCache(network.encode, feature_cache) if feature_cache > 0 else network.encode

    def prepare(self) -> None:
        """See ``StageTrainer.prepare``.

        Raises:
            InputError: if the encoder's weights are random.
        """
        if self.detector.encoder_label == "random" and not self.allow_random:
            raise InputError(
                "weights",
                f"the encoder {self.detector.encoder_name} has random weights, on which no anomaly can be told",
                "Pass --weights FILE (torchvision's format) or --weights imagenet, or lay own_encoder.yaml over "
                "train.yaml to train an encoder on your normals.",
            )
        logger.info(f"encoder: {self.detector.encoder_name}, weights: {self.detector.encoder_label}")

    def training_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """See ``StageTrainer.training_step``."""
        self.network.train()
        with self.autocast():
            f_enc = self.encode(batch["image"])
            f_dec = self.decoder(self.detector.decoder_input(f_enc))
        loss = self.loss_function(self.detector.residuals(f_enc, f_dec))
        self.optimise(self.optimizer, loss)
        return {"loss": loss}

    def validation_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """See ``StageTrainer.validation_loss``."""
        f_enc = self.encode(batch["image"])
        return self.loss_function(self.detector.residuals(f_enc, self.detector.decode(f_enc)))
