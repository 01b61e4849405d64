"""The denoising autoencoder with an expected error: two published ideas in one U-Net.

A. Kascenas, N. Pugeault, A. Q. O'Neil, *Denoising Autoencoders for Unsupervised Anomaly Detection in Brain MRI*, MIDL
2022: a U-Net with skips learns to take coarse noise off normal images; what it takes off a test image is the map.
Y. Mao et al., *Abnormality Detection in Chest X-ray Images Using Uncertainty Prediction Autoencoders*, MICCAI 2020: a
second output says how large the error is expected to be at each pixel, and the map is the error in that unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv
from torch import Tensor

from monai_anomaly.networks.blocks.smoothing import GaussianFilter, MedianFilter
from monai_anomaly.networks.blocks.unet import UNetDecoder, UNetEncoder
from monai_anomaly.networks.detector import AnomalyDetector, AnomalyOutput

__all__ = ["DenoisingAutoencoder"]

# The arguments of the map, which no weight depends on.
_MAP = ("exponent", "median_size", "sigma")


class DenoisingAutoencoder(AnomalyDetector):
    """A U-Net that takes coarse noise off normal images and, with a second output b, expects its own error.

    The map is ``|x - y| / b ** exponent`` within the foreground, its mean over the channels, through a median and a
    Gaussian filter; the score is its maximum. The background of the restoration is the image's own.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image, each reconstructed and with an expected error of its own.
        channels: widths of the levels, from the full size down; each pair of convolutions has group normalisation and
            SiLU. On a CPU many steps of a narrow net find more than few of a wide one. Kascenas et al. have four
            levels from 64 to 512.
        skip: hand the encoder's features to the decoder.
        add_skips: add them to the decoder's own instead of joining both: two thirds of the work.
        expected_error: a second output, b (Mao et al.); False: the reconstruction alone (Kascenas et al.).
        exponent: of b in the map: 1 divides by the expected error, 0 leaves the error as it is.
        error_floor: b is at least this, in the image's unit.
        background: a pixel that no channel exceeds it in is background: no noise, no loss, and 0 in the map. 0 is the
            background of ``NormalizeForeground``. None: all pixels count.
        mirror_axis: spatial axis (from 0) whose mirror image is reconstructed too; both results are averaged. None:
            the image alone. Left to right is axis 0 in axial and coronal slices and in volumes, axis 1 in 2-D image
            files; sagittal slices have no such axis.
        median_size: side of the median filter in pixels, odd; 1: none. Kascenas et al. have 5.
        sigma: of the Gaussian filter in pixels; 0: none.

    Raises:
        ValueError: for widths that no group of 8 channels (or of half of them) divides, a ``mirror_axis`` that is
            none, an ``exponent`` without an expected error, or a filter that cannot be.

    Example::

        detector = DenoisingAutoencoder(in_channels=1, mirror_axis=0)
        anomaly_map, anomaly_score, restoration = detector.eval().detect(torch.rand(1, 1, 128, 128))
    """

    channels_last = True

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        channels: Sequence[int] = (16, 32, 64, 128),
        skip: bool = True,
        add_skips: bool = False,
        expected_error: bool = True,
        exponent: float = 0.5,
        error_floor: float = 0.01,
        background: float | None = 0.0,
        mirror_axis: int | None = None,
        median_size: int = 5,
        sigma: float = 2.5,
    ) -> None:
        super().__init__(spatial_dims, in_channels, size_divisor=2 ** (len(channels) - 1))
        if mirror_axis is not None and not 0 <= mirror_axis < spatial_dims:
            raise ValueError(f"mirror_axis is one of the {spatial_dims} axes (from 0) or None, got {mirror_axis}")
        if exponent != 0 and not expected_error:
            raise ValueError(f"an exponent of {exponent:g} needs expected_error; without it the exponent is 0")
        if any(width % 8 and width % 2 for width in channels):
            raise ValueError(f"channels are even numbers, got {tuple(channels)}")
        groups = 8 if all(width % 8 == 0 for width in channels) else 2
        norm, act = ("GROUP", {"num_groups": groups}), ("SWISH", {"alpha": 1.0})
        self.encoder = UNetEncoder(spatial_dims, in_channels, channels, norm, act, pool="AVG")
        self.decoder = UNetDecoder(spatial_dims, channels, channels[-2::-1], norm, act, "nearest", skip, add_skips)
        self.reconstruction = Conv["CONV", spatial_dims](channels[0], in_channels, 1)
        self.error = Conv["CONV", spatial_dims](channels[0], in_channels, 1) if expected_error else None
        self.error_floor = error_floor
        self.background = background
        self.mirror_axis = mirror_axis
        self.exponent = float(exponent)
        self.median, self.gaussian = MedianFilter(median_size), GaussianFilter(sigma)

    def detect(self, image: Tensor) -> AnomalyOutput:
        """See ``AnomalyDetector.detect``."""
        self.check_input(image)
        restored, expected = self.expectation(image)
        anomaly_map = self.map_of(image, restored, expected)
        # the background was no part of the loss
        restored = torch.where(self.foreground(image) > 0, restored, image)
        return AnomalyOutput(anomaly_map, anomaly_map.flatten(1).amax(dim=1), restored)

    def reconstruct(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """What a noisy image was without its noise, and the expected absolute error, both in the image's shape.

        Without ``expected_error`` the second is 1 everywhere.
        """
        features = self.decoder(self.encoder(image))
        restored = self.reconstruction(features)
        if self.error is None:
            return restored, torch.ones_like(restored)
        return restored, F.softplus(self.error(features)) + self.error_floor

    def expectation(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """As ``reconstruct``, averaged over the image and its mirror image where there is a ``mirror_axis``."""
        restored, expected = self.reconstruct(image)
        if self.mirror_axis is None:
            return restored, expected
        axis = self.mirror_axis + 2
        mirrored, mirrored_error = self.reconstruct(image.flip(axis))
        return (restored + mirrored.flip(axis)) / 2, (expected + mirrored_error.flip(axis)) / 2

    def foreground(self, image: Tensor) -> Tensor:
        """1 in the foreground and 0 elsewhere, shape (B, 1, *spatial)."""
        if self.background is None:
            return torch.ones_like(image[:, :1])
        return (image > self.background).any(dim=1, keepdim=True).to(image.dtype)

    def map_of(self, image: Tensor, restored: Tensor, expected: Tensor) -> Tensor:
        """The filtered map, shape (B, 1, *spatial), from an image, its reconstruction and the expected error."""
        error = (image - restored).abs()
        if self.exponent != 0:
            error = error / expected**self.exponent
        error = error.mean(dim=1, keepdim=True) * self.foreground(image)
        return self.gaussian(self.median(error))

    @torch.jit.unused
    def candidate_maps(self, image: Tensor, choices: Sequence[Mapping[str, Any]]) -> list[Tensor]:
        """See ``AnomalyDetector.candidate_maps``; the choices are of ``exponent``, ``median_size`` and ``sigma``."""
        present = self._map_arguments()
        restored, expected = self.expectation(image)
        maps = []
        try:
            for choice in choices:
                self.choose_map({**present, **choice})
                maps.append(self.map_of(image, restored, expected))
        finally:
            self.choose_map(present)
        return maps

    @torch.jit.unused
    def choose_map(self, choice: Mapping[str, Any]) -> None:
        """See ``AnomalyDetector.choose_map``.

        Raises:
            ValueError: for a name other than those three, or a value that they cannot have.
        """
        unknown = set(choice) - set(_MAP)
        if unknown:
            raise ValueError(f"the map has the arguments {', '.join(_MAP)}, not {', '.join(sorted(unknown))}")
        arguments = {**self._map_arguments(), **choice}
        if arguments["exponent"] != 0 and self.error is None:
            raise ValueError("an exponent needs an expected error")
        device = self.gaussian.kernel.device
        self.exponent = float(arguments["exponent"])
        self.median = MedianFilter(int(arguments["median_size"]))
        self.gaussian = GaussianFilter(float(arguments["sigma"])).to(device)
        config: Any = self.config
        config["arguments"].update(choice)

    @torch.jit.unused
    def _map_arguments(self) -> dict[str, Any]:
        config: Any = self.config
        return {name: config["arguments"][name] for name in _MAP}
