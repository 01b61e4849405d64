"""The same image on two sides is rejected, however it is packed; cases are named by what tells them apart."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from monai_anomaly.data import load_cohort
from monai_anomaly.exceptions import InputError


def folders(root: Path) -> tuple[Path, Path]:
    train, test = root / "train" / "normal", root / "test" / "normal"
    train.mkdir(parents=True)
    test.mkdir(parents=True)
    return train, test


def volume(path: Path, seed: int) -> Path:
    voxels = np.random.default_rng(seed).integers(0, 900, (8, 9, 5)).astype(np.int16)
    nib.Nifti1Image(voxels, np.eye(4)).to_filename(path)
    return path


@pytest.mark.filterwarnings("ignore:.*patient of its own")
@pytest.mark.parametrize("packing", ["unpacked", "packed again"])
def test_the_same_volume_packed_otherwise(tmp_path: Path, packing: str) -> None:
    train, test = folders(tmp_path)
    for seed in range(3):
        volume(train / f"a{seed}.nii.gz", seed)
    content = gzip.decompress((train / "a1.nii.gz").read_bytes())
    if packing == "unpacked":
        (test / "b.nii").write_bytes(content)
    else:
        (test / "b.nii.gz").write_bytes(gzip.compress(content, compresslevel=1, mtime=7))
    with pytest.raises(InputError, match="are the same image"):
        load_cohort(tmp_path)


@pytest.mark.filterwarnings("ignore:.*patient of its own")
@pytest.mark.parametrize("suffix", ["png", "tiff", "bmp"])
def test_the_same_picture_saved_otherwise(tmp_path: Path, suffix: str) -> None:
    train, test = folders(tmp_path)
    for seed in range(3):
        pixels = np.random.default_rng(seed).integers(0, 255, (20, 24), dtype=np.uint8)
        Image.fromarray(pixels).save(train / f"a{seed}.png", compress_level=1)
    Image.open(train / "a2.png").save(test / f"b.{suffix}")
    with pytest.raises(InputError, match="are the same image"):
        load_cohort(tmp_path)


@pytest.mark.filterwarnings("ignore:.*patient of its own")
def test_volumes_that_differ_late_are_two(tmp_path: Path) -> None:
    train, test = folders(tmp_path)
    voxels = np.zeros((64, 64, 600), dtype=np.int16)  # more than is looked at first
    for folder, value in ((train, 1), (test, 2)):
        voxels[..., -1] = value
        nib.Nifti1Image(voxels, np.eye(4)).to_filename(folder / f"s{value}.nii.gz")
    cohort = load_cohort(tmp_path)
    assert (len(cohort.training) + len(cohort.calibration), len(cohort.test)) == (1, 1)


def test_datalist_in_a_folder_of_its_own(tmp_path: Path) -> None:
    items = []
    for subject in ("sub-00", "sub-01", "sub-02"):
        folder = tmp_path / "raw" / "site" / subject / "anat"
        folder.mkdir(parents=True)
        volume(folder / "T1.nii.gz", len(items))
        items.append({"image": f"../raw/site/{subject}/anat/T1.nii.gz", "patient": subject})
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "c.json").write_text(json.dumps({"training": items[:2], "test": items[2:]}))
    cohort = load_cohort(tmp_path / "lists" / "c.json")
    assert [item["case"] for item in cohort.training] == ["sub-00__anat__T1", "sub-01__anat__T1"]
