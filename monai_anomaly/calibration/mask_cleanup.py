"""Clean-up of masks, of a kind that keeps their error rate."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from monai.data import MetaTensor

__all__ = ["MaskCleanup"]


class MaskCleanup:
    """Takes small findings, and what lies outside the foreground, out of a mask.

    It only ever removes voxels. A normal without a flagged voxel therefore stays so: the bound of a family-wise
    threshold, and of a voxel-wise one, holds with clean-up as without, if not as tightly.

    Args:
        least_lesion_mm3: smallest connected finding that is kept, in mm3 (pixels of an image), diagonal neighbours
            connected; 0 keeps all.
        inside_foreground: keep foreground voxels alone. Findings that are dark, as air is, are lost.

    Raises:
        ValueError: for a negative size.
    """

    def __init__(self, least_lesion_mm3: float = 0.0, inside_foreground: bool = False) -> None:
        if not least_lesion_mm3 >= 0:
            raise ValueError(f"least_lesion_mm3 is at least 0, got {least_lesion_mm3}")
        self.least_lesion_mm3, self.inside_foreground = float(least_lesion_mm3), bool(inside_foreground)

    def __call__(self, mask: np.ndarray, scan: MetaTensor, foreground: np.ndarray | None = None) -> np.ndarray:
        """Clean.

        Args:
            mask: shape (X, Y, Z), bool.
            scan: what it belongs to, or a result on its voxels; the affine gives the voxels' size.
            foreground: shape (X, Y, Z), bool; needed for ``inside_foreground`` alone.

        Returns:
            The same shape, bool, a part of ``mask``.
        """
        from monai.transforms import RemoveSmallObjects

        if self.inside_foreground:
            if foreground is None:
                raise ValueError("inside_foreground needs the foreground")
            mask = mask & foreground
        if self.least_lesion_mm3 > 0 and mask.any():
            voxel = abs(float(np.linalg.det(np.asarray(scan.affine, dtype=np.float64)[:3, :3])))
            # Half a voxel less: versions of scikit-image differ in whether a finding of just the size is kept.
            size = max(1, math.ceil(self.least_lesion_mm3 / voxel - 1e-6)) - 0.5
            remove = RemoveSmallObjects(size, connectivity=3)
            # A rim of background: MONAI leaves an array of one value as it is.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of how MONAI calls scikit-image
                cleaned = np.asarray(remove(np.pad(mask, 1)[None]))[0, 1:-1, 1:-1, 1:-1]
            mask = mask & cleaned.astype(bool)
        return mask

    @property
    def description(self) -> str:
        """For a header: empty without clean-up."""
        parts = [f">={self.least_lesion_mm3:g}mm3"] if self.least_lesion_mm3 else []
        return "; ".join([*parts, *(["in fg"] if self.inside_foreground else [])])
