"""The loss of HFR-AE: Eq. 7 and 8."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["HierarchicalFeatureLoss"]


class HierarchicalFeatureLoss(nn.Module):
    """L = 1/K sum_k L_k, L_k = 1/(w_k h_k) sum of phi_k over channels and positions (Eq. 7, 8); the mean over a batch.

    Args:
        reduction: ``"position"``: as printed; ``"mean"``: over the channels too; ``"sum"``: over all of a map.

    Raises:
        ValueError: for another reduction.
    """

    def __init__(self, reduction: str = "position") -> None:
        super().__init__()
        if reduction not in ("position", "mean", "sum"):
            raise ValueError(f"reduction is 'position', 'mean' or 'sum', got {reduction!r}")
        self.reduction = reduction

    def forward(self, phis: list[Tensor]) -> Tensor:
        """The loss (a scalar) of the residual maps phi_k, shape (B, c_k, h_k, w_k) each."""
        losses = []
        for phi in phis:
            total = phi.flatten(1).sum(dim=1).mean()
            if self.reduction == "position":
                total = total / phi[0, 0].numel()
            elif self.reduction == "mean":
                total = total / phi[0].numel()
            losses.append(total)
        return torch.stack(losses).mean()
