"""Conformal thresholds: the definition, the smallest cohorts, and the error rate that they promise."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_anomaly.calibration import ConformalCalibration, conformal_quantile
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
