"""Intensities of a scan, by percentiles of its foreground."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform

from monai_anomaly.exceptions import InputError

__all__ = [
    "NormalizeForeground",
    "NormalizeForegroundD",
    "NormalizeForegroundDict",
    "NormalizeForegroundd",
    "foreground_level",
]


def foreground_level(channel: torch.Tensor, fraction: float = 0.1) -> float:
    """The intensity above which a voxel counts as tissue: ``low + fraction * (high - low)``.

    ``low`` is the least value and ``high`` the 99th percentile. It holds for MR (background near 0), for CT in
    Hounsfield units (air is the least value) and for pictures on a black ground; where there is no background at all,
    nearly everything is foreground.

    Args:
        channel: any shape, finite.
        fraction: where between the two the level lies.

    Returns:
        The level, in the intensities' own unit.
    """
    values = channel.detach().cpu().numpy()
    low, high = float(values.min()), float(np.percentile(values, 99))
    return low + fraction * (high - low)


class NormalizeForeground(InvertibleTransform):
    """Scale each channel so that two percentiles of its foreground become 0 and ``1 / headroom``, and clip to [0, 1].

    Args:
        lower: percentile that becomes 0.
        upper: percentile that becomes ``1 / headroom``.
        fraction: see ``foreground_level``.
        clip: clip to [0, 1]; the background then is 0.
        headroom: room above the upper percentile. An upper percentile near 100 is set by a bright lesion wherever there
            is one, which darkens the normal tissue of just those scans; a lower one with headroom is not.

    Notes:
        No paper states the intensities' scale for volumes. 16-bit input keeps its depth, since all is computed in
        floats. ``meta["foreground_level"]`` holds each channel's level after scaling, for ``tissue_slices``. The
        inverse scales back (what was clipped stays clipped).
    """

    def __init__(
        self,
        lower: float = 0.5,
        upper: float = 99.5,
        fraction: float = 0.1,
        clip: bool = True,
        headroom: float = 1.0,
    ) -> None:
        if not 0 <= lower < upper <= 100:
            raise ValueError(f"percentiles must satisfy 0 <= lower < upper <= 100, got {lower}, {upper}")
        if not headroom >= 1.0:
            raise ValueError(f"headroom is at least 1, got {headroom}")
        self.headroom = headroom
        self.lower, self.upper, self.fraction, self.clip = lower, upper, fraction, clip

    def __call__(self, img: MetaTensor) -> MetaTensor:
        """Normalise.

        Args:
            img: shape (C, *spatial), finite.

        Returns:
            Same shape, float32, in [0, 1] when clipped.

        Raises:
            InputError: if a channel is constant, or constant over its foreground.
        """
        img = img if isinstance(img, MetaTensor) else MetaTensor(img)
        scaled = img.clone().float()
        ranges, levels = [], []
        for c in range(img.shape[0]):
            channel = img[c].as_tensor()
            level = foreground_level(channel, self.fraction)
            tissue = channel[channel > level]
            low, high = (
                (float(v) for v in np.percentile(tissue.cpu().numpy(), [self.lower, self.upper]))
                if tissue.numel()
                else (0.0, 0.0)
            )
            if not high > low:
                source = img.meta.get("source", ["image"])[0]
                raise InputError(
                    source, f"channel {c} has one intensity over its whole foreground", "Remove it from the cohort."
                )
            high = low + (high - low) * self.headroom
            scaled[c] = (channel.float() - low) / (high - low)
            ranges.append((low, high))
            # All that is clipped at 0 lies with the background, which would else stand above a negative level.
            levels.append(max(0.0, (level - low) / (high - low)) if self.clip else (level - low) / (high - low))
        if self.clip:
            scaled.clamp_(0.0, 1.0)
        scaled.meta["foreground_level"] = levels
        self.push_transform(scaled, extra_info={"ranges": ranges})
        return scaled

    def inverse(self, data: MetaTensor) -> MetaTensor:
        """Back to the scan's own intensities; shape (C, *spatial)."""
        ranges = self.pop_transform(data)["extra_info"]["ranges"]
        restored = data.clone()
        for c, (low, high) in enumerate(ranges):
            restored[c] = data[c] * (high - low) + low
        return restored


class NormalizeForegroundd(MapTransform, InvertibleTransform):
    """Dictionary version of ``NormalizeForeground``.

    Args:
        keys: the images.
        lower: see ``NormalizeForeground``, as the others.
        upper: percentile that becomes 1.
        fraction: see ``foreground_level``.
        clip: clip to [0, 1].
        headroom: room above the upper percentile.
        allow_missing_keys: as in MONAI.
    """

    def __init__(
        self,
        keys: KeysCollection,
        lower: float = 0.5,
        upper: float = 99.5,
        fraction: float = 0.1,
        clip: bool = True,
        headroom: float = 1.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = NormalizeForeground(lower, upper, fraction, clip, headroom)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = self.transform(out[key])
        return out

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = self.transform.inverse(out[key])
        return out


NormalizeForegroundD = NormalizeForegroundDict = NormalizeForegroundd
