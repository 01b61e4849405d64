"""DICOM reading against hand-computed geometry and the reference volumes of real series."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    JPEGLosslessSV1,
    MRImageStorage,
    RLELossless,
    UltrasoundMultiFrameImageStorage,
    generate_uid,
)
from scipy.spatial.transform import Rotation

from monai_anomaly.exceptions import InputError
from monai_anomaly.io.dicom import DICOMSeriesReader, is_dicom_file, is_dicom_folder
from monai_anomaly.io.load import LoadScan

RNG = np.random.default_rng(11)
AXES = Rotation.from_euler("xyz", [0.3, -0.2, 0.5]).as_matrix()  # columns: along a row, along a column, normal (LPS)
ORIGIN = np.array([-40.0, 25.0, 12.5])
PIXEL = (1.5, 1.25)  # between rows, between columns
STEP = 4.5


def image(pixels: np.ndarray, **attributes: object) -> Dataset:
    """A grayscale MR image, (rows, columns) or (frames, rows, columns) of uint16, without any geometry."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = MRImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.SeriesInstanceUID = "1.2.3.4"
    dataset.SeriesDescription = "made here"
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    if pixels.ndim == 3:
        dataset.NumberOfFrames = len(pixels)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.PixelData = pixels.astype(np.uint16).tobytes()
    for name, value in attributes.items():
        setattr(dataset, name, value)
    return dataset


def series(pixels: np.ndarray, axes: np.ndarray = AXES, step: float = STEP) -> list[Dataset]:
    """Slices (n, rows, columns) at ``ORIGIN + k * step`` along the normal."""
    slices = []
    for index, plane in enumerate(pixels):
        position = ORIGIN + index * step * axes[:, 2]
        slices.append(
            image(
                plane,
                ImageOrientationPatient=[*np.round(axes[:, 0], 8), *np.round(axes[:, 1], 8)],
                ImagePositionPatient=[float(value) for value in np.round(position, 6)],
                PixelSpacing=list(PIXEL),
                SliceThickness=99.0,  # says nothing of a stack
                InstanceNumber=len(pixels) - index,
            )
        )
    return slices


def write(folder: Path, slices: list[Dataset], names: list[str] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    for index, dataset in enumerate(slices):
        dataset.save_as(folder / (names[index] if names else f"{index:03d}.dcm"), enforce_file_format=True)
    return folder


def expected_affine(step: float = STEP, axes: np.ndarray = AXES) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = axes * [PIXEL[1], PIXEL[0], step]
    affine[:3, 3] = ORIGIN
    return np.diag([-1.0, -1, 1, 1]) @ affine


PIXELS = RNG.integers(0, 4000, (6, 7, 5))  # slices, rows, columns


@pytest.mark.filterwarnings("error")
def test_series_is_stacked_by_position(tmp_path: Path) -> None:
    names = [f"image{number}" for number in RNG.permutation(6)]  # no suffix, shuffled
    folder = write(tmp_path / "s", series(PIXELS), names)
    scan = LoadScan()(folder)
    np.testing.assert_array_equal(scan[0].numpy(), PIXELS.T)
    np.testing.assert_allclose(scan.affine.numpy(), expected_affine(), atol=1e-5)
    assert (scan.meta["scan_kind"], scan.meta["source_format"]) == ("volume", "dicom")
    assert scan.meta["source"] == [str(folder)]
    assert is_dicom_folder(folder)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    angles=st.tuples(*[st.floats(-3, 3)] * 3),
    step=st.floats(0.3, 9) | st.floats(-9, -0.3),
    order=st.permutations(range(4)),
)
def test_any_orientation_and_order(
    tmp_path_factory: pytest.TempPathFactory, angles: tuple[float, ...], step: float, order: list[int]
) -> None:
    axes = Rotation.from_euler("xyz", angles).as_matrix()
    pixels = PIXELS[:4]
    slices = series(pixels, axes, step)
    folder = write(tmp_path_factory.mktemp("s"), [slices[index] for index in order])
    scan = LoadScan()(folder)
    ascending = pixels if step > 0 else pixels[::-1]
    np.testing.assert_array_equal(scan[0].numpy(), ascending.T)
    affine = expected_affine(step, axes)
    if step < 0:  # the same places, counted from the other end
        affine = affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 3], [0, 0, 0, 1]])
    np.testing.assert_allclose(scan.affine.numpy(), affine, atol=1e-4)


def test_rescale_of_each_slice(tmp_path: Path) -> None:
    slices = series(PIXELS)
    for index, dataset in enumerate(slices):
        dataset.RescaleSlope, dataset.RescaleIntercept = 0.5 + index, -10.0 * index
    scan = LoadScan()(write(tmp_path / "s", slices))
    index = np.arange(6)[:, None, None]
    np.testing.assert_allclose(scan[0].numpy(), (PIXELS * (0.5 + index) - 10 * index).T, rtol=1e-6)


def test_other_files_are_named_in_one_warning(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", series(PIXELS))
    (folder / "notes.txt").write_text("no DICOM")
    report = image(PIXELS[0])
    for key in ("Rows", "Columns", "PixelData"):
        delattr(report, key)
    report.save_as(folder / "report.dcm", enforce_file_format=True)
    with pytest.warns(UserWarning, match=r"ignored notes.txt \(no DICOM\), report.dcm \(no image\)") as caught:
        scan = LoadScan()(folder)
    assert len(caught) == 1
    np.testing.assert_array_equal(scan[0].numpy(), PIXELS.T)


def test_time_points(tmp_path: Path) -> None:
    times = RNG.integers(0, 4000, (3, *PIXELS.shape))
    slices = []
    for time, pixels in enumerate(times):
        for dataset in series(pixels):
            dataset.AcquisitionNumber = time + 1
            slices.append(dataset)
    shuffled = [slices[index] for index in RNG.permutation(len(slices))]
    folder = write(tmp_path / "s", shuffled)
    with pytest.raises(InputError, match=r"holds 3 images at every position .*time_point \(0 to 2\)"):
        LoadScan()(folder)
    for time in range(3):
        np.testing.assert_array_equal(LoadScan(time_point=time)(folder)[0].numpy(), times[time].T)
    with pytest.raises(InputError, match="no time_point 3"):
        LoadScan(time_point=3)(folder)
    (folder / "000.dcm").unlink()
    with pytest.raises(InputError, match=r"differs between positions \(1 positions with 2, 5 positions with 3\)"):
        LoadScan()(folder)


def test_refused_series(tmp_path: Path) -> None:
    def refuse(slices: list[Dataset], message: str) -> None:
        folder = write(tmp_path / str(len(list(tmp_path.iterdir()))), slices)
        with pytest.raises(InputError, match=message) as caught:
            LoadScan()(folder)
        assert str(caught.value).startswith(f"{folder}: ")
        assert "\n" not in str(caught.value)

    gap = series(PIXELS)
    del gap[2]
    along = float(ORIGIN @ AXES[:, 2])
    refuse(gap, f"not evenly spaced: 9.000 mm between {along + STEP:.3f} and {along + 3 * STEP:.3f} mm")

    two = series(PIXELS)
    for dataset in two[:2]:
        dataset.SeriesInstanceUID, dataset.SeriesDescription = "1.2.3.5", "other"
    refuse(two, r"holds 2 series \(1.2.3.5: 2 images, 1.2.3.4: 4 images\)")

    refuse([*series(PIXELS)[:-1], image(PIXELS[0])], "1 of 6 images have no position")
    refuse([*series(PIXELS), image(PIXELS[0, :4])], "differ in size")
    refuse([*series(PIXELS), *series(PIXELS, AXES[:, [1, 0, 2]])], "differ in orientation")
    spaced = series(PIXELS)
    spaced[1].PixelSpacing = [2.0, 2.0]
    refuse(spaced, "differ in pixel spacing")
    shifted = series(PIXELS)
    shifted[3].ImagePositionPatient = [float(v) for v in ORIGIN + 3 * STEP * AXES[:, 2] + 0.5 * AXES[:, 0]]
    refuse(shifted, "slice 4 of 6 is shifted by 0.500 mm")
    copied = series(PIXELS)
    copied.append(copied[0])
    refuse(copied, "000.dcm and 006.dcm are the same image")
    slanted = series(PIXELS)
    for dataset in slanted:
        dataset.ImageOrientationPatient = [1, 0, 0, 0.5, 0.5, 0]
    refuse(slanted, "no perpendicular unit vectors")
    short = series(PIXELS)
    short[4].PixelData = short[4].PixelData[:10]
    refuse(short, "70 bytes of pixel data, the file holds 10")
    segmentation = series(PIXELS[:1])
    segmentation[0].SegmentSequence = [Dataset()]
    refuse(segmentation, "holds a segmentation")

    (tmp_path / "text.dcm").write_text("no DICOM")
    with pytest.raises(InputError, match="holds no DICOM image"):
        LoadScan()(tmp_path / "text.dcm")
    with pytest.raises(InputError, match="Read one series"):
        DICOMSeriesReader().read([tmp_path, tmp_path])


def test_small_jitter_of_positions_is_no_gap(tmp_path: Path) -> None:
    slices = series(PIXELS)
    for index, dataset in enumerate(slices):
        jitter = 0.008 * (-1) ** index
        dataset.ImagePositionPatient = [float(v) for v in ORIGIN + (index * STEP + jitter) * AXES[:, 2]]
    np.testing.assert_array_equal(LoadScan()(write(tmp_path / "s", slices))[0].numpy(), PIXELS.T)


def test_missing_decoder_names_the_extra(tmp_path: Path) -> None:
    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder

    if get_decoder(JPEGLosslessSV1).is_available:
        pytest.skip("a decoder of lossless JPEG is installed")
    slices = series(PIXELS[:2])
    for dataset in slices:
        dataset.file_meta.TransferSyntaxUID = JPEGLosslessSV1
        dataset.PixelData = encapsulate([bytes(100)])
    with pytest.raises(InputError, match=r'JPEG Lossless.*cannot be decoded.*pip install "monai-anomaly\[dicom\]"'):
        LoadScan()(write(tmp_path / "s", slices))


def test_compressed_series(tmp_path: Path) -> None:
    slices = series(PIXELS)
    for dataset in slices:
        dataset.compress(RLELossless, generate_instance_uid=False)
    np.testing.assert_array_equal(LoadScan()(write(tmp_path / "s", slices))[0].numpy(), PIXELS.T)


def test_single_slice(tmp_path: Path) -> None:
    dataset = series(PIXELS[:1])[0]
    path = write(tmp_path / "s", [dataset]) / "000.dcm"
    for source in (path, path.parent):
        scan = LoadScan()(source)
        np.testing.assert_array_equal(scan[0].numpy(), PIXELS[:1].T)
        np.testing.assert_allclose(scan.affine.numpy(), expected_affine(step=99.0), atol=1e-4)
    with pytest.raises(InputError, match="no time_point 1"):
        LoadScan(time_point=1)(path)
    dataset.SpacingBetweenSlices = 3.0
    dataset.save_as(path, enforce_file_format=True)
    np.testing.assert_allclose(LoadScan()(path).affine.numpy(), expected_affine(step=3.0), atol=1e-5)
    del dataset.SpacingBetweenSlices, dataset.SliceThickness
    dataset.save_as(path, enforce_file_format=True)
    with pytest.warns(UserWarning, match="no depth of the slice; 1 mm is assumed"):
        np.testing.assert_allclose(LoadScan()(path).affine.numpy(), expected_affine(step=1.0), atol=1e-5)


def test_projection_picture(tmp_path: Path) -> None:
    dataset = image(PIXELS[0], ImagerPixelSpacing=[0.2, 0.1], ImagePositionPatient=None)
    path = write(tmp_path / "s", [dataset]) / "000.dcm"
    with pytest.warns(UserWarning, match="no position in the patient"):
        scan = LoadScan()(path)
    np.testing.assert_array_equal(scan[0].numpy(), PIXELS[:1].T)
    np.testing.assert_array_equal(scan.affine.numpy(), np.diag([0.1, 0.2, 1, 1]))


def test_colour_picture(tmp_path: Path) -> None:
    colours = RNG.integers(0, 256, (6, 5, 3), dtype=np.uint8)
    dataset = image(np.zeros((6, 5)), SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelData = colours.tobytes()
    path = write(tmp_path / "s", [dataset]) / "000.dcm"
    with pytest.warns(UserWarning, match="no position"):
        scan = LoadScan()(path)
    np.testing.assert_array_equal(scan.numpy()[..., 0], colours.transpose(2, 1, 0))


# ---- enhanced multi-frame


def enhanced(pixels: np.ndarray, offsets: np.ndarray, rescale: tuple[float, float] | None = None) -> Dataset:
    """An Enhanced MR image whose frames lie at these distances along the normal."""
    dataset = image(pixels)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    orientation, measures, shared = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = [*np.round(AXES[:, 0], 8), *np.round(AXES[:, 1], 8)]
    measures.PixelSpacing, measures.SliceThickness = list(PIXEL), 99.0
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    frames = []
    for offset in offsets:
        frame, position = Dataset(), Dataset()
        position.ImagePositionPatient = [float(value) for value in np.round(ORIGIN + offset * AXES[:, 2], 6)]
        frame.PlanePositionSequence = [position]
        if rescale:
            transformation = Dataset()
            transformation.RescaleSlope, transformation.RescaleIntercept = rescale
            frame.PixelValueTransformationSequence = [transformation]
        frames.append(frame)
    dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence = [shared], frames
    return dataset


@pytest.mark.parametrize("step", [STEP, -STEP])
def test_enhanced(tmp_path: Path, step: float) -> None:
    dataset = enhanced(PIXELS, step * np.arange(6), (2.5, -7.0))
    path = write(tmp_path / "s", [dataset]) / "000.dcm"
    for source in (path, path.parent):
        scan = LoadScan()(source)
        # along the normal, as every series is
        ascending = PIXELS if step > 0 else PIXELS[::-1]
        np.testing.assert_allclose(scan[0].numpy(), ascending.T * 2.5 - 7)
        affine = expected_affine(step)
        affine = affine if step > 0 else affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 5], [0, 0, 0, 1]])
        np.testing.assert_allclose(scan.affine.numpy(), affine, atol=1e-5)


def test_refused_multi_frame(tmp_path: Path) -> None:
    uneven = STEP * np.array([0, 1, 2, 3, 4, 6])
    cine = image(PIXELS)
    cine.SOPClassUID = cine.file_meta.MediaStorageSOPClassUID = UltrasoundMultiFrameImageStorage
    cases = {
        "not evenly spaced: 9.000 mm": enhanced(PIXELS, uneven),
        "nothing in the headers tells images": enhanced(PIXELS, STEP * np.array([0, 1, 2, 0, 1, 2])),
        "6 frames carry no position": cine,
    }
    for number, (message, dataset) in enumerate(cases.items()):
        path = write(tmp_path / str(number), [dataset]) / "000.dcm"
        with pytest.raises(InputError, match=message) as caught:
            LoadScan()(path)
        assert "\n" not in str(caught.value)


def test_frames_have_their_own_order_and_scale(tmp_path: Path) -> None:
    order = [0, 1, 2, 4, 3, 5]
    mixed = enhanced(PIXELS[order], STEP * np.array(order), (1.0, 0.0))
    mixed.PerFrameFunctionalGroupsSequence[4].PixelValueTransformationSequence[0].RescaleSlope = 3.0
    scan = LoadScan()(write(tmp_path / "s", [mixed]) / "000.dcm")
    np.testing.assert_allclose(scan[0].numpy(), (PIXELS * np.where(np.arange(6) == 3, 3, 1)[:, None, None]).T)
    np.testing.assert_allclose(scan.affine.numpy(), expected_affine(), atol=1e-5)


def test_folder_check(tmp_path: Path) -> None:
    assert not is_dicom_folder(tmp_path)
    assert not is_dicom_folder(tmp_path / "absent")
    (tmp_path / "a.dcm").write_text("no DICOM")
    assert not is_dicom_folder(tmp_path)
    assert not is_dicom_file(tmp_path / "a.dcm")
    image(PIXELS[0]).save_as(tmp_path / "1.2.3.4", enforce_file_format=True)
    assert is_dicom_folder(tmp_path)
    assert not is_dicom_folder(tmp_path / "1.2.3.4")
    assert not is_dicom_folder(tmp_path.parent)


# ---- real series


def compare_with_reference(scan: np.ndarray, affine: np.ndarray, reference: Path, time: int | None = None) -> None:
    """Every voxel of the scan equals the reference's at the same place in the world."""
    image = nib.load(reference)
    stored = np.asarray(image.dataobj) if time is None else np.asarray(image.dataobj)[..., time]
    indices = np.indices(scan.shape).reshape(3, -1)
    there = np.linalg.inv(image.affine) @ affine @ np.vstack([indices, np.ones(indices.shape[1])])
    rounded = np.rint(there[:3]).astype(int)
    assert np.abs(there[:3] - rounded).max() < 2e-3  # voxels; dcm2niix rounds to float32
    assert sorted(scan.shape) == sorted(stored.shape)
    np.testing.assert_array_equal(scan.ravel(), stored[tuple(rounded)])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["glioma_flair_oblique", "sag_gre_5slice", "t1_sagittal_hfs"])
def test_real_series(real_data: Path, name: str) -> None:
    folder = real_data / "dicom" / name
    scan = LoadScan()(folder / "dicom")
    compare_with_reference(scan[0].numpy(), scan.affine.numpy(), next(folder.glob("ref*/*.nii*")))


@pytest.mark.slow
def test_real_time_series(real_data: Path) -> None:
    folder = real_data / "dicom" / "nih_ge_epi_4d"
    with pytest.raises(InputError, match="holds 10 images at every position"):
        LoadScan()(folder / "dicom")
    for time in (0, 7):
        scan = LoadScan(time_point=time)(folder / "dicom")
        reference = next(folder.glob("ref*/*.nii"))
        compare_with_reference(scan[0].numpy(), scan.affine.numpy(), reference, time)
