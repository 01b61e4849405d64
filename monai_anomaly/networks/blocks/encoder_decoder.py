"""The encoder-decoder that ProxyAno uses in both of its modules."""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.blocks import Convolution
from torch import Tensor, nn

__all__ = ["EncoderDecoder", "StridedDecoder", "StridedEncoder"]


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
        norm: str | tuple | None = "BATCH",
        act: str | tuple = ("LEAKYRELU", {"negative_slope": 0.2}),
    ) -> None:
        stages: list[nn.Module] = []
        width = in_channels
        for channel in channels:
            stages.append(
                Convolution(
                    spatial_dims,
                    width,
                    channel,
                    strides=2,
                    kernel_size=4,
                    padding=1,
                    norm=norm,
                    act=act,
                    adn_ordering="NA",
                )
            )
            width = channel
        stages.append(Convolution(spatial_dims, width, latent_channels, kernel_size=1, conv_only=True))
        super().__init__(*stages)


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
        norm: str | tuple | None = "BATCH",
        act: str | tuple = ("LEAKYRELU", {"negative_slope": 0.2}),
    ) -> None:
        widths = list(reversed(channels))
        stages: list[nn.Module] = [
            Convolution(spatial_dims, latent_channels, widths[0], kernel_size=1, norm=norm, act=act, adn_ordering="NA")
        ]
        for i, width in enumerate(widths):
            last = i == len(widths) - 1
            stages.append(
                Convolution(
                    spatial_dims,
                    width,
                    out_channels if last else widths[i + 1],
                    strides=2,
                    kernel_size=4,
                    padding=1,
                    output_padding=0,
                    is_transposed=True,
                    norm=norm,
                    act=act,
                    adn_ordering="NA",
                    conv_only=last,
                )
            )
        super().__init__(*stages)


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
