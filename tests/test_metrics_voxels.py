"""Voxel metrics, exact and counted, against loops over every pair, threshold and region."""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_anomaly.metrics import PixelMetrics, ScoreDigest, best_dice, voxels
from monai_anomaly.metrics.score_digest import order_keys, score_of_key

Scan = tuple[np.ndarray, np.ndarray]
METRICS = ("auroc", "ap", "best_dice", "aupro", "sensitivity_at_fpr")


@st.composite
def scans(draw: st.DrawFn) -> list[Scan]:
    """Small scans: heavy ties, constant maps, negative and huge scores, scans without a lesion."""
    found = []
    values = draw(
        st.sampled_from(
            [
                st.just(0.25),
                st.integers(-2, 2).map(float),
                st.sampled_from([-0.0, 0.0, 1e-40, -1e-40, 3.4e38, -3.4e38]),
                st.floats(width=32, allow_nan=False),
            ]
        )
    )
    for _ in range(draw(st.integers(1, 3))):
        shape = draw(st.sampled_from([(3, 4), (2, 2, 3), (5, 2, 1)]))
        size = int(np.prod(shape))
        scores = np.array(draw(st.lists(values, min_size=size, max_size=size)), dtype=np.float32).reshape(shape)
        mask = np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size))).reshape(shape)
        found.append((scores, mask & draw(st.booleans())))
    return found


def regions_of(mask: np.ndarray) -> list[list[tuple[int, ...]]]:
    """Parts that touch, at corners too, by flooding."""
    left, found = {tuple(map(int, place)) for place in np.argwhere(mask)}, []
    while left:
        front, region = [left.pop()], []
        while front:
            place = front.pop()
            region.append(place)
            near = {other for other in left if max(abs(a - b) for a, b in zip(place, other)) <= 1}
            left -= near
            front += near
        found.append(region)
    return found


def plain(cohort: list[Scan], limit: float, fpr: float) -> dict[str, float]:
    """All metrics by their definitions, in Python's numbers."""
    abnormal = [float(v) for scores, mask in cohort for v in scores[mask]]
    normal = [float(v) for scores, mask in cohort for v in scores[~mask]]
    regions = [[float(scores[place]) for place in region] for scores, mask in cohort for region in regions_of(mask)]
    wins = sum(1.0 if a > n else 0.5 if a == n else 0.0 for a in abnormal for n in normal)
    result = {"auroc": wins / len(abnormal) / len(normal), "ap": 0.0, "best_dice": 0.0}
    recall_before, points = 0.0, [(0.0, 0.0)]
    within = [(0.0, 0.0, None)]
    for t in sorted({*abnormal, *normal}, reverse=True):
        hits, false = sum(a >= t for a in abnormal), sum(n >= t for n in normal)
        recall, dice = hits / len(abnormal), 2 * hits / (len(abnormal) + hits + false)
        result["ap"] += (recall - recall_before) * hits / (hits + false)
        recall_before = recall
        result["best_dice"] = max(result["best_dice"], dice)
        points.append((false / len(normal), sum(sum(v >= t for v in r) / len(r) for r in regions) / len(regions)))
        if false <= fpr * len(normal) + 1e-9 and recall > within[-1][0]:
            within.append((recall, dice, t))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 < limit:
            end = min(x1, limit)
            y_end = y1 if x1 <= limit else y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
            area += (end - x0) * (y0 + y_end) / 2
    result["aupro"] = area / limit
    result["sensitivity_at_fpr"], result["dice_at_fpr"], result["threshold_at_fpr"] = within[-1]
    return result


def measured(cohort: list[Scan], **arguments: Any) -> dict[str, Any]:
    metrics = PixelMetrics(**arguments)
    for scores, mask in cohort:
        metrics.update(scores, mask)
    return metrics.compute()


def both_classes(cohort: list[Scan]) -> bool:
    return any(mask.any() for _, mask in cohort) and not all(mask.all() for _, mask in cohort)


@pytest.mark.slow
@given(scans(), st.sampled_from([0.1, 0.3, 1.0]), st.sampled_from([0.0, 0.05, 0.25]), st.sampled_from([0, 10, 1000]))
@settings(max_examples=250, deadline=None)
def test_equals_the_plain_definitions_kept_or_counted(
    cohort: list[Scan], limit: float, fpr: float, exact_voxels: int
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = measured(cohort, exact_voxels=exact_voxels, overlap_limit=limit, fpr=fpr)
    assert got["exact"] == (got["num_voxels"] <= exact_voxels)
    assert got["num_regions"] == sum(len(regions_of(mask)) for _, mask in cohort)
    if not both_classes(cohort):
        assert all(got[name] is None and "voxel" in got["undefined"][name] for name in METRICS)
        return
    expected = plain(cohort, limit, fpr)
    for name, value in expected.items():
        if value is None or np.isinf(value):
            assert got[name] is None
            assert name in got["undefined"]
        else:
            assert got[name] == pytest.approx(value, abs=1e-12), name
    # few scores: the digest puts none together
    assert set(got["bounds"].values()) == {0.0}
    assert all(0.0 <= got[name] <= 1.0 for name in (*METRICS, "dice_at_fpr", "prevalence"))


@pytest.mark.slow
@given(scans(), st.floats(-3, 3, width=32))
@settings(max_examples=60, deadline=None)
def test_decisions_are_counted_at_each_threshold(cohort: list[Scan], threshold: float) -> None:
    from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

    got = measured(cohort, thresholds={"calibrated": threshold}, exact_voxels=0)["decisions"]["calibrated"]
    flagged = np.concatenate([scores.ravel() > threshold for scores, _ in cohort])
    truth = np.concatenate([mask.ravel() for _, mask in cohort])
    assert got["accuracy"] == pytest.approx(accuracy_score(truth, flagged))
    expected = {
        "dice": f1_score(truth, flagged, zero_division=0) if truth.any() else None,
        "sensitivity": recall_score(truth, flagged) if truth.any() else None,
        "specificity": recall_score(~truth, ~flagged) if not truth.all() else None,
        "precision": precision_score(truth, flagged) if flagged.any() else None,
    }
    for name, value in expected.items():
        assert got[name] == (None if value is None else pytest.approx(value))
        assert (name in got["undefined"]) == (value is None)
    assert got["fpr"] == (None if truth.all() else pytest.approx(flagged[~truth].mean()))


def test_equals_scikit_learn_for_negative_scores_with_ties() -> None:
    from sklearn.metrics import average_precision_score, roc_auc_score

    rng = np.random.default_rng(0)
    mask = rng.random((60, 50, 20)) < 0.02
    scores = np.round(rng.standard_normal(mask.shape) + mask, 2).astype(np.float32)
    for exact_voxels in (10**6, 0):
        got = measured([(scores, mask)], exact_voxels=exact_voxels)
        assert got["auroc"] == pytest.approx(roc_auc_score(mask.ravel(), scores.ravel()), abs=1e-12)
        assert got["ap"] == pytest.approx(average_precision_score(mask.ravel(), scores.ravel()), abs=1e-12)
        assert got["best_dice"] == pytest.approx(best_dice(scores, mask)[0], abs=1e-12)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=50))
@settings(max_examples=100, deadline=None)
def test_keys_keep_the_order_and_come_back(values: list[float]) -> None:
    scores = np.array(values, dtype=np.float32)
    keys = order_keys(scores)
    for a, key_a in zip(scores, keys):
        assert score_of_key(int(key_a)) == a
        for b, key_b in zip(scores, keys):
            assert (a < b) == (key_a < key_b)
            assert (a == b) == (key_a == key_b)


def exact_and_counted(
    parts: list[tuple[np.ndarray, np.ndarray]], tolerance: float, capacity: int
) -> tuple[Any, Any, ScoreDigest]:
    """Both rankings of normal and abnormal scores that come in parts; ten abnormal scores make a region."""
    from monai_anomaly.metrics.ranking import rank_sorted

    digest = ScoreDigest(tolerance, capacity)
    for normal, abnormal in parts:
        digest.add(order_keys(normal), order_keys(abnormal), np.full(abnormal.size, 0.1))
        assert len(digest) <= capacity
    normal, abnormal = (order_keys(np.concatenate(part)) for part in zip(*parts))
    regions = np.arange(abnormal.size) // 10
    order = np.argsort(abnormal, kind="stable")
    sizes = np.full(abnormal.size // 10, 10)
    exact = rank_sorted(np.sort(normal), abnormal[order], regions=regions[order], sizes=sizes, overlap_limit=0.3)
    counted = digest.ranking(abnormal.size // 10, 0.3, 0.05)
    return exact, counted, digest


def streams() -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Scores in orders and shapes that are hard on a histogram."""
    rng = np.random.default_rng(3)
    normal = rng.gamma(1.5, 0.05, 300_000).astype(np.float32)
    abnormal = rng.gamma(2.0, 0.1, 3_000).astype(np.float32)
    parts = 6
    rising = list(zip(np.array_split(np.sort(normal), parts), np.array_split(np.sort(abnormal), parts)))
    drifting = [(normal[i::parts] * (1 + i), abnormal[i::parts] * (1 + i)) for i in range(parts)]
    none, first = np.empty(0, dtype=np.float32), normal[:50_000]
    return {
        "shuffled": [(normal[i::parts], abnormal[i::parts]) for i in range(parts)],
        "rising": rising,
        "falling": rising[::-1],
        "drifting": drifting,
        "abnormal ones first": [(none, abnormal), *((part, none) for part in np.array_split(normal, parts))],
        "abnormal ones last": [*((part, none) for part in np.array_split(normal, parts)), (none, abnormal)],
        "all within a millionth": [(1 + normal[i::parts] * 1e-6, 1 + abnormal[i::parts] * 1e-6) for i in range(parts)],
        "negative": [(-normal[i::parts], abnormal[i::parts] - 0.3) for i in range(parts)],
        "mostly abnormal": [(abnormal[i::parts], normal[i::parts]) for i in range(parts)],
        "many ties": [(np.round(normal[i::parts], 2), np.round(abnormal[i::parts], 2)) for i in range(parts)],
        # zooms in: all that comes later falls between two scores that came before
        "zooming in": [(np.float32(0.1) + first * np.float32(10.0**-i), abnormal[i::parts]) for i in range(parts)],
    }


@pytest.mark.parametrize("name", streams())
def test_counted_metrics_lie_within_their_bounds_whatever_the_order(name: str) -> None:
    tolerance = 2e-3
    exact, counted, digest = exact_and_counted(streams()[name], tolerance, 20_000)
    assert digest.tolerance == tolerance, "the capacity sufficed"
    assert counted.bounds["auroc"] <= tolerance  # proved: at most the tolerance of either rank, halved
    for metric in ("auroc", "average_precision", "best_dice", "overlap", "sensitivity"):
        error, bound = abs(getattr(counted, metric) - getattr(exact, metric)), counted.bounds[metric]
        assert error <= bound + 1e-12, metric
        assert bound <= 5 * tolerance, metric  # what PixelMetrics relies on
    if name == "many ties":
        assert set(counted.bounds.values()) == {0.0}


@pytest.mark.slow
def test_the_default_keeps_within_1e_4_when_scores_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voxels, "_BLOCK", 100_000)
    rng = np.random.default_rng(0)
    cohort = []
    for i in range(12):
        mask = np.zeros((60, 60, 30), dtype=bool)
        if i % 2:
            mask[10:20, 10:25, 5:12] = True
        cohort.append(((rng.gamma(1.5, 0.05, mask.shape) + 0.1 * mask * rng.random(mask.shape)), mask))
    exact = measured(cohort)
    metrics = PixelMetrics(exact_voxels=0)
    metrics._digest.capacity = 450_000
    for scores, mask in cohort:
        metrics.update(scores, mask)
    got = metrics.compute()
    assert not got["exact"]
    assert len(metrics._digest) < 0.5 * got["num_voxels"], "scores were put together"
    for name in METRICS:
        assert abs(got[name] - exact[name]) <= got["bounds"][name] + 1e-12
        assert got["bounds"][name] <= 1e-4
    assert got["bounds"]["auroc"] > 0
    # the threshold is one at which what is said of it is true
    flagged = np.concatenate([m[~mask].astype(np.float32) >= got["threshold_at_fpr"] for m, mask in cohort])
    assert flagged.mean() <= 0.05


@pytest.mark.slow
@given(st.data())
@settings(max_examples=40, deadline=None)
def test_a_digest_keeps_every_voxel_and_every_rank_within_the_tolerance(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    tolerance = data.draw(st.sampled_from([0.3, 0.05, 0.01]))
    digest, normal, abnormal, weights = ScoreDigest(tolerance, 256), [], [], []
    sizes = data.draw(st.sampled_from([(400, 80), (80, 400), (400, 10)]))
    for _ in range(data.draw(st.integers(1, 5))):
        centre, width = data.draw(st.sampled_from([(0.0, 1.0), (1.0, 1e-3), (-5.0, 0.1), (1e5, 1e4)]))
        shift = data.draw(st.sampled_from([-width, 0.0, width]))
        normal.append(order_keys(rng.normal(centre, width, sizes[0]).astype(np.float32)))
        abnormal.append(order_keys(rng.normal(centre + shift, width, sizes[1]).astype(np.float32)))
        weights.append(rng.random(sizes[1]) ** 8)  # a few weigh as much as all others
        digest.add(normal[-1], abnormal[-1], weights[-1])
        assert len(digest) <= 256
    keys, found, weight = (np.concatenate(part) for part in (normal, abnormal, weights))
    assert (digest.num_normal, digest.num_abnormal) == (keys.size, found.size)
    low, high, _ = digest._intervals()
    for place in (*low, *high, *keys[::97].astype(np.int64)):
        for counted, part, whole in (
            (digest._normal, keys >= place, np.ones(keys.size)),
            (digest._abnormal, found >= place, np.ones(found.size)),
            (digest._weight, found >= place, weight),
        ):
            sure, may, true = counted[low >= place].sum(), counted[high >= place].sum(), whole[part].sum()
            assert sure - 1e-9 <= true <= may + 1e-9
            assert may - sure <= digest.tolerance * whole.sum() + 1e-9
        # and the ranks of all voxels are good relative to the rank
        sums = digest._normal + digest._abnormal
        unsure = sums[high >= place].sum() - sums[low >= place].sum()
        assert unsure <= digest.tolerance * (np.sum(keys >= place) + np.sum(found >= place)) + 1e-9


@pytest.mark.slow
def test_memory_does_not_grow_with_the_voxels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voxels, "_BLOCK", 20_000)
    rng = np.random.default_rng(0)
    metrics = PixelMetrics(exact_voxels=50_000, tolerance=1e-2)
    metrics._digest.capacity = 30_000
    mask = np.zeros((50, 200), dtype=bool)
    mask[20:23, 50:80] = True
    largest = 0
    for number in range(1, 61):
        metrics.update(rng.random(mask.shape) + 0.3 * mask, mask)
        largest = max(largest, metrics.nbytes)
        assert metrics.exact == (number <= 5)
        if metrics.exact:  # 4 bytes a normal voxel, 8 an abnormal one
            assert metrics.nbytes <= number * (4 * mask.size + 4 * mask.sum() + 64)
    kept = max(50_000, 20_000) * 8  # every voxel abnormal is the most that can wait
    assert largest <= 30_000 * 32 + kept + 60 * 64
    assert metrics.compute()["bounds"]["auroc"] <= 1e-2
    assert 32 * ScoreDigest().capacity + 8 * PixelMetrics().exact_voxels < 1e9, "at the defaults below 1 GB"


def test_a_capacity_that_does_not_suffice_shows_in_the_bounds() -> None:
    rng = np.random.default_rng(0)
    parts = [(rng.random(3000).astype(np.float32), rng.random(300).astype(np.float32)) for _ in range(5)]
    exact, counted, digest = exact_and_counted(parts, 1e-6, 300)
    assert digest.tolerance > 1e-6
    assert len(digest) <= 300
    assert 1e-6 < counted.bounds["auroc"] < 0.2
    assert abs(counted.auroc - exact.auroc) <= counted.bounds["auroc"]


def test_constant_maps_are_chance() -> None:
    mask = np.zeros((10, 10), dtype=bool)
    mask[2:4, 2:5] = True
    got = measured([(np.full(mask.shape, -7.0), mask)])
    assert got["auroc"] == 0.5
    assert got["ap"] == got["prevalence"] == 0.06
    assert got["best_dice_threshold"] == -7.0
    assert got["aupro"] == pytest.approx(0.15)  # the diagonal up to 0.3
    assert got["threshold_at_fpr"] is None
    assert got["sensitivity_at_fpr"] == got["dice_at_fpr"] == 0.0
    assert "beyond the rate" in got["undefined"]["threshold_at_fpr"]


def test_undefined_has_a_reason_and_unfit_is_refused() -> None:
    metrics = PixelMetrics({"paper": 0.5})
    assert metrics.compute()["undefined"]["auroc"] == "no voxel"
    metrics.update(np.zeros((3, 3)), np.zeros((3, 3), dtype=bool))
    got = metrics.compute()
    assert got["undefined"]["ap"] == "no abnormal voxel"
    assert got["prevalence"] == 0.0
    assert got["decisions"]["paper"]["specificity"] == 1.0
    assert got["decisions"]["paper"]["undefined"]["dice"] == "no abnormal voxel"
    full = measured([(np.zeros((2, 2)), np.ones((2, 2)))])
    assert full["undefined"]["aupro"] == "no normal voxel"
    assert full["num_regions"] == 1
    with pytest.raises(ValueError, match="shape"):
        metrics.update(np.zeros((2, 3)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="NaN"):
        metrics.update(np.full((2, 2), np.nan), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="labels"):
        metrics.update(np.zeros((2, 2)), np.full((2, 2), 2))
    assert metrics.compute() == got, "what is rejected is not counted"
    for arguments in (
        {"overlap_limit": 0.0},
        {"fpr": 1.0},
        {"exact_voxels": -1},
        {"tolerance": 0.0},
        {"thresholds": {"t": float("nan")}},
    ):
        with pytest.raises(ValueError):
            PixelMetrics(**arguments)
    with pytest.raises(ValueError, match="capacity"):
        ScoreDigest(capacity=10)
