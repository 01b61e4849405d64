"""Image statistics by hand, their AUROC both ways, its interval, and when one is said to separate the classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import mannwhitneyu

from monai_anomaly.data import confounders, image_statistics, load_cohort
from monai_anomaly.data.image_statistics import IMAGE_STATISTICS
from monai_anomaly.io import LoadScan


def rows(normal: Any, abnormal: Any, patients: Any = None) -> list[dict[str, Any]]:
    """Scans of which the mean differs as given and nothing else is known."""
    values = [*normal, *abnormal]
    labels = [0] * len(normal) + [1] * len(abnormal)
    patients = range(len(values)) if patients is None else patients
    return [{"label": label, "patient": p, "mean": float(v)} for label, p, v in zip(labels, patients, values)]


def mean_row(data: list[dict[str, Any]]) -> dict[str, Any]:
    (row,) = [row for row in confounders(data).rows if row["statistic"] == "mean"]
    return row


# ---- the statistics


def test_statistics_of_a_picture_by_hand(tmp_path: Path) -> None:
    pixels = np.zeros((5, 4), np.uint8)
    pixels[1:3, 1:3] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    item = {"image": str(tmp_path / "a.png")}
    found = image_statistics(LoadScan()(item["image"]), item)
    assert found.keys() == IMAGE_STATISTICS.keys()
    assert found["mean"] == pytest.approx(40)
    assert found["standard_deviation"] == pytest.approx(np.sqrt(0.2 * 0.8) * 200)
    assert found["foreground_area"] == pytest.approx(0.2)
    assert found["file_size"] == (tmp_path / "a.png").stat().st_size
    assert found["slice_position"] is None
    padded = np.pad(pixels.astype(float), 1, mode="edge")
    laplacian = [
        padded[i - 1, j] + padded[i + 1, j] + padded[i, j - 1] + padded[i, j + 1] - 4 * padded[i, j]
        for i in range(1, 6)
        for j in range(1, 5)
    ]
    assert found["sharpness"] == pytest.approx(np.var(laplacian) / pixels.var())


def test_sharpness_knows_blur_and_not_contrast(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sharp = rng.integers(0, 100, (16, 16)).astype(np.uint8)
    blurred = (sharp.astype(float) + np.roll(sharp, 1, 0) + np.roll(sharp, 1, 1)) / 3
    found = {}
    for name, pixels in {"sharp": sharp, "contrast": sharp * 2, "blurred": blurred.astype(np.uint8)}.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        found[name] = image_statistics(LoadScan()(tmp_path / f"{name}.png"), {"image": str(tmp_path / f"{name}.png")})
    assert found["contrast"]["sharpness"] == pytest.approx(found["sharp"]["sharpness"])
    assert found["contrast"]["standard_deviation"] == pytest.approx(2 * found["sharp"]["standard_deviation"])
    assert found["blurred"]["sharpness"] < 0.7 * found["sharp"]["sharpness"]


def test_the_place_of_a_slice(tmp_path: Path) -> None:
    affine = np.array([[0, 0, -3.0, 11], [2, 0, 0, -5], [0, 2, 0, 7], [0, 0, 0, 1]])
    nib.Nifti1Image(np.random.default_rng(0).random((6, 5, 1)).astype(np.float32), affine).to_filename(
        tmp_path / "a.nii"
    )
    scan = LoadScan()(tmp_path / "a.nii")
    item: dict[str, Any] = {"image": str(tmp_path / "a.nii")}
    assert image_statistics(scan, item)["slice_position"] == pytest.approx(11)  # along R
    assert image_statistics(scan, {**item, "slice": "12"})["slice_position"] == 12
    assert image_statistics(scan, {**item, "slice_position": -4.5, "slice": 12})["slice_position"] == -4.5
    assert image_statistics(scan, {**item, "slice": "upper"})["slice_position"] == pytest.approx(11)
    nib.Nifti1Image(np.random.default_rng(0).random((6, 5, 4)).astype(np.float32), affine).to_filename(
        tmp_path / "v.nii"
    )
    item = {"image": [str(tmp_path / "v.nii")] * 2}
    found = image_statistics(LoadScan()(item["image"]), item)
    assert found["slice_position"] is None
    assert found["file_size"] == 2 * (tmp_path / "v.nii").stat().st_size


# ---- the scores

VALUES = st.lists(st.integers(-4, 4), min_size=1, max_size=12)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(normal=VALUES, abnormal=VALUES)
def test_the_auroc_counts_pairs_both_ways(normal: list[int], abnormal: list[int]) -> None:
    row = mean_row(rows(normal, abnormal))
    wins = np.mean([(a > n) + 0.5 * (a == n) for a in abnormal for n in normal])
    assert row["auroc"] == pytest.approx(max(wins, 1 - wins))
    if abs(wins - 0.5) > 1e-9:
        assert row["abnormal_is"] == ("higher" if wins > 0.5 else "lower")
    assert (row["normal_scans"], row["abnormal_scans"]) == (len(normal), len(abnormal))
    turned = mean_row(rows([-v for v in normal], [-v for v in abnormal]))
    for key in ("auroc", "low", "high", "p_value", "separates"):
        assert turned[key] == pytest.approx(row[key])
    assert row["p_value"] == pytest.approx(mannwhitneyu(abnormal, normal).pvalue)
    if min(len(normal), len(abnormal)) < 2:
        assert row["low"] is None
        assert "two patients" in row["reason"]
    else:
        assert 0 <= row["low"] <= row["auroc"] <= row["high"] <= 1


def test_the_interval_is_delong_s_where_each_scan_is_a_patient() -> None:
    rng = np.random.default_rng(2)
    normal, abnormal = rng.normal(0, 1, 30), rng.normal(1, 1, 20)
    wins = (abnormal[:, None] > normal).astype(float)
    variance = wins.mean(axis=1).var(ddof=1) / 20 + wins.mean(axis=0).var(ddof=1) / 30
    row = mean_row(rows(normal, abnormal))
    assert row["low"] == pytest.approx(wins.mean() - 1.96 * np.sqrt(variance), abs=1e-3)


def test_several_scans_of_a_patient_are_no_new_evidence() -> None:
    rng = np.random.default_rng(3)
    normal, abnormal = rng.normal(0, 1, 15), rng.normal(0.8, 1, 15)
    once = mean_row(rows(normal, abnormal))
    patients = np.repeat(np.arange(30), 4)
    many = mean_row(rows(normal.repeat(4), abnormal.repeat(4), patients))
    for key in ("auroc", "low", "high", "p_value"):
        assert many[key] == pytest.approx(once[key])
    naive = mean_row(rows(normal.repeat(4), abnormal.repeat(4)))
    assert naive["low"] > once["low"]


@pytest.mark.slow
def test_the_interval_covers_the_truth_with_clusters_of_both_classes() -> None:
    rng = np.random.default_rng(4)
    covered = []
    for _ in range(200):
        own = rng.normal(0, 1, 40)  # what a patient's scans share
        normal, abnormal = own + rng.normal(0, 1, 40), own + 1 + rng.normal(0, 1, 40)
        row = mean_row(rows(normal, abnormal, [*range(40), *range(40)]))
        covered.append(row["low"] <= 0.69146 <= row["high"])  # P(N(1, 4) > 0) = Phi(1 / 2)
    assert np.mean(covered) > 0.9


def test_when_a_statistic_is_said_to_separate() -> None:
    far = confounders(rows(range(20), range(100, 120)))
    assert far.separates
    assert "the mean intensity (AUROC 1.000, 95 % interval 1.000 to 1.000; higher in abnormal scans)" in far.sentence
    assert "Image-level figures of any method prove little here." in far.sentence
    rng = np.random.default_rng(0)
    same = confounders(rows(rng.normal(size=50), rng.normal(size=50)))
    assert not same.separates
    assert same.sentence.startswith("No image statistic alone tells normal from abnormal scans surely")
    assert "prove little" not in same.sentence
    few = confounders(rows([1, 2, 3], [4, 5]))  # perfect by chance in one of ten draws
    assert mean_row(rows([1, 2, 3], [4, 5]))["auroc"] == 1
    assert not few.separates
    assert "may be chance" in few.sentence
    # a small difference, however sure, explains no image-level figure
    weak = rows(rng.normal(size=3000), rng.normal(0.4, 1, size=3000))
    assert mean_row(weak)["p_value"] < 1e-9
    assert not confounders(weak).separates


@pytest.mark.slow
def test_many_statistics_do_not_find_one_by_chance() -> None:
    rng = np.random.default_rng(5)
    found = 0
    for _ in range(60):
        labels = np.repeat([0, 1], 12)
        data = [
            {"label": int(label), "patient": i, **{name: float(rng.normal()) for name in IMAGE_STATISTICS}}
            for i, label in enumerate(labels)
        ]
        found += confounders(data).separates
    assert found <= 7  # 3 expected at most


def test_what_cannot_be_scored_says_why() -> None:
    table = confounders(rows([1, 2, 3], []))
    assert table.sentence == "Image statistics cannot be scored: there is no abnormal scan."
    assert not table.separates
    assert all(row["auroc"] is None and row["reason"] for row in table.rows)
    assert "there is no normal scan" in confounders([]).sentence
    data = rows([1, 2], [3, 4])
    data[0]["slice_position"] = 3.0
    (row,) = [row for row in confounders(data).rows if row["statistic"] == "slice_position"]
    assert row["reason"] == "there is no abnormal scan whose value is known"
    del data[0]["slice_position"]
    (row,) = [row for row in confounders(data).rows if row["statistic"] == "slice_position"]
    assert row["reason"] == "it is known of no scan"
    # labels that are not known are passed over
    assert confounders([*data, {"label": None, "patient": 9, "mean": 1.0}]).rows == confounders(data).rows


# ---- real data


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "statistic", "auroc"),
    [
        ("mvtec_screw", "mean", 1.000),
        ("cxr_pneumonia224", "standard_deviation", 0.821),
        ("brain_lgg_flair", "mean", None),
    ],
)
@pytest.mark.filterwarnings("ignore:.*patients of .* scans are not known", "ignore:.*are copies of others")
def test_confounds_of_real_test_sets(real_data: Path, name: str, statistic: str, auroc: float | None) -> None:
    cohort = load_cohort(real_data / name)
    table = confounders([{**item, **image_statistics(LoadScan()(item["image"]), item)} for item in cohort.test])
    (row,) = [row for row in table.rows if row["statistic"] == statistic]
    if auroc is None:
        assert not table.separates
        return
    assert row["auroc"] == pytest.approx(auroc, abs=5e-4)
    assert row["separates"]
    assert "prove little" in table.sentence
