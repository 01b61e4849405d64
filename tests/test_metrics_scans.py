"""Metrics of scans, patients and groups, their intervals, and the papers' own figures, against plain definitions."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_anomaly.metrics import (
    CohortFigures,
    Thresholds,
    bootstrap_intervals,
    decision_metrics,
    image_metrics,
    mean_and_spread,
    patient_level,
    scan_statistics,
    score_gap,
    sensitivity_at_specificity,
)

SCORE = st.one_of(st.integers(-2, 2).map(float), st.floats(allow_nan=False, allow_infinity=False))
SCANS = st.lists(st.tuples(st.sampled_from([0, 1, None]), SCORE), max_size=25)


def parted(scans: list[tuple[int | None, float]]) -> tuple[list[int | None], list[float]]:
    return [label for label, _ in scans], [score for _, score in scans]


def checked(result: dict[str, Any], *whole: str) -> None:
    """A result is written as JSON without NaN, says why of each None, and has rates within [0, 1]."""
    json.dumps(result, allow_nan=False)
    for name, value in result.items():
        assert (value is None) == (name in result["undefined"]), name
        if isinstance(value, float) and name not in ("threshold", *whole):
            assert 0.0 <= value <= 1.0, name


@pytest.mark.slow
@given(SCANS, SCORE)
@settings(max_examples=150, deadline=None)
def test_decisions_equal_scikit_learn(scans: list[tuple[int | None, float]], threshold: float) -> None:
    from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

    labels, scores = parted(scans)
    got = decision_metrics(labels, scores, threshold)
    checked(got)
    truth = [label for label in labels if label is not None]
    flagged = [int(score > threshold) for label, score in scans if label is not None]
    if truth:
        assert got["accuracy"] == pytest.approx(accuracy_score(truth, flagged))
    if 1 in truth:
        assert got["f1"] == pytest.approx(f1_score(truth, flagged, zero_division=0))
        assert got["sensitivity"] == pytest.approx(recall_score(truth, flagged))
    if 0 in truth:
        assert got["specificity"] == pytest.approx(recall_score(truth, flagged, pos_label=0))
        assert got["fpr"] == pytest.approx(1 - got["specificity"])
    if any(flagged):
        assert got["precision"] == pytest.approx(precision_score(truth, flagged))
    assert got["undefined"].keys() == {
        *(() if truth else ("accuracy",)),
        *(() if 1 in truth else ("f1", "sensitivity")),
        *(() if 0 in truth else ("specificity", "fpr")),
        *(() if any(flagged) else ("precision",)),
    }


def test_a_score_at_the_threshold_is_not_flagged() -> None:
    # the conformal threshold is itself a normal's score
    assert decision_metrics([0, 1], [0.5, 0.5], 0.5)["true_negative"] == 1
    with pytest.raises(ValueError, match="threshold is NaN"):
        decision_metrics([0], [0.1], float("nan"))
    with pytest.raises(ValueError, match="2 labels but 1 scores"):
        decision_metrics([0, 1], [0.1], 0.5)
    with pytest.raises(ValueError, match="labels"):
        decision_metrics([2], [0.1], 0.5)


@pytest.mark.slow
@given(SCANS, st.sampled_from([0.5, 0.8, 0.9, 0.95, 1.0]))
@settings(max_examples=200, deadline=None)
def test_sensitivity_at_a_specificity_is_the_best_of_all_thresholds(
    scans: list[tuple[int | None, float]], specificity: float
) -> None:
    labels, scores = parted(scans)
    got = sensitivity_at_specificity(labels, scores, specificity)
    checked(got)
    normal = [s for label, s in scans if label == 0]
    abnormal = [s for label, s in scans if label == 1]
    assert image_metrics(labels, scores, specificity=specificity)["sensitivity_at_specificity"] == got["sensitivity"]
    if not normal or not abnormal:
        assert set(got["undefined"]) == {"sensitivity", "specificity", "threshold"}
        return
    best = 0.0, None
    for t in sorted({*normal, *abnormal}, reverse=True):
        sensitivity = sum(a >= t for a in abnormal) / len(abnormal)
        if sum(n < t for n in normal) / len(normal) >= specificity - 1e-12 and sensitivity > best[0]:
            best = sensitivity, t
    assert (got["sensitivity"], got["threshold"]) == best
    assert got["specificity"] >= specificity - 1e-12


def test_sensitivity_at_specificity_counts_whole_scans() -> None:
    # 95 % of 20 normals: one may be flagged, of 19 none
    scores = [*range(20), 18.5]
    assert sensitivity_at_specificity([0] * 20 + [1], scores)["sensitivity"] == 1.0
    assert sensitivity_at_specificity([0] * 19 + [1], [*range(1, 20), 18.5])["sensitivity"] == 0.0
    with pytest.raises(ValueError, match="specificity"):
        sensitivity_at_specificity([0, 1], [0.0, 1.0], 0.0)


def test_image_metrics_leave_out_scans_without_a_label() -> None:
    scores = [0.1, 0.7, 0.4, 0.9, float("nan")]
    got = image_metrics([0, 0, 1, 1, None], scores, threshold=0.5)
    assert got["auroc"] == 0.75
    assert got["ap"] == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert (got["num_normal"], got["num_abnormal"], got["prevalence"]) == (2, 2, 0.5)
    assert got["decision"] == decision_metrics([0, 0, 1, 1, None], scores, 0.5)
    assert got["undefined"] == {}
    one = image_metrics([0, None], [0.1, 0.2])
    assert one["auroc"] is one["ap"] is one["decision"] is None
    assert one["undefined"]["auroc"] == "no abnormal scan"
    assert one["undefined"]["decision"] == "no threshold"
    assert image_metrics([1], [0.1])["undefined"]["ap"] == "no normal scan"
    assert image_metrics([], [])["undefined"]["prevalence"] == "no labelled scan"
    # equal in float32, not in float64
    assert image_metrics([0, 1], [1.0, 1.0 + 1e-12])["auroc"] == 1.0
    with pytest.raises(ValueError, match="2 labels but 1 scores"):
        image_metrics([0, 1], [0.5])
    with pytest.raises(ValueError, match="NaN"):
        image_metrics([0, 1], [0.5, float("nan")])


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([0, 1, None]), SCORE), max_size=12))
@settings(max_examples=100, deadline=None)
def test_patients_have_the_highest_score_and_any_lesion(rows: list[tuple[str, int | None, float]]) -> None:
    got = patient_level(*([row[i] for row in rows] for i in range(3)))
    assert got.patients == list(dict.fromkeys(row[0] for row in rows))
    for patient, label, score in zip(*got):
        theirs = [row for row in rows if row[0] == patient]
        assert score == max(row[2] for row in theirs)
        labels = {row[1] for row in theirs}
        assert label == (1 if 1 in labels else None if None in labels else 0)


def test_patient_level_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="1 patients, 2 labels"):
        patient_level(["a"], [0, 1], [0.1, 0.2])
    with pytest.raises(ValueError, match="patient a is NaN"):
        patient_level(["a"], [0], [float("nan")])
    with pytest.raises(ValueError, match="labels"):
        patient_level(["a"], [3], [0.1])


def test_groups_are_measured_apart_at_one_threshold() -> None:
    figures = CohortFigures({"m": Thresholds(0.5)})
    for patient, label, score, site in (
        ("p1", 0, 0.1, "A"),
        ("p2", 1, 0.9, "A"),
        ("p2", 1, 0.2, "A"),
        ("p3", 0, 0.6, "B"),
        ("p4", None, 0.6, ""),
    ):
        figures.add({"patient": patient, "label": label, "site": site}, {"m": score}, {}, None)
    table = figures.compute()
    groups = [row.group for row in table.where(level="image", metric="num_patients")]
    assert groups == ["", "site: A", "site: B", "site: not stated"]
    assert table.value("m", "image", "num_patients", "site: A") == 2
    assert table.value("m", "image", "auroc", "site: A") == 1.0
    assert table.value("m", "image", "sensitivity", "site: A") == 0.5
    assert table.value("m", "image", "auroc", "site: B") is None
    assert table.value("m", "image", "specificity", "site: B") == 0.0


def cohort(seed: int = 0, patients: int = 30) -> tuple[list[str], list[int], list[float]]:
    """Three scans a patient, alike in score; every third patient is abnormal."""
    rng = np.random.default_rng(seed)
    names, labels, scores = [], [], []
    for p in range(patients):
        own = rng.normal(1.0 * (p % 3 == 0))
        names += [f"p{p}"] * 3
        labels += [int(p % 3 == 0)] * 3
        scores += (own + 0.1 * rng.standard_normal(3)).tolist()
    return names, labels, scores


def test_intervals_resample_patients_with_all_their_scans() -> None:
    names, labels, scores = cohort()
    seen: list[tuple[int, int, int]] = []

    def spy(truth: np.ndarray, values: np.ndarray) -> float:
        copies = {value: int(np.sum(values == value)) for value in values}
        for first in range(0, len(scores), 3):  # the three scans of a patient come equally often
            assert len({copies.get(scores[first + i], 0) for i in range(3)}) == 1
        seen.append((len(truth), int(truth.sum()), len(copies)))
        return float(values.mean())

    got = bootstrap_intervals(names, labels, scores, {"mean": spy}, n=50)
    assert set(seen[1:]) <= {(90, 30, k) for k in range(6, 91, 3)}, "stratified: as many of each as there are"
    assert len({k for *_, k in seen}) > 1
    assert (got["num_normal_patients"], got["num_abnormal_patients"], got["redrawn"]) == (20, 10, 0)
    seen.clear()
    bootstrap_intervals(names, labels, scores, {"mean": spy}, n=50, stratified=False)
    assert len({abnormal for _, abnormal, _ in seen}) > 1


@pytest.mark.slow
def test_intervals_are_the_quantiles_of_a_plain_bootstrap() -> None:
    names, labels, scores = cohort(1)
    got = bootstrap_intervals(names, labels, scores, n=600, level=0.8, seed=3)
    again = bootstrap_intervals(names, labels, scores, n=600, level=0.8, seed=3)
    assert got == again
    assert got != bootstrap_intervals(names, labels, scores, n=600, level=0.8, seed=4)
    # independently: draw names, look scans up, compare every pair
    rng = np.random.default_rng(99)
    kinds = [[f"p{p}" for p in range(30) if (p % 3 == 0) is kind] for kind in (False, True)]
    drawn = []
    for _ in range(600):
        chosen = [str(name) for kind in kinds for name in rng.choice(kind, len(kind))]
        rows = [row for name in chosen for row in zip(names, labels, scores) if row[0] == name]
        values = {label: np.array([row[2] for row in rows if row[1] == label]) for label in (0, 1)}
        drawn.append(np.mean(values[1][:, None] > values[0][None]))
    interval = got["intervals"]["auroc"]
    assert interval["value"] == image_metrics(labels, scores)["auroc"]
    assert [interval["low"], interval["high"]] == pytest.approx(np.quantile(drawn, (0.1, 0.9)).tolist(), abs=0.02)
    assert interval["low"] < interval["value"] < interval["high"]


def test_clustered_intervals_are_wider_than_those_of_scans() -> None:
    names, labels, scores = cohort(2)
    width = []
    for units in (names, list(range(len(names)))):
        interval = bootstrap_intervals(units, labels, scores, n=300)["intervals"]["auroc"]
        width.append(interval["high"] - interval["low"])
    assert width[0] > 1.3 * width[1]


def test_undefined_resamples_are_redrawn_and_counted() -> None:
    # two patients of each kind: an unstratified resample often lacks a class
    names, labels, scores = ["a", "b", "c", "d"], [0, 0, 1, 1], [0.1, 0.4, 0.3, 0.9]
    got = bootstrap_intervals(names, labels, scores, n=200, stratified=False)
    assert got["redrawn"] > 5
    assert got["intervals"]["auroc"]["low"] is not None
    # that no patient is drawn twice is rare: (4! / 4^4)^2 of the resamples
    eight = [f"p{i}" for i in range(8)], [0, 1] * 4, [float(i) for i in range(8)]
    never = bootstrap_intervals(*eight, {"x": lambda t, s: 0.5 if len(set(s)) == 8 else None}, n=200)
    assert never["intervals"]["x"] == {"value": 0.5, "low": None, "high": None}
    assert "too many resamples" in never["undefined"]["x"]
    assert never["redrawn"] > 1000
    few = bootstrap_intervals(["a", "b", "b", "c"], [0, 1, 1, 0], [0.1, 0.3, 0.2, 0.4], scan_statistics(0.2), n=20)
    assert set(few["undefined"].values()) == {"1 abnormal patient(s): too few to resample"}
    assert set(few["intervals"]) == {
        *("auroc", "ap", "sensitivity_at_specificity", "accuracy", "f1", "sensitivity", "specificity")
    }
    # slices of patients who all have a lesion somewhere: one kind of patient, both classes
    mixed = bootstrap_intervals(["a", "a", "b", "b", "c", "c"], [0, 1] * 3, [1.0, 2.0, 4.0, 3.0, 5.0, 6.0], n=50)
    assert (mixed["num_normal_patients"], mixed["num_abnormal_patients"]) == (0, 3)
    assert mixed["intervals"]["auroc"]["low"] < mixed["intervals"]["auroc"]["value"]
    assert not mixed["undefined"]
    alone = bootstrap_intervals(["a", "b", None], [0, 0, None], [0.1, 0.2, float("nan")], n=5)
    assert alone["undefined"]["auroc"] == "undefined for these scans"
    assert bootstrap_intervals([], [], [])["intervals"]["ap"]["value"] is None
    json.dumps([got, never, few, alone], allow_nan=False)


def test_intervals_at_a_threshold_hold_the_value() -> None:
    names, labels, scores = cohort(5)
    got = bootstrap_intervals(names, labels, scores, scan_statistics(0.8), n=100)
    decision = decision_metrics(labels, scores, 0.8)
    for name in ("accuracy", "f1", "sensitivity", "specificity"):
        interval = got["intervals"][name]
        assert interval["value"] == decision[name]
        assert 0 <= interval["low"] <= interval["value"] <= interval["high"] <= 1
    for arguments in ({"n": 0}, {"level": 1.0}):
        with pytest.raises(ValueError, match="level"):
            bootstrap_intervals(names, labels, scores, **arguments)
    with pytest.raises(ValueError, match="give one of each"):
        bootstrap_intervals(names, labels[1:], scores)
    with pytest.raises(ValueError, match="NaN"):
        bootstrap_intervals(["a"], [1], [float("nan")])


# Table 6 of ITAE, the row that varies, with its printed mean and standard deviation
GEOTRANS = [91.55, 72.38, 81.26, 82.94, 87.04, 87.95, 87.24, 81.77, 85.51, 85.68]


def test_mean_and_spread_are_those_of_the_papers_table() -> None:
    got = mean_and_spread(GEOTRANS)
    assert got["mean"] == pytest.approx(84.33, abs=0.005)
    assert got["sd"] == pytest.approx(5.22, abs=0.005)
    assert (got["min"], got["max"], got["n"], got["undefined"]) == (72.38, 91.55, 10, {})
    partly = mean_and_spread([0.5, None])
    assert (partly["mean"], partly["n"], partly["num_undefined"]) == (0.5, 1, 1)
    assert partly["undefined"] == {"sd": "a single run has no spread"}
    assert set(mean_and_spread([None])["undefined"]) == {"mean", "sd", "min", "max"}
    assert mean_and_spread([0.1] * 3)["mean"] == pytest.approx(0.1, abs=1e-16)


@given(SCANS)
@settings(max_examples=80, deadline=None)
def test_gap_is_the_difference_of_the_means(scans: list[tuple[int | None, float]]) -> None:
    scans = [(label, max(min(score, 1e6), -1e6)) for label, score in scans]
    got = score_gap(*parted(scans))
    checked(got, "normal", "abnormal", "gap", "gap_in_sd")
    means = {}
    for name, label in (("normal", 0), ("abnormal", 1)):
        scores = [score for own, score in scans if own == label]
        means[name] = sum(scores) / len(scores) if scores else None
        assert got[name] == (None if not scores else pytest.approx(means[name], rel=1e-9, abs=1e-9))
    if None not in means.values():
        assert got["gap"] == pytest.approx(means["abnormal"] - means["normal"], rel=1e-9, abs=1e-6)


def test_gap_in_standard_deviations_does_not_depend_on_the_unit() -> None:
    labels, scores = [0, 0, 0, 1, 1], [0.4, 0.5, 0.6, 0.9, 1.1]
    got, scaled = score_gap(labels, scores), score_gap(labels, [1000 * s for s in scores])
    assert got["gap"] == pytest.approx(0.5)
    assert got["gap_in_sd"] == pytest.approx(5.0)
    assert scaled["gap_in_sd"] == pytest.approx(5.0)
    assert score_gap([0, 0, 1], [0.5, 0.5, 1.0])["undefined"] == {"gap_in_sd": "the scores of normal scans do not vary"}
