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
    "foreground_bounds",
    "foreground_level",
    "foreground_mask",
]


# Below zero a fill this far below all else, in units of the range of all else, is padding.
_PADDING_GAP = 0.25
# Fewer voxels than this share are outliers, whatever surrounds them.
_OUTLIERS = 0.001
# More of all else than this near its lower end is a background of its own.
_BACKGROUND = 0.2
# A rare tail of negative values longer than this share of the range is ringing of an interpolation.
_TAIL = 0.05
# Air in Hounsfield units.
_AIR = (-1100.0, -900.0)
# Scanners and converters fill with the ends of 16 bits.
_LARGEST_16_BIT = (32767.0, 65535.0)


def foreground_level(channel: torch.Tensor, fraction: float = 0.1) -> float:
    """The intensity above which a voxel counts as tissue: ``low + fraction * (high - low)``.

    ``low`` is the least value and ``high`` the 99th percentile. It holds for MR (background near 0), for CT in
    Hounsfield units (air is the least value) and for 2-D images on a black ground; where there is no background at all,
    nearly everything is foreground. Neither is taken from padding (see ``foreground_mask``), nor is a long tail of
    rare negative values, as interpolation leaves around bright edges.

    Args:
        channel: any shape, finite.
        fraction: where between the two the level lies.

    Returns:
        The level, in the intensities' own unit.
    """
    return foreground_bounds(channel, fraction)[0]


def foreground_bounds(channel: torch.Tensor, fraction: float = 0.1) -> tuple[float, float]:
    """``foreground_level``, and the value of padding above tissue (see ``foreground_mask``), infinite without any.

    Args:
        channel: any shape, finite.
        fraction: see ``foreground_level``.

    Returns:
        Between the two lies tissue.
    """
    values = channel.detach().cpu().numpy().ravel()
    ceiling = _ceiling(values)
    if ceiling < np.inf:
        values = values[values < ceiling]
    low, high = float(values.min()), float(np.percentile(values, 99))
    if low < 0:  # magnitude images have none
        above = values[values > low]
        if above.size:
            first, last = (float(v) for v in np.percentile(above, [1, 99], overwrite_input=True))
            background = float(np.mean(above <= first + 0.1 * (last - first)))
            rare = 1 - above.size / values.size < _OUTLIERS
            is_padding = rare or background > _BACKGROUND or _AIR[0] <= first <= _AIR[1]
            if first - low > _PADDING_GAP * (last - first) > 0 and is_padding:
                low, high = first, last
            elif (tail := float(np.percentile(values, 1))) - low > _TAIL * (high - tail):
                low = tail
    return low + fraction * (high - low), ceiling


def foreground_mask(
    channel: torch.Tensor, fraction: float = 0.1, bounds: tuple[float, float] | None = None
) -> torch.Tensor:
    """Where a channel holds tissue: above ``foreground_level``, and no padding.

    Padding is what a scanner or converter writes outside the field of view. Below air it is recognised by the gap: a
    negative least value, further below the 1st percentile of all other values than a quarter of their range. Such a
    value is passed over where it is rare (an outlier), or where the others have a background of their own, such as
    air; a brain on a fill of -1000 keeps it as its background. Above tissue padding is a 16-bit maximum, 32767 or
    65535, that at least 1 % of the voxels have and that lies further above the 99th percentile of the others than
    their range.

    Args:
        channel: any shape, finite.
        fraction: see ``foreground_level``.
        bounds: ``foreground_bounds`` of the channel, where they are known.

    Returns:
        The same shape, bool.
    """
    level, ceiling = bounds or foreground_bounds(channel, fraction)
    return channel > level if ceiling == np.inf else (channel > level) & (channel < ceiling)


def _ceiling(values: np.ndarray) -> float:
    """The value of padding above tissue; infinite where there is none."""
    largest = float(values.max())
    if largest not in _LARGEST_16_BIT:
        return np.inf
    below = values[values < largest]
    if not below.size or below.size > 0.99 * values.size:
        return np.inf
    low, high = float(below.min()), float(np.percentile(below, 99))
    return largest if largest - high > high - low > 0 else np.inf


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
        floats. ``meta["foreground_level"]`` holds each channel's level after scaling, for ``tissue_slices``, and
        ``meta["foreground_bounds"]`` its ``foreground_bounds`` before, for ``foreground_mask``. The inverse scales
        back (what was clipped stays clipped).
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
        ranges: list[tuple[float, float]] = []
        levels: list[float] = []
        bounds: list[tuple[float, float]] = []
        for channel, values in zip(img.as_tensor(), scaled.as_tensor()):
            bounds.append(foreground_bounds(channel, self.fraction))
            level, _ = bounds[-1]
            inside = foreground_mask(channel, bounds=bounds[-1])
            tissue = channel.cpu().numpy()[inside.cpu().numpy()]  # torch would make an index of each voxel
            low, high = 0.0, 0.0
            if tissue.size:
                low, high = map(float, np.percentile(tissue, [self.lower, self.upper], overwrite_input=True))
            del tissue
            if not high > low:
                source = img.meta.get("source", ["image"])[0]
                raise InputError(
                    source,
                    f"channel {len(ranges)} has one intensity over its whole foreground",
                    "Remove it from the cohort.",
                )
            high = low + (high - low) * self.headroom
            values.sub_(low).div_(high - low)
            values.masked_fill_((channel > level) & ~inside, 0.0)  # padding above tissue is background
            ranges.append((low, high))
            # All that is clipped at 0 lies with the background, which would else stand above a negative level.
            levels.append(max(0.0, (level - low) / (high - low)) if self.clip else (level - low) / (high - low))
        if self.clip:
            scaled.clamp_(0.0, 1.0)
        scaled.meta |= {"foreground_level": levels, "foreground_bounds": bounds}
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
