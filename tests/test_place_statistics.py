"""Normals' maps at each place: moments, smoothing, z-scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_anomaly.calibration import PlaceStatistics, PlaceSums


def maps(count: int, slices: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(2, 1, size=(count, 1, 5, 6, slices)))


def fitted(scans: torch.Tensor, positions: int = 10, volume: bool = False, **options: float) -> PlaceStatistics:
    sums = PlaceSums(positions)
    for scan in scans:
        sums.add(scan, torch.ones(scan.shape[-1], dtype=torch.bool), 1.0, volume)
    statistics = PlaceStatistics()
    statistics.fit(sums, **{"sigma": 0.0, "floor": 0.0, **options})
    return statistics


@pytest.mark.parametrize("volume", [False, True])
def test_moments_are_those_of_the_normals(volume: bool) -> None:
    scans = maps(7, 10)
    statistics = fitted(scans, volume=volume)
    mean, spread = scans[:, 0].mean(dim=0), scans[:, 0].std(dim=0)  # (5, 6, 10)
    found = [s[0] if volume else s[..., 0].movedim(0, -1) for s in (statistics.mean, statistics.spread)]
    torch.testing.assert_close(found[0].double(), mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1].double(), spread, rtol=1e-4, atol=1e-5)
    new = maps(1, 10, seed=5)[0]
    z = statistics.z_score(new, torch.ones(10, dtype=torch.bool), volume)
    torch.testing.assert_close(z[0].double(), (new[0] - mean) / spread, rtol=1e-4, atol=1e-4)


def test_slices_are_compared_at_their_place_and_air_is_zero() -> None:
    scans = maps(6, 2)
    scans[..., 1] += 100
    statistics = fitted(scans, positions=2)
    tissue = torch.tensor([False, True, True, False])
    new = torch.zeros(1, 5, 6, 4, dtype=torch.float64)
    new[..., 1], new[..., 2] = scans[..., 0].mean(dim=0), scans[..., 1].mean(dim=0)
    assert statistics.z_score(new, tissue).abs().max() < 1e-4
    swapped = statistics.z_score(new.flip(-1), tissue)
    assert (swapped[..., 1] > 20).all()
    assert (swapped[..., 2] < -20).all()
    assert not swapped[..., [0, 3]].any()


def test_single_pictures_share_one_place() -> None:
    statistics = fitted(maps(4, 1))
    assert statistics.mean.shape == (1, 5, 6, 1)
    new = maps(1, 1, seed=8)[0]
    assert statistics.z_score(new, torch.ones(1, dtype=torch.bool)).shape == new.shape


def test_each_patient_has_the_same_weight() -> None:
    scans = maps(5, 1)
    sums = PlaceSums()
    for scan, weight in zip(scans, (1.0, 1.0, 1 / 3, 1 / 3, 1 / 3)):
        sums.add(scan, torch.ones(1, dtype=torch.bool), weight)
    statistics = PlaceStatistics()
    statistics.fit(sums, sigma=0)
    by_patient = torch.stack([scans[0], scans[1], scans[2:].mean(dim=0)]).mean(dim=0)
    torch.testing.assert_close(statistics.mean[0].double(), by_patient[0], rtol=1e-5, atol=1e-5)


def test_spread_has_a_floor_and_is_smoothed() -> None:
    scans = torch.zeros(5, 1, 5, 6, 1)
    scans[:, 0, 2, 3, 0] = torch.arange(5.0)
    sharp, smooth = fitted(scans, floor=0.5), fitted(scans, sigma=1.0)
    sd = float(torch.arange(5.0).std())
    assert float(sharp.spread.min()) == pytest.approx(0.5 * sd)
    assert float(sharp.spread.max()) == pytest.approx(sd)
    assert 0 < float(smooth.spread[0, 2, 2, 0]) < float(smooth.spread[0, 2, 3, 0]) < sd
    assert float(smooth.mean.sum()) == pytest.approx(2.0, rel=0.05)


def test_too_few_or_constant_normals_fit_nothing() -> None:
    for statistics in (fitted(maps(1, 3)), fitted(torch.ones(4, 1, 5, 6, 2))):
        assert statistics.mean.numel() == 0
        with pytest.raises(ValueError, match="calibrate"):
            statistics.z_score(torch.zeros(1, 5, 6, 2), torch.ones(2, dtype=torch.bool))


def test_another_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="slices of"):
        fitted(maps(3, 2)).z_score(torch.zeros(1, 5, 7, 2), torch.ones(2, dtype=torch.bool))
