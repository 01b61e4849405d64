"""The plain autoencoder, which every reconstruction method is measured against.

ProxyAno's "Auto-Encoder" (Table I) has that paper's own encoder and decoder (section IV-A-3), and so has this one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from monai_anomaly.exceptions import check_choice
from monai_anomaly.networks.blocks.encoder_decoder import StridedDecoder, StridedEncoder
from monai_anomaly.networks.blocks.memory import ShrinkageMemory
from monai_anomaly.networks.blocks.skip_autoencoder import SkipDecoder
from monai_anomaly.networks.detector import AnomalyDetector, AnomalyOutput

__all__ = ["Autoencoder", "reconstruction_output"]


def reconstruction_output(image: Tensor, restored: Tensor, squared: bool) -> AnomalyOutput:
    """The reconstruction error per pixel (the mean over channels) as the map, its mean over the image as the score.

    Args:
        image: shape (B, C, *spatial).
        restored: the same shape.
        squared: the squared error, else the absolute one.
    """
    difference = image - restored
    pixels = difference * difference if squared else difference.abs()
    anomaly_map = pixels.mean(dim=1, keepdim=True)
    return AnomalyOutput(anomaly_map, anomaly_map.flatten(1).mean(dim=1), restored)


class Autoencoder(AnomalyDetector):
    """Encoder, decoder and between them nothing, skips, MemAE's memory, or both.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        channels: width of each stride-2 stage.
        latent_channels: width of the latent map.
        skip: hand the encoder's features to the decoder, see ``SkipDecoder``.
        memory: ``"shrinkage"``: MemAE's memory in the latent map, one query a position; or None. ``MemAE`` is that
            method with its published layers.
        num_items: items of the memory.
        shrink_threshold: see ``ShrinkageMemory``, as for the next.
        entropy_weight: 0.0002 (MemAE).
        distance: of image and reconstruction, ``"absolute"`` or ``"squared"``; both the map and the score.

    Raises:
        ValueError: for an unknown ``memory`` or ``distance``.

    Notes:
        The absolute difference is the residual of C. Baur et al., *Deep autoencoding models for unsupervised anomaly
        segmentation in brain MR images*, 2018, which is ProxyAno's source for its Auto-Encoder.

    Example::

        detector = Autoencoder(in_channels=1)
        anomaly_map, anomaly_score, restoration = detector.eval().detect(torch.rand(1, 1, 256, 256))
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        channels: Sequence[int] = (64, 128, 256, 512),
        latent_channels: int = 64,
        skip: bool = False,
        memory: str | None = None,
        num_items: int = 2000,
        shrink_threshold: float | None = None,
        entropy_weight: float = 0.0002,
        distance: str = "absolute",
    ) -> None:
        super().__init__(spatial_dims, in_channels, size_divisor=2 ** len(channels))
        check_choice("memory", memory, "shrinkage", None)
        check_choice("distance", distance, "absolute", "squared")
        self.squared = distance == "squared"
        self.encoder = StridedEncoder(spatial_dims, in_channels, channels, latent_channels)
        self.memory: ShrinkageMemory | None = None
        if memory is not None:
            self.memory = ShrinkageMemory(num_items, latent_channels, shrink_threshold, entropy_weight)
        self.decoder: StridedDecoder | None = None
        self.skip_decoder: SkipDecoder | None = None
        if skip:
            self.skip_decoder = SkipDecoder(spatial_dims, in_channels, channels, latent_channels)
        else:
            self.decoder = StridedDecoder(spatial_dims, in_channels, channels, latent_channels)

    def detect(self, image: Tensor) -> AnomalyOutput:
        """See ``AnomalyDetector.detect`` and ``reconstruction_output``."""
        self.check_input(image)
        return reconstruction_output(image, self.reconstruct(image)[0], self.squared)

    def reconstruct(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The reconstruction, in the image's shape and range, and the memory's weighted auxiliary loss (a scalar)."""
        features: list[Tensor] = []
        x = image
        for stage in self.encoder:
            x = stage(x)
            features.append(x)
        z = features.pop()
        auxiliary = torch.zeros((), device=z.device)
        if self.memory is not None:
            z, auxiliary = self.memory(z)
        restored = image
        if self.skip_decoder is not None:
            restored = self.skip_decoder(z, features)
        if self.decoder is not None:
            restored = self.decoder(z)
        return restored, auxiliary
