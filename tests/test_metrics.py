"""The ranking metrics against scikit-learn and against their plain definitions."""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_anomaly.metrics import ranking
from monai_anomaly.metrics.ranking import auroc, average_precision, best_dice


def ranking_metrics(scores: npt.ArrayLike, labels: npt.ArrayLike) -> dict[str, float | None]:
    dice = best_dice(scores, labels)
    return {
        "auroc": auroc(scores, labels),
        "ap": average_precision(scores, labels),
        "best_dice": None if dice is None else dice[0],
    }


@st.composite
def scored(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Scores with many or few ties in any of the dtypes met, both classes present."""
    size = draw(st.integers(2, 40))
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64, np.int32, np.uint8]))
    low = 0 if dtype is np.uint8 else -3
    values = st.integers(low, draw(st.sampled_from([0, 2, 5, 100])))
    if np.issubdtype(dtype, np.floating) and draw(st.booleans()):
        values = st.floats(width=np.finfo(dtype).bits, allow_nan=False)
    scores = np.array(draw(st.lists(values, min_size=size, max_size=size)), dtype=dtype)
    labels = np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    labels[draw(st.integers(0, size - 1))] = True
    if labels.all():
        labels[0] = False
    return scores, labels


def plain_metrics(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """By definition: every pair for AUROC, every threshold for average precision and Dice."""
    abnormal, normal = scores[labels], scores[~labels]
    pairs = [1.0 if a > n else 0.5 if a == n else 0.0 for a in abnormal for n in normal]
    precision_sum, recall_before, dices = 0.0, 0.0, []
    for threshold in np.unique(scores)[::-1]:
        found = scores >= threshold
        hits = int(np.sum(found & labels))
        recall = hits / abnormal.size
        precision_sum += (recall - recall_before) * hits / int(found.sum())
        recall_before = recall
        dices.append(2 * hits / (int(found.sum()) + abnormal.size))
    return {"auroc": float(np.mean(pairs)), "ap": precision_sum, "best_dice": max(dices)}


@pytest.mark.slow
@given(scored(), st.sampled_from([1, 2, 7, 1 << 20]))
@settings(max_examples=200, deadline=None)
def test_equals_the_plain_definition_for_any_chunk_size(sample: tuple[np.ndarray, np.ndarray], chunk: int) -> None:
    scores, labels = sample
    before = scores.copy(), labels.copy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "_CHUNK", chunk)
        metrics = ranking_metrics(scores, labels)
        dice = best_dice(scores, labels)
    expected = plain_metrics(scores, labels)
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, abs=1e-12)
    assert dice is not None
    found = scores >= np.asarray(dice[1], dtype=scores.dtype)
    assert dice[0] == metrics["best_dice"] == 2 * np.sum(found & labels) / (found.sum() + labels.sum())
    np.testing.assert_array_equal(scores, before[0])
    np.testing.assert_array_equal(labels, before[1])


@given(scored())
@settings(max_examples=60, deadline=None)
def test_equals_scikit_learn(sample: tuple[np.ndarray, np.ndarray]) -> None:
    from sklearn.metrics import average_precision_score, roc_auc_score

    scores, labels = sample
    if scores.dtype.kind == "f":  # scikit-learn rejects infinities; whole numbers keep the ties
        scores = np.clip(np.nan_to_num(scores), -1e4, 1e4)
    assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert average_precision(scores, labels) == pytest.approx(average_precision_score(labels, scores), abs=1e-12)


def test_equals_scikit_learn_on_a_large_map_with_ties() -> None:
    from sklearn.metrics import average_precision_score, roc_auc_score

    rng = np.random.default_rng(0)
    labels = rng.random((100, 60, 50)) < 0.03
    scores = np.round(rng.standard_normal(labels.shape) + 1.5 * labels, 2).astype(np.float32)
    metrics = ranking_metrics(scores, labels)
    assert metrics["auroc"] == pytest.approx(roc_auc_score(labels.ravel(), scores.ravel()), abs=1e-12)
    assert metrics["ap"] == pytest.approx(average_precision_score(labels.ravel(), scores.ravel()), abs=1e-12)


def test_counts_beyond_float32_stay_exact() -> None:
    # 2**24 + 1 normal elements: float32 cannot count them
    normal = 2**24 + 1
    scores = np.zeros(normal + 1, dtype=np.float32)
    labels = np.zeros(normal + 1, dtype=bool)
    labels[-1] = True
    metrics = ranking_metrics(scores, labels)
    assert metrics["auroc"] == 0.5
    assert metrics["ap"] == 1 / (normal + 1)
    assert metrics["best_dice"] == 2 / (normal + 2)


@given(scored(), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_order_of_the_elements_does_not_matter(sample: tuple[np.ndarray, np.ndarray], random: object) -> None:
    scores, labels = sample
    order = np.random.default_rng(random.randint(0, 1000)).permutation(scores.size)  # type: ignore[attr-defined]
    assert ranking_metrics(scores[order], labels[order]) == ranking_metrics(scores, labels)


def test_one_class_alone_is_undefined_and_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for labels in ([0, 0], [1, 1], []):
            scores = np.arange(len(labels), dtype=np.float32)
            assert auroc(scores, labels) is average_precision(scores, labels) is best_dice(scores, labels) is None


@pytest.mark.parametrize(
    ("scores", "labels", "problem"),
    [
        ([0.1, np.nan, 0.3], [0, 1, 0], "NaN"),
        ([0.1, 0.2, np.nan], [0, 1, 0], "NaN"),
        ([0.1, 0.2], [0, 2], "labels"),
        ([0.1, 0.2], [0.0, np.nan], "labels"),
        ([0.1, 0.2], [0], "2 scores but 1 labels"),
        ([1j, 2j], [0, 1], "dtype"),
    ],
)
def test_refuses_what_has_no_rank(scores: list, labels: list, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        ranking_metrics(scores, labels)


def test_best_dice_takes_the_highest_of_equal_thresholds() -> None:
    # thresholds 3 and 1 both give 2/3
    assert best_dice([3.0, 2.0, 2.0, 1.0], [1, 0, 0, 1]) == (pytest.approx(2 / 3), 3.0)
