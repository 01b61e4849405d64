"""Input that cannot be used ends in one clear line, and never costs the other scans."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bundle_runs import detect, head, refusal, run_bundle, table, train_small, write_dicom, write_nifti
from PIL import Image

from monai_anomaly.engines import SaveCased
from monai_anomaly.exceptions import InputError

pytest_plugins = ["bundle_fixtures"]


def nifti(path: Path, voxels: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    return path


def truncated(folder: Path) -> Path:
    path = write_nifti(folder / "scan.nii.gz", 1)
    path.write_bytes(path.read_bytes()[:-2000])
    return path


def text(folder: Path) -> Path:
    path = folder / "scan.nii.gz"
    path.write_text("patient, age\n1, 40\n")
    return path


def with_value(value: float) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        voxels = head(0)[0]
        voxels[3, 4, 1] = value
        return nifti(folder / "scan.nii.gz", voxels)

    return write


def empty(folder: Path) -> Path:
    return nifti(folder / "scan.nii.gz", np.zeros((5, 0, 3), np.float32))


def constant(folder: Path) -> Path:
    return nifti(folder / "scan.nii.gz", np.full((24, 28, 3), 7, np.float32))


def four_dimensional(folder: Path) -> Path:
    return nifti(folder / "scan.nii.gz", np.stack([head(0)[0], head(2)[0]], axis=-1))


def two_series(folder: Path) -> Path:
    write_dicom(folder / "scan", 2, uid="1.2.3")
    write_dicom(folder / "scan", 4, uid="1.2.4", start=10)
    return folder / "scan"


def missing_slice(folder: Path) -> Path:
    write_dicom(folder / "scan", 2)
    (folder / "scan" / "001.dcm").unlink()
    return folder / "scan"


def colour(folder: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (24, 28, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "scan.png")
    return folder / "scan.png"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "problem"),
    [
        (truncated, "cannot be read as NIfTI"),
        (text, "cannot be read as NIfTI"),
        (with_value(np.nan), "1 of 2688 values are NaN or infinite"),
        (with_value(np.inf), "1 of 2688 values are NaN or infinite"),
        (empty, "the image is empty (shape (5, 0, 3))"),
        (constant, "every voxel has the same value (7)"),
        (four_dimensional, "holds 2 volumes. Choose one with the option time_point (0 to 1)."),
        (two_series, "holds 2 series"),
        (missing_slice, "slice"),
        (colour, "has 3 channel(s), the detector takes 1. Give scans of the kind that it was trained on."),
    ],
)
def test_a_bad_scan_is_named_in_one_line(
    write: Callable[[Path], Path], problem: str, trained: Path, tmp_path: Path
) -> None:
    scan = write(tmp_path)
    with pytest.raises(SystemExit) as caught:
        detect(trained, tmp_path / "out", scan)
    lines = [line for line in str(caught.value.code).splitlines() if str(scan) in line]
    assert len(lines) == 1
    assert problem in lines[0]
    assert lines[0].strip().startswith("scan: ")
    assert not (tmp_path / "out" / "scan").exists()
    (failure,) = table(tmp_path / "out" / "failures.csv")
    assert failure["image"] == str(scan)
    assert problem in failure["error"]


def test_foreign_files_in_a_dicom_folder_are_ignored_with_a_warning(trained: Path, tmp_path: Path) -> None:
    write_dicom(tmp_path / "scan", 2)
    (tmp_path / "scan" / "notes").write_text("no image")
    with pytest.warns(UserWarning, match=r"ignored notes \(no DICOM\)"):
        detect(trained, tmp_path / "out", tmp_path / "scan")
    assert (tmp_path / "out" / "scan" / "anomaly_map.nii.gz").is_file()


@pytest.mark.slow
def test_a_bad_scan_amid_a_cohort_costs_no_other(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    for name in ("a", "c"):
        write_nifti(folder / f"{name}.nii.gz", ord(name))
    text(folder).rename(folder / "b.nii.gz")
    with pytest.raises(SystemExit) as caught:
        detect(trained, tmp_path / "out", folder)
    assert "b: " in str(caught.value.code)
    assert [row["case"] for row in table(tmp_path / "out" / "predictions.csv")] == ["a", "c"]
    assert [row["case"] for row in table(tmp_path / "out" / "failures.csv")] == ["b"]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        *("a", "c", "predictions.csv", "failures.csv", "drift.json", "report.html", "lesions.csv"),
        *("run.json", ".lock"),
    }
    # once it is repaired, the list of failures goes
    write_nifti(folder / "b.nii.gz", 5)
    detect(trained, tmp_path / "out", folder)
    assert len(table(tmp_path / "out" / "predictions.csv")) == 3
    assert not (tmp_path / "out" / "failures.csv").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_no_file_ends_a_cohort(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    # names of outputs, formulas and bytes that are no text are names of good scans
    good = [b"a", b"failures.csv", b"report.html", b"=1+1", b"caf\xe9", b"models"]
    for seed, name in enumerate(good):
        write_nifti(folder / f"{os.fsdecode(name)}.nii.gz", seed)
    Image.new("1", (20000, 9100)).save(folder / "bomb.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    os.mkfifo(folder / "pipe.nii")
    os.symlink("nowhere", folder / "link.nii.gz")
    flipped = bytearray((folder / "a.nii.gz").read_bytes())
    flipped[len(flipped) // 2] ^= 8
    (folder / "flipped.nii.gz").write_bytes(flipped)
    nib.save(nib.Nifti1Image(head(0)[0], np.diag([1e30, 1, 1, 1])), folder / "far.nii")
    nib.save(nib.Nifti1Image(head(0)[0] * np.float32(1e34), np.eye(4)), folder / "bright.nii")
    with pytest.raises(SystemExit) as caught:
        detect(trained, tmp_path / "out", folder)
    bad = ["bomb", "bright", "broken", "far", "flipped", "link", "pipe"]
    assert [row["case"] for row in table(tmp_path / "out" / "failures.csv")] == bad
    assert str(caught.value.code).startswith("7 scan(s) could not be used")
    cases = {"a", "scan_failures.csv", "scan_report.html", "=1+1", "caf%E9", "scan_models"}
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == cases
    rows = table(tmp_path / "out" / "predictions.csv")
    assert {row["case"] for row in rows} == {*cases, "'=1+1"} - {"=1+1"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "7 scans could not be used" in page
    assert not [name for name in ("bomb", "flipped", "caf%E9", "=1+1", "scan_report") if name in page]
    json.loads((tmp_path / "out" / "drift.json").read_text(), parse_constant=pytest.fail)


@pytest.mark.slow
def test_a_bad_training_scan_is_reported_and_the_rest_is_trained_on(tiny_cohort: Path, tmp_path: Path) -> None:
    cohort = tmp_path / "cohort"
    shutil.copytree(tiny_cohort / "train", cohort / "train")
    bad = text(cohort / "train" / "normal")
    with pytest.raises(SystemExit) as caught:
        train_small(tmp_path / "out", cohort)
    assert str(bad) in str(caught.value.code)
    assert (tmp_path / "out" / "models" / "model.pt").is_file()
    assert [row["image"] for row in table(tmp_path / "out" / "training" / "failures.csv")] == [str(bad)]


def test_foreign_data_under_a_case_name_is_never_overwritten(trained: Path, tmp_path: Path) -> None:
    precious = tmp_path / "out" / "scan" / "thesis.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("years of work")
    with pytest.raises(SystemExit, match="holds something else than a result"):
        detect(trained, tmp_path / "out", write_nifti(tmp_path / "scan.nii.gz", 1))
    assert [p.name for p in precious.parent.iterdir()] == ["thesis.txt"]
    assert precious.read_text() == "years of work"


@pytest.mark.parametrize("case", ["", ".", "..", "../other", "a/b", "a\\b", "predictions.csv", "run.json"])
def test_a_case_that_is_no_folder_of_its_own_writes_nothing(case: str, tmp_path: Path) -> None:
    (tmp_path / "out" / "models").mkdir(parents=True)
    (tmp_path / "out" / "anomaly_map.nii.gz").write_text("a map")
    with pytest.raises(InputError, match="cannot be a case's folder"):
        SaveCased(tmp_path / "out")({"item": {"case": case}})
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"models", "anomaly_map.nii.gz"}


def test_results_of_an_earlier_run_are_not_taken_for_scans(trained: Path, tmp_path: Path) -> None:
    write_nifti(tmp_path / "scan.nii.gz", 1)
    detect(trained, tmp_path, tmp_path)
    before = (tmp_path / "predictions.csv").read_bytes()
    line = refusal(detect, trained, tmp_path, tmp_path)
    assert line.startswith(str(tmp_path / "scan" / "anomaly_map.nii.gz"))
    assert "is a result of an earlier run, not a scan" in line
    assert (tmp_path / "predictions.csv").read_bytes() == before


def test_a_datalist_that_names_a_missing_file(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(json.dumps({"test": [{"image": "gone.nii.gz"}]}))
    line = refusal(detect, trained, tmp_path / "out", tmp_path / "list.json")
    assert f"1 of 1 files are missing ({tmp_path / 'gone.nii.gz'})" in line


@pytest.mark.parametrize("config", ["train", "inference"])
def test_an_output_folder_that_cannot_be(config: str, trained: Path, tiny_cohort: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    if config == "train":
        line = refusal(train_small, tmp_path / "file" / "out", tiny_cohort)
    else:
        line = refusal(detect, trained, tmp_path / "file" / "out", tiny_cohort)
    assert str(tmp_path / "file" / "out") in line
    assert "cannot be " in line


@pytest.mark.parametrize("source", ["nothing", "empty", "training"])
def test_a_cohort_without_scans(source: str, trained: Path, tiny_cohort: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    scan = str(tiny_cohort / "train" / "normal" / "t1.nii.gz")
    (tmp_path / "training").write_text("")
    (tmp_path / "training.json").write_text(json.dumps({"training": [{"image": scan, "patient": "1"}]}))
    path = {"nothing": tmp_path / "nothing", "empty": tmp_path / "empty", "training": tmp_path / "training.json"}
    problem = {"nothing": "no such file or folder", "empty": "holds no scan", "training": "no scan to read"}
    assert problem[source] in refusal(detect, trained, tmp_path / "out", path[source])


def test_a_cohort_without_training_scans(trained: Path, tmp_path: Path) -> None:
    assert "no usable normal scan" in refusal(train_small, tmp_path, write_nifti(tmp_path / "c" / "scan.nii.gz", 1))


@pytest.mark.parametrize("alpha", [0, 1.5, "five", float("nan")])
def test_an_alpha_that_is_no_rate(alpha: float | str, trained: Path, tiny_cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception) as caught:
        detect(trained, tmp_path / "out", tiny_cohort, alpha=alpha)
    cause: BaseException | None = caught.value
    while cause is not None and not isinstance(cause, ValueError):
        cause = cause.__cause__
    assert str(cause) == f"alpha is a rate between 0 and 1, got {alpha!r}"
    assert not (tmp_path / "out").exists()


def test_a_missing_model(tiny_cohort: Path, tmp_path: Path) -> None:
    line = refusal(run_bundle, "inference", tmp_path / "out", tiny_cohort)
    assert line.startswith(str(tmp_path / "out" / "models"))
    assert "no such file. Train first" in line


def test_a_corrupt_model_and_a_corrupt_checkpoint(trained: Path, tiny_cohort: Path, tmp_path: Path) -> None:
    for folder in ("models", "training"):
        shutil.copytree(trained / folder, tmp_path / folder)
    for file, act in (
        ("models/model.pt", lambda: run_bundle("inference", tmp_path, tiny_cohort)),
        ("training/checkpoint.pt", lambda: train_small(tmp_path, tiny_cohort, max_epochs=2)),
    ):
        content = (tmp_path / file).read_bytes()
        (tmp_path / file).write_bytes(content[: len(content) // 2])
        assert refusal(act).startswith(str(tmp_path / file))


@pytest.mark.slow
def test_a_checkpoint_of_other_settings(trained: Path, tiny_cohort: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "training", tmp_path / "training")
    line = refusal(train_small, tmp_path, tiny_cohort, batch_size=4)
    assert "belongs to a run with other settings or other data" in line
    train_small(tmp_path, tiny_cohort, batch_size=4, resume=False)
    assert (tmp_path / "models" / "model.pt").is_file()


def test_an_image_size_that_the_network_cannot_take(tiny_cohort: Path, tmp_path: Path) -> None:
    line = refusal(train_small, tmp_path, tiny_cohort, image_size=[40, 32])
    assert line == 'image_size: is [40, 32], the network takes multiples of 16. Pass --image_size "[48, 32]".'


@pytest.mark.filterwarnings("ignore:SuperpixelImage")
def test_colour_scans_for_a_gray_network(tmp_path: Path) -> None:
    for i in range(2):
        (tmp_path / "c" / "train" / "normal").mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 255, (24, 28, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "c" / "train" / "normal" / f"{i}.png")
    line = refusal(train_small, tmp_path / "out", tmp_path / "c")
    assert "the scans have 3 channel(s), the network takes 1. Pass --in_channels 3." in line
