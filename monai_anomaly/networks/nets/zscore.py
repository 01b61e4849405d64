"""Where the training normals' own spread is the model: a z-score at each pixel or voxel."""

# No postponed annotations here: TorchScript reads the real ones.

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from monai_anomaly.exceptions import check_choice
from monai_anomaly.networks.detector import AnomalyDetector, AnomalyOutput

__all__ = ["ZScore"]


class ZScore(AnomalyDetector):
    """Mean and standard deviation of the training normals at each place; a new image's distance from them is the map.

    Nothing is trained: ``fit_statistics`` fills both buffers. It says something where images lie on each other, such
    as volumes of heads that were registered; with ``spatial_dims=2`` all slices of a volume share one mean.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels C of the image.
        image_size: of all images.
        sign: ``"both"``: |z|; ``"bright"``: z, for lesions brighter than normal; ``"dark"``: -z.
        least_std: floor of the standard deviation, in units of the image ([0, 1]). Without one, a place that is
            empty in all training normals would give any noise there an unlimited z.
        quantile: the score is the map's ceil((1 - quantile) n)-th highest of n values: the extent of a finding counts,
            and not the one value that noise reaches.

    Attributes:
        mean: shape (C, *image_size); 0 while not fitted.
        std: shape (C, *image_size), not below ``least_std``; 1 while not fitted.

    Raises:
        ValueError: if ``image_size`` does not have ``spatial_dims`` numbers, or for a setting out of range.

    Notes:
        The standard deviation is that of a sample (n - 1). Several channels: the mean over them of |z|, z or -z.
        The restoration is the mean.

    References:
        V. Saase, H. Wenz, T. Ganslandt, C. Groden, M. E. Maros, *Simple statistical methods for unsupervised brain
        anomaly detection on MRI are competitive to deep learning methods*, 2020: the voxel-wise model. Floor, score and
        sign are ours.

    Example::

        detector = ZScore(in_channels=1, image_size=(256, 256)).eval()
        detector.fit_statistics([torch.rand(8, 1, 256, 256)], [])
        anomaly_map, anomaly_score, restoration = detector.detect(torch.rand(1, 1, 256, 256))
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        image_size: Sequence[int] = (256, 256),
        sign: str = "both",
        least_std: float = 0.05,
        quantile: float = 0.99,
    ) -> None:
        super().__init__(spatial_dims, in_channels)
        if len(image_size) != spatial_dims:
            raise ValueError(f"image_size has {spatial_dims} numbers, got {list(image_size)}")
        check_choice("sign", sign, "both", "bright", "dark")
        if least_std <= 0:
            raise ValueError(f"least_std is above 0, got {least_std}")
        if not 0 <= quantile <= 1:
            raise ValueError(f"quantile is between 0 and 1, got {quantile}")
        self.sign, self.least_std = sign, least_std
        self.image_size = [int(side) for side in image_size]
        shape = [in_channels, *self.image_size]
        # rounded first: (1 - 0.99) * 100 is a little more than 1 in floating point
        self.rank = max(1, math.ceil(round((1.0 - quantile) * math.prod(shape[1:]), 6)))
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("std", torch.ones(shape))
        # declared here and not in the class body, which TorchScript reads
        self.mean: Tensor
        self.std: Tensor

    def detect(self, image: Tensor) -> AnomalyOutput:
        """See ``AnomalyDetector.detect``."""
        self.check_input(image, self.image_size)
        z = (image - self.mean) / self.std
        if self.sign == "both":
            z = z.abs()
        elif self.sign == "dark":
            z = -z
        anomaly_map = z.mean(dim=1, keepdim=True)
        flat = anomaly_map.flatten(1)
        anomaly_score = torch.topk(flat, self.rank, dim=1).values[:, -1]
        return AnomalyOutput(anomaly_map, anomaly_score, self.mean.expand(image.shape))

    @torch.jit.unused
    def fit_statistics(self, training: Iterable[Tensor], held_out: Iterable[Tensor]) -> None:
        """Mean and standard deviation over the training normals; see ``AnomalyDetector.fit_statistics``.

        Raises:
            ValueError: with fewer than two training images, or if one does not fit the network.
        """
        count = 0
        mean = torch.zeros(self.mean.shape, dtype=torch.float64)
        squares = torch.zeros_like(mean)  # summed squared deviations from the running mean
        for batch in training:
            self.check_input(batch, self.image_size)
            for image in batch.double().cpu():
                count += 1
                delta = image - mean
                mean += delta / count
                squares += delta * (image - mean)
        if count < 2:
            raise ValueError(f"a standard deviation needs two training images or more, got {count}")
        self.mean.copy_(mean)
        self.std.copy_((squares / (count - 1)).sqrt().clamp_min(self.least_std))
