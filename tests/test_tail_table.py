"""The table of normal voxels: its rates, its thresholds, its maps, against plain counting."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_anomaly.calibration import ScanTail, TailTable


def cohort(seed: int, patients: int = 5, voxels: int = 3000) -> dict[str, list[np.ndarray]]:
    random = np.random.default_rng(seed)
    return {
        f"p{i}": [
            random.gamma(2, 1 + 0.2 * i, size=random.integers(voxels // 2, voxels)).astype(np.float32)
            for _ in range(1 + i % 3)
        ]
        for i in range(patients)
    }


def rate_of(cohort: dict[str, list[np.ndarray]], value: float) -> float:
    """Mean over patients of the mean over their scans of the share of voxels at or above a value."""
    return float(np.mean([np.mean([(scan >= value).mean() for scan in scans]) for scans in cohort.values()]))


def fitted(cohort: dict[str, list[np.ndarray]]) -> TailTable:
    table = TailTable()
    table.fit({patient: [ScanTail.of(scan) for scan in scans] for patient, scans in cohort.items()})
    return table


@settings(max_examples=50, deadline=None)
@given(voxels=st.lists(st.integers(-5, 5), min_size=1, max_size=300), at=st.integers(-6, 6))
def test_tail_of_a_scan_with_few_values_is_exact(voxels: list[int], at: int) -> None:
    tail = ScanTail.of(np.array(voxels, dtype=np.float32))
    if at in voxels or at > max(voxels) or at < min(voxels):
        assert tail.share(np.array([at]))[0] == pytest.approx(np.mean([v >= at for v in voxels]))


def test_a_scan_without_voxels_is_refused() -> None:
    with pytest.raises(ValueError, match="no tail"):
        ScanTail.of(np.empty(0))


@pytest.mark.parametrize("seed", range(3))
def test_rates_are_means_over_patients(seed: int) -> None:
    normals = cohort(seed)
    table = fitted(normals)
    rates, values = table.rates.double().numpy(), table.values.double().numpy()
    assert (np.diff(rates) < 0).all()
    assert (np.diff(values) >= 0).all()
    found = np.array([rate_of(normals, value) for value in values])
    # at most a voxel's or the interpolation's worth beside what it says
    assert (found <= rates * 1.02 + 1e-6).all()
    assert (found[1:] >= rates[1:] * 0.9 - 1e-3).all()
    for alpha in (0.3, 0.05, 0.01, 0.002):
        threshold = table.threshold(alpha)
        assert threshold is not None
        assert alpha * 0.85 <= rate_of(normals, threshold) <= alpha * 1.02


def test_each_patient_has_the_same_weight() -> None:
    few, many = np.linspace(0, 1, 100, dtype=np.float32), np.linspace(10, 11, 10_000, dtype=np.float32)
    table = fitted({"a": [few], "b": [many] * 7})
    threshold = table.threshold(0.25)
    assert threshold is not None
    # half of b's voxels are a quarter of the weight
    assert threshold == pytest.approx(10.5, abs=0.02)


def test_table_ends_where_the_voxels_do() -> None:
    normals = {"a": [np.arange(100, dtype=np.float32)], "b": [np.arange(50, 150, dtype=np.float32)]}
    table = fitted(normals)
    assert float(table.rates[-1]) == pytest.approx(1 / 200)
    assert float(table.values[-1]) == 149
    assert table.threshold(0.004) is None
    assert table.threshold(0.005) == 149
    logp = table.log_p(torch.tensor([-5.0, 149.0, 1e6]))
    assert logp.tolist() == pytest.approx([0.0, -np.log10(1 / 200), -np.log10(1 / 200)], abs=1e-5)
    # enough voxels reach down to the table's own end
    assert float(fitted({"a": [np.arange(2_000_000, dtype=np.float32)]}).rates[-1]) == pytest.approx(1e-6)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1.0])
def test_impossible_rates(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        fitted(cohort(0)).threshold(alpha)


def test_map_is_minus_log10_of_the_rate() -> None:
    normals = cohort(7, voxels=4000)
    table = fitted(normals)
    image = torch.from_numpy(np.random.default_rng(1).gamma(2, 1.5, size=(1, 8, 9)).astype(np.float32))
    logp = table.log_p(image)
    assert logp.shape == image.shape
    order = image.flatten().argsort()
    assert (logp.flatten()[order].diff() >= 0).all()
    for value, found in zip(image.flatten().tolist(), logp.flatten().tolist()):
        rate = rate_of(normals, value)
        if rate > 0.003:
            assert found == pytest.approx(-np.log10(rate), abs=0.05)


def test_new_normals_reach_a_voxel_threshold_at_its_rate() -> None:
    table = fitted(cohort(0, patients=40))
    threshold = table.threshold(0.05)
    assert rate_of(cohort(1, patients=40), threshold) == pytest.approx(0.05, abs=0.01)


def test_a_patient_left_out_takes_its_share_along() -> None:
    normals = cohort(3, patients=4)
    table = fitted(normals)
    left = table.without([ScanTail.of(scan) for scan in normals["p2"]], 4)
    others = {patient: scans for patient, scans in normals.items() if patient != "p2"}
    assert torch.equal(left.values, table.values)
    assert (left.rates <= table.rates).all()
    for value, rate in zip(left.values.tolist(), left.rates.tolist()):
        # still a share of four patients, so that it never is below what a fifth would see
        assert rate == pytest.approx(max(0.75 * rate_of(others, value), float(table.rates[-1])), rel=0.05, abs=2e-3)


def test_empty_table() -> None:
    table = TailTable()
    table.fit({})
    assert table.threshold(0.5) is None
    with pytest.raises(ValueError, match="calibrate"):
        table.log_p(torch.zeros(3))


def test_ties_and_constant_maps() -> None:
    table = fitted({"a": [np.zeros(50, dtype=np.float32)]})
    assert table.log_p(torch.tensor([-1.0, 0.0, 1.0])).tolist() == [0.0, 0.0, 0.0]
    assert table.threshold(0.5) is None
    mixed = fitted({"a": [np.repeat(np.array([0.0, 1.0], dtype=np.float32), [900, 100])]})
    threshold = mixed.threshold(0.5)
    assert threshold is not None
    assert 0 <= threshold < 1  # what lies above it is the tenth
    assert float(mixed.log_p(torch.tensor([1.0]))) == pytest.approx(1.0, abs=1e-4)
