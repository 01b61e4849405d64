"""The tables and the page that an evaluation writes, against the files of its cases."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_runs import detect, table
from monai.data import MetaTensor
from scipy.ndimage import label
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from monai_anomaly.data import load_cohort
from monai_anomaly.data.split import describe_split
from monai_anomaly.engines import EvaluationRecorder, load_detector
from monai_anomaly.networks import IntensityThreshold, ProxyAno

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
    assert {"family", "voxel", "paper"} >= set(metrics["decisions"]["voxel"]) >= {"family", "paper"}
    assert metrics["confounds"]["sentence"]
    assert metrics["gap"]["gap"] == pytest.approx(scores[truth == 1].mean() - scores[truth == 0].mean())
    pixel = metrics["pixel_intervals"]["ProxyAno"]
    assert pixel["num_abnormal_patients"] == 2
    for key in ("auroc", "ap"):
        assert pixel["intervals"][key]["low"] <= metrics["pixel"][key] <= pixel["intervals"][key]["high"]
    assert metrics["patient_intervals"] == metrics["intervals"]  # a scan a patient
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


def test_the_masks_as_written_are_told_with_their_settings(trained: Path, tiny_cohort: Path, tmp_path: Path) -> None:
    out = detect(trained, tmp_path / "out", tiny_cohort, "evaluate", least_lesion_mm3=30, inside_foreground=True)
    items = load_cohort(tiny_cohort).test
    flagged, truth, normals = [], [], []
    for item in items:
        mask = np.asarray(nib.load(out / item["case"] / "anomaly_mask.nii.gz").dataobj) > 0
        flagged.append(mask)
        truth.append(np.asarray(nib.load(item["mask"]).dataobj) > 0 if item.get("mask") else np.zeros_like(mask))
        normals += [] if item["label"] else [mask.any()]
    found = json.loads((out / "metrics.json").read_text())["decisions"]["mask"]
    [own] = {row["threshold"] for row in table(out / "predictions.csv")}
    assert found["settings"] == {
        "rule": "family",
        "alpha": 0.05,
        "threshold": float(own),
        "least_lesion_mm3": 30.0,
        "inside_foreground": True,
    }
    lines = {name: row for (_, _, name, group), row in table_of(out).items() if group == "mask: family 0.05"}
    both = sum(np.sum(a & b) for a, b in zip(flagged, truth))
    dice = 2 * both / sum(a.sum() + b.sum() for a, b in zip(flagged, truth))
    assert float(lines["Dice"]["value"]) == pytest.approx(dice)
    assert float(lines["sensitivity"]["value"]) == pytest.approx(both / sum(b.sum() for b in truth))
    assert float(lines["alpha"]["value"]) == 0.05
    share = lines["normal patients flagged"]
    assert float(share["value"]) == np.mean(normals)
    exact = binomtest(int(np.sum(normals)), len(normals)).proportion_ci()  # Clopper and Pearson's
    assert (float(share["low"]), float(share["high"])) == pytest.approx((exact.low, exact.high))
    parts = [label(t, np.ones((3, 3, 3))) for t in truth]
    hits = sum(bool(m[p == i].any()) for m, (p, n) in zip(flagged, parts) for i in range(1, n + 1))
    lesions = sum(n for _, n in parts)
    assert (float(lines["lesions"]["value"]), float(lines["lesions found"]["value"])) == (lesions, hits / lesions)
    page = " ".join((out / "report.html").read_text().split())
    assert "Masks as written" in page
    assert page.count("cleaned of voxels outside of the foreground and findings below 30 mm³") == 2
    detect(trained, out, tiny_cohort, "evaluate", alpha="$None")
    assert json.loads((out / "metrics.json").read_text())["decisions"]["mask"]["settings"] is None
    assert "Masks as written" not in (out / "report.html").read_text()


def test_the_papers_threshold_stands_beside_the_calibrated_ones(evaluated: Path, tiny_cohort: Path) -> None:
    metrics = json.loads((evaluated / "metrics.json").read_text())
    found = metrics["decisions"]["voxel"]["paper"]
    assert found["threshold"] == ProxyAno.paper_map_threshold == 0.5
    flagged, truth = [], []
    for item in load_cohort(tiny_cohort).test:
        flagged.append(nib.load(evaluated / item["case"] / "anomaly_map.nii.gz").get_fdata().ravel() > 0.5)
        truth.append(np.zeros(flagged[-1].size, dtype=bool))
        if item.get("mask"):
            truth[-1] = nib.load(item["mask"]).get_fdata().ravel() > 0
    pooled = np.concatenate(truth), np.concatenate(flagged)
    lines = table_of(evaluated)
    accuracy, f1 = (lines["ProxyAno", "pixel", f"{name}/paper", ""] for name in ("accuracy", "dice"))
    assert float(accuracy["value"]) == found["accuracy"] == pytest.approx(accuracy_score(*pooled))
    assert float(f1["value"]) == found["dice"] == pytest.approx(f1_score(*pooled, zero_division=0))
    assert "no paper" in lines["intensity threshold", "pixel", "dice/paper", ""]["undefined"]
    assert "F1 (= Dice), the paper&#x27;s threshold" in (evaluated / "report.html").read_text()
    assert EvaluationRecorder(IntensityThreshold(), None, None, evaluate=True).thresholds["IntensityThreshold"] == {}
    assert EvaluationRecorder(ProxyAno(channels=(4,)), None, None, evaluate=True).thresholds["ProxyAno"] == {
        "paper": 0.5
    }


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


def test_the_report_tells_weights_contents_and_lesions(evaluated: Path, trained: Path, tiny_cohort: Path) -> None:
    page = " ".join((evaluated / "report.html").read_text().split())
    assert hashlib.sha256((trained / "models" / "model.pt").read_bytes()).hexdigest() in page
    # what is hashed of the scans at hand is what a detector stores of its cohort
    [test] = [side for side in report_of(evaluated)["cohort"] if side["name"] == "test"]
    digests = describe_split(load_cohort(tiny_cohort))["sides"]["test"]["digests"]
    assert test["sha256"] == hashlib.sha256(json.dumps(digests).encode()).hexdigest()
    for text in (
        "FROC curve, lesions",
        "Lesions found by ProxyAno, by size (volumes)",
        "best Dice (oracle)",
        "field of view",
    ):
        assert text in page
    found = json.loads((evaluated / "metrics.json").read_text())["lesion"]["volume"]
    [table, *others] = [table for table in report_of(evaluated)["tables"] if table["level"] == "lesion"]
    assert [other["detector"] for other in others] == ["intensity threshold", "z-score"]
    assert len(table["rows"]) == len(found["at"])
    lines = table_of(evaluated)
    family = found["at"]["family"]
    assert float(lines["ProxyAno", "lesion", "volume/sensitivity", ""]["value"]) == family["sensitivity"]
    assert (
        float(lines["ProxyAno", "lesion", "false lesions per scan", "threshold: family 0.05"]["value"])
        == (family["false_lesions_per_scan"])
    )
    # the baselines have thresholds of their own, on the same calibration normals
    baselines = json.loads((evaluated / "metrics.json").read_text())["baselines"]
    for name, kept in (("intensity threshold", "intensity"), ("z-score", "zscore")):
        network = load_detector(trained / "models" / "baselines" / kept).network
        decision = baselines[name]["image"]["decision"]
        assert decision["threshold"] == network.calibration.score_threshold(0.05)
        assert float(lines[name, "image", "accuracy", ""]["value"]) == decision["accuracy"]
        voxel = baselines[name]["pixel"]["decisions"]["family"]
        assert voxel["threshold"] == network.calibration.map_threshold(0.05)
        assert float(lines[name, "pixel", "dice/family", ""]["value"]) == voxel["dice"]
        at = baselines[name]["lesion"]["volume"]["at"]["family"]
        assert float(lines[name, "lesion", "volume/sensitivity", ""]["value"]) == at["sensitivity"]
    checks = report_of(evaluated)["calibration"]["drift"]
    assert len(checks) == 5
    shown = report_of(evaluated)["method"]["settings"]
    stored = json.loads((trained / "models" / "detector.json").read_text())
    assert shown["preprocessing"] == stored["preprocessing"]
    assert shown["training"]["epochs"] == stored["training"]["epochs"]
    last = stored["training"]["stages"][-1]["optimizers"]
    assert {f"{name} lr": each["lr"] for name, each in last.items()}.items() <= shown["training"]["stage 2"].items()


def test_groups_are_told_and_the_page_can_be_left_out(trained: Path, tiny_cohort: Path, tmp_path: Path) -> None:
    items = load_cohort(tiny_cohort).test
    entries = [
        {"image": item["image"], "patient": item["patient"], "label": item["label"], "scanner": "new", "site": site}
        | ({"mask": item["mask"]} if item.get("mask") else {})
        for item, site in zip(items, "ABABA")
    ]
    (tmp_path / "list.json").write_text(json.dumps({"test": entries}))
    out = tmp_path / "out"
    detect(trained, out, tmp_path / "list.json", "evaluate")
    assert (out / "report.html").is_file()
    lines = table_of(out)
    for site in "AB":
        assert lines["ProxyAno", "image", "scans", f"site: {site}"]["value"] == ("3.0" if site == "A" else "2.0")
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics["by_group"]["scanner"]) == {"new"}
    assert (
        metrics["by_group"]["scanner"]["new"]["intervals"]["intervals"] == metrics["intervals"]["ProxyAno"]["intervals"]
    )
    detect(trained, out, tmp_path / "list.json", "evaluate", report=False)
    assert not (out / "report.html").exists()
    assert json.loads((out / "metrics.json").read_text())["by_group"] == metrics["by_group"]


def test_a_missed_lesion_is_shown_where_it_is(tmp_path: Path) -> None:
    network = IntensityThreshold(3, 1)
    network.calibration.fit({f"p{i}": float(i) for i in range(19)}, {f"p{i}": float(i) for i in range(19)})
    recorder = EvaluationRecorder(network, 0.05, 18.0, evaluate=True)
    voxels = np.zeros((8, 8, 5), dtype=np.float32)
    voxels[..., 4] = 10.0
    reference = np.zeros(voxels.shape, dtype=bool)
    reference[2:5, 2:5, 1] = True
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "a.nii.gz")
    scan = MetaTensor(torch.from_numpy(voxels)[None], affine=torch.eye(4), meta={"scan_kind": "volume"})
    item = {"case": "a", "patient": "a", "image": str(tmp_path / "a.nii.gz"), "label": 1}
    row = {"case": "a", "patient": "a", "label": 1, "anomaly_score": 10.0, "p_value": 0.5, "flagged": 0}
    rows = []
    for name, mask in (("missed", voxels > 18), ("found", reference), ("none", None)):
        recorder.add(
            {**item, "case": name},
            scan,
            anomaly_map=voxels,
            mask=mask,
            reference=reference,
            restoration=None,
            baselines={},
        )
        rows.append({**row, "case": name, "flagged": None if mask is None else int(mask.any())})
    missed, found, none = recorder.evaluation(rows, [], None).cases
    assert [(case.lesions, case.lesions_found, case.marked) for case in (missed, found, none)] == [
        (1, 0, False),
        (1, 1, True),
        (1, None, None),
    ]
    assert [case.flagged for case in (missed, found, none)] == [False] * 3
    drawn = [case.pictures() for case in (missed, found, none)]  # type: ignore[operator]
    assert drawn[0].reference.sum() == 9
    assert [each.label.split("(")[1] for each in drawn] == ["largest reference area)", *["highest score)"] * 2]


def report_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "metrics.json").read_text())["evaluation"]
    return found


def table_of(folder: Path) -> dict[tuple[str, str, str, str], dict[str, str]]:
    return {(r["detector"], r["level"], r["metric"], r["group"]): r for r in table(folder / "metrics.csv")}
