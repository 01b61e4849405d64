"""The encoder and decoder of ITAE's Table 10: pooling, interpolation, pairs of 3 x 3 convolutions, skips."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from monai.networks.blocks import Convolution, UpSample
from monai.networks.layers.factories import Conv, Pool
from torch import Tensor, nn

from monai_anomaly.exceptions import check_choice

__all__ = ["TwoConvolutions", "UNetDecoder", "UNetEncoder", "up_sampling"]


def up_sampling(spatial_dims: int, channels: int, mode: str) -> nn.Module:
    """Twice the size, the same channels.

    Args:
        spatial_dims: 2 or 3.
        channels: of input and output.
        mode: ``"linear"`` or ``"nearest"`` interpolation, or ``"deconv"``, a transposed convolution.

    Raises:
        ValueError: for another mode.
    """
    if mode == "deconv":
        return UpSample(spatial_dims, channels, channels, mode="deconv")
    check_choice("upsample", mode, "linear", "nearest")
    corners = True if mode == "linear" else None
    # Without pre_conv=None there would be a 1 x 1 convolution that Table 10 has not
    return UpSample(
        spatial_dims, channels, channels, mode="nontrainable", pre_conv=None, interp_mode=mode, align_corners=corners
    )


class TwoConvolutions(nn.Sequential):
    """Two 3 x 3 convolutions, each with normalisation and activation.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the input.
        channels: of both convolutions.
        norm: normalisation, as in MONAI, or None.
        act: activation, as in MONAI, or None.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, channels: int, norm: str | tuple | None, act: str | tuple | None
    ) -> None:
        super().__init__(
            *(
                Convolution(spatial_dims, width, channels, kernel_size=3, norm=norm, act=act, adn_ordering="NA")
                for width in (in_channels, channels)
            )
        )


class UNetEncoder(nn.Module):
    """Table 10, upper half: a pair of convolutions, then blocks of max-pooling and a pair of convolutions.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the input.
        channels: of each level, from the full size down.
        norm: see ``TwoConvolutions``, as the next.
        act: activation.
        pool: ``"MAX"`` (Table 10) or ``"AVG"``.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        channels: Sequence[int] = (64, 128, 256, 512, 512),
        norm: str | tuple | None = "BATCH",
        act: str | tuple | None = "RELU",
        pool: str = "MAX",
    ) -> None:
        super().__init__()
        self.entrance = TwoConvolutions(spatial_dims, in_channels, channels[0], norm, act)
        self.blocks = nn.ModuleList(
            nn.Sequential(Pool[pool, spatial_dims](2), TwoConvolutions(spatial_dims, above, width, norm, act))
            for above, width in pairwise(channels)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """The features of each level, from the full size down: x_0-2, x_1-3, x_2-3, x_3-3, x_4-3 of Table 10."""
        x = self.entrance(x)
        features = [x]
        for block in self.blocks:
            x = block(x)
            features.append(x)
        return features


class _UpBlock(nn.Module):
    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        skip_channels: int,
        channels: int,
        norm: str | tuple | None,
        act: str | tuple | None,
        upsample: str,
        skip: bool,
        add: bool,
    ) -> None:
        super().__init__()
        self.skip, self.add = skip, skip and add
        self.up = up_sampling(spatial_dims, skip_channels if self.add else in_channels, upsample)
        # before the upsampling, where it costs a quarter
        self.narrow = Conv["CONV", spatial_dims](in_channels, skip_channels, 1) if self.add else nn.Identity()
        width = skip_channels if self.add else in_channels + skip_channels if skip else in_channels
        self.convolutions = TwoConvolutions(spatial_dims, width, channels, norm, act)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.up(self.narrow(x))
        if self.add:
            return self.convolutions(x + skip)
        return self.convolutions(torch.cat([x, skip], dim=1) if self.skip else x)


class UNetDecoder(nn.Module):
    """Table 10, lower half, without its last row: blocks of upsampling, a skip, and a pair of convolutions.

    Args:
        spatial_dims: 2 or 3.
        encoder_channels: of the encoder's features, from the largest down.
        channels: of the blocks, from the smallest up; one fewer.
        norm: see ``TwoConvolutions``, as the next.
        act: activation.
        upsample: see ``up_sampling``.
        skip: take the encoder's features; False: the last of them alone.
        add: add the encoder's features to the upsampled ones, which a 1 x 1 convolution brings to their number of
            channels; False: join them, as Table 10 does.
    """

    def __init__(
        self,
        spatial_dims: int,
        encoder_channels: Sequence[int] = (64, 128, 256, 512, 512),
        channels: Sequence[int] = (256, 128, 64, 64),
        norm: str | tuple | None = "BATCH",
        act: str | tuple | None = "RELU",
        upsample: str = "linear",
        skip: bool = True,
        add: bool = False,
    ) -> None:
        super().__init__()
        below = [encoder_channels[-1], *channels]
        self.blocks = nn.ModuleList(
            _UpBlock(spatial_dims, inputs, beside, width, norm, act, upsample, skip, add)
            for inputs, beside, width in zip(below, reversed(encoder_channels[:-1]), channels)
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        """The last block's output for the encoder's features, at the size of the first of them."""
        x = features[-1]
        for i, block in enumerate(self.blocks):
            x = block(x, features[-2 - i])
        return x
