"""Conformal thresholds: the definition, the smallest cohorts, and the error rate that they promise."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import betabinom

from monai_anomaly.calibration import (
    ConformalCalibration,
    CrossConformal,
    check_rate,
    conformal_p_value,
    conformal_quantile,
    least_normals,
)
from monai_anomaly.exceptions import InputError
from monai_anomaly.networks import ProxyAno


def plain_quantile(scores: list[float], alpha: Fraction) -> float | None:
    """The least score that at least ceil((n + 1)(1 - alpha)) of the scores do not exceed."""
    wanted = (len(scores) + 1) * (1 - alpha)
    for score in sorted(scores):
        if sum(other <= score for other in scores) >= wanted:
            return score
    return None


@settings(max_examples=200, deadline=None)
@given(
    scores=st.lists(st.integers(-20, 20), max_size=60),
    alpha=st.fractions(min_value=Fraction(1, 200), max_value=Fraction(199, 200), max_denominator=200),
)
def test_quantile_is_the_definition(scores: list[int], alpha: Fraction) -> None:
    values = torch.tensor(scores, dtype=torch.float32)
    assert conformal_quantile(values, float(alpha)) == plain_quantile([float(s) for s in scores], alpha)


@pytest.mark.parametrize(("alpha", "needed"), [(0.05, 19), (0.1, 9), (0.01, 99), (0.2, 4), (0.5, 1)])
def test_smallest_cohort_of_a_rate(alpha: float, needed: int) -> None:
    scores = torch.arange(1.0, needed + 1)
    assert conformal_quantile(scores[:-1], alpha) is None
    assert conformal_quantile(scores, alpha) == needed


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_rates_outside_zero_to_one_are_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        conformal_quantile(torch.ones(5), alpha)


def test_rate_next_to_one_takes_the_least_score() -> None:
    assert conformal_quantile(torch.tensor([3.0, 1.0, 2.0]), 1 - 1e-12) == 1.0


@pytest.mark.parametrize(("n", "alpha"), [(19, 0.05), (25, 0.05), (40, 0.1), (9, 0.1)])
def test_rate_of_normals_above_the_threshold(n: int, alpha: float) -> None:
    random = np.random.default_rng(20)
    trials = 4000
    exceeded = 0
    for scores in random.gamma(2.0, size=(trials, n + 1)).astype(np.float32):
        threshold = conformal_quantile(torch.from_numpy(scores[:n]), alpha)
        assert threshold is not None
        exceeded += bool(scores[n] > threshold)
    # without ties the rate is exactly (n + 1 - rank) / (n + 1): at most alpha, and more than alpha - 1 / (n + 1)
    error = 4 * np.sqrt(alpha * (1 - alpha) / trials)
    assert alpha - 1 / (n + 1) - error < exceeded / trials <= alpha + error


def test_threshold_is_of_the_map_maxima() -> None:
    calibration = ConformalCalibration()
    assert calibration.map_threshold(0.05) is None
    scores = {f"p{i}": float(i) for i in range(19)}
    calibration.fit(scores, {patient: 100 - score for patient, score in scores.items()})
    assert calibration.map_threshold(0.05) == 100.0
    assert calibration.map_threshold(0.04) is None
    # one entry per patient in one order
    torch.testing.assert_close(calibration.scores + calibration.map_maxima, torch.full((19,), 100.0))


def test_both_values_must_name_the_same_patients() -> None:
    with pytest.raises(ValueError, match="same patients"):
        ConformalCalibration().fit({"a": 1.0}, {"b": 1.0})


def test_entries_travel_with_the_state_of_a_detector() -> None:
    arguments: dict[str, Any] = {"channels": (4, 4), "latent_channels": 4, "num_items": 4}
    torch.manual_seed(0)
    first, second = ProxyAno(**arguments), ProxyAno(**arguments)
    first.calibration.fit({f"p{i}": i * 0.5 for i in range(23)}, {f"p{i}": i * 0.25 for i in range(23)})
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.calibration.scores, first.calibration.scores)
    assert torch.equal(second.calibration.map_maxima, first.calibration.map_maxima)
    assert second.calibration.map_threshold(0.05) == first.calibration.map_threshold(0.05)
    # and back to an uncalibrated one
    second.load_state_dict(ProxyAno(**arguments).state_dict())
    assert second.calibration.scores.shape == (0,)


def test_state_of_an_older_version_is_loaded_without_what_it_lacks() -> None:
    arguments: dict[str, Any] = {"channels": (4, 4), "latent_channels": 4, "num_items": 4}
    first, second = ProxyAno(**arguments), ProxyAno(**arguments)
    first.calibration.fit({"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 4.0}, {"a": [0.5, 1.0], "b": [2.0]})
    known = ("calibration.scores", "calibration.map_maxima")
    old = {key: v for key, v in first.state_dict().items() if not key.startswith("calibration.") or key in known}
    second.calibration.fit({"c": 1.0}, {"c": 1.0})
    second.load_state_dict(old)
    assert torch.equal(second.calibration.map_maxima, first.calibration.map_maxima)
    assert second.calibration.item_scores.numel() == second.calibration.tail.values.numel() == 0
    assert set(old) == {k for k in first.state_dict() if not k.startswith("calibration.")} | set(known)
    # patients' highest scores stand in for those of their scans
    assert second.calibration.p_value(0.7) == 3 / 3
    assert first.calibration.p_value(0.7) == pytest.approx((1 + 0.5 + 1) / 3)
    del old["calibration.scores"]
    with pytest.raises(RuntimeError, match=r"calibration\.scores"):
        second.load_state_dict(old)


SCORES = st.integers(-20, 20).map(float)


@settings(max_examples=100, deadline=None)
@given(patients=st.lists(st.lists(SCORES, min_size=1, max_size=4), max_size=12), score=SCORES)
def test_p_values_are_their_definitions(patients: list[list[float]], score: float) -> None:
    n = len(patients)
    of_items = (1 + sum(sum(s >= score for s in items) / len(items) for items in patients)) / (n + 1)
    of_patient = (1 + sum(max(items) >= score for items in patients)) / (n + 1)
    assert conformal_p_value(torch.tensor([max(items) for items in patients]), score) == pytest.approx(of_patient)
    calibration = ConformalCalibration()
    items = {f"p{i:02d}": items for i, items in enumerate(patients)}
    highest = {patient: max(scores) for patient, scores in items.items()}
    calibration.fit(highest, highest, items)
    if not n:
        assert (
            calibration.p_value(score) is calibration.patient_p_value(score) is calibration.map_p_value(score) is None
        )
        return
    assert calibration.p_value(score) == pytest.approx(of_items)
    assert calibration.patient_p_value(score) == calibration.map_p_value(score) == pytest.approx(of_patient)
    batch = calibration.item_p_values(torch.tensor([score, score + 1]))
    assert float(batch[0]) == calibration.p_value(score) >= float(batch[1])


@settings(max_examples=100, deadline=None)
@given(scores=st.lists(SCORES, min_size=1, max_size=60), alpha=st.sampled_from([0.01, 0.05, 0.1, 0.3]), score=SCORES)
def test_a_score_lies_above_the_threshold_where_its_p_value_is_at_most_alpha(
    scores: list[float], alpha: float, score: float
) -> None:
    values = torch.tensor(scores)
    threshold = conformal_quantile(values, alpha)
    flagged = threshold is not None and score > threshold
    assert flagged == (conformal_p_value(values, score) <= alpha + 1e-12)


@pytest.mark.parametrize("alpha", [0.5, 0.2, 0.1, 0.05, 0.03, 0.01, 0.001])
def test_rates_that_patients_cannot_carry_are_refused(alpha: float) -> None:
    needed = least_normals(alpha)
    assert 1 / (needed + 1) <= alpha + 1e-12
    assert needed == 1 or 1 / needed > alpha
    check_rate(alpha, needed)
    with pytest.raises(InputError, match=rf"alpha {alpha:g}: needs {needed} normal calibration patients, there are"):
        check_rate(alpha, needed - 1)


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(patients=st.integers(1, 100_000))
def test_the_rate_that_a_refusal_names_is_one_for_these_patients(patients: int) -> None:
    with pytest.raises(InputError) as refused:
        check_rate(0.5 / (patients + 1), patients, "sing")
    named = re.search(r"Calibrate on more, or choose alpha (\S+) or above, or sing\.$", str(refused.value))
    assert named is not None
    check_rate(float(named[1]), patients)
    assert float(named[1]) <= 1.02 / (patients + 1)


@pytest.mark.slow
def test_items_of_one_patient_do_not_count_as_patients() -> None:
    # scans of a patient are alike, and patients have between 1 and 30
    random = np.random.default_rng(3)
    alpha, patients, trials = 0.1, 30, 3000
    flagged = {"patients": 0, "scans": 0}
    for _ in range(trials):
        of = [random.normal() + 0.1 * random.normal(size=random.integers(1, 31)) for _ in range(patients + 1)]
        new = float(random.choice(of[-1]))
        tensors = [torch.from_numpy(scores) for scores in of[:-1]]
        shares = sum(float((scores >= new).double().mean()) for scores in tensors)
        flagged["patients"] += (1 + shares) / (patients + 1) <= alpha
        flagged["scans"] += conformal_p_value(torch.cat(tensors), new) <= alpha
    error = 3 * np.sqrt(alpha * (1 - alpha) / trials)
    assert flagged["patients"] / trials <= alpha + error
    # the scans pooled as if they were patients give more false positives
    assert flagged["scans"] > flagged["patients"]


@pytest.mark.parametrize(("alpha", "n", "m"), [(0.05, 40, 50), (0.1, 25, 40), (0.01, 150, 100), (0.05, 19, 30)])
def test_false_positives_are_beta_binomial(alpha: float, n: int, m: int) -> None:
    random = np.random.default_rng(11)
    splits = 1500
    counts = np.empty(splits)
    for split, scores in enumerate(random.lognormal(size=(splits, n + m)).astype(np.float32)):
        threshold = conformal_quantile(torch.from_numpy(scores[:n]), alpha)
        counts[split] = (scores[n:] > threshold).sum()
    allowed = int(np.floor(alpha * (n + 1) + 1e-9))
    law = betabinom(m, allowed, n + 1 - allowed)
    assert law.mean() / m == pytest.approx(allowed / (n + 1))
    assert abs(counts.mean() - law.mean()) < 4 * law.std() / np.sqrt(splits)
    # the whole law, by the largest distance of the distribution functions (Dvoretzky-Kiefer-Wolfowitz, 1e-4)
    grid = np.arange(m + 1)
    found = (counts[:, None] <= grid).mean(axis=0)
    assert np.abs(found - law.cdf(grid)).max() < np.sqrt(np.log(2 / 1e-4) / (2 * splits))


def test_cross_conformal_p_value_is_its_definition_and_its_bound_holds() -> None:
    folds = [torch.tensor([1.0, 5.0]), torch.tensor([2.0, 3.0, 3.0])]
    cross = CrossConformal(folds)
    assert cross.p_value([4.0, 3.0]) == (1 + 1 + 2) / 6
    with pytest.raises(ValueError, match="2 detectors"):
        cross.p_value([1.0])
    with pytest.raises(InputError, match="needs 19 normal calibration patients, there are 5"):
        cross.flags([9.0, 9.0], 0.05)
    assert cross.flags([9.0, 9.0], 0.2)
    # one patient in each fold: the jackknife+'s 2 alpha
    assert CrossConformal([torch.ones(1)] * 20).bound(0.05) == pytest.approx(0.1)
    assert CrossConformal([torch.ones(10)] * 4).bound(0.05) == pytest.approx(0.1 + min(1.5 / 11, 0.9 / 5))
    for broken in ([], [torch.ones(3)], [torch.ones(3), torch.ones(0)]):
        with pytest.raises(ValueError, match="two folds"):
            CrossConformal(broken)


def test_cross_conformal_rate_with_a_model_that_overfits() -> None:
    # the "detector" of a fold scores the distance from the mean of the others
    random = np.random.default_rng(5)
    n, k, alpha, trials = 20, 5, 0.1, 1500
    flagged = 0
    for _ in range(trials):
        data, new = random.normal(size=(n, 3)), random.normal(size=3)
        parts = np.arange(n) % k
        centres = [data[parts != fold].mean(axis=0) for fold in range(k)]
        folds = [np.linalg.norm(data[parts == fold] - centres[fold], axis=1) for fold in range(k)]
        cross = CrossConformal([torch.from_numpy(fold) for fold in folds])
        flagged += cross.flags([float(np.linalg.norm(new - centre)) for centre in centres], alpha)
    assert 0.03 < flagged / trials <= cross.bound(alpha)
