"""Reference masks on other grids, and those that contradict their scan's label."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.transform import Rotation

from monai_anomaly.exceptions import InputError
from monai_anomaly.io import LoadScan, load_mask

AFFINE = np.array([[-0.9, 0.1, 0.4, 30], [0.2, 1.4, -0.3, -71], [0.1, 0.2, 2.9, 12], [0, 0, 0, 1.0]])


def scan_of(folder: Path, shape: tuple[int, ...] = (9, 8, 7), affine: np.ndarray = AFFINE):
    nib.Nifti1Image(np.random.default_rng(0).normal(size=shape).astype(np.float32), affine).to_filename(
        folder / "a.nii"
    )
    return LoadScan()(folder / "a.nii")


def mask_of(folder: Path, voxels: np.ndarray, affine: np.ndarray) -> Path:
    nib.Nifti1Image(voxels.astype(np.uint8), affine).to_filename(folder / "m.nii.gz")
    return folder / "m.nii.gz"


def nearest(mask: np.ndarray, affine: np.ndarray, shape: tuple[int, ...], target: np.ndarray) -> tuple:
    """Of each voxel of the target the nearest of the mask, one by one, and whether that is beyond doubt."""
    found, sure = np.zeros(shape, bool), np.zeros(shape, bool)
    for index in np.ndindex(*shape):
        place = np.linalg.solve(affine, target @ [*index, 1])[:3]
        voxel = np.round(place).astype(int)
        inside = ((voxel >= 0) & (voxel < mask.shape)).all()
        found[index] = inside and bool(mask[tuple(voxel)])
        sure[index] = (np.abs(place - np.floor(place) - 0.5) > 1e-3).all()
    return found, sure


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), shape=st.tuples(*[st.integers(4, 9)] * 3))
def test_a_mask_is_laid_on_its_scan_by_the_nearest_voxel(
    tmp_path_factory: pytest.TempPathFactory, seed: int, shape: tuple[int, int, int]
) -> None:
    folder = tmp_path_factory.mktemp("m")
    rng = np.random.default_rng(seed)
    scan = scan_of(folder)
    move = np.eye(4)
    move[:3, :3] = Rotation.from_euler("xyz", rng.normal(0, 0.2, 3)).as_matrix() * rng.uniform(0.7, 1.5, 3)
    move[:3, 3] = rng.normal(0, 0.7, 3)
    affine = AFFINE @ move
    voxels = rng.random(shape) < 0.5
    path = mask_of(folder, voxels, affine)
    with pytest.raises(InputError, match="Save the mask on the grid of its scan"):
        load_mask(path, scan)
    expected, sure = nearest(voxels, affine, (9, 8, 7), AFFINE)
    found = load_mask(path, scan, resample=True)
    assert found.dtype == bool
    assert found.shape == (9, 8, 7)
    assert (found == expected)[sure].all()
    assert sure.mean() > 0.9


def test_a_turned_mask_comes_back_exactly(tmp_path: Path) -> None:
    scan, lesion = scan_of(tmp_path), np.random.default_rng(1).random((9, 8, 7)) < 0.3
    turned = nib.as_closest_canonical(nib.Nifti1Image(lesion.astype(np.uint8), AFFINE))
    nib.Nifti1Image(np.asarray(turned.dataobj), turned.affine).to_filename(tmp_path / "t.nii")
    with pytest.raises(InputError, match="affine differs"):
        load_mask(tmp_path / "t.nii", scan)
    np.testing.assert_array_equal(load_mask(tmp_path / "t.nii", scan, resample=True), lesion)
    # and one that fits is not touched
    fitting = mask_of(tmp_path, lesion, AFFINE)
    np.testing.assert_array_equal(load_mask(fitting, scan, resample=True), lesion)


def test_a_picture_s_mask_is_stretched(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (12, 8), dtype=np.uint8)).save(tmp_path / "a.png")
    scan = LoadScan()(tmp_path / "a.png")
    lesion = np.random.default_rng(1).random((6, 4)) < 0.4
    Image.fromarray(np.uint8(lesion) * 255).save(tmp_path / "m.png")
    with pytest.raises(InputError, match=r"shape \(6, 4, 1\)"):
        load_mask(tmp_path / "m.png", scan)
    found = load_mask(tmp_path / "m.png", scan, resample=True)
    np.testing.assert_array_equal(found[..., 0], lesion.repeat(2, axis=0).repeat(2, axis=1))


def test_a_mask_of_another_place_is_refused(tmp_path: Path) -> None:
    far = AFFINE.copy()
    far[:3, 3] += 500
    path = mask_of(tmp_path, np.ones((9, 8, 7)), far)
    with pytest.raises(InputError, match="no lesion within its scan"):
        load_mask(path, scan_of(tmp_path), resample=True)


def test_masks_that_contradict_the_label(tmp_path: Path) -> None:
    scan, lesion = scan_of(tmp_path), np.zeros((9, 8, 7))
    empty = mask_of(tmp_path, lesion, AFFINE)
    for label in (0, None):
        assert not load_mask(empty, scan, label=label).any()
    with pytest.raises(InputError, match=r"m.nii.gz: is empty, but its scan \S+ is abnormal \(label 1\)") as caught:
        load_mask(empty, scan, label=1)
    assert "leave the mask out" in str(caught.value)
    lesion[2, 3, 4] = 1
    outlined = mask_of(tmp_path, lesion, AFFINE)
    for label in (1, None):
        assert load_mask(outlined, scan, label=label).sum() == 1
    with pytest.raises(InputError, match=r"outlines a lesion, but its scan \S+ is normal \(label 0\)"):
        load_mask(outlined, scan, label=0)
