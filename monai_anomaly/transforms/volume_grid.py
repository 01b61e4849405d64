"""From a scan in its own voxels to a whole volume of one size, and back."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform
from torch import Tensor

from monai_anomaly.exceptions import InputError

from .slice_grid import (
    _LARGEST_LOSS,
    SLICES_AT_ONCE,
    _meta_without_affine,
    _reorientation,
    _reorientation_affine,
    refuse_growth,
    resize_plane,
)

__all__ = ["VolumeGrid", "VolumeGridD", "VolumeGridDict", "VolumeGridd"]


class VolumeGrid(InvertibleTransform):
    """Turn a scan into one volume of ``image_size`` with isotropic voxels, for detectors in three dimensions.

    Volumes are reordered to the closest canonical axes R, A, S (a permutation and flips: no voxel changes, an oblique
    scan is not turned), resampled to cubic voxels, and centred in the window.

    Args:
        image_size: voxels along R, A and S.
        spacing: side of a voxel in mm; None takes for each scan the smallest side with which the whole scan fits the
            window, its proportions in mm kept.

    Raises:
        ValueError: for a size that is not three positive numbers, or a spacing that is not positive.
    """

    def __init__(self, image_size: Sequence[int] = (64, 64, 64), spacing: float | None = None) -> None:
        if len(image_size) != 3 or min(image_size) < 1 or (spacing is not None and not spacing > 0):
            raise ValueError(f"image_size is three positive numbers, spacing positive, got {image_size}, {spacing}")
        self.image_size = (int(image_size[0]), int(image_size[1]), int(image_size[2]))
        self.spacing = spacing

    def __call__(self, img: MetaTensor) -> MetaTensor:
        """Resample.

        Args:
            img: shape (C, X, Y, Z) with its RAS affine; ``meta["scan_kind"]`` is ``"volume"``.

        Returns:
            Shape (C, *image_size), axes R, A, S; the affine follows.

        Raises:
            InputError: for an image, or if the window would cut off foreground.
        """
        if img.meta.get("scan_kind") == "image":
            raise InputError(
                img.meta.get("source", ["image"])[0],
                f"is an image, and an image_size of three numbers, {self.image_size}, takes volumes",
                "Give rows and columns alone, and a detector with spatial_dims 2.",
            )
        order, flips = _reorientation(np.asarray(img.affine), last=2)
        affine = np.asarray(img.affine, dtype=np.float64) @ _reorientation_affine(img.shape[1:], order, flips)
        shape = tuple(img.shape[1 + axis] for axis in order)
        extent = np.linalg.norm(affine[:3, :3], axis=0) * shape  # mm
        spacing = float((extent / self.image_size).max()) if self.spacing is None else self.spacing
        size = tuple(max(1, round(float(side) / spacing)) for side in extent)
        offset = tuple((w - n) // 2 if n <= w else -((n - w) // 2) for n, w in zip(size, self.image_size))
        refuse_growth(img, shape, size, self.image_size, self.spacing)
        # no name keeps what a step began with: volumes are large
        resized = _resize(_reorient(img.as_tensor(), order, flips), size)
        windowed = _place(resized, offset, self.image_size)
        self._refuse_loss(img, resized, windowed)
        out = MetaTensor(
            windowed.contiguous(),
            affine=torch.as_tensor(affine @ _window_affine(shape, size, offset)),
            meta=_meta_without_affine(img),
            applied_operations=img.applied_operations,
        )
        self.push_transform(
            out,
            extra_info={
                "order": order,
                "flips": flips,
                "shape": shape,
                "size": size,
                "offset": offset,
                "affine": np.asarray(img.affine).tolist(),
            },
        )
        return out

    def inverse(self, data: MetaTensor) -> MetaTensor:
        """Back on the scan's own voxels; outside the window there are zeros.

        Args:
            data: shape (C', *image_size), any number of channels, with the trace of the forward call.

        Returns:
            Shape (C', X, Y, Z) of the source scan, with its affine.
        """
        info = self.pop_transform(data)["extra_info"]
        offset, size, shape = (tuple(int(n) for n in info[key]) for key in ("offset", "size", "shape"))
        volume = _resize(_place(data.as_tensor(), tuple(-o for o in offset), size), shape)
        if info["flips"]:
            volume = volume.flip([1 + int(axis) for axis in info["flips"]])
        order = [int(axis) for axis in info["order"]]
        return MetaTensor(
            volume.permute(0, *(1 + int(axis) for axis in np.argsort(order))).contiguous(),
            affine=torch.as_tensor(info["affine"], dtype=torch.float64),
            meta=_meta_without_affine(data),
            applied_operations=data.applied_operations,
        )

    def _refuse_loss(self, img: MetaTensor, resized: Tensor, windowed: Tensor) -> None:
        if all(n <= w for n, w in zip(resized.shape[1:], self.image_size)):
            return
        level = torch.tensor(img.meta.get("foreground_level", [0.0] * img.shape[0]))[:, None, None, None]
        before, after = int((resized > level).sum()), int((windowed > level).sum())
        if before - after > _LARGEST_LOSS * before:
            raise InputError(
                img.meta.get("source", ["image"])[0],
                f"at {self.spacing} mm it has {tuple(resized.shape[1:])} voxels and its tissue does not fit the window "
                f"of {self.image_size}",
                "Choose a larger image_size or spacing.",
            )


def _reorient(volume: Tensor, order: Sequence[int], flips: Sequence[int]) -> Tensor:
    stack = volume.permute(0, *(1 + i for i in order))
    return stack.flip([1 + i for i in flips]) if flips else stack


def _window_affine(shape: Sequence[int], size: Sequence[int], offset: Sequence[int]) -> np.ndarray:
    """Voxels of the window to voxels of the unscaled volume (voxel extents, as ``interpolate`` without corners)."""
    scale = np.divide(shape, size)
    matrix = np.diag([*scale, 1.0])
    matrix[:3, 3] = scale * (0.5 - np.array(offset)) - 0.5
    return matrix


def _resize(volume: Tensor, size: Sequence[int]) -> Tensor:
    """Trilinear, smoothed first along the axes where it shrinks; (C, X, Y, Z)."""
    if tuple(volume.shape[1:]) == tuple(size):
        return volume
    # torch smooths before shrinking in 2-D alone, and the filter is separable: the last two axes, then the first.
    volume = _resize_planes(volume, (volume.shape[1], size[1], size[2]), across=1)
    return _resize_planes(volume, size, across=2)


def _resize_planes(volume: Tensor, size: Sequence[int], across: int) -> Tensor:
    """To ``size``, which is the volume's own along ``across``; a few planes at a time."""
    if tuple(volume.shape[1:]) == tuple(size):
        return volume
    out = torch.empty((len(volume), *size), device=volume.device)
    plane = [side for axis, side in enumerate(size, start=1) if axis != across]
    for part, resized in zip(volume.split(SLICES_AT_ONCE, across), out.split(SLICES_AT_ONCE, across)):
        resized.copy_(resize_plane(part.movedim(across, 0).float(), plane).movedim(0, across))
    return out


def _place(volume: Tensor, offset: Sequence[int], window: Sequence[int]) -> Tensor:
    """Lay the volume on zeros of the window's size, its corner at ``offset`` (which may be negative)."""
    margins = [(o, w - n - o) for n, w, o in zip(volume.shape[1:], window, offset)]
    if not any(map(any, margins)):
        return volume
    return F.pad(volume, [m for pair in reversed(margins) for m in pair])  # negative margins crop


class VolumeGridd(MapTransform, InvertibleTransform):
    """Dictionary version of ``VolumeGrid``.

    Args:
        keys: the scans.
        image_size: see ``VolumeGrid``.
        spacing: in mm, or None.
        allow_missing_keys: as in MONAI.
    """

    def __init__(
        self,
        keys: KeysCollection,
        image_size: Sequence[int] = (64, 64, 64),
        spacing: float | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = VolumeGrid(image_size, spacing)

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


VolumeGridD = VolumeGridDict = VolumeGridd
