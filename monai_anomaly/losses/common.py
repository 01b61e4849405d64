"""Losses that several methods share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["AdversarialLoss", "SquaredErrorLoss"]


class SquaredErrorLoss(nn.Module):
    """``||prediction - target||_2^2``, which the papers print without saying whether it is a sum or a mean.

    Args:
        reduction: ``"mean"`` over all elements, or ``"sum"`` over the elements of an image and the mean over the batch.
            The default is the mean: beside a sum over 65,536 pixels adversarial terms of small weight would vanish.

    Raises:
        ValueError: for another reduction.
    """

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction is 'mean' or 'sum', got {reduction!r}")
        self.reduction = reduction

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The loss (a scalar) of two tensors of one shape (B, C, *spatial)."""
        squared = (prediction - target) ** 2
        return squared.mean() if self.reduction == "mean" else squared.flatten(1).sum(dim=1).mean()


class AdversarialLoss(nn.Module):
    """``E[log(1 - D(fake))] + E[log D(real)]``, with D's output given before its sigmoid.

    Args:
        saturating: the generator minimises ``log(1 - D(fake))``, as printed; False: it minimises ``-log D(fake)``,
            which has the same fixed point and a gradient that does not vanish where D is sure.
    """

    def __init__(self, saturating: bool = True) -> None:
        super().__init__()
        self.saturating = saturating

    def generator(self, fake: Tensor) -> Tensor:
        """What the generator minimises, from D's logits of its output (any shape)."""
        if self.saturating:
            return F.logsigmoid(-fake).mean()  # log(1 - sigmoid(l)) = logsigmoid(-l)
        return -F.logsigmoid(fake).mean()

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """What the discriminator minimises: the negative of the printed sum."""
        return -(F.logsigmoid(real).mean() + F.logsigmoid(-fake).mean())
