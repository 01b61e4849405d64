"""The report: its figures and sentences, its page, and the page in a real browser."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
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
from report_demo import HOSTILE, demo_evaluation

from monai_anomaly.exceptions import InputError
from monai_anomaly.io import write_json
from monai_anomaly.report import case_slice, evaluation_json, write_metrics_csv, write_report
from monai_anomaly.report.cases import _PICTURE_BUDGET
from monai_anomaly.report.evaluation import (
    CaseResult,
    CaseSlice,
    Confounds,
    Curve,
    DetectorFigures,
    DriftCheck,
    Estimate,
    Evaluation,
    ExtraTable,
    MetricColumn,
    ReportCalibration,
    ReportMethod,
    SeedSpread,
    case_lists,
)
from monai_anomaly.report.figures import case_panels, draw_curves, draw_histogram, load_slice, map_top
from monai_anomaly.report.overview import _View
from monai_anomaly.report.statements import calibration_statements, compare, comparison_statements, number

METHOD = ReportMethod("own", "0.0", "none")


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
def demo() -> Evaluation:
    return demo_evaluation()


@pytest.fixture(scope="module")
def demo_page(demo: Evaluation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, demo)
    return path


def small(**changes: Any) -> Evaluation:
    """An evaluation without figures."""
    return Evaluation(**{"title": "t", "method": METHOD, "cohort": [], **changes})


def page_of(tmp_path: Path, evaluation: Evaluation, **options: Any) -> Page:
    write_report(tmp_path / "r.html", evaluation, **options)
    return Page((tmp_path / "r.html").read_text(encoding="utf-8"))


# ---- figures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        (math.nan,),
        (0.5, math.nan, 0.6),
        (0.5, 0.4, math.inf),
        (None,),
        (0.5, None, None, "but why"),
        (0.5, 0.4),
        (0.5, 0.6, 0.4),
        (None, 0.1, 0.2, "no class"),
    ],
)
def test_estimates_that_say_nothing_are_refused(wrong: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError):
        Estimate(*wrong)


def test_evaluations_that_contradict_themselves_are_refused() -> None:
    column = MetricColumn("image", "auroc", "AUROC", headline=True, chance=0.5)
    figures = DetectorFigures("a", "method", {"image": {"auroc": Estimate(0.5)}})
    curve = Curve("b", "method", "image", "roc", [0, 1], [0, 1])
    for changes, message in (
        ({"detectors": [figures]}, "no column"),
        ({"detectors": [figures, figures], "metrics": [column]}, "more than one detector 'a'"),
        ({"metrics": [column, column]}, "more than one metric"),
        ({"metrics": [column, MetricColumn("image", "ap", "AP", headline=True)]}, "more than one headline"),
        ({"cases": [CaseResult("x", 1.0), CaseResult("x", 2.0)]}, "more than one case 'x'"),
        ({"curves": [curve]}, "'b', which has no figures"),
        ({"spreads": [SeedSpread("a", "image", "auroc", {0: 0.5})]}, "no column"),
        ({"prevalence": {"image": 1.5}}, "prevalence"),
        ({"tables": [ExtraTable("t", ["a"], [], detector="b", level="image")]}, "'b', which has no figures"),
        ({"notes": {"voxel": ["x"]}}, "'voxel', which is no level"),
    ):
        with pytest.raises(ValueError, match=message):
            small(**changes)
    for make in (
        lambda: CaseResult("x", math.nan),
        lambda: CaseResult("x", 1.0, label=2),
        lambda: Curve("b", "method", "image", "roc", [0, math.nan], [0, 1]),
        lambda: Curve("b", "method", "image", "roc", [0, 1], [0, 1, 1]),
        lambda: Curve("b", "method", "image", "det", [0], [0]),  # type: ignore[arg-type]
        lambda: ReportCalibration(1.0, 20, None, None, ""),
        lambda: ReportCalibration(0.1, 20, None, None, "", scores=[math.nan]),
        lambda: DetectorFigures("a", "peer", {}),  # type: ignore[arg-type]
        lambda: MetricColumn("voxel", "ap", "AP"),  # type: ignore[arg-type]
        lambda: MetricColumn("image", "auroc", "AUROC", two_sided=True),
        lambda: MetricColumn("image", "share", "share", headline=True, higher_is_better=None),
        lambda: ExtraTable("t", ["a", "b"], [[1]]),
        lambda: ExtraTable("t", ["a"], [[math.nan]]),
        lambda: ExtraTable("t", ["a"], [], detector="own"),
        lambda: SeedSpread("a", "image", "auroc", {}),
    ):
        with pytest.raises(ValueError):
            make()


def test_spread_over_seeds() -> None:
    spread = SeedSpread("a", "image", "auroc", {0: 0.5, 1: 0.7, 5: 0.6})
    assert spread.mean == pytest.approx(0.6)
    assert spread.std == pytest.approx(0.1)
    assert SeedSpread("a", "image", "auroc", {3: 0.5}).std is None


@given(
    points=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=2000),
)
@settings(deadline=None, max_examples=30)
def test_thinned_curves_keep_their_course(points: list[tuple[float, float]]) -> None:
    x, y = np.sort([x for x, _ in points]), np.sort([y for _, y in points])
    thinned = Curve("a", "method", "image", "roc", x, y).thinned()
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
    lists = {listed.key: listed for listed in case_lists(small(cases=cases))}
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


def test_flags_of_numpy_count(tmp_path: Path) -> None:
    cases = [CaseResult("a", 1.0, label=1, flagged=np.bool_(False)), CaseResult("b", 2.0, label=0, flagged=np.True_)]  # type: ignore[arg-type]
    lists = {listed.key: [case.name for case in listed.cases] for listed in case_lists(small(cases=cases))}
    assert (lists["false_negatives"], lists["false_positives"]) == (["a"], ["b"])


def test_csv_and_json_hold_the_same_figures(demo: Evaluation, tmp_path: Path) -> None:
    write_metrics_csv(tmp_path / "metrics.csv", demo)
    write_json(tmp_path / "metrics.json", evaluation_json(demo))
    with (tmp_path / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["detector", "kind", "level", "metric", "value", "low", "high", "undefined", "group"]
    grouped = [row for row in rows if row["group"]]
    rows = [row for row in rows if not row["group"]]
    [table] = [each for each in demo.tables if each.detector]
    assert [(row["group"], row["metric"]) for row in grouped] == [
        (f"scanner: {first}", column) for first, *_ in table.rows for column in table.columns[1:]
    ]
    assert {(row["detector"], row["kind"], row["level"]) for row in grouped} == {("ProxyAno", "method", "image")}
    for row, cell in zip(grouped, [cell for _, *cells in table.rows for cell in cells], strict=True):
        figure = cell if isinstance(cell, Estimate) else Estimate(cell)  # type: ignore[arg-type]
        assert [row[key] for key in ("value", "low", "high")] == [
            "" if value is None else repr(value) for value in (figure.value, figure.low, figure.high)
        ]
    written = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    detectors = {detector["name"]: detector for detector in written["detectors"]}
    assert len(rows) == sum(len(level) for each in detectors.values() for level in each["levels"].values())
    for row in rows:
        stored = detectors[row["detector"]]["levels"][row["level"]][row["metric"]]
        assert detectors[row["detector"]]["kind"] == row["kind"]
        for key in ("value", "low", "high"):
            assert stored[key] == (float(row[key]) if row[key] else None)
        assert (stored["undefined"] or "") == row["undefined"]
        assert bool(row["value"]) != bool(row["undefined"])
    source = {detector.name: detector for detector in demo.detectors}
    figure = source["z-score"].levels["pixel"]["ap"]
    stored = detectors["z-score"]["levels"]["pixel"]["ap"]
    assert (stored["value"], stored["low"], stored["high"]) == (figure.value, figure.low, figure.high)
    assert stored["undefined"] is None
    # baselines stand in every table, with the reason where they were not evaluated
    assert detectors["z-score"]["levels"]["lesion"]["found"]["undefined"] == "not evaluated at this level"
    assert "pixel" not in detectors["mean brightness"]["levels"]
    assert max(len(curve["x"]) for curve in written["curves"]) <= 400
    text = (tmp_path / "metrics.json").read_text(encoding="utf-8")
    assert "Doe" not in text
    assert len(text) < 1_000_000


# ---- sentences ---------------------------------------------------------------------------------------------------

intervals = st.lists(st.floats(0, 1), min_size=3, max_size=3).map(sorted).map(lambda v: Estimate(v[1], v[0], v[2]))


@given(one=intervals, other=intervals, higher=st.booleans())
@settings(deadline=None, max_examples=100)
def test_figures_are_told_apart_only_by_intervals_that_lie_apart(one: Estimate, other: Estimate, higher: bool) -> None:
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
    assert compare(Estimate(0.9), Estimate(0.1, 0.0, 0.2), True) == "no interval"
    assert compare(Estimate(None, undefined="no class"), Estimate(0.1), True) == "undefined"


def statements(
    method: Estimate, column: MetricColumn | None = None, **rivals: tuple[Any, Estimate]
) -> list[tuple[bool, str, str]]:
    column = column or MetricColumn("pixel", "ap", "AP", headline=True, chance=0.02)
    detectors = [DetectorFigures("own", "method", {column.level: {column.key: method}})]
    detectors += [
        DetectorFigures(name, kind, {column.level: {column.key: figure}}) for name, (kind, figure) in rivals.items()
    ]
    found = comparison_statements(small(metrics=[column], detectors=detectors))
    return [(statement.warning, statement.verdict, statement.detail) for statement in found]


def test_a_method_that_beats_its_baselines_is_said_to() -> None:
    [(warning, verdict, detail)] = statements(
        Estimate(0.5, 0.4, 0.6),
        threshold=("baseline", Estimate(0.2, 0.1, 0.3)),
        zscore=("baseline", Estimate(0.1, 0, 0.2)),
    )
    assert not warning
    assert verdict == "Pixels or voxels: own beats every baseline that was compared (threshold and zscore)."
    assert (
        detail == "own has AP 0.500 (0.400 to 0.600). "
        "Better than threshold 0.200 (0.100 to 0.300) and zscore 0.100 (0 to 0.200)."
    )


def test_a_method_that_does_not_beat_a_baseline_is_warned_of() -> None:
    [(warning, verdict, detail)] = statements(
        Estimate(0.5, 0.4, 0.6),
        near=("baseline", Estimate(0.3, 0.2, 0.4)),
        above=("baseline", Estimate(0.9, 0.8, 1.0)),
        below=("baseline", Estimate(0.1, 0.0, 0.2)),
    )
    assert warning
    assert verdict == "Pixels or voxels: own does NOT beat the baselines near or above."
    assert "Better than below" in detail
    assert "Not distinguishable from near 0.300 (0.200 to 0.400): the intervals overlap." in detail
    assert "Worse than above" in detail


def test_higher_is_not_always_better() -> None:
    column = MetricColumn("lesion", "false", "false lesions", headline=True, higher_is_better=False)
    [(warning, verdict, _)] = statements(
        Estimate(0.5, 0.4, 0.6), column, threshold=("baseline", Estimate(2.0, 1.0, 3.0))
    )
    assert not warning
    assert "beats every baseline" in verdict


def test_what_cannot_be_compared_is_not_called_beaten() -> None:
    [(warning, verdict, detail)] = statements(Estimate(0.5), threshold=("baseline", Estimate(0.1)))
    assert warning
    assert verdict == "Pixels or voxels: own cannot be said to beat the baseline threshold, as an interval is missing."
    assert "Without intervals nothing can be said of threshold 0.100." in detail
    [(warning, verdict, detail)] = statements(
        Estimate(0.5, 0.4, 0.6), threshold=("baseline", Estimate(None, undefined="it crashed"))
    )
    assert warning
    assert "stands without a baseline" in verdict
    assert "Not compared with threshold (it crashed)." in detail
    [(warning, verdict, _)] = statements(
        Estimate(None, undefined="no abnormal pixel"), threshold=("baseline", Estimate(0.1))
    )
    assert warning
    assert verdict == "Pixels or voxels: own has no AP (undefined: no abnormal pixel)."


def test_chance_is_named() -> None:
    [(warning, _, detail)] = statements(Estimate(0.03, 0.01, 0.05), t=("baseline", Estimate(0.001, 0.0005, 0.002)))
    assert warning
    assert "Not distinguishable from chance (0.0200)." in detail


AUROC = MetricColumn("image", "auroc", "AUROC", headline=True, chance=0.5, two_sided=True)


@pytest.mark.parametrize(
    ("statistic", "separates"),
    [
        (Estimate(0.82, 0.75, 0.88), True),
        (Estimate(0.18, 0.12, 0.25), True),  # it falls with disease, and tells as much
        (Estimate(0.62, 0.48, 0.75), False),  # by luck, perhaps
        (Estimate(0.53, 0.51, 0.55), False),  # for certain, but by a little
        (Estimate(0.7), True),
        (Estimate(None, undefined="no normal scan"), False),
    ],
)
def test_confounds_are_warned_of(statistic: Estimate, separates: bool) -> None:
    found = statements(
        Estimate(0.7, 0.6, 0.8),
        AUROC,
        t=("baseline", Estimate(0.5, 0.45, 0.55)),
        brightness=("picture statistic", statistic),
    )
    confounds = [each for each in found if "picture statistic alone separates" in each[1]]
    assert len(confounds) == separates
    if separates:
        assert confounds[0][0]
        assert "brightness" in confounds[0][2]
        says = "does NOT beat" if statistic.low is not None else "cannot be said to beat"
        assert f"it {says} the picture statistic brightness" in found[-1][1]


def test_a_finding_on_confounds_stands_beside_the_methods(tmp_path: Path) -> None:
    figures = {"auroc": Estimate(0.9, 0.8, 0.95)}
    given = small(
        metrics=[AUROC],
        detectors=[
            DetectorFigures("own", "method", {"image": figures}),
            DetectorFigures("brightness", "picture statistic", {"image": figures}),
        ],
        confounds=Confounds("The brightness says it all.", separates=True),
        notes={"image": ["No interval of anything: it was late."]},
    )
    first = comparison_statements(given)[0]
    assert (first.warning, first.verdict) == (True, "Scans (image level): The brightness says it all.")
    assert not any("picture statistic alone" in each.verdict for each in comparison_statements(given))
    text = " ".join(page_of(tmp_path, given).text.split())
    table = text[
        text.index("Figures Below each") if "Figures Below each" in text else text.index("No intervals were") :
    ]
    assert table.index("brightness") < table.index("Warning. The brightness says it all.")
    assert "No interval of anything: it was late." in table


def test_a_statistic_that_falls_with_disease_is_a_rival_all_the_same() -> None:
    found = statements(Estimate(0.7, 0.65, 0.75), AUROC, sharp=("picture statistic", Estimate(0.05, 0.02, 0.1)))
    assert "Worse than sharp 0.0500 (0.0200 to 0.100)" in found[-1][2]
    # of a method an AUROC below chance is bad, whatever it hides
    [(warning, _, detail)] = statements(Estimate(0.1, 0.05, 0.2), AUROC, t=("baseline", Estimate(0.02, 0.01, 0.03)))
    assert warning
    assert "Worse than chance" in detail


def test_calibration_in_words() -> None:
    def verdicts(calibration: ReportCalibration | None, **changes: Any) -> list[tuple[bool, str]]:
        found = calibration_statements(small(calibration=calibration, **changes))
        return [(statement.warning, statement.verdict) for statement in found]

    assert "not calibrated" in verdicts(None)[0][1]
    few = ReportCalibration(0.05, 18, None, None, "")
    assert "18 calibration patients are too few for a rate of 5 %, which needs 19" in verdicts(few)[0][1]
    good = ReportCalibration(0.05, 19, 1.0, 2.0, "", drift=[DriftCheck("scores", "p = 0.5")])
    assert [warning for warning, _ in verdicts(good)] == [False, False]
    drifted = replace(good, drift=[DriftCheck("scores", "p = 0.5"), DriftCheck("spacing", "wider", warning=True)])
    assert verdicts(drifted)[1] == (
        True,
        "The guarantee no longer holds: these scans differ from the calibration scans in spacing.",
    )
    assert verdicts(replace(good, drift=[]))[1][0]
    apart = [DriftCheck("scores", "no normal", compared=False), DriftCheck("spacing", "1 mm")]
    found = calibration_statements(small(calibration=replace(good, drift=apart)))[1]
    assert (found.warning, found.detail) == (False, "Not compared: scores.")
    assert verdicts(replace(good, drift=apart[:1]))[1][0]  # nothing was compared
    assert verdicts(good, failures=[("a", "broken")])[-1] == (
        True,
        "1 scan could not be used and is missing from every figure.",
    )
    cases = [CaseResult(f"{i}", float(i), label=i % 2, flagged=i > 2, patient=f"p{i // 2 % 2}") for i in range(8)]
    [rule, *_] = calibration_statements(small(calibration=good, cases=cases))
    assert rule.detail == (
        "2 of 4 normal scans (50 %), 2 of 2 of their patients, have a score above the threshold. "
        "3 of 4 abnormal scans (75 %), 2 of 2 of their patients, have a score above the threshold."
    )
    marked = [replace(case, marked=case.score > 4) for case in cases]
    [rule, *_] = calibration_statements(small(calibration=good, cases=marked))
    assert "have a score above the threshold; 1 have a mask that is not empty. 3 of 4" in rule.detail


def test_numbers_for_reading() -> None:
    shown = [number(value) for value in (0, 0.5, 0.0345, 0.0016, 1.6e-5, 12.345, 123456.7, -0.25)]
    assert shown == ["0", "0.500", "0.0345", "0.0016", "1.6e-05", "12.35", "123,457", "-0.250"]


# ---- the page ----------------------------------------------------------------------------------------------------


def test_page_holds_its_sections_in_order(demo_page: Path) -> None:
    page = Page(demo_page.read_text(encoding="utf-8"))
    assert not page.open  # every element is closed
    levels = [level for level, _ in page.headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert [text for level, text in page.headings if level == 2] == [
        "What the figures say",
        "Cohort",
        "Method and settings",
        "Calibration",
        "Figures",
        "Curves",
        "Scores",
        "Cases",
        "Failures",
    ]
    assert page.text.index("Research use only, not for diagnosis") < page.text.index("What the figures say")
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"] for attributes in page.all("a")]
    assert {link.removeprefix("#") for link in links} <= set(ids)
    assert os.listdir(demo_page.parent) == ["report.html"]


def test_page_says_what_the_figures_are(demo: Evaluation, demo_page: Path) -> None:
    page = Page(demo_page.read_text(encoding="utf-8"))
    text = " ".join(page.text.split())
    for statement in comparison_statements(demo) + calibration_statements(demo):
        assert " ".join(statement.verdict.split()) in text
        assert " ".join(statement.detail.split()) in text
    for detector, column, figure in demo.figures():
        assert detector.name in text
        assert column.label in text
        if figure.value is None:
            assert f"undefined: {figure.undefined}" in text
        else:
            assert number(figure.value) in text
    for side in demo.cohort:
        assert side.sha256 in text
    assert "optimizer.lr" in text
    assert "0.8 mm against 1.0 mm in calibration" in text
    assert "an oracle: its threshold was chosen" in text
    assert "sub-999__broken.nii.gz" in text
    assert not re.search(r"\bnan\b|\binf\b", text, re.IGNORECASE)
    # baselines and picture statistics are rows of the method's own table
    table = text[text.index("Scans (image level) detector") :]
    table = table[: table.index("Patients")]
    assert [table.index(detector.name) for detector in demo.detectors] == sorted(
        table.index(detector.name) for detector in demo.detectors
    )


def test_page_asks_for_nothing_and_runs_nothing(demo_page: Path) -> None:
    source = demo_page.read_text(encoding="utf-8")
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


def test_equal_evaluations_give_equal_bytes(demo: Evaluation, demo_page: Path, tmp_path: Path) -> None:
    write_report(tmp_path / "again.html", demo)
    assert (tmp_path / "again.html").read_bytes() == demo_page.read_bytes()


def test_patients_are_numbered_unless_asked_for(demo: Evaluation, demo_page: Path, tmp_path: Path) -> None:
    assert "Doe^" not in demo_page.read_text(encoding="utf-8")
    without = small(cases=[replace(case, pictures=None) for case in demo.cases])
    shown = page_of(tmp_path, without, show_patients=True)
    assert max(demo.cases, key=lambda case: case.score).patient in shown.text
    hidden = page_of(tmp_path, without)
    assert "Doe" not in hidden.text
    assert "Patients are numbered" in hidden.text
    assert "patient 1" in " ".join(hidden.text.split())
    nameless = page_of(tmp_path, small(cases=[CaseResult("a", 1.0)]))
    assert "atient" not in nameless.text.replace("calibration patients", "")


def test_inference_without_labels_or_calibration(tmp_path: Path) -> None:
    cases = [CaseResult(f"case {i}", float(i)) for i in range(3)]
    page = page_of(tmp_path, small(cases=cases))
    text = " ".join(page.text.split())
    for said in (
        "own scored 3 scans, without labels.",
        "The detector is not calibrated",
        "Without labels or masks nothing can be measured",
        "undefined: no labels and no masks to measure against",
        "undefined: no curve can be drawn",
        "undefined: no scan is labelled abnormal",
        "p-value undefined: not calibrated",
        "No picture of this case.",
        "None: every scan could be used.",
    ):
        assert said in text
    labelled = page_of(tmp_path, small(cases=[replace(case, label=i % 2) for i, case in enumerate(cases)]))
    assert "undefined: no calibrated threshold" in labelled.text
    empty = page_of(tmp_path, small())
    assert "No scan was scored." in empty.text


def test_tables_without_rivals_or_intervals_say_so(tmp_path: Path) -> None:
    columns = [MetricColumn("image", f"m{i}", f"metric {i}") for i in range(7)]
    figures = {f"m{i}": Estimate(i / 10) for i in range(7)}
    page = page_of(tmp_path, small(metrics=columns, detectors=[DetectorFigures("own", "method", {"image": figures})]))
    text = " ".join(page.text.split())
    assert "No intervals were computed." in text
    assert "No baseline was evaluated" in text
    assert "No picture statistic was evaluated at this level." in text
    assert "No comparison is made for: Scans (image level)" in text
    # seven columns do not fit a page: two tables, each with the detector's name
    headings = [attributes for tag, attributes in page.elements if attributes.get("scope") == "col"]
    assert len([t for t in page.all("div") if "Scans" in t.get("aria-label", "")]) == 2
    assert len(headings) >= 9


def test_undecodable_names_are_spelt_out(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9\x00\x1b.nii")
    page = page_of(tmp_path, small(cases=[CaseResult(name, 1.0)], failures=[(name, name)]))
    assert "caf\\udce9\\x00\\x1b.nii" in page.text
    write_json(tmp_path / "m.json", evaluation_json(small(cases=[CaseResult(name, 1.0)])))


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
    calibration = ReportCalibration(0.05, 19, 500.0, 0.9, "rule", scores=np.arange(19.0))
    page = page_of(tmp_path, small(cases=cases, calibration=calibration))
    assert (tmp_path / "r.html").stat().st_size < 15_000_000
    assert len(asked) == len(set(asked)) == len(page.all("article")) == 32
    assert "8 of 1000 are shown." in page.text
    wide = max(int(picture["width"]) for picture in page.all("img") if "width" in picture)
    assert f"at most {wide} pixels" in page.text
    assert wide < 256  # they were made smaller to stay within the budget
    content = [b64decode(picture["src"].split(",")[1]) for picture in page.all("img") if "width" in picture]
    assert sum(len(each) for each in content) <= _PICTURE_BUDGET
    few = page_of(tmp_path, small(cases=[replace(case, pictures=None) for case in cases]), cases_per_list=2)
    assert len(few.all("article")) <= 8
    monkeypatch.setattr("monai_anomaly.report.cases._PICTURE_BUDGET", 1000)
    assert "Pictures are left out" in page_of(tmp_path, small(cases=cases), cases_per_list=1).text
    with pytest.raises(ValueError, match="cases_per_list"):
        write_report(tmp_path / "no.html", small(), cases_per_list=0)


def test_a_failed_report_leaves_the_old_one(tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", small())
    before = (tmp_path / "r.html").read_bytes()
    gone = CaseSlice(tmp_path / "gone.png", None, np.zeros((4, 4)))
    with pytest.raises(InputError, match=r"gone\.png: cannot be read"):
        write_report(tmp_path / "r.html", small(cases=[CaseResult("a", 1.0, pictures=gone)]))
    assert (tmp_path / "r.html").read_bytes() == before
    assert os.listdir(tmp_path) == ["r.html"]


# ---- pictures ----------------------------------------------------------------------------------------------------


def test_slices_come_from_files_as_from_arrays(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (12, 10), dtype=np.uint8)
    scores, mask = rng.random((12, 10), dtype=np.float32), rng.random((12, 10)) > 0.7
    import tifffile

    Image.fromarray(image).save(tmp_path / "i.png")
    Image.fromarray(mask).save(tmp_path / "m.png")
    tifffile.imwrite(tmp_path / "anomaly_map.tiff", scores)
    read = load_slice(
        "a", CaseSlice(tmp_path / "i.png", str(tmp_path / "i.png"), tmp_path / "anomaly_map.tiff", tmp_path / "m.png")
    )
    given_arrays = CaseSlice(image, image, scores, mask)
    for name in ("image", "restoration", "anomaly_map", "mask"):
        np.testing.assert_array_equal(getattr(read, name), getattr(given_arrays, name))
    assert case_panels("a", read, 1.0, 64) == case_panels("a", given_arrays, 1.0, 64)
    for changes, problem in (
        ({"restoration": np.zeros((12, 9))}, "its restoration has the shape"),
        ({"mask": np.zeros((1, 12, 10))}, "its mask has the shape"),
        ({"anomaly_map": np.full((12, 10), np.nan)}, "not finite"),
        ({"image": np.zeros(5)}, "neither"),
    ):
        with pytest.raises(InputError, match=problem):
            load_slice("a", replace(given_arrays, **changes))


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
    view = _View(scan, plane)
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
    assert case_panels("a", load_slice("a", missed), 1.0, 64)[3].absent == "no calibrated threshold"


def test_curves_and_histograms_are_drawn_for_awkward_input() -> None:
    falling = Curve("_own$x^2", "method", "pixel", "pr", [1.0, 0.5, 0.0], [0.1, 0.5, 1.0])
    rising = Curve("_own$x^2", "method", "pixel", "pr", [0.0, 0.5, 1.0], [1.0, 0.5, 0.1])
    assert draw_curves([falling], 0.1) == draw_curves([rising], 0.1)
    many = [Curve(f"d{i}", "baseline", "lesion", "froc", [0, 3], [0, i / 12]) for i in range(12)]
    assert draw_curves(many) == draw_curves(many[:8])
    with pytest.raises(ValueError, match="one kind of axes"):
        draw_curves([falling, many[0]])
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


def test_report_leaves_pyplot_alone(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from monai_anomaly.report.evaluation import CaseResult, Evaluation, ReportMethod\n"
        "from monai_anomaly.report.page import write_report\n"
        "assert 'matplotlib' not in sys.modules\n"
        "cases = [CaseResult('a', 1.0), CaseResult('b', 2.0)]\n"
        "write_report(sys.argv[1], Evaluation('t', ReportMethod('m', '0', ''), [], cases=cases))\n"
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


def test_browser_loads_the_page_without_a_word_or_a_request(
    browse: Callable[..., tuple[str, list[str], list[str]]], demo_page: Path, tmp_path: Path
) -> None:
    dom, console, asked = browse(demo_page)
    assert "What the figures say" in dom
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


def test_browser_prints_the_page(
    browse: Callable[..., tuple[str, list[str], list[str]]], demo_page: Path, tmp_path: Path
) -> None:
    _, console, asked = browse(demo_page, f"--print-to-pdf={tmp_path / 'r.pdf'}", "--no-pdf-header-footer")
    assert (console, asked) == ([], [])
    content = (tmp_path / "r.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", content)) > 3
