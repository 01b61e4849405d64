"""The LeNet-type encoder and decoder of Deep SVDD."""

from __future__ import annotations

import torch.nn.functional as F
from monai.networks.blocks import Convolution
from monai.networks.layers.factories import Act
from torch import Tensor, nn

__all__ = ["LeNetDecoder", "LeNetEncoder", "lenet_widths"]

_LEAKY = ("LEAKYRELU", {"negative_slope": 0.1})
_SIZES = (28, 32, 64, 128, 256)


def lenet_widths(image_size: int, channels: int | None = None) -> list[int]:
    """Widths of the encoder's modules.

    Ruff et al. have two of 8 and 4 filters for 28 x 28 (MNIST), and three of 32, 64 and 128 for 32 x 32 (CIFAR-10),
    which end at 4 x 4. Each doubling of the size adds one of 128, so that all larger ones end at 4 x 4 too.

    Args:
        image_size: 28, 32, 64, 128 or 256.
        channels: width of the first; None: 8 at 28, 32 else. The others keep their ratio to it.

    Returns:
        One width a module.

    Raises:
        ValueError: for another size.
    """
    if image_size not in _SIZES:
        raise ValueError(f"image_size is one of {_SIZES}, got {image_size}")
    if image_size == 28:
        first = 8 if channels is None else channels
        return [first, max(1, first // 2)]
    first = 32 if channels is None else channels
    return [first * min(2**i, 4) for i in range(image_size.bit_length() - 3)]


def _module(before: int, width: int) -> Convolution:
    # Proposition 2 of Ruff et al.: a bias would let the network map everything on the centre.
    norm = ("BATCH", {"affine": False, "eps": 1e-4})
    return Convolution(2, before, width, kernel_size=5, norm=norm, act=_LEAKY, adn_ordering="NA", bias=False)


class LeNetEncoder(nn.Module):
    """Modules of a convolution 5 x 5, LeakyReLU 0.1 and max pooling 2 x 2, then a dense layer; without any bias.

    Args:
        in_channels: channels C of the image.
        image_size: side S of the image.
        channels: see ``lenet_widths``.
        latent_channels: 32 on MNIST, 128 on CIFAR-10.

    References:
        L. Ruff et al., *Deep One-Class Classification*, ICML 2018, section 4 (architectures) and 3.3 (no bias).
    """

    def __init__(
        self, in_channels: int = 1, image_size: int = 32, channels: int | None = None, latent_channels: int = 128
    ) -> None:
        super().__init__()
        widths = lenet_widths(image_size, channels)
        modules: list[nn.Module] = []
        for width, before in zip(widths, [in_channels, *widths]):
            modules += [_module(before, width), nn.MaxPool2d(2)]
        self.convolutions = nn.Sequential(*modules)
        side = image_size >> len(widths)
        self.to_latent = nn.Linear(widths[-1] * side * side, latent_channels, bias=False)

    def stages(self) -> list[nn.Module]:
        """The convolutions with their pooling, each of which halves the size."""
        layers = list(self.convolutions)
        return [nn.Sequential(layers[i], layers[i + 1]) for i in range(0, len(layers), 2)]

    def forward(self, image: Tensor) -> Tensor:
        """The latent vector, shape (B, latent_channels), of an image of shape (B, C, S, S)."""
        return self.to_latent(self.convolutions(image).flatten(1))


class LeNetDecoder(nn.Module):
    """The encoder's mirror: the latent vector as 4 x 4 pixels, modules of convolution and upsampling, a convolution.

    Args:
        out_channels: channels C of the image.
        image_size: side S of the image.
        channels: see ``lenet_widths``.
        latent_channels: a multiple of 16.
        output_activation: MONAI's name of one, or None.

    Raises:
        ValueError: if ``latent_channels`` is no multiple of 16.

    Notes:
        "The autoencoder is symmetric, with upsampling in the place of max pooling": nearest, by two. For 28 x 28 the
        4 x 4 pixels are first made 7 x 7.
    """

    def __init__(
        self,
        out_channels: int = 1,
        image_size: int = 32,
        channels: int | None = None,
        latent_channels: int = 128,
        output_activation: str | None = "sigmoid",
    ) -> None:
        super().__init__()
        if latent_channels % 16 != 0:
            raise ValueError(f"latent_channels must be a multiple of 16, got {latent_channels}")
        widths = lenet_widths(image_size, channels)[::-1]
        self.side = image_size >> len(widths)
        first = latent_channels // 16
        self.modules_up = nn.ModuleList([_module(b, w) for w, b in zip(widths, [first, *widths])])
        self.to_image = Convolution(2, widths[-1], out_channels, kernel_size=5, bias=False, conv_only=True)
        self.activation = nn.Identity() if output_activation is None else Act[output_activation]()

    def forward(self, z: Tensor) -> Tensor:
        """An image of shape (B, C, S, S) of latent vectors of shape (B, latent_channels)."""
        x = F.leaky_relu(z.view(z.shape[0], -1, 4, 4), 0.1)
        if self.side != 4:
            x = F.interpolate(x, size=[self.side, self.side], mode="nearest")
        for module in self.modules_up:
            x = F.interpolate(module(x), scale_factor=2.0, mode="nearest")
        return self.activation(self.to_image(x))
