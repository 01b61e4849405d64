"""The losses of GANomaly: Eq. 1 to 4 of S. Akcay et al., ACCV 2018."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .common import AdversarialLoss

__all__ = ["GANomalyLoss"]


class GANomalyLoss(nn.Module):
    """L = w_adv L_adv + w_con L_con + w_enc L_enc (Eq. 4).

    Args:
        w_adv: weight of the adversarial loss, 1.
        w_con: weight of the contextual loss, 50.
        w_enc: weight of the encoder loss, 1.
        reduction: ``"mean"``: the mean absolute or squared difference over all elements, as in the published
            implementation, whose weights these are; ``"norm"``: the norms ||.||_2 and ||.||_1 of each image, and their
            mean over the batch, as printed.
        adversarial: ``"features"``: feature matching (Eq. 1); ``"saturating"`` and ``"non-saturating"``: of the
            discriminator's logits, see ``AdversarialLoss``. The published implementation trained with the last for
            some of its versions.
        matching: ``"pairs"``: f(x) against f(x-hat) of the same image, as the text says; ``"mean"``: against the mean
            of f(x-hat) over the batch, as Eq. 1 prints.

    Raises:
        ValueError: for an unknown setting.
    """

    def __init__(
        self,
        w_adv: float = 1.0,
        w_con: float = 50.0,
        w_enc: float = 1.0,
        reduction: str = "mean",
        adversarial: str = "features",
        matching: str = "pairs",
    ) -> None:
        super().__init__()
        known = {
            "reduction": (reduction, ("mean", "norm")),
            "adversarial": (adversarial, ("features", "saturating", "non-saturating")),
            "matching": (matching, ("pairs", "mean")),
        }
        for name, (value, values) in known.items():
            if value not in values:
                raise ValueError(f"{name} is one of {values}, got {value!r}")
        self.w_adv, self.w_con, self.w_enc = w_adv, w_con, w_enc
        self.reduction, self.adversarial, self.matching = reduction, adversarial, matching
        self.logits_loss = AdversarialLoss(saturating=adversarial == "saturating")

    def contextual(self, x: Tensor, x_hat: Tensor) -> Tensor:
        """L_con (Eq. 2), a scalar, of two tensors (B, C, *spatial)."""
        difference = (x - x_hat).abs()
        return difference.mean() if self.reduction == "mean" else difference.flatten(1).sum(dim=1).mean()

    def encoder(self, z: Tensor, z_hat: Tensor) -> Tensor:
        """L_enc (Eq. 3), a scalar, of two tensors (B, d)."""
        return self._two_norm(z - z_hat)

    def feature_matching(self, real: Tensor, fake: Tensor) -> Tensor:
        """L_adv (Eq. 1), a scalar, of f(x) and f(x-hat), both of shape (B, w, *spatial)."""
        return self._two_norm(real - (fake.mean(dim=0, keepdim=True) if self.matching == "mean" else fake))

    def _two_norm(self, difference: Tensor) -> Tensor:
        if self.reduction == "mean":
            return (difference * difference).mean()
        return torch.linalg.vector_norm(difference.flatten(1), dim=1).mean()

    def forward(
        self,
        x: Tensor,
        x_hat: Tensor,
        z: Tensor,
        z_hat: Tensor,
        real_features: Tensor,
        fake_features: Tensor,
        fake_logits: Tensor,
    ) -> dict[str, Tensor]:
        """What the generator minimises.

        Args:
            x: the image as the networks see it, shape (B, C, *spatial).
            x_hat: its reconstruction.
            z: its latent vector, shape (B, d).
            z_hat: the latent vector of ``x_hat``.
            real_features: f(x), shape (B, w, *spatial).
            fake_features: f(x-hat).
            fake_logits: the discriminator's logits of ``x_hat``.

        Returns:
            Scalars ``loss`` (Eq. 4), ``adv`` (Eq. 1), ``con`` (Eq. 2) and ``enc`` (Eq. 3).
        """
        if self.adversarial == "features":
            adv = self.feature_matching(real_features, fake_features)
        else:
            adv = self.logits_loss.generator(fake_logits)
        con, enc = self.contextual(x, x_hat), self.encoder(z, z_hat)
        return {"loss": self.w_adv * adv + self.w_con * con + self.w_enc * enc, "adv": adv, "con": con, "enc": enc}

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """What D minimises, from its logits of images and of reconstructions: the binary cross entropy."""
        return self.logits_loss.discriminator(real, fake)
