"""PatchCore: the distance of each patch from the nearest one in normal images.

K. Roth et al., *Towards Total Recall in Industrial Anomaly Detection*, CVPR 2022. Symbols follow the paper: M the
memory of patch features, m* the item nearest to the most anomalous patch, N_b its b nearest items in M.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_anomaly.calibration.fitted import FittedBuffers
from monai_anomaly.exceptions import InputError, check_choice
from monai_anomaly.networks.blocks.smoothing import GaussianFilter
from monai_anomaly.networks.detector import AnomalyOutput
from monai_anomaly.networks.frozen_encoder import FrozenEncoderDetector

__all__ = ["PatchCore", "greedy_coreset"]

# Dimensions that the coreset is chosen in (published code of the paper).
_PROJECTED = 128


class PatchMemory(FittedBuffers):
    """The items of a memory, shape (M, D); none while not fitted."""

    def __init__(self) -> None:
        super().__init__({"items": 2})
        self.items: Tensor

    def forward(self, rows: Tensor) -> Tensor:
        """Euclidean distances of patches (N, D) from the items, shape (N, M), in single precision."""
        rows = rows.float()
        squares = rows.square().sum(dim=1, keepdim=True) + self.items.square().sum(dim=1) - 2.0 * rows @ self.items.T
        return squares.clamp_min(0.0).sqrt()


class PatchCore(FrozenEncoderDetector):
    """A memory of the patch features of normal images, thinned to a coreset; nothing is trained.

    Args:
        spatial_dims: 2.
        in_channels: channels of the image; under the rule ``"each"`` a patch has the features of all channels.
        encoder: see ``FrozenEncoderDetector``, as ``encoder_channels``, ``source``, ``channel_rule``,
            ``input_statistics`` and ``encoder_label``. The paper has WideResNet50.
        levels: of the encoder, finest = 1, whose features are joined on the grid of the first; 2 and 3 (section 3.1).
        patch_size: side of the neighbourhood that features are averaged over, odd; 3 (section 4.4.1).
        coreset: share of the training patches that the memory keeps; 0.25, 0.1 and 0.01 are the paper's (Table 1).
        most_items: the memory keeps no more, whatever the share.
        most_candidates: patches that the coreset is chosen from, drawn at random where there are more.
        distance: ``"euclidean"`` (Eq. 6), or ``"cosine"``: of features of length one.
        neighbours: b of Eq. 7, by which the score is weighted; 1: the plain maximum (Eq. 6).
        sigma: of the Gaussian filter in pixels; 4 (section 3.3).
        seed: of the random choices.

    Attributes:
        memory: a ``PatchMemory``; the map of an empty one is 0.

    Raises:
        ValueError: for settings that do not fit.

    Example::

        detector = PatchCore(in_channels=1).eval()
        anomaly_map, anomaly_score, _ = detector.detect(torch.rand(1, 1, 256, 256))
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        encoder: str = "resnet18",
        encoder_channels: Sequence[int] = (64, 128, 256, 512),
        source: dict[str, Any] | None = None,
        levels: Sequence[int] = (2, 3),
        patch_size: int = 3,
        coreset: float = 0.1,
        most_items: int = 10_000,
        most_candidates: int = 200_000,
        distance: str = "euclidean",
        neighbours: int = 9,
        sigma: float = 4.0,
        seed: int = 0,
        channel_rule: str | None = None,
        input_statistics: str | None = None,
        encoder_label: str = "random",
    ) -> None:
        super().__init__()
        if list(levels) != sorted(set(levels)) or not levels or levels[0] < 1 or levels[-1] > len(self.level_channels):
            raise ValueError(f"levels are 1 to {len(self.level_channels)}, finest first, got {list(levels)}")
        if patch_size < 1 or patch_size % 2 == 0:
            raise ValueError(f"patch_size is odd, got {patch_size}")
        if not 0 < coreset <= 1:
            raise ValueError(f"coreset is a share above 0 and at most 1, got {coreset}")
        check_choice("distance", distance, "euclidean", "cosine")
        if min(most_items, most_candidates, neighbours) < 1:
            raise ValueError("most_items, most_candidates and neighbours are at least 1")
        if sigma < 0:
            raise ValueError(f"sigma is at least 0, got {sigma}")
        self.levels, self.patch_size = [int(level) for level in levels], patch_size
        self.coreset, self.most_items, self.most_candidates = coreset, most_items, most_candidates
        self.cosine, self.neighbours, self.seed = distance == "cosine", neighbours, seed
        self.memory = PatchMemory()
        self.gaussian = GaussianFilter(sigma)

    def detect(self, image: Tensor) -> AnomalyOutput:
        """See ``AnomalyDetector.detect``; there is no restoration."""
        self.check_input(image)
        patches = self.patches(image)
        if self.memory.items.shape[0] == 0:
            nothing = image[:, :1] * 0.0
            return AnomalyOutput(nothing, nothing.flatten(1).amax(dim=1), None)
        height, width = patches.shape[2], patches.shape[3]
        rows = patches.flatten(2).transpose(1, 2)  # (B, N, D)
        nearest, index = self.memory(rows.flatten(0, 1)).min(dim=1)
        nearest, index = nearest.view(-1, height * width), index.view(-1, height * width)
        upsampled = F.interpolate(
            nearest.view(-1, 1, height, width), size=image.shape[2:], mode="bilinear", align_corners=False
        )
        return AnomalyOutput(self.gaussian(upsampled), self._score(rows, nearest, index), None)

    def patches(self, image: Tensor) -> Tensor:
        """The patch features (section 3.1), shape (B, D, h, w) on the grid of the finest of ``levels``."""
        features = self.encode(image)
        chosen = [F.avg_pool2d(features[k - 1], self.patch_size, 1, self.patch_size // 2) for k in self.levels]
        size = chosen[0].shape[2:]
        joined = torch.cat(
            [F.interpolate(one, size=size, mode="bilinear", align_corners=False) for one in chosen], dim=1
        )
        # under the rule "each" the channels of an image follow each other in the batch
        joined = joined.reshape(image.shape[0], -1, joined.shape[2], joined.shape[3])
        return F.normalize(joined, dim=1) if self.cosine else joined

    def _score(self, rows: Tensor, nearest: Tensor, index: Tensor) -> Tensor:
        """Eq. 6 and 7: the largest distance, less where m* has few normal items near it."""
        largest, place = nearest.max(dim=1)
        if self.neighbours == 1:
            return largest
        star = self.memory.items[index.gather(1, place[:, None])[:, 0]]  # m*, shape (B, D)
        patch = rows.gather(1, place[:, None, None].expand(-1, 1, rows.shape[2]))[:, 0]
        around = self.memory(star).topk(min(self.neighbours, self.memory.items.shape[0]), dim=1, largest=False)
        others = self.memory(patch).gather(1, around.indices)
        return (1.0 - torch.exp(largest - torch.logsumexp(others, dim=1)).clamp_max(1.0)) * largest

    @torch.jit.unused
    def fit_statistics(self, training: Iterable[Tensor], held_out: Iterable[Tensor]) -> None:
        """Fill the memory with a coreset of the training patches (Algorithm 1).

        Raises:
            InputError: if the encoder's weights are random.
            ValueError: without a training image.
        """
        if self.encoder_label == "random":
            raise InputError(
                "weights",
                f"the encoder {self.encoder_name} has random weights, on which no anomaly can be told",
                "Pass --weights FILE (torchvision's format) or --weights imagenet, or lay own_encoder.yaml over "
                "train.yaml to train an encoder on your normals.",
            )
        generator = torch.Generator().manual_seed(self.seed)
        images, grid = 0, 0  # and patches of each
        for batch in training:
            grid = grid or self.patches(batch[:1])[0, 0].numel()
            images += len(batch)
        total = images * grid
        if not total:
            raise ValueError("a memory needs a training image")
        share = min(1.0, self.most_candidates / total)
        kept = []
        for batch in training:
            rows = self.patches(batch).movedim(1, -1).flatten(0, -2).cpu()
            kept.append(rows if share == 1.0 else rows[torch.rand(len(rows), generator=generator) < share])
        candidates = torch.cat(kept).float()
        count = min(self.most_items, max(1, round(self.coreset * total)), len(candidates))
        self.memory.fill(items=candidates[greedy_coreset(candidates, count, generator)])


def greedy_coreset(items: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Choose items so that each of the others is near to one of them: the farthest from those chosen comes next.

    Args:
        items: shape (N, D). Of more than 128 dimensions a random projection to 128 is looked at.
        count: of the choice, 1 to N.
        generator: of the projection and of the first item.

    Returns:
        Indices, shape (count,), in the order of the choice.

    Raises:
        ValueError: for a ``count`` that is out of range.
    """
    if not 1 <= count <= len(items):
        raise ValueError(f"count is 1 to {len(items)}, got {count}")
    if items.shape[1] > _PROJECTED:
        items = items @ torch.randn(items.shape[1], _PROJECTED, generator=generator) / _PROJECTED**0.5
    squares = items.square().sum(dim=1)
    chosen = [int(torch.randint(len(items), (1,), generator=generator))]
    farthest = torch.full_like(squares, torch.inf)
    for _ in range(count - 1):
        last = chosen[-1]
        torch.minimum(farthest, squares + squares[last] - 2.0 * (items @ items[last]), out=farthest)
        farthest[last] = -torch.inf
        chosen.append(int(farthest.argmax()))
    return torch.tensor(chosen)
