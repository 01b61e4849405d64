"""The whole way from a file to the slices and back."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from monai_anomaly.data import ScanPreprocessing
from monai_anomaly.transforms import NormalizeForeground, SliceGrid, tissue_slices


def write_head(path: Path, affine: np.ndarray, seed: int = 0) -> np.ndarray:
    volume = np.zeros((20, 24, 16), dtype=np.float32)
    volume[4:16, 5:20, 4:13] = np.random.default_rng(seed).uniform(100, 900, (12, 15, 9))
    nib.save(nib.Nifti1Image(volume, affine), path)
    return volume


AFFINE = np.array([[-1.0, 0, 0, 30], [0, 0, 1, -20], [0, 1, 0, 5], [0, 0, 0, 1]])  # stored as L, S, A


def test_the_steps_are_those_of_the_single_transforms(tmp_path: Path) -> None:
    write_head(tmp_path / "a.nii.gz", AFFINE)
    chain = ScanPreprocessing((32, 32), "coronal", percentiles=(1, 98), least_tissue=0.2)
    stack = chain({"image": str(tmp_path / "a.nii.gz")})["image"]
    scan = chain.load(str(tmp_path / "a.nii.gz"))
    by_hand = SliceGrid((32, 32), "coronal")(NormalizeForeground(1, 98, headroom=1.6)(scan))
    for other in (by_hand, chain.stack(scan)):
        assert torch.equal(stack.as_tensor(), other.as_tensor())
        assert torch.equal(stack.affine, other.affine)
    assert torch.equal(chain.tissue(stack), tissue_slices(stack.as_tensor(), stack.meta["foreground_level"], 0.2))


def test_only_slices_with_tissue_count(tmp_path: Path) -> None:
    write_head(tmp_path / "a.nii.gz", AFFINE)
    for axis, start, stop, number in (("coronal", 4, 13, 16), ("axial", 5, 20, 24), ("sagittal", 4, 16, 20)):
        chain = ScanPreprocessing((64, 64), axis)
        stack = chain({"image": str(tmp_path / "a.nii.gz")})["image"]
        assert stack.shape[-1] == number
        tissue = chain.tissue(stack)
        assert tissue.dtype == torch.bool
        # the sagittal axis is flipped: stored from right to left
        expected = [start <= s < stop for s in range(number)]
        assert tissue.tolist() == (expected[::-1] if axis == "sagittal" else expected)


def test_results_go_back_to_the_voxels_of_the_file(tmp_path: Path) -> None:
    volume = write_head(tmp_path / "a.nii.gz", AFFINE)
    chain = ScanPreprocessing((32, 32), "axial", spacing=1.0)
    scan = chain.load(str(tmp_path / "a.nii.gz"))
    stack = chain.stack(scan)
    tissue = volume[volume > 0]
    low, high = np.percentile(tissue[tissue > 0.1 * np.percentile(volume, 99)], [0.5, 90])
    high = low + 1.6 * (high - low)
    for _ in range(2):  # the trace of the stack is not used up
        image = chain.to_scan(stack, stack, intensities=True)
        np.testing.assert_allclose(image[0].numpy(), volume.clip(low, high), rtol=1e-5)
        assert type(image) is torch.Tensor
        plain = chain.to_scan(stack.as_tensor(), stack)
        np.testing.assert_allclose(plain[0].numpy(), ((volume - low) / (high - low)).clip(0, 1), atol=1e-5)
    # any number of channels; a marked pixel of the stack marks one voxel
    marked = torch.zeros(2, *stack.shape[1:])
    marked[1, 16, 17, 8] = 1.0
    native = chain.to_scan(marked, stack)
    assert native.shape == (2, 20, 24, 16)
    (voxel,) = np.argwhere(native[1].numpy())
    np.testing.assert_allclose(AFFINE @ [*voxel, 1], stack.affine.numpy() @ [16, 17, 8, 1], atol=1e-6)


def test_tiles_of_a_picture_go_back_in_place(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(30, 255, (32, 48, 3), dtype=np.uint8)
    pixels[:2] = 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    chain = ScanPreprocessing((16, 16), tiles=(2, 3), percentiles=(0, 100))
    stack = chain.stack(chain.load(str(tmp_path / "a.png")))
    assert stack.shape == (3, 16, 16, 6)
    restored = chain.to_scan(stack, stack, intensities=True)
    np.testing.assert_allclose(restored[:, 2:, :, 0].numpy(), np.moveaxis(pixels, -1, 0)[:, 2:], atol=1e-3)


def test_configuration_makes_an_equal_chain() -> None:
    chain = ScanPreprocessing((32, 48), "sagittal", 0.7, (2, 1), (1, 99), 0.3, 1.2, time_point=2)
    again = ScanPreprocessing(**chain.config, time_point=2)
    assert again.config == chain.config
    assert again.grid.window == (64, 48)
    assert (again.intensity.lower, again.intensity.upper) == (1.0, 99.0)


def test_real_scan_goes_there_and_back(real_data: Path) -> None:
    files = sorted((real_data / "nifti3d" / "healthy").rglob("*.nii*"))
    if not files:
        pytest.skip("no healthy NIfTI volume in the folder of real data")
    chain = ScanPreprocessing((256, 256))
    scan = chain.load(str(files[0]))
    stack = chain.stack(scan)
    share = chain.tissue(stack).float().mean()
    assert 0.2 < share <= 1.0
    back = chain.to_scan(stack, stack)
    expected = chain.intensity(scan).as_tensor()
    assert back.shape == expected.shape
    # twice resampled in the slices: blurred, but in place
    assert np.corrcoef(back.numpy().ravel(), expected.numpy().ravel())[0, 1] > 0.98
