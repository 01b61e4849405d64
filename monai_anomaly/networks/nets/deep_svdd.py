"""The baselines of DDR-ID's tables: the deep convolutional autoencoder (DCAE) and Deep SVDD.

L. Ruff et al., *Deep One-Class Classification*, ICML 2018; DDR-ID, section 4.1.
"""

# No postponed annotations here: TorchScript reads the real ones.

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from monai_anomaly.exceptions import check_choice
from monai_anomaly.networks.blocks import (
    DCGANDecoder,
    DCGANEncoder,
    LatentAutoencoder,
    LeNetDecoder,
    LeNetEncoder,
)
from monai_anomaly.networks.detector import AnomalyOutput

from .ddrid import SquareDetector, contrast_features

__all__ = ["DCAE", "DeepSVDD"]


def _encoder(
    architecture: str, in_channels: int, side: int, channels: int | None, latent: int | None
) -> DCGANEncoder | LeNetEncoder:
    if architecture == "lenet":
        return LeNetEncoder(in_channels, side, channels, latent or (32 if side == 28 else 128))
    if architecture == "dcgan":
        latent = latent or (128 if side == 28 else 512)
        return DCGANEncoder(in_channels, side, channels or 64, latent, bias=False, affine=False)
    raise ValueError(f"architecture is 'lenet' or 'dcgan', got {architecture!r}")


def _autoencoder(
    architecture: str,
    in_channels: int,
    side: int,
    channels: int | None,
    latent: int | None,
    output_activation: str | None,
) -> LatentAutoencoder:
    encoder = _encoder(architecture, in_channels, side, channels, latent)
    latent = encoder.to_latent.out_features
    decoder: nn.Module
    if architecture == "lenet":
        decoder = LeNetDecoder(in_channels, side, channels, latent, output_activation)
    else:
        decoder = DCGANDecoder(
            in_channels, side, channels or 64, latent, output_activation=output_activation, bias=False, affine=False
        )
    return LatentAutoencoder(encoder, decoder)


class DCAE(SquareDetector):
    """An autoencoder whose reconstruction error is the score.

    Args:
        spatial_dims: 2; volumes go slice by slice.
        in_channels: channels C of the image.
        image_size: side of the (square) image: 28, 32, 64, 128 or 256.
        architecture: ``"lenet"``: the LeNet-type networks of Ruff et al., which the tables compare; ``"dcgan"``:
            DDR-ID's own encoder and decoder, without biases.
        channels: width of the first convolution; None: the architecture's own (8 or 32, 64).
        latent_channels: None: the architecture's own (32 or 128; 128 or 512).
        output_activation: sigmoid, for an input in [0, 1].
        contrast: see ``DDRID``; the tables' methods share it.
        rescale: see ``DDRID``.

    Raises:
        ValueError: for three dimensions, a size that is not served, or an unknown setting.
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        image_size: int | Sequence[int] = 32,
        architecture: str = "lenet",
        channels: int | None = None,
        latent_channels: int | None = None,
        output_activation: str | None = "sigmoid",
        contrast: str | None = "l1",
        rescale: str | None = "training",
    ) -> None:
        super().__init__(spatial_dims, in_channels, image_size, contrast, rescale)
        side = self.image_side
        self.autoencoder = _autoencoder(architecture, in_channels, side, channels, latent_channels, output_activation)

    def detect(self, image: Tensor) -> AnomalyOutput:
        """The map is the squared error per pixel (the mean over channels), the score its sum over all elements."""
        x, offset, scale = self.normalise(image)
        reconstruction = self.autoencoder(x)[0]
        error = (x - reconstruction) ** 2
        anomaly_score = error.flatten(1).sum(dim=1)
        return AnomalyOutput(error.mean(dim=1, keepdim=True), anomaly_score, reconstruction * scale + offset)

    def feature_encoder(self) -> nn.Module:
        """The encoder as features of three levels: from an image to three maps, finest first."""
        return contrast_features(self.autoencoder.encoder, self.normalisation)


class DeepSVDD(SquareDetector):
    """Deep Support Vector Data Description: normals lie in a small sphere of the latent space.

    Args:
        spatial_dims: 2; volumes go slice by slice.
        in_channels: channels C of the image.
        image_size: see ``DCAE``, as for the next four.
        architecture: ``"lenet"`` or ``"dcgan"``; the encoder has no biases (Ruff et al., section 3.3).
        channels: width of the first convolution.
        latent_channels: width of the latent space.
        output_activation: of the pretraining autoencoder.
        objective: ``"one-class"`` (Eq. 4 of Ruff et al.) or ``"soft-boundary"`` (Eq. 3).
        nu: upper bound of the share of training normals outside the sphere, 0.05 (DDR-ID, section 4.1); of
            ``"soft-boundary"`` alone.
        centre_margin: coordinates of the centre nearer to 0 than this are moved that far from it, 0.1.
        distance: ``"squared"`` (Eq. 5 of Ruff et al.) or ``"euclidean"`` (DDR-ID, section 4.1).
        contrast: see ``DDRID``.
        rescale: see ``DDRID``.

    Attributes:
        autoencoder: the pretrained one; it stays as pretraining left it, and ``encoder`` starts as its encoder.
        centre: c, shape (latent_channels,).
        radius: R, shape (); 0 for ``"one-class"``.

    Raises:
        ValueError: for three dimensions, a size that is not served, or an unknown setting.

    Notes:
        The method scores images and has no map. The map here is the squared reconstruction error of the pretrained
        autoencoder, and the restoration is its output: both are the DCAE's, and say nothing of the sphere.
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        image_size: int | Sequence[int] = 32,
        architecture: str = "lenet",
        channels: int | None = None,
        latent_channels: int | None = None,
        output_activation: str | None = "sigmoid",
        objective: str = "one-class",
        nu: float = 0.05,
        centre_margin: float = 0.1,
        distance: str = "squared",
        contrast: str | None = "l1",
        rescale: str | None = "training",
    ) -> None:
        super().__init__(spatial_dims, in_channels, image_size, contrast, rescale)
        check_choice("objective", objective, "one-class", "soft-boundary")
        if not 0.0 < nu <= 1.0:
            raise ValueError(f"nu lies in (0, 1], got {nu}")
        check_choice("distance", distance, "squared", "euclidean")
        side = self.image_side
        self.soft_boundary = objective == "soft-boundary"
        self.nu, self.centre_margin = nu, centre_margin
        self.squared = distance == "squared"
        self.autoencoder = _autoencoder(architecture, in_channels, side, channels, latent_channels, output_activation)
        self.encoder = _encoder(architecture, in_channels, side, channels, latent_channels)
        self.register_buffer("centre", torch.zeros(self.encoder.to_latent.out_features))
        self.register_buffer("radius", torch.zeros(()))
        # declared here and not in the class body, which TorchScript reads
        self.centre: Tensor
        self.radius: Tensor

    def detect(self, image: Tensor) -> AnomalyOutput:
        """The score is the distance to the centre, less the radius (squared, where the distance is) if there is one."""
        x, offset, scale = self.normalise(image)
        anomaly_score = self.squared_distance(x)
        if self.squared:
            anomaly_score = anomaly_score - self.radius**2
        else:
            anomaly_score = anomaly_score.sqrt() - self.radius
        reconstruction = self.autoencoder(x)[0]
        anomaly_map = ((x - reconstruction) ** 2).mean(dim=1, keepdim=True)
        return AnomalyOutput(anomaly_map, anomaly_score, reconstruction * scale + offset)

    def feature_encoder(self) -> nn.Module:
        """The encoder as features of three levels: from an image to three maps, finest first."""
        return contrast_features(self.encoder, self.normalisation)

    def squared_distance(self, x: Tensor) -> Tensor:
        """||encoder(x) - c||^2, shape (B,), of normalised images."""
        return ((self.encoder(x) - self.centre) ** 2).sum(dim=1)

    @torch.jit.unused
    def set_radius(self, squared_distance: Tensor) -> None:
        """R for given squared distances, shape (N,): the (1 - nu)-quantile, which minimises Eq. 3 over R."""
        self.radius.copy_(torch.quantile(squared_distance.double().sqrt(), 1.0 - self.nu))

    @torch.jit.unused
    def fit_statistics(self, training: Iterable[Tensor], held_out: Iterable[Tensor]) -> None:
        """The radius of the trained network over the training normals; see ``AnomalyDetector.fit_statistics``."""
        if not self.soft_boundary:
            return
        distances = [self.squared_distance(self.normalise(batch)[0]) for batch in training]
        if not distances:
            raise ValueError("the radius needs training normals, and there are none")
        self.set_radius(torch.cat(distances))
