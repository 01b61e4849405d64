"""HFR-AE: a frozen encoder's features, rebuilt by a decoder.

H. Chen et al., *A Hierarchically Feature Reconstructed Autoencoder for Unsupervised Anomaly Detection*. Symbols follow
the paper: f_enc^k and f_dec^k the encoded and the rebuilt features of level k = 1 (finest) to K = 3, phi_k their
residual map, f_a the anomaly map, A the score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution
from torch import Tensor, nn

from monai_anomaly.networks.blocks.encoder_decoder import StridedEncoder
from monai_anomaly.networks.blocks.features import Frozen, StridedFeatures
from monai_anomaly.networks.blocks.resnet import RESNETS, resnet_features
from monai_anomaly.networks.blocks.smoothing import GaussianFilter
from monai_anomaly.networks.detector import AnomalyDetector, AnomalyOutput, make_detector

__all__ = ["ENCODER_LABELS", "HFRAE", "HierarchicalDecoder", "feature_encoder_of"]

# Where the encoder's weights are from; the buffer ``encoder_source`` holds the index.
ENCODER_LABELS = ("random", "imagenet", "own-encoder")

# Of ImageNet, for images in [0, 1]: the statistics that torchvision's weights were trained with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class DecoderLevel(nn.Module):
    """Conv_1x1(Convs(Upsampling(.))) of Eq. 3 and 4.

    Args:
        in_channels: channels of the upsampled features.
        hidden: width of all but the last block of Convs.
        out_channels: c_k.
        kernel_sizes: of the blocks of Convs; 1, 3, 1 (section 4).
        negative_slope: of the LeakyReLU; 0.1 (section 4).

    Notes:
        A 1 x 1 block and nearest upsampling change places without changing the result, so that such a first block is
        run on the smaller map. (Only the running variance's n / (n - 1) then is that of the smaller map.)
    """

    def __init__(
        self, in_channels: int, hidden: int, out_channels: int, kernel_sizes: Sequence[int], negative_slope: float
    ) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        width = in_channels
        for i, kernel_size in enumerate(kernel_sizes):
            out = out_channels if i == len(kernel_sizes) - 1 else hidden
            blocks.append(
                Convolution(
                    2,
                    width,
                    out,
                    kernel_size=kernel_size,
                    bias=False,  # the batch norm has one
                    norm="BATCH",
                    act=("LEAKYRELU", {"negative_slope": negative_slope}),
                    adn_ordering="NA",
                )
            )
            width = out
        self.convs = nn.Sequential(*blocks)
        self.output = Convolution(2, width, out_channels, kernel_size=1, conv_only=True)
        self.before = 1 if kernel_sizes[0] == 1 and len(kernel_sizes) > 1 else 0  # blocks before the upsampling

    def forward(self, x: Tensor, upsample: bool) -> Tensor:
        """f_dec^k of the features of the level below (``upsample``) or of this level."""
        for i, block in enumerate(self.convs):
            if upsample and i == self.before:
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = block(x)
        return self.output(x)


class HierarchicalDecoder(nn.Module):
    """From the deepest features to the rebuilt features of all levels (Eq. 3, 4).

    Args:
        channels: c_1 to c_K, finest first.
        in_channels: channels of the features that it is fed.
        hidden_channels: inner width of each level, finest first.
        kernel_sizes: see ``DecoderLevel``, as ``negative_slope``.
        negative_slope: of the LeakyReLU.
    """

    def __init__(
        self,
        channels: Sequence[int],
        in_channels: int,
        hidden_channels: Sequence[int],
        kernel_sizes: Sequence[int] = (1, 3, 1),
        negative_slope: float = 0.1,
    ) -> None:
        super().__init__()
        levels: list[nn.Module] = []
        width = in_channels
        for c, hidden in zip(reversed(channels), reversed(hidden_channels), strict=True):
            levels.append(DecoderLevel(width, hidden, c, kernel_sizes, negative_slope))
            width = c
        self.levels = nn.ModuleList(levels)  # deepest first, as they are run

    def forward(self, features: Tensor) -> list[Tensor]:
        """f_dec^1 to f_dec^K, finest first, for features (B, C, h_K, w_K) of the deepest level's size."""
        rebuilt: list[Tensor] = []
        x = features
        for i, level in enumerate(self.levels):
            x = level(x, i > 0)
            rebuilt.append(x)
        return rebuilt[::-1]


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


class HFRAE(AnomalyDetector):
    """The Hierarchically Feature Reconstructed Autoencoder.

    Args:
        spatial_dims: 2.
        in_channels: channels of the image.
        encoder: ``"resnet18"`` or ``"wide_resnet50_2"`` (section 4), their first three stages; ``"strided"``, a
            ``StridedEncoder`` that a first stage of the training trains; ``"own"``, of the detector that ``source``
            describes. Every encoder is frozen, and made with random weights (see ``load_encoder``).
        encoder_channels: widths of the stages of ``"strided"``.
        source: of ``"own"``: another detector's ``config``.
        hidden_channels: inner width of the decoder's Convs at each level, finest first; None: half of c_k.
        kernel_sizes: of the decoder's Convs (section 4).
        negative_slope: of the decoder's LeakyReLU (section 4).
        input_level: level whose features feed the decoder; 3, the deepest (section 3.1). A finer level is averaged
            down to the deepest one's size first.
        norm_over: Eq. 6's L2 norm is ``"channels"`` at each position, or ``"map"``: over all of a feature map.
        level_weights: of the residual maps in the sum of Eq. 10: ``"paper"``, Eq. 9's 1 / (w_k h_k), by which the
            deepest level counts 16 times the finest; ``"mean"``: 1 / K.
        sigma: of the Gaussian filter in pixels; 4 (section 3.3).
        align_corners: of the bilinear interpolation of Eq. 9.
        channel_rule: how an image becomes what a ResNet sees: ``"rgb"`` (three channels), ``"each"`` (each channel is a
            gray image of its own in one batch, the maps are averaged) or ``"mean"`` (their mean as a gray image);
            None: ``"rgb"`` for three channels, else ``"each"``. Own encoders take the image as it is.
        input_statistics: ``"imagenet"`` normalises by ImageNet's mean and standard deviation, ``"none"`` keeps [0, 1];
            None: ``"imagenet"`` for ResNets, else ``"none"``.
        encoder_label: where the encoder's weights are from, as ``load_encoder`` wrote it; for the reader of a
            configuration, the buffer ``encoder_source`` decides.

    Raises:
        ValueError: for settings that do not fit.

    Notes:
        Weights are never downloaded here: ``monai_anomaly.engines.fill_encoder`` does so, once, before a training. They
        are part of the ``state_dict``, so that inference needs no file of weights.

    Example::

        detector = HFRAE(in_channels=1)
        anomaly_map, anomaly_score, _ = detector.eval().detect(torch.rand(1, 1, 256, 256))
    """

    __jit_unused_properties__ = ["encoder_label"]  # noqa: RUF012 (TorchScript's own name, read as it stands)
    channels_last = True

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        encoder: str = "resnet18",
        encoder_channels: Sequence[int] = (64, 128, 256, 512),
        source: dict[str, Any] | None = None,
        hidden_channels: Sequence[int] | None = None,
        kernel_sizes: Sequence[int] = (1, 3, 1),
        negative_slope: float = 0.1,
        input_level: int = 3,
        norm_over: str = "channels",
        level_weights: str = "paper",
        sigma: float = 4.0,
        align_corners: bool = False,
        channel_rule: str | None = None,
        input_statistics: str | None = None,
        encoder_label: str = "random",
    ) -> None:
        if spatial_dims != 2:
            raise ValueError(f"HFRAE is 2-D: its encoders are networks for images; got spatial_dims={spatial_dims}")
        features, channels, size_divisor = _make_encoder(encoder, in_channels, encoder_channels, source)
        super().__init__(spatial_dims, in_channels, size_divisor)
        if norm_over not in ("channels", "map"):
            raise ValueError(f"norm_over is 'channels' or 'map', got {norm_over!r}")
        if level_weights not in ("paper", "mean"):
            raise ValueError(f"level_weights is 'paper' or 'mean', got {level_weights!r}")
        if encoder_label not in ENCODER_LABELS:
            raise ValueError(f"encoder_label is one of {', '.join(ENCODER_LABELS)}, got {encoder_label!r}")
        if sigma < 0:
            raise ValueError(f"sigma is at least 0, got {sigma}")
        if any(size % 2 == 0 for size in kernel_sizes) or not kernel_sizes:
            raise ValueError(f"kernel_sizes are odd, got {list(kernel_sizes)}")
        K = len(channels)
        if not 1 <= input_level <= K:
            raise ValueError(f"input_level is 1 to {K}, got {input_level}")
        hidden = [max(1, c // 2) for c in channels] if hidden_channels is None else list(hidden_channels)
        if len(hidden) != K:
            raise ValueError(f"hidden_channels are {K} widths, finest level first, got {hidden}")
        self.encoder_name = encoder
        self.over_channels = norm_over == "channels"
        self.paper_weights = level_weights == "paper"
        self.align_corners = align_corners
        self.input_level = input_level
        self.pooling = 2 ** (K - input_level)
        self.channel_rule = _channel_rule(encoder, in_channels, channel_rule)

        if input_statistics is None:
            input_statistics = "imagenet" if encoder in RESNETS else "none"
        seen = 3 if encoder in RESNETS else in_channels  # channels that the encoder sees
        if input_statistics not in ("imagenet", "none"):
            raise ValueError(f"input_statistics is 'imagenet', 'none' or None, got {input_statistics!r}")
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
        self.decoder = HierarchicalDecoder(channels, channels[input_level - 1], hidden, kernel_sizes, negative_slope)
        self.gaussian = GaussianFilter(sigma)

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

    def detect(self, image: Tensor) -> AnomalyOutput:
        """See ``AnomalyDetector.detect``; Eq. 9 to 11. Features are rebuilt, not the image: no restoration."""
        self.check_input(image)
        f_enc = self.encode(image)
        f_dec = self.decode(f_enc)
        f_a = image.new_zeros(1)
        for phi in self.residuals(f_enc, f_dec):
            total = phi.sum(dim=1, keepdim=True)
            if self.paper_weights:
                total = total / (total.shape[2] * total.shape[3])  # Eq. 9
            else:
                total = total / len(f_enc)
            f_a = f_a + F.interpolate(total, size=image.shape[2:], mode="bilinear", align_corners=self.align_corners)
        if self.channel_rule == "each" and self.in_channels > 1:
            f_a = f_a.view(-1, self.in_channels, f_a.shape[2], f_a.shape[3]).mean(dim=1, keepdim=True)
        f_a = self.gaussian(f_a)  # Eq. 10
        return AnomalyOutput(f_a, f_a.flatten(1).amax(dim=1), None)  # Eq. 11

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

    def decode(self, f_enc: list[Tensor]) -> list[Tensor]:
        """F_dec (Eq. 3, 4), finest level first."""
        return self.decoder(self.decoder_input(f_enc))

    def decoder_input(self, f_enc: list[Tensor]) -> Tensor:
        """What the decoder is fed: f_enc^K, or a finer level averaged down to its size."""
        fed = f_enc[self.input_level - 1]
        if self.pooling > 1:
            fed = F.avg_pool2d(fed, self.pooling)
        return fed

    def residuals(self, f_enc: list[Tensor], f_dec: list[Tensor]) -> list[Tensor]:
        """phi_k (Eq. 5, 6) of each level, elementwise, shape (B, c_k, h_k, w_k), in single precision."""
        phis: list[Tensor] = []
        for encoded, decoded in zip(f_enc, f_dec):
            difference = self._normalised(encoded.float()) - self._normalised(decoded.float())
            phis.append(0.5 * difference * difference)
        return phis

    def _normalised(self, f: Tensor) -> Tensor:
        """Eq. 6; the floor keeps a feature of length zero at zero."""
        if self.over_channels:
            length = torch.linalg.vector_norm(f, dim=1, keepdim=True)
        else:
            length = torch.linalg.vector_norm(f, dim=(1, 2, 3), keepdim=True)
        return f / length.clamp_min(1e-12)


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
    if rule not in ("rgb", "each", "mean"):
        raise ValueError(f"channel_rule is 'rgb', 'each', 'mean' or None, got {rule!r}")
    if rule == "rgb" and in_channels != 3:
        raise ValueError(f"channel_rule 'rgb' is for three channels, the image has {in_channels}")
    return rule
