"""The losses of DAAD: Eq. 3 to 6."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .common import AdversarialLoss, SquaredErrorLoss

__all__ = ["DAADLoss"]

# From images to features f_D and logits.
Discriminator = Callable[[Tensor], tuple[Tensor, Tensor]]


class DAADLoss(nn.Module):
    """Eq. 3: ``lambda_rec L_rec + lambda_adv L_adv + lambda_ali L_ali``.

    Args:
        lambda_rec: 50 (section 4.1).
        lambda_adv: 0.5 (section 4.1).
        lambda_ali: 0.5 (section 4.1).
        reduction: how ``||.||`` of Eq. 4 and 6 is taken: ``"mean"`` or ``"sum"`` of the squares (see
            ``SquaredErrorLoss``), or ``"norm"``, the L2 norm of an image, to the letter of the equations. The default
            is the mean, since the paper speaks of an "average pixel-wise difference" (section 3.3).
        saturating: see ``AdversarialLoss``.
        align_discriminator: D minimises L_ali beside its adversarial loss. The paper trains D by Eq. 5 but also says
            that the adversarial training keeps the features from collapsing (section 3.1.3), which L_ali alone would
            make them do; False: L_ali trains G alone.

    Raises:
        ValueError: for another reduction, or if D would be trained by L_ali alone.
    """

    def __init__(
        self,
        lambda_rec: float = 50.0,
        lambda_adv: float = 0.5,
        lambda_ali: float = 0.5,
        reduction: str = "mean",
        saturating: bool = True,
        align_discriminator: bool = False,
    ) -> None:
        super().__init__()
        if reduction not in ("mean", "sum", "norm"):
            raise ValueError(f"reduction is 'mean', 'sum' or 'norm', got {reduction!r}")
        if align_discriminator and not lambda_adv:
            raise ValueError("align_discriminator needs lambda_adv: by L_ali alone the features collapse")
        self.lambda_rec, self.lambda_adv, self.lambda_ali = lambda_rec, lambda_adv, lambda_ali
        self.reduction = reduction
        self.align_discriminator = align_discriminator
        self.squared_error = SquaredErrorLoss("mean" if reduction == "norm" else reduction)
        self.adversarial = AdversarialLoss(saturating)

    @property
    def needs_discriminator(self) -> bool:
        """Whether any term asks D."""
        return bool(self.lambda_adv or self.lambda_ali)

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """L_rec (Eq. 4) of x and x_hat, and L_ali (Eq. 6) of f_D(x) and f_D(x_hat): a scalar.

        Args:
            a: shape (B, C, *spatial).
            b: the same shape.
        """
        if self.reduction == "norm":
            return torch.linalg.vector_norm((a - b).flatten(1), dim=1).mean()
        return self.squared_error(a, b)

    def forward(self, x: Tensor, x_hat: Tensor, discriminator: Discriminator | None = None) -> dict[str, Tensor]:
        """What G minimises. E[log D(x)] does not depend on G: it stands in ``discriminator`` alone.

        Args:
            x: image, shape (B, C, *spatial).
            x_hat: G's reconstruction.
            discriminator: D, from images to features and logits; not asked where both its weights are 0.

        Returns:
            Scalars ``loss`` (Eq. 3) and ``rec`` (Eq. 4); ``adv`` (Eq. 5) and ``ali`` (Eq. 6) where they have a weight.

        Raises:
            ValueError: without a discriminator that has a weight.
        """
        terms = {"rec": self.distance(x, x_hat)}
        loss = self.lambda_rec * terms["rec"]
        if self.needs_discriminator:
            if discriminator is None:
                raise ValueError("lambda_adv and lambda_ali need a discriminator: give one, or set both to 0")
            f_hat, logits = discriminator(x_hat)
            if self.lambda_adv:
                terms["adv"] = self.adversarial.generator(logits)
                loss = loss + self.lambda_adv * terms["adv"]
            if self.lambda_ali:
                terms["ali"] = self.distance(discriminator(x)[0], f_hat)
                loss = loss + self.lambda_ali * terms["ali"]
        return {"loss": loss, **terms}

    def discriminator(self, x: Tensor, x_hat: Tensor, discriminator: Discriminator) -> Tensor:
        """What D minimises: the negative of Eq. 5, with ``align_discriminator`` L_ali too, by the weights of Eq. 3.

        Without L_ali the common factor lambda_adv is left out: Adam does not see it. Arguments as in ``forward``.
        """
        f, real = discriminator(x)
        f_hat, fake = discriminator(x_hat.detach())
        loss = self.adversarial.discriminator(real, fake)
        if self.align_discriminator:
            loss = self.lambda_adv * loss + self.lambda_ali * self.distance(f, f_hat)
        return loss
