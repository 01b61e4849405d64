"""The report: its sentences and tables, its page, and the page in a real browser."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from base64 import b64decode
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from PIL import Image
from report_demo import HOSTILE, demo_evaluation, settings_of

from monai_anomaly.metrics import METRICS, Curve, Figure, FigureTable
from monai_anomaly.report import CaseResult, CaseSlice, Evaluation, case_slice, findings, write_report
from monai_anomaly.report.evaluation import case_lists
from monai_anomaly.report.findings import compare, number, verdict
from monai_anomaly.report.overview import ScanView
from monai_anomaly.report.page import _IMAGE_BUDGET
from monai_anomaly.report.plots import draw_curves, draw_histogram
from monai_anomaly.report.slices import case_panels, map_top
from monai_anomaly.report.tables import figure_tables

Demo = tuple[Evaluation, list[CaseResult], np.ndarray]


class Page(HTMLParser):
    """What a reader and a browser find in a page: elements, headings, visible text."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.headings: list[tuple[int, str]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append((int(tag[1]), ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("style", "title"):
            return
        self.text += data
        if self.open and re.fullmatch("h[1-6]", self.open[-1]):
            level, text = self.headings[-1]
            self.headings[-1] = (level, text + data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def demo() -> Demo:
    return demo_evaluation()


@pytest.fixture(scope="module")
def demo_page(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, demo[0], demo[1], calibration_scores=demo[2])
    return path


def small(*figures: Figure, **changes: Any) -> Evaluation:
    """An evaluation of the detector ``own`` and the baselines and statistics that the figures name."""
    names = dict.fromkeys(["own", *(figure.detector for figure in figures)])
    kinds = {name: "image statistic" if name.startswith("image") else "baseline" for name in names}
    return Evaluation(settings_of(detectors={**kinds, "own": "method"}, **changes), FigureTable(figures))


def page_of(tmp_path: Path, evaluation: Evaluation, cases: list[CaseResult], **options: Any) -> Page:
    write_report(tmp_path / "r.html", evaluation, cases, **options)
    return Page((tmp_path / "r.html").read_text(encoding="utf-8"))


# ---- curves and cases ----------------------------------------------------------------------------------------------


@given(
    points=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=2000),
)
@settings(deadline=None, max_examples=30)
def test_thinned_curves_keep_their_course(points: list[tuple[float, float]]) -> None:
    x, y = np.sort([x for x, _ in points]), np.sort([y for _, y in points])
    thinned = Curve("a", "image", "roc", x, y).thinned()
    kept = np.stack([thinned.x, thinned.y], axis=1)
    assert len(kept) <= 400
    assert {tuple(each) for each in kept} <= set(zip(x, y))
    np.testing.assert_array_equal(kept[[0, -1]], [[x[0], y[0]], [x[-1], y[-1]]])
    # a rising curve is nowhere far from the chords of what is left
    np.testing.assert_allclose(np.trapezoid(thinned.y, thinned.x), np.trapezoid(y, x), atol=0.01)


cases_of = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from([0, 1, None]), st.sampled_from([True, False, None])), max_size=12
)


@given(drawn=cases_of)
@settings(deadline=None, max_examples=50)
def test_case_lists_against_an_obvious_selection(drawn: list[tuple[int, int | None, bool | None]]) -> None:
    cases = [CaseResult(f"c{i:02d}", float(s), label=lab, flagged=f) for i, (s, lab, f) in enumerate(drawn)]
    keys = ("most_anomalous", "most_normal", "false_negatives", "false_positives")
    lists = dict(zip(keys, case_lists(cases), strict=True))
    names = {key: [case.name for case in listed.cases] for key, listed in lists.items()}
    by_score = sorted(cases, key=lambda case: case.score)  # stable, and the cases are in the order of their names
    assert names["most_normal"] == [case.name for case in by_score]
    scores = [case.score for case in lists["most_anomalous"].cases]
    assert scores == sorted(scores, reverse=True)
    assert sorted(names["most_anomalous"]) == sorted(names["most_normal"])
    for key, label, flagged in (("false_negatives", 1, False), ("false_positives", 0, True)):
        wanted = {c.name for c in cases if c.label == label and c.flagged == flagged and c.flagged is not None}
        assert set(names[key]) == wanted
        defined = any(case.label == label and case.flagged is not None for case in cases)
        assert bool(lists[key].undefined) != defined


# ---- sentences ---------------------------------------------------------------------------------------------------


def ap(
    detector: str, value: float | None, low: float | None = None, high: float | None = None, note: str = ""
) -> Figure:
    return Figure(detector, "pixel", "", "ap", value, low, high, note=note)


intervals = st.lists(st.floats(0, 1), min_size=3, max_size=3).map(sorted).map(lambda v: ap("a", v[1], v[0], v[2]))


@given(one=intervals, other=intervals, higher=st.booleans())
@settings(deadline=None, max_examples=100)
def test_figures_are_told_apart_only_by_intervals_that_lie_apart(one: Figure, other: Figure, higher: bool) -> None:
    found = compare(one, other, higher)
    assert one.low is not None
    assert one.high is not None
    assert other.low is not None
    assert other.high is not None
    common = max(one.low, other.low) <= min(one.high, other.high)
    assert (found == "not distinguishable") == common
    flipped = {"better": "worse", "worse": "better"}
    assert compare(other, one, higher) == flipped.get(found, found)
    assert compare(one, other, not higher) == flipped.get(found, found)
    if found == "better":
        assert one.value is not None
        assert other.value is not None
        assert (one.value > other.value) == higher


def test_without_intervals_or_values_nothing_is_told_apart() -> None:
    assert compare(ap("a", 0.9), ap("b", 0.1, 0.0, 0.2), True) == "no interval"
    assert compare(ap("a", None, note="no class"), ap("b", 0.1), True) == "undefined"


def said(*figures: Figure) -> tuple[bool, str, str]:
    """The first finding."""
    found = findings(small(*figures))[0]
    return found["warning"], found["verdict"], found["detail"]


def test_a_method_that_beats_its_baselines_is_said_to() -> None:
    warning, text, detail = said(ap("own", 0.5, 0.4, 0.6), ap("threshold", 0.2, 0.1, 0.3), ap("zscore", 0.1, 0, 0.2))
    assert not warning
    assert text == "Pixels or voxels: own beats every baseline that was compared (threshold and zscore)."
    assert (
        detail == "own has AP 0.500 (0.400 to 0.600). "
        "Better than threshold 0.200 (0.100 to 0.300) and zscore 0.100 (0 to 0.200)."
    )


def test_a_method_that_does_not_beat_a_baseline_is_warned_of() -> None:
    warning, text, detail = said(
        ap("own", 0.5, 0.4, 0.6), ap("near", 0.3, 0.2, 0.4), ap("above", 0.9, 0.8, 1.0), ap("below", 0.1, 0.0, 0.2)
    )
    assert warning
    assert text == "Pixels or voxels: own does NOT beat the baselines near or above."
    assert "Better than below" in detail
    assert "Not distinguishable from near 0.300 (0.200 to 0.400): the intervals overlap." in detail
    assert "Worse than above" in detail


def test_what_cannot_be_compared_is_not_called_beaten() -> None:
    warning, text, detail = said(ap("own", 0.5), ap("threshold", 0.1))
    assert warning
    assert text == "Pixels or voxels: own cannot be said to beat the baseline threshold, as an interval is missing."
    assert "Without intervals nothing can be said of threshold 0.100." in detail
    warning, text, detail = said(ap("own", 0.5, 0.4, 0.6), ap("threshold", None, note="it crashed"))
    assert warning
    assert "stands without a baseline" in text
    assert "Not compared with threshold undefined: it crashed." in detail
    warning, text, _ = said(ap("own", None, note="no abnormal pixel"), ap("threshold", 0.1))
    assert warning
    assert text == "Pixels or voxels: own has no AP (undefined: no abnormal pixel)."


def test_chance_is_the_prevalence_of_these_scans() -> None:
    share = Figure("own", "pixel", "", "prevalence", 0.02)
    warning, _, detail = said(ap("own", 0.03, 0.01, 0.05), share, ap("t", 0.001, 0.0005, 0.002))
    assert warning
    assert "Not distinguishable from chance (0.0200)." in detail


def test_confounders_come_first_and_are_rivals() -> None:
    def auroc(name: str, *values: float) -> Figure:
        return Figure(name, "image", "", "auroc", *values)

    given = small(
        auroc("own", 0.7, 0.65, 0.75),
        auroc("image sharpness", 0.95, 0.9, 0.98),
        confounders={"sentence": "The sharpness says it all.", "separates": True},
    )
    first, second = findings(given)[:2]
    assert (first["warning"], first["verdict"]) == (True, "Scans (image level): The sharpness says it all.")
    assert "it does NOT beat the image statistic image sharpness" in second["verdict"]
    assert "Worse than image sharpness 0.950 (0.900 to 0.980)" in second["detail"]


def calibration(**changes: Any) -> dict[str, Any]:
    drift = [{"name": "scores", "finding": "p = 0.5", "warning": False, "compared": True}]
    found = {"alpha": 0.05, "patients": 19, "score_threshold": 1.0, "map_threshold": 2.0, "rule": "", "drift": drift}
    return {**found, **changes}


def test_calibration_in_words() -> None:
    def told(given: dict[str, Any] | None, cases: list[CaseResult] | None = None, **changes: Any) -> list[Any]:
        found = findings(small(calibration=given, **changes), cases or [])
        return [(each["warning"], each["verdict"], each["detail"]) for each in found]

    assert "not calibrated" in told(None)[0][1]
    few = calibration(patients=18, score_threshold=None)
    assert "18 calibration patients are too few for a rate of 5 %, which needs 19" in told(few)[0][1]
    assert "none was asked for" in told(calibration(alpha=None))[0][1]
    assert [warning for warning, *_ in told(calibration())] == [False, False]
    [check] = calibration()["drift"]
    wider = {"name": "spacing", "finding": "wider", "warning": True, "compared": True}
    drifted = told(calibration(drift=[check, wider]))[1]
    assert drifted[:2] == (
        True,
        "The guarantee no longer holds: these scans differ from the calibration scans in spacing.",
    )
    assert told(calibration(drift=[]))[1][0]
    apart = {**check, "compared": False}
    assert told(calibration(drift=[apart, {**wider, "warning": False}]))[1][2] == "Not compared: scores."
    assert told(calibration(drift=[apart]))[1][0]  # nothing was compared
    failed = told(calibration(), failures=[{"case": "a", "error": "broken"}])[-1]
    assert failed[:2] == (True, "1 scan could not be used and is missing from every figure.")
    cases = [CaseResult(f"{i}", float(i), label=i % 2, flagged=i > 2, patient=f"p{i // 2 % 2}") for i in range(8)]
    assert told(calibration(), cases)[0][2] == (
        "2 of 4 normal scans (50 %), 2 of 2 of their patients, have a score above the threshold. "
        "3 of 4 abnormal scans (75 %), 2 of 2 of their patients, have a score above the threshold."
    )
    marked = [replace(case, marked=case.score > 4) for case in cases]
    detail = told(calibration(), marked)[0][2]
    assert "have a score above the threshold; 1 have a mask that is not empty. 3 of 4" in detail


def test_one_line_says_whether_it_can_be_believed() -> None:
    cases = [CaseResult(f"{i}", float(i), flagged=i > 2) for i in range(4)]
    figures = (ap("own", 0.5, 0.4, 0.6), ap("threshold", 0.2, 0.1, 0.3), ap("near", 0.4, 0.3, 0.5))
    assert verdict(small(*figures, calibration=calibration()), cases) == (
        "1 of 4 scans lie above the threshold; pixel AP 0.500, better than threshold (0.200) and NOT told apart from "
        "near (0.400); calibrated on 19 normal patients; no drift found."
    )
    drift = [{"name": "scores", "finding": "", "warning": True, "compared": True}]
    failures = [{"case": "a", "error": "broken"}]
    text = verdict(small(calibration=calibration(drift=drift), failures=failures), [])
    assert text == "0 scans scored, no threshold; calibrated on 19 normal patients; DRIFTED from them; 1 scan FAILED."
    assert verdict(small(), cases[:1]).endswith("; not calibrated.")


def test_numbers_for_reading() -> None:
    shown = [number(value) for value in (0, 0.5, 0.0345, 0.0016, 1.6e-5, 12.345, 123456.7, -0.25)]
    assert shown == ["0", "0.500", "0.0345", "0.0016", "1.6e-05", "12.35", "123,457", "-0.250"]


# ---- the page ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_page_holds_its_sections_in_order(demo_page: Path) -> None:
    page = Page(demo_page.read_text(encoding="utf-8"))
    assert not page.open  # every element is closed
    levels = [level for level, _ in page.headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert [text for level, text in page.headings if level == 2] == [
        "Most anomalous scans",
        "What was found",
        "Figures",
        "Curves",
        "Scores",
        "Cases",
        "Cohort and calibration",
        "Failures",
        "Settings and hashes",
    ]
    assert page.text.index("Research use only, not for diagnosis") < page.text.index("Most anomalous scans")
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"] for attributes in page.all("a")]
    assert links
    assert {link.removeprefix("#") for link in links} <= set(ids)
    assert os.listdir(demo_page.parent) == ["report.html"]


@pytest.mark.slow
def test_the_most_anomalous_scans_come_first_with_their_images(demo: Demo, demo_page: Path) -> None:
    source = demo_page.read_text(encoding="utf-8")
    first = source[: source.index("What was found")]
    worst = sorted(demo[1], key=lambda case: -case.score)[:3]
    page = Page(source)
    digits = len(str(len(demo[1])))
    numbered = [f"scan {demo[1].index(case) + 1:0{digits}d}" for case in worst]
    assert [text for level, text in page.headings if level == 3][:3] == numbered
    assert first.count("<article") == 3
    for case in worst:
        assert f"score {case.score:.4g}, above the threshold" in first
    # image, reconstruction, map, mask, and the reference, of each
    assert len(re.findall(r'<img src="data:image/png[^>]*width', first)) == 15


@pytest.mark.slow
def test_page_says_what_the_figures_are(demo: Demo, demo_page: Path) -> None:
    evaluation, cases, _ = demo
    text = " ".join(Page(demo_page.read_text(encoding="utf-8")).text.split())
    assert verdict(evaluation, cases) in text
    for finding in findings(evaluation, cases):
        assert " ".join(finding["verdict"].split()) in text
        assert " ".join(finding["detail"].split()) in text
    shown = [row for row in evaluation.figures if row.metric in METRICS[row.level]]
    assert len(shown) > 50
    for row in shown:
        assert row.detector in text
        assert METRICS[row.level][row.metric].label in text
        assert (f"undefined: {row.note}" if row.value is None else number(row.value)) in text
        assert row.low is None or f"{number(row.low)} to {number(row.high or 0.0)}" in text
    for side in evaluation.settings["cohort"]:
        assert side["sha256"] in text
    for words in ("optimizer.lr", "0.8 mm against 1.0 mm", "an oracle: its threshold is chosen", "1 scan could not"):
        assert words in text
    assert not re.search(r"\bnan\b|\binf\b", text, re.IGNORECASE)


def test_each_figure_stands_in_one_table(demo: Demo) -> None:
    evaluation = demo[0]
    tables = figure_tables(evaluation)
    assert [level for level, _ in tables] == [
        "Scans (image level)",
        "Patients",
        "Pixels or voxels",
        "Lesions",
        "Masks as written",
    ]
    titles = {level: {table.title for table in parts} for level, parts in tables}
    assert titles["Scans (image level)"] == {"", "by site"}
    assert titles["Lesions"] == {"", "by threshold", "by threshold, by size"}
    cells = [
        cell for _, parts in tables for t in parts for _, row in t.rows for cell in row[1:] if isinstance(cell, dict)
    ]
    filled = [cell for cell in cells if cell["value"] != "–"]
    assert len(filled) == sum(row.metric in METRICS[row.level] for row in evaluation.figures)
    for _, parts in tables:
        for table in parts:
            assert all(len(row) == len(table.columns) for _, row in table.rows)
            kinds = [row[0]["small"] for _, row in table.rows]
            order = ["method", "baseline", "image statistic"]
            assert kinds == sorted(kinds, key=order.index)


def test_figures_of_patients_are_left_out_where_each_has_one_scan() -> None:
    rows = [Figure("own", level, "", "auroc", 0.5, n=8) for level in ("image", "patient")]
    assert [level for level, _ in figure_tables(small(*rows))] == ["Scans (image level)"]
    assert len(figure_tables(small(rows[0], rows[1]._replace(n=4)))) == 2


@pytest.mark.slow
def test_page_asks_for_nothing_and_runs_nothing(demo: Demo, tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", demo[0], demo[1], calibration_scores=demo[2], show_patients=True)
    source = (tmp_path / "r.html").read_text(encoding="utf-8")
    page = Page(source)
    used = {tag for tag, _ in page.elements}
    assert not used & {"script", "iframe", "object", "embed", "video", "audio", "form", "base"}
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("srcset", "style", "action")]
        assert attributes.get("src", "data:").startswith("data:"), tag
        assert attributes.get("href", "#").startswith(("#", "data:,")), tag
    assert "url(" not in source
    assert "@import" not in source
    [policy] = [m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert any(m.get("name") == "viewport" for m in page.all("meta"))
    # what would have been an element is text
    assert page.text.count(HOSTILE) >= 3
    assert "<img src=&quot;" not in source
    assert '<img src="http' not in source


@pytest.mark.slow
def test_pictures_have_words_and_can_be_decoded(demo_page: Path) -> None:
    page = Page(demo_page.read_text(encoding="utf-8"))
    pictures = page.all("img")
    assert len(pictures) > 20
    for picture in pictures:
        assert len(picture["alt"]) > 10
        kind, content = re.fullmatch(r"data:image/(png|svg\+xml);base64,(.*)", picture["src"]).groups()  # type: ignore[union-attr]
        if kind == "png":
            with Image.open(io.BytesIO(b64decode(content))) as image:
                image.load()
                if "width" in picture:
                    assert image.size == (int(picture["width"]), int(picture["height"]))
        else:
            assert ET.fromstring(b64decode(content)).tag.endswith("svg")


@pytest.mark.slow
def test_equal_evaluations_give_equal_bytes(demo: Demo, demo_page: Path, tmp_path: Path) -> None:
    write_report(tmp_path / "again.html", demo[0], demo[1], calibration_scores=demo[2])
    assert (tmp_path / "again.html").read_bytes() == demo_page.read_bytes()


@pytest.mark.slow
def test_patients_are_numbered_unless_asked_for(demo: Demo, demo_page: Path, tmp_path: Path) -> None:
    assert "Doe^" not in demo_page.read_text(encoding="utf-8")
    cases = [replace(case, pictures=None) for case in demo[1]]
    shown = page_of(tmp_path, small(), cases, show_patients=True)
    assert max(cases, key=lambda case: case.score).patient in shown.text
    hidden = page_of(tmp_path, small(), cases)
    assert "Doe" not in hidden.text
    assert "Patients are numbered" in hidden.text
    assert not [case.name for case in cases if case.name in hidden.text]
    failed = page_of(tmp_path, small(failures=[{"case": "Doe", "error": "/x/Doe: broken."}]), cases)
    assert "Doe" not in failed.text
    assert "1 scan could not be used" in failed.text
    assert "patient 1" in " ".join(hidden.text.split())
    nameless = page_of(tmp_path, small(), [CaseResult("a", 1.0)])
    assert "patient" not in nameless.text[nameless.text.index("Cases") : nameless.text.index("Cohort and")]


def test_inference_without_labels_or_calibration(tmp_path: Path) -> None:
    cases = [CaseResult(f"case {i}", float(i)) for i in range(3)]
    text = " ".join(page_of(tmp_path, small(), cases).text.split())
    for words in (
        "own: inference",
        "3 scans scored, no threshold; not calibrated.",
        "The detector is not calibrated",
        "Without labels or masks nothing can be measured",
        "undefined: no labels and no masks to measure against",
        "undefined: no curve can be drawn",
        "undefined: no scan is labelled abnormal",
        "p-value undefined: not calibrated",
        "No image of this case.",
        "None: every scan could be used.",
    ):
        assert words in text
    labelled = page_of(tmp_path, small(), [replace(case, label=i % 2) for i, case in enumerate(cases)])
    assert "undefined: no calibrated threshold" in labelled.text
    assert "No scan was scored." in page_of(tmp_path, small(), []).text


def test_undecodable_names_are_spelt_out(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9\x00\x1b.nii")
    failures = [{"case": name, "error": name}]
    page = page_of(tmp_path, small(failures=failures), [CaseResult(name, 1.0)], show_patients=True)
    assert page.text.count("caf\\udce9\\x00\\x1b.nii") >= 3


@pytest.mark.slow
def test_thousand_cases_stay_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    # colour noise is the worst that PNG can be given
    noise = rng.integers(0, 256, (300, 300, 3), dtype=np.uint8)
    scores, mask = rng.random((300, 300), dtype=np.float32), rng.random((300, 300)) > 0.5
    asked = []

    def pictures(index: int) -> Callable[[], CaseSlice]:
        def draw() -> CaseSlice:
            asked.append(index)
            return CaseSlice(np.roll(noise, index), np.roll(noise, -index), scores, mask, mask)

        return draw

    cases = [
        CaseResult(
            f"case {index:04d}", float(index), index // 500, flagged=index // 250 % 2 == 1, pictures=pictures(index)
        )
        for index in range(1000)
    ]
    page = page_of(tmp_path, small(calibration=calibration()), cases, calibration_scores=np.arange(19.0))
    assert (tmp_path / "r.html").stat().st_size < 15_000_000
    assert len(asked) == len(set(asked)) == len(page.all("article")) == 32
    assert "8 of 1000 are shown." in page.text
    wide = max(int(picture["width"]) for picture in page.all("img") if "width" in picture)
    assert f"at most {wide} pixels" in page.text
    assert wide < 256  # they were made smaller to stay within the budget
    content = [b64decode(picture["src"].split(",")[1]) for picture in page.all("img") if "width" in picture]
    assert sum(len(each) for each in content) <= _IMAGE_BUDGET
    few = page_of(tmp_path, small(), [replace(case, pictures=None) for case in cases], cases_per_list=2)
    assert len(few.all("article")) <= 8
    monkeypatch.setattr("monai_anomaly.report.page._IMAGE_BUDGET", 1000)
    assert "Images are left out" in page_of(tmp_path, small(), cases, cases_per_list=1).text
    with pytest.raises(ValueError, match="cases_per_list"):
        write_report(tmp_path / "no.html", small(), [], cases_per_list=0)


def test_a_failed_report_leaves_the_old_one(tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", small(), [])
    before = (tmp_path / "r.html").read_bytes()

    def gone() -> CaseSlice:
        raise FileNotFoundError("gone")

    with pytest.raises(FileNotFoundError):
        write_report(tmp_path / "r.html", small(), [CaseResult("a", 1.0, pictures=gone)])
    assert (tmp_path / "r.html").read_bytes() == before
    assert os.listdir(tmp_path) == ["r.html"]


# ---- images ----------------------------------------------------------------------------------------------------


def pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


@pytest.mark.parametrize("colour", [False, True])
def test_panels_show_what_they_say(colour: bool) -> None:
    image = np.full((30, 20, 3) if colour else (30, 20), 100.0)
    image[0], image[-1] = 0, 200
    scores = np.zeros((30, 20), np.float32)
    scores[10:16, 5:12] = np.linspace(0.1, 1.0, 42).reshape(6, 7)
    mask = np.zeros((30, 20), dtype=bool)
    mask[:8, :8] = True  # reaches the corner
    drawn = CaseSlice(image, image / 2, scores, mask, None, aspect=2.0)
    panels = {panel.name: panel for panel in case_panels("a", drawn, 1.0, 120)}
    assert panels["input"].size == (40, 120)  # 30 rows twice as high as 20 columns are wide
    shown = pixels(panels["input"].png)
    assert shown.shape[:2] == (120, 40)
    assert (shown[0] == 0).all()
    assert (shown[-1] == 255).all()
    assert abs(shown[60, 20, 0] - 127.5) <= 1
    assert abs(pixels(panels["restoration"].png)[60, 20, 0] - 63.75) <= 1
    heat = pixels(panels["anomaly map"].png)
    brightest = np.unravel_index(heat.sum(axis=-1).argmax(), heat.shape[:2])
    assert (brightest[0] // 4, brightest[1] // 2) == (15, 11)
    assert heat[0].sum() < 10 * heat.shape[1]
    assert panels["anomaly map"].caption == "anomaly map, peak 1"
    outline = (pixels(panels["mask"].png) == [86, 212, 255]).all(axis=-1)
    expected = np.zeros((120, 40), dtype=bool)
    expected[:32, :16] = True
    expected[2:30, 2:14] = False
    np.testing.assert_array_equal(outline, expected)
    assert panels["reference"].absent == "none is given"
    assert not panels["reference"].png


def test_small_pictures_grow_and_thin_masks_survive_shrinking() -> None:
    mask = np.zeros((500, 500), dtype=bool)
    mask[250, 250] = True
    panels = {p.name: p for p in case_panels("a", CaseSlice(mask * 1.0, None, mask * 1.0, mask), 1.0, 100)}
    assert (pixels(panels["mask"].png) == [86, 212, 255]).all(axis=-1).sum() == 1
    [tiny, *_] = case_panels("a", CaseSlice(np.eye(28), None, np.eye(28)), 1.0, 140)
    np.testing.assert_array_equal(pixels(tiny.png)[..., 0], 255 * np.kron(np.eye(28), np.ones((5, 5))))
    empty = case_panels("a", CaseSlice(np.zeros((8, 8)), None, np.zeros((8, 8)), np.zeros((8, 8))), 1.0, 64)
    assert empty[3].caption == "mask: none in this slice"


def test_colour_scale_holds_threshold_and_withstands_outliers() -> None:
    scores = np.random.default_rng(0).random((50, 50)).astype(np.float32)
    scores[0, 0] = 1e6
    drawn = CaseSlice(scores, None, scores)
    assert 0.9 < map_top([drawn], None) < 1.1
    assert map_top([drawn], 4.0) == 5.0
    for value in (0.0, -1.0):
        assert map_top([CaseSlice(scores, None, np.full((5, 5), value))], None) > 0
    lone = np.zeros((50, 50))
    lone[3, 3] = 7.0
    assert map_top([CaseSlice(lone, None, lone)], None) == 7.0


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_slices_of_volumes_are_those_of_the_overview(plane: str) -> None:
    rng = np.random.default_rng(0)
    array = rng.random((1, 9, 8, 7)).astype(np.float32)
    affine = torch.diag(torch.tensor([-2.0, 3.0, 5.0, 1.0], dtype=torch.float64))
    scan = MetaTensor(torch.from_numpy(array), affine=affine, meta={"scan_kind": "volume"})
    scores = rng.random((9, 8, 7)).astype(np.float32)
    reference = np.zeros((9, 8, 7), dtype=bool)
    reference[1:4, 2:5, 2] = True
    chosen = case_slice(scan, array * 0.5, scores, scores > 0.9, slice_axis=plane, reference_mask=reference)
    view = ScanView(scan, plane)
    worst = int(view.slices(scores).max(axis=(1, 2)).argmax())
    np.testing.assert_array_equal(chosen.anomaly_map, view.slices(scores)[worst])
    np.testing.assert_array_equal(chosen.mask, view.slices(scores > 0.9)[worst])  # type: ignore[arg-type]
    assert (chosen.aspect, chosen.letters) == (view.aspect, view.letters)
    assert chosen.label == f"{plane} slice {worst} (highest score)"
    image = np.asarray(chosen.image)
    assert np.corrcoef(image.ravel(), view.slices(array[0])[worst].ravel())[0, 1] > 0.999
    assert (np.asarray(chosen.restoration) <= image).all()
    missed = case_slice(scan, None, scores, None, slice_axis=plane, reference_mask=reference, by="reference")
    assert missed.restoration is None
    assert np.asarray(missed.reference).sum() == view.slices(reference).sum(axis=(1, 2)).max()
    assert "largest reference area" in missed.label
    assert case_panels("a", missed, 1.0, 64)[3].absent == "no calibrated threshold"


@pytest.mark.slow
def test_curves_and_histograms_are_drawn_for_awkward_input() -> None:
    kinds = {"_own$x^2": "method", **{f"d{i}": "baseline" for i in range(12)}}
    falling = Curve("_own$x^2", "image", "pr", [1.0, 0.5, 0.0], [0.1, 0.5, 1.0])
    rising = Curve("_own$x^2", "image", "pr", [0.0, 0.5, 1.0], [1.0, 0.5, 0.1])
    assert draw_curves([falling], kinds, 0.1) == draw_curves([rising], kinds, 0.1)
    many = [Curve(f"d{i}", "lesion", "froc", [0, 3], [0, i / 12]) for i in range(12)]
    assert draw_curves(many, kinds) == draw_curves(many[:8], kinds)
    with pytest.raises(ValueError, match="one kind of axes"):
        draw_curves([falling, many[0]], kinds)
    for scores, threshold in (
        (np.array([3.0]), None),
        (np.zeros(5), 0.0),
        (np.geomspace(1e-3, 1e3, 50), 10.0),
        (np.array([-1.0, 2.0]), 5.0),
    ):
        svg = draw_histogram([("normal", scores), ("abnormal", np.array([]))], threshold, "score")
        assert ET.fromstring(svg).tag.endswith("svg")
    with pytest.raises(ValueError, match="no scores"):
        draw_histogram([("normal", np.array([]))], None, "score")


@pytest.mark.slow
def test_report_leaves_pyplot_alone(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from monai_anomaly.report import CaseResult, Evaluation, write_report\n"
        "assert 'matplotlib' not in sys.modules\n"
        "method = {'name': 'm', 'version': '0', 'weights': '', 'settings': {}}\n"
        "settings = {'method': method, 'cohort': [], 'calibration': None, 'failures': []}\n"
        "write_report(sys.argv[1], Evaluation(settings), [CaseResult('a', 1.0), CaseResult('b', 2.0)])\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "r.html")], check=True)


# ---- in a browser ------------------------------------------------------------------------------------------------

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# Runs in a copy of the page only: the page itself allows no script.
PROBE = """
<script>
addEventListener('load', () => {
  const shown = [...document.querySelectorAll('body *')].filter(e =>
    [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) && e.tagName !== 'SCRIPT');
  const result = {
    images: [...document.images].map(i => [i.complete, i.naturalWidth, i.getBoundingClientRect().width]),
    inner: innerWidth, page: document.documentElement.scrollWidth,
    font: Math.min(...shown.map(e => parseFloat(getComputedStyle(e).fontSize))),
    scrolling: [...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length,
    resources: performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith('data:')),
  };
  parent.postMessage(JSON.stringify(result), '*');
});
</script>
"""
# The page as it is on a screen of some width: a window cannot be made narrower than 500 pixels.
SCREEN = """<!DOCTYPE html>
<title>screen</title>
<pre></pre>
<script>addEventListener('message', event => { document.querySelector('pre').textContent = event.data; });</script>
<iframe src="probed.html" style="width: WIDTHpx; height: 800px; border: 0"></iframe>
"""


@pytest.fixture(scope="module")
def browse(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[str, list[str], list[str]]]:
    """A function that opens a page in headless Chromium: the DOM, the console, and what was asked of the network."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    folder = tmp_path_factory.mktemp("browser")

    def open_page(path: Path, *options: str, width: int = 1280) -> tuple[str, list[str], list[str]]:
        log = folder / "net.json"
        log.unlink(missing_ok=True)
        command = [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
            # whatever is asked for goes to a proxy that does not exist, and into the log
            *("--proxy-server=127.0.0.1:1", f"--log-net-log={log}", "--enable-logging=stderr", "--v=0"),
            *(f"--user-data-dir={folder / 'profile'}", f"--window-size={width},900"),
            *(options or ("--dump-dom",)),
            path.as_uri(),
        ]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120, check=True)
        console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        # requests by the browser itself carry "not an origin"; those of a page its origin, "null" for a file
        events = [event.get("params", {}) for event in json.loads(log.read_text(encoding="utf-8"))["events"]]
        asked = [each["url"] for each in events if each.get("initiator", "not an origin") != "not an origin"]
        return done.stdout, console, asked

    return open_page


def probe(browse: Callable[..., tuple[str, list[str], list[str]]], source: str, folder: Path, width: int) -> Any:
    """What a script finds in the page, shown as wide as asked for."""
    allowed = source.replace("default-src 'none';", "default-src 'none'; script-src 'unsafe-inline';")
    assert allowed != source
    (folder / "probed.html").write_text(allowed.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    (folder / "screen.html").write_text(SCREEN.replace("WIDTH", str(width)), encoding="utf-8")
    dom, console, _ = browse(folder / "screen.html", width=width + 100)
    assert console == []
    return json.loads(dom[dom.index("<pre>") + len("<pre>") : dom.index("</pre>")])


@pytest.mark.slow
def test_browser_loads_the_page_without_a_word_or_a_request(
    browse: Callable[..., tuple[str, list[str], list[str]]], demo_page: Path, tmp_path: Path
) -> None:
    dom, console, asked = browse(demo_page)
    assert "What was found" in dom
    assert console == []
    assert asked == []
    # the two checks can fail: the policy's refusal is on the console, and without the policy the request is in the log
    source = demo_page.read_text(encoding="utf-8")
    hostile = source.replace("</main>", '<img src="http://report.invalid/x.png" alt=""></main>')
    (tmp_path / "hostile.html").write_text(hostile, encoding="utf-8")
    _, console, asked = browse(tmp_path / "hostile.html")
    assert any("Content Security Policy" in line for line in console)
    assert asked == []
    (tmp_path / "open.html").write_text(re.sub(r"<meta http-equiv[^>]*>", "", hostile), encoding="utf-8")
    _, _, asked = browse(tmp_path / "open.html")
    assert set(asked) == {"http://report.invalid/x.png"}


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_browser_shows_every_picture_and_fits_the_screen(
    browse: Callable[..., tuple[str, list[str], list[str]]], demo_page: Path, tmp_path: Path, width: int
) -> None:
    source = demo_page.read_text(encoding="utf-8")
    found = probe(browse, source, tmp_path, width)
    assert found["inner"] == width
    assert found["page"] <= width  # wide tables scroll in their own boxes, not the page
    assert (found["scrolling"] > 0) == (width < 500)
    assert found["font"] >= 12
    assert len(found["images"]) == source.count("<img ")
    for complete, natural, shown in found["images"]:
        assert complete
        assert natural > 0
        assert 60 < shown <= width
    assert found["resources"] == []


@pytest.mark.slow
def test_browser_prints_the_page(
    browse: Callable[..., tuple[str, list[str], list[str]]], demo_page: Path, tmp_path: Path
) -> None:
    _, console, asked = browse(demo_page, f"--print-to-pdf={tmp_path / 'r.pdf'}", "--no-pdf-header-footer")
    assert (console, asked) == ([], [])
    content = (tmp_path / "r.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", content)) > 3
