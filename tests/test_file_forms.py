"""Files as they come from scanners, cameras, discs and public sets: damaged, sheared, turned, linked."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from monai_anomaly.exceptions import InputError
from monai_anomaly.io.content import shown_digest
from monai_anomaly.io.load import LoadScan

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
