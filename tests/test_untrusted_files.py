"""Damaged and hostile files end in one line: no wrong voxels, no other exception, no memory for what is not there."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import struct
import tempfile
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
import tifffile
import torch
from fuzz.mutations import KINDS, read
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.uid import JPEG2000Lossless, RLELossless
from test_dicom import PIXELS, image
from test_load_scan import png16

from monai_anomaly.data import Cohort, check_cohort, load_cohort, write_datalist
from monai_anomaly.exceptions import InputError
from monai_anomaly.io import content_hash, write_csv
from monai_anomaly.io.content import shown_digest
from monai_anomaly.io.load import LoadScan, read_voxels
from monai_anomaly.transforms import SliceGrid, VolumeGrid

VOXELS = np.random.default_rng(3).integers(0, 900, (9, 8, 6)).astype(np.int16)


def refusal(path: Path, read: Callable[[Path], object] = read_voxels) -> str:
    with pytest.raises(InputError) as caught:
        read(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    return line


def compressed(path: Path) -> Path:
    if path.suffix in (".nrrd", ".mha"):
        itk.imwrite(itk.image_from_array(VOXELS), str(path), compression=True)
    elif path.suffix == ".mgz":
        nib.MGHImage(VOXELS, np.eye(4)).to_filename(path)
    else:
        nib.Nifti1Image(VOXELS, np.eye(4)).to_filename(path)
    return path


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mgz", "a.nrrd", "a.mha"])
def test_a_flipped_bit_never_changes_voxels(name: str, tmp_path: Path) -> None:
    path = compressed(tmp_path / name)
    whole, right = path.read_bytes(), read_voxels(path).array
    # the header of the text formats has no checksum; theirs is of the stream that follows
    start = 12 if path.suffix in (".gz", ".mgz") else len(whole) - VOXELS.nbytes // 2
    rng = np.random.default_rng(0)
    places = [*rng.integers(start, len(whole), 60), *range(len(whole) - 8, len(whole))]
    refused = 0
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            np.testing.assert_array_equal(read_voxels(path).array, right)
        except InputError:
            refused += 1
    assert refused > 0.9 * len(places)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_a_flipped_bit_of_an_image_never_changes_pixels(name: str, tmp_path: Path) -> None:
    path, pixels = tmp_path / name, np.random.default_rng(4).integers(0, 9, (40, 50), dtype=np.uint8)
    if name == "a.png":
        Image.fromarray(pixels).save(path)
    else:
        tifffile.imwrite(path, pixels, compression="zlib", photometric="minisblack")
    whole, rng = path.read_bytes(), np.random.default_rng(1)
    for place in rng.integers(len(whole) // 2, len(whole), 60):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with suppress(InputError):
            np.testing.assert_array_equal(read_voxels(path).array[0, ..., 0], pixels)


def test_a_cut_tail_is_refused(tmp_path: Path) -> None:
    path = compressed(tmp_path / "a.nii.gz")
    whole = path.read_bytes()
    for end in (-1, -4, -8):
        path.write_bytes(whole[:end])
        assert "cannot be read as NIfTI" in refusal(path)


@pytest.mark.parametrize("syntax", [None, RLELossless, JPEG2000Lossless])
@pytest.mark.parametrize(("rows", "columns"), [(-1, 0), (0, -1), (1, 0), (2, -1), (-6, 0)])
@pytest.mark.filterwarnings("ignore:The decoded RLE")
def test_dicom_with_other_pixels_than_it_states(syntax: str | None, rows: int, columns: int, tmp_path: Path) -> None:
    dataset = image(np.add.outer(np.arange(64), np.arange(60)))
    if syntax is not None:
        dataset.compress(syntax)
    dataset.Rows += rows
    dataset.Columns += columns
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    refusal(tmp_path / "a.dcm")


def test_a_frame_that_states_more_pixels_than_the_header_takes_no_memory(tmp_path: Path) -> None:
    dataset = image(np.add.outer(np.arange(64), np.arange(60)))
    dataset.compress(JPEG2000Lossless)
    # rows in the marker of the image's size, behind the columns
    place = dataset.PixelData.index(b"\xff\x4f\xff\x51") + 12
    pixels = bytearray(dataset.PixelData)
    assert pixels[place : place + 4] == struct.pack(">I", 64)
    pixels[place : place + 4] = struct.pack(">I", 1_000_000)
    dataset.PixelData = bytes(pixels)
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert "a frame has 60 x 1000000 pixels, the header states 60 x 64" in refusal(tmp_path / "a.dcm")


@pytest.mark.parametrize("syntax", [None, RLELossless])
def test_dicom_with_more_frames_than_its_header_says(syntax: str | None, tmp_path: Path) -> None:
    dataset = image(PIXELS[:3])
    if syntax is not None:
        dataset.compress(syntax)
    dataset.NumberOfFrames = 1
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert "of pixel data, the file holds" in refusal(tmp_path / "a.dcm")


def inflated_nifti(path: Path) -> Path:
    header = bytearray(nib.Nifti1Image(VOXELS, np.eye(4)).to_bytes())
    header[40:48] = struct.pack("<4h", 3, 3000, 3000, 300)
    header[112:116] = struct.pack("<f", 2.0)  # a scale, so that nibabel cannot map the file
    path.write_bytes(gzip.compress(header) if path.suffix == ".gz" else header)
    return path


def inflated_png(path: Path, deep: bool = False) -> Path:
    png16(path, np.zeros((5, 7, 3), np.uint16))
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 12000, 12000)
    content[24] = 16 if deep else 8
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    return path


def inflated_tiff(path: Path) -> Path:
    tifffile.imwrite(path, np.zeros((5, 7), np.uint8), photometric="minisblack")
    with tifffile.TiffFile(path) as file:
        places = [file.pages.first.tags[name].valueoffset for name in ("ImageWidth", "ImageLength")]
    content = bytearray(path.read_bytes())
    for place in places:
        content[place : place + 2] = struct.pack("<H", 13000)
    path.write_bytes(content)
    return path


def inflated_dicom(path: Path, syntax: str | None = None, **stated: int) -> Path:
    dataset = image(PIXELS[:2])
    if syntax is not None:
        dataset.compress(syntax)
    for name, value in stated.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def inflated_nrrd(path: Path) -> Path:
    compressed(path)
    path.write_bytes(path.read_bytes().replace(b"sizes: 6 8 9", b"sizes: 6000 8000 90"))
    return path


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: inflated_nifti(folder / "a.nii"),
        lambda folder: inflated_nifti(folder / "a.nii.gz"),
        lambda folder: inflated_nrrd(folder / "a.nrrd"),
        lambda folder: inflated_png(folder / "a.png"),
        lambda folder: inflated_png(folder / "a.png", deep=True),
        lambda folder: inflated_tiff(folder / "a.tiff"),
        lambda folder: inflated_dicom(folder / "a.dcm", NumberOfFrames=10**9),
        lambda folder: inflated_dicom(folder / "a.dcm", Rows=60000, Columns=60000),
        lambda folder: inflated_dicom(folder / "a.dcm", RLELossless, NumberOfFrames=10**9),
        lambda folder: inflated_dicom(folder / "a.dcm", RLELossless, Rows=60000, Columns=60000),
    ],
)
@pytest.mark.filterwarnings("ignore:Image size")
def test_what_a_file_cannot_hold_is_refused_before_it_is_made(write: Callable[[Path], Path], tmp_path: Path) -> None:
    assert "the header states" in refusal(write(tmp_path))


def test_samples_that_do_not_fit_their_bits_take_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.tiff"
    tifffile.imwrite(path, np.zeros((12, 14, 3), np.uint8), photometric="rgb", compression="zlib")
    with tifffile.TiffFile(path) as file:
        tags = file.pages.first.tags
        places = {tags["SamplesPerPixel"].valueoffset: 65535, tags["BitsPerSample"].valueoffset: 16}
    content = bytearray(path.read_bytes())
    for place, value in places.items():
        content[place : place + 2] = struct.pack("<H", value)
    path.write_bytes(content)
    tracemalloc.start()
    refusal(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


def test_images_beyond_the_limit_of_pixels(tmp_path: Path) -> None:
    Image.new("1", (20000, 9100)).save(tmp_path / "a.png")
    for read_it in (read_voxels, shown_digest):
        assert "exceeds limit" in refusal(tmp_path / "a.png", read_it)


def test_formats_that_start_other_programs_are_never_opened(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(stream, "EPS")
    (tmp_path / "a.png").write_bytes(stream.getvalue())
    for read_it in (read_voxels, shown_digest):
        assert "cannot be read as an image" in refusal(tmp_path / "a.png", read_it)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.png", "a.dcm", "a.mha", "a"])
def test_pipes_are_refused_at_once(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    for read_it in (read_voxels, shown_digest, content_hash):
        assert "is no regular file" in refusal(tmp_path / name, read_it)  # type: ignore[arg-type]


def test_a_detached_pipe_or_one_elsewhere_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.raw")
    itk.imwrite(itk.image_from_array(VOXELS), str(tmp_path / "a.mhd"))
    text = (tmp_path / "a.mhd").read_text()
    read_voxels(tmp_path / "a.mhd")
    for name in ("pipe.raw", "LIST", "%d.raw 1 9 1"):
        (tmp_path / "a.mhd").write_text(text.replace("a.raw", name))
        assert "its voxels are not in one file beside it" in refusal(tmp_path / "a.mhd")


def test_numbers_that_end_the_process_in_itk(tmp_path: Path) -> None:
    whole = compressed(tmp_path / "a.mha").read_bytes()
    for field in (b"NDims = 3", b"DimSize = 6 8 9", b"TransformMatrix = 1 0 0 0 1 0 0 0 1"):
        for value in (b"1e30", b"-3", b"", b"3 3", b"nan"):
            (tmp_path / "a.mha").write_bytes(whole.replace(field, field.split(b" = ")[0] + b" = " + value))
            assert "cannot be read" in refusal(tmp_path / "a.mha")


@pytest.mark.parametrize("offset", [float("inf"), float("nan"), -5.0, 1e9])
def test_nifti_offsets_and_dimensions_that_cannot_be(offset: float, tmp_path: Path) -> None:
    header = bytearray(nib.Nifti1Image(VOXELS, np.eye(4)).to_bytes())
    header[108:112] = struct.pack("<f", offset)
    (tmp_path / "a.nii").write_bytes(header)
    refusal(tmp_path / "a.nii")
    header[108:112] = struct.pack("<f", 352)
    header[42:44] = struct.pack("<h", -9)
    (tmp_path / "a.nii").write_bytes(header)
    refusal(tmp_path / "a.nii")


@pytest.mark.parametrize(
    ("spacing", "origin", "factor", "problem"),
    [
        (1e30, 0, 1, "states voxels"),
        (1e-9, 0, 1, "states voxels"),
        (1, 1e20, 1, "states voxels"),
        (1, 0, 1e30, "reach"),
    ],
)
def test_places_and_values_beyond_reckoning(
    spacing: float, origin: float, factor: float, problem: str, tmp_path: Path
) -> None:
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[0, 3] = origin
    nib.Nifti1Image(VOXELS.astype(np.float32) * factor, affine).to_filename(tmp_path / "a.nii")
    assert problem in refusal(tmp_path / "a.nii", LoadScan())


@pytest.mark.parametrize(
    ("stated", "written"),
    [("11", "1A"), ("11", "-1"), ("55555", "1e999"), ("6.5\\7.5", "6.5\\abc"), ("6.5\\7.5", "inf\\inf")],
)
@pytest.mark.filterwarnings("ignore")
def test_dicom_numbers_that_are_none(stated: str, written: str, tmp_path: Path) -> None:
    place = {
        "ImagePositionPatient": [0, 0, 0],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [6.5, 7.5],
    }
    dataset = image(PIXELS[:1].repeat(11, axis=0) if stated == "11" else PIXELS[0], InstanceNumber=55555, **place)
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    content = (tmp_path / "a.dcm").read_bytes()
    start = content.index(stated.encode(), content.index(b"\x28\x00\x08\x00" if stated == "11" else b"DICM"))
    (tmp_path / "a.dcm").write_bytes(content[:start] + written.encode() + content[start + len(stated) :])
    refusal(tmp_path / "a.dcm")


def test_a_colour_run_of_frames(tmp_path: Path) -> None:
    path = get_testdata_file("SC_rgb_rle_16bit_2frame.dcm", download=False)
    assert "is a series of colour images" in refusal(Path(str(path)))


def test_no_description_of_a_series_is_told(tmp_path: Path) -> None:
    for number in range(2):
        dataset = image(PIXELS[number], SeriesDescription="Jane Doe", PatientName="Doe^Jane")
        dataset.SeriesInstanceUID = f"1.2.{number}"
        dataset.save_as(tmp_path / f"{number}.dcm", enforce_file_format=True)
    line = refusal(tmp_path)
    assert "holds 2 series (1.2.0: 1 images, 1.2.1: 1 images)" in line


@pytest.mark.parametrize(
    "case", ["", ".", "..", ".x", "a/b", "a\\b", "failures.csv", "Report.html", "models", "a\0b", "\x1b[2J"]
)
@pytest.mark.parametrize("made", ["datalist", "hand"])
def test_cases_that_are_no_folder_of_results(case: str, made: str, tmp_path: Path) -> None:
    compressed(tmp_path / "a.nii.gz")
    (tmp_path / "list.json").write_text(json.dumps({"test": [{"image": "a.nii.gz", "case": case}]}))
    if made == "datalist":
        assert "A case must be fit for a file name" in refusal(tmp_path / "list.json", load_cohort)
    else:
        item = {"case": case, "image": str(tmp_path / "a.nii.gz"), "patient": "p", "label": None, "mask": None}
        refusal(tmp_path, lambda root: check_cohort(Cohort(root, [], [], [item])))


@pytest.mark.filterwarnings("ignore:.*patient of its own")
def test_files_of_any_name_are_cases(tmp_path: Path) -> None:
    names = [b"report.html.nii.gz", b"caf\xe9.nii.gz", b"a\nb.nii.gz", b"a\\b.nii.gz", b"models.nii.gz", b"=1+1.nii.gz"]
    for seed, name in enumerate(names):
        voxels = np.random.default_rng(seed).normal(size=(3, 3, 3))
        nib.Nifti1Image(voxels, np.eye(4)).to_filename(tmp_path / os.fsdecode(name))
    cohort = load_cohort(tmp_path)
    cases = {item["case"] for item in cohort.test}
    assert cases == {"scan_report.html", "caf%E9", "a%0Ab", "a%5Cb", "scan_models", "=1+1"}
    for item in cohort.test:
        LoadScan()(item["image"])
    os.mkdir(tmp_path / "lists")
    write_datalist(tmp_path, tmp_path / "lists" / "list.json")
    again = load_cohort(tmp_path / "lists" / "list.json")
    assert {item["case"] for item in (*again.training, *again.calibration)} == cases


@pytest.mark.parametrize(
    "content",
    [
        b'{"test": [{"image": "\\ud800.nii"}]}',
        b"[" * 10**5,
        b'{"test": ' + b"9" * 5000 + b"}",
        b"\xff",
        b'{"test": {}}',
    ],
)
def test_datalists_that_are_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_bytes(content)
    refusal(tmp_path / "list.json", load_cohort)


@pytest.mark.filterwarnings("ignore:.*patient of its own", "ignore:Image size")
def test_bad_files_do_not_end_the_reading_of_a_cohort(tmp_path: Path) -> None:
    compressed(tmp_path / "good.nii.gz")
    Image.new("1", (20000, 9100)).save(tmp_path / "bomb.png")
    inflated_png(tmp_path / "large.png")
    inflated_nifti(tmp_path / "inflated.nii")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    os.mkfifo(tmp_path / "pipe.nii")
    os.symlink("nowhere", tmp_path / "link.nii.gz")
    os.symlink("loop.png", tmp_path / "loop.png")
    (tmp_path / "dicom").mkdir()
    (tmp_path / "dicom" / "a.dcm").write_bytes(bytes(128) + b"DICM" + b"\xff" * 90)
    data = load_cohort(tmp_path).test
    assert len(data) == 8
    readable = []
    for item in data:
        with suppress(InputError):
            LoadScan()(item["image"])
            readable.append(item["case"])
    assert readable == ["good"]


def test_files_of_others_are_no_end(tmp_path: Path) -> None:
    """Files that may not be read; root may read all, so that the check runs as nobody."""
    path = compressed(tmp_path / "a.nii.gz")
    folder = tmp_path / "series"
    folder.mkdir()
    path.chmod(0)
    folder.chmod(0)
    as_root = os.geteuid() == 0
    if as_root:
        for above in [*list(tmp_path.parents)[:-1], tmp_path]:
            above.chmod(above.stat().st_mode | 0o055)
        os.seteuid(65534)
    try:
        for unreadable in (path, folder):
            for read_it in (read_voxels, shown_digest, content_hash):
                refusal(unreadable, read_it)  # type: ignore[arg-type]
        # one failure among the scans, not the end of all
        assert [item["image"] for item in load_cohort(tmp_path).test] == [str(path), str(folder)]
        assert "series: cannot be read" in refusal(folder, load_cohort)  # type: ignore[arg-type]
    finally:
        if as_root:
            os.seteuid(0)
        folder.chmod(0o700)  # so that pytest can remove it


def test_cells_that_spreadsheets_would_run(tmp_path: Path) -> None:
    cells = ["=cmd|' /C calc'!A0", "+1+1", "-2-3", "@SUM(A1)", "\t=1", "\r=1", "plain", "-5", "+1e3", "-inf", -5, -0.25]
    cells += [os.fsdecode(b"caf\xe9"), None, np.float32(-2.5)]
    write_csv(tmp_path / "a.csv", [{"cell": cell} for cell in cells], ["cell"])
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        written = [row["cell"] for row in csv.DictReader(file)]
    quoted = ["'=cmd|' /C calc'!A0", "'+1+1", "'-2-3", "'@SUM(A1)", "'\t=1", "'\\r=1", "plain", "-5", "+1e3", "-inf"]
    assert written == [*quoted, "-5", "-0.25", "caf\\udce9", "", "-2.5"]


def test_a_message_is_one_line_of_text() -> None:
    line = str(InputError(os.fsdecode(b"a\xe9\x1b[2J\nb"), "is\r\nbroken"))
    assert line == "a\\udce9\\x1b[2J b: is broken."


def test_voxel_sizes_that_would_fill_the_memory() -> None:
    scan = MetaTensor(torch.rand(1, 48, 48, 48), affine=torch.diag(torch.tensor([40.0, 40.0, 40.0, 1.0])))
    for grid in (SliceGrid((64, 64), spacing=0.5), VolumeGrid((64, 64, 64), spacing=1.0)):
        with pytest.raises(InputError, match=r"its \(48, 48, 48\) voxels would become"):
            grid(scan)


@pytest.mark.slow
@settings(max_examples=400)
@given(kind=st.sampled_from(list(KINDS)), seed=st.integers(0, 2**32 - 1))
def test_mutated_files_are_refused_or_read(kind: str, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = KINDS[kind](Path(folder), np.random.default_rng(seed))
        with suppress(InputError):
            read(kind, path)
