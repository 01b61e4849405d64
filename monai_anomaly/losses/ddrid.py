"""The losses of DDR-ID: Eq. 3 to 6."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .common import AdversarialLoss, SquaredErrorLoss
from .deep_svdd import OneClassLoss

__all__ = ["DDRIDLoss"]


class DDRIDLoss(nn.Module):
    """L_OC + L_LSC + L_R, unweighted (Eq. 6).

    Args:
        sigma: standard deviation of N(Z_C, sigma^2 I) in Eq. 4. The paper says "a small value" and never which.
        reduction: of the squared norms in L_OC and L_R: ``"sum"`` over the elements, as printed, or ``"mean"``.
        saturating: E_C minimises ``log(1 - D_L(E_C(X)))``, as printed; False: ``-log D_L(E_C(X))``.
        joint_batch: D_L sees samples and codes in one batch. False: one after the other (Algorithm 1 draws two
            batches); D_L's batch normalisation then takes mean and spread away from each, which is what tells them
            apart.

    Raises:
        ValueError: for a negative ``sigma`` or an unknown reduction.
    """

    def __init__(
        self, sigma: float = 0.1, reduction: str = "sum", saturating: bool = True, joint_batch: bool = False
    ) -> None:
        super().__init__()
        if sigma < 0.0:
            raise ValueError(f"sigma is not negative, got {sigma}")
        self.sigma = sigma
        self.one_class = OneClassLoss(reduction)
        self.squared_error = SquaredErrorLoss(reduction)
        self.adversarial = AdversarialLoss(saturating)
        self.joint_batch = joint_batch

    def forward(
        self,
        discriminator: Callable[[Tensor], Tensor],
        image: Tensor,
        decomposition: tuple[Tensor, Tensor],
        z: Tensor,
        centre: Tensor,
    ) -> dict[str, Tensor]:
        """What R_C and R_N minimise.

        Args:
            discriminator: D_L, from latent vectors to logits.
            image: X, shape (B, C, S, S).
            decomposition: X_C and X_N, each in the shape of X.
            z: E_C(X), shape (B, D).
            centre: Z_C, shape (D,).

        Returns:
            Scalars ``one_class`` (Eq. 3), ``latent`` (E_C's part of Eq. 4), ``rec`` (Eq. 5), ``loss`` (Eq. 6) and
            ``error`` (Eq. 3 + Eq. 5, which need no D_L).
        """
        one_class = self.one_class(z, centre)
        if self.joint_batch:
            latent = self.adversarial.generator(discriminator(torch.cat([self.sample(len(z), centre), z]))[len(z) :])
        else:
            latent = self.adversarial.generator(discriminator(z))
        rec = self.reconstruction(image, decomposition)
        return {
            "loss": one_class + latent + rec,
            "error": one_class + rec,
            "one_class": one_class,
            "latent": latent,
            "rec": rec,
        }

    def reconstruction(self, image: Tensor, decomposition: tuple[Tensor, Tensor]) -> Tensor:
        """L_R (Eq. 5), with X-tilde = X_C + X_N."""
        component, residual = decomposition
        return self.squared_error(component + residual, image)

    def sample(self, number: int, centre: Tensor) -> Tensor:
        """``number`` latent vectors from N(Z_C, sigma^2 I), shape (number, D)."""
        return centre + self.sigma * torch.randn(number, centre.numel(), device=centre.device, dtype=centre.dtype)

    def discriminator(self, discriminator: Callable[[Tensor], Tensor], z: Tensor, centre: Tensor) -> Tensor:
        """What D_L minimises: the negative of Eq. 4, with as many samples as the batch has images (Algorithm 1).

        Args:
            discriminator: D_L, from latent vectors to logits.
            z: E_C(X), shape (B, D).
            centre: Z_C, shape (D,).
        """
        sample, code = self.sample(len(z), centre), z.detach().to(centre.dtype)
        if self.joint_batch:
            real, fake = discriminator(torch.cat([sample, code])).split(len(z))
        else:
            real, fake = discriminator(sample), discriminator(code)
        return self.adversarial.discriminator(real, fake)
