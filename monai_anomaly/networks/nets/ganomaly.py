"""GANomaly: encoder, decoder, and a second encoder of what was decoded.

S. Akcay, A. Atapour-Abarghouei, T. P. Breckon, *GANomaly: Semi-Supervised Anomaly Detection via Adversarial Training*,
ACCV 2018. Symbols follow the paper: z = G_E(x), x-hat = G_D(z), z-hat = E(x-hat), D the discriminator, f its last
features.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from monai.networks.blocks import Convolution
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from monai_anomaly.exceptions import check_choice
from monai_anomaly.networks.blocks.encoder_decoder import doubling, halving
from monai_anomaly.networks.blocks.features import StagedFeatures, SymmetricRange
from monai_anomaly.networks.detector import AnomalyDetector, AnomalyOutput

__all__ = ["GANomaly", "GANomalyDiscriminator", "GANomalyGenerator", "start_weights"]

_LEAKY = ("LEAKYRELU", {"negative_slope": 0.2})


def start_weights(module: nn.Module) -> None:
    """Start values as in the published implementation (and DCGAN): N(0, 0.02); batch normalisation N(1, 0.02) and 0.

    Args:
        module: goes to ``nn.Module.apply``.
    """
    if isinstance(module, _ConvNd):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, _BatchNorm):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def pyramid(image_size: Sequence[int], spatial_dims: int, channels: int) -> list[int]:
    """Widths of the stride-2 convolutions that take an image to sides of 4: doubled from one to the next.

    Args:
        image_size: one and the same side ``spatial_dims`` times, 16, 32, 64, ...
        spatial_dims: 2 or 3.
        channels: the first width.

    Raises:
        ValueError: for another size.
    """
    side = int(image_size[0]) if len(image_size) == spatial_dims else 0
    stages = side.bit_length() - 3
    if stages < 2 or side != 4 << stages or any(int(s) != side for s in image_size):
        raise ValueError(f"image_size is {spatial_dims} times one power of two from 16 on, got {list(image_size)}")
    return [channels * 2**i for i in range(stages)]


class _Features(nn.Sequential):
    """Convolutions 4 of stride 2, the first without batch normalisation, to sides of 4."""

    def __init__(self, spatial_dims: int, in_channels: int, widths: Sequence[int]) -> None:
        super().__init__(
            *(
                halving(spatial_dims, before, width, None if i == 0 else "BATCH", _LEAKY, bias=False)
                for i, (before, width) in enumerate(zip([in_channels, *widths], widths))
            )
        )


class _Encoder(nn.Sequential):
    """G_E and E: the features, and a convolution over all that is left of the image."""

    def __init__(self, spatial_dims: int, in_channels: int, widths: Sequence[int], latent_channels: int) -> None:
        super().__init__(
            _Features(spatial_dims, in_channels, widths),
            Convolution(
                spatial_dims, widths[-1], latent_channels, kernel_size=4, padding=0, bias=False, conv_only=True
            ),
        )


class _Decoder(nn.Sequential):
    """G_D: the encoder backwards, with ReLU, and Tanh at the end."""

    def __init__(self, spatial_dims: int, out_channels: int, widths: Sequence[int], latent_channels: int) -> None:
        back = [latent_channels, *reversed(widths), out_channels]
        layers = [("BATCH", "RELU")] * len(widths) + [(None, "TANH")]
        super().__init__(
            *(
                doubling(spatial_dims, before, after, norm, act, bias=False, from_one=i == 0)
                for i, ((before, after), (norm, act)) in enumerate(zip(pairwise(back), layers))
            )
        )


class GANomalyGenerator(nn.Module):
    """G_E, G_D and E, which are trained together.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        widths: see ``pyramid``.
        latent_channels: length of z.
    """

    def __init__(self, spatial_dims: int, in_channels: int, widths: Sequence[int], latent_channels: int) -> None:
        super().__init__()
        self.encoder = _Encoder(spatial_dims, in_channels, widths, latent_channels)
        self.decoder = _Decoder(spatial_dims, in_channels, widths, latent_channels)
        self.second_encoder = _Encoder(spatial_dims, in_channels, widths, latent_channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x-hat, z and z-hat of x.

        Args:
            x: shape (B, C, *spatial), in [-1, 1].

        Returns:
            Shapes (B, C, *spatial), (B, latent_channels) and (B, latent_channels).
        """
        z = self.encoder(x)
        x_hat = self.decoder(z)
        return x_hat, z.flatten(1), self.second_encoder(x_hat).flatten(1)


class GANomalyDiscriminator(nn.Module):
    """D: the layers of the encoder with one output, its last features beside it.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        image_size: as the detector's.
        channels: width of the first convolution.

    Raises:
        ValueError: for a size that the layers do not fit.
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        image_size: Sequence[int] = (32, 32),
        channels: int = 64,
    ) -> None:
        super().__init__()
        widths = pyramid(image_size, spatial_dims, channels)
        self.features = _Features(spatial_dims, in_channels, widths)
        self.classifier = Convolution(spatial_dims, widths[-1], 1, kernel_size=4, padding=0, bias=False, conv_only=True)
        self.apply(start_weights)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The logits, shape (B,), and the features f(x), shape (B, width, 4, ..., 4), of images in [-1, 1]."""
        features = self.features(x)
        return self.classifier(features).flatten(), features


class GANomaly(AnomalyDetector):
    """The encoder-decoder-encoder.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        image_size: one power of two from 16 on, ``spatial_dims`` times; 32 in the paper.
        channels: width of the first convolution, 64; each further one has twice as many.
        latent_channels: length of z, 100.
        score: ``"l1"``: ||z - z-hat||_1 (Eq. 5); ``"l2"``: the mean of (z - z-hat)^2, as the published implementation
            computes.

    Attributes:
        generator: G_E, G_D and E.

    Raises:
        ValueError: for a size that the layers do not fit, or an unknown score.

    Notes:
        The paper has no map: here |x - x-hat|, the mean over channels. Its Eq. 6 scales the scores by the minimum and
        maximum over the test set; that needs the test set, changes no order, and is left out.

    Example::

        detector = GANomaly(in_channels=1, image_size=(32, 32))
        anomaly_map, anomaly_score, restoration = detector.eval().detect(torch.rand(1, 1, 32, 32))
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        image_size: Sequence[int] = (32, 32),
        channels: int = 64,
        latent_channels: int = 100,
        score: str = "l1",
    ) -> None:
        super().__init__(spatial_dims, in_channels, size_divisor=int(image_size[0]))
        check_choice("score", score, "l1", "l2")
        widths = pyramid(image_size, spatial_dims, channels)
        self.absolute = score == "l1"
        self.side = int(image_size[0])
        self.generator = GANomalyGenerator(spatial_dims, in_channels, widths, latent_channels)
        self.generator.apply(start_weights)

    def detect(self, image: Tensor) -> AnomalyOutput:
        """See ``AnomalyDetector.detect``."""
        x_hat, z, z_hat = self.generator(self.normalise(image))
        restored = 0.5 * x_hat + 0.5
        anomaly_map = (image - restored).abs().mean(dim=1, keepdim=True)
        difference = z - z_hat
        if self.absolute:
            anomaly_score = difference.abs().sum(dim=1)  # Eq. 5
        else:
            anomaly_score = (difference * difference).mean(dim=1)
        return AnomalyOutput(anomaly_map, anomaly_score, restored)

    def feature_encoder(self) -> nn.Module:
        """The encoder as features of three levels: from an image to three maps, finest first."""
        stages = list(self.generator.encoder[0].children())
        return StagedFeatures(stages, 2 ** len(stages), SymmetricRange())

    def normalise(self, image: Tensor) -> Tensor:
        """What the networks see of an image: [0, 1] becomes [-1, 1], the range of Tanh.

        Args:
            image: shape (B, C, *spatial).

        Raises:
            ValueError: if channels or size do not fit the network.
        """
        self.check_input(image, [self.side] * self.spatial_dims)
        return 2.0 * image - 1.0
