"""Written masks against flooding and counting by hand."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_metrics_lesions import flooded

from monai_anomaly.metrics import MaskMetrics

SHAPES = {"volume": (4, 3, 3), "image": (5, 6, 1)}


@st.composite
def cohorts(draw: st.DrawFn) -> list[dict[str, Any]]:
    scans = []
    for _ in range(draw(st.integers(0, 6))):
        rng = np.random.default_rng(draw(st.integers(0, 10_000)))
        kind = draw(st.sampled_from(sorted(SHAPES)))
        label = draw(st.sampled_from([0, 1, None]))
        reference = None
        if label == 0 or draw(st.booleans()):
            reference = rng.random(SHAPES[kind]) < (0.0 if label == 0 else 0.2)
        scans.append(
            {
                "patient": draw(st.sampled_from("abc")),
                "label": label,
                "mask": rng.random(SHAPES[kind]) < draw(st.sampled_from([0.0, 0.1, 0.5])),
                "reference": reference,
                "kind": kind,
                "voxel_volume": 60.0 if kind == "volume" else None,
            }
        )
    return scans


def measured(scans: list[dict[str, Any]]) -> dict[str, Any]:
    metrics = MaskMetrics()
    for scan in scans:
        metrics.update(**scan)
    return metrics.compute()


def share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(scans=cohorts())
def test_every_figure_is_counted_out(scans: list[dict[str, Any]]) -> None:
    got = measured(scans)
    assert "NaN" not in json.dumps(got)
    known = [scan for scan in scans if scan["reference"] is not None]
    masks = np.concatenate([np.zeros(0, bool), *(scan["mask"].ravel() for scan in known)])
    truth = np.concatenate([np.zeros(0, bool), *(scan["reference"].ravel() for scan in known)])
    both = int((masks & truth).sum())
    assert got["num_scans"] == len(scans)
    assert (got["true_positive"], got["false_positive"]) == (both, masks.sum() - both)
    assert got["dice"] == (share(2 * both, masks.sum() + truth.sum()) if truth.any() else None)
    assert got["sensitivity"] == share(both, truth.sum())
    assert got["fpr"] == share(masks.sum() - both, (~truth).sum())
    assert got["precision"] == share(both, masks.sum())

    patients = {scan["patient"]: [s for s in scans if s["patient"] == scan["patient"]] for scan in scans}
    normal = [own for own in patients.values() if all(scan["label"] == 0 for scan in own)]
    flagged = [own for own in normal if any(scan["mask"].any() for scan in own)]
    assert (got["num_normal_patients"], got["num_normal_patients_flagged"]) == (len(normal), len(flagged))
    assert got["normal_patients_flagged"] == share(len(flagged), len(normal))

    lesions = [(scan, part) for scan in known for part in flooded(scan["reference"])]
    found = [any(scan["mask"][place] for place in part) for scan, part in lesions]
    assert (got["num_lesions"], got["num_lesions_found"]) == (len(lesions), sum(found))
    assert got["lesions_found"] == share(sum(found), len(lesions))
    assert set(got["lesion"]) == {scan["kind"] for scan in known}
    for kind, metrics in got["lesion"].items():
        own = [scan for scan in known if scan["kind"] == kind]
        false = sum(not any(s["reference"][p] for p in part) for s in own for part in flooded(s["mask"]))
        assert metrics["false_lesions_per_scan"] == false / len(own)
        assert metrics["unit"] == ("mm3" if kind == "volume" else "voxels")
        # 100 mm3 are reached by two voxels of 60
        small = [hit for hit, (s, part) in zip(found, lesions) if s["kind"] == kind and len(part) * 60 < 100]
        if kind == "volume":
            assert metrics["size_classes"]["small"]["lesions"] == len(small)
            assert metrics["sensitivity_by_size"]["small"] == share(sum(small), len(small))

    names = ("dice", "sensitivity", "fpr", "precision", "normal_patients_flagged", "lesions_found")
    assert set(got["undefined"]) == {name for name in names if got[name] is None}
    assert all(got["undefined"].values())


def test_without_a_mask_every_figure_says_so() -> None:
    got = measured([])
    assert set(got["undefined"].values()) == {"no mask was written"}
    assert len(got["undefined"]) == 6


def test_what_is_no_mask_is_refused_and_leaves_nothing_behind() -> None:
    metrics = MaskMetrics()
    empty = np.zeros((3, 3, 1), dtype=bool)
    before = metrics.compute()
    for mask, reference in ((empty + 2, empty), (empty[:2], empty)):
        with pytest.raises(ValueError, match=r"must be 0 .* or 1|mask of shape \(2, 3, 1\)"):
            metrics.update("a", 0, mask, reference)
    assert metrics.compute() == before
