"""What the report's tables are made of: thresholds for lesions, drift checks, hashes, and the reasons of gaps."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pytest
import torch

from monai_anomaly.calibration import FACTS, ConformalCalibration, ScanTail, drift_report
from monai_anomaly.metrics import LesionDetection, bootstrap_intervals, by_group, scan_statistics
from monai_anomaly.report.contents import (
    cohort_sides,
    drift_checks,
    froc_curves,
    group_tables,
    lesion_floor,
    lesion_tables,
    lesion_thresholds,
)
from monai_anomaly.report.evaluation import Estimate


def calibrated(patients: int) -> ConformalCalibration:
    rng = np.random.default_rng(0)
    maps = {f"p{i}": rng.random(5000) * (1 + i / patients) for i in range(patients)}
    calibration = ConformalCalibration()
    peaks = {name: float(each.max()) for name, each in maps.items()}
    calibration.fit(peaks, peaks)
    calibration.tail.fit({name: [ScanTail.of(each)] for name, each in maps.items()})
    return calibration


def test_lesion_thresholds_are_those_of_the_calibration_as_far_as_it_goes() -> None:
    calibration = calibrated(19)
    found = lesion_thresholds(calibration, 0.05)
    assert found == {
        "family": calibration.map_threshold(0.05),
        "family 0.1": calibration.map_threshold(0.1),
        "family 0.2": calibration.map_threshold(0.2),
        "voxel": calibration.voxel_threshold(0.05),
        "voxel 0.01": calibration.voxel_threshold(0.01),
        "voxel 0.001": calibration.voxel_threshold(0.001),
    }
    assert lesion_floor(found) == min(found["family 0.2"], found["voxel 0.001"])
    few = lesion_thresholds(calibrated(9), 0.05)
    assert "family" not in few
    assert "family 0.1" in few
    assert lesion_thresholds(ConformalCalibration(), 0.05) == {}
    assert lesion_floor({}) is None
    assert lesion_floor({"voxel": 3.0}) == 3.0


def test_lesions_become_a_table_and_a_curve() -> None:
    detection = LesionDetection({"family": 0.9, "voxel 0.01": 0.3}, floor=0.3)
    mask = np.zeros((8, 8, 3), dtype=bool)
    mask[0, 0, 0] = mask[4:6, 4:6, 1] = True
    scores = np.where(mask, 0.5, 0.0)
    scores[4, 4, 1] = 1.0
    scores[7, 0, 2] = 0.4
    detection.update(scores, mask, 50.0)
    [table] = lesion_tables({"lesion": {"volume": detection.compute()}}, "own", 0.05)
    assert table.title == "Lesions found by own, by size (volumes)"
    assert (table.detector, table.level) == ("own", "lesion")
    assert table.columns[1:3] == ["all (n = 2)", "small (from 0 mm³, n = 1)"]
    one, half, none = Estimate(1.0), Estimate(0.5), Estimate(0.0)
    no_large = Estimate(None, undefined="no lesion of this size")
    assert [list(row) for row in table.rows] == [
        ["family 0.05", half, none, one, no_large, none],
        ["voxel 0.01", one, one, one, no_large, one],
    ]
    [curve] = froc_curves("own", {"volume": detection})
    assert (curve.level, curve.axes) == ("lesion", "froc")
    assert list(zip(curve.x, curve.y)) == [(0, 0), (0, 0.5), (0, 1), (1, 1)]
    empty = LesionDetection({"family": 0.9})
    empty.update(scores, mask & False)
    assert froc_curves("own", {"picture": empty}) == []
    [table] = lesion_tables({"lesion": {"picture": empty.compute()}}, "own", 0.05)
    assert table.rows[0][1] == Estimate(None, undefined="no lesion")


def test_each_drift_check_has_a_line() -> None:
    rng = np.random.default_rng(0)
    base = np.array([500, 90, 0.4, 1, 1, 3, 180, 220, 150.0])
    old = torch.from_numpy(base * rng.normal(1, 0.02, (40, 9))).float()

    def report(facts: torch.Tensor, normals: list[str] | None = None, **shift: float) -> dict[str, Any]:
        factor = np.array([shift.get(name, 1.0) for name in FACTS])
        new = {f"n{i}": [base * factor * rng.normal(1, 0.02, 9)] for i in range(30)}
        scores = {name: float(rng.random()) for name in new}
        return drift_report(torch.rand(40, generator=torch.Generator().manual_seed(0)), facts, scores, new, normals)

    checks = drift_checks(report(old, spacing_a=2.0))
    assert [check.name.split(" (")[0] for check in checks] == [
        "scores",
        "intensity",
        "spacing",
        "field of view",
        "foreground",
    ]
    assert [check.warning for check in checks] == [False, False, True, False, False]
    found = report(old)
    of_a = found["facts"]["spacing_a"]
    said = f"A {of_a['new']['median']:.4g} against {of_a['calibration']['median']:.4g} (p = {of_a['p_value']:.2g}"
    assert said in drift_checks(found)[2].finding
    assert f"p = {found['scores']['p_value']:.2g}" in drift_checks(found)[0].finding
    without = drift_checks(report(torch.empty(0, 9), normals=[]))
    assert without[0].finding == "no new patient is labelled normal"
    assert all("the detector was calibrated" in check.finding for check in without[1:])
    assert not any(check.compared or check.warning for check in without)
    assert all(check.compared for check in checks)
    assert drift_checks(None) == []


def test_sides_are_hashed_by_content() -> None:
    rows = [{"label": 0, "patient": "a"}, {"label": 1, "patient": "a"}]
    sides = {
        "training": {"scans": 2, "patients": 1, "digests": ["a", "b"]},
        "validation": {"scans": 0, "patients": 0, "digests": []},
        "test": {"scans": 9, "patients": 9, "digests": ["x"]},
    }
    training, test = cohort_sides({"training": {"split": {"sides": sides}}}, rows, ["d", "c", "c"])
    assert training.sha256 == hashlib.sha256(json.dumps(["a", "b"]).encode()).hexdigest()
    assert test.sha256 == hashlib.sha256(json.dumps(["c", "d"]).encode()).hexdigest()
    assert (test.scans, test.patients, test.normal, test.abnormal) == (2, 1, 1, 1)
    [alone] = cohort_sides(None, [{"label": None, "patient": "a"}], ["c"])
    assert (alone.normal, alone.abnormal) == (None, None)


def test_groups_become_tables_with_intervals() -> None:
    rng = np.random.default_rng(0)
    rows = [
        {"label": i % 2, "anomaly_score": float(rng.random() + i % 2), "patient": f"p{i}", "site": "AB"[i > 25]}
        for i in range(30)
    ] + [{"label": 1, "anomaly_score": 1.0, "patient": "z", "site": "C"}]
    found = by_group(rows, "site", 0.7)
    for name, group in found.items():
        own = [row for row in rows if row["site"] == name]
        parts = ([row[key] for row in own] for key in ("patient", "label", "anomaly_score"))
        group["intervals"] = bootstrap_intervals(*parts, scan_statistics(0.7), n=50)
    [table] = group_tables({"site": found, "scanner": {}}, "own")
    assert [row[0] for row in table.rows] == ["A", "B", "C"]
    assert table.rows[0][1:5] == [26, 26, 13, 13]
    figures = dict(zip(table.columns, table.rows[0], strict=True))
    auroc, accuracy = figures["AUROC"], figures["accuracy (ACC)"]
    assert isinstance(auroc, Estimate)
    assert isinstance(accuracy, Estimate)
    assert auroc.value == found["A"]["auroc"]
    assert auroc.low is not None
    own = [row for row in rows if row["site"] == "A"]
    assert accuracy.value == pytest.approx(np.mean([(row["anomaly_score"] > 0.7) == row["label"] for row in own]))
    alone = dict(zip(table.columns, table.rows[2], strict=True))["AUROC"]
    assert alone == Estimate(None, undefined="no normal scan")
