"""The losses of ProxyAno: Eq. 8 to 11 (Eq. 7 is the squared error alone)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from .common import AdversarialLoss, SquaredErrorLoss

__all__ = ["ImageReconstructionLoss"]


class ImageReconstructionLoss(nn.Module):
    """Eq. 8 to 11.

    Args:
        lambda_g: weight of each adversarial term, 0.01 (Eq. 8).
        lambda_global: 0.25 (section III-D).
        lambda_local: 0.5 (section III-D).
        reduction: see ``SquaredErrorLoss``.
        saturating: see ``AdversarialLoss``.

    Notes:
        The terms E[log D(I)] do not depend on the generator: they stand in ``discriminator`` alone.
    """

    def __init__(
        self,
        lambda_g: float = 0.01,
        lambda_global: float = 0.25,
        lambda_local: float = 0.5,
        reduction: str = "mean",
        saturating: bool = True,
    ) -> None:
        super().__init__()
        self.lambda_g, self.lambda_global, self.lambda_local = lambda_g, lambda_global, lambda_local
        self.squared_error = SquaredErrorLoss(reduction)
        self.adversarial = AdversarialLoss(saturating)

    def forward(
        self,
        discriminator: Callable[[Tensor], Tensor],
        image: Tensor,
        reconstruction: Tensor,
        repaired: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The generator's terms and their weighted sum.

        Args:
            discriminator: D, from images to logits.
            image: I, shape (B, C, *spatial).
            reconstruction: I-hat, of the predicted proxy.
            repaired: I-hat', of the pseudo abnormal proxy; None trains without the repairing loss.
            mask: M, shape (B, 1, *spatial), 1 where the patch was pasted; goes with ``repaired``.

        Returns:
            Scalars ``loss`` (Eq. 11) and ``rec`` (Eq. 8); with ``repaired`` ``global`` (Eq. 9) and ``local`` (Eq. 10).
        """
        terms = {"rec": self._term(discriminator, reconstruction, image)}
        terms["loss"] = terms["rec"]
        if repaired is not None and mask is not None:
            terms["global"] = self._term(discriminator, repaired, image)
            terms["local"] = self._term(discriminator, mask * repaired, mask * image)
            terms["loss"] = terms["loss"] + self.lambda_global * terms["global"] + self.lambda_local * terms["local"]
        return terms

    def discriminator(
        self,
        discriminator: Callable[[Tensor], Tensor],
        image: Tensor,
        reconstruction: Tensor,
        repaired: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """What D minimises: the adversarial parts of Eq. 8 to 10 with the weights that they have in Eq. 11.

        The common factor lambda_g is left out: Adam does not see it. Arguments as in ``forward``.
        """
        real = discriminator(image)  # serves Eq. 8 and Eq. 9
        loss = self.adversarial.discriminator(real, discriminator(reconstruction.detach()))
        if repaired is not None and mask is not None:
            repaired = repaired.detach()
            if self.lambda_global:
                loss = loss + self.lambda_global * self.adversarial.discriminator(real, discriminator(repaired))
            if self.lambda_local:
                real_inside, fake_inside = discriminator(mask * image), discriminator(mask * repaired)
                loss = loss + self.lambda_local * self.adversarial.discriminator(real_inside, fake_inside)
        return loss

    def _term(self, discriminator: Callable[[Tensor], Tensor], output: Tensor, target: Tensor) -> Tensor:
        term = self.squared_error(output, target)
        if self.lambda_g:
            term = term + self.lambda_g * self.adversarial.generator(discriminator(output))
        return term
