"""The objectives of Deep SVDD; DDR-ID uses the first."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .common import SquaredErrorLoss

__all__ = ["OneClassLoss", "SoftBoundaryLoss"]


class OneClassLoss(nn.Module):
    """``1/I sum_i ||z_i - c||^2``: Eq. 3 of DDR-ID, Eq. 4 of Ruff et al.

    Args:
        reduction: ``"sum"`` over the latent coordinates, as printed, or ``"mean"`` over them.

    Raises:
        ValueError: for another reduction.
    """

    def __init__(self, reduction: str = "sum") -> None:
        super().__init__()
        self.squared_error = SquaredErrorLoss(reduction)

    def forward(self, z: Tensor, centre: Tensor) -> Tensor:
        """The loss (a scalar) of latent vectors of shape (B, D) and a centre of shape (D,)."""
        return self.squared_error(z.float(), centre.expand_as(z))


class SoftBoundaryLoss(nn.Module):
    """``R^2 + 1 / (nu I) sum_i max(0, ||z_i - c||^2 - R^2)``: Eq. 3 of Ruff et al.

    Args:
        nu: upper bound of the share of normals outside the sphere, 0.05 (DDR-ID, section 4.1).

    Raises:
        ValueError: if ``nu`` is not in (0, 1].

    Notes:
        R has no gradient: it is set to its optimum every few epochs (see ``DeepSVDDTrainer``). Weight decay is the
        optimiser's.
    """

    def __init__(self, nu: float = 0.05) -> None:
        super().__init__()
        if not 0.0 < nu <= 1.0:
            raise ValueError(f"nu lies in (0, 1], got {nu}")
        self.nu = nu

    def forward(self, z: Tensor, centre: Tensor, radius: Tensor) -> Tensor:
        """The loss (a scalar) of latent vectors of shape (B, D), a centre of shape (D,) and a radius of shape ()."""
        outside = F.relu(((z.float() - centre) ** 2).sum(dim=1) - radius**2)
        return radius**2 + outside.mean() / self.nu
