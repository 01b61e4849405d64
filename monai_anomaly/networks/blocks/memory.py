"""Memories that replace latent features by what is known of normal ones."""

# No postponed annotations here: TorchScript reads the real ones of methods that it leaves out.

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from monai_anomaly.exceptions import check_choice

__all__ = ["NearestMemory", "ShrinkageMemory"]


class NearestMemory(nn.Module):
    """Each latent feature is replaced by its nearest memory item; items follow by exponential moving averages.

    Args:
        num_items: number k of items.
        item_dim: width d of an item.
        decay: gamma of Eq. 6.
        commitment: weight of ``mean((z - m)^2)``, which the paper's Eq. 7 does not have.
        restart_below: an item whose running count N_i falls below this is moved to a random feature of the batch; 0
            never moves one. An item that no feature has ever chosen keeps its place otherwise, since e_i / N_i of
            Eq. 6 does not change when both only decay.

    Notes:
        Eq. 6 needs start values that the paper does not give. In the first training batch the items become random
        features of that batch, with N_i = 1 and e_i = m_i, so that m_i = e_i / N_i holds from the start. Under several
        processes the counts and sums of a step are added up over all of them before Eq. 6, and every process draws
        the same items.

    References:
        K. Zhou et al., ProxyAno, section III-C, Eq. 2-6; k = 128, d = 64, gamma = 0.99 (section IV-A).
    """

    def __init__(
        self,
        num_items: int = 128,
        item_dim: int = 64,
        decay: float = 0.99,
        commitment: float = 0.0,
        restart_below: float = 0.05,
    ) -> None:
        super().__init__()
        self.num_items, self.item_dim = num_items, item_dim
        self.decay = decay
        self.commitment = commitment
        self.restart_below = restart_below
        m = torch.randn(num_items, item_dim)
        self.register_buffer("items", m)  # m_i
        self.register_buffer("counts", torch.ones(num_items))  # N_i
        self.register_buffer("sums", m.clone())  # e_i
        self.register_buffer("started", torch.tensor(False))
        # declared here and not in the class body, which TorchScript reads
        self.items: Tensor
        self.counts: Tensor
        self.sums: Tensor
        self.started: Tensor

    def nearest(self, features: Tensor) -> Tensor:
        """The index of the nearest item of each feature (Eq. 2).

        Args:
            features: shape (s, d).

        Returns:
            Shape (s,), int64.
        """
        m = self.items
        # ||z||^2 is the same for every item and does not change the minimum.
        distance = (m * m).sum(dim=1)[None, :] - 2.0 * features @ m.t()
        return distance.argmin(dim=1)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Look up, and in training mode update.

        Args:
            z: shape (B, d, *spatial).

        Returns:
            The retrieved features in the shape of ``z``, with the straight-through gradient in training mode, and the
            weighted auxiliary loss (a scalar).
        """
        flat = z.movedim(1, -1).reshape(-1, self.item_dim).float()
        if self.training:
            self._start(flat.detach())
        index = self.nearest(flat)
        retrieved = F.embedding(index, self.items).reshape(z.movedim(1, -1).shape).movedim(-1, 1).to(z.dtype)
        if not self.training:
            return retrieved, torch.zeros((), device=z.device)
        auxiliary = self.commitment * F.mse_loss(z, retrieved)
        self._update(flat.detach(), index)
        # The gradient of the retrieved feature is copied to z (section III-C).
        return z + (retrieved - z).detach(), auxiliary

    @torch.jit.unused
    def _start(self, flat: Tensor) -> None:
        if bool(self.started):
            return
        self.items.copy_(self._draw(flat, self.num_items))
        self.sums.copy_(self.items)
        self.counts.fill_(1.0)
        self.started.fill_(True)

    @torch.jit.unused
    def _update(self, flat: Tensor, index: Tensor) -> None:
        n = torch.bincount(index, minlength=self.num_items).to(flat)
        total = torch.zeros_like(self.sums).index_add_(0, index, flat)
        if _several_processes():
            dist.all_reduce(n)
            dist.all_reduce(total)
        gamma = self.decay
        self.counts.mul_(gamma).add_(n, alpha=1.0 - gamma)
        self.sums.mul_(gamma).add_(total, alpha=1.0 - gamma)
        # Below this count the quotient of two vanishing numbers loses its digits: the item stays where it is.
        alive = self.counts > 1e-6
        self.items[alive] = self.sums[alive] / self.counts[alive, None]
        dead = self.counts < self.restart_below
        if bool(dead.any()):
            self.items[dead] = self._draw(flat, int(dead.sum()))
            self.sums[dead] = self.items[dead]
            self.counts[dead] = 1.0

    def _draw(self, flat: Tensor, number: int) -> Tensor:
        """``number`` features of this batch, drawn without replacement where it is large enough; equal on all ranks."""
        order = torch.randperm(flat.shape[0])
        if number > flat.shape[0]:
            order = torch.randint(flat.shape[0], (number,))
        drawn = flat[order[:number].to(flat.device)].clone()
        if _several_processes():
            dist.broadcast(drawn, src=0)
        return drawn


class ShrinkageMemory(nn.Module):
    """MemAE's memory: attention over all items by cosine similarity, small weights cut, the rest renormalised.

    Args:
        num_items: number N of items.
        item_dim: width of an item.
        shrink_threshold: weights below it are cut; None is 1 / N, the lower end of MemAE's range [1/N, 3/N].
        entropy_weight: weight of the entropy of the attention in the training loss.
        similarity: of query and item, ``"cosine"`` (the paper's Eq. 5) or ``"dot"``, the product without norms that the
            published implementation computes, there with a threshold of 5 / N.

    Raises:
        ValueError: for another similarity.

    Notes:
        Under the cosine, an item that points the query's way while all others are orthogonal to it has a weight of
        about e / N: a threshold of 3 / N cuts even that one, and zeros are retrieved.

    References:
        D. Gong et al., *Memorizing Normality to Detect Anomaly*, ICCV 2019, Eq. 3-9 (entropy weight 0.0002); the
        ``mem*`` of ProxyAno, Table IV row 2.
    """

    def __init__(
        self,
        num_items: int = 128,
        item_dim: int = 64,
        shrink_threshold: float | None = None,
        entropy_weight: float = 0.0002,
        similarity: str = "cosine",
    ) -> None:
        super().__init__()
        check_choice("similarity", similarity, "cosine", "dot")
        self.item_dim = item_dim
        self.cosine = similarity == "cosine"
        self.shrink_threshold = 1.0 / num_items if shrink_threshold is None else shrink_threshold
        self.entropy_weight = entropy_weight
        self.items = nn.Parameter(torch.empty(num_items, item_dim))
        nn.init.normal_(self.items, std=item_dim**-0.5)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Retrieve a convex combination of items for each position.

        Args:
            z: shape (B, d, *spatial).

        Returns:
            The retrieved features in the shape of ``z`` and the weighted entropy of the attention (a scalar).
        """
        flat = z.movedim(1, -1).reshape(-1, self.item_dim)
        # in float32 whatever the autocast: 1e-12 is 0 in float16, and 0 / 0 no number
        if self.cosine:
            similarity = F.linear(F.normalize(flat.float(), dim=1), F.normalize(self.items, dim=1))
        else:
            similarity = F.linear(flat, self.items)
        attention = F.softmax(similarity.float(), dim=1)
        above = attention - self.shrink_threshold
        # MemAE, Eq. 7: the hard shrinkage in a form that keeps its gradient.
        attention = F.relu(above) * attention / (above.abs() + 1e-12)
        attention = F.normalize(attention, p=1.0, dim=1)
        retrieved = (attention @ self.items).reshape(z.movedim(1, -1).shape).movedim(-1, 1)
        entropy = -(attention * torch.log(attention + 1e-12)).sum(dim=1).mean()
        return retrieved, self.entropy_weight * entropy


def _several_processes() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
