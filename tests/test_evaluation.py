"""The tables and the page that an evaluation writes, against the files of its cases."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bundle_runs import detect, table
from scipy.ndimage import label
from sklearn.metrics import roc_auc_score

from monai_anomaly.data import load_cohort

pytest_plugins = ["bundle_fixtures"]


def test_metrics_are_those_of_the_predictions(evaluated: Path) -> None:
    rows = table(evaluated / "predictions.csv")
    truth, scores = np.array([int(r["label"]) for r in rows]), np.array([float(r["anomaly_score"]) for r in rows])
    text = (evaluated / "metrics.json").read_text()
    assert "NaN" not in text
    metrics = json.loads(text)
    expected = roc_auc_score(truth, scores)
    assert metrics["patient"]["auroc"] == pytest.approx(expected)  # a scan a patient
    interval = metrics["intervals"]["ProxyAno"]["intervals"]["auroc"]
    assert interval["value"] == pytest.approx(expected)
    decision = metrics["decisions"]["scan"]
    flagged = scores > decision["threshold"]
    assert decision["true_positive"] == (flagged & (truth == 1)).sum()
    assert decision["false_positive"] == (flagged & (truth == 0)).sum()
    assert {"family", "voxel"} >= set(metrics["decisions"]["voxel"]) >= {"family"}
    assert metrics["confounds"]["sentence"]
    lines = table(evaluated / "metrics.csv")
    (own,) = [r for r in lines if (r["detector"], r["level"], r["metric"]) == ("ProxyAno", "image", "auroc")]
    assert float(own["value"]) == pytest.approx(expected)
    assert {r["kind"] for r in lines} == {"method", "baseline", "picture statistic"}
    assert all(bool(r["value"]) != bool(r["undefined"]) for r in lines)


def test_the_intensity_baseline_is_measured_on_the_same_voxels(evaluated: Path) -> None:
    metrics = json.loads((evaluated / "metrics.json").read_text())
    baseline = metrics["baselines"]["intensity threshold"]
    for key in ("num_voxels", "num_regions", "prevalence"):
        assert baseline["pixel"][key] == metrics["pixel"][key]
    assert baseline["pixel"]["auroc"] > 0.9  # the lesions are bright


def test_lesions_are_the_parts_of_the_masks(evaluated: Path, tiny_cohort: Path) -> None:
    rows = table(evaluated / "lesions.csv")
    total = 0
    for item in load_cohort(tiny_cohort).test:
        mask = nib.load(evaluated / item["case"] / "anomaly_mask.nii.gz").get_fdata()
        parts, number = label(mask, np.ones((3, 3, 3)))
        own = [row for row in rows if row["case"] == item["case"]]
        assert sorted(int(row["voxels"]) for row in own) == sorted(np.bincount(parts.ravel())[1:].tolist())
        total += number
    assert len(rows) == total


def test_the_page_names_no_patient_unless_asked(evaluated: Path, trained: Path, tiny_cohort: Path, tmp_path: Path):
    page = (evaluated / "report.html").read_text()
    assert "intensity threshold" in page
    assert "abnormal-0" not in page
    assert ">nan<" not in page.lower()
    detect(trained, tmp_path / "out", tiny_cohort, "evaluate", show_patients=True)
    assert "abnormal-0" in (tmp_path / "out" / "report.html").read_text()


def test_one_class_and_a_mask_of_another_grid(trained: Path, tiny_cohort: Path, tmp_path: Path) -> None:
    scan, mask = tiny_cohort / "test/abnormal/a0.nii.gz", nib.load(tiny_cohort / "test/masks/a0.nii.gz")
    # every voxel twice along the first axis
    affine = mask.affine @ np.diag([0.5, 1, 1, 1])
    affine[:3, 3] -= affine[:3, 0] / 2
    fine = np.repeat(np.asarray(mask.dataobj), 2, axis=0)
    nib.save(nib.Nifti1Image(fine, affine), tmp_path / "fine.nii.gz")
    entry = {"image": str(scan), "patient": "x", "label": 1, "mask": str(tmp_path / "fine.nii.gz")}
    (tmp_path / "list.json").write_text(json.dumps({"test": [entry]}))
    with pytest.raises(SystemExit, match="the mask has shape"):
        detect(trained, tmp_path / "refused", tmp_path / "list.json", "evaluate")
    detect(trained, tmp_path / "out", tmp_path / "list.json", "evaluate", resample_masks=True)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["pixel"]["prevalence"] == pytest.approx(np.mean(np.asarray(mask.dataobj) > 0))
    assert metrics["image"]["auroc"] is None
    assert metrics["undefined"]["image"]["auroc"] == "no normal scan"
    with (tmp_path / "out" / "metrics.csv").open() as file:
        reasons = {r["undefined"] for r in csv.DictReader(file) if r["metric"] == "auroc" and r["level"] == "image"}
    assert "" not in reasons
