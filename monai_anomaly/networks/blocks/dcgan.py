"""Table 1 of DDR-ID: a DCGAN-like encoder and decoder with a latent vector between them, and a critic of the latter."""

from __future__ import annotations

import torch.nn.functional as F
from monai.networks.blocks import Convolution
from torch import Tensor, nn

from .encoder_decoder import doubling, halving

__all__ = ["DCGANDecoder", "DCGANEncoder", "LatentAutoencoder", "LatentDiscriminator", "dcgan_widths"]

_LEAKY = ("LEAKYRELU", {"negative_slope": 0.2})  # Table 1
_SIZES = (28, 32, 64, 128, 256)


def dcgan_widths(image_size: int, channels: int = 64) -> list[int]:
    """Widths of the encoder's stride-2 convolutions.

    Table 1 has four, of 64, 128, 256 and 512 channels, which take 32 x 32 to 2 x 2. Each doubling of the size adds one
    of 512 at the end, so that the fully connected layer always sees 2 x 2 x 512.

    Args:
        image_size: 28, 32, 64, 128 or 256; 28 is padded to 32.
        channels: width of the first, 64 in Table 1; the others keep their ratio to it.

    Returns:
        One width a stage.

    Raises:
        ValueError: for another size.
    """
    if image_size not in _SIZES:
        raise ValueError(f"image_size is one of {_SIZES}, got {image_size}")
    stages = max(image_size, 32).bit_length() - 2  # 32 = 2^5: four stages to 2 x 2
    return [channels * min(2**i, 8) for i in range(stages)]


class DCGANEncoder(nn.Module):
    """Convolutions 4 x 4 of stride 2, then a fully connected layer to the latent vector (Table 1, first column).

    Args:
        in_channels: channels C of the image.
        image_size: side S of the image, see ``dcgan_widths``. An image of 28 is padded by two pixels on each side,
            which repeat its border: nothing is resampled.
        channels: width of the first convolution.
        latent_channels: 128 on MNIST, 512 elsewhere.
        order: ``"NA"``: batch normalisation before the activation (Table 1); ``"AN"``: after it (section 3.1).
        first_norm: with batch normalisation after the first convolution too (section 3.1 speaks of each convolution;
            Table 1 has none there).
        bias: of the convolutions and of the fully connected layer.
        affine: batch normalisation with learnt scale and shift.
    """

    def __init__(
        self,
        in_channels: int = 1,
        image_size: int = 32,
        channels: int = 64,
        latent_channels: int = 512,
        order: str = "NA",
        first_norm: bool = False,
        bias: bool = True,
        affine: bool = True,
    ) -> None:
        super().__init__()
        widths = dcgan_widths(image_size, channels)
        self.border = 2 if image_size == 28 else 0
        stages: list[nn.Module] = []
        for i, (width, before) in enumerate(zip(widths, [in_channels, *widths])):
            norm = ("BATCH", {"affine": affine}) if i > 0 or first_norm else None
            stages.append(halving(2, before, width, norm, _LEAKY, order, bias))
        self.convolutions = nn.Sequential(*stages)
        self.to_latent = nn.Linear(4 * widths[-1], latent_channels, bias=bias)

    def stages(self) -> list[nn.Module]:
        """The convolutions, each of which halves the size."""
        return list(self.convolutions)

    def forward(self, image: Tensor) -> Tensor:
        """The latent vector Z, shape (B, latent_channels), of an image of shape (B, C, S, S)."""
        if self.border > 0:
            border = self.border
            image = F.pad(image, [border, border, border, border], mode="replicate")
        return self.to_latent(self.convolutions(image).flatten(1))


class DCGANDecoder(nn.Module):
    """A deconvolution 4 x 4 from the latent vector to 4 x 4 pixels, then others of stride 2 (Table 1, second column).

    Args:
        out_channels: channels C of the image.
        image_size: side S of the image, see ``dcgan_widths``. The 32 x 32 pixels that are made for 28 are cropped.
        channels: width of the last printed deconvolution, 64 in Table 1.
        latent_channels: 128 on MNIST, 512 elsewhere.
        order: see ``DCGANEncoder``.
        projection: Table 1's last row, DeConv4-2-64, makes 32 x 32 pixels and is followed by Tanh. False: it has the
            image's channels in the place of the 64, as the last layer of a DCGAN has. True: it keeps its 64, and a
            convolution 1 x 1 to the image's channels comes before the Tanh.
        output_activation: Tanh in Table 1; MONAI's name of another, or None.
        bias: of the deconvolutions.
        affine: batch normalisation with learnt scale and shift.
    """

    def __init__(
        self,
        out_channels: int = 1,
        image_size: int = 32,
        channels: int = 64,
        latent_channels: int = 512,
        order: str = "NA",
        projection: bool = False,
        output_activation: str | None = "tanh",
        bias: bool = True,
        affine: bool = True,
    ) -> None:
        super().__init__()
        # 512 at 4 x 4, then 512 for each size above 32, 256, 128, 64 (Table 1 for 32)
        widths = dcgan_widths(image_size, channels)[::-1]
        self.border = 2 if image_size == 28 else 0
        stages: list[nn.Module] = []
        for i, (width, before) in enumerate(zip(widths, [latent_channels, *widths])):
            last = i == len(widths) - 1
            bare = last and not projection
            # the last row of Table 1 has Tanh in the place of norm and activation
            norm = None if last else ("BATCH", {"affine": affine})
            act = (output_activation if bare else None) if last else _LEAKY
            stages.append(doubling(2, before, out_channels if bare else width, norm, act, order, bias, i == 0))
        if projection:
            stages.append(
                Convolution(2, channels, out_channels, kernel_size=1, norm=None, act=output_activation, bias=bias)
            )
        self.deconvolutions = nn.Sequential(*stages)

    def forward(self, z: Tensor) -> Tensor:
        """An image of shape (B, C, S, S) of latent vectors of shape (B, latent_channels)."""
        image = self.deconvolutions(z[:, :, None, None])
        if self.border > 0:
            image = image[:, :, self.border : -self.border, self.border : -self.border]
        return image


class LatentAutoencoder(nn.Module):
    """An encoder to a latent vector, and a decoder from it.

    Args:
        encoder: from (B, C, S, S) to (B, latent_channels).
        decoder: back.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The reconstruction, shape (B, C, S, S), and the latent vector, shape (B, latent_channels)."""
        z = self.encoder(image)
        return self.decoder(z), z


class LatentDiscriminator(nn.Sequential):
    """D_L: fully connected layers on a latent vector (Table 1, last columns); logits, the sigmoid is the loss's.

    Args:
        latent_channels: width of the latent vector.
        channels: width of the first layer; None: 128 for more than 128 latent channels (CIFAR-10, Endosome, GTSRB), 64
            else (MNIST). Layers of 32, 16 and 1 follow.
        order: ``"NA"``: batch normalisation, then ReLU (Table 1); ``"AN"``: the reverse (section 3.1).
    """

    def __init__(self, latent_channels: int = 512, channels: int | None = None, order: str = "NA") -> None:
        if channels is None:
            channels = 128 if latent_channels > 128 else 64
        layers: list[nn.Module] = []
        before = latent_channels
        for width in (channels, 32, 16):
            tail: list[nn.Module] = [nn.BatchNorm1d(width), nn.ReLU()]
            layers += [nn.Linear(before, width), *(tail if order == "NA" else tail[::-1])]
            before = width
        super().__init__(*layers, nn.Linear(before, 1))
