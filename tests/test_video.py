"""Eq. 4 and the frame-level metrics of videos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from monai_anomaly.metrics import normality_scores, video_metrics, video_metrics_of


def test_normality_is_equation_4() -> None:
    errors = np.random.default_rng(0).normal(5.0, 2.0, 30)
    scores = normality_scores(errors)
    least, largest = min(errors), max(errors)
    for u, error in enumerate(errors):
        assert scores[u] == pytest.approx(1 - (error - least) / (largest - least))
    assert scores[errors.argmax()] == 0.0
    assert scores[errors.argmin()] == 1.0


def test_each_episode_is_scaled_by_itself() -> None:
    random = np.random.default_rng(1)
    labels = random.integers(0, 2, 60)
    episodes = [f"{i // 20:02d}" for i in range(60)]
    level = np.repeat([0.0, 10.0, 100.0], 20)  # the episodes differ far more than their frames
    errors = level + labels + random.normal(0, 0.8, 60)
    metrics = video_metrics(errors, labels, episodes)
    assert metrics["auroc"] == pytest.approx(roc_auc_score(labels, errors))
    scaled = np.empty(60)
    for start in (0, 20, 40):
        part = errors[start : start + 20]
        scaled[start : start + 20] = [(e - min(part)) / (max(part) - min(part)) for e in part]
    assert metrics["auroc_transductive"] == pytest.approx(roc_auc_score(labels, scaled))
    assert metrics["auroc_transductive"] > metrics["auroc"]  # type: ignore[operator]
    shuffled = random.permutation(60)
    assert video_metrics(errors[shuffled], labels[shuffled], [episodes[i] for i in shuffled]) == metrics


def test_one_class_has_no_auroc() -> None:
    assert video_metrics([1.0, 2.0], [0, 0], ["a", "a"]) == {"auroc": None, "auroc_transductive": None}


@pytest.mark.parametrize(
    ("errors", "message"),
    [([2.0, 2.0], "all equal"), ([1.0], "all equal"), ([], "one or more"), ([1.0, np.nan], "finite")],
)
def test_what_equation_4_does_not_cover_is_refused(errors: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        normality_scores(errors)


def test_refusals_name_the_episode() -> None:
    with pytest.raises(ValueError, match=r"episode b: .*all equal"):
        video_metrics([1.0, 2.0, 3.0], [0, 1, 0], ["a", "a", "b"])
    with pytest.raises(ValueError, match="3 errors, 2 labels and 3 episodes"):
        video_metrics([1.0, 2.0, 3.0], [0, 1], ["a", "a", "b"])


def write(path: Path, rows: list[str]) -> Path:
    path.write_text("\n".join(["case,image,patient,label,anomaly_score", *rows]) + "\n")
    return path


def test_metrics_of_a_table_of_predictions(tmp_path: Path) -> None:
    rows = [f"0{e}_0014_{u:03d},x.png,p,{int(u == 2)},{10 * e + (u == 2) + u / 10}" for e in (1, 2) for u in range(4)]
    metrics = video_metrics_of(write(tmp_path / "predictions.csv", rows), r"(\d+_\d+)_")
    assert metrics["auroc_transductive"] == 1.0
    assert metrics["auroc"] == pytest.approx(9 / 12)
    assert video_metrics_of(tmp_path / "predictions.csv", r"^\d+_\d+") == metrics
    with pytest.raises(ValueError, match="no episode in the case '01_0014_000'"):
        video_metrics_of(tmp_path / "predictions.csv", "scene")
    with pytest.raises(ValueError, match="'a_1' has no label"):
        video_metrics_of(write(tmp_path / "other.csv", ["a_1,x.png,p,,0.5"]), "a")
