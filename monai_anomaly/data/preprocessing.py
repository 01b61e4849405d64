"""The whole way from a scan's file to the slices, or the volume, that a detector sees, and back."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from torch import Tensor

from monai_anomaly.io.load import LoadScand
from monai_anomaly.transforms.intensity import NormalizeForeground, NormalizeForegroundd
from monai_anomaly.transforms.slice_grid import SLICE_AXES, SliceGrid, SliceGridd, tissue_slices
from monai_anomaly.transforms.volume_grid import VolumeGrid, VolumeGridd

__all__ = ["ScanPreprocessing"]


class ScanPreprocessing(Compose):
    """Load, normalise and slice the scan under ``image``; an ordinary ``Compose`` of ``LoadScand``,
    ``NormalizeForegroundd`` and ``SliceGridd`` that also knows its way back.

    An ``image_size`` of three numbers keeps volumes whole: ``VolumeGridd`` stands in the place of ``SliceGridd``, and
    what is called the stack is the volume (C, X, Y, Z), axes R, A, S.

    Args:
        image_size: rows and columns of a slice, or the voxels of a volume along R, A and S.
        slice_axis: ``"axial"``, ``"coronal"`` or ``"sagittal"``; of whole volumes it turns nothing.
        spacing: pixel spacing within a slice in mm, or None (see ``SliceGrid``); of whole volumes the voxel's side
            (see ``VolumeGrid``).
        tiles: patches per slice (see ``SliceGrid``); 1 x 1 for whole volumes.
        percentiles: of the foreground, that become 0 and ``1 / headroom`` (see ``NormalizeForeground``).
        least_tissue: see ``tissue_slices``.
        headroom: room above the upper percentile, for lesions brighter than any normal tissue.
        time_point: which volume of a 4-D file or series to read.

    Raises:
        ValueError: for an ``image_size`` of neither two nor three numbers, ``tiles`` of a whole volume, or what
            ``SliceGrid``, ``VolumeGrid`` or ``NormalizeForeground`` reject.
    """

    def __init__(
        self,
        image_size: Sequence[int] = (256, 256),
        slice_axis: str = "axial",
        spacing: float | None = None,
        tiles: Sequence[int] = (1, 1),
        percentiles: Sequence[float] = (0.5, 90.0),
        least_tissue: float = 0.1,
        headroom: float = 1.6,
        time_point: int | None = None,
    ) -> None:
        self.config: dict[str, Any] = {
            "image_size": [int(n) for n in image_size],
            "slice_axis": slice_axis,
            "spacing": spacing,
            "tiles": [int(n) for n in tiles],
            "percentiles": [float(p) for p in percentiles],
            "headroom": float(headroom),
            "least_tissue": float(least_tissue),
        }
        self.time_point = time_point
        self.least_tissue = least_tissue
        self._load = LoadScand("image", time_point=time_point)
        self._normalize = NormalizeForegroundd("image", percentiles[0], percentiles[1], headroom=headroom)
        self._grid: SliceGridd | VolumeGridd
        if len(image_size) == 2:
            self._grid = SliceGridd("image", image_size, slice_axis, spacing, tiles)
        elif len(image_size) == 3:
            if list(tiles) != [1, 1]:
                raise ValueError(f"tiles cut slices; an image_size of three numbers takes tiles [1, 1], got {tiles}")
            if slice_axis not in SLICE_AXES:
                raise ValueError(f"slice_axis is one of {sorted(SLICE_AXES)}, got {slice_axis!r}")
            self._grid = VolumeGridd("image", image_size, spacing)
        else:
            raise ValueError(f"image_size is two numbers (slices) or three (volumes), got {image_size}")
        super().__init__([self._load, self._normalize, self._grid])

    @property
    def spatial_dims(self) -> int:
        """2 where a detector sees slices, 3 where it sees the volume."""
        return len(self.config["image_size"])

    @property
    def grid(self) -> SliceGrid | VolumeGrid:
        """The array transform that slices, or resamples the volume."""
        return self._grid.transform

    @property
    def intensity(self) -> NormalizeForeground:
        """The array transform that normalises."""
        return self._normalize.transform

    def load(self, image: str | Sequence[str], series: str | None = None) -> MetaTensor:
        """The scan alone (see ``LoadScan``), shape (C, X, Y, Z), unnormalised."""
        return self._load({"image": image, "series": series})["image"]

    def stack(self, scan: MetaTensor) -> MetaTensor:
        """The slices of a loaded scan, shape (C, H, W, S), or its volume, shape (C, X, Y, Z)."""
        return self.grid(self.intensity(scan))

    def tissue(self, stack: MetaTensor) -> Tensor:
        """Which of the stack's slices hold tissue, shape (S,), bool; of a whole volume all count, shape (Z,)."""
        if self.spatial_dims == 3:
            return torch.ones(stack.shape[-1], dtype=torch.bool)
        return tissue_slices(stack.as_tensor(), stack.meta["foreground_level"], self.least_tissue)

    def to_scan(self, result: Tensor, stack: MetaTensor, intensities: bool = False) -> Tensor:
        """Lay a result on the voxels of the scan.

        Args:
            result: shape (C', H, W, S) or (C', X, Y, Z), on the grid of ``stack``.
            stack: what ``stack`` gave for the scan.
            intensities: True where the result is an image: its values go back to the scan's unit.

        Returns:
            Shape (C', X, Y, Z), a plain tensor.
        """
        native = self.grid.inverse(_traced(result, stack, stack.applied_operations))
        if intensities:
            native = self.intensity.inverse(native)
        return native.as_tensor() if isinstance(native, MetaTensor) else torch.as_tensor(native)

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Lay a map on the voxels of the scan, as ``monai.transforms.Invertd`` asks for it.

        The values stay what they are: a map is no intensity. For images see ``to_scan``.

        Args:
            data: holds under ``image`` a result on the grid of a stack, with that stack's trace (which ``Invertd``
                puts there), shape (C', H, W, S) or (C', X, Y, Z).

        Returns:
            The same with (C', X, Y, Z) and the scan's affine.
        """
        native = self.grid.inverse(data["image"])
        native.applied_operations = []
        return {**data, "image": native}

    def change_to_scan(self, change: Tensor, stack: MetaTensor) -> Tensor:
        """Lay the difference of two images on the voxels of the scan, in the scan's unit; outside the window it is 0.

        Args:
            change: shape (C, H, W, S) or (C, X, Y, Z), on the grid of ``stack``; may be overwritten.
            stack: what ``stack`` gave for the scan.

        Returns:
            Shape (C, X, Y, Z), a plain tensor: ``to_scan`` of the one image less that of the other, both with
            ``intensities``, since the way back is linear.
        """
        native = self.to_scan(change, stack)
        # The way back is v * unit + origin, per channel: where it takes 0 and 1 says both.
        origin, one = (
            self.intensity.inverse(
                _traced(
                    torch.full((len(change), 1, 1, 1), value, dtype=torch.float64), stack, stack.applied_operations[:-1]
                )
            ).as_tensor()
            for value in (0.0, 1.0)
        )
        return native.mul_((one - origin).to(native))

    def trace(self, stack: MetaTensor) -> MetaTensor:
        """An empty tensor that does for ``stack`` in ``to_scan`` and ``change_to_scan``, without its voxels."""
        return _traced(torch.empty(0), stack, stack.applied_operations)


def _traced(result: Tensor, stack: MetaTensor, operations: Sequence[dict[str, Any]]) -> MetaTensor:
    """A result with the trace of what made ``stack``, for the transforms to go back by."""
    return MetaTensor(
        result,
        affine=stack.affine,
        meta={key: value for key, value in stack.meta.items() if key != "affine"},
        applied_operations=[dict(op) for op in operations],
    )
