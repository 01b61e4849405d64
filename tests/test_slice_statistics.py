"""The step from slices to a volume's score, against a plain computation."""

from __future__ import annotations

import math

import pytest
import torch

from monai_anomaly.calibration import SliceStatistics


def plain_places(slices: int, positions: int) -> list[int]:
    return [math.floor((i + 0.5) / slices * positions) for i in range(slices)]


def test_matches_a_plain_computation() -> None:
    generator = torch.Generator().manual_seed(0)
    scans = [torch.rand(n, generator=generator) * 3 + torch.arange(n) for n in (7, 12, 20, 9)]
    statistics = SliceStatistics(num_positions=4)
    statistics.fit(scans)
    by_place: dict[int, list[float]] = {place: [] for place in range(4)}
    for scan in scans:
        for place, score in zip(plain_places(len(scan), 4), scan.tolist()):
            by_place[place].append(score)
    new = torch.rand(11, generator=generator) * 9
    expected = -math.inf
    for place, score in zip(plain_places(11, 4), new.tolist()):
        values = by_place[place]
        mean = sum(values) / len(values)
        std = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
        expected = max(expected, (score - mean) / std)
    assert float(statistics.volume_score(new)) == pytest.approx(expected, rel=1e-4)


def test_an_unusual_slice_counts_more_than_a_usually_high_one() -> None:
    profile = torch.tensor([1.0, 5.0, 9.0, 5.0, 1.0]).repeat_interleave(2)
    generator = torch.Generator().manual_seed(1)
    statistics = SliceStatistics(num_positions=5)
    statistics.fit([profile + 0.1 * torch.randn(10, generator=generator) for _ in range(20)])
    abnormal = profile.clone()
    abnormal[0] += 2.0  # still far below the middle of every normal scan
    assert float(statistics.volume_score(abnormal)) > float(statistics.volume_score(profile)) + 5


def test_pictures_are_scored_as_they_are() -> None:
    statistics = SliceStatistics()
    statistics.fit([torch.tensor([0.3]), torch.tensor([0.7])])
    assert float(statistics.volume_score(torch.tensor([0.42]))) == pytest.approx(0.42)


def test_few_or_equal_slices_borrow_the_pooled_spread() -> None:
    statistics = SliceStatistics(num_positions=10)
    statistics.fit([torch.tensor([1.0, 3.0])])
    assert torch.isfinite(statistics.mean).all()
    assert torch.allclose(statistics.mean, torch.tensor(2.0))
    assert torch.isfinite(statistics.volume_score(torch.tensor([1.0, 2.0, 5.0]))).all()


def test_state_travels() -> None:
    statistics, other = SliceStatistics(), SliceStatistics()
    statistics.fit([torch.rand(30), torch.rand(25)])
    other.load_state_dict(statistics.state_dict())
    scores = torch.rand(17)
    assert torch.equal(statistics.volume_score(scores), other.volume_score(scores))
