"""How patients are drawn, what a detector keeps of its cohort, and what is rejected because of it."""

from __future__ import annotations

import gzip
import json
import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_runs import detect, figures_of, refusal, train_small, write_nifti
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from monai_anomaly.data import Cohort, check_cohort, describe_split, load_cohort, seen_scans
from monai_anomaly.data.cohort import _hold_out, write_datalist
from monai_anomaly.engines import DetectorTraining, TrainingData, check_unseen
from monai_anomaly.exceptions import InputError
from monai_anomaly.networks import IntensityThreshold

pytest_plugins = ["bundle_fixtures"]
pytestmark = pytest.mark.filterwarnings("ignore:.*patients of .* scans are not known")


def picture(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 5), dtype=np.uint8)).save(path)
    return path


def listed(folder: Path, **sides: Any) -> Path:
    path = folder / "cohort.json"
    path.write_text(json.dumps(sides))
    return path


# ---- stratified draws

PATIENTS = st.lists(st.sampled_from(["A", "B", "C", None]), min_size=2, max_size=60)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(sites=PATIENTS, fraction=st.floats(0.01, 0.99), seed=st.integers(0, 2**31), data=st.data())
def test_every_stratum_gives_its_part_to_within_one_patient(
    sites: list[str | None], fraction: float, seed: int, data: st.DataObject
) -> None:
    items = [{"patient": f"p{i}", "scan": k, "site": site} for i, site in enumerate(sites) for k in range(1 + i % 2)]
    kept, held = _hold_out(items, fraction, seed, ("site", "scanner"))
    patients = {item["patient"] for item in held}
    assert not patients & {item["patient"] for item in kept}
    count = min(max(round(fraction * len(sites)), 1), len(sites) - 1)
    assert len(patients) == count
    drawn = Counter(sites[int(patient[1:])] for patient in patients)
    for site, size in Counter(sites).items():
        assert abs(drawn[site] - count * size / len(sites)) < 1
    # neither the order of the items nor a key that nobody has makes a difference
    shuffled = data.draw(st.permutations(items))
    assert {item["patient"] for item in _hold_out(shuffled, fraction, seed, ("site",))[1]} == patients


def test_without_strata_the_draw_is_one_permutation() -> None:
    items = [{"patient": f"{i:02d}"} for i in range(20)]
    order = np.random.default_rng(3).permutation(20)[:6]
    assert {item["patient"] for item in _hold_out(items, 0.3, 3, ("site",))[1]} == {f"{i:02d}" for i in order}


def test_a_patient_of_two_sites_is_a_stratum_of_both() -> None:
    items = [{"patient": "p", "site": "A"}, {"patient": "p", "site": "B"}]
    items += [{"patient": f"a{i}", "site": "A"} for i in range(9)]
    kept, held = _hold_out(items, 0.5, 0, ("site",))
    assert len({item["patient"] for item in held}) == 5
    assert sum(item["patient"] == "p" for item in kept) in (0, 2)


def test_datalist_and_table_give_the_strata(tmp_path: Path) -> None:
    items = [
        {
            "image": str(picture(tmp_path / f"{i}.png", i)),
            "patient": str(i),
            "site": "A" if i < 8 else "B",
            "age": 40 + i,
        }
        for i in range(12)
    ]
    # of the largest remainders both strata have the same
    cohort = load_cohort(listed(tmp_path, training=items), validation_fraction=0.25, seed=1)
    assert Counter(item["site"] for item in cohort.validation) == {"A": 2, "B": 1}
    # all keys of an item are kept
    assert {item["age"] for item in cohort.training + cohort.validation} == set(range(40, 52))
    assert cohort.split == {"seed": 1, "stratified_by": ["site"], "drawn": {"validation": 0.25}}
    mixed = load_cohort(tmp_path / "cohort.json", validation_fraction=0.25, seed=1, stratify_by=())
    assert mixed.split["stratified_by"] == []

    rows = []
    for i in range(12):
        picture(tmp_path / "folder" / "train" / "normal" / f"{i}.png", i)
        rows.append(f"train/normal/{i}.png,p{i},{'X' if i < 8 else 'Y'},")
    (tmp_path / "folder" / "patients.csv").write_text("image,patient,scanner,label\n" + "\n".join(rows) + "\n")
    folder = load_cohort(tmp_path / "folder", calibration_fraction=0.25)
    assert Counter(item["scanner"] for item in folder.calibration) == {"X": 2, "Y": 1}
    assert {item["label"] for item in folder.training} == {0}
    assert folder.split == {"seed": 0, "stratified_by": ["scanner"], "drawn": {"calibration": 0.25}}
    written = write_datalist(tmp_path / "folder", tmp_path / "list.json", calibration_fraction=0.25)
    assert {item["patient"] for item in written["calibration"]} == {item["patient"] for item in folder.calibration}
    assert {item["scanner"] for item in written["training"]} == {"X", "Y"}


# ---- what is stored


def test_a_split_is_stored_without_names_and_labels(tmp_path: Path) -> None:
    def items(names: str, **keys: Any) -> list[dict[str, Any]]:
        return [
            {"image": str(picture(tmp_path / f"scan-{n}.png", ord(n))), "patient": f"Miller-{n.lower()}", **keys}
            for n in names
        ]

    cohort = load_cohort(
        listed(tmp_path, training=items("abA", site="X"), calibration=items("c", site="Y"), test=items("d", label=1))
    )
    split = describe_split(cohort)
    assert split["by"] == "patient"
    assert split["seed"] == 0
    assert {side: (v["scans"], v["patients"]) for side, v in split["sides"].items()} == {
        "training": (3, 2),
        "validation": (0, 0),
        "calibration": (1, 1),
        "test": (1, 1),
    }
    assert split["sides"]["training"]["strata"] == [{"site": "X", "patients": 2}]
    assert len(split["sides"]["training"]["digests"]) == 3
    text = json.dumps(split)
    assert "Miller" not in text
    assert "scan-" not in text
    assert "label" not in text
    assert describe_split(cohort, num_workers=3) == split


def test_a_detector_holds_its_split(trained: Path, tiny_cohort: Path) -> None:
    facts = json.loads((trained / "models" / "detector.json").read_text())["training"]
    sides = facts["split"]["sides"]
    assert {side: len(v["digests"]) for side, v in sides.items()} == {
        "training": 5,
        "validation": 0,
        "calibration": 19,
        "test": 5,
    }
    assert facts["seed"] == facts["split"]["seed"] == 0
    assert facts["selection"] is None
    assert sides == describe_split(load_cohort(tiny_cohort))["sides"]


# ---- scans that a detector knows


@pytest.mark.slow
@pytest.mark.parametrize("side", ["train", "calibration"])
@pytest.mark.parametrize("packing", ["copied", "unpacked", "packed again"])
def test_a_known_scan_is_not_evaluated_however_it_is_packed(
    side: str, packing: str, trained: Path, tiny_cohort: Path, tmp_path: Path
) -> None:
    source = (tiny_cohort / side / "normal" / f"{side[0]}2.nii.gz").read_bytes()
    copy = tmp_path / "c" / ("new.nii" if packing == "unpacked" else "new.nii.gz")
    copy.parent.mkdir()
    content = gzip.decompress(source)
    repacked = {"copied": source, "unpacked": content, "packed again": gzip.compress(content, 1, mtime=3)}
    copy.write_bytes(repacked[packing])
    write_nifti(tmp_path / "c" / "other.nii.gz", 77)
    line = refusal(detect, trained, tmp_path / "out", tmp_path / "c", "evaluate")
    long = {"train": "training", "calibration": "calibration"}[side]
    assert line.startswith(f"{copy}: 1 of 2 scans were among those of the detector's {long} (first: new).")
    assert not (tmp_path / "out" / "predictions.csv").exists()
    # maps of known scans are made, with a warning
    with pytest.warns(UserWarning, match=f"1 of 2 scans were among those of the detector's {long}"):
        detect(trained, tmp_path / "out", tmp_path / "c")
    assert (tmp_path / "out" / "new" / "anomaly_map.nii.gz").is_file()


def test_known_series_and_channels(trained: Path, tiny_cohort: Path) -> None:
    split = json.loads((trained / "models" / "detector.json").read_text())["training"]["split"]
    known, new = tiny_cohort / "train" / "normal" / "t0", tiny_cohort / "test" / "normal" / "t1.nii.gz"
    assert known.is_dir()
    data = [
        {"case": "a", "image": str(known)},
        {"case": "b", "image": str(new)},
        {"case": "c", "image": [str(new), str(tiny_cohort / "calibration" / "normal" / "c3.nii.gz")]},
        {"case": "d", "image": str(tiny_cohort / "gone.nii.gz")},
    ]
    assert [(scan["case"], scan["side"]) for scan in seen_scans(split, data, 2)] == [
        ("a", "training"),
        ("c", "calibration"),
    ]
    with pytest.warns(UserWarning, match="holds no hashes"):
        assert check_unseen({"training": {}}, data) == []


# ---- rejected cohorts


def test_training_refuses_a_cohort_made_by_hand_that_leaks(tmp_path: Path) -> None:
    item = {"image": str(write_nifti(tmp_path / "a.nii.gz", 1)), "case": "a", "patient": "1", "label": 0, "mask": None}
    (tmp_path / "b.nii").write_bytes(gzip.decompress((tmp_path / "a.nii.gz").read_bytes()))
    copy = {**item, "image": str(tmp_path / "b.nii"), "case": "b", "patient": "2"}
    for sides in ({"test": [copy]}, {"calibration": [copy]}, {"validation": [copy]}):
        leaking = Cohort(tmp_path, [item], **{"calibration": [], "test": [], **sides})
        with pytest.raises(InputError, match="are the same image"):
            check_cohort(leaking)
        with pytest.raises(InputError, match="are the same image"):
            _ = TrainingData(leaking, image_size=(32, 32), progress=False).train_dataset
    other = {**item, "image": str(write_nifti(tmp_path / "c.nii.gz", 2)), "case": "c"}
    with pytest.raises(InputError, match="patient '1' is in training and in test"):
        check_cohort(Cohort(tmp_path, [item], [], [other]))


def test_copies_on_one_side(tmp_path: Path) -> None:
    image = str(picture(tmp_path / "a.png", 1))
    Image.open(image).save(tmp_path / "b.bmp")
    copies = [{"image": image, "patient": "1"}, {"image": str(tmp_path / "b.bmp"), "patient": "2"}]
    with pytest.raises(InputError, match="are the same image, of two calibration patients") as caught:
        load_cohort(listed(tmp_path, calibration=copies))
    assert "\n" not in str(caught.value)
    # the file itself, listed twice
    twice = [{**copies[0], "case": "x"}, {**copies[0], "case": "y", "patient": "2"}]
    with pytest.raises(InputError, match="of two calibration patients"):
        load_cohort(listed(tmp_path, calibration=twice))
    # a patient is one unit however often it is scanned
    for sides in (
        {"calibration": [copies[0], {**copies[1], "patient": "1"}]},
        {"training": copies},
        {"validation": copies},
        {"test": copies},
    ):
        with pytest.warns(UserWarning, match="1 images of .* are copies of others"):
            load_cohort(listed(tmp_path, **sides))


@pytest.mark.slow
def test_no_normals_left_for_calibration(tiny_cohort: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scans = [{"image": str(tiny_cohort / "train" / "normal" / f"t{i}.nii.gz"), "patient": str(i)} for i in (1, 2)]
    with caplog.at_level(logging.WARNING):
        train_small(tmp_path, listed(tmp_path, training=scans))
    (line,) = [r.getMessage() for r in caplog.records if "no normals are left for calibration" in r.getMessage()]
    assert "\n" not in line
    assert "write no masks" in line
    out = detect(tmp_path, tmp_path / "out", tiny_cohort)
    assert list(out.glob("*/anomaly_map.nii.gz"))
    assert not list(out.glob("*/anomaly_mask.nii.gz"))


def test_few_calibration_patients_are_told_of_before_the_training(
    tiny_cohort: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cohort = load_cohort(tiny_cohort)

    def lines(calibration: list[dict[str, Any]]) -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            data = TrainingData(replace(cohort, calibration=calibration), image_size=(32, 32), progress=False)
            DetectorTraining(IntensityThreshold(), [], data, tmp_path, progress=False)
        return [r.getMessage() for r in caplog.records if "calibration patient" in r.getMessage()]

    assert lines(cohort.calibration) == []
    (line,) = lines(cohort.calibration[:18])
    assert "18 calibration patients: a mask at alpha 0.05 needs 19; the least rate is 1/19." in line
    assert "\n" not in line
    assert "1 calibration patient:" in lines(cohort.calibration[:1])[0]


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["normal", "abnormal"])
def test_a_test_set_of_one_class_is_evaluated(kept: str, trained: Path, tiny_cohort: Path, tmp_path: Path) -> None:
    label = int(kept == "abnormal")
    test = [item for item in load_cohort(tiny_cohort).test if item["label"] == label]
    detect(trained, tmp_path / "out", listed(tmp_path, test=test), "evaluate")
    text = (tmp_path / "out" / "metrics.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    undefined = figures_of(tmp_path / "out").where(level="image", metric="auroc")
    assert undefined
    assert all(row.value is None and row.note for row in undefined)
    assert len((tmp_path / "out" / "predictions.csv").read_text().splitlines()) == len(test) + 1
