"""Lesions one by one against flooding and counting."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_anomaly.metrics import LESION_COLUMNS, LesionDetection, count_lesions, lesion_table

AFFINE = np.array([[0.0, -2.0, 0.0, 10.0], [1.5, 0.0, 0.1, -20.0], [0.0, 0.0, 3.0, 5.0], [0.0, 0.0, 0.0, 1.0]])


def flooded(mask: np.ndarray) -> list[list[tuple[int, ...]]]:
    """Parts that touch, at corners too."""
    left, found = {tuple(map(int, place)) for place in np.argwhere(mask)}, []
    while left:
        front, region = [left.pop()], []
        while front:
            place = front.pop()
            region.append(place)
            near = {other for other in left if max(abs(a - b) for a, b in zip(place, other)) <= 1}
            left -= near
            front += near
        found.append(sorted(region))
    return found


@st.composite
def maps(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    shape = draw(st.sampled_from([(4, 5), (6, 5, 1), (3, 3, 3)]))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    levels = draw(st.sampled_from([3, 1000]))
    scores = (rng.integers(0, levels, shape) / levels - 0.3).astype(np.float32)
    return scores, rng.random(shape) < draw(st.sampled_from([0.0, 0.15, 0.4]))


@given(maps())
@settings(max_examples=100, deadline=None)
def test_table_lists_each_connected_lesion(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    scores, mask = drawn
    volume = scores.shape[-1] == 3
    rows = lesion_table(scores, mask, AFFINE if volume else None, p_value=lambda peak: 0.5 - peak / 10)
    json.dumps(rows, allow_nan=False)
    assert [row["lesion"] for row in rows] == list(range(1, len(rows) + 1))
    assert all(tuple(row) == LESION_COLUMNS for row in rows)
    expected = []
    for region in flooded(mask):
        values = [float(scores[place]) for place in region]
        peak = region[int(np.argmax(values))]  # the first of equals
        expected.append((-max(values), -len(region), region[0], sum(values) / len(values), peak))
    expected.sort()
    assert len(rows) == len(expected)
    for row, (peak, size, _, mean, place) in zip(rows, expected):
        assert (row["peak"], row["voxels"]) == (-peak, -size)
        assert row["mean"] == pytest.approx(mean, abs=1e-6)
        assert row["p_value"] == 0.5 - row["peak"] / 10
        if volume:
            world = AFFINE @ [*place, 1.0]
            assert [row[f"peak_{axis}_mm"] for axis in "xyz"] == pytest.approx(world[:3].tolist())
            assert row["volume_ml"] == pytest.approx(-size * 2.0 * 1.5 * 3.0 / 1000)
            assert row["peak_row"] is row["peak_column"] is None
        else:
            assert (row["peak_row"], row["peak_column"]) == place[:2]
            assert row["volume_ml"] is row["peak_x_mm"] is row["peak_z_mm"] is None


def test_table_refuses_what_has_no_place() -> None:
    scores, mask = np.zeros((2, 3, 4), dtype=np.float32), np.zeros((2, 3, 4), dtype=bool)
    with pytest.raises(ValueError, match="give an affine"):
        lesion_table(scores, mask)
    with pytest.raises(ValueError, match="three axes"):
        lesion_table(scores[0], mask[0], AFFINE)
    with pytest.raises(ValueError, match="invertible"):
        lesion_table(scores, mask, np.diag([1.0, 1.0, 0.0, 1.0]))
    with pytest.raises(ValueError, match="shape"):
        lesion_table(scores, mask[0], AFFINE)
    with pytest.raises(ValueError, match="NaN"):
        lesion_table(scores * np.nan, mask, AFFINE)
    assert lesion_table(scores, mask, AFFINE) == []
    mask[0, 0, 0] = True
    assert lesion_table(scores, mask, AFFINE)[0]["p_value"] is None


def plain_detection(
    cohort: list[tuple[np.ndarray, np.ndarray]], threshold: float, overlap: float
) -> tuple[list[tuple[int, bool]], int]:
    """Size and finding of each true lesion, and the number of false ones."""
    lesions, false = [], 0
    for scores, mask in cohort:
        for region in flooded(mask):
            share = sum(scores[place] > threshold for place in region) / len(region)
            lesions.append((len(region), share > 0 and share >= overlap - 1e-9))
        false += sum(not any(mask[place] for place in part) for part in flooded(scores > threshold))
    return lesions, false


@pytest.mark.slow
@given(st.lists(maps(), min_size=1, max_size=3), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([None, 2.5]))
@settings(max_examples=100, deadline=None)
def test_found_and_false_lesions_are_those_of_loops(
    cohort: list[tuple[np.ndarray, np.ndarray]], overlap: float, voxel_volume: float | None
) -> None:
    unit = voxel_volume or 1.0
    classes = {"dot": 0.0, "spot": 2 * unit, "blob": 4 * unit}
    thresholds = {"low": -0.1, "high": 0.4}
    metric = LesionDetection(thresholds, size_classes=classes, min_overlap=overlap)
    for scores, mask in cohort:
        metric.update(scores, mask, voxel_volume)
    got = metric.compute()
    json.dumps(got, allow_nan=False)
    assert got["unit"] == ("mm3" if voxel_volume else "voxels")
    for name, threshold in thresholds.items():
        lesions, false = plain_detection(cohort, threshold, overlap)
        at = got["at"][name]
        assert at["false_lesions_per_scan"] == pytest.approx(false / len(cohort))
        assert at["sensitivity"] == (pytest.approx(np.mean([f for _, f in lesions])) if lesions else None)
        for size, (low, high) in {"dot": (0, 2), "spot": (2, 4), "blob": (4, 99)}.items():
            own = [f for voxels, f in lesions if low <= voxels < high]
            assert got["size_classes"][size]["lesions"] == len(own)
            assert at["sensitivity_by_size"][size] == (pytest.approx(np.mean(own)) if own else None)
            assert (f"sensitivity_by_size/{size}" in got["undefined"]) == (not own)


@pytest.mark.slow
@given(st.lists(maps(), min_size=1, max_size=4), st.sampled_from([-0.3, 0.2, 0.5]))
@settings(max_examples=100, deadline=None)
def test_free_response_curve_is_that_of_all_candidates(
    cohort: list[tuple[np.ndarray, np.ndarray]], floor: float
) -> None:
    from monai.metrics import compute_fp_tp_probs_nd, compute_froc_curve_data, compute_froc_score
    from scipy.ndimage import label

    metric = LesionDetection({}, floor=floor)
    candidates: list[tuple[float, Any]] = []
    fp, tp, lesions = [], [], 0
    for number, (scores, mask) in enumerate(cohort):
        metric.update(scores, mask)
        own = []
        where = [(number, i, set(region)) for i, region in enumerate(flooded(mask))]
        lesions += len(where)
        for part in flooded(scores > floor):
            peak = max(part, key=lambda place: (scores[place], [-x for x in place]))
            own.append((float(scores[peak]), peak))
            candidates.append((float(scores[peak]), next(((n, i) for n, i, r in where if peak in r), None)))
        # MONAI takes 0 for missed, hence scores are lifted above it
        probs = np.array([score + 2.0 for score, _ in own], dtype=np.float32)
        coords = np.array([place for _, place in own], dtype=np.int64).reshape(-1, mask.ndim)
        if own:
            false, true, _ = compute_fp_tp_probs_nd(probs, coords, label(mask, np.ones((3,) * mask.ndim))[0])
            fp += false.tolist()
            tp += true.tolist()
        else:
            tp += [0.0] * len(where)
    curve = metric.curve()
    if not lesions:
        assert curve is None
        assert metric.compute()["undefined"]["froc_score"] == "no lesion"
        return
    assert curve is not None
    for threshold, false_rate, sensitivity in zip(*curve):
        kept = [lesion for score, lesion in candidates if score >= threshold]
        assert false_rate == pytest.approx(kept.count(None) / len(cohort))
        assert sensitivity == pytest.approx(len({lesion for lesion in kept if lesion is not None}) / lesions)
    assert {float(t) for t in curve[0]} >= {score for score, lesion in candidates if lesion is None}
    # a zero stands in for a missed lesion where there is none: MONAI leaves the lowest of all scores out
    expected = compute_froc_curve_data(np.array([*fp, 0.0]), np.array(tp), lesions, len(cohort))
    np.testing.assert_allclose(curve[1][::-1], expected[0])
    np.testing.assert_allclose(curve[2][::-1], expected[1])
    assert metric.compute()["froc_score"] == pytest.approx(compute_froc_score(*expected))


def test_standard_size_classes() -> None:
    rng = np.random.default_rng(0)
    metric = LesionDetection({"t": 0.9})
    for _ in range(4):
        scores, mask = rng.random((12, 12, 12)), np.zeros((12, 12, 12), dtype=bool)
        mask[:5, :5, :5] = True  # 125 voxels
        mask[8:10, 8, 8] = True
        metric.update(scores, mask, 1.0)
    got = metric.compute()
    assert [got["size_classes"][name]["lesions"] for name in ("small", "medium", "large")] == [4, 4, 0]
    assert got["undefined"] == {"sensitivity_by_size/large": "no lesion of this size"}
    with pytest.raises(ValueError, match="do not compare"):
        metric.update(scores, mask)


def test_undefined_and_unfit() -> None:
    empty = LesionDetection({"t": 0.5})
    assert empty.compute()["undefined"]["false_lesions_per_scan"] == "no scan"
    empty.update(np.zeros((3, 3)), np.zeros((3, 3)))
    got = empty.compute()
    assert got["at"]["t"]["false_lesions_per_scan"] == 0.0
    assert got["at"]["t"]["sensitivity"] is None
    assert got["undefined"]["sensitivity"] == "no lesion"
    without = LesionDetection({})
    without.update(np.zeros((3, 3)), np.eye(3))
    assert without.compute()["undefined"]["froc_score"] == "no floor"
    for arguments in (
        {"thresholds": {"t": float("nan")}},
        {"thresholds": {}, "min_overlap": 1.5},
        {"thresholds": {}, "size_classes": {"a": 1.0}},
        {"thresholds": {}, "size_classes": {"a": 0.0, "b": 0.0}},
    ):
        with pytest.raises(ValueError):
            LesionDetection(**arguments)
    with pytest.raises(ValueError, match="positive"):
        empty.update(np.zeros((3, 3)), np.zeros((3, 3)), 0.0)


@given(drawn=maps(), cut=st.floats(-0.3, 0.7))
@settings(deadline=None, max_examples=50)
def test_counted_lesions_are_those_that_the_mask_touches(drawn: tuple[np.ndarray, np.ndarray], cut: float) -> None:
    scores, reference = drawn
    regions = flooded(reference)
    touched = [region for region in regions if any(scores[place] > cut for place in region)]
    assert count_lesions(reference, scores > cut) == (len(regions), len(touched))
    assert count_lesions(reference, None) == (len(regions), None)


def test_counting_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="shape"):
        count_lesions(np.zeros((2, 2)), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="labels"):
        count_lesions(np.full((2, 2), 2), None)
