"""The decoder that takes the encoder's features beside the latent map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.blocks import Convolution
from torch import Tensor, nn

from .encoder_decoder import doubling

__all__ = ["SkipDecoder"]


class SkipDecoder(nn.Module):
    """``StridedDecoder`` with skips: each stage but the first also sees the encoder's features of its size.

    Args:
        spatial_dims: 2 or 3.
        out_channels: channels of the image.
        channels: widths of the encoder's stages, in the encoder's order.
        latent_channels: width d of the latent map.
        norm: normalisation between convolution and activation, as in MONAI.
        act: activation, as in MONAI.

    Notes:
        The features of the deepest stage have the latent map's size and are left out: beside them the latent map, and
        a memory in it, would say nothing. The full size has no features of its own in the encoder, and no skip.

    References:
        O. Ronneberger et al., *U-Net*, MICCAI 2015; "AE+Skip" of DAAD's Table 3 has DAAD's own layers instead.
    """

    def __init__(
        self,
        spatial_dims: int,
        out_channels: int,
        channels: Sequence[int] = (64, 128, 256, 512),
        latent_channels: int = 64,
        norm: str | tuple | None = "BATCH",
        act: str | tuple = ("LEAKYRELU", {"negative_slope": 0.2}),
    ) -> None:
        super().__init__()
        widths = list(reversed(channels))
        self.entrance = Convolution(
            spatial_dims, latent_channels, widths[0], kernel_size=1, norm=norm, act=act, adn_ordering="NA"
        )
        inputs = [widths[0], *(2 * width for width in widths[1:])]
        self.stages = nn.ModuleList(
            doubling(spatial_dims, before, after, norm, act) for before, after in zip(inputs, widths[1:])
        )
        self.stages.append(doubling(spatial_dims, inputs[-1], out_channels, None, None))

    def forward(self, z: Tensor, features: list[Tensor]) -> Tensor:
        """The image of a latent map.

        Args:
            z: shape (B, d, *spatial / 2 ** n), n stages.
            features: of the encoder's stages, the finest first: shapes (B, channels[k], *spatial / 2 ** (k + 1)).

        Returns:
            Shape (B, out_channels, *spatial).
        """
        x = self.entrance(z)
        for i, stage in enumerate(self.stages):
            if i > 0:
                x = torch.cat([x, features[len(features) - 1 - i]], dim=1)
            x = stage(x)
        return x
