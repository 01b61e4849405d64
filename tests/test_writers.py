"""The writers: results on the source's own grid, whole or not at all."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from nibabel.affines import from_matvec
from PIL import Image

from monai_anomaly.exceptions import InputError
from monai_anomaly.io.atomic import atomic_folder, atomic_path, clear_aside, ensure_writable
from monai_anomaly.io.case import own_files, write_case
from monai_anomaly.io.load import nifti_header
from monai_anomaly.io.tables import write_csv, write_json
from monai_anomaly.report.overview import ScanView, _worst_slices, draw_overview
from monai_anomaly.report.plots import draw_loss_curves


def as_scan(array: np.ndarray, affine: np.ndarray, **meta: Any) -> MetaTensor:
    """What a loader gives: (C, X, Y, Z) float32 with an affine and the source's facts."""
    tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    return MetaTensor(tensor, affine=torch.from_numpy(np.asarray(affine, dtype=np.float64)), meta=meta)


def load_nifti(path: Path) -> MetaTensor:
    image = nibabel.load(path)
    voxels = np.asarray(image.dataobj, dtype=np.float32).reshape((*image.shape, 1, 1)[:3])
    meta = {"source": [str(path)], "source_format": "nifti", "nifti_header": nifti_header(image)}
    return as_scan(voxels[None], image.affine, scan_kind="volume", **meta)


def write_results(folder: Path, scan: MetaTensor, masked: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    scores = rng.random(scan.shape[1:], dtype=np.float32)
    restoration = rng.standard_normal(scan.shape, dtype=np.float32)
    mask = scores > 0.5
    write_case(
        folder,
        scan,
        anomaly_map=scores,
        restoration=restoration,
        anomaly_mask=mask if masked else None,
        mask_description="score > 0.5",
    )
    return scores, restoration, mask


# ---- files and folders -------------------------------------------------------------------------------------------


def stop_after(path: Path, error: BaseException) -> None:
    """A writer that fails half-way."""
    path.write_text("half")
    raise error


def test_atomic_path_keeps_the_suffix_and_replaces(tmp_path: Path) -> None:
    target = tmp_path / "new" / "map.nii.gz"
    for text in ("one", "two"):
        with atomic_path(target) as temporary:
            assert temporary.parent == target.parent
            assert temporary.name.endswith(".nii.gz")
            temporary.write_text(text)
        assert target.read_text() == text
    assert os.listdir(target.parent) == ["map.nii.gz"]


def test_atomic_path_leaves_the_old_file_on_failure(tmp_path: Path) -> None:
    target = tmp_path / "table.csv"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_path(target) as temporary:
        stop_after(temporary, KeyboardInterrupt())
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["table.csv"]
    with pytest.raises(FileNotFoundError), atomic_path(target):
        pass  # nothing was written
    assert target.read_text() == "old"


def test_atomic_folder_replaces_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "case"
    for name in ("first", "second"):
        with atomic_folder(target) as temporary:
            assert temporary.name.startswith(".")
            (temporary / "deep").mkdir()
            (temporary / "deep" / name).write_text(name)
        assert [path.name for path in target.rglob("*") if path.is_file()] == [name]
    with pytest.raises(RuntimeError, match="stop"), atomic_folder(target) as temporary:
        stop_after(temporary / "third", RuntimeError("stop"))
    assert [path.name for path in target.rglob("*") if path.is_file()] == ["second"]
    assert os.listdir(tmp_path) == ["case"]


def test_atomic_folder_restores_the_old_one_when_the_last_rename_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "case"
    target.mkdir()
    (target / "old").write_text("old")
    rename = os.replace

    def failing(source: Path, destination: Path) -> None:
        if str(source).endswith(".new"):
            raise OSError("no space")
        rename(source, destination)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="no space"), atomic_folder(target) as temporary:
        (temporary / "new").write_text("new")
    assert os.listdir(tmp_path) == ["case"]
    assert os.listdir(target) == ["old"]


def test_unusable_places_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("here")
    with pytest.raises(InputError, match="cannot be written to") as caught:
        ensure_writable(file / "below")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="is a file"), atomic_folder(file):
        pass
    with pytest.raises(InputError, match="is a folder"), atomic_path(tmp_path):
        pass
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="permission bits do not stop root")
def test_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(InputError, match="cannot be written to"):
            ensure_writable(tmp_path)
    finally:
        tmp_path.chmod(0o700)


# ---- tables ------------------------------------------------------------------------------------------------------


def test_csv_gives_the_same_numbers_back(tmp_path: Path) -> None:
    rows = [
        {"case": 'a,"b"', "score": 0.1 + 0.2, "label": None},
        {"case": "ü", "score": np.float64(1e-17), "label": np.int64(1)},
        {"case": "c", "score": np.float32(0.1), "label": True},
    ]
    write_csv(tmp_path / "t.csv", rows, ["case", "score", "label"])
    text = (tmp_path / "t.csv").read_bytes().decode("utf-8")
    assert text == (
        'case,score,label\n"a,""b""",0.30000000000000004,\nü,1e-17,1\n' + f"c,{float(np.float32(0.1))!r},True\n"
    )
    with pytest.raises(ValueError, match="row 1"):
        write_csv(tmp_path / "t.csv", [rows[0], {"case": "x"}], ["case", "score", "label"])
    assert (tmp_path / "t.csv").read_bytes().decode("utf-8") == text


def test_json_is_stable_and_refuses_nan(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write_json(path, {"b": np.float32(0.5), "a": [np.int64(3), None, "ü"]})
    first = path.read_bytes()
    assert json.loads(first) == {"a": [3, None, "ü"], "b": 0.5}
    write_json(path, {"a": [3, None, "ü"], "b": 0.5})
    assert path.read_bytes() == first
    for bad in (math.nan, math.inf, np.float32("nan")):
        with pytest.raises(ValueError, match="JSON"):
            write_json(path, {"auroc": bad})
    with pytest.raises(TypeError, match="cannot be written as JSON"):
        write_json(path, {"array": np.zeros(2)})
    assert path.read_bytes() == first
    assert os.listdir(tmp_path) == ["r.json"]


# ---- volumes -----------------------------------------------------------------------------------------------------


def rotation(angles: tuple[float, float, float]) -> np.ndarray:
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        turn = np.eye(3)
        first, second = (axis + 1) % 3, (axis + 2) % 3
        turn[[first, first, second, second], [first, second, first, second]] = (
            math.cos(angle),
            -math.sin(angle),
            math.sin(angle),
            math.cos(angle),
        )
        matrix = turn @ matrix
    return matrix


@st.composite
def affines(draw: st.DrawFn, sheared: bool = False) -> np.ndarray:
    """Oblique, anisotropic, flipped, axes in any order, far from the origin."""
    angle = st.floats(-math.pi, math.pi)
    matrix = rotation((draw(angle), draw(angle), draw(angle)))
    matrix = matrix[:, list(draw(st.permutations(range(3))))]
    size = st.floats(0.2, 8.0)
    matrix = matrix * np.array([draw(size) * draw(st.sampled_from([-1, 1])) for _ in range(3)])
    if sheared:
        matrix = matrix @ (np.eye(3) + np.triu(np.full((3, 3), draw(st.floats(-0.3, 0.3))), 1))
    shift = st.floats(-500, 500)
    return from_matvec(matrix, [draw(shift), draw(shift), draw(shift)])


GEOMETRY_FIELDS = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z", "xyzt_units", "dim_info"),
)


@given(
    data=st.data(),
    version=st.sampled_from([nibabel.Nifti1Image, nibabel.Nifti2Image]),
    forms=st.sampled_from(["sform", "qform", "both", "neither"]),
    codes=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    shape=st.sampled_from([(4, 3, 2), (4, 3, 1), (4, 3), (3, 2, 4, 1), (3, 2, 4, 1, 1)]),
    suffix=st.sampled_from([".nii", ".nii.gz"]),
)
@pytest.mark.slow
@settings(max_examples=40, deadline=None)
def test_nifti_geometry_is_the_source_s_own(
    data: st.DataObject, version: type, forms: str, codes: tuple[int, int], shape: tuple[int, ...], suffix: str
) -> None:
    image = version(np.arange(math.prod(shape), dtype=np.int16).reshape(shape), np.eye(4))
    header = image.header
    header.set_sform(data.draw(affines(sheared=True)) if forms in ("sform", "both") else None, 0)
    header.set_qform(data.draw(affines()) if forms in ("qform", "both") else None, 0)
    header["sform_code"] = codes[0] if forms in ("sform", "both") else 0
    header["qform_code"] = codes[1] if forms in ("qform", "both") else 0
    header.set_xyzt_units(data.draw(st.sampled_from(["unknown", "mm", "micron"])), "sec")
    header.set_slope_inter(2.0, -7.0)
    for field in {"descrip", "db_name", "aux_file"} & set(header):
        header[field] = b"patient name"
    header.set_intent("t test", (2.0,), name="stat")
    header["cal_max"] = 1000
    header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"patient name"))
    image = version(image.dataobj, None, header)
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / f"scan{suffix}"
        image.to_filename(source)
        original = nibabel.load(source)
        scores, restoration, mask = write_results(Path(name) / "case", load_nifti(source))
        for file, expected, dtype in (
            ("anomaly_map.nii.gz", scores, np.float32),
            ("restoration.nii.gz", restoration[0], np.float32),
            ("anomaly_mask.nii.gz", mask, np.uint8),
        ):
            written = nibabel.load(Path(name) / "case" / file)
            assert type(written) is version
            assert written.shape == shape
            np.testing.assert_array_equal(written.affine, original.affine)
            np.testing.assert_array_equal(written.get_qform(), original.get_qform())
            for field in GEOMETRY_FIELDS:
                assert written.header[field].tobytes() == original.header[field].tobytes(), field
            ndim = len(shape)
            assert written.header["pixdim"][: ndim + 1].tobytes() == original.header["pixdim"][: ndim + 1].tobytes()
            assert written.get_data_dtype() == dtype
            np.testing.assert_array_equal(np.asanyarray(written.dataobj).reshape(expected.shape), expected)
            assert written.dataobj.slope == 1
            assert written.dataobj.inter == 0
            assert written.header.get_intent() == ("none", (), "")
            assert written.header["cal_max"] == pytest.approx(float(expected.max()))
            assert not written.header.extensions
            assert b"patient" not in written.header.binaryblock
        assert bytes(written.header["descrip"]).rstrip(b"\0") == b"score > 0.5"


def test_several_channels_and_one_time_point(tmp_path: Path) -> None:
    affine = from_matvec(np.diag([-1.0, 2.0, 3.0]), [4, 5, 6])
    nibabel.Nifti1Image(np.zeros((4, 3, 2, 5), np.float32), affine).to_filename(tmp_path / "a.nii.gz")
    scan = as_scan(
        np.zeros((2, 4, 3, 2)),
        affine,
        scan_kind="volume",
        source=[str(tmp_path / "a.nii.gz")] * 2,
        source_format="nifti",
    )
    _, restoration, _ = write_results(tmp_path / "case", scan)
    restored = nibabel.load(tmp_path / "case" / "restoration.nii.gz")
    np.testing.assert_array_equal(restored.get_fdata(), np.moveaxis(restoration, 0, -1))
    assert nibabel.load(tmp_path / "case" / "anomaly_map.nii.gz").shape == (4, 3, 2)
    np.testing.assert_array_equal(restored.affine, affine)


@given(affine=affines())
@settings(max_examples=20, deadline=None)
def test_dicom_volumes_carry_the_affine_twice(affine: np.ndarray) -> None:
    scan = as_scan(np.zeros((1, 3, 4, 2)), affine, scan_kind="volume", source=["gone/1.dcm"], source_format="dicom")
    with tempfile.TemporaryDirectory() as name:
        write_results(Path(name) / "case", scan)
        written = nibabel.load(Path(name) / "case" / "anomaly_map.nii.gz")
    # the sform places the voxels; nibabel's quaternion of float32 rounds turns of some 1e-4 away
    for (form, code), tolerance in ((written.get_sform(coded=True), 1e-4), (written.get_qform(coded=True), 5e-3)):
        np.testing.assert_allclose(form, affine, rtol=0, atol=tolerance)
        assert code == 1
    assert written.header.get_xyzt_units()[0] == "mm"


def test_an_earlier_mask_does_not_survive(tmp_path: Path) -> None:
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    scan = as_scan(np.zeros((1, 3, 4, 2)), affine, scan_kind="volume", source=["1.dcm"], source_format="dicom")
    write_results(tmp_path / "case", scan)
    assert (tmp_path / "case" / "anomaly_mask.nii.gz").is_file()
    write_results(tmp_path / "case", scan, masked=False)
    assert sorted(os.listdir(tmp_path / "case")) == ["anomaly_map.nii.gz", "case.json", "restoration.nii.gz"]
    assert os.listdir(tmp_path) == ["case"]


@pytest.mark.parametrize("record", [True, False], ids=["with record", "of an older version"])
def test_what_others_put_into_a_case_stays(tmp_path: Path, record: bool) -> None:
    scan = as_scan(np.zeros((1, 3, 4, 2)), np.eye(4), scan_kind="volume", source=["1.dcm"], source_format="dicom")
    case = tmp_path / "case"
    write_results(case, scan)
    if not record:
        (case / "case.json").unlink()
    (case / "corrected.seg.nrrd").write_text("an afternoon's work")
    (case / "notes" / "deep").mkdir(parents=True)
    (case / "notes" / "deep" / "a.txt").write_text("see slice 3")
    (case / "link").symlink_to("nowhere")
    for masked in (False, True):
        write_results(case, scan, masked=masked)
        assert (case / "corrected.seg.nrrd").read_text() == "an afternoon's work"
        assert (case / "notes" / "deep" / "a.txt").read_text() == "see slice 3"
        assert (case / "link").is_symlink()
        assert (case / "anomaly_mask.nii.gz").exists() == masked
    write_results(case, scan, masked=False)
    (case / "anomaly_mask.nii.gz").write_text("drawn by hand")
    with pytest.raises(InputError, match=r"anomaly_mask\.nii\.gz: was not written by this package"):
        write_results(case, scan)
    assert (case / "anomaly_mask.nii.gz").read_text() == "drawn by hand"
    assert os.listdir(tmp_path) == ["case"]


@pytest.mark.parametrize("after", ["first", "second", "a second run"])
def test_a_kill_while_a_case_is_replaced_is_undone(tmp_path: Path, after: str) -> None:
    scan = as_scan(np.zeros((1, 3, 4, 2)), np.eye(4), scan_kind="volume", source=["1.dcm"], source_format="dicom")
    write_results(tmp_path / "case", scan, masked=False)
    (tmp_path / "case" / "notes.txt").write_text("see slice 3")
    program = f"""
import os, signal
from pathlib import Path
from monai_anomaly.io.atomic import atomic_folder
from monai_anomaly.io.case import own_files
rename, done = os.replace, []
def killed(source, target):
    rename(source, target)
    done.append(target)
    if len(done) == {1 if after != "second" else 2}:
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = killed
with atomic_folder({str(tmp_path / "case")!r}, own_files) as temporary:
    (temporary / "anomaly_map.nii.gz").write_text("new")
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == -signal.SIGKILL
    (tmp_path / f".{'0' * 32}.csv").write_text("half a table")
    if after == "a second run":
        write_results(tmp_path / "case", scan, masked=False)
    clear_aside(tmp_path, own_files)
    assert os.listdir(tmp_path) == ["case"]
    assert (tmp_path / "case" / "notes.txt").read_text() == "see slice 3"
    assert ((tmp_path / "case" / "anomaly_map.nii.gz").read_bytes() == b"new") == (after == "second")


def test_misfits_are_refused_and_write_nothing(tmp_path: Path) -> None:
    nibabel.Nifti1Image(np.zeros((4, 3, 2), np.float32), np.eye(4)).to_filename(tmp_path / "a.nii")
    scan = load_nifti(tmp_path / "a.nii")
    good: dict[str, Any] = {
        "anomaly_map": np.zeros((4, 3, 2)),
        "restoration": np.zeros((1, 4, 3, 2)),
        "anomaly_mask": None,
    }
    for key, bad in (("anomaly_map", (3, 4, 2)), ("restoration", (4, 3, 2)), ("anomaly_mask", (4, 3))):
        with pytest.raises(ValueError, match=f"{key} has the shape"):
            write_case(tmp_path / "case", scan, **{**good, key: np.zeros(bad)})
    with pytest.raises(ValueError, match="longer than 79"):
        write_case(tmp_path / "case", scan, **good, mask_description="x" * 80)
    # what was read says where it lies: the file itself is needed no more
    (tmp_path / "a.nii").unlink()
    write_case(tmp_path / "case", scan, **good)
    assert nibabel.load(tmp_path / "case" / "anomaly_map.nii.gz").shape == (4, 3, 2)


@pytest.mark.slow
def test_real_volumes_keep_their_geometry(real_data: Path, tmp_path: Path) -> None:
    import itk

    for source in (
        real_data / "nifti3d" / "lesion" / "openms_patient19",
        real_data / "nifti3d" / "hippocampus_msd" / "images",
    ):
        path = sorted(source.glob("*.nii.gz"))[0]
        scan, original = load_nifti(path), nibabel.load(path)
        write_case(
            tmp_path / "case",
            scan,
            anomaly_map=np.asarray(scan)[0],
            restoration=np.asarray(scan),
            anomaly_mask=None,
        )
        written = nibabel.load(tmp_path / "case" / "anomaly_map.nii.gz")
        np.testing.assert_array_equal(written.affine, original.affine)
        np.testing.assert_array_equal(np.asanyarray(written.dataobj), np.asarray(scan)[0])
        # and as another library understands it
        theirs, ours = (itk.imread(str(p), itk.F) for p in (path, tmp_path / "case" / "anomaly_map.nii.gz"))
        assert tuple(theirs.GetOrigin()) == tuple(ours.GetOrigin())
        assert tuple(theirs.GetSpacing()) == tuple(ours.GetSpacing())
        assert theirs.GetDirection() == ours.GetDirection()


# ---- images ----------------------------------------------------------------------------------------------------


def load_picture(path: Path, array: np.ndarray) -> MetaTensor:
    """``array`` is (rows, columns) or (rows, columns, 3)."""
    channels = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
    return as_scan(channels[..., None], np.eye(4), scan_kind="image", source=[str(path)], source_format="image")


def save_picture(path: Path, array: np.ndarray) -> None:
    if path.suffix == ".tiff":
        import tifffile

        tifffile.imwrite(path, array)
    elif array.dtype == np.uint16 and array.ndim == 3:
        import itk

        itk.imwrite(itk.image_from_array(array, is_vector=True), str(path))
    else:
        Image.fromarray(array).save(path)


def read_png(path: Path, colour: bool) -> tuple[np.ndarray, int]:
    """A PNG's values and its bits a channel."""
    import itk

    pixel = itk.Vector[itk.F, 3] if colour else itk.F
    return itk.array_from_image(itk.imread(str(path), pixel_type=pixel)), path.read_bytes()[24]


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_restored_pictures_keep_range_and_depth(tmp_path: Path, suffix: str, colour: bool, dtype: type) -> None:
    top = np.iinfo(dtype).max
    array = np.random.default_rng(0).integers(0, top + 1, (6, 9, 3) if colour else (6, 9), dtype=dtype)
    save_picture(tmp_path / f"p{suffix}", array)
    scan = load_picture(tmp_path / f"p{suffix}", array)
    restoration = np.asarray(scan) + np.float32(0.25)  # rounds back
    restoration[0, 0, 0], restoration[0, 0, 1] = -40, top + 40  # clipped, not wrapped
    scores = np.random.default_rng(1).standard_normal((6, 9, 1)).astype(np.float32)
    write_case(tmp_path / "case", scan, anomaly_map=scores, restoration=restoration, anomaly_mask=scores > 0)
    files = ["anomaly_map.png", "anomaly_map.tiff", "anomaly_mask.png", "case.json", "restoration.png"]
    assert sorted(os.listdir(tmp_path / "case")) == files
    expected = array.copy()
    expected[(0, 0, 0) if colour else (0, 0)] = 0
    expected[(0, 1, 0) if colour else (0, 1)] = top
    restored, depth = read_png(tmp_path / "case" / "restoration.png", colour)
    assert depth == np.iinfo(dtype).bits
    np.testing.assert_array_equal(restored, expected)


def test_picture_map_and_mask(tmp_path: Path) -> None:
    import tifffile

    array = np.random.default_rng(0).integers(0, 256, (5, 7), dtype=np.uint8)
    save_picture(tmp_path / "p.png", array)
    scan = load_picture(tmp_path / "p.png", array)
    scores, _, mask = write_results(tmp_path / "case", scan)
    for read in (tifffile.imread, lambda path: np.asarray(Image.open(path))):
        written = read(tmp_path / "case" / "anomaly_map.tiff")
        assert written.dtype == np.float32
        np.testing.assert_array_equal(written, scores[..., 0])
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "case" / "anomaly_mask.png")), mask[..., 0] * 255)
    colours = np.asarray(Image.open(tmp_path / "case" / "anomaly_map.png"))
    assert colours.shape == (5, 7, 3)
    # inferno brightens with the score
    assert np.array_equal(
        np.unravel_index(colours.sum(-1).argmax(), (5, 7)), np.argwhere(scores == scores.max())[0, :2]
    )
    write_results(tmp_path / "case", scan, masked=False)
    assert not (tmp_path / "case" / "anomaly_mask.png").exists()


def test_floating_point_binary_and_stacked_pictures(tmp_path: Path) -> None:
    values = np.linspace(-3.0, 5.0, 20, dtype=np.float32).reshape(4, 5)
    save_picture(tmp_path / "f.tiff", values)
    scan = load_picture(tmp_path / "f.tiff", values)
    zeros = np.zeros((4, 5, 1), np.float32)
    write_case(tmp_path / "f", scan, anomaly_map=zeros, restoration=np.asarray(scan), anomaly_mask=None)
    restored, depth = read_png(tmp_path / "f" / "restoration.png", colour=False)
    assert depth == 16
    np.testing.assert_allclose(restored / 65535 * 8 - 3, values, atol=1e-4)

    Image.fromarray(np.eye(4, 5, dtype=bool)).save(tmp_path / "b.png")
    scan = load_picture(tmp_path / "b.png", np.eye(4, 5))
    write_case(tmp_path / "b", scan, anomaly_map=zeros, restoration=np.asarray(scan), anomaly_mask=None)
    np.testing.assert_array_equal(read_png(tmp_path / "b" / "restoration.png", colour=False)[0], np.eye(4, 5) * 255)

    gray = np.arange(20, dtype=np.uint8).reshape(4, 5)
    save_picture(tmp_path / "g.png", gray)
    scan = as_scan(
        np.stack([gray, gray + 1, gray + 2])[..., None],
        np.eye(4),
        scan_kind="image",
        source=[str(tmp_path / "g.png")] * 3,
        source_format="image",
    )
    write_case(tmp_path / "g", scan, anomaly_map=zeros, restoration=np.asarray(scan), anomaly_mask=None)
    for channel in range(3):
        restored, depth = read_png(tmp_path / "g" / f"restoration_{channel}.png", colour=False)
        assert depth == 8
        np.testing.assert_array_equal(restored, gray + channel)


# ---- drawings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_slices_are_shown_in_radiological_orientation(plane: str) -> None:
    # world cube of 5 voxels a side, brightest near right, anterior and superior
    world = np.zeros((5, 5, 5), dtype=np.float32)
    world[4, 4, 4], world[0, 4, 4], world[4, 0, 4], world[4, 4, 0] = 4, 1, 2, 3
    seen = set()
    for order in itertools.permutations(range(3)):
        for flips in itertools.product([False, True], repeat=3):
            stored = np.flip(world.transpose(order), [axis for axis in range(3) if flips[axis]])
            matrix, origin = np.zeros((3, 3)), np.zeros(3)
            for axis, (target, flip) in enumerate(zip(order, flips)):
                matrix[target, axis] = -2.0 if flip else 2.0
                origin[target] = 8.0 if flip else 0.0
            oblique = rotation((0.2, -0.15, 0.1)) @ matrix
            scan = as_scan(stored[None], from_matvec(oblique, origin), scan_kind="volume")
            shown = ScanView(scan, plane).slices(stored)
            # the bright corner is at the upper left of every plane
            last = shown[int(shown.max(axis=(1, 2)).argmax())]
            assert np.unravel_index(last.argmax(), last.shape) == (0, 0)
            seen.add((float(last[0, 4]), float(last[4, 0])))
    # (upper right, lower left) in that slice: left and posterior, left and inferior, posterior and inferior
    assert seen == {{"axial": (1.0, 2.0), "coronal": (1.0, 3.0), "sagittal": (2.0, 3.0)}[plane]}


def test_view_takes_proportions_from_the_voxel_sizes() -> None:
    scan = as_scan(np.zeros((1, 4, 5, 6)), np.diag([1.0, 2.0, 6.0, 1.0]), scan_kind="volume")
    assert (ScanView(scan, "axial").aspect, ScanView(scan, "axial").thickness) == (2.0, 6.0)
    assert (ScanView(scan, "coronal").aspect, ScanView(scan, "sagittal").aspect) == (6.0, 3.0)
    array = np.random.default_rng(0).random((4, 5, 1))
    picture = as_scan(array[None], np.eye(4), scan_kind="image")
    np.testing.assert_array_equal(ScanView(picture, "axial").slices(array)[0], array[..., 0])


def test_worst_slices_are_spread() -> None:
    peaks = np.array([1, 2, 9, 8, 7, 3, 4, 5, 0, 6], dtype=float)
    assert _worst_slices(peaks, 6.0, 3) == [2, 3, 4]  # thick slices stand for themselves
    assert _worst_slices(peaks, 1.0, 3) == [2, 3, 9]  # no third lies 5 mm from both 2 and 9
    assert _worst_slices(peaks, 1.0, 2) == [2, 9]
    assert _worst_slices(peaks[:2], 1.0, 4) == [1, 0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["volume", "gray image", "colour image"])
def test_overview_is_a_picture_of_the_slices(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    shape = {"volume": (1, 20, 24, 8), "gray image": (1, 20, 24, 1), "colour image": (3, 20, 24, 1)}[kind]
    array = rng.random(shape)
    scan = as_scan(array, np.diag([2.0, 2.0, 5.0, 1.0]), scan_kind=kind.split()[-1])
    scores = rng.random(shape[1:], dtype=np.float32) * 0.1
    scores[5:10, 5:10] = 1.0
    sizes = []
    for mask, reference, title in ((None, None, ""), (scores > 0.5, scores > 2.0, "$ case_1"), (scores < 5, None, "")):
        draw_overview(
            tmp_path / "o.png", scan, array * 0.9, scores, mask, reference_mask=reference, num_slices=2, title=title
        )
        with Image.open(tmp_path / "o.png") as picture:
            picture.load()
            sizes.append(picture.size)
    assert sizes[0] == sizes[1] == sizes[2]
    assert os.listdir(tmp_path) == ["o.png"]
    # a map and a scan without any contrast can be drawn as well
    draw_overview(tmp_path / "o.png", scan * 0, array * 0, scores * 0, None)


def test_overview_refuses_misfits(tmp_path: Path) -> None:
    scan = as_scan(np.zeros((1, 4, 5, 6)), np.eye(4), scan_kind="volume")
    scores = np.zeros((4, 5, 6), np.float32)
    with pytest.raises(ValueError, match="slice_axis"):
        draw_overview(tmp_path / "o.png", scan, scores[None], scores, None, slice_axis="z")
    with pytest.raises(ValueError, match="num_slices"):
        draw_overview(tmp_path / "o.png", scan, scores[None], scores, None, num_slices=0)
    with pytest.raises(ValueError, match="anomaly_map has the shape"):
        draw_overview(tmp_path / "o.png", scan, scores[None], scores[..., 0], None)
    with pytest.raises(ValueError, match="restoration has the shape"):
        draw_overview(tmp_path / "o.png", scan, scores, scores, None)
    assert os.listdir(tmp_path) == []


def test_loss_curves(tmp_path: Path) -> None:
    history = [
        {"stage": "proxy", "epoch": epoch, "train_loss": 10.0**-epoch, "val_loss": None if epoch % 2 else 0.1}
        for epoch in range(4)
    ] + [{"stage": "bridge", "epoch": 1, "train_loss": -2.0, "val_loss": None}]
    draw_loss_curves(tmp_path / "loss.png", history)
    with Image.open(tmp_path / "loss.png") as picture:
        both = picture.size
    draw_loss_curves(tmp_path / "loss.png", history[-1:])
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.size[0] * 2 == both[0]  # one panel a stage
    with pytest.raises(ValueError, match="no epochs"):
        draw_loss_curves(tmp_path / "loss.png", [])


@pytest.mark.slow
def test_drawing_leaves_pyplot_alone(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from monai_anomaly.report.plots import draw_loss_curves\n"
        "assert 'matplotlib' not in sys.modules\n"
        "draw_loss_curves(sys.argv[1], [{'stage': 's', 'epoch': 1, 'train_loss': 1.0, 'val_loss': 2.0}])\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "l.png")], check=True)


# ---- further maps ------------------------------------------------------------------------------------------------


def test_extra_maps_lie_beside_the_map(tmp_path: Path) -> None:
    scan = as_scan(
        np.ones((1, 3, 4, 5)), np.diag([1, 2, 3, 1]), scan_kind="volume", source=["x"], source_format="dicom"
    )
    extra = np.random.default_rng(0).random((3, 4, 5))
    maps = {"anomaly_map": extra, "restoration": extra[None], "anomaly_mask": None}
    write_case(tmp_path / "a", scan, **maps, extra_maps={"anomaly_logp": (extra, "-log10 p")})
    written = nibabel.load(tmp_path / "a" / "anomaly_logp.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), extra.astype(np.float32))
    np.testing.assert_array_equal(written.affine, np.diag([1, 2, 3, 1]))
    assert written.header["descrip"].item() == b"-log10 p"
    with pytest.raises(ValueError, match="anomaly_logp has the shape"):
        write_case(tmp_path / "b", scan, **maps, extra_maps={"anomaly_logp": (extra[:2], "")})


def test_extra_maps_of_a_picture_are_tiff(tmp_path: Path) -> None:
    Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).save(tmp_path / "p.png")
    voxels = np.arange(12.0).reshape(1, 3, 4, 1)
    meta = {"scan_kind": "image", "source": [str(tmp_path / "p.png")], "source_format": "image"}
    extra = np.random.default_rng(0).random((3, 4, 1))
    write_case(
        tmp_path / "a",
        as_scan(voxels, np.eye(4), **meta),
        anomaly_map=extra,
        restoration=voxels,
        anomaly_mask=None,
        extra_maps={"anomaly_zscore": (extra, "")},
    )
    with Image.open(tmp_path / "a" / "anomaly_zscore.tiff") as picture:
        np.testing.assert_array_equal(np.asarray(picture), extra[..., 0].astype(np.float32))
