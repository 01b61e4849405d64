"""Per-region overlap against plain loops over every threshold."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from monai_anomaly.metrics import PixelMetrics


def regions_of(mask: np.ndarray) -> list[list[tuple[int, int]]]:
    """Connected regions, diagonal neighbours included, by flooding."""
    left, found = set(zip(*np.nonzero(mask))), []
    while left:
        front, region = [left.pop()], []
        while front:
            y, x = front.pop()
            region.append((y, x))
            near = {(y + a, x + b) for a in (-1, 0, 1) for b in (-1, 0, 1)} & left
            left -= near
            front += near
        found.append(region)
    return found


def plain_pro(maps: list[np.ndarray], masks: list[np.ndarray], limit: float) -> float:
    """The area by going through all thresholds, highest first."""
    points = [(0.0, 0.0)]
    for threshold in sorted({value for m in maps for value in m.ravel()}, reverse=True):
        false, normal, overlaps = 0, 0, []
        for anomaly_map, mask in zip(maps, masks):
            false += ((anomaly_map >= threshold) & ~mask).sum()
            normal += (~mask).sum()
            for region in regions_of(mask):
                overlaps.append(np.mean([anomaly_map[place] >= threshold for place in region]))
        points.append((false / normal, float(np.mean(overlaps))))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 >= limit:
            break
        if x1 > limit:
            y1 = y0 + (limit - x0) / (x1 - x0) * (y1 - y0)
            x1 = limit
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("values", [1000, 4])  # few values: many ties
def test_area_is_that_of_all_thresholds(limit: float, values: int) -> None:
    random = np.random.default_rng(values)
    masks = [random.random((9, 11)) < share for share in (0.15, 0.0, 0.4)]
    maps = [(random.integers(0, values, (9, 11)) / values + 0.3 * mask).astype(np.float32) for mask in masks]
    metric = PixelMetrics(overlap_limit=limit)
    for anomaly_map, mask in zip(maps, masks):
        metric.update(anomaly_map, mask)
    assert metric.compute()["aupro"] == pytest.approx(plain_pro(maps, masks, limit), rel=1e-6)


def test_small_regions_count_as_much_as_large_ones() -> None:
    mask = np.zeros((20, 20), dtype=bool)
    mask[:10, :10] = True
    mask[15, 15] = True
    for missed, expected in (((15, 15), 0.5), ((0, 0), 0.995)):
        found = mask.astype(float)
        found[missed] = -1.0
        metric = PixelMetrics()
        metric.update(found, mask)
        # The missed pixels come last: the curve stays at its first height up to the limit.
        assert metric.compute()["aupro"] == pytest.approx(expected, abs=2e-3)


def test_corners_connect_and_perfect_maps_have_one() -> None:
    mask = np.eye(4, dtype=bool)
    metric = PixelMetrics()
    metric.update(mask.astype(float), mask)
    assert metric.compute()["aupro"] == pytest.approx(1.0)
    assert metric.num_regions == 1


def test_undefined_and_unfit() -> None:
    metric = PixelMetrics()
    assert metric.compute()["aupro"] is None
    metric.update(np.zeros((2, 2)), np.zeros((2, 2), dtype=bool))
    assert metric.compute()["aupro"] is None
    with pytest.raises(ValueError, match="shape"):
        metric.update(np.zeros((2, 2)), np.zeros((2, 3), dtype=bool))
    with pytest.raises(ValueError, match="NaN"):
        metric.update(np.full((2, 2), np.nan), np.zeros((2, 2), dtype=bool))
    with pytest.raises(ValueError, match="limit"):
        PixelMetrics(overlap_limit=0.0)
