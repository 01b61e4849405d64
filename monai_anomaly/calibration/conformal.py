"""Thresholds with a stated error rate, from held-out normal subjects alone."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ConformalCalibration", "conformal_quantile"]


def conformal_quantile(scores: Tensor, alpha: float) -> float | None:
    """The split-conformal threshold of normal scores.

    A new normal unit, exchangeable with the calibration units, exceeds the returned value with a probability of at
    most ``alpha``.

    Args:
        scores: shape (n,), one score per independent unit (patient).
        alpha: wanted error rate, in (0, 1).

    Returns:
        The k-th smallest score with k = ceil((n + 1)(1 - alpha)), or None where k > n: the units are too few for this
        rate (alpha = 0.05 needs 19).

    Raises:
        ValueError: if ``alpha`` is outside (0, 1).

    References:
        V. Vovk, A. Gammerman, G. Shafer, *Algorithmic Learning in a Random World*, Springer, 2005, chapter 2.
    """
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha is a rate between 0 and 1, got {alpha}")
    n = int(scores.numel())
    # The small term keeps (n + 1)(1 - alpha) = 19.000000000000004 at rank 19.
    rank = max(1, math.ceil((n + 1) * (1.0 - alpha) - 1e-9))
    if rank > n:
        return None
    return float(scores.flatten().sort().values[rank - 1])


class ConformalCalibration(nn.Module):
    """What a detector keeps of its calibration normals: one entry per patient, as buffers of its ``state_dict``.

    Attributes:
        scores: shape (n,), float32, each calibration patient's highest anomaly score.
        map_maxima: shape (n,), float32, the highest value of each patient's anomaly maps on the scans' own grids.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scores", torch.empty(0))
        self.register_buffer("map_maxima", torch.empty(0))
        # declared here and not in the class body, which TorchScript reads
        self.scores: Tensor
        self.map_maxima: Tensor

    def fit(self, scores: dict[str, float], map_maxima: dict[str, float]) -> None:
        """Keep the calibration values of each patient.

        Args:
            scores: per patient the highest anomaly score.
            map_maxima: per patient the highest voxel of the anomaly maps.

        Raises:
            ValueError: if the two do not name the same patients.
        """
        if scores.keys() != map_maxima.keys():
            raise ValueError("scores and map maxima must name the same patients")
        patients = sorted(scores)
        device = self.scores.device
        self.scores = torch.tensor([scores[p] for p in patients], dtype=torch.float32, device=device)
        self.map_maxima = torch.tensor([map_maxima[p] for p in patients], dtype=torch.float32, device=device)

    @torch.jit.unused
    def map_threshold(self, alpha: float) -> float | None:
        """The family-wise threshold of anomaly maps: at most ``alpha`` of normal patients show any voxel above it.

        Args:
            alpha: error rate per patient, in (0, 1).

        Returns:
            The threshold, or None where the calibration patients are too few for this rate.
        """
        return conformal_quantile(self.map_maxima, alpha)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # The number of calibration patients is known only to the file.
        for name in ("scores", "map_maxima"):
            value = state_dict.get(prefix + name)
            if isinstance(value, Tensor) and value.ndim == 1:
                setattr(self, name, getattr(self, name).new_empty(value.shape))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
