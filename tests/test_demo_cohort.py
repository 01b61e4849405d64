"""The demonstration cohort: reproducible, well-formed, and with lesions that one threshold does not find."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("nilearn", reason="the demonstration cohort needs nilearn")

from monai_anomaly.data import demo_brain, make_demo_cohort
from monai_anomaly.exceptions import InputError

COUNTS = {"num_training": 2, "num_calibration": 1, "num_normal_test": 2, "num_abnormal_test": 6}


def make(folder: Path, **changes: Any) -> Path:
    return make_demo_cohort(folder, **({"seed": 3, "num_workers": 1, "progress": False} | COUNTS | changes))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    path = make(tmp_path_factory.mktemp("cohort"))
    return path.parent, json.loads(path.read_text())


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    from monai.transforms import LoadImage

    image = LoadImage(reader="PydicomReader" if path.is_dir() else "NibabelReader")(path)
    return np.asarray(image), np.asarray(image.affine)


def brain_of(image: np.ndarray) -> np.ndarray:
    """The brain, found without the simulation: what brain extraction left, holes of each slice filled."""
    from scipy.ndimage import binary_fill_holes

    return np.stack([binary_fill_holes(image[:, :, k] > 0) for k in range(image.shape[2])], axis=-1)


def abnormal(datalist: dict[str, Any]) -> list[dict[str, Any]]:
    return [item for item in datalist["test"] if item["label"] == 1]


@pytest.mark.slow
def test_datalist(cohort: tuple[Path, dict[str, Any]]) -> None:
    from monai.data import load_decathlon_datalist

    folder, datalist = cohort
    assert {k: len(datalist[k]) for k in ("training", "calibration", "test")} == {
        "training": 2,
        "calibration": 1,
        "test": 8,
    }
    patients = [item["patient"] for k in ("training", "calibration", "test") for item in datalist[k]]
    assert len(set(patients)) == len(patients) == 11
    assert all(item["label"] == 0 for k in ("training", "calibration") for item in datalist[k])
    assert sum(item["label"] for item in datalist["test"]) == 6
    assert all(("mask" in item) == (item["label"] == 1) for item in datalist["test"])
    assert set(datalist["lesions"]) == {item["patient"] for item in abnormal(datalist)}
    assert {lesions[0]["kind"] for lesions in datalist["lesions"].values()} == set(demo_brain.KINDS)
    assert not list(folder.rglob("*.partial")), "unfinished files are left"
    assert sum((folder / item["image"]).is_dir() for item in datalist["test"] + datalist["training"]) == 4

    loaded = load_decathlon_datalist(folder / "cohort.json", is_segmentation=False, data_list_key="test")
    assert all(Path(item["image"]).exists() for item in loaded)


@pytest.mark.slow
def test_same_seed_same_bytes_whatever_the_workers(cohort: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, datalist = cohort
    # A smaller cohort, made by two processes, is a part of the larger one.
    other = json.loads(make(tmp_path, num_workers=2, num_normal_test=1, num_abnormal_test=2).read_text())
    files = [p for p in tmp_path.rglob("*") if p.is_file() and p.name != "cohort.json"]
    assert len(files) == 4 + 2 + 2 * demo_brain.SHAPE[2]
    for path in files:
        assert path.read_bytes() == (folder / path.relative_to(tmp_path)).read_bytes(), path
    assert other["training"] == datalist["training"]


@pytest.mark.slow
def test_other_seed_other_voxels(cohort: tuple[Path, dict[str, Any]]) -> None:
    folder, datalist = cohort
    first = read(folder / datalist["training"][0]["image"])[0]
    second = demo_brain.simulate(4, "training", 0).image
    assert (first != second)[(first > 0) | (second > 0)].mean() > 0.9
    assert (demo_brain.simulate(3, "training", 0).image == first).all()


@pytest.mark.slow
def test_geometry_and_masks(cohort: tuple[Path, dict[str, Any]]) -> None:
    import nibabel as nib

    folder, datalist = cohort
    affines = []
    for item in datalist["training"] + datalist["calibration"] + datalist["test"]:
        image, affine = read(folder / item["image"])
        assert image.shape == demo_brain.SHAPE
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        assert 1.9 < spacing[0] < 2.2
        np.testing.assert_allclose(spacing[0], spacing[1], rtol=1e-4)
        assert 5 < spacing[2] < 6.1
        cosines = affine[:3, :3] / spacing
        np.testing.assert_allclose(cosines.T @ cosines, np.eye(3), atol=1e-5)
        angles = np.degrees(np.arccos(np.abs(np.diag(cosines))))
        assert (angles > 1).all(), "every axis is oblique"
        assert (angles < 15).all(), "still near the scanner's axes"
        affines.append(affine)
        if item["image"].endswith(".gz"):
            header = nib.load(folder / item["image"])
            assert header.get_data_dtype() == np.int16
            assert header.header["qform_code"] > 0
            assert header.header["sform_code"] > 0
            np.testing.assert_allclose(header.get_qform(), header.get_sform(), atol=1e-3)
        if item["label"]:
            mask_file = nib.load(folder / item["mask"])
            mask = np.asarray(mask_file.dataobj)
            assert mask.dtype == np.uint8
            assert set(np.unique(mask)) == {0, 1}
            # The corners of the scan are at the same place of the world, to a hundredth of a millimetre.
            corners = np.array([[i, j, k, 1] for i in (0, 95) for j in (0, 111) for k in (0, 23)]).T
            np.testing.assert_allclose(mask_file.affine @ corners, affine @ corners, atol=1e-2)
            assert not (mask.astype(bool) & ~brain_of(image)).any(), "a lesion outside the brain"
    assert len({tuple(a.ravel().round(4)) for a in affines}) == len(affines)


@pytest.mark.slow
def test_series_hold_the_scan(cohort: tuple[Path, dict[str, Any]]) -> None:
    import pydicom

    folder, datalist = cohort
    series = [item for item in abnormal(datalist) if (folder / item["image"]).is_dir()]
    assert len(series) == 2
    for item in series:
        scan = demo_brain.simulate(3, "abnormal_test", int(item["patient"][-3:]))
        slices = [pydicom.dcmread(p) for p in (folder / item["image"]).iterdir()]
        normal = np.cross(slices[0].ImageOrientationPatient[:3], slices[0].ImageOrientationPatient[3:])
        slices.sort(key=lambda ds: float(np.dot(normal, ds.ImagePositionPatient)))
        assert [ds.InstanceNumber for ds in slices] == list(range(1, 25))
        stacked = np.stack([ds.pixel_array.T for ds in slices], axis=-1)
        np.testing.assert_array_equal(stacked, scan.image)

        voxels, affine = read(folder / item["image"])
        np.testing.assert_array_equal(voxels, scan.image)
        np.testing.assert_allclose(affine, scan.affine, atol=1e-5)
        # Where a voxel (column, row, slice) lies by the standard (PS3.3 C.7.6.2.1.1), against the mask's affine.
        column, row, k = 17, 81, 5
        ds = slices[k]
        spacing, cosines = ds.PixelSpacing, np.array(ds.ImageOrientationPatient, float)
        lps = (
            np.array(ds.ImagePositionPatient, float)
            + cosines[:3] * spacing[1] * column
            + cosines[3:] * spacing[0] * row
        )
        np.testing.assert_allclose(scan.affine[:3] @ [column, row, k, 1], lps * [-1, -1, 1], atol=1e-5)

        assert {ds.PatientID for ds in slices} == {item["patient"]}
        assert len({ds.SOPInstanceUID for ds in slices}) == 24
        assert len({ds.SeriesInstanceUID for ds in slices}) == 1
        assert all(ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID for ds in slices)
        assert all(uid.is_valid for ds in slices for uid in (ds.StudyInstanceUID, ds.SOPInstanceUID))


@pytest.mark.slow
def test_lesions_differ_from_their_surroundings_but_not_by_one_threshold(
    cohort: tuple[Path, dict[str, Any]],
) -> None:
    from scipy.ndimage import binary_dilation, distance_transform_edt, label

    folder, datalist = cohort
    within, outside, contrast = 0, 0, []
    for item in abnormal(datalist):
        image, affine = read(folder / item["image"])
        mask = read(folder / item["mask"])[0] > 0
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        deep = distance_transform_edt(brain_of(image), sampling=spacing) > 8  # mm below the brain's surface
        low, high = np.percentile(image[deep & ~mask], [5, 95])
        parts, number = label(mask, structure=np.ones((3, 3, 3)))
        assert number >= 1
        for part in range(1, number + 1):
            lesion = parts == part
            if lesion.sum() < 10:
                continue
            mean = image[lesion].mean()
            inside = low < mean < high
            within, outside = within + inside, outside + (not inside)
            ring = binary_dilation(lesion, iterations=2) & ~binary_dilation(mask) & deep
            contrast.append(abs(mean - image[ring].mean()) / image[ring].mean())
    assert within >= 3, "lesions inside the normal range of intensities"
    assert within + outside >= 6
    assert np.median(contrast) > 0.1, "lesions differ from their surroundings"


@pytest.mark.slow
def test_brain_is_cut_out_and_noisy(cohort: tuple[Path, dict[str, Any]]) -> None:
    from scipy.ndimage import binary_erosion, gaussian_filter

    folder, datalist = cohort
    image, _ = read(folder / datalist["training"][0]["image"])
    brain = brain_of(image)
    assert 0.2 < brain.mean() < 0.6
    assert not image[[0, -1]].any()
    assert not image[:, [0, -1]].any()
    # Fine noise of 2 to 3.5 % of white matter, seen against the image smoothed over a pixel.
    deep = binary_erosion(brain, iterations=6)
    fine = (image - gaussian_filter(image.astype(float), (1, 1, 0)))[deep].std() / np.percentile(image[deep], 90)
    assert 0.01 < fine < 0.08


@settings(max_examples=8, deadline=None)
@given(radius=st.floats(7, 16), part=st.floats(0, 0.5), axis=st.integers(0, 2))
def test_mass_effect_keeps_the_order_of_tissues(radius: float, part: float, axis: int) -> None:
    spacing = (2.0, 2.0, 5.5)
    grid = demo_brain._Grid(spacing)
    center = (40, 45, 10)
    warp = [np.zeros((*demo_brain.SHAPE[:2], demo_brain.SHAPE[2] * demo_brain.SUBSLICES), np.float32) for _ in range(3)]
    to_template = np.diag([*spacing, 1.0])
    demo_brain._displace(warp, [demo_brain._Lesion("dark", center, radius, part * radius)], grid, spacing, to_template)
    line = [40, 45, 31]  # the middle sample of slice 10
    line[axis] = slice(None)  # type: ignore[call-overload]
    source = grid.axes[axis] + warp[axis][tuple(line)]
    assert (np.diff(source) >= -1e-3).all()
    assert np.abs(warp[axis][tuple(line)]).max() <= part * radius + 1e-3


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(15, 90))
def test_fields_are_smooth(seed: int, scale: float) -> None:
    field = demo_brain._Grid((2.0, 2.0, 5.5)).field(np.random.default_rng(seed), scale)
    assert field.shape == (*demo_brain.SHAPE[:2], demo_brain.SHAPE[2] * demo_brain.SUBSLICES)
    assert np.isfinite(field).all()
    assert np.abs(field).max() < 7  # unit variance
    assert np.abs(np.diff(field, axis=0)).max() < 7 * 2.0 * 2 / scale  # no faster than its lattice allows


@pytest.mark.slow
def test_made_once(cohort: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = cohort
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert make(folder) == folder / "cohort.json"
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before
    with pytest.raises(InputError, match="other parameters"):
        make(folder, seed=4)


@pytest.mark.slow
def test_a_lost_file_is_made_again(tmp_path: Path) -> None:
    few = dict.fromkeys(COUNTS, 0) | {"num_calibration": 1}
    make(tmp_path, **few)
    lost = tmp_path / "images" / "DEMO-C000.nii.gz"
    lost.unlink()
    make(tmp_path, **few)
    assert lost.exists()
    (tmp_path / "cohort.json").write_text("[]")
    with pytest.raises(InputError, match="not a demonstration cohort"):
        make(tmp_path, **few)


@pytest.mark.parametrize("bad", [{"seed": -1}, {"num_workers": 0}, {"num_training": -1}])
def test_bad_numbers(bad: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=next(iter(bad))):
        make(tmp_path / "new", **bad)
    assert not (tmp_path / "new").exists()


def test_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nilearn", None)
    with pytest.raises(ImportError, match=r"monai-anomaly\[demo\]"):
        demo_brain.load_anatomy.__wrapped__()
