"""The tables of the results page are those of the committed result files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import measure_speed
from monai_anomaly.__main__ import main
from monai_anomaly.benchmarks.pages import drawn_results, refreshed_page
from monai_anomaly.exceptions import InputError

DOCS = Path(__file__).parent.parent / "docs"


def line(method: str, value: float) -> str:
    return json.dumps(
        {
            "unit": method,
            "suite": "s",
            "set": "digits",
            "problem": "8",
            "method": method,
            "seed": 0,
            "scale": "small",
            "table": {"title": method, "paper": "", "metrics": ["image.auroc"]},
            "pictures": {"whole": True},
            "under_trained": [],
            "metrics": {"image": {"auroc": value, "undefined": {}}},
        }
    )


@pytest.mark.parametrize(("name", "kinds"), [("results.md", ("table", "speed")), ("scaling.md", ("speed",))])
def test_the_page_shows_what_the_files_hold(name, kinds):
    page = DOCS / name
    text = page.read_text(encoding="utf-8")
    for kind in kinds:
        assert f"<!-- benchmark {kind} results/" in text
    draw = {"table": drawn_results, "speed": measure_speed._drawn}
    for kind in kinds:
        assert refreshed_page(page, kind, draw[kind]) == text


def test_a_page_is_drawn_anew_in_place(tmp_path):
    (tmp_path / "r.jsonl").write_text(line("one", 0.5) + "\n" + line("other", 0.75) + "\n")
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- benchmark table r.jsonl -->\nold\n<!-- end -->\nafter\n")
    assert main(["benchmark", "table", "--refresh", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("<!-- end -->\nafter\n")
    assert "old" not in text
    assert "| one | 50.0 |" in text
    assert "| other | 75.0 |" in text
    assert refreshed_page(page, "table", drawn_results) == text


def test_a_missing_file_is_named(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- benchmark table gone.jsonl -->\n<!-- end -->\n")
    with pytest.raises(InputError, match=r"gone\.jsonl: does not exist"):
        refreshed_page(page, "table", drawn_results)


def test_measurements_are_drawn_by_section(tmp_path, capsys):
    context = {
        "machine": {"processor": "P", "threads": 1, "cores": 2},
        "clock": "CPU seconds",
        "load_before": 0.5,
        "when": "2026-01-02",
        "versions": {"torch": "2"},
        "note": "",
    }
    section = {"context": context, "slices": 10, "rows": [{"contender": "x", "seconds": [1.0, 3.0, 2.0]}]}
    (tmp_path / "speed.json").write_text(json.dumps({"sections": {"volume": section}}))
    page = tmp_path / "page.md"
    page.write_text("<!-- benchmark speed speed.json volume -->\n<!-- end -->\n")
    assert measure_speed.main(["--refresh", str(page)]) == 0
    text = page.read_text()
    assert "| x | 2 |" in text
    assert "P, 1 of 2 cores; CPU seconds; load 0.5 before; 2026-01-02; torch 2" in text
    page.write_text("<!-- benchmark speed speed.json growth -->\n<!-- end -->\n")
    assert measure_speed.main(["--refresh", str(page)]) == 1
    assert "speed.json: holds no measurement growth" in capsys.readouterr().err
