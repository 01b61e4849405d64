"""Results as DICOM: read back by other libraries, laid on their source, checked by validators where there are any."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import itk
import numpy as np
import pydicom
import pytest
import torch
from bundle_runs import detect, write_nifti
from dicom_series import complete
from monai.transforms import Compose
from pydicom.dataset import Dataset
from pydicom.uid import ComputedRadiographyImageStorage
from test_dicom import AXES, PIXELS, STEP, enhanced, image, series, write
from test_dicom_forms import mosaic
from test_inference import BrightVoxels

from monai_anomaly.data import ScanPreprocessing
from monai_anomaly.engines import (
    CohortEvaluator,
    MaskAboveThresholdd,
    PValued,
    SaveCased,
    SaveDicomd,
    ToScanVoxelsd,
    scan_loader,
)
from monai_anomaly.exceptions import InputError
from monai_anomaly.io.dicom_out import (
    DetectorIdentity,
    DicomSource,
    measurement_report,
    overlay_series,
    parametric_map,
    segmentation,
)
from monai_anomaly.io.load import LoadScan
from monai_anomaly.io.slicer_out import numbered_lesions
from monai_anomaly.metrics import lesion_table
from monai_anomaly.report.overlay import overlay_pictures

hd = pytest.importorskip("highdicom", reason='DICOM output needs pip install "monai-anomaly[dicom]"')

pytest_plugins = ["bundle_fixtures"]

SHA = "0123456789abcdef" * 4
IDENTITY = DetectorIdentity("BrightVoxels", SHA, {"alpha": "0.05"})
SEG_STORAGE, SC_STORAGE = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.7"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "scan", complete(series(PIXELS)))


def mask_of(scan: torch.Tensor) -> np.ndarray:
    """Something without any symmetry."""
    mask = np.asarray(scan[0] > scan[0].median())
    mask[:, :, -1] = False
    return mask


def laid_back(segments: Dataset, scan: torch.Tensor, folder: Path) -> np.ndarray:
    """The mask (columns, rows, slices) by what the segmentation itself says of each frame."""
    planes = segments.pixel_array.reshape(-1, segments.Rows, segments.Columns)
    found = np.zeros(tuple(scan.shape[1:]), dtype=bool)
    to_voxels = np.linalg.inv(np.diag([-1.0, -1, 1, 1]) @ np.asarray(scan.affine))
    sources = {dataset.SOPInstanceUID: dataset for dataset in map(pydicom.dcmread, folder.iterdir())}
    for plane, groups in zip(planes, segments.PerFrameFunctionalGroupsSequence):
        position = [float(value) for value in groups.PlanePositionSequence[0].ImagePositionPatient]
        index = np.rint(to_voxels @ [*position, 1]).astype(int)
        assert index[:2].tolist() == [0, 0]
        found[:, :, index[2]] = plane.T
        (source,) = groups.DerivationImageSequence[0].SourceImageSequence
        named = sources[source.ReferencedSOPInstanceUID]
        if "NumberOfFrames" in named:
            frame = named.PerFrameFunctionalGroupsSequence[source.ReferencedFrameNumber - 1]
            named = frame.PlanePositionSequence[0]
        np.testing.assert_allclose([float(v) for v in named.ImagePositionPatient], position, atol=1e-5)
    return found


@pytest.mark.slow
def test_segmentation_laid_back_on_the_source_is_the_mask(folder: Path) -> None:
    scan = LoadScan()(folder)
    mask = mask_of(scan)
    made = segmentation(DicomSource(scan), mask, IDENTITY)
    made.save_as(folder.parent / "seg.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(laid_back(pydicom.dcmread(folder.parent / "seg.dcm"), scan, folder), mask)
    # and by highdicom's own geometry, in voxels of the scan
    volume = hd.seg.segread(folder.parent / "seg.dcm").get_volume(combine_segments=True)
    to_scan = np.linalg.inv(np.diag([-1.0, -1, 1, 1]) @ np.asarray(scan.affine)) @ volume.affine
    indices = np.stack(np.nonzero(volume.array), axis=0)
    there = np.rint(to_scan[:3, :3] @ indices + to_scan[:3, 3:]).astype(int)
    np.testing.assert_array_equal(np.stack(np.nonzero(mask)), there[:, np.lexsort(there[::-1])])
    (segment,) = made.SegmentSequence
    assert (segment.SegmentLabel, segment.SegmentAlgorithmType) == ("Anomaly", "AUTOMATIC")
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Lesion"
    (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
    assert algorithm.AlgorithmName == "BrightVoxels"
    assert SHA in str(algorithm.AlgorithmParameters)
    assert made.DeviceSerialNumber == SHA


def test_a_sheared_stack_is_laid_back_too(tmp_path: Path) -> None:
    """A gantry tilt: each slice is shifted within its plane."""
    slices = complete(series(PIXELS))
    for index, dataset in enumerate(slices):
        place = np.array(dataset.ImagePositionPatient, dtype=float) + 2.5 * index * AXES[:, 1]
        dataset.ImagePositionPatient = [float(value) for value in np.round(place, 6)]
    folder = write(tmp_path / "scan", slices)
    scan = LoadScan()(folder)
    mask = mask_of(scan)
    np.testing.assert_array_equal(laid_back(segmentation(DicomSource(scan), mask, IDENTITY), scan, folder), mask)


def test_an_empty_mask_keeps_the_grid(folder: Path) -> None:
    scan = LoadScan()(folder)
    made = segmentation(DicomSource(scan), np.zeros(tuple(scan.shape[1:]), bool), IDENTITY)
    assert made.NumberOfFrames == scan.shape[3]
    assert not made.pixel_array.any()


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 3, 4, 0, 2, 1]])
def test_frames_of_an_enhanced_file(tmp_path: Path, order: list[int]) -> None:
    (dataset,) = complete([enhanced(PIXELS[order], STEP * np.array(order))])
    folder = write(tmp_path / "scan", [dataset])
    scan = LoadScan()(folder)
    mask = mask_of(scan)
    source = DicomSource(scan)
    np.testing.assert_array_equal(laid_back(segmentation(source, mask, IDENTITY), scan, folder), mask)
    images = list(overlay_series(source, [np.zeros((mask.shape[1], mask.shape[0], 3), np.uint8)] * 6, IDENTITY, "x"))
    frames = [made.SourceImageSequence[0].ReferencedFrameNumber for made in images]
    assert frames == [order.index(place) + 1 for place in range(6)]


def test_one_volume_of_an_enhanced_time_series(tmp_path: Path) -> None:
    (dataset,) = complete([enhanced(np.concatenate([PIXELS[:3], PIXELS[3:]]), STEP * np.array([0, 1, 2, 0, 1, 2]))])
    for index, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        content = Dataset()
        content.TemporalPositionIndex = index // 3 + 1
        frame.FrameContentSequence = [content]
    folder = write(tmp_path / "scan", [dataset])
    scan = LoadScan(time_point=1)(folder)
    mask = mask_of(scan)
    source = DicomSource(scan, time_point=1)
    np.testing.assert_array_equal(laid_back(segmentation(source, mask, IDENTITY), scan, folder), mask)
    found = parametric_map(source, np.asarray(scan[0]), IDENTITY)
    assert found.NumberOfFrames == 3


def test_parametric_map_holds_the_map(folder: Path) -> None:
    scan = LoadScan()(folder)
    values = np.asarray(scan[0]) / 7
    made = parametric_map(DicomSource(scan), values, IDENTITY)
    places = [
        [float(value) for value in groups.PlanePositionSequence[0].ImagePositionPatient]
        for groups in made.PerFrameFunctionalGroupsSequence
    ]
    to_voxels = np.linalg.inv(np.diag([-1.0, -1, 1, 1]) @ np.asarray(scan.affine))
    found = np.zeros_like(values)
    for plane, place in zip(made.pixel_array, places):
        found[:, :, int(np.rint((to_voxels @ [*place, 1])[2]))] = plane.T
    np.testing.assert_array_equal(found, values.astype(np.float32))
    assert made.ContentQualification == "RESEARCH"
    assert "research use only" in made.SeriesDescription


@pytest.mark.slow
def test_overlay_lies_on_its_images(folder: Path) -> None:
    scan = LoadScan()(folder)
    mask = mask_of(scan)
    pictures = list(overlay_pictures(scan, np.asarray(scan[0]), mask, float(scan.max())))
    images = list(overlay_series(DicomSource(scan), pictures, IDENTITY, "painted"))
    sources = {dataset.SOPInstanceUID: dataset for dataset in map(pydicom.dcmread, folder.iterdir())}
    assert len({made.SeriesInstanceUID for made in images}) == 1
    for made, picture in zip(images, pictures):
        named = sources[made.SourceImageSequence[0].ReferencedSOPInstanceUID]
        np.testing.assert_allclose(made.ImagePositionPatient, named.ImagePositionPatient, atol=1e-5)
        np.testing.assert_array_equal(made.pixel_array, picture)
        assert (made.Rows, made.Columns) == (named.Rows, named.Columns)
        assert made.ImageType[:2] == ["DERIVED", "SECONDARY"]
        assert "Research use only, not for diagnosis" in made.DerivationDescription
        made.save_as(folder.parent / f"{made.InstanceNumber}.dcm", enforce_file_format=True)
    read = itk.array_from_image(itk.imread(str(folder.parent / "1.dcm")))
    np.testing.assert_array_equal(read.reshape(pictures[0].shape), pictures[0])


def test_painting_shows_the_scan_the_map_and_the_outline() -> None:
    from monai.data import MetaTensor

    scan = MetaTensor(torch.linspace(0, 1, 100).repeat(1, 100, 1)[..., None], meta={"scan_kind": "volume"})
    anomaly_map, mask = np.zeros((100, 100, 1)), np.zeros((100, 100, 1), bool)
    anomaly_map[60:80, 50:90] = 1.0
    mask[60:80, 50:90] = True
    (picture,) = overlay_pictures(scan, anomaly_map, mask, top=1.0)
    assert picture.shape == (100, 100, 3)
    assert picture[50, 60].tolist() == [86, 212, 255]  # row 50, column 60: the outline's corner
    assert len(set(picture[70, 30].tolist())) == 1  # gray where the map is 0
    inside = picture[70, 70].astype(int)
    assert inside[0] > inside[2] + 30  # the bright end of the colours is yellow
    assert picture[40].tolist() != picture[5].tolist()
    # the caution is written into the picture
    (plain,) = overlay_pictures(scan * 0 + scan.mean(), anomaly_map * 0, None, top=1.0)
    assert plain[:40].std() > 10 * plain[45:].std()


def tree(item: Any) -> list[Any]:
    return [item, *(deeper for child in item.get("ContentSequence", []) for deeper in tree(child))]


def test_report_states_each_lesion(folder: Path) -> None:
    scan = LoadScan()(folder)
    anomaly_map = np.zeros(tuple(scan.shape[1:]), np.float32)
    anomaly_map[1:3, 1:3, 1] = [[4, 5], [4, 4]]
    anomaly_map[-1, -1, 4] = 3
    rows = lesion_table(anomaly_map, anomaly_map > 0, np.asarray(scan.affine), lambda peak: 1 / peak)
    source = DicomSource(scan)
    segments = segmentation(source, anomaly_map > 0, IDENTITY)
    numbers = numbered_lesions(anomaly_map > 0, np.asarray(scan.affine), rows)
    report = measurement_report(source, segments, rows, numbers, 0.75, 0.125, IDENTITY)
    report.save_as(folder.parent / "report.dcm", enforce_file_format=True)
    items = tree(pydicom.dcmread(folder.parent / "report.dcm"))
    values: dict[str, list[float]] = {}
    for item in items:
        if item.get("ValueType") == "NUM":
            (value,) = item.MeasuredValueSequence
            values.setdefault(item.ConceptNameCodeSequence[0].CodeMeaning, []).append(float(value.NumericValue))
    voxel_ml = abs(np.linalg.det(np.asarray(scan.affine)[:3, :3])) / 1000
    assert values["Volume"] == pytest.approx([4 * voxel_ml, voxel_ml], rel=1e-5)
    assert values["Peak of the anomaly map"] == [5, 3]
    assert values["P-Value"] == pytest.approx([0.125, 0.2, 1 / 3])
    assert values["Anomaly score of the scan"] == [0.75]
    assert values["Number of anomalies"] == [2]
    names = [item.TextValue for item in items if item.get("ValueType") == "TEXT" and "peak at" in item.TextValue]
    x, y, z = np.diag([-1, -1, 1]) @ (np.asarray(scan.affine) @ [1, 2, 1, 1])[:3]
    signs = f"{'LR'[int(x < 0)]}{abs(x):.1f} {'PA'[int(y < 0)]}{abs(y):.1f} {'HF'[int(z < 0)]}{abs(z):.1f}"
    assert names[0] == f"Anomaly 1, peak at {signs} mm"
    groups = hd.sr.srread(folder.parent / "report.dcm").content.get_volumetric_roi_measurement_groups()
    assert groups[0].referenced_segment[0].referenced_sop_instance_uid == segments.SOPInstanceUID
    # each lesion is its own outlines, painted here by the rule of even and odd
    from skimage.draw import polygon2mask

    slices = {header.SOPInstanceUID: index for index, header in enumerate(source.headers)}
    for group, number in zip(groups[1:], (1, 2), strict=True):
        painted = np.zeros(anomaly_map.shape, bool)
        for region in group.roi:
            (reference,) = region.ContentSequence[0].ReferencedSOPSequence
            plane = polygon2mask(anomaly_map.shape[:2], region.value - 0.5)
            painted[:, :, slices[reference.ReferencedSOPInstanceUID]] |= plane
        np.testing.assert_array_equal(painted, numbers == number)


def run(path: Path, out: Path, alpha: float | None = 0.05, time_point: int | None = None) -> CohortEvaluator:
    network = BrightVoxels()
    network.calibration.fit({f"p{i}": 1e-3 * i for i in range(19)}, {f"p{i}": 0.02 * i for i in range(19)})
    preprocessing = ScanPreprocessing((32, 32), time_point=time_point)
    item = {"image": str(path), "case": "case", "patient": "p"}
    evaluator = CohortEvaluator(
        network,
        scan_loader([item], preprocessing),
        postprocessing=Compose(
            [
                ToScanVoxelsd(preprocessing),
                PValued(network),
                MaskAboveThresholdd(network, alpha),
                SaveDicomd(network, {"model_sha256": SHA}, time_point),
                SaveCased(out, 0),
            ]
        ),
        progress=False,
    )
    evaluator.run()
    evaluator.finish()
    return evaluator


@pytest.mark.slow
def test_a_case_carries_over_patient_and_study_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "out")
    written = {path: pydicom.dcmread(path) for path in sorted((tmp_path / "out" / "case" / "dicom").rglob("*.dcm"))}
    names = sorted(path.relative_to(tmp_path / "out" / "case" / "dicom").as_posix() for path in written)
    assert names == ["map.dcm", *(f"overlay/{i + 1:04d}.dcm" for i in range(6)), "report.dcm", "seg.dcm"]
    source = pydicom.dcmread(folder / "000.dcm")
    found = list(written.values())
    assert len({dataset.SOPInstanceUID for dataset in found}) == len(found)
    assert len({dataset.SeriesInstanceUID for dataset in found}) == 4
    assert len({dataset.SeriesNumber for dataset in found}) == 4
    for dataset in found:
        for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate"):
            assert dataset[keyword].value == source[keyword].value
        assert dataset.AccessionNumber == source.AccessionNumber
        assert dataset.SeriesInstanceUID != source.SeriesInstanceUID
        text = str(dataset)
        for private in ("Hospital", "MR3", "Smith", "Scanner Works"):
            assert private not in text
        assert "research use only" in dataset.SeriesDescription.lower()


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    caplog.clear()
    assert not any("\n" in line for line in found)
    return [line for line in found if "DICOM" in line]


@pytest.mark.slow
def test_what_cannot_be_written_is_told_in_one_line(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = tmp_path / "out" / "case"
    run(write_nifti(tmp_path / "scan.nii.gz", 2), tmp_path / "out")
    (line,) = warned(caplog)
    assert "no DICOM results" in line
    assert (case / "anomaly_mask.nii.gz").is_file()
    assert not (case / "dicom").exists()

    run(folder, tmp_path / "out", alpha=None)
    (line,) = warned(caplog)
    assert "no DICOM segmentation and report: alpha is None" in line
    assert sorted(path.name for path in (case / "dicom").iterdir()) == ["map.dcm", "overlay"]

    plain = write(tmp_path / "plain", series(PIXELS))
    run(plain, tmp_path / "out")
    (line,) = warned(caplog)
    assert "has no StudyInstanceUID" in line
    assert (case / "anomaly_map.nii.gz").is_file()

    # what highdicom itself does not take
    odd = complete(series(PIXELS), StudyTime="10:11")
    run(write(tmp_path / "odd", odd), tmp_path / "out")
    lines = warned(caplog)
    assert len(lines) == 3
    assert all("StudyTime" in line or "10:11" in line for line in lines)
    assert (case / "anomaly_map.nii.gz").is_file()

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"monai-anomaly\[dicom\]"):
        SaveDicomd(BrightVoxels(), {"model_sha256": SHA})


def test_a_mosaic_has_an_overlay_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(write(tmp_path / "scan", complete([mosaic(6, 3)])), tmp_path / "out")
    lines = warned(caplog)
    assert len(lines) == 2
    assert all("is a mosaic" in line for line in lines)
    assert [path.name for path in (tmp_path / "out" / "case" / "dicom").iterdir()] == ["overlay"]


def test_images_without_a_place(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A projection image: segmentation, report and overlay, but no parametric map."""
    (dataset,) = complete([image(PIXELS[0], PixelSpacing=[1.0, 1.0], Modality="CR", ImageType="")])
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    del dataset.FrameOfReferenceUID
    run(write(tmp_path / "scan", [dataset]), tmp_path / "out")
    (line,) = warned(caplog)
    assert "no DICOM parametric map" in line
    case = tmp_path / "out" / "case" / "dicom"
    assert sorted(path.name for path in case.iterdir()) == ["overlay", "report.dcm", "seg.dcm"]


def all_written(scan: torch.Tensor, time_point: int | None, out: Path) -> tuple[np.ndarray, list[Path]]:
    """All objects of a scan whose map is the scan itself."""
    source, anomaly_map = DicomSource(scan, time_point), np.asarray(scan[0]) / float(scan.max())
    mask = anomaly_map > 0.6
    segments = segmentation(source, mask, IDENTITY)
    rows = lesion_table(anomaly_map, mask, np.asarray(scan.affine), lambda peak: 0.05)
    pictures = overlay_pictures(scan, anomaly_map, mask, 1.0)
    found = {
        "seg": segments,
        "map": parametric_map(source, anomaly_map, IDENTITY),
        "report": measurement_report(
            source, segments, rows, numbered_lesions(mask, np.asarray(scan.affine), rows), 1.0, 0.05, IDENTITY
        ),
        "overlay": list(overlay_series(source, pictures, IDENTITY, "painted"))[len(source.slices) // 2],
    }
    out.mkdir(exist_ok=True)
    for name, dataset in found.items():
        dataset.save_as(out / f"{name}.dcm", enforce_file_format=True)
    return mask, [out / f"{name}.dcm" for name in found]


def errors(path: Path) -> list[str]:
    """What David Clunie's dciodvfy finds wrong with a file."""
    tool = shutil.which("dciodvfy")
    if tool is None:
        pytest.skip("dciodvfy (Debian's dicom3tools) is not installed")
    done = subprocess.run([tool, "-new", str(path)], capture_output=True, text=True, errors="replace", check=False)
    text = done.stdout + done.stderr
    assert text.strip(), "the validator said nothing at all"
    return [line for line in text.splitlines() if line.startswith("Error")]


def same_voxels(seg: Path, scan: torch.Tensor, mask: np.ndarray) -> None:
    """dcmqi's segimage2itkimage gives the mask back on the voxels of the scan."""
    tool = shutil.which("segimage2itkimage", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if tool is None:
        pytest.skip("segimage2itkimage (pip install dcmqi) is not installed")
    out = seg.parent / "itk"
    out.mkdir()
    arguments = [tool, "--inputDICOM", str(seg), "--outputDirectory", str(out), "--outputType", "nii"]
    subprocess.run(arguments, capture_output=True, check=True)
    import nibabel

    image = nibabel.load(out / "1.nii.gz")
    to_scan = np.linalg.inv(np.asarray(scan.affine)) @ image.affine
    np.testing.assert_allclose(np.abs(to_scan[:3, :3]), np.eye(3), atol=1e-3)
    there = np.rint(to_scan[:3, :3] @ np.stack(np.nonzero(np.asarray(image.dataobj))) + to_scan[:3, 3:]).astype(int)
    np.testing.assert_array_equal(np.stack(np.nonzero(mask)), there[:, np.lexsort(there[::-1])])
    assert image.shape == tuple(mask.shape)


def test_the_validator_finds_no_error(folder: Path, tmp_path: Path) -> None:
    _, paths = all_written(LoadScan()(folder), None, tmp_path / "out")
    assert {path.name: errors(path) for path in paths} == {path.name: [] for path in paths}


@pytest.mark.slow
def test_dcmqi_gives_the_voxels_back(folder: Path, tmp_path: Path) -> None:
    scan = LoadScan()(folder)
    mask, paths = all_written(scan, None, tmp_path / "out")
    same_voxels(paths[0], scan, mask)


REAL = (("glioma_flair_oblique", None), ("sag_gre_5slice", None), ("t1_sagittal_hfs", None), ("nih_ge_epi_4d", 4))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "time_point"), REAL)
def test_real_series(real_data: Path, tmp_path: Path, name: str, time_point: int | None) -> None:
    folder = real_data / "dicom" / name / "dicom"
    scan = LoadScan(time_point)(folder)
    mask, paths = all_written(scan, time_point, tmp_path / "out")
    np.testing.assert_array_equal(laid_back(pydicom.dcmread(paths[0]), scan, folder), mask)
    assert {path.name: errors(path) for path in paths} == {path.name: [] for path in paths}
    same_voxels(paths[0], scan, mask)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "dicomdirtests/98892001/CT5N"])
def test_series_of_pydicom(tmp_path: Path, name: str) -> None:
    path = Path(pydicom.__file__).parent / "data" / "test_files" / name
    scan = LoadScan()(path)
    mask, paths = all_written(scan, None, tmp_path / "out")
    assert {path.name: errors(path) for path in paths} == {path.name: [] for path in paths}
    same_voxels(paths[0], scan, mask)


@pytest.mark.slow
def test_the_bundle_writes_them_where_asked_for(trained: Path, folder: Path, tmp_path: Path) -> None:
    detect(trained, tmp_path / "out", folder, dicom=True)
    assert (tmp_path / "out" / "scan" / "dicom" / "seg.dcm").is_file()
    detect(trained, tmp_path / "out", folder)
    assert not (tmp_path / "out" / "scan" / "dicom").exists()
