"""The encoder-decoder that ProxyAno uses in both of its modules."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from monai.networks.blocks import Convolution
from torch import Tensor, nn

__all__ = ["EncoderDecoder", "StridedDecoder", "StridedEncoder", "doubling", "halving"]

Layer = str | tuple | None  # a normalisation or an activation, as in MONAI


def halving(
    spatial_dims: int, in_channels: int, channels: int, norm: Layer, act: Layer, order: str = "NA", bias: bool = True
) -> Convolution:
    """A convolution 4 of stride 2, which halves the size, then normalisation and activation in this order."""
    return Convolution(
        spatial_dims,
        in_channels,
        channels,
        strides=2,
        kernel_size=4,
        padding=1,
        norm=norm,
        act=act,
        adn_ordering=order,
        bias=bias,
    )


def doubling(
    spatial_dims: int,
    in_channels: int,
    channels: int,
    norm: Layer,
    act: Layer,
    order: str = "NA",
    bias: bool = True,
    from_one: bool = False,
) -> Convolution:
    """The transposed ``halving``, which doubles the size; with ``from_one`` it makes 4 pixels a side of one."""
    return Convolution(
        spatial_dims,
        in_channels,
        channels,
        strides=1 if from_one else 2,
        kernel_size=4,
        padding=0 if from_one else 1,
        output_padding=0,
        is_transposed=True,
        norm=norm,
        act=act,
        adn_ordering=order,
        bias=bias,
    )


class StridedEncoder(nn.Sequential):
    """Stride-2 convolutions, then a 1 x 1 convolution to the latent width; no skips.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        channels: width of each stride-2 stage.
        latent_channels: width d of the latent map.
        norm: normalisation between convolution and activation, as in MONAI.
        act: activation, as in MONAI.

    Notes:
        Maps (B, C, *spatial) to (B, d, *spatial / 2 ** len(channels)). Fig. 5 of ProxyAno holds the paper's
        architecture and is lost in the text; four stages of 64 to 512 channels are our reading.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        channels: Sequence[int] = (64, 128, 256, 512),
        latent_channels: int = 64,
        norm: Layer = "BATCH",
        act: Layer = ("LEAKYRELU", {"negative_slope": 0.2}),
    ) -> None:
        super().__init__(
            *(halving(spatial_dims, before, after, norm, act) for before, after in pairwise([in_channels, *channels])),
            Convolution(spatial_dims, channels[-1], latent_channels, kernel_size=1, conv_only=True),
        )


class StridedDecoder(nn.Sequential):
    """The mirror of ``StridedEncoder``: a 1 x 1 convolution, then transposed stride-2 convolutions; linear output.

    Args:
        spatial_dims: 2 or 3.
        out_channels: channels of the image.
        channels: widths of the encoder's stages, in the encoder's order.
        latent_channels: width d of the latent map.
        norm: normalisation between convolution and activation, as in MONAI.
        act: activation, as in MONAI.
    """

    def __init__(
        self,
        spatial_dims: int,
        out_channels: int,
        channels: Sequence[int] = (64, 128, 256, 512),
        latent_channels: int = 64,
        norm: Layer = "BATCH",
        act: Layer = ("LEAKYRELU", {"negative_slope": 0.2}),
    ) -> None:
        widths = list(reversed(channels))
        super().__init__(
            Convolution(spatial_dims, latent_channels, widths[0], kernel_size=1, norm=norm, act=act, adn_ordering="NA"),
            *(doubling(spatial_dims, before, after, norm, act) for before, after in pairwise(widths)),
            doubling(spatial_dims, widths[-1], out_channels, None, None),
        )


class EncoderDecoder(nn.Module):
    """``StridedDecoder(StridedEncoder(x))``: (B, in_channels, *spatial) to (B, out_channels, *spatial).

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the input.
        out_channels: channels of the output.
        channels: width of each stride-2 stage.
        latent_channels: width d of the latent map.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, out_channels: int, channels: Sequence[int], latent_channels: int
    ) -> None:
        super().__init__()
        self.encoder = StridedEncoder(spatial_dims, in_channels, channels, latent_channels)
        self.decoder = StridedDecoder(spatial_dims, out_channels, channels, latent_channels)

    def forward(self, image: Tensor) -> Tensor:
        return self.decoder(self.encoder(image))
