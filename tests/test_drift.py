"""The check of new cohorts: silent on the same kind of patients, loud on others."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.stats import ks_2samp

from monai_anomaly.calibration import FACTS, CohortFacts, drift_report, scan_facts


def patients(count: int, seed: int, **shifts: float) -> tuple[dict[str, float], dict[str, list[np.ndarray]]]:
    random = np.random.default_rng(seed)
    scores, facts = {}, {}
    for i in range(count):
        row = np.array(
            [random.normal(500, 40), random.normal(90, 8), random.normal(0.4, 0.03), 1, 1, 3, 180, 220, 150.0]
        )
        row += [shifts.get(name, 0.0) for name in FACTS]
        scores[f"p{i:03d}"], facts[f"p{i:03d}"] = random.gamma(2) + shifts.get("score", 0.0), [row, row]
    return scores, facts


def known(count: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    scores, facts = patients(count, 0)
    cohort = CohortFacts()
    cohort.fit(facts)
    return torch.tensor(list(scores.values()), dtype=torch.float32), cohort.values


def test_facts_of_a_scan() -> None:
    voxels = torch.zeros(1, 4, 5, 6)
    voxels[:, 1:3, 1:3, 1:3] = torch.arange(8.0).reshape(2, 2, 2) + 10
    # the first voxel axis runs along S, the second along L, the third along A
    affine = torch.tensor([[0, -2.0, 0, 0], [0, 0, 3.0, 0], [1.00000001, 0, 0, 0], [0, 0, 0, 1]])
    facts = dict(zip(FACTS, scan_facts(MetaTensor(voxels, affine=affine), (voxels[0] > 0).numpy())))
    assert facts == pytest.approx(
        {
            "intensity_mean": 13.5,
            "intensity_spread": float(f"{np.std(np.arange(8)):.4g}"),
            "foreground_share": 0.06667,
            "spacing_r": 2.0,
            "spacing_a": 3.0,
            "spacing_s": 1.0,
            "extent_r": 10.0,
            "extent_a": 18.0,
            "extent_s": 4.0,
        },
        rel=1e-6,
    )


def test_values_beyond_float32_can_be_written() -> None:
    scores, facts = patients(2, 1, intensity_mean=1e300, extent_r=4e38)
    report = drift_report(*known(), scores, facts)
    assert json.dumps(report, allow_nan=False)
    assert {"intensity_mean", "extent_r"} <= set(report["drifted"])


@pytest.mark.slow
def test_patients_of_the_same_kind_are_rarely_taken_for_others() -> None:
    warnings = sum(drift_report(*known(), *patients(25, seed))["drift"] for seed in range(1, 101))
    assert warnings <= 5  # level 0.01


@pytest.mark.parametrize(
    ("count", "shifts", "names"),
    [
        (25, {"score": 3.0}, {"scores"}),
        (25, {"intensity_mean": 80.0}, {"intensity_mean"}),
        (25, {"spacing_s": 2.0, "extent_s": 30.0}, {"spacing_s", "extent_s"}),
        (1, {"spacing_s": 2.0}, {"spacing_s"}),
        (2, {"intensity_mean": 4000.0}, {"intensity_mean"}),
    ],
)
def test_other_patients_are_told(count: int, shifts: dict[str, float], names: set[str]) -> None:
    report = drift_report(*known(), *patients(count, 4, **shifts))
    assert report["drift"]
    assert set(report["drifted"]) == names
    assert "no longer hold" in report["statement"]
    assert ("no label says" in report["statement"]) == (names == {"scores"})
    json.dumps(report, allow_nan=False)


def test_headers_that_differ_by_rounding_are_the_same() -> None:
    voxels, foreground = torch.rand(1, 3, 3, 3), np.ones((3, 3, 3), dtype=bool)
    one, two = (
        scan_facts(MetaTensor(voxels, affine=torch.eye(4, dtype=torch.float64) * (1 + error)), foreground)
        for error in (0.0, 1e-6)
    )
    assert one.tolist() == two.tolist()


def test_statistic_is_scipys_per_patient() -> None:
    scores, facts = patients(12, 9)
    report = drift_report(*known(), scores, facts)
    expected = ks_2samp(known()[0].double().numpy(), list(scores.values()))
    assert report["scores"]["statistic"] == pytest.approx(expected.statistic)
    assert report["scores"]["p_value"] == pytest.approx(expected.pvalue)
    assert (report["calibration_patients"], report["new_patients"]) == (30, 12)


def test_scores_are_compared_among_the_normals_where_labels_are_known() -> None:
    scores, facts = patients(40, 3)
    abnormal = list(scores)[:20]
    for patient in abnormal:
        scores[patient] += 50
    assert "scores" in drift_report(*known(), scores, facts)["drifted"]
    report = drift_report(*known(), scores, facts, normals=list(scores)[20:])
    assert not report["drift"]
    assert report["scores"]["patients"] == 20
    none = drift_report(*known(), scores, facts, normals=[])
    assert none["scores"] == {
        "compared": "new patients labelled normal",
        "patients": 0,
        "reason": "no new patient is labelled normal",
    }


def test_calibration_of_an_older_version_compares_scores_alone() -> None:
    report = drift_report(known()[0], torch.empty(0, 0), *patients(20, 3))
    assert report["facts"] is None
    assert "kept none" in report["facts_reason"]


def test_an_empty_side_is_refused() -> None:
    with pytest.raises(ValueError, match="one side is empty"):
        drift_report(torch.empty(0), torch.empty(0, 0), *patients(2, 0))
