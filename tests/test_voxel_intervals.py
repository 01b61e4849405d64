"""Intervals of voxel metrics: against scikit-learn on voxels that are repeated as often as their patient was drawn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, recall_score, roc_auc_score

from monai_anomaly.metrics import PixelMetrics, VoxelIntervals

Scan = tuple[int, np.ndarray, np.ndarray]


def scans(seed: int, normal: int, abnormal: int, levels: int) -> list[Scan]:
    """(patient, map, mask), some patients with two scans; scores of few binary digits, which the grid holds exactly."""
    rng = np.random.default_rng(seed)
    found = []
    for patient in range(normal + abnormal):
        for _ in range(1 + patient % 2):
            mask = np.zeros((4, 5, 2), dtype=bool)
            if patient >= normal:
                mask[:2, :2, 0] = True
            scores = rng.integers(-levels, levels, mask.shape) / levels + 0.5 * mask
            found.append((patient, scores.astype(np.float32), mask))
    return found


def obvious(drawn: list[Scan], threshold: float) -> dict[str, float]:
    truth = np.concatenate([mask.ravel() for _, _, mask in drawn])
    values = np.concatenate([scores.ravel() for _, scores, _ in drawn])
    return {
        "auroc": roc_auc_score(truth, values),
        "ap": average_precision_score(truth, values),
        "dice/t": f1_score(truth, values > threshold, zero_division=0),
        "sensitivity/t": recall_score(truth, values > threshold),
    }


@pytest.mark.slow
@given(
    seed=st.integers(0, 10_000),
    normal=st.sampled_from([0, 2, 3]),
    abnormal=st.integers(2, 4),
    levels=st.sampled_from([2, 32]),
)
@settings(deadline=None, max_examples=25)
def test_one_resample_is_that_of_repeated_voxels(seed: int, normal: int, abnormal: int, levels: int) -> None:
    data = scans(seed, normal, abnormal, levels)
    intervals = VoxelIntervals({"t": 0.25})
    for scan in data:
        intervals.update(*scan)
    found = intervals.compute(n=1, seed=seed)
    assert (found["num_normal_patients"], found["num_abnormal_patients"], found["undefined"]) == (normal, abnormal, {})
    rng = np.random.default_rng(seed)
    repeats = [count for k in (normal, abnormal) if k for count in rng.multinomial(k, np.full(k, 1 / k))]
    everyone, once = obvious(data, 0.25), obvious([s for s in data for _ in range(repeats[s[0]])], 0.25)
    for name, interval in found["intervals"].items():
        assert interval["value"] == pytest.approx(everyone[name])
        assert interval["low"] == pytest.approx(once[name])
        assert interval["high"] == pytest.approx(once[name])


def test_intervals_hold_the_exact_figures_and_are_wider_between_patients_than_within() -> None:
    rng = np.random.default_rng(0)
    alike, apart, pixels = VoxelIntervals(), VoxelIntervals(), PixelMetrics()
    for patient in range(30):
        mask = np.zeros((20, 20), dtype=bool)
        mask[5:9, 5:9] = patient % 2
        noise = rng.gamma(2.0, size=mask.shape)
        for intervals, height in ((alike, 1.0), (apart, rng.normal(1.0, 1.0))):
            intervals.update(patient, noise + height * mask, mask)
        pixels.update(noise + 1.0 * mask, mask)
    exact = pixels.compute()
    near, far = alike.compute(exact), apart.compute()
    for name in ("auroc", "ap"):
        one = near["intervals"][name]
        assert 0 <= one["low"] <= exact[name] <= one["high"] <= 1
        assert one["value"] == pytest.approx(exact[name], rel=0.02)
    assert alike.compute(exact) == near  # seeded
    width, wider = (each["intervals"]["auroc"]["high"] - each["intervals"]["auroc"]["low"] for each in (near, far))
    assert wider > 2 * width
    plain = alike.compute()["intervals"]["auroc"]
    shift = abs(plain["value"] - exact["auroc"])
    assert near["intervals"]["auroc"]["low"] == pytest.approx(plain["low"] - shift)
    assert near["intervals"]["auroc"]["high"] == pytest.approx(plain["high"] + shift)


def test_memory_is_that_of_the_distinct_scores() -> None:
    rng = np.random.default_rng(0)
    intervals = VoxelIntervals({"t": 1.0})
    sizes = []
    for _ in range(3):
        for _ in range(10):
            intervals.update("one", rng.uniform(0.1, 2.0, (50, 50, 20)).astype(np.float32), np.zeros((50, 50, 20)))
        sizes.append(intervals.nbytes)
    assert sizes[0] == sizes[-1] < 20 * 1000


def test_what_has_no_interval_says_why() -> None:
    def reasons(data: list[Scan], **options: int) -> set[str]:
        intervals = VoxelIntervals({"t": 0.5}, **options)
        for scan in data:
            intervals.update(*scan)
        found = intervals.compute()
        assert all(set(each.values()) == {None} for each in found["intervals"].values())
        assert set(found["undefined"]) == {"auroc", "ap", "dice/t", "sensitivity/t"}
        return set(found["undefined"].values())

    assert reasons([]) == {"no abnormal voxel"}
    assert reasons(scans(0, 3, 0, 4)) == {"no abnormal voxel"}
    assert reasons(scans(0, 1, 3, 4)) == {"1 normal patient: too few to resample"}
    assert reasons(scans(0, 1, 1, 4)) == {"1 normal and 1 abnormal patient: too few to resample"}
    many = VoxelIntervals(most_bytes=1000)
    for scan in scans(0, 20, 20, 64):
        many.update(*scan)
    assert many.nbytes == 0
    assert "need more than 0 MB" in many.compute()["undefined"]["ap"]
    full = VoxelIntervals()
    for patient in range(3):
        full.update(patient, np.arange(4.0), np.ones(4, dtype=bool))
    assert "no normal voxel" in full.compute()["undefined"]["auroc"]
    with pytest.raises(ValueError, match="shape"):
        full.update(0, np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match="NaN"):
        full.update(0, np.full(3, np.nan), np.zeros(3))
    with pytest.raises(ValueError, match="level"):
        full.compute(level=1.0)
