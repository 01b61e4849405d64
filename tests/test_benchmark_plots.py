"""The figures are drawn from what a run left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from benchmark_sets import SIDE, Stripes, tiny_suite

from monai_anomaly.__main__ import main
from monai_anomaly.benchmarks import BenchmarkRun, load_suite, read_results
from monai_anomaly.benchmarks.plots import KINDS, _area, _epochs, _losses, _roc, _roc_on, _runs, draw
from monai_anomaly.data.published import PUBLISHED_SETS
from monai_anomaly.exceptions import InputError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods on images with masks and on clips, watched over the epochs; leave it as it is."""
    folder = tmp_path_factory.mktemp("plots")
    sets = {"stripes": {"image_size": [SIDE, SIDE], "problems": ["masks", "clips"]}}
    suite = load_suite(tiny_suite(folder, sets=sets))
    options = {"autoencoder": {"max_epochs": 3, "network_def#channels": [4, 4]}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PUBLISHED_SETS, "stripes", Stripes)
        outcome = BenchmarkRun(suite, folder, options=options, track_auroc=True, progress=False).run()
    assert len(outcome.done) == 4
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "count"),
    [("roc", 3), ("montage", 4), ("epochs", 2), ("losses", 2), ("runs", 1), ("maps", 4), ("area", 2)],
)
def test_every_kind_is_drawn(
    kind: str, count: int, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["benchmark", "plot", str(run), "--kind", kind, "--to", str(tmp_path)]) == 0
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert len(paths) == count
    for path in paths:
        picture = matplotlib.image.imread(path)
        assert min(picture.shape[:2]) > 100
        assert picture[..., :3].std() > 0.01  # not blank


def test_the_lines_are_those_of_the_results(run: Path) -> None:
    rows = read_results([run])
    curve = next(iter(_epochs(run, rows)[0].values())).axes
    row = next(row for row in rows if row["losses"])
    np.testing.assert_allclose(curve[0].lines[0].get_ydata(), [point["train_loss"] for point in row["losses"]])
    np.testing.assert_allclose(curve[-1].lines[0].get_ydata(), [point["auroc"] for point in row["auroc_over_epochs"]])
    panel = next(iter(_losses(run, rows)[0].values())).axes[0]
    np.testing.assert_allclose(panel.lines[0].get_ydata(), [point["train_loss"] for point in row["losses"]])
    (runs,) = _runs(run, rows)[0].values()
    drawn = sorted(float(y) for line in runs.axes[0].lines[:-1] for y in line.get_ydata())
    assert drawn == sorted(row["metrics"]["image"]["auroc"] for row in rows)
    areas = next(iter(_area(run, rows)[0].values())).axes[0].collections[1].get_offsets()
    assert len(areas) == 12
    assert np.asarray(areas)[:, 0].min() > 0


def test_a_roc_curve_has_the_area_of_its_auroc(run: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 400)
    scores = rng.normal(labels, 1.0)
    grid = np.linspace(0, 1, 4001)
    curve = _roc_on(grid, {"labels": labels, "scores": scores})
    normal, abnormal = scores[labels == 0], scores[labels == 1]
    wins = (abnormal[:, None] > normal).mean()
    assert np.trapezoid(curve, grid) == pytest.approx(wins, abs=2e-3)
    assert _roc_on(grid, {"labels": np.zeros(3), "scores": np.arange(3)}) is None
    names = list(_roc(run, read_results([run]))[0])
    assert sum(name.endswith("-mean") for name in names) == 1


def test_what_cannot_be_drawn_says_why(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = read_results([run])
    with pytest.raises(InputError, match="has masks"):
        draw(run, [row for row in rows if row["problem"] == "clips"], "area", tmp_path)
    with pytest.raises(InputError, match="is no kind"):
        draw(run, rows, "pie", tmp_path)
    with pytest.raises(InputError, match="scores"):
        draw(tmp_path, rows, "roc", tmp_path)
    assert main(["benchmark", "plot", str(run), "--kind", "epochs", "--only-methods", "zscore"]) == 1
    assert "nothing was trained" in capsys.readouterr().err
    assert main(["benchmark", "plot", str(tmp_path), "--kind", "roc"]) == 1
    assert "no finished run" in capsys.readouterr().err


def test_the_kinds_are_those_of_the_documentation() -> None:
    text = (Path(__file__).parents[1] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert [kind for kind in KINDS if f"| `{kind}` |" not in text] == []


def test_results_are_plain_json(run: Path) -> None:
    def refuse(value: str) -> Any:
        raise AssertionError(value)

    for line in (run / "results.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)
