"""Which detector to take: the comparison on normal scans, what it says, and what keeps a detector out of it."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from monai_anomaly.__main__ import main
from monai_anomaly.benchmarks.recommend import Candidate, recommendation_text

pytest_plugins = ["bundle_fixtures"]

NARROW = ["image_size=[32,32]", "dae:network_def#channels=[4,8]", "autoencoder:network_def#channels=[4,8,8,8]"]


@pytest.mark.slow
def test_detectors_are_compared(tiny_cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = ["recommend", str(tiny_cohort), "--out", str(out), "--minutes", "0.02", "--labelled", str(tiny_cohort)]
    # hfrae has a file of weights that is not there
    arguments += ["--methods", "dae", "autoencoder", "zscore", "hfrae", "--options", *NARROW]
    assert main([*arguments, f"hfrae:weights={tmp_path / 'none.pth'}"]) == 0
    text = capsys.readouterr().out
    with (out / "recommend.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["method"] for row in rows} == {"dae", "autoencoder", "zscore", "hfrae"}
    failed = rows.pop()
    assert failed["method"] == "hfrae"
    assert "none.pth" in failed["error"]
    figures = [float(row["pixel_ap"]) for row in rows]
    assert figures == sorted(figures, reverse=True)
    for row in rows:
        assert float(row["low"]) <= float(row["high"])
        assert 0 <= float(row["labelled_auroc"]) <= 1
        assert 0 <= float(row["labelled_ap"]) <= 1
        assert (row["epochs"] == "") == (row["method"] == "zscore")
    assert sum(float(row["best"]) for row in rows) == pytest.approx(1)
    assert f"Take {rows[0]['title']}" in text
    assert "rank correlation" in text
    # what was compared stays usable
    assert (out / rows[0]["method"] / "models" / "model.pt").is_file()


def test_an_unknown_detector_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recommend", str(tmp_path), "--out", str(tmp_path / "out"), "--methods", "deep"]) == 1
    assert "'deep' is no method" in capsys.readouterr().err


def test_no_normal_scan_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["recommend", str(tmp_path / "gone"), "--out", str(tmp_path / "out"), "--methods", "zscore"]
    assert main(arguments) == 1
    assert len(capsys.readouterr().err.strip().splitlines()[-1:]) == 1


def test_the_sentence_says_how_sure_it_is() -> None:
    def text(best: float) -> str:
        first = Candidate("a", "A", 1.0, "3", "", 0.5, 0.4, 0.6, best, None, 0.2)
        second = Candidate("b", "B", 1.0, "3", "stage", 0.4, 0.3, 0.5, 1 - best, None, 0.3)
        third = Candidate("c", "C", 1.0, "3", "", 0.1, 0.0, 0.2, 0.0, None, 0.1)
        return recommendation_text([first, second, third])

    assert "Take A: clearly the best" in text(0.97)
    assert "Take A: probably the best" in text(0.85)
    assert "Take A: by a narrow margin" in text(0.5)
    assert "B †" in text(0.5)
    # ranks 1, 2, 3 against 2, 1, 3
    assert f"rank correlation {1 - 6 * 2 / (3 * 8):.2f}" in text(0.5)
    assert f"{np.float64(0.3 - 0.2):.3f} below the best" in text(0.5)
