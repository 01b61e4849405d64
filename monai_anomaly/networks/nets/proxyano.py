"""ProxyAno: image -> proxy -> image.

K. Zhou et al., *Proxy-bridged Image Reconstruction Network for Anomaly Detection in Medical Images*, IEEE Transactions
on Medical Imaging, 2022. Symbols follow the paper: I image, P proxy, F_p = Dec_p(G(Enc_p)), F_g = Dec_g(Enc_g).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from monai_anomaly.exceptions import check_choice
from monai_anomaly.networks.blocks import EncoderDecoder, NearestMemory, ShrinkageMemory, StridedDecoder, StridedEncoder
from monai_anomaly.networks.blocks.smoothing import GaussianFilter, MedianFilter
from monai_anomaly.networks.detector import AnomalyDetector, AnomalyOutput

__all__ = ["ProxyAno", "ProxyExtractionModule"]


class ProxyExtractionModule(nn.Module):
    """F_p: encoder, memory, decoder (section III-C).

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        proxy_channels: channels of the proxy.
        channels: width of each stride-2 stage.
        latent_channels: d, the width of the latent map and of a memory item.
        memory: the memory between encoder and decoder, or None.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        proxy_channels: int,
        channels: Sequence[int],
        latent_channels: int,
        memory: nn.Module | None,
    ) -> None:
        super().__init__()
        self.encoder = StridedEncoder(spatial_dims, in_channels, channels, latent_channels)
        self.memory = memory
        self.decoder = StridedDecoder(spatial_dims, proxy_channels, channels, latent_channels)

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The proxy of a latent map ``z``, shape (B, P, *spatial), and the memory's weighted auxiliary loss."""
        auxiliary = torch.zeros((), device=z.device)
        if self.memory is not None:
            z, auxiliary = self.memory(z)
        return self.decoder(z), auxiliary

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """``decode(encoder(image))`` for an image of shape (B, C, *spatial)."""
        return self.decode(self.encoder(image))


class ProxyAno(AnomalyDetector):
    """The Proxy-bridged Image Reconstruction Network.

    Attributes:
        paper_map_threshold: 0.5, of intensities in [0, 1] (section IV-D2, fundus images).

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        proxy_channels: channels of the proxy; None: as the image (the superpixel image).
        channels: width of each stride-2 stage of all encoders and decoders.
        latent_channels: d = 64 (section IV-A).
        memory: ``"nearest"`` (the paper's), ``"shrinkage"`` (MemAE's, Table IV row 2) or None.
        num_items: k = 128 (section IV-A, Fig. 11).
        decay: gamma = 0.99 of Eq. 6.
        commitment: weight of a commitment term, absent from Eq. 7.
        restart_below: see ``NearestMemory``.
        bridge: with a proxy between two modules; False leaves one encoder-decoder from image to image (Table IV,
            rows 1 to 3).
        score_space: ``"latent"`` (Eq. 12, 13), ``"image"`` (Table V), or ``"map"``, the maximum of the filtered map.
        median_size: side of the map's median filter in pixels, odd; 1: none, as in Eq. 14.
        sigma: of its Gaussian filter in pixels; 0: none, as in Eq. 14. Restored edges are blurred, so that without
            filters the map is largest on healthy edges; wide filters leave what differs over an area.

    Raises:
        ValueError: for an unknown ``memory`` or ``score_space``, or an even ``median_size``.

    Example::

        detector = ProxyAno(spatial_dims=2, in_channels=1)
        anomaly_map, anomaly_score, restoration = detector.eval().detect(torch.rand(1, 1, 256, 256))
    """

    paper_map_threshold = 0.5

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        proxy_channels: int | None = None,
        channels: Sequence[int] = (64, 128, 256, 512),
        latent_channels: int = 64,
        memory: str | None = "nearest",
        num_items: int = 128,
        decay: float = 0.99,
        commitment: float = 0.0,
        restart_below: float = 0.05,
        bridge: bool = True,
        score_space: str = "latent",
        median_size: int = 1,
        sigma: float = 0.0,
    ) -> None:
        super().__init__(spatial_dims, in_channels, size_divisor=2 ** len(channels))
        check_choice("score_space", score_space, "latent", "image", "map")
        bank: nn.Module | None = None
        if memory == "nearest":
            bank = NearestMemory(num_items, latent_channels, decay, commitment, restart_below)
        elif memory == "shrinkage":
            bank = ShrinkageMemory(num_items, latent_channels)
        elif memory is not None:
            raise ValueError(f"memory is 'nearest', 'shrinkage' or None, got {memory!r}")
        self.score_space = score_space
        self.median = MedianFilter(median_size)
        # without a buffer where there is no filter, so that earlier weights fit
        self.gaussian = GaussianFilter(sigma) if sigma else nn.Identity()
        self.proxy_channels = in_channels if proxy_channels is None or not bridge else proxy_channels
        self.proxy_module = ProxyExtractionModule(
            spatial_dims, in_channels, self.proxy_channels, channels, latent_channels, bank
        )
        self.reconstruction_module: EncoderDecoder | None = None
        if bridge:
            self.reconstruction_module = EncoderDecoder(
                spatial_dims, self.proxy_channels, in_channels, channels, latent_channels
            )

    def detect(self, image: Tensor) -> AnomalyOutput:
        """See ``AnomalyDetector.detect``; the score is Eq. 13, the map the filtered Eq. 14, its mean over channels."""
        self.check_input(image)
        z = self.proxy_module.encoder(image)
        restored = self._restore_latent(z)
        anomaly_map = (image - restored).abs().mean(dim=1, keepdim=True)  # Eq. 14
        anomaly_map = self.gaussian(self.median(anomaly_map))
        if self.score_space == "map":
            return AnomalyOutput(anomaly_map, anomaly_map.flatten(1).amax(dim=1), restored)
        if self.score_space == "latent":
            difference = z - self.proxy_module.encoder(restored)  # Eq. 12
        else:
            difference = image - restored
        anomaly_score = torch.linalg.vector_norm(difference.flatten(1), dim=1)  # Eq. 13
        return AnomalyOutput(anomaly_map, anomaly_score, restored)

    def restore(self, image: Tensor) -> Tensor:
        """I-hat = F_g(F_p(I)) (Eq. 1), shape (B, C, *spatial)."""
        return self._restore_latent(self.proxy_module.encoder(image))

    def _restore_latent(self, z: Tensor) -> Tensor:
        restored = self.proxy_module.decode(z)[0]
        if self.reconstruction_module is not None:
            restored = self.reconstruction_module(restored)
        return restored
