"""A memory that recalls a feature map block by block."""

# No postponed annotations here: TorchScript reads the real ones.

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["BlockMemory"]

# Weights are float32 of about 1/N: one that equals 1/N but for rounding is not below it.
_ROUNDING = 1e-6


class BlockMemory(nn.Module):
    """A feature map is cut into a grid of equal blocks, and each block is put together anew from memory items.

    Each block, flattened, is a query q; its weights w over the N items m_i are the softmax of their cosine similarities
    (Eq. 1), weights below 1/N are dropped, and what is recalled is w M (Eq. 2). The more blocks, the smaller they are
    and the more alike are those of normal and abnormal images: the division rates set how well either is recalled.

    Args:
        channels: C of the feature map.
        size: H, W (or H, W, D) of the feature map.
        division_rates: how many blocks lie along each spatial axis and along the channels: (r_h, r_w, r_c) or
            (r_h, r_w, r_d, r_c).
        num_items: N.
        temperature: the similarities are divided by it before the softmax; 1 is Eq. 1. Cosines lie in [-1, 1], so that
            no weight of Eq. 1 is more than e^2 times another; a lower temperature sharpens them.
        renormalize: weights that are left sum to one; the paper does not say so.
        item_std: items start as normal random numbers of this standard deviation, which the paper does not give.

    Attributes:
        items: M, shape (N, D) with D the number of elements of a block.

    Raises:
        ValueError: if a rate does not divide the feature map, there is not one rate an axis and one for the channels,
            or a number is not positive.

    References:
        J. Hou et al., *Divide-and-Assemble: Learning Block-wise Memory for Unsupervised Anomaly Detection*, ICCV 2021,
        section 3.1.2; r = (8, 8, 1) and N = 500 (section 4.1).
    """

    def __init__(
        self,
        channels: int,
        size: Sequence[int],
        division_rates: Sequence[int] = (8, 8, 1),
        num_items: int = 500,
        temperature: float = 1.0,
        renormalize: bool = False,
        item_std: float = 1.0,
    ) -> None:
        super().__init__()
        dims = len(size)
        if len(division_rates) != dims + 1:
            raise ValueError(
                f"division_rates has one number an axis and one for the channels ({dims + 1}), got {division_rates}"
            )
        for name, whole, rate in zip([*"hwd"[:dims], "c"], [*size, channels], division_rates):
            if rate < 1 or whole % rate != 0:
                fitting = [r for r in range(1, whole + 1) if whole % r == 0]
                what = "channels" if name == "c" else "pixels"
                raise ValueError(
                    f"division rate r_{name} = {rate} does not divide the {whole} {what} of the feature map: "
                    f"take one of {fitting}, or an image size (channels) that is a multiple of it"
                )
        if num_items < 1 or temperature <= 0 or item_std <= 0:
            raise ValueError(
                "num_items, temperature and item_std are positive, "
                f"got num_items {num_items}, temperature {temperature}, item_std {item_std}"
            )
        self.renormalize = renormalize
        self.temperature = temperature
        self.least_weight = (1.0 - _ROUNDING) / num_items
        self.shape = [channels, *size]
        # C, H, W to r_c, C / r_c, r_h, H / r_h, r_w, W / r_w; then the numbers of blocks first.
        rates = [division_rates[-1], *division_rates[:-1]]
        blocks = [whole // rate for whole, rate in zip(self.shape, rates)]
        self.divided = [n for pair in zip(rates, blocks) for n in pair]
        self.grid = rates + blocks
        self.block_order = [0, *range(1, 2 * dims + 3, 2), *range(2, 2 * dims + 3, 2)]
        self.map_order = [0, *(n for i in range(dims + 1) for n in (i + 1, i + dims + 2))]
        self.item_dim = math.prod(blocks)
        self.items = nn.Parameter(torch.randn(num_items, self.item_dim) * item_std)

    def weights(self, queries: Tensor) -> Tensor:
        """Eq. 1 and the dropping of weights below 1/N.

        Args:
            queries: shape (number of queries, D).

        Returns:
            Shape (number of queries, N); a row sums to at most one.
        """
        similarity = F.linear(F.normalize(queries, dim=1), F.normalize(self.items, dim=1))
        w = F.softmax(similarity / self.temperature, dim=1)
        w = w * (w >= self.least_weight)
        if self.renormalize:
            w = F.normalize(w, p=1.0, dim=1)
        return w

    def divide(self, feature: Tensor) -> Tensor:
        """The blocks of a feature map as queries, shape (B * Q, D); see ``forward`` for the argument."""
        return feature.reshape([-1] + self.divided).permute(self.block_order).reshape(-1, self.item_dim)  # noqa: RUF005

    def assemble(self, blocks: Tensor) -> Tensor:
        """The feature map whose blocks these are: undoes ``divide``."""
        return blocks.reshape([-1] + self.grid).permute(self.map_order).reshape([-1] + self.shape)  # noqa: RUF005

    def forward(self, feature: Tensor) -> Tensor:
        """Recall a feature map.

        Args:
            feature: shape (B, C, *size).

        Returns:
            The recalled map, in the same shape.

        Raises:
            ValueError: for another shape.
        """
        if list(feature.shape[1:]) != self.shape:
            raise ValueError(f"the memory is made for feature maps of shape {self.shape}, got {feature.shape[1:]}")
        return self.assemble(self.weights(self.divide(feature)) @ self.items)  # Eq. 2
