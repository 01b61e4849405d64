"""Shards of a cohort: every scan once, patients whole, and the joined table is that of one run."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from bundle_runs import cohort_evaluator

from monai_anomaly.data import ScanDataset, ScanPreprocessing, load_cohort
from monai_anomaly.engines import scan_loader
from monai_anomaly.networks import IntensityThreshold
from speed_cohort import simulated_cohort

PATH = Path(__file__).parents[1] / "examples" / "shard_cohort.py"


@pytest.fixture(scope="module")
def shard() -> ModuleType:
    spec = importlib.util.spec_from_file_location("shard_cohort", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six scans of four patients."""
    folder = tmp_path_factory.mktemp("cohort")
    items = simulated_cohort(folder, 6, 2, side=32)
    test = [
        {"image": Path(item["image"]).name, "patient": f"p{max(index // 2, index - 2)}", "label": int(index >= 4)}
        for index, item in enumerate(items)
    ]
    (folder / "cohort.json").write_text(json.dumps({"test": test}))
    return folder / "cohort.json"


def score(source: Path, output: Path) -> None:
    preprocessing = ScanPreprocessing((32, 32))
    loader = scan_loader(ScanDataset(load_cohort(source).test, preprocessing))
    evaluator = cohort_evaluator(IntensityThreshold(), preprocessing, loader, output, alpha=None, report=False)
    evaluator.run()
    evaluator.finish()


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return sorted(csv.DictReader(file), key=lambda row: row["case"])


def test_shards_are_joined_to_the_table_of_one_run(shard: ModuleType, datalist: Path, tmp_path: Path) -> None:
    score(datalist, tmp_path / "whole")
    assert shard.main(["split", str(datalist), str(tmp_path / "shards"), "--shards", "3"]) == 0
    paths = sorted((tmp_path / "shards").iterdir())
    assert [path.name for path in paths] == ["shard0.json", "shard1.json", "shard2.json"]
    patients = []
    for path in paths:
        items = load_cohort(path).test
        assert len(items) == 2
        patients += sorted({item["patient"] for item in items})
        score(path, tmp_path / "parts" / path.stem)
    assert sorted(patients) == sorted(set(patients))
    assert shard.main(["join", str(tmp_path / "parts"), "--output", str(tmp_path / "joined.csv")]) == 0
    joined = table(tmp_path / "joined.csv")
    assert joined == table(tmp_path / "whole" / "predictions.csv")
    assert len(joined) == 6


def test_what_cannot_be_split_or_joined_is_one_line(
    shard: ModuleType, datalist: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("a", "b"):
        (tmp_path / "twice" / name).mkdir(parents=True)
        (tmp_path / "twice" / name / "predictions.csv").write_text("case,score\nx,1\n")
    for arguments, words in (
        (["split", str(datalist), str(tmp_path / "s"), "--shards", "5"], "4 patients"),
        (["join", str(tmp_path / "empty"), "--output", str(tmp_path / "o.csv")], "predictions.csv"),
        (["join", str(tmp_path / "twice"), "--output", str(tmp_path / "o.csv")], "x is in another table"),
    ):
        assert shard.main(arguments) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert words in error
    assert not (tmp_path / "o.csv").exists()
