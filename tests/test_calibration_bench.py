"""The bench of error rates: what it reads, rejects and finds."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

PATH = Path(__file__).parents[1] / "examples" / "calibration_bench.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("calibration_bench", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(path: Path, patients: int = 160, shift: float = 0.0) -> Path:
    random = np.random.default_rng(4)
    rows = [
        f"c{i},c{i}.nii,p{i // 2},{'' if i % 3 else 0},{s + shift}"
        for i, s in enumerate(random.gamma(2, size=2 * patients))
    ]
    path.write_text("\n".join(["case,image,patient,label,anomaly_score", *rows, "x,x.nii,sick,1,1e9"]) + "\n")
    return path


def test_rates_and_spreads_are_those_of_the_law(bench: ModuleType, tmp_path: Path) -> None:
    arguments = ["--calibration", "99", "--alphas", "0.05", "0.1", "0.01", "--splits", "400"]
    rows = bench.main([str(write(tmp_path / "t.csv")), *arguments, "--output", str(tmp_path / "out.jsonl")])
    assert [json.loads(line)["alpha"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == [
        0.05,
        0.1,
        0.01,
    ]
    for row in rows:
        assert (row["calibration_patients"], row["test_patients"], row["tied_patients"]) == (99, 61, 0)
        assert row["expected_fpr"] == pytest.approx(row["alpha"])
        assert abs(row["mean_fpr"] - row["expected_fpr"]) < 4 * row["monte_carlo_error"]
        assert row["spread"] == pytest.approx(row["expected_spread"], rel=0.2)


def test_a_patient_is_one_unit_and_abnormal_ones_are_left_out(bench: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("patient,label,anomaly_score\na,0,1\na,0,3\nb,,2\nc,1,9\n")
    assert bench.read_patients(path).tolist() == [3.0, 2.0]


@pytest.mark.parametrize(
    ("content", "arguments", "line"),
    [
        ("patient,score\na,1\n", [], "no table with the columns patient and anomaly_score"),
        ("patient,anomaly_score\na,nan\nb,1\n", [], "anomaly_score of 'a' is 'nan'"),
        ("patient,label,anomaly_score\na,0,1\na,1,2\n", [], "patient 'a' is normal and abnormal"),
        ("patient,anomaly_score\na,1\nb,2\n", ["--calibration", "2"], "2 of 2 patients leave none to test"),
        (
            "patient,anomaly_score\na,1\nb,2\n",
            ["--calibration", "1"],
            "needs 19 normal calibration patients, there are 1",
        ),
    ],
)
def test_tables_that_say_nothing(
    bench: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: str,
    arguments: list[str],
    line: str,
) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(SystemExit):
        bench.main([str(tmp_path / "t.csv"), *arguments])
    assert line in capsys.readouterr().err
