"""Detectors of anomalib on the same images, splits and metrics, through the optional extra ``external baselines``.

anomalib's networks are wrapped as detectors, its own losses, optimisers and settings are kept, and its training loop is
replaced by the stages of this package. What anomalib gives is what is scored: its raw maps and scores, without its
normalisation or thresholds, which it fits on test images by default. The pretrained encoder has the weights that timm
downloads, or those of a file, so that it can be the very encoder of the methods beside it.

References:
    G. Wang et al., "Student-Teacher Feature Pyramid Matching for Anomaly Detection", BMVC 2021; H. Deng, X. Li,
    "Anomaly Detection via Reverse Distillation from One-Class Embedding", CVPR 2022; K. Roth et al., "Towards Total
    Recall in Industrial Anomaly Detection", CVPR 2022; S. Akcay et al., "Anomalib", ICIP 2022.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from monai_anomaly.engines import StageTrainer
from monai_anomaly.exceptions import InputError
from monai_anomaly.io.weights import fitting_weights, read_weights
from monai_anomaly.networks import AnomalyDetector, AnomalyOutput
from monai_anomaly.networks.frozen_encoder import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["CoresetPeer", "FeaturePeer", "FeaturePeerTrainer", "random_backbones"]


def _from_anomalib(path: str) -> Any:
    """A class of anomalib by its dotted path under ``anomalib.models.image``.

    Raises:
        InputError: if anomalib is not installed.
    """
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(f"anomalib.models.image.{module}"), name)
    except ImportError as error:
        raise InputError(
            name, f"anomalib cannot be loaded ({error})", 'Run pip install "monai-anomaly[peers]".'
        ) from error


@contextmanager
def random_backbones() -> Iterator[None]:
    """Within, every network that timm makes starts from random weights, and nothing is downloaded."""
    import timm

    create = timm.create_model

    def without_weights(*args: Any, **kwargs: Any) -> Any:
        return create(*args, **{**kwargs, "pretrained": False})

    # Not every network of anomalib can be asked for one without a download.
    timm.create_model = without_weights
    try:
        yield
    finally:
        timm.create_model = create


class _Peer(AnomalyDetector):
    """A network of anomalib as a detector.

    Args:
        network: dotted path of its class under ``anomalib.models.image``.
        encoder: attribute of the network that holds the pretrained encoder.
        in_channels: 1 or 3; a gray image is repeated.
        arguments: of the class.
        weights: file of the encoder's weights, in torchvision's format; None: those that timm downloads.

    Attributes:
        libraries: distributions that the network is of; a result names their versions.

    Raises:
        InputError: if anomalib is not installed, or the weights cannot be had or do not fit the encoder.
    """

    libraries = ("anomalib", "timm")

    def __init__(
        self, network: str, encoder: str, in_channels: int, arguments: dict[str, Any], weights: str | Path | None
    ) -> None:
        super().__init__(2, in_channels)
        kind = _from_anomalib(network)
        self.peer: nn.Module
        if weights is not None:
            state = read_weights(weights)
            with random_backbones():
                self.peer = kind(**arguments)
            extractor = getattr(self.peer, encoder).feature_extractor
            extractor.load_state_dict(fitting_weights(weights, state, extractor.state_dict()))
        else:
            try:
                self.peer = kind(**arguments)
            except OSError as error:  # so are the errors of downloads
                reason = " ".join(str(error).split())
                raise InputError(
                    arguments.get("backbone", network),
                    f"its weights cannot be downloaded ({reason})",
                    "Without a network pass a file in torchvision's format as weights.",
                ) from error
        # anomalib's own pre-processing
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None])
        self.mean: Tensor
        self.std: Tensor

    def normalise(self, image: Tensor) -> Tensor:
        """A batch as the encoder takes it, shape (B, 3, H, W)."""
        self.check_input(image)
        return (image.expand(-1, 3, -1, -1) - self.mean) / self.std

    def detect(self, image: Tensor) -> AnomalyOutput:
        """See ``AnomalyDetector.detect``; there is no restoration."""
        output = self.peer(self.normalise(image))
        return AnomalyOutput(output.anomaly_map, output.pred_score.reshape(len(image)), None)


class FeaturePeer(_Peer):
    """STFPM and Reverse Distillation: two sets of features that are drawn to each other.

    Args:
        network: dotted path of its class under ``anomalib.models.image``.
        loss: dotted path of its loss.
        encoder: attribute of the network that holds the pretrained encoder.
        parts: attributes of the network that are trained.
        in_channels: 1 or 3.
        image_size: rows and columns; given to networks that ask for an input size.
        arguments: further ones of the class.
        enumerations: by argument, the dotted path of an enumeration and the name of its member.
        weights: file of the encoder's weights, in torchvision's format; None: those that timm downloads.
    """

    def __init__(
        self,
        network: str,
        loss: str,
        encoder: str,
        parts: Sequence[str],
        in_channels: int = 3,
        image_size: Sequence[int] = (256, 256),
        arguments: dict[str, Any] | None = None,
        enumerations: dict[str, Sequence[str]] | None = None,
        weights: str | Path | None = None,
    ) -> None:
        given = dict(arguments or {})
        given |= {name: getattr(_from_anomalib(path), member) for name, (path, member) in (enumerations or {}).items()}
        if "input_size" in inspect.signature(_from_anomalib(network)).parameters:
            given["input_size"] = tuple(int(side) for side in image_size)
        super().__init__(network, encoder, in_channels, given, weights)
        self.loss: nn.Module = _from_anomalib(loss)()
        self.parts = list(parts)

    def trained_parameters(self) -> list[nn.Parameter]:
        """Of the parts that are trained."""
        return [parameter for part in self.parts for parameter in getattr(self.peer, part).parameters()]

    def features_loss(self, image: Tensor) -> Tensor:
        """The loss of a batch, a scalar; the network must be in training mode to give its features."""
        return self.loss(*self.peer(self.normalise(image)))


class FeaturePeerTrainer(StageTrainer):
    """The one stage of a ``FeaturePeer``.

    Args:
        network: the detector.
        device: where the stage runs.
        max_epochs: epochs.
        train_data_loader: batches with ``image``.
        optimizer: of ``network.trained_parameters()``.
        val_data_loader: held-out normals.
        amp: mixed precision on a GPU.
    """

    stage = "feature matching"

    def __init__(
        self,
        network: FeaturePeer,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: DataLoader,
        optimizer: Optimizer,
        val_data_loader: DataLoader | None = None,
        amp: bool = False,
    ) -> None:
        super().__init__(
            network, device, max_epochs, train_data_loader, {"optimizer": optimizer}, None, val_data_loader, amp
        )
        self.detector, self.optimizer = network, optimizer

    def training_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """See ``StageTrainer``."""
        self.network.train()
        with self.autocast():
            loss = self.detector.features_loss(batch["image"])
        self.optimise(self.optimizer, loss)
        return {"loss": loss, "error": loss}

    def validation_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """The loss with the batch statistics of the training, which stay as they are."""
        peer = self.detector.peer
        # The wrapped network gives its features in training mode alone; its parts stay in eval mode.
        peer.training = True
        try:
            return self.detector.features_loss(batch["image"])
        finally:
            peer.training = False


class CoresetPeer(_Peer):
    """PatchCore: a memory of patches of the training normals, fitted and not trained.

    Args:
        network: dotted path of its class under ``anomalib.models.image``.
        encoder: attribute of the network that holds the pretrained encoder.
        in_channels: 1 or 3.
        sampling_ratio: share of the patches that is kept.
        arguments: of the class.
        weights: file of the encoder's weights, in torchvision's format; None: those that timm downloads.
    """

    def __init__(
        self,
        network: str,
        encoder: str,
        in_channels: int = 3,
        sampling_ratio: float = 0.1,
        arguments: dict[str, Any] | None = None,
        weights: str | Path | None = None,
    ) -> None:
        super().__init__(network, encoder, in_channels, dict(arguments or {}), weights)
        self.sampling_ratio = sampling_ratio

    @torch.jit.unused
    def fit_statistics(self, training: Iterable[Tensor], held_out: Iterable[Tensor]) -> None:
        """Keep a part of the patches; see ``AnomalyDetector.fit_statistics``."""
        peer: Any = self.peer
        peer.training = True
        try:
            for batch in training:
                peer(self.normalise(batch))  # keeps the patches itself
        finally:
            peer.training = False
        peer.subsample_embedding(self.sampling_ratio)
