"""The bundle's commands: what they write, on which grid, and what the results do not depend on."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_runs import (
    BUNDLE,
    CONFIGS,
    EMPTY_SLICE,
    SMALL,
    command,
    detect,
    figures_of,
    head,
    refusal,
    run_bundle,
    table,
    train_small,
    write_dicom,
    write_nifti,
)
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from monai_anomaly.data import load_cohort

pytest_plugins = ["bundle_fixtures"]
VOLUMES = ("anomaly_map", "restoration", "anomaly_mask")


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def state(output: Path) -> dict[str, torch.Tensor]:
    return torch.load(output / "models" / "model.pt", weights_only=True)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def write_datalist(path: Path, cohort: Path, calibration: int | None = None) -> dict[str, Any]:
    sides = load_cohort(cohort)
    content = {
        "training": sides.training,
        "calibration": sides.calibration[:calibration],
        "test": sides.test,
    }
    path.write_text(json.dumps(content))
    return content


def test_training_writes_a_detector_and_its_curves(trained: Path) -> None:
    assert {p.name for p in (trained / "models").iterdir()} == {"model.pt", "detector.json", "baselines"}
    rows = table(trained / "training" / "losses.csv")
    assert [(row["stage"], row["epoch"]) for row in rows] == [("proxy extraction", "1"), ("image reconstruction", "1")]
    assert all(float(row["train_loss"]) > 0 and float(row["val_loss"]) > 0 for row in rows)
    description = json.loads((trained / "models" / "detector.json").read_text())
    assert description["calibration_patients"] == 19
    assert len(description["training"]["training_scans"]) == 5
    assert len(description["training"]["calibration_scans"]) == 19


@pytest.mark.slow
def test_results_lie_on_the_scans_own_grid(evaluated: Path, tiny_cohort: Path) -> None:
    for item in load_cohort(tiny_cohort).test:
        folder = evaluated / item["case"]
        assert {p.name for p in folder.iterdir()} == {
            *(f"{name}.nii.gz" for name in VOLUMES),
            *("overview.png", "case.json", "case.npz"),
        }
        if Path(item["image"]).is_dir():
            continue
        source = nib.load(item["image"])
        for name in VOLUMES:
            result = nib.load(folder / f"{name}.nii.gz")
            assert result.shape == source.shape
            assert np.abs(result.affine - source.affine).max() == 0


def test_dicom_results_have_the_affine_of_the_series(trained: Path, tmp_path: Path) -> None:
    affine = write_dicom(tmp_path / "series", 42)
    detect(trained, tmp_path / "out", tmp_path / "series")
    result = nib.load(tmp_path / "out" / "series" / "anomaly_map.nii.gz")
    assert result.shape == head(42)[0].shape
    np.testing.assert_allclose(result.affine, affine, atol=1e-4)  # the header holds float32


def test_maps_are_zero_where_there_is_no_tissue_and_masks_cut_them(evaluated: Path, trained: Path) -> None:
    threshold = sorted(state(trained)["calibration.map_maxima"].tolist())[18]  # the 19th of 19 for alpha 0.05
    for case, axis in (("test__normal__t2", 2), ("test__normal__t1", 0)):
        scores = voxels(evaluated / case / "anomaly_map.nii.gz")
        assert not np.take(scores, EMPTY_SLICE, axis).any()
        assert all(np.take(scores, z, axis).any() for z in range(EMPTY_SLICE))
        mask = voxels(evaluated / case / "anomaly_mask.nii.gz")
        np.testing.assert_array_equal(mask, scores > threshold)


def test_predictions_and_metrics_are_those_of_the_written_files(evaluated: Path, tiny_cohort: Path) -> None:
    rows = table(evaluated / "predictions.csv")
    columns = ["case", "image", "patient", "label", "anomaly_score"]
    columns += ["p_value", "patient_p_value", "peak_p_value", "flagged", "mask_rule", "threshold", "alpha", "no_mask"]
    assert list(rows[0]) == columns
    assert {row["patient"] for row in rows} == {"test-0", "test-1", "test-2", "abnormal-0", "abnormal-1"}
    labels, scores = [int(row["label"]) for row in rows], [float(row["anomaly_score"]) for row in rows]
    maps, masks = [], []
    for item in load_cohort(tiny_cohort).test:
        maps.append(voxels(evaluated / item["case"] / "anomaly_map.nii.gz").ravel())
        masks.append(np.zeros_like(maps[-1]) if item["mask"] is None else voxels(item["mask"]).ravel())
    pixels, truth = np.concatenate(maps), np.concatenate(masks)
    found = {(row.level, row.metric): row.value for row in figures_of(evaluated).where(detector="ProxyAno", group="")}
    assert found["image", "auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert found["image", "ap"] == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    assert found["pixel", "auroc"] == pytest.approx(roc_auc_score(truth, pixels), abs=1e-12)
    assert found["pixel", "ap"] == pytest.approx(average_precision_score(truth, pixels), abs=1e-12)
    tried = [2 * (truth * (pixels >= t)).sum() / (truth.sum() + (pixels >= t).sum()) for t in pixels[truth == 1]]
    assert found["pixel", "best_dice"] == pytest.approx(max(tried), abs=1e-12)


def test_a_score_does_not_depend_on_the_other_scans(evaluated: Path, trained: Path, tmp_path: Path) -> None:
    together = {row["case"]: row for row in table(evaluated / "predictions.csv")}["test__abnormal__a0"]
    detect(trained, tmp_path, Path(together["image"]))
    (alone,) = table(tmp_path / "predictions.csv")
    assert (alone["case"], alone["label"]) == ("a0", "")
    assert alone["anomaly_score"] == together["anomaly_score"]
    one, other = tmp_path / "a0", evaluated / "test__abnormal__a0"
    np.testing.assert_array_equal(voxels(one / "anomaly_map.nii.gz"), voxels(other / "anomaly_map.nii.gz"))


@pytest.mark.slow
def test_training_twice_and_with_other_test_labels_gives_the_same_detector(
    trained: Path, tiny_cohort: Path, tmp_path: Path
) -> None:
    content = write_datalist(tmp_path / "cohort.json", tiny_cohort)
    assert same(state(train_small(tmp_path / "again", tmp_path / "cohort.json")), state(trained))
    for item, other in zip(content["test"], reversed(content["test"])):
        item["label"], item["mask"] = (None, None) if item is other else (1 - item["label"], None)
    (tmp_path / "cohort.json").write_text(json.dumps(content))
    assert same(state(train_small(tmp_path / "other", tmp_path / "cohort.json")), state(trained))


@pytest.mark.slow
def test_a_rate_needs_its_calibration_patients(
    tiny_cohort: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    few, options = tmp_path / "few.json", {"overview_slices": 0, "progress": False}
    write_datalist(few, tiny_cohort, calibration=18)
    train_small(tmp_path, few, proxy_epochs=1)
    for config in ("inference", "evaluate"):
        line = refusal(run_bundle, config, tmp_path, few, **options)
        assert line.startswith("alpha 0.05: needs 19 normal calibration patients, there are 18. Calibrate on more, or ")
        assert "choose alpha 0.0527 or above, or go without masks: alpha None" in line
        assert line.endswith("on a command line --alpha '$None'.")
    assert not (tmp_path / "predictions.csv").exists()
    # no masks, since none are asked for
    with caplog.at_level(logging.INFO):
        run_bundle("evaluate", tmp_path, few, alpha="$None", **options)
    assert "no masks: alpha is None" in caplog.text
    rows = table(tmp_path / "predictions.csv")
    assert len(rows) == 5
    assert not list(tmp_path.rglob("anomaly_mask*"))
    assert {(row["flagged"], row["threshold"], row["alpha"]) for row in rows} == {("", "", "")}
    assert {row["no_mask"] for row in rows} == {"alpha is None: none are asked for"}
    assert all(0 < float(row["p_value"]) <= 1 for row in rows)
    figures = figures_of(tmp_path)
    assert figures.value("ProxyAno", "image", "auroc") is not None
    assert figures.find("ProxyAno", "image", "accuracy") is None
    assert json.loads((tmp_path / "metrics.json").read_text())["settings"]["calibration"]["alpha"] is None
    page = (tmp_path / "report.html").read_text()
    assert "none was asked for" in page
    assert "not calibrated" not in page
    # a rate that 18 patients can carry
    run_bundle("inference", tmp_path, few, alpha=0.1, **options)
    assert len(list(tmp_path.rglob("anomaly_mask.nii.gz"))) == 5
    assert {row["no_mask"] for row in table(tmp_path / "predictions.csv")} == {""}


@pytest.mark.slow
def test_options_of_masks_and_maps(trained: Path, tmp_path: Path) -> None:
    scan = write_nifti(tmp_path / "scan.nii.gz", 8, tmp_path / "mask.nii.gz")
    options = {"mask_rule": "voxel", "least_lesion_mm3": 20, "inside_foreground": True, "alpha": 0.02}
    detect(trained, tmp_path / "logp", scan, calibrated_map="logp", **options)
    detect(trained, tmp_path / "zscore", scan, calibrated_map="zscore")
    assert {p.name for p in (tmp_path / "logp" / "scan").glob("*.nii.gz")} == {
        f"{name}.nii.gz" for name in (*VOLUMES, "anomaly_logp")
    }
    logp, z = (voxels(tmp_path / name / "scan" / f"anomaly_{name}.nii.gz") for name in ("logp", "zscore"))
    scores = voxels(tmp_path / "logp" / "scan" / "anomaly_map.nii.gz")
    assert logp.dtype == z.dtype == np.float32
    assert logp.shape == z.shape == scores.shape
    order = np.argsort(scores[scores > 0])
    assert (np.diff(logp[scores > 0][order]) >= 0).all()
    assert not logp[scores == 0].any()
    assert z.max() > 0
    # the threshold at a rate of 0.02 is where -log10 p is that of the rate
    (row,) = table(tmp_path / "logp" / "predictions.csv")
    assert logp[scores > float(row["threshold"])].min() >= -np.log10(0.02) - 0.02
    header = nib.load(tmp_path / "logp" / "scan" / "anomaly_mask.nii.gz").header["descrip"].item().decode()
    threshold = f"{float(row['threshold']):.5g}"
    assert header == f"map > {threshold}: 0.02 of normal tissue voxels (n=19); >=20mm3; in fg"


@pytest.mark.slow
def test_running_again_replaces_the_results(trained: Path, tmp_path: Path) -> None:
    for seed in (7, 9):
        detect(trained, tmp_path / "out", write_nifti(tmp_path / "scan.nii.gz", seed))
    fresh = detect(trained, tmp_path / "fresh", tmp_path / "scan.nii.gz", overview_slices=1)
    assert table(fresh / "predictions.csv") == table(tmp_path / "out" / "predictions.csv")
    again = tmp_path / "out" / "scan"
    assert {p.name for p in again.glob("*.nii.gz")} == {f"{name}.nii.gz" for name in VOLUMES}
    for name in VOLUMES:
        result = voxels(again / f"{name}.nii.gz")
        np.testing.assert_array_equal(result, voxels(fresh / "scan" / f"{name}.nii.gz"))


@pytest.mark.slow
def test_pictures_give_tiff_and_png(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(2):
        Image.fromarray(head(2 * i)[0][..., 0].astype(np.uint8)).save(folder / f"p{i}.png")
    detect(trained, tmp_path / "out", folder, overview_slices=1)
    for i in range(2):
        case = tmp_path / "out" / f"p{i}"
        with Image.open(case / "anomaly_map.tiff") as picture:
            scores = np.asarray(picture)
        assert scores.shape == (24, 28)
        assert scores.dtype == np.float32
        assert {"anomaly_map.png", "anomaly_mask.png", "restoration.png", "overview.png"} <= {
            p.name for p in case.iterdir()
        }


@pytest.mark.slow
def test_overlays_need_not_be_named_again_for_inference(tiny_cohort: Path, tmp_path: Path) -> None:
    # brain_mri: at 1 mm the heads have 48 x 56 pixels
    train_small(tmp_path, tiny_cohort, "brain_mri", "image_to_image", image_size=[64, 64])
    description = json.loads((tmp_path / "models" / "detector.json").read_text())
    assert description["network"]["arguments"]["bridge"] is False
    assert description["network"]["arguments"]["score_space"] == "image"
    assert (description["preprocessing"]["spacing"], description["training"]["proxy"]) == (1.0, None)
    assert [row["stage"] for row in table(tmp_path / "training" / "losses.csv")] == ["proxy extraction"]
    scan = tiny_cohort / "test" / "normal" / "t1.nii.gz"
    run_bundle("inference", tmp_path, scan, overview_slices=0, progress=False)
    assert voxels(tmp_path / "t1" / "anomaly_map.nii.gz").shape == nib.load(scan).shape


@pytest.mark.slow
def test_colour_pictures_in_tiles(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for i in range(4):
        path = tmp_path / "cohort" / ("train" if i else "test") / "normal" / f"n{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        gray = np.kron(rng.integers(60, 200, (8, 10, 3)), np.ones((9, 8, 1)))
        Image.fromarray(gray.astype(np.uint8)).save(path)
    train_small(tmp_path, tmp_path / "cohort", "retinal_fundus", batch_size=9)
    # one patient is left to calibrate on
    run_bundle("inference", tmp_path, tmp_path / "cohort", overview_slices=0, progress=False, alpha=0.5)
    case = tmp_path / "test__normal__n0"
    with Image.open(case / "anomaly_map.tiff") as scores, Image.open(case / "restoration.png") as restored:
        assert scores.size == restored.size == (80, 72)
        assert restored.mode == "RGB"


@pytest.mark.slow
def test_quickstart_runs_train_and_evaluate_and_tells_where_to_look(
    tiny_cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {**SMALL, "batch_size": 8, "progress": False}
    small.pop("num_workers")
    options = {"run#0": "$None", "cohort_dir": str(tiny_cohort), "num_workers": 1, "small": small}
    run_bundle("quickstart", tmp_path, **options)
    told = capsys.readouterr().out
    assert "5 scans scored. image auroc" in told
    assert "Research use only, not for diagnosis" in told
    assert all(Path(line.split("  ")[1]).exists() for line in told.splitlines() if line.startswith("  "))


@pytest.mark.slow
def test_command_line_from_any_folder(trained: Path, tiny_cohort: Path, tmp_path: Path) -> None:
    done = command(
        *("-m", "monai.bundle", "run", "--config_file", CONFIGS / "inference.yaml", "--bundle_root", BUNDLE),
        *("--dataset_dir", tiny_cohort / "test" / "normal" / "t1.nii.gz", "--output_dir", "out"),
        *("--model_dir", trained / "models"),
        folder=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        *("t1", "predictions.csv", "drift.json", "report.html", "lesions.csv", "run.json", ".lock"),
    }
    assert (tmp_path / "out" / "t1" / "overview.png").is_file()
