"""Detectors on the feature maps of a frozen, pretrained encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from monai_anomaly.exceptions import check_choice

from .blocks.encoder_decoder import StridedEncoder
from .blocks.features import Frozen, StridedFeatures
from .blocks.resnet import RESNETS, resnet_features
from .detector import AnomalyDetector, make_detector

__all__ = ["ENCODER_LABELS", "FrozenEncoderDetector", "feature_encoder_of"]

# Where the encoder's weights are from; the buffer ``encoder_source`` holds the index.
ENCODER_LABELS = ("random", "imagenet", "own-encoder")

# Of ImageNet, for images in [0, 1]: the statistics that torchvision's weights were trained with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class FrozenEncoderDetector(AnomalyDetector):
    """Base of the detectors on a frozen encoder, whose weights are part of the ``state_dict`` and have a label.

    A subclass has these arguments beside its own, and passes none of them on.

    Args:
        spatial_dims: 2.
        in_channels: channels of the image.
        encoder: ``"resnet18"`` or ``"wide_resnet50_2"``, their first three stages; ``"strided"``, a ``StridedEncoder``
            that a first stage of the training trains; ``"own"``, of the detector that ``source`` describes. Every
            encoder is frozen, and made with random weights (see ``load_encoder``).
        encoder_channels: widths of the stages of ``"strided"``.
        source: of ``"own"``: another detector's ``config``.
        channel_rule: how an image becomes what a ResNet sees: ``"rgb"`` (three channels), ``"each"`` (each channel is a
            gray image of its own in one batch) or ``"mean"`` (their mean as a gray image); None: ``"rgb"`` for three
            channels, else ``"each"``. Own encoders take the image as it is.
        input_statistics: ``"imagenet"`` normalises by ImageNet's mean and standard deviation, ``"none"`` keeps [0, 1];
            None: ``"imagenet"`` for ResNets, else ``"none"``.
        encoder_label: where the encoder's weights are from, as ``load_encoder`` wrote it; for the reader of a
            configuration, the buffer ``encoder_source`` decides.

    Raises:
        ValueError: for settings that do not fit.

    Notes:
        Weights are never downloaded here: ``monai_anomaly.engines.fill_encoder`` does so, once, before a training.
    """

    __jit_unused_properties__ = ["encoder_label"]  # noqa: RUF012 (TorchScript's own name, read as it stands)
    channels_last = True

    def __init__(self) -> None:
        # of the subclass's arguments, which its config holds
        given: dict[str, Any] = self.config["arguments"]  # type: ignore[index,assignment]
        spatial_dims, in_channels, encoder = given["spatial_dims"], given["in_channels"], given["encoder"]
        input_statistics, encoder_label = given["input_statistics"], given["encoder_label"]
        if spatial_dims != 2:
            raise ValueError(f"the encoders are networks for 2-D images; got spatial_dims={spatial_dims}")
        source = given["source"]
        features, channels, size_divisor = _make_encoder(encoder, in_channels, given["encoder_channels"], source)
        super().__init__(spatial_dims, in_channels, size_divisor)
        if encoder_label not in ENCODER_LABELS:
            raise ValueError(f"encoder_label is one of {', '.join(ENCODER_LABELS)}, got {encoder_label!r}")
        self.encoder_name = encoder
        self.level_channels = channels
        self.channel_rule = _channel_rule(encoder, in_channels, given["channel_rule"])

        if input_statistics is None:
            input_statistics = "imagenet" if encoder in RESNETS else "none"
        seen = 3 if encoder in RESNETS else in_channels  # channels that the encoder sees
        check_choice("input_statistics", input_statistics, "imagenet", "none")
        if input_statistics == "imagenet" and seen != 3:
            raise ValueError(f"ImageNet's statistics are of three channels, the encoder {encoder!r} takes {seen}")
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if input_statistics == "imagenet" else ((0.0,) * seen, (1.0,) * seen)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        self.register_buffer("encoder_source", torch.tensor(0))
        self.mean: Tensor
        self.std: Tensor
        self.encoder_source: Tensor

        self.encoder = Frozen(features)

    @torch.jit.unused
    def borrowed_weights(self) -> str:
        """See ``AnomalyDetector.borrowed_weights``."""
        return f"encoder {self.encoder_label}"

    @property
    def encoder_label(self) -> str:
        """Where the encoder's weights are from: ``"random"``, ``"imagenet"`` or ``"own-encoder"``."""
        return ENCODER_LABELS[int(self.encoder_source)]

    @torch.jit.unused
    def load_encoder(self, state: dict[str, Tensor], label: str) -> None:
        """Take up an encoder's weights.

        Args:
            state: a ``state_dict`` that fits ``self.encoder.encoder``.
            label: ``"imagenet"`` or ``"own-encoder"``.

        Raises:
            ValueError: for another label.
            RuntimeError: if the weights do not fit (as torch says it).
        """
        if label not in ENCODER_LABELS[1:]:
            raise ValueError(f"label is 'imagenet' or 'own-encoder', got {label!r}")
        self.encoder.encoder.load_state_dict(state)
        self.encoder_source.fill_(ENCODER_LABELS.index(label))
        self._tell_label()

    def _tell_label(self) -> None:
        config: Any = self.config
        config["arguments"]["encoder_label"] = self.encoder_label

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._tell_label()  # a checkpoint brings its own encoder

    def encoder_input(self, image: Tensor) -> Tensor:
        """What the encoder sees of an image (B, C, H, W) in [0, 1]; (B * C, 3, H, W) under the rule ``"each"``."""
        if self.channel_rule == "each":
            image = image.reshape(-1, 1, image.shape[2], image.shape[3]).expand(-1, 3, -1, -1)
        elif self.channel_rule == "mean":
            image = image.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
        return (image - self.mean) / self.std

    def encode(self, image: Tensor) -> list[Tensor]:
        """F_enc = E(x) (Eq. 2), finest level first."""
        return self.encoder(self.encoder_input(image))


def feature_encoder_of(detector: AnomalyDetector) -> nn.Module:
    """The feature encoder of a trained detector.

    It is what the detector's ``feature_encoder()`` returns, a module from the detector's own image (B, C, H, W) in
    [0, 1] to three feature maps, finest first, each half the size of the one before; else the last three strided stages
    of the first ``StridedEncoder`` in it.

    Raises:
        ValueError: if the detector has neither.
    """
    offered = getattr(detector, "feature_encoder", None)
    if offered is not None:
        return offered()
    for module in detector.modules():
        if isinstance(module, StridedEncoder):
            return StridedFeatures(module)
    raise ValueError(f"{type(detector).__name__} has neither a feature_encoder() nor a StridedEncoder")


def _make_encoder(
    encoder: str, in_channels: int, encoder_channels: Sequence[int], source: dict[str, Any] | None
) -> tuple[nn.Module, list[int], int]:
    """The encoder, the channels of its levels and the stride of its deepest one."""
    if (source is not None) != (encoder == "own"):
        raise ValueError(f"a source goes with the encoder 'own' and with no other, got {encoder!r}")
    if encoder in RESNETS:
        resnet = resnet_features(encoder)
        return resnet, resnet.channels, resnet.size_divisor
    if encoder == "strided":
        # The last convolution, of the latent map, is of no use here: one channel.
        strided = StridedFeatures(StridedEncoder(2, in_channels, encoder_channels, 1))
        return strided, strided.channels, strided.size_divisor
    if encoder == "own" and source is not None:
        return _own_encoder(source, in_channels)
    raise ValueError(f"encoder is one of {', '.join(RESNETS)}, strided, own; got {encoder!r}")


def _own_encoder(source: dict[str, Any], in_channels: int) -> tuple[nn.Module, list[int], int]:
    # only a registered detector is ever made from a file's word
    try:
        detector = make_detector(source)
    except LookupError as error:
        raise ValueError(f"the source of the encoder, {source['name']!r}, is no detector of this package") from error
    if detector.spatial_dims != 2 or detector.in_channels != in_channels:
        raise ValueError(
            f"the source of the encoder takes {detector.spatial_dims}-D images of {detector.in_channels} channel(s), "
            f"not 2-D ones of {in_channels}"
        )
    features = feature_encoder_of(detector).eval()
    # What the maps are like is seen from an image; four times the divisor is enough for any of them.
    divisor = getattr(features, "size_divisor", detector.size_divisor)
    side = 4 * divisor
    with torch.no_grad():
        maps = features(torch.zeros(1, in_channels, side, side))
    sizes = [f.shape[-1] for f in maps]
    if (
        len(maps) != 3
        or any(f.shape[-1] != f.shape[-2] for f in maps)
        or sizes != [4 * sizes[-1], 2 * sizes[-1], sizes[-1]]
    ):
        raise ValueError(f"an encoder gives three maps, each half the size of the one before, this gives {sizes}")
    return features, [int(f.shape[1]) for f in maps], math.lcm(divisor, side // sizes[-1])


def _channel_rule(encoder: str, in_channels: int, rule: str | None) -> str:
    if encoder not in RESNETS:
        if rule is not None:
            raise ValueError(f"the encoder {encoder!r} takes the image as it is: channel_rule does not apply")
        return "own"
    if rule is None:
        return "rgb" if in_channels == 3 else "each"
    check_choice("channel_rule", rule, "rgb", "each", "mean")
    if rule == "rgb" and in_channels != 3:
        raise ValueError(f"channel_rule 'rgb' is for three channels, the image has {in_channels}")
    return rule
