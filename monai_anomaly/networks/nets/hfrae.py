"""HFR-AE: a frozen encoder's features, rebuilt by a decoder.

H. Chen et al., *A Hierarchically Feature Reconstructed Autoencoder for Unsupervised Anomaly Detection*. Symbols follow
the paper: f_enc^k and f_dec^k the encoded and the rebuilt features of level k = 1 (finest) to K = 3, phi_k their
residual map, f_a the anomaly map, A the score.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution
from torch import Tensor, nn

from monai_anomaly.exceptions import check_choice
from monai_anomaly.networks.blocks.smoothing import GaussianFilter
from monai_anomaly.networks.detector import AnomalyOutput
from monai_anomaly.networks.frozen_encoder import FrozenEncoderDetector

__all__ = ["HFRAE", "HierarchicalDecoder"]


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


class HFRAE(FrozenEncoderDetector):
    """The Hierarchically Feature Reconstructed Autoencoder.

    Args:
        spatial_dims: 2.
        in_channels: channels of the image.
        encoder: see ``FrozenEncoderDetector``, as ``encoder_channels``, ``source``, ``channel_rule`` (the maps of
            ``"each"`` are averaged), ``input_statistics`` and ``encoder_label``. Section 4 has both ResNets.
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

    Raises:
        ValueError: for settings that do not fit.

    Example::

        detector = HFRAE(in_channels=1)
        anomaly_map, anomaly_score, _ = detector.eval().detect(torch.rand(1, 1, 256, 256))
    """

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
        super().__init__()
        channels = self.level_channels
        check_choice("norm_over", norm_over, "channels", "map")
        check_choice("level_weights", level_weights, "paper", "mean")
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
        self.over_channels = norm_over == "channels"
        self.paper_weights = level_weights == "paper"
        self.align_corners = align_corners
        self.input_level = input_level
        self.pooling = 2 ** (K - input_level)
        self.decoder = HierarchicalDecoder(channels, channels[input_level - 1], hidden, kernel_sizes, negative_slope)
        self.gaussian = GaussianFilter(sigma)

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
