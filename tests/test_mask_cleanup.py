"""Clean-up of masks: what it takes away, and that it takes away only."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from scipy.ndimage import label

from monai_anomaly.calibration import MaskCleanup, conformal_quantile


def scan_of(shape: tuple[int, ...], spacing: tuple[float, float, float]) -> MetaTensor:
    return MetaTensor(torch.zeros(1, *shape), affine=torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64)))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 999),
    least=st.sampled_from([0.0, 1.0, 6.0, 12.5, 40.0, 1e6]),
    inside=st.booleans(),
    spacing=st.sampled_from([(1.0, 1.0, 1.0), (0.5, 2.0, 3.0)]),
    share=st.sampled_from([0.0, 0.05, 0.15, 1.0]),
)
def test_findings_below_the_size_or_outside_go(
    seed: int, least: float, inside: bool, spacing: tuple[float, float, float], share: float
) -> None:
    random = np.random.default_rng(seed)
    mask, foreground = random.random((6, 7, 5)) < share, random.random((6, 7, 5)) < 0.7
    cleaned = MaskCleanup(least, inside)(mask, scan_of(mask.shape, spacing), foreground)
    expected = mask & foreground if inside else mask
    regions, number = label(expected, structure=np.ones((3, 3, 3)))
    for i in range(1, number + 1):
        if (regions == i).sum() * np.prod(spacing) < least:
            expected = expected & (regions != i)
    np.testing.assert_array_equal(cleaned, expected)
    assert not (cleaned & ~mask).any()


def test_a_negative_size_is_refused() -> None:
    with pytest.raises(ValueError, match="least_lesion_mm3"):
        MaskCleanup(-1)


def test_the_family_wise_rate_holds_with_clean_up() -> None:
    random = np.random.default_rng(2)
    alpha, n, trials = 0.1, 19, 400
    flagged = {"raw": 0, "cleaned": 0}
    cleanup = MaskCleanup(2.0, inside_foreground=True)
    for _ in range(trials):
        maps = random.normal(size=(n + 1, 5, 5, 4))
        maps[:, :, :, 1:] += maps[:, :, :, :-1]  # neighbours are alike
        threshold = conformal_quantile(torch.from_numpy(maps[:n].reshape(n, -1).max(axis=1)), alpha)
        mask = maps[n] > threshold
        cleaned = cleanup(mask, scan_of(mask.shape, (1.0, 1.0, 1.0)), random.random(mask.shape) < 0.9)
        assert not (cleaned & ~mask).any()
        flagged["raw"] += mask.any()
        flagged["cleaned"] += cleaned.any()
    error = 3 * np.sqrt(alpha * (1 - alpha) / trials)
    assert flagged["cleaned"] <= flagged["raw"]
    assert flagged["cleaned"] / trials <= flagged["raw"] / trials <= alpha + error


def test_description_names_what_is_on() -> None:
    assert MaskCleanup().description == ""
    assert MaskCleanup(12.5, True).description == ">=12.5mm3; in fg"
