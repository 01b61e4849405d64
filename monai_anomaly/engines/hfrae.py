"""How HFR-AE is trained: the decoder on a frozen encoder (section 3.2), and where the encoder's weights come from."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from monai_anomaly.exceptions import InputError
from monai_anomaly.io.weights import download_weights, fitting_weights, read_weights
from monai_anomaly.losses import HierarchicalFeatureLoss, SquaredErrorLoss
from monai_anomaly.networks import HFRAE
from monai_anomaly.networks.blocks import StridedDecoder, StridedEncoder
from monai_anomaly.networks.blocks.features import StridedFeatures
from monai_anomaly.networks.blocks.resnet import RESNETS
from monai_anomaly.networks.nets.hfrae import feature_encoder_of

from .detector_files import load_detector
from .stages import StageTrainer, distributed

__all__ = [
    "EncoderAutoencoder",
    "EncoderPretrainingTrainer",
    "FeatureCache",
    "HFRAETrainer",
    "fill_encoder",
    "own_encoder_source",
]

logger = logging.getLogger(__name__)


def own_encoder_source(folder: str | Path | None) -> dict[str, Any] | None:
    """What ``HFRAE(encoder="own", source=...)`` is made with.

    Args:
        folder: ``models`` of a trained detector; None gives None.

    Raises:
        InputError: if the folder holds no detector's description.
    """
    if folder is None:
        return None
    described = Path(folder) / "detector.json"
    try:
        network = json.loads(described.read_text(encoding="utf-8"))["network"]
        return {"name": str(network["name"]), "arguments": dict(network["arguments"])}
    except OSError as error:
        raise InputError(described, "no such file", "Name the folder models of a trained detector.") from error
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(described, f"not a detector's description ({error})", "Train that detector again.") from error


def fill_encoder(
    network: HFRAE,
    weights: str | Path | None = None,
    own_encoder: str | Path | None = None,
    *,
    label: str = "imagenet",
    cache_dir: str | Path = "weights",
    url: str | None = None,
    sha256: str | None = None,
) -> HFRAE:
    """Give a new detector's encoder its weights; without any it stays random, and its trainer rejects it.

    Args:
        network: the detector.
        weights: a file in torchvision's format, or ``"imagenet"``: the published one, downloaded once.
        own_encoder: of ``encoder="own"``: the folder ``models`` of the detector that the encoder is of.
        label: what a file of weights is: ``"imagenet"``, or ``"own-encoder"`` for one that was trained on own scans.
        cache_dir: folder that a download goes to.
        url: of the download; None: torchvision's.
        sha256: of the download, or its first digits; None: of torchvision's file.

    Returns:
        The detector itself.

    Raises:
        InputError: if the weights cannot be had or do not fit, or are not what the encoder takes.
    """
    expected = network.encoder.encoder.state_dict()
    name = network.encoder_name
    if weights is not None:
        if name not in RESNETS:
            raise InputError("weights", f"a file of weights is of a ResNet, the encoder is {name!r}", "Leave it out.")
        path = download_weights(name, cache_dir, url, sha256) if str(weights) == "imagenet" else Path(weights)
        network.load_encoder(fitting_weights(path, read_weights(path), expected), label)
        logger.info(f"the encoder {name} has the weights of {path} ({network.encoder_label})")
    if own_encoder is not None:
        if name != "own":
            raise InputError("own_encoder", f"is of the encoder 'own', not of {name!r}", "Pass --encoder own.")
        state = feature_encoder_of(load_detector(own_encoder).network).state_dict()
        model = Path(own_encoder) / "model.pt"
        network.load_encoder(fitting_weights(model, state, expected), "own-encoder")
        logger.info(f"the encoder is that of {own_encoder} ({network.encoder_label})")
    return network


class EncoderAutoencoder(nn.Module):
    """A plain autoencoder around the encoder ``"strided"``: what ``EncoderPretrainingTrainer`` trains.

    Args:
        in_channels: channels of the image.
        channels: widths of the encoder's stages.
        latent_channels: width of the map between encoder and decoder.
    """

    def __init__(self, in_channels: int, channels: Sequence[int], latent_channels: int = 64) -> None:
        super().__init__()
        self.encoder = StridedEncoder(2, in_channels, channels, latent_channels)
        self.decoder = StridedDecoder(2, in_channels, channels, latent_channels)

    def forward(self, image: Tensor) -> Tensor:
        return self.decoder(self.encoder(image))

    def features(self) -> StridedFeatures:
        """The encoder's three levels; they share its weights."""
        return StridedFeatures(self.encoder)


class EncoderPretrainingTrainer(StageTrainer):
    """A stage before the paper's, for an encoder without downloads: a plain autoencoder on the training normals.

    After each epoch the detector's frozen encoder becomes a copy of the autoencoder's.

    Args:
        network: the detector, with ``encoder="strided"``.
        autoencoder: of the same widths.
        device: where the stage runs.
        max_epochs: epochs of this stage.
        train_data_loader: batches with ``image``.
        optimizer: of the autoencoder.
        loss_function: of the reconstruction.
        options: further arguments of ``StageTrainer``.

    Raises:
        ValueError: if the detector's encoder is not that of the autoencoder.
    """

    stage = "encoder pretraining"

    def __init__(
        self,
        network: HFRAE,
        autoencoder: EncoderAutoencoder,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: DataLoader,
        optimizer: Optimizer,
        loss_function: nn.Module | None = None,
        **options: Any,
    ) -> None:
        if network.encoder_name != "strided":
            raise ValueError(
                f"only the encoder 'strided' is pretrained here, the detector has {network.encoder_name!r}"
            )
        theirs = {k: v.shape for k, v in autoencoder.features().state_dict().items()}
        if theirs != {k: v.shape for k, v in network.encoder.encoder.state_dict().items()}:
            raise ValueError("the autoencoder's encoder has other widths than the detector's")
        super().__init__(
            network,
            device,
            max_epochs,
            train_data_loader,
            {"optimizer": optimizer},
            modules={"autoencoder": autoencoder},
            **options,
        )
        self.detector = network
        self.autoencoder = autoencoder
        self.module = distributed(autoencoder)
        self.optimizer = optimizer
        self.loss_function = loss_function or SquaredErrorLoss()

    def training_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """See ``StageTrainer.training_step``."""
        self.autoencoder.train()
        with self.autocast():
            loss = self.loss_function(self.module(batch["image"]), batch["image"])
        self.optimise(self.optimizer, loss)
        return {"loss": loss}

    def validation_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """See ``StageTrainer.validation_loss``."""
        return self.loss_function(self.autoencoder.eval()(batch["image"]), batch["image"])

    def epoch_completed(self, epoch: int) -> None:
        """See ``StageTrainer.epoch_completed``: copies the encoder."""
        self.detector.load_encoder(self.autoencoder.features().state_dict(), "own-encoder")


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
