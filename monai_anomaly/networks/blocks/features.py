"""Encoders that give several feature maps, and the freezing of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .encoder_decoder import StridedEncoder

__all__ = ["Frozen", "StagedFeatures", "StridedFeatures", "SymmetricRange"]


class Frozen(nn.Module):
    """A feature encoder that is never trained: no gradients, and eval mode whatever ``train()`` says.

    Args:
        encoder: from an image to a list of feature maps.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Frozen:
        """Eval mode, always: neither dropout nor batch statistics move."""
        return super().train(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        """The feature maps of an image, finest first, without gradients."""
        with torch.no_grad():
            features: list[Tensor] = self.encoder(image)
        return features


class SymmetricRange(nn.Module):
    """An image in [0, 1] brought to [-1, 1].

    Args:
        gray: the mean over the channels is taken first.
    """

    def __init__(self, gray: bool = False) -> None:
        super().__init__()
        self.gray = gray

    def forward(self, image: Tensor) -> Tensor:
        """The image in [-1, 1], shape (B, C, *spatial), or (B, 1, *spatial)."""
        if self.gray:
            image = image.mean(dim=1, keepdim=True)
        return 2.0 * image - 1.0


class StagedFeatures(nn.Module):
    """The outputs of the last three of a chain of stages, each of which halves the size of the one before.

    Args:
        stages: three or more, run one after the other.
        size_divisor: the stride of the last stage's output; the others have a quarter and a half of it.
        before: from an image in [0, 1] to the first stage's input; None: the image itself.

    Raises:
        ValueError: if there are fewer than three stages.
    """

    def __init__(self, stages: Sequence[nn.Module], size_divisor: int, before: nn.Module | None = None) -> None:
        super().__init__()
        if len(stages) < 3:
            raise ValueError(f"three feature levels need an encoder of three or more stages, this has {len(stages)}")
        self.before = nn.Identity() if before is None else before
        self.shallow = nn.Sequential(*stages[:-2])
        self.middle = stages[-2]
        self.deep = stages[-1]
        self.size_divisor = size_divisor

    def forward(self, x: Tensor) -> list[Tensor]:
        """The three feature maps of an image (B, C, H, W), finest first."""
        f1 = self.shallow(self.before(x))
        f2 = self.middle(f1)
        f3 = self.deep(f2)
        return [f1, f2, f3]


class StridedFeatures(StagedFeatures):
    """The features of a ``StridedEncoder``, whose last 1 x 1 convolution is left out.

    Args:
        encoder: with three or more strided stages, on images in [0, 1].

    Attributes:
        channels: of the three outputs.
    """

    def __init__(self, encoder: StridedEncoder) -> None:
        stages: list[Any] = list(encoder)[:-1]
        super().__init__(stages, size_divisor=2 ** len(stages))
        self.channels = [int(stage[0].out_channels) for stage in stages[-3:]]
