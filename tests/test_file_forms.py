"""Files as they come from scanners, cameras, discs and public sets: damaged, sheared, turned, linked."""

from __future__ import annotations

import gzip
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image
from test_load_scan import png16

from monai_anomaly.exceptions import InputError
from monai_anomaly.io.case import write_case
from monai_anomaly.io.content import shown_digest
from monai_anomaly.io.load import LoadScan
from monai_anomaly.transforms.slice_grid import SliceGrid, resize_plane
from monai_anomaly.transforms.volume_grid import VolumeGrid

RNG = np.random.default_rng(11)


def write_volume(path: Path, seed: int = 0, shape: tuple[int, ...] = (8, 7, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).integers(1, 900, shape).astype(np.int16)
    nib.Nifti1Image(array, np.eye(4)).to_filename(path)
    return path


# ---- gzip's checksum


@pytest.mark.parametrize("time_point", [None, 0, 1])
def test_every_byte_of_gzip_is_checked(tmp_path: Path, time_point: int | None) -> None:
    shape = (8, 7, 6) if time_point is None else (8, 7, 6, 2)
    plain = write_volume(tmp_path / "a.nii", shape=shape)
    content = plain.read_bytes()
    packed = gzip.compress(content, compresslevel=0)  # stored: a flipped bit still unpacks
    whole = tmp_path / "whole.nii.gz"
    half = len(content) // 2
    for good in (packed, gzip.compress(content[:half]) + gzip.compress(content[half:]), packed + bytes(64)):
        whole.write_bytes(good)
        np.testing.assert_array_equal(LoadScan(time_point)(whole), LoadScan(time_point)(plain))
        assert shown_digest(whole) == shown_digest(plain)
    damaged = {"voxel": len(packed) - 100, "first voxel": 400, "checksum": len(packed) - 6, "length": len(packed) - 2}
    for name, place in damaged.items():
        broken = bytearray(packed)
        broken[place] ^= 0x40
        path = tmp_path / f"{name}.nii.gz"
        path.write_bytes(broken)
        with pytest.raises(InputError, match="cannot be read as NIfTI .* Copy or export the file again"):
            LoadScan(time_point)(path)
        with pytest.raises(InputError, match="cannot be read"):
            shown_digest(path)
    (tmp_path / "cut.nii.gz").write_bytes(packed[:-8])
    with pytest.raises(InputError, match="cannot be read as NIfTI"):
        LoadScan(time_point)(tmp_path / "cut.nii.gz")


# ---- sheared stacks


@pytest.mark.parametrize("shear", [0.0, 2e-5, 1e-3, 0.3346])
def test_no_reader_places_a_sheared_stack_wrongly(tmp_path: Path, shear: float) -> None:
    turned = np.array([[0.36, 0.48, -0.8], [-0.8, 0.6, 0.0], [0.48, 0.64, 0.6]])
    affine = np.eye(4)
    affine[:3, :3] = turned @ np.diag([-1.5, -1.25, 2.5])
    affine[:3, 2] += shear * affine[:3, 1]
    affine[:3, 3] = 20, 30, -10
    meta = {"scan_kind": "volume", "source_format": "dicom", "source": ["series"]}
    scan = MetaTensor(torch.rand(1, 24, 20, 8), affine=torch.as_tensor(affine), meta=meta)
    write_case(tmp_path / "case", scan, anomaly_map=scan[0].numpy(), restoration=scan.numpy(), anomaly_mask=None)
    path = tmp_path / "case" / "anomaly_map.nii.gz"
    image = nib.load(path)
    np.testing.assert_allclose(image.affine, affine, atol=1e-5)
    np.testing.assert_allclose(image.header.get_sform(), affine, atol=1e-5)
    far = (23, 19, 7, 1)
    if shear < 1e-4:
        assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
        assert np.linalg.norm((image.header.get_qform() - affine) @ far) < 5e-3
        place = np.array(itk.imread(str(path)).TransformIndexToPhysicalPoint(far[:3])) * (-1, -1, 1)
        assert np.linalg.norm(place - (affine @ far)[:3]) < 5e-3
    else:
        assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 0)
        with pytest.raises(RuntimeError, match="orthonormal"):  # rather than another place
            itk.imread(str(path))


# ---- turned photographs


def turned(shown: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels to store so that the tag's turn shows the given ones, after EXIF 2.32's table of the 0th row and column."""
    stored = {
        1: shown,
        2: shown[:, ::-1],  # top, right
        3: shown[::-1, ::-1],  # bottom, right
        4: shown[::-1],  # bottom, left
        5: shown.swapaxes(0, 1),  # left, top
        6: shown[:, ::-1].swapaxes(0, 1),  # right, top
        7: shown[::-1, ::-1].swapaxes(0, 1),  # right, bottom
        8: shown[::-1].swapaxes(0, 1),  # left, bottom
    }
    return np.ascontiguousarray(stored[orientation])


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "gray.png", "deep.png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_read_as_they_are_shown(tmp_path: Path, suffix: str, orientation: int) -> None:
    rows, columns = np.mgrid[:40, :64]
    shown = np.stack([rows * 6, columns * 3, rows + columns], -1).astype(np.uint8)
    if suffix == "gray.png":
        shown = shown[..., 0]
    path = tmp_path / f"a.{suffix}"
    stored, exif = turned(shown, orientation), Image.Exif()
    exif[0x0112] = orientation
    if suffix == "deep.png":
        plain = png16(path, stored.astype(np.uint16) * 257).read_bytes()
        Image.new("L", (1, 1)).save(tmp_path / "tag.png", exif=exif)
        tag = (tmp_path / "tag.png").read_bytes()
        start = tag.index(b"eXIf") - 4
        chunk = tag[start : start + 12 + int.from_bytes(tag[start : start + 4], "big")]
        path.write_bytes(plain[:33] + chunk + plain[33:])  # after the signature and IHDR
        shown = shown.astype(np.uint16) * 257
    else:
        Image.fromarray(stored).save(path, exif=exif, quality=100, subsampling=0)
    scan = LoadScan()(path)
    expected = shown[None] if shown.ndim == 2 else np.moveaxis(shown, -1, 0)
    np.testing.assert_allclose(scan[..., 0].numpy(), expected, atol=4 if suffix == "jpg" else 0)
    # The map lies on the picture as viewers show it, without a tag of its own.
    write_case(tmp_path / "case", scan, anomaly_map=scan[0].numpy(), restoration=scan.numpy(), anomaly_mask=None)
    with Image.open(tmp_path / "case" / "anomaly_map.tiff") as anomaly_map:
        np.testing.assert_array_equal(np.asarray(anomaly_map), scan[0, ..., 0].numpy())
        assert anomaly_map.getexif().get(0x0112, 1) == 1
    if suffix in ("png", "gray.png", "tif"):  # a copy that is stored upright shows the same
        Image.fromarray(shown).save(tmp_path / "upright.png")
        assert shown_digest(path) == shown_digest(tmp_path / "upright.png")


def test_a_broken_tag_turns_nothing(tmp_path: Path) -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(6, 8)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=b"no EXIF at all")
    np.testing.assert_array_equal(LoadScan()(tmp_path / "a.png")[0, ..., 0].numpy(), pixels)


# ---- slices one pixel wide


def triangle(source: int, target: int) -> np.ndarray:
    """Weights (target, source) of linear interpolation, widened where it shrinks."""
    scale = source / target
    centres = (np.arange(target) + 0.5) * scale
    away = np.abs(np.arange(source) + 0.5 - centres[:, None])
    weights = np.clip(1 - away / max(scale, 1), 0, None)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("shape", [(9, 7), (9, 1), (1, 7), (1, 1), (5, 2)])
@pytest.mark.parametrize("size", [(6, 5), (13, 1), (1, 13), (1, 1), (9, 1), (2, 1)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_resize_to_any_size(shape: tuple[int, int], size: tuple[int, int], channels_last: bool) -> None:
    images = torch.as_tensor(RNG.normal(size=(3, 2, *shape)), dtype=torch.float32)
    given = images.contiguous(memory_format=torch.channels_last) if channels_last else images
    expected = np.einsum("ih,nchw,jw->ncij", triangle(shape[0], size[0]), images, triangle(shape[1], size[1]))
    np.testing.assert_allclose(resize_plane(given, size).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(40, 36, 1), (40, 1, 36), (1, 40, 36)])
@pytest.mark.parametrize("grid", [VolumeGrid((48, 48, 48), 2.0), VolumeGrid((24, 24, 24)), SliceGrid((64, 64))])
def test_single_slices_survive_the_grids(shape: tuple[int, int, int], grid: VolumeGrid | SliceGrid) -> None:
    array = torch.linspace(100, 200, 40)[:, None].expand(40, 36).reshape(1, *shape)
    meta = {"scan_kind": "volume", "foreground_level": [10.0]}
    scan = MetaTensor(array.contiguous(), affine=torch.diag(torch.tensor([1.2, 1.1, 2.5, 1.0])).double(), meta=meta)
    there = grid(scan)
    inside = there[there > 50]
    assert 100 <= float(inside.min()) < 105
    assert 195 < float(inside.max()) <= 200.01
    back = grid.inverse(there)
    assert back.shape == scan.shape
    torch.testing.assert_close(back.as_tensor(), scan.as_tensor(), atol=4.0, rtol=0)
