"""From a scan in its own voxels to a stack of slices of one size, and back."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform
from torch import Tensor

from monai_anomaly.exceptions import InputError

__all__ = ["SLICE_AXES", "SliceGrid", "SliceGridD", "SliceGridDict", "SliceGridd", "tissue_slices"]

# World axis (R, A, S) that the slices of each plane are stacked along.
SLICE_AXES = {"sagittal": 0, "coronal": 1, "axial": 2}

# A resampled scan may lose this share of its foreground at the window's border; more is rejected.
_LARGEST_LOSS = 0.005

# A scan may grow by this factor over itself and the window, or to this many voxels; what states larger ones is refused
# before memory is taken.
_LARGEST_GROWTH, _FREE_VOXELS = 8, 1 << 24

# Slices that are resampled at once.
SLICES_AT_ONCE = 16


class SliceGrid(InvertibleTransform):
    """Turn a scan into a stack of slices of ``image_size``, slices last.

    Volumes are reordered to the closest canonical axes (a permutation and flips: no voxel changes) with the wanted
    anatomical axis last, resampled within the slices, and centred in the window. Slices are never mixed. ImageSet, of
    shape (C, rows, columns, 1), keep their orientation.

    Args:
        image_size: rows and columns of a slice.
        slice_axis: ``"axial"``, ``"coronal"`` or ``"sagittal"``, found from the affine.
        spacing: pixel spacing within a slice, in mm; None scales each slice, its proportions kept, until it fits the
            window. Images have no spacing and are always fitted.
        tiles: (rows, columns) of patches that each slice is cut into; the window then is ``tiles * image_size`` and
            each patch counts as one slice (IDRiD's 3 x 3 patches, ProxyAno section IV-D).

    Raises:
        ValueError: for an unknown slice axis or a size that is not positive.
    """

    def __init__(
        self,
        image_size: Sequence[int] = (256, 256),
        slice_axis: str = "axial",
        spacing: float | None = None,
        tiles: Sequence[int] = (1, 1),
    ) -> None:
        if slice_axis not in SLICE_AXES:
            raise ValueError(f"slice_axis is one of {sorted(SLICE_AXES)}, got {slice_axis!r}")
        if min(*image_size, *tiles) < 1 or (spacing is not None and not spacing > 0):
            raise ValueError(f"image_size, tiles and spacing must be positive, got {image_size}, {tiles}, {spacing}")
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.slice_axis = slice_axis
        self.spacing = spacing
        self.tiles = (int(tiles[0]), int(tiles[1]))
        self.window = (self.image_size[0] * self.tiles[0], self.image_size[1] * self.tiles[1])

    def __call__(self, img: MetaTensor) -> MetaTensor:
        """Slice.

        Args:
            img: shape (C, X, Y, Z) with its RAS affine; ``meta["scan_kind"]`` is ``"volume"`` or ``"image"``.

        Returns:
            Shape (C, *image_size, S), S slices; the affine follows while each slice is whole (``tiles`` of 1 x 1).

        Raises:
            InputError: if the window would cut off foreground.
        """
        picture = img.meta.get("scan_kind") == "image"
        order, flips = (
            ([0, 1, 2], []) if picture else _reorientation(np.asarray(img.affine), SLICE_AXES[self.slice_axis])
        )
        affine = np.asarray(img.affine, dtype=np.float64) @ _reorientation_affine(img.shape[1:], order, flips)
        rows, columns, slices = (img.shape[1 + axis] for axis in order)
        if picture or self.spacing is None:
            scale = min(self.window[0] / rows, self.window[1] / columns)
            size = (max(1, round(rows * scale)), max(1, round(columns * scale)))
        else:
            pixel = np.linalg.norm(affine[:3, :2], axis=0)
            size = (max(1, round(rows * pixel[0] / self.spacing)), max(1, round(columns * pixel[1] / self.spacing)))
        refuse_growth(img, (rows, columns, slices), (*size, slices), (*self.window, slices), self.spacing)
        offset = tuple((w - n) // 2 if n <= w else -((n - w) // 2) for n, w in zip(size, self.window))
        level = torch.tensor(img.meta.get("foreground_level", [0.0] * img.shape[0]))[:, None, None, None]
        before = after = 0
        windowed = img.as_tensor().new_zeros((img.shape[0], *self.window, slices))
        # A few slices at a time: the whole stack is not copied into another order and back.
        for source, part in _parts(img.as_tensor(), order, flips, windowed):
            resized = _resize(source.flip([1 + axis for axis in flips]), size)
            inside = _place(resized, offset, part)
            if any(n > w for n, w in zip(size, self.window)):
                before, after = before + int((resized > level).sum()), after + int((inside > level).sum())
        self._refuse_loss(img, size, before, after)
        out = MetaTensor(
            _to_tiles(windowed, self.tiles),
            affine=torch.as_tensor(affine @ _window_affine((rows, columns), size, offset)),
            meta=_meta_without_affine(img),
            applied_operations=img.applied_operations,
        )
        self.push_transform(
            out,
            extra_info={
                "order": order,
                "flips": flips,
                "shape": (rows, columns),
                "size": size,
                "offset": offset,
                "affine": np.asarray(img.affine).tolist(),
            },
        )
        return out

    def inverse(self, data: MetaTensor) -> MetaTensor:
        """Back on the scan's own voxels; outside the window there are zeros.

        Args:
            data: shape (C', *image_size, S), any number of channels, with the trace of the forward call.

        Returns:
            Shape (C', X, Y, Z) of the source scan, with its affine.
        """
        info = self.pop_transform(data)["extra_info"]
        windowed = _from_tiles(data.as_tensor(), self.tiles)
        offset = tuple(int(o) for o in info["offset"])
        size = tuple(int(n) for n in info["size"])
        shape = tuple(int(n) for n in info["shape"])
        order, flips = [int(i) for i in info["order"]], [int(i) for i in info["flips"]]
        spatial = [(*shape, windowed.shape[3])[i] for i in np.argsort(order)]
        native = windowed.new_empty((len(windowed), *spatial))
        for target, part in _parts(native, order, flips, windowed):
            resized = part.new_zeros((len(part), *size, part.shape[3]))
            _place(part, tuple(-o for o in offset), resized)
            target.copy_(_resize(resized, shape).flip([1 + axis for axis in flips]))
        return MetaTensor(
            native,
            affine=torch.as_tensor(info["affine"], dtype=torch.float64),
            meta=_meta_without_affine(data),
            applied_operations=data.applied_operations,
        )

    def _refuse_loss(self, img: MetaTensor, size: Sequence[int], before: int, after: int) -> None:
        if before - after > _LARGEST_LOSS * before:
            raise InputError(
                img.meta.get("source", ["image"])[0],
                f"at {self.spacing} mm its slices have {tuple(size)} pixels and their tissue does not "
                f"fit the window of {self.window}",
                "Choose a larger image_size or spacing.",
            )


def refuse_growth(
    img: MetaTensor, shape: Sequence[int], size: Sequence[int], window: Sequence[int], spacing: float | None
) -> None:
    """Refuse to resample a scan to a size that its own and the window's do not call for.

    Args:
        img: the scan, for the message.
        shape: its voxels.
        size: voxels that it is to be resampled to.
        window: voxels that are kept of them.
        spacing: in mm, that asks for it.

    Raises:
        InputError: if the size is far beyond both.
    """
    if math.prod(size) > max(_LARGEST_GROWTH * max(math.prod(shape), math.prod(window)), _FREE_VOXELS):
        raise InputError(
            img.meta.get("source", ["image"])[0],
            f"at {spacing} mm its {tuple(shape)} voxels would become {tuple(size)}, of which {tuple(window)} are kept",
            "Correct its voxel size, or choose a larger spacing.",
        )


def tissue_slices(stack: Tensor, level: Sequence[float], least: float = 0.1) -> Tensor:
    """Which slices hold tissue.

    A slice does when its foreground covers at least ``least`` of the largest foreground of any slice of the scan.

    Args:
        stack: shape (C, H, W, S).
        level: per channel, the intensity above which a pixel is foreground.
        least: share of the largest slice.

    Returns:
        Shape (S,), bool.
    """
    above = torch.as_tensor(stack) > torch.as_tensor(level, dtype=stack.dtype)[:, None, None, None]
    # torch would sum a copy in int64
    area = torch.from_numpy(above.any(dim=0).cpu().numpy().sum(axis=(0, 1)))
    return (area > 0) & (area >= least * area.max())


def _meta_without_affine(img: MetaTensor) -> dict[str, Any]:
    # An affine among the meta would win over the one that is set.
    return {key: value for key, value in img.meta.items() if key != "affine"}


def _reorientation(affine: np.ndarray, last: int) -> tuple[list[int], list[int]]:
    """Voxel axes in the order of the two in-plane world axes and then ``last``; axes to flip afterwards."""
    import nibabel as nib

    codes = nib.orientations.io_orientation(affine)
    world = [axis for axis in range(3) if axis != last] + [last]
    order = [int(np.flatnonzero(codes[:, 0] == axis)[0]) for axis in world]
    flips = [i for i, axis in enumerate(order) if codes[axis, 1] < 0]
    return order, flips


def _reorientation_affine(shape: Sequence[int], order: Sequence[int], flips: Sequence[int]) -> np.ndarray:
    """Voxels of the reordered stack to voxels of the source."""
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1.0
    for new, old in enumerate(order):
        sign = -1.0 if new in flips else 1.0
        matrix[old, new] = sign
        matrix[old, 3] = shape[old] - 1 if sign < 0 else 0.0
    return matrix


def _window_affine(shape: Sequence[int], size: Sequence[int], offset: Sequence[int]) -> np.ndarray:
    """Pixels of the window to pixels of the unscaled slice (pixel areas, as ``interpolate`` without corners)."""
    matrix = np.eye(4)
    for axis in range(2):
        scale = shape[axis] / size[axis]
        matrix[axis, axis] = scale
        matrix[axis, 3] = scale * (0.5 - offset[axis]) - 0.5
    return matrix


def _parts(
    volume: Tensor, order: Sequence[int], flips: Sequence[int], stack: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """A few slices of a volume, of permuted axes, and those of its stack (whose axes are flipped too), as views."""
    slices = volume.permute(0, *(1 + axis for axis in order)).split(SLICES_AT_ONCE, dim=3)
    if 2 not in flips:
        yield from zip(slices, stack.split(SLICES_AT_ONCE, dim=3))
        return
    stop = stack.shape[3]
    for part in slices:
        yield part, stack[..., stop - part.shape[3] : stop]
        stop -= part.shape[3]


def _resize(stack: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear in the slices, smoothed first where it shrinks."""
    if tuple(stack.shape[1:3]) == tuple(size):
        return stack
    return resize_plane(stack.permute(3, 0, 1, 2).float(), size).permute(1, 2, 3, 0)


def resize_plane(images: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, smoothed first where it shrinks; (N, C, H, W) float32 to (N, C, *size)."""
    height, width = size
    if tuple(images.shape[2:]) == (height, width):
        return images
    if width == 1:  # antialiased interpolation of torch 2.13 is wrong where the last axis comes to one pixel
        pixels = images.shape[3]
        weight = 1 - (torch.arange(pixels, device=images.device) + 0.5 - pixels / 2).abs() / pixels
        column = images @ (weight / weight.sum())[:, None]
        return resize_plane(column.transpose(2, 3), (1, height)).transpose(2, 3)
    return F.interpolate(images, size=(height, width), mode="bilinear", align_corners=False, antialias=True)


def _place(stack: Tensor, offset: Sequence[int], window: Tensor) -> Tensor:
    """Lay the slices on the window, their corner at ``offset`` (which may be negative); the part that they fill."""
    rows, columns = ((max(0, o), min(w, o + n)) for n, w, o in zip(stack.shape[1:3], window.shape[1:3], offset))
    inside = window[:, slice(*rows), slice(*columns)]
    rows, columns = ((start - o, stop - o) for (start, stop), o in zip((rows, columns), offset))
    return inside.copy_(stack[:, slice(*rows), slice(*columns)])


def _to_tiles(stack: Tensor, tiles: Sequence[int]) -> Tensor:
    if tuple(tiles) == (1, 1):
        return stack.contiguous()
    c, h, w, s = stack.shape
    r, k = tiles
    return stack.reshape(c, r, h // r, k, w // k, s).permute(0, 2, 4, 1, 3, 5).reshape(c, h // r, w // k, r * k * s)


def _from_tiles(stack: Tensor, tiles: Sequence[int]) -> Tensor:
    if tuple(tiles) == (1, 1):
        return stack
    c, h, w, s = stack.shape
    r, k = tiles
    return stack.reshape(c, h, w, r, k, s // (r * k)).permute(0, 3, 1, 4, 2, 5).reshape(c, r * h, k * w, s // (r * k))


class SliceGridd(MapTransform, InvertibleTransform):
    """Dictionary version of ``SliceGrid``.

    Args:
        keys: the scans.
        image_size: see ``SliceGrid``, as the others.
        slice_axis: anatomical axis.
        spacing: in mm, or None.
        tiles: patches per slice.
        allow_missing_keys: as in MONAI.
    """

    def __init__(
        self,
        keys: KeysCollection,
        image_size: Sequence[int] = (256, 256),
        slice_axis: str = "axial",
        spacing: float | None = None,
        tiles: Sequence[int] = (1, 1),
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = SliceGrid(image_size, slice_axis, spacing, tiles)

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


SliceGridD = SliceGridDict = SliceGridd
