"""The training loss of ITAE: Eq. 2."""

from __future__ import annotations

from torch import Tensor, nn

from .common import SquaredErrorLoss

__all__ = ["RestorationLoss"]


class RestorationLoss(nn.Module):
    """``E ||M(f_T_i(x)) - x||_2^2`` (Eq. 2), or the l1 norm in its place (Table 5).

    Args:
        norm: ``"l2"`` (the squared norm) or ``"l1"``.
        reduction: ``"mean"`` over all elements, or ``"sum"`` over the elements of an image and the mean over the batch.
            The paper does not say which. The default is the mean: with a sum, the learning rate of 0.1 (section
            4.1.1) diverges.

    Raises:
        ValueError: for another norm or reduction.
    """

    def __init__(self, norm: str = "l2", reduction: str = "mean") -> None:
        super().__init__()
        if norm not in ("l1", "l2"):
            raise ValueError(f"norm is 'l1' or 'l2', got {norm!r}")
        self.squared_error = SquaredErrorLoss(reduction)
        self.norm, self.reduction = norm, reduction

    def forward(self, restored: Tensor, target: Tensor) -> Tensor:
        """The loss (a scalar) of restorations and the images that were erased, both (B, C, *spatial)."""
        if self.norm == "l2":
            return self.squared_error(restored, target)
        absolute = (restored - target).abs()
        return absolute.mean() if self.reduction == "mean" else absolute.flatten(1).sum(dim=1).mean()
