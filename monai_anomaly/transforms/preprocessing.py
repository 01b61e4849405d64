"""The whole way from a scan's file to the slices that a detector sees, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from torch import Tensor

from .intensity import NormalizeForeground, NormalizeForegroundd
from .load import LoadScand
from .slice_grid import SliceGrid, SliceGridd, tissue_slices

__all__ = ["ScanPreprocessing"]


class ScanPreprocessing(Compose):
    """Load, normalise and slice the scan under ``image``; an ordinary ``Compose`` of ``LoadScand``,
    ``NormalizeForegroundd`` and ``SliceGridd`` that also knows its way back.

    Args:
        image_size: rows and columns of a slice.
        slice_axis: ``"axial"``, ``"coronal"`` or ``"sagittal"``.
        spacing: pixel spacing within a slice in mm, or None (see ``SliceGrid``).
        tiles: patches per slice (see ``SliceGrid``).
        percentiles: of the foreground, that become 0 and ``1 / headroom`` (see ``NormalizeForeground``).
        least_tissue: see ``tissue_slices``.
        headroom: room above the upper percentile, for lesions brighter than any normal tissue.
        time_point: which volume of a 4-D file or series to read.
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
        self._slice = SliceGridd("image", image_size, slice_axis, spacing, tiles)
        super().__init__([self._load, self._normalize, self._slice])

    @property
    def grid(self) -> SliceGrid:
        """The array transform that slices."""
        return self._slice.transform

    @property
    def intensity(self) -> NormalizeForeground:
        """The array transform that normalises."""
        return self._normalize.transform

    def load(self, image: str | Sequence[str]) -> MetaTensor:
        """The scan alone, shape (C, X, Y, Z), unnormalised."""
        return self._load({"image": image})["image"]

    def stack(self, scan: MetaTensor) -> MetaTensor:
        """The slices of a loaded scan, shape (C, H, W, S)."""
        return self.grid(self.intensity(scan))

    def tissue(self, stack: MetaTensor) -> Tensor:
        """Which of the stack's slices hold tissue, shape (S,), bool."""
        return tissue_slices(stack.as_tensor(), stack.meta["foreground_level"], self.least_tissue)

    def to_scan(self, result: Tensor, stack: MetaTensor, intensities: bool = False) -> Tensor:
        """Lay a result on the voxels of the scan.

        Args:
            result: shape (C', H, W, S), on the grid of ``stack``.
            stack: what ``stack`` gave for the scan.
            intensities: True where the result is an image: its values go back to the scan's unit.

        Returns:
            Shape (C', X, Y, Z), a plain tensor.
        """
        traced = MetaTensor(
            result,
            affine=stack.affine,
            meta={key: value for key, value in stack.meta.items() if key != "affine"},
            applied_operations=[dict(op) for op in stack.applied_operations],
        )
        native = self.grid.inverse(traced)
        if intensities:
            native = self.intensity.inverse(native)
        return native.as_tensor() if isinstance(native, MetaTensor) else torch.as_tensor(native)
