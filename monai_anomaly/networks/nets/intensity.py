"""The baseline that every medical comparison must face: a threshold on the intensity itself."""

from __future__ import annotations

import torch
from torch import Tensor

from monai_anomaly.networks.detector import AnomalyDetector, AnomalyOutput

__all__ = ["IntensityThreshold"]


class IntensityThreshold(AnomalyDetector):
    """Takes bright (or dark) for abnormal; nothing is learnt.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        bright: True: the map is the intensity; False: one minus the intensity.
        quantile: the score is this quantile of the map, below the highest values, which normalisation clips to one.

    Notes:
        Expects intensities in [0, 1], as ``NormalizeForeground`` gives them.
    """

    def __init__(
        self, spatial_dims: int = 2, in_channels: int = 1, bright: bool = True, quantile: float = 0.99
    ) -> None:
        super().__init__(spatial_dims, in_channels)
        self.bright, self.quantile = bright, quantile
        # A detector's device is that of its tensors, and this one has no weights.
        self.register_buffer("anchor", torch.zeros(1))

    def detect(self, image: Tensor) -> AnomalyOutput:
        """See ``AnomalyDetector.detect``; there is no restoration."""
        self.check_input(image)
        anomaly_map = image.mean(dim=1, keepdim=True)
        if not self.bright:
            anomaly_map = 1.0 - anomaly_map
        return AnomalyOutput(anomaly_map, torch.quantile(anomaly_map.flatten(1), self.quantile, dim=1), None)
