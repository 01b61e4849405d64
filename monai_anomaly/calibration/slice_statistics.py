"""What score a normal slice has at its place in the scan: the step from slices to a volume's score."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["SliceStatistics"]


class SliceStatistics(nn.Module):
    """Mean and spread of normal slices' scores along the stack, as buffers of the detector's ``state_dict``.

    A reconstruction error grows with the anatomy in a slice: of the slices of a brain, one through the ventricles has
    the highest score in every subject, healthy or not, and the plain maximum over a volume says little else. Each
    slice is therefore compared with normal slices at its own place. The papers score single images and leave this open;
    a cohort of single images is scored exactly as they do.

    Args:
        num_positions: places along the stack, from its first tissue slice to its last, that are told apart.

    Attributes:
        mean: shape (num_positions,), 0 while not fitted, which leaves scores as they are.
        std: shape (num_positions,), 1 while not fitted.
    """

    def __init__(self, num_positions: int = 10) -> None:
        super().__init__()
        self.num_positions = num_positions
        self.register_buffer("mean", torch.zeros(num_positions))
        self.register_buffer("std", torch.ones(num_positions))
        # declared here and not in the class body, which TorchScript reads
        self.mean: Tensor
        self.std: Tensor

    def fit(self, scans: Sequence[Tensor]) -> None:
        """Fit over training normals; without a scan of several slices there is nothing to fit.

        Args:
            scans: per scan the scores of its tissue slices, in their order along the stack, each of shape (S,).
        """
        scans = [scores.double().cpu() for scores in scans if scores.numel() > 1]
        if not scans:
            return
        pooled = torch.cat(scans)
        places = torch.cat([places_along(scores.numel(), self.num_positions) for scores in scans])
        mean, std = pooled.mean().repeat(self.num_positions), pooled.std().repeat(self.num_positions)
        for place in range(self.num_positions):
            here = pooled[places == place]
            # Too few slices for a spread of their own: those of all places stand in.
            if here.numel() >= 3 and float(here.std()) > 0:
                mean[place], std[place] = here.mean(), here.std()
        self.mean.copy_(mean)
        self.std.copy_(std.clamp_min(torch.finfo(torch.float32).tiny))

    def volume_score(self, scores: Tensor) -> Tensor:
        """The score of a scan: its most anomalous slice, in standard deviations of normal slices at the same place.

        Args:
            scores: shape (S,), of its tissue slices in their order.

        Returns:
            Shape (1,). While not fitted, the plain maximum.
        """
        places = places_along(scores.numel(), self.num_positions)
        return ((scores - self.mean.cpu()[places]) / self.std.cpu()[places]).max()[None]


def places_along(slices: int, positions: int) -> Tensor:
    """The place along the stack, from 0 to ``positions - 1``, of each of so many slices, shape (slices,)."""
    return ((torch.arange(slices) + 0.5) / slices * positions).long()
