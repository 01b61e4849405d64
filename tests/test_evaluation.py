"""The tables and the page that an evaluation writes, against the files of its cases."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_runs import detect, figures_of, table
from monai.data import MetaTensor
from scipy.ndimage import label
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from monai_anomaly.data import load_cohort
from monai_anomaly.data.split import describe_split
from monai_anomaly.engines import ReportHandler, load_detector, thresholds_of
from monai_anomaly.metrics import Figure
from monai_anomaly.networks import IntensityThreshold, ProxyAno

pytest_plugins = ["bundle_fixtures"]


def test_metrics_are_those_of_the_predictions(evaluated: Path) -> None:
    rows = table(evaluated / "predictions.csv")
    truth, scores = np.array([int(r["label"]) for r in rows]), np.array([float(r["anomaly_score"]) for r in rows])
    text = (evaluated / "metrics.json").read_text()
    assert "NaN" not in text
    figures = figures_of(evaluated)
    expected = roc_auc_score(truth, scores)
    image = {row.metric: row for row in figures.where(detector="ProxyAno", level="image", group="")}
    assert image["auroc"].value == pytest.approx(expected)
    assert (image["auroc"].n, image["auroc"].low is not None) == (5, True)
    flagged = scores > image["threshold"].value
    assert image["true_positive"].value == (flagged & (truth == 1)).sum()
    assert image["false_positive"].value == (flagged & (truth == 0)).sum()
    assert image["gap"].value == pytest.approx(scores[truth == 1].mean() - scores[truth == 0].mean())
    # a scan a patient
    for row in figures.where(detector="ProxyAno", level="patient"):
        assert row._replace(level="image") == image[row.metric]
    groups = {row.group for row in figures.where(detector="ProxyAno", level="pixel")}
    assert groups >= {"", "threshold: family 0.05", "threshold: paper"}
    for metric in ("auroc", "ap"):
        row = figures.find("ProxyAno", "pixel", metric)
        assert row is not None
        assert row.low <= row.value <= row.high
    settings = json.loads(text)["settings"]
    assert settings["confounders"]["sentence"]
    assert set(settings["detectors"].values()) == {"method", "baseline", "image statistic"}


def test_the_csv_is_the_table_of_the_json(evaluated: Path) -> None:
    lines = table(evaluated / "metrics.csv")
    assert list(lines[0]) == ["detector", "level", "group", "metric", "value", "low", "high", "n", "note"]
    read = [
        Figure(
            *(line[name] for name in ("detector", "level", "group", "metric")),
            *(float(line[name]) if line[name] else None for name in ("value", "low", "high")),
            int(line["n"]) if line["n"] else None,
            line["note"],
        )
        for line in lines
    ]
    assert read == list(figures_of(evaluated))
    assert all(row.note for row in read if row.value is None)


def test_the_intensity_baseline_is_measured_on_the_same_voxels(evaluated: Path) -> None:
    figures = figures_of(evaluated)
    own, other = (figures.find(name, "pixel", "auroc") for name in ("ProxyAno", "intensity threshold"))
    assert own is not None
    assert other is not None
    assert own.n == other.n
    assert other.value > 0.9  # the lesions are bright


@pytest.mark.slow
def test_the_masks_as_written_are_told_with_their_settings(trained: Path, tiny_cohort: Path, tmp_path: Path) -> None:
    out = detect(trained, tmp_path / "out", tiny_cohort, "evaluate", least_lesion_mm3=30, inside_foreground=True)
    items = load_cohort(tiny_cohort).test
    flagged, truth, normals = [], [], []
    for item in items:
        mask = np.asarray(nib.load(out / item["case"] / "anomaly_mask.nii.gz").dataobj) > 0
        flagged.append(mask)
        truth.append(np.asarray(nib.load(item["mask"]).dataobj) > 0 if item.get("mask") else np.zeros_like(mask))
        normals += [] if item["label"] else [mask.any()]
    settings = json.loads((out / "metrics.json").read_text())["settings"]["mask"]
    [own] = {row["threshold"] for row in table(out / "predictions.csv")}
    assert "fg" in settings.pop("description")
    assert settings == {
        "rule": "family",
        "alpha": 0.05,
        "threshold": float(own),
        "least_lesion_mm3": 30.0,
        "inside_foreground": True,
    }
    found = {row.metric: row for row in figures_of(out).where(level="mask")}
    both = sum(np.sum(a & b) for a, b in zip(flagged, truth))
    assert found["dice"].value == pytest.approx(2 * both / sum(a.sum() + b.sum() for a, b in zip(flagged, truth)))
    assert found["sensitivity"].value == pytest.approx(both / sum(b.sum() for b in truth))
    share = found["normal_patients_flagged"]
    assert share.value == np.mean(normals)
    exact = binomtest(int(np.sum(normals)), len(normals)).proportion_ci()  # Clopper and Pearson's
    assert (share.low, share.high) == pytest.approx((exact.low, exact.high))
    parts = [label(t, np.ones((3, 3, 3))) for t in truth]
    hits = sum(bool(m[p == i].any()) for m, (p, n) in zip(flagged, parts) for i in range(1, n + 1))
    lesions = sum(n for _, n in parts)
    assert (found["lesions_found"].n, found["lesions_found"].value) == (lesions, hits / lesions)
    page = " ".join((out / "report.html").read_text().split())
    assert "Masks as written" in page
    assert "cleaned of voxels outside of the foreground and findings below 30 mm³" in page
    detect(trained, out, tiny_cohort, "evaluate", alpha="$None")
    assert json.loads((out / "metrics.json").read_text())["settings"]["mask"] is None
    assert "Masks as written" not in (out / "report.html").read_text()


def test_the_papers_threshold_stands_beside_the_calibrated_ones(evaluated: Path, tiny_cohort: Path) -> None:
    figures = figures_of(evaluated)
    found = {row.metric: row.value for row in figures.where(detector="ProxyAno", group="threshold: paper")}
    assert found["threshold"] == ProxyAno.paper_map_threshold == 0.5
    flagged, truth = [], []
    for item in load_cohort(tiny_cohort).test:
        flagged.append(nib.load(evaluated / item["case"] / "anomaly_map.nii.gz").get_fdata().ravel() > 0.5)
        truth.append(np.zeros(flagged[-1].size, dtype=bool))
        if item.get("mask"):
            truth[-1] = nib.load(item["mask"]).get_fdata().ravel() > 0
    pooled = np.concatenate(truth), np.concatenate(flagged)
    assert found["accuracy"] == pytest.approx(accuracy_score(*pooled))
    assert found["dice"] == pytest.approx(f1_score(*pooled, zero_division=0))
    assert figures.where(detector="intensity threshold", group="threshold: paper") == []
    assert thresholds_of(IntensityThreshold(), None).voxels == {}
    assert thresholds_of(ProxyAno(channels=(4,)), None).voxels == {"paper": 0.5}


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


@pytest.mark.slow
def test_the_page_names_no_patient_unless_asked(evaluated: Path, trained: Path, tiny_cohort: Path, tmp_path: Path):
    page = (evaluated / "report.html").read_text()
    assert "intensity threshold" in page
    assert "abnormal-0" not in page
    assert ">nan<" not in page.lower()
    detect(trained, tmp_path / "out", tiny_cohort, "evaluate", show_patients=True)
    assert "abnormal-0" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.slow
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
    figures = figures_of(tmp_path / "out")
    assert figures.value("ProxyAno", "pixel", "prevalence") == pytest.approx(np.mean(np.asarray(mask.dataobj) > 0))
    auroc = figures.find("ProxyAno", "image", "auroc")
    assert auroc is not None
    assert (auroc.value, auroc.note) == (None, "no normal scan")


def test_the_report_tells_weights_contents_and_lesions(evaluated: Path, trained: Path, tiny_cohort: Path) -> None:
    page = " ".join((evaluated / "report.html").read_text().split())
    assert hashlib.sha256((trained / "models" / "model.pt").read_bytes()).hexdigest() in page
    # what is hashed of the scans at hand is what a detector stores of its cohort
    settings = json.loads((evaluated / "metrics.json").read_text())["settings"]
    [test] = [side for side in settings["cohort"] if side["name"] == "test"]
    digests = describe_split(load_cohort(tiny_cohort))["sides"]["test"]["digests"]
    assert test["sha256"] == hashlib.sha256(json.dumps(digests).encode()).hexdigest()
    for text in ("FROC curve, lesions", "Lesions, by threshold, by size", "best Dice (oracle)", "field of view"):
        assert text in page
    figures = figures_of(evaluated)
    # the baselines have thresholds of their own, on the same calibration normals
    for name, kept in (("intensity threshold", "intensity"), ("z-score", "zscore")):
        calibration = load_detector(trained / "models" / "baselines" / kept).network.calibration
        assert figures.value(name, "image", "threshold") == calibration.score_threshold(0.05)
        assert figures.value(name, "image", "accuracy") is not None
        for level in ("pixel", "lesion"):
            assert figures.value(name, level, "threshold", "threshold: family 0.05") == calibration.map_threshold(0.05)
        assert figures.value(name, "lesion", "lesions_found", "threshold: family 0.05") is not None
    assert len(settings["calibration"]["drift"]) == 5
    shown = settings["method"]["settings"]
    stored = json.loads((trained / "models" / "detector.json").read_text())
    assert shown["preprocessing"] == stored["preprocessing"]
    assert shown["training"]["epochs"] == stored["training"]["epochs"]
    last = stored["training"]["stages"][-1]["optimizers"]
    assert {f"{name} lr": each["lr"] for name, each in last.items()}.items() <= shown["training"]["stage 2"].items()


@pytest.mark.slow
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
    figures = figures_of(out)
    for site, scans in (("A", 3), ("B", 2)):
        row = figures.find("ProxyAno", "image", "auroc", f"site: {site}")
        assert row is not None
        assert row.n == scans
    together = [
        row._replace(group="scanner: new") for row in figures.where(detector="ProxyAno", level="image", group="")
    ]
    of_scanner = figures.where(detector="ProxyAno", group="scanner: new")
    assert of_scanner == [row for row in together if "gap" not in row.metric]
    detect(trained, out, tmp_path / "list.json", "evaluate", report=False)
    assert not (out / "report.html").exists()
    assert list(figures_of(out)) == list(figures)


def test_a_missed_lesion_is_shown_where_it_is(tmp_path: Path) -> None:
    network = IntensityThreshold(3, 1)
    network.calibration.fit({f"p{i}": float(i) for i in range(19)}, {f"p{i}": float(i) for i in range(19)})
    handler = ReportHandler(tmp_path, network, 0.05)
    handler.start(None)
    voxels = np.zeros((8, 8, 5), dtype=np.float32)
    voxels[..., 4] = 10.0
    reference = np.zeros(voxels.shape, dtype=bool)
    reference[2:5, 2:5, 1] = True
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "a.nii.gz")
    scan = MetaTensor(torch.from_numpy(voxels)[None], affine=torch.eye(4), meta={"scan_kind": "volume"})
    item = {"case": "a", "patient": "a", "image": str(tmp_path / "a.nii.gz"), "label": 1}
    for name, mask in (("missed", voxels > 18), ("found", reference), ("none", None)):
        data = {
            "item": {**item, "case": name},
            "scan": scan,
            "anomaly_map": voxels,
            "anomaly_score": 10.0,
            "anomaly_mask": mask,
            "reference": reference,
            "restoration": voxels[None],
            "reconstructs": False,
        }
        handler.add({**handler.kept(data), "item": data["item"]})
    missed, found, none = handler.cases
    assert [(case.lesions, case.lesions_found, case.marked) for case in (missed, found, none)] == [
        (1, 0, False),
        (1, 1, True),
        (1, None, None),
    ]
    assert [case.flagged for case in (missed, found, none)] == [False] * 3
    drawn = [case.pictures() for case in (missed, found, none) if case.pictures is not None]
    assert drawn[0].reference.sum() == 9
    assert [each.label.split("(")[1] for each in drawn] == ["largest reference area)", *["highest score)"] * 2]
