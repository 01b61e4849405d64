"""Forms of DICOM that scanners and archives write, each with the right voxels and the right place."""

from __future__ import annotations

import hashlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import DigitalXRayImageStorageForPresentation
from test_dicom import AXES, ORIGIN, PIXEL, PIXELS, STEP, enhanced, expected_affine, image, series, write

from monai_anomaly.exceptions import InputError
from monai_anomaly.io.load import LoadScan, read_voxels

RNG = np.random.default_rng(5)


def hashed(folder: Path, slices: list[Dataset]) -> Path:
    """Named as archives name files: by nothing that orders them."""
    names = [hashlib.md5(dataset.SOPInstanceUID.encode()).hexdigest() for dataset in slices]
    return write(folder, slices, names)


def echoes(count: int, **tags: list[object]) -> list[Dataset]:
    """A series whose images at one position share every number, but for these tags of each echo."""
    slices = []
    for echo in range(count):
        for index, dataset in enumerate(series(PIXELS // (echo + 1))):
            dataset.InstanceNumber = index + 1
            for name, values in tags.items():
                setattr(dataset, name, values[echo])
            slices.append(dataset)
    return slices


@pytest.mark.parametrize(
    "tags",
    [
        {"EchoTime": [5.19, 7.65]},
        {"EchoNumbers": [1, 2]},
        {"TemporalPositionIdentifier": [1, 2]},
        {"DiffusionBValue": [0.0, 1000.0]},
        {"InversionTime": [300.0, 900.0]},
        {"ImageType": [["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]]},
        {"AcquisitionTime": ["101500", "101502"]},
    ],
    ids=lambda tags: next(iter(tags)),
)
def test_images_at_one_position_are_told_apart_by_what_differs(tmp_path: Path, tags: dict[str, list[object]]) -> None:
    folder = hashed(tmp_path / "s", echoes(2, **tags))
    for time in (0, 1):
        np.testing.assert_array_equal(LoadScan(time)(folder)[0].numpy(), (PIXELS // (time + 1)).T)
    with pytest.raises(InputError, match=r"holds 2 images at every position .*time_point \(0 to 1\)"):
        LoadScan()(folder)


def test_images_that_nothing_tells_apart_are_rejected(tmp_path: Path) -> None:
    folder = hashed(tmp_path / "s", echoes(2))
    for time in (None, 0, 1):
        with pytest.raises(InputError, match="nothing in the headers tells images at one position apart"):
            LoadScan(time)(folder)


def test_a_volume_is_never_of_two_kinds(tmp_path: Path) -> None:
    slices = echoes(2, EchoTime=[5.0, 7.0])
    slices[2].EchoTime = 6.0  # one slice of the first echo says otherwise
    with pytest.raises(InputError, match=r"the images of volume 0 differ in EchoTime \(5.0, 6.0\)"):
        LoadScan(0)(hashed(tmp_path / "s", slices))


def test_equal_uids_of_different_images_are_no_copies(tmp_path: Path) -> None:
    slices = series(PIXELS)
    for dataset in slices:
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    np.testing.assert_array_equal(LoadScan()(write(tmp_path / "s", slices))[0].numpy(), PIXELS.T)


def mosaic(count: int, grid: int, number: bool = True, **tags: object) -> Dataset:
    """Tiles row by row in one Siemens image; the last places of the grid are empty."""
    rows, columns = PIXELS.shape[1:]
    tiles = np.zeros((grid * rows, grid * columns), np.uint16)
    for index, plane in enumerate(PIXELS[:count]):
        down, across = divmod(index, grid)
        tiles[down * rows : (down + 1) * rows, across * columns : (across + 1) * columns] = plane
    # were the whole of it one slice, its centre would be the first slice's centre
    corner = ORIGIN - AXES[:, 0] * PIXEL[1] * columns * (grid - 1) / 2 - AXES[:, 1] * PIXEL[0] * rows * (grid - 1) / 2
    dataset = image(
        tiles,
        ImageOrientationPatient=[*np.round(AXES[:, 0], 8), *np.round(AXES[:, 1], 8)],
        ImagePositionPatient=[float(value) for value in np.round(corner, 6)],
        PixelSpacing=list(PIXEL),
        SliceThickness=3.0,
        SpacingBetweenSlices=STEP,
        ImageType=["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"],
        Manufacturer="SIEMENS",
        **tags,
    )
    if number:
        dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", count)
    return dataset


@pytest.mark.parametrize(("count", "grid"), [(6, 3), (4, 2), (5, 3)])
def test_a_mosaic_is_unfolded(tmp_path: Path, count: int, grid: int) -> None:
    scan = LoadScan()(write(tmp_path / "s", [mosaic(count, grid)]) / "000.dcm")
    np.testing.assert_array_equal(scan[0].numpy(), PIXELS[:count].T)
    np.testing.assert_allclose(scan.affine.numpy(), expected_affine(), atol=1e-4)


def test_a_run_of_mosaics_is_a_time_series(tmp_path: Path) -> None:
    run = [mosaic(6, 3, AcquisitionNumber=number, InstanceNumber=number) for number in (1, 2, 3)]
    folder = hashed(tmp_path / "s", run)
    with pytest.raises(InputError, match=r"holds 3 images at every position .*time_point"):
        LoadScan()(folder)
    np.testing.assert_array_equal(LoadScan(1)(folder)[0].numpy(), PIXELS.T)


def test_mosaics_that_cannot_be_unfolded_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is a mosaic .* does not say of how many"):
        LoadScan()(write(tmp_path / "a", [mosaic(6, 3, number=False)]))
    grid = mosaic(6, 3)
    grid.ImageType = ["ORIGINAL", "PRIMARY", "VFRAME"]
    with pytest.raises(InputError, match="VFRAME, UIH"):
        LoadScan()(write(tmp_path / "b", [grid]))


def lut(values: np.ndarray, first: int = 0) -> Dataset:
    table = Dataset()
    table.LUTDescriptor = [len(values), first, 16]
    table.ModalityLUTType = "US"
    table.LUTData = values.astype("<u2").tobytes()
    return table


def test_the_modality_lut_is_applied(tmp_path: Path) -> None:
    squares = np.arange(256) ** 2
    slices = series(PIXELS % 256)
    for dataset in slices:
        dataset.ModalityLUTSequence = [lut(squares)]
    np.testing.assert_array_equal(LoadScan()(write(tmp_path / "s", slices))[0].numpy(), squares[PIXELS % 256].T)


def radiograph(pixels: np.ndarray, photometric: str, bits: int = 12, signed: bool = False) -> Dataset:
    dataset = image(pixels, PhotometricInterpretation=photometric, Modality="DX", ImagerPixelSpacing=[0.2, 0.1])
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.BitsStored, dataset.HighBit = bits, bits - 1
    if signed:
        dataset.PixelRepresentation = 1
        dataset.PixelData = pixels.astype("<i2").tobytes()
    return dataset


@pytest.mark.filterwarnings("ignore:.*no position in the patient")
@settings(max_examples=20, deadline=None)
@given(bits=st.integers(9, 16), signed=st.booleans(), seed=st.integers(0, 99))
def test_what_a_display_shows_alike_is_read_alike(
    tmp_path_factory: pytest.TempPathFactory, bits: int, signed: bool, seed: int
) -> None:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    shown = np.random.default_rng(seed).integers(low, high, (6, 5))
    stored = (-1 if signed else 2**bits - 1) - shown
    folder = tmp_path_factory.mktemp("s")
    plain = write(folder / "2", [radiograph(shown, "MONOCHROME2", bits, signed)])
    turned = write(folder / "1", [radiograph(stored, "MONOCHROME1", bits, signed)])
    np.testing.assert_array_equal(LoadScan()(turned).numpy(), LoadScan()(plain).numpy())


def test_measurements_keep_their_values(tmp_path: Path) -> None:
    slices = series(PIXELS)
    for dataset in slices:
        dataset.Modality, dataset.PhotometricInterpretation = "CT", "MONOCHROME1"
    with pytest.warns(UserWarning, match="values are measurements"):
        np.testing.assert_array_equal(LoadScan()(write(tmp_path / "s", slices))[0].numpy(), PIXELS.T)


# ---- enhanced files


def test_one_frame_has_the_geometry_of_its_functional_groups(tmp_path: Path) -> None:
    dataset = enhanced(PIXELS[:1], np.array([0.0]))
    dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices = STEP
    scan = LoadScan()(write(tmp_path / "s", [dataset]) / "000.dcm")
    np.testing.assert_array_equal(scan[0].numpy(), PIXELS[:1].T)
    np.testing.assert_allclose(scan.affine.numpy(), expected_affine(), atol=1e-5)


def test_one_file_a_frame_is_a_volume(tmp_path: Path) -> None:
    files = [enhanced(plane[None], np.array([index * STEP])) for index, plane in enumerate(PIXELS)]
    scan = LoadScan()(hashed(tmp_path / "s", files))
    np.testing.assert_array_equal(scan[0].numpy(), PIXELS.T)
    np.testing.assert_allclose(scan.affine.numpy(), expected_affine(), atol=1e-5)


def timed(volumes: np.ndarray, **content: list[object]) -> Dataset:
    """All volumes (T, slices, rows, columns) in one enhanced file, told apart by attributes of the frame content."""
    offsets = np.tile(STEP * np.arange(volumes.shape[1]), len(volumes))
    dataset = enhanced(volumes.reshape(-1, *volumes.shape[2:]), offsets)
    for index, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        time, place = divmod(index, volumes.shape[1])
        item = Dataset()
        item.DimensionIndexValues = [place + 1, time + 1]
        for name, values in content.items():
            setattr(item, name, values[time])
        frame.FrameContentSequence = [item]
    return dataset


@pytest.mark.parametrize("content", [{}, {"TemporalPositionIndex": [3, 2, 1]}])
def test_a_time_series_in_one_enhanced_file(tmp_path: Path, content: dict[str, list[object]]) -> None:
    volumes = RNG.integers(0, 4000, (3, *PIXELS.shape))
    path = write(tmp_path / "s", [timed(volumes, **content)]) / "000.dcm"
    with pytest.raises(InputError, match=r"holds 3 images at every position .*time_point \(0 to 2\)"):
        LoadScan()(path)
    order = [2, 1, 0] if content else [0, 1, 2]
    for time in range(3):
        np.testing.assert_array_equal(LoadScan(time)(path)[0].numpy(), volumes[order[time]].T)


def test_one_enhanced_file_a_volume(tmp_path: Path) -> None:
    volumes = RNG.integers(0, 4000, (3, *PIXELS.shape))
    files = [enhanced(pixels, STEP * np.arange(6)) for pixels in volumes]
    for number, dataset in enumerate(files):
        dataset.InstanceNumber = number + 1
    folder = hashed(tmp_path / "s", files)
    for time in range(3):
        scan = LoadScan(time)(folder)
        np.testing.assert_array_equal(scan[0].numpy(), volumes[time].T)
        np.testing.assert_allclose(scan.affine.numpy(), expected_affine(), atol=1e-5)


# ---- positions


@pytest.mark.parametrize("step", [0.625, 1.25, 0.7])
def test_positions_with_one_decimal_are_even(tmp_path: Path, step: float) -> None:
    pixels = RNG.integers(0, 4000, (24, 7, 5))
    slices = series(pixels, np.eye(3), step)
    for index, dataset in enumerate(slices):
        dataset.ImagePositionPatient = [-10, -10, round(-100 + step * index, 1)]
    scan = LoadScan()(write(tmp_path / "s", slices))
    np.testing.assert_array_equal(scan[0].numpy(), pixels.T)
    assert np.linalg.norm(scan.affine[:3, 2]) == pytest.approx(step, abs=0.1 / 23)


@pytest.mark.parametrize("step", [0.625, 3.0])
@pytest.mark.parametrize("lost", [1, 5, 22])
def test_a_lost_slice_is_a_gap_all_the_same(tmp_path: Path, step: float, lost: int) -> None:
    slices = series(RNG.integers(0, 4000, (24, 7, 5)), np.eye(3), step)
    for index, dataset in enumerate(slices):
        dataset.ImagePositionPatient = [-10, -10, round(-100 + step * index, 1)]
    del slices[lost]
    with pytest.raises(InputError, match="not evenly spaced"):
        LoadScan()(write(tmp_path / "s", slices))


def test_jitter_of_a_few_hundredths_is_no_gap(tmp_path: Path) -> None:
    slices = series(PIXELS, np.eye(3), 3.0)
    for index, dataset in enumerate(slices):
        dataset.ImagePositionPatient = [-10, -10, 3.0 * index + (0.02, -0.02, 0.0)[index % 3]]
    np.testing.assert_array_equal(LoadScan()(write(tmp_path / "s", slices))[0].numpy(), PIXELS.T)


def test_two_spacings_are_told_as_they_are(tmp_path: Path) -> None:
    slices = series(PIXELS, np.eye(3), 3.0)
    for index, dataset in enumerate(slices):
        dataset.ImagePositionPatient = [0, 0, 3.0 * min(index, 3) + 5.0 * max(index - 3, 0)]
    with pytest.raises(InputError, match=r"5\.000 mm between .* 3\.000 to 5\.000 mm elsewhere.*resample"):
        LoadScan()(write(tmp_path / "s", slices))


def test_a_damaged_slice_is_not_passed_over(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", series(PIXELS))
    (folder / "005.dcm").write_bytes(b"")
    with pytest.raises(InputError, match=r"005\.dcm is damaged or no DICOM file: the series may lack a slice"):
        LoadScan()(folder)


# ---- one clear line


def one_line(path: Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_voxels(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_unusable_files_are_one_line(tmp_path: Path) -> None:
    colours = image(np.zeros((2, 6, 5)), SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    colours.PixelData = RNG.integers(0, 4000, (2, 6, 5, 3)).astype(np.uint16).tobytes()
    one_line(write(tmp_path / "a", [colours]) / "000.dcm", "is a series of colour images")

    frames = series(PIXELS[:1])[0]
    frames.add_new(0x00280008, "LO", "1A")
    one_line(write(tmp_path / "b", [frames]) / "000.dcm", "NumberOfFrames is '1A'")

    bad = series(PIXELS[:1])[0]
    bad.add_new(0x00280030, "LO", "wide")
    one_line(write(tmp_path / "c", [bad]) / "000.dcm", "a value of the header cannot be read")

    nib.save(nib.Nifti1Image(PIXELS.astype(np.int16), np.eye(4)), tmp_path / "neg.nii")
    content = bytearray((tmp_path / "neg.nii").read_bytes())
    content[42:44] = np.int16(-16).tobytes()
    (tmp_path / "neg.nii").write_bytes(bytes(content))
    one_line(tmp_path / "neg.nii", "cannot be read as NIfTI")

    axes = (
        nib.cifti2.ScalarAxis(["a"]),
        nib.cifti2.BrainModelAxis.from_mask(np.ones((3, 3, 3), bool), affine=np.eye(4), name="thalamus_left"),
    )
    header = nib.cifti2.Cifti2Header.from_axes(axes)
    nib.save(nib.cifti2.Cifti2Image(np.ones((1, 27), np.float32), header), tmp_path / "x.dscalar.nii")
    one_line(tmp_path / "x.dscalar.nii", "CIFTI")
