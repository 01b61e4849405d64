"""Reading the reference outline of a scan's lesions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from monai_anomaly.exceptions import InputError
from monai_anomaly.io.load import read_voxels, scan_suffix

if TYPE_CHECKING:
    from monai.data import MetaTensor

__all__ = ["load_mask"]

# A mask's affine may differ from its scan's by this part of a voxel (headers store float32).
_MASK_VOXELS = 1e-3


def load_mask(
    path: str | Path, reference: MetaTensor, *, label: int | None = None, resample: bool = False
) -> np.ndarray:
    """Read the lesions' outline of a scan.

    Args:
        path: NIfTI or DICOM volume, or image. Voxels above 0 are lesion; in PNG and JPEG images those above half of
            the number range (127 of 8 bits), so that compression noise is none.
        reference: the scan as loaded, (C, X, Y, Z) with ``meta["scan_kind"]``.
        label: the scan's, which the mask must not contradict; None: not known.
        resample: lay a mask of another shape or affine on the scan's grid: by the nearest voxel in the world, an image
            (which has no place in the world) stretched to the scan's size. Without it such a mask is rejected.

    Returns:
        bool, (X, Y, Z); (rows, columns, 1) for images.

    Raises:
        InputError: where the mask cannot be read, differs from the scan in shape or lies elsewhere (by more than 1e-3
            of a voxel in any column of the affine) and is not to be resampled, has no lesion left on the scan's grid,
            holds values of which none reaches half of the range, or is empty for an abnormal scan or not empty for a
            normal one.
    """
    voxels = read_voxels(path)
    shape, expected = voxels.array.shape[1:], tuple(reference.shape[1:])
    scan = reference.meta.get("filename_or_obj", "its scan")
    remedy = "Save the mask on the grid of its scan."
    if voxels.scan_kind != reference.meta.get("scan_kind", voxels.scan_kind):
        raise InputError(path, f"is a {voxels.scan_kind}, unlike its scan {scan}", remedy)
    moved = shape != expected
    if moved and not resample:
        raise InputError(path, f"the mask has shape {shape} and its scan {scan} {expected}", remedy)
    if voxels.scan_kind == "volume":
        # In the scan's voxels the mask's affine must be the identity.
        away = np.linalg.solve(reference.affine.numpy().astype(np.float64), voxels.affine) - np.eye(4)
        moved = moved or bool(np.abs(away).max() > _MASK_VOXELS)
        if moved and not resample:
            problem = f"the mask's affine differs from that of its scan {scan} by {np.abs(away).max():.3g} voxels"
            raise InputError(path, problem, remedy)
    array = voxels.array
    suffix = scan_suffix(path).lower()
    threshold = 0.0
    if suffix in (".png", ".jpg", ".jpeg"):
        threshold = np.iinfo(np.uint8 if array.dtype == np.uint8 else np.uint16).max / 2
        if suffix == ".png" and array.any() and not (array > threshold).any():
            problem = f"the mask's largest value is {array.max():g}, below half of the range"
            raise InputError(path, problem, "Save lesions as the largest value (255).")
    mask = np.asarray((array > threshold).any(axis=0))
    if moved:
        outlined = bool(mask.any())
        mask = _on_grid_of(mask, voxels.affine, reference)
        if outlined and not mask.any():
            raise InputError(path, f"the mask has no lesion within its scan {scan}", "Check which scan it belongs to.")
    if label == 0 and mask.any():
        raise InputError(path, f"outlines a lesion, but its scan {scan} is normal (label 0)", "Correct one of the two.")
    if label == 1 and not mask.any():
        problem = f"is empty, but its scan {scan} is abnormal (label 1)"
        raise InputError(
            path, problem, "Outline the lesion, or leave the mask out: the scan then counts as an image only."
        )
    return mask


def _on_grid_of(mask: np.ndarray, affine: np.ndarray, reference: MetaTensor) -> np.ndarray:
    """A mask (X', Y', Z') on the voxels of its scan: each takes the nearest of the mask's, outside of them nothing."""
    from monai.data import MetaTensor
    from monai.transforms import Resize, SpatialResample

    ours = MetaTensor(mask[None].astype(np.float32), affine=affine)
    if reference.meta.get("scan_kind") == "image":
        return np.asarray(Resize(tuple(reference.shape[1:]), mode="nearest-exact")(ours)[0] > 0)
    resampled = SpatialResample(mode="nearest", padding_mode="zeros")(
        ours, dst_affine=reference.affine, spatial_size=tuple(reference.shape[1:])
    )
    return np.asarray(resampled[0] > 0)
