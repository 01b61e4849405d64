"""Files as they come from scanners, cameras, discs and public sets: damaged, sheared, turned, linked."""

from __future__ import annotations

import gzip
import warnings
from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_runs import write_dicom
from monai.data import MetaTensor
from PIL import Image
from pydicom import dcmread
from pydicom.fileset import FileSet
from scipy.spatial.transform import Rotation
from test_load_scan import png16

from monai_anomaly.data import load_cohort, write_datalist
from monai_anomaly.exceptions import InputError
from monai_anomaly.io.case import write_case
from monai_anomaly.io.content import shown_digest
from monai_anomaly.io.load import LoadScan, scan_suffix
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
        with pytest.raises(InputError, match=r"cannot be read as NIfTI .* Copy or export the file again"):
            LoadScan(time_point)(path)
        with pytest.raises(InputError, match="cannot be read"):
            shown_digest(path)
    (tmp_path / "cut.nii.gz").write_bytes(packed[:-8])
    with pytest.raises(InputError, match="cannot be read as NIfTI"):
        LoadScan(time_point)(tmp_path / "cut.nii.gz")


# ---- sheared stacks


@pytest.mark.slow
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
    """Pixels to store for a tag, after EXIF 2.32's table of where the 0th row and the 0th column are shown."""
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
    # The map lies on the image as viewers show it, without a tag of its own.
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


# ---- folders that are more than scans


def found(folder: Path, line: str | None = None) -> list[str]:
    """Relative paths of the scans of a folder; the one line on what was passed over must end as given."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        items = load_cohort(folder, patient_regex="(.+)").test
    lines = [str(warning.message) for warning in caught if "passed over" in str(warning.message)]
    assert [text.partition("passed over: ")[2] for text in lines] == ([] if line is None else [line])
    return [Path(item["image"]).relative_to(folder).as_posix() for item in items]


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    study, real = tmp_path / "study", tmp_path / "real"
    for number in (1, 2):
        write_volume(real / f"sub-0{number}" / "t1.nii.gz", number)
    write_volume(study / "sub-03" / "t1.nii.gz", 3)
    write_volume(study / ".hidden" / "sub-04" / "t1.nii.gz", 4)
    for link, target in {
        "sub-01": real / "sub-01",
        "sub-02": real / "sub-02",
        "sub-04": study / ".hidden" / "sub-04",
        "a-first": study / "sub-03",  # found where it lies
        "sub-03/loop": study,
        "sub-03/up": tmp_path,
    }.items():
        (study / link).symlink_to(target, target_is_directory=True)
    (real / "sub-02" / "again").symlink_to(real / "sub-01", target_is_directory=True)
    assert found(study) == [f"sub-0{number}/t1.nii.gz" for number in (1, 2, 3, 4)]
    (study / "sub-05").symlink_to(tmp_path / "gone", target_is_directory=True)
    assert len(found(study, "link that leads nowhere: 1.")) == 4
    (tmp_path / "linked").symlink_to(study, target_is_directory=True)
    assert len(found(tmp_path / "linked", "link that leads nowhere: 1.")) == 4


def bids(root: Path) -> None:
    for number in (1, 2):
        name, seed = f"sub-0{number}", 10 * number
        write_volume(root / name / "ses-1" / "anat" / f"{name}_ses-1_T1w.nii.gz", seed)
        write_volume(root / name / "ses-1" / "anat" / f"{name}_ses-1_label-lesion_mask.nii.gz", seed + 1)
        write_volume(root / name / "ses-1" / "func" / f"{name}_ses-1_task-rest_bold.nii.gz", seed + 2, (8, 7, 6, 3))
        write_volume(root / name / "ses-1" / "dwi" / f"{name}_ses-1_dwi.nii.gz", seed + 3, (8, 7, 6, 3))
        write_volume(root / "derivatives" / "seg" / name / f"{name}_desc-brain_T1w.nii.gz", seed + 4)
        (root / name / "figures").mkdir()
        Image.fromarray(RNG.integers(0, 255, (8, 8), np.uint8)).save(root / name / "figures" / "t1.png")


def test_of_bids_data_the_structural_images_count(tmp_path: Path) -> None:
    root = tmp_path / "bids"
    bids(root)
    expected = [f"sub-0{number}/ses-1/anat/sub-0{number}_ses-1_T1w.nii.gz" for number in (1, 2)]
    line = "2-D image: 2, bold: 2, dwi: 2, folder derivatives: 1, mask: 2."
    assert found(root, line) == expected
    with pytest.warns(UserWarning, match=line):
        written = write_datalist(root, tmp_path / "c.json", patient_regex="(sub-[0-9]+)", calibration_fraction=0.5)
    names = [item["image"] for side in ("training", "calibration") for item in written[side]]
    assert sorted(names) == [f"bids/{name}" for name in expected]
    # What has no structural image beside it is what was meant, and so are folders that are named themselves.
    assert len(found(root / "sub-01" / "ses-1" / "func")) == 1
    assert len(found(root / "derivatives")) == 2


def test_masks_of_a_layout_may_have_names_of_bids(tmp_path: Path) -> None:
    write_volume(tmp_path / "train/good/sub-01_T1w.nii.gz", 1)
    write_volume(tmp_path / "test/tumour/sub-02_T1w.nii.gz", 2)
    write_volume(tmp_path / "ground_truth/tumour/sub-02_T1w_mask.nii.gz", 3)
    (item,) = load_cohort(tmp_path, patient_regex="(sub-[0-9]+)").test
    assert Path(item["mask"]).name == "sub-02_T1w_mask.nii.gz"


def test_discs_hold_their_series(tmp_path: Path) -> None:
    disc, files = tmp_path / "discs" / "one", FileSet()
    write_dicom(tmp_path / "flat", 2)
    for file in sorted((tmp_path / "flat").iterdir()):
        dataset = dcmread(file)
        dataset.StudyDate, dataset.StudyTime, dataset.StudyID = "20200101", "120000", "1"
        dataset.AccessionNumber, dataset.StudyDescription = "", ""
        dataset.StudyInstanceUID = dataset.SeriesInstanceUID
        dataset.PatientID, dataset.PatientName, dataset.Modality, dataset.SeriesNumber = "P", "P", "MR", 1
        files.add(dataset)
    disc.mkdir(parents=True)
    files.write(disc)
    (disc / "VIEWER").mkdir()
    Image.new("L", (8, 8)).save(disc / "VIEWER" / "logo.png")
    line = "2-D image of a disc: 1, folder of DICOM files without an image: 1."
    (series,) = found(disc, line)
    assert LoadScan()(disc / series).meta["source_format"] == "dicom"
    assert found(tmp_path / "discs", line) == [f"one/{series}"]
    # A disc whose images lie beside the index is one series; a report is none.
    (tmp_path / "flat" / "DICOMDIR").write_bytes((disc / "DICOMDIR").read_bytes())
    assert found(tmp_path / "flat") == ["."]
    (tmp_path / "reports").mkdir()
    del dataset.Rows, dataset.Columns, dataset.PixelData
    dataset.save_as(tmp_path / "reports" / "sr.dcm")
    with pytest.raises(InputError, match="holds no scan"), pytest.warns(UserWarning, match="without an image: 1"):
        load_cohort(tmp_path / "reports")


@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr", ".mha", ".mhd", ".mgz", ".mgh"])
def test_volumes_of_slicer_and_freesurfer_lie_where_their_nifti_twin_does(tmp_path: Path, suffix: str) -> None:
    voxels = np.random.default_rng(3).integers(1, 1000, (7, 6, 5)).astype(np.int16)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [0.3, -0.2, 0.5]).as_matrix() * [1.5, 2.0, 4.0]
    affine[:3, 3] = [10, -20, 30]
    nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "a.nii.gz")
    path = tmp_path / f"b{suffix}"
    if suffix.startswith(".mg"):
        nib.save(nib.MGHImage(voxels.astype(np.int32), affine), path)
    else:
        itk.imwrite(itk.imread(str(tmp_path / "a.nii.gz")), str(path))
    one, other = LoadScan()(tmp_path / "a.nii.gz"), LoadScan()(path)
    np.testing.assert_array_equal(other.numpy(), one.numpy())
    np.testing.assert_allclose(other.affine.numpy(), one.affine.numpy(), atol=1e-4)
    write_case(tmp_path / "case", other, anomaly_map=voxels, restoration=voxels[None], anomaly_mask=None)
    written = nib.load(tmp_path / "case" / "anomaly_map.nii.gz")
    np.testing.assert_allclose(written.affine, affine, atol=1e-4)
    np.testing.assert_array_equal(written.get_fdata(), voxels)


def test_segmentations_and_damaged_volumes_are_no_scans(tmp_path: Path) -> None:
    (tmp_path / "c" / "train" / "normal").mkdir(parents=True)
    (tmp_path / "c" / "train" / "normal" / "x.seg.nrrd").write_bytes(b"NRRD0004")
    assert scan_suffix("x.seg.nrrd") == ""
    for name in ("a.nrrd", "a.mha", "a.mgz"):
        (tmp_path / name).write_bytes(b"no volume")
        with pytest.raises(InputError, match=f"{name}: cannot be read") as caught:
            LoadScan()(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("unit", "millimetres"), [("meter", 1000.0), ("micron", 0.001), ("mm", 1.0), ("unknown", 1.0)])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_lengths_are_in_the_unit_that_the_file_names(tmp_path: Path, unit: str, millimetres: float, kind: Any) -> None:
    values = np.random.default_rng(0).random((6, 5, 4)).astype(np.float32)
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    affine[:3, 3] = 7, -8, 9
    stored = affine.copy()
    stored[:3] /= millimetres
    image = kind(values, stored)
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "scan.nii")
    scan = LoadScan()(tmp_path / "scan.nii")
    np.testing.assert_allclose(np.asarray(scan.affine), affine, rtol=1e-6, atol=1e-6)
    if kind is nib.Nifti1Image:  # as ITK, and with it 3D Slicer, reads it; ITK has no NIfTI-2
        np.testing.assert_allclose(itk.imread(str(tmp_path / "scan.nii")).GetSpacing(), (2, 3, 4), rtol=1e-5)
    # the map has the source's own numbers and unit
    maps = {"anomaly_map": np.ones((6, 5, 4), np.float32), "restoration": np.asarray(scan), "anomaly_mask": None}
    write_case(tmp_path / "case", scan, **maps)
    written = nib.load(tmp_path / "case" / "anomaly_map.nii.gz")
    assert np.array_equal(written.affine, nib.load(tmp_path / "scan.nii").affine)
    assert written.header.get_xyzt_units()[0] == unit
