"""The list of DICOM series below a folder, and the choice of one."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_series import complete
from pydicom import Dataset
from test_dicom import PIXELS, image, series, write

from monai_anomaly.__main__ import main
from monai_anomaly.data import ScanPreprocessing, load_cohort
from monai_anomaly.data.cohort import Cohort
from monai_anomaly.data.slices import ScanDataset
from monai_anomaly.data.split import describe_split
from monai_anomaly.engines import load_detector, save_detector
from monai_anomaly.exceptions import InputError
from monai_anomaly.io import LoadScan
from monai_anomaly.io.content import content_hash, shown_digest
from monai_anomaly.io.dicom_out import DicomSource
from monai_anomaly.io.series import SeriesFit, describe_sources, list_series
from monai_anomaly.networks import IntensityThreshold


def named(slices: list[Dataset], uid: str, description: str, study: str = "1.9") -> list[Dataset]:
    for dataset in slices:
        dataset.SeriesInstanceUID, dataset.SeriesDescription, dataset.StudyInstanceUID = uid, description, study
        dataset.Modality, dataset.PatientName = "MR", "Secret^Name"
    return slices


def export(root: Path) -> Path:
    """A study in one flat folder, without suffixes, with a report, a note and a nested localizer."""
    flat = root / "DATA"
    slices = named(series(PIXELS), "1.1", "T1 axial") + named(series(PIXELS[:4] + 1), "1.2", "FLAIR axial")
    gap = named(series(PIXELS), "1.3", "gap")
    report = named([image(PIXELS[0])], "1.4", "report")[0]
    for key in ("Rows", "Columns", "PixelData"):
        delattr(report, key)
    files = [*slices, *gap[:2], *gap[3:], report]
    write(flat, files, [f"IM{index:04d}" for index in range(len(files))])
    (flat / "README").write_text("no DICOM")
    write(flat / "loc", named(series(PIXELS[:1]), "1.5", "localizer"), ["I1"])
    return flat


def test_every_series_is_listed_with_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = export(tmp_path)
    assert main(["series", str(folder), "--json"]) == 0
    printed = capsys.readouterr()
    rows = {row["uid"]: row for row in json.loads(printed.out)}
    assert rows["1.1"] == {
        "uid": "1.1",
        "modality": "MR",
        "description": "T1 axial",
        "files": 6,
        "slices": 6,
        "size": [5, 7, 6],
        "spacing": [1.25, 1.5, 4.5],
        "problem": "",
    }
    assert rows["1.2"]["slices"] == 4
    assert not rows["1.2"]["problem"]
    assert "not evenly spaced" in rows["1.3"]["problem"]
    assert rows["1.3"]["size"] == []
    assert rows["1.4"]["problem"] == "holds no image"
    assert rows["1.5"]["slices"] == 1
    assert "no DICOM: 1" in printed.err
    assert main(["series", str(folder)]) == 0
    table = capsys.readouterr().out
    assert table.count("\n") == 6
    assert "Secret" not in table
    assert str(tmp_path) not in table


def test_copies_in_two_folders_are_told(tmp_path: Path) -> None:
    slices = named(series(PIXELS), "1.1", "T1")
    write(tmp_path / "a", slices)
    write(tmp_path / "b", slices)
    (found,), _ = list_series(tmp_path)
    assert "are the same image" in found.problem
    assert "2 folders" in found.problem
    assert not found.readable
    with pytest.raises(InputError, match="2 folders"):
        load_cohort(tmp_path, series="T1")


@pytest.mark.parametrize("wanted", ["1.2", "flair AXIAL"])
def test_one_series_of_a_study_is_read(tmp_path: Path, wanted: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = export(tmp_path)
    with caplog.at_level(logging.INFO):
        (item,) = load_cohort(folder, series=wanted).test
    assert "Series 1.2 (FLAIR axial, 4 slices)" in caplog.text
    with pytest.warns(UserWarning, match="README"):
        scan = ScanPreprocessing().load(item["image"], item["series"])
    np.testing.assert_array_equal(scan[0].numpy(), PIXELS[:4].T + 1)


def test_auto_takes_the_only_volume_and_never_guesses(tmp_path: Path) -> None:
    slices = named(series(PIXELS), "1.1", "T1")
    folder = write(tmp_path / "s", slices + named(series(PIXELS[:1]), "1.5", "localizer"))
    assert len(load_cohort(folder, series="auto").test) == 1
    np.testing.assert_array_equal(LoadScan()(folder, "auto")[0].numpy(), PIXELS.T)
    write(tmp_path / "s" / "more", named(series(PIXELS), "1.6", "T2"))
    with pytest.raises(InputError, match=r"2 of 3 series are readable, .* \(T1 \[1.1\], T2 \[1.6\]\)"):
        load_cohort(folder, series="auto")
    with pytest.raises(InputError, match="0 of 3 series are called 'DWI'"):
        load_cohort(folder, series="DWI")
    with pytest.raises(InputError, match=r"holds 2 series.*option series"):
        LoadScan()(folder)


def test_auto_takes_what_fits_the_detector_and_says_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scout = named(series(PIXELS), "1.2", "scout")
    derived = named(series(PIXELS), "1.3", "ADC")
    other = named(series(PIXELS), "1.4", "CT")
    for kind, slices in (("ORIGINAL\\PRIMARY\\LOCALIZER", scout), ("DERIVED\\PRIMARY\\ADC", derived)):
        for dataset in slices:
            dataset.ImageType = kind.split("\\")
    for dataset in other:
        dataset.Modality = "CT"
    single = named(series(PIXELS[:1]), "1.5", "film")
    slices = [*named(series(PIXELS), "1.1", "T1"), *scout, *derived, *other, *single]
    folder = write(tmp_path / "s", slices)
    fit = SeriesFit(1, True, ("MR",))
    with caplog.at_level(logging.INFO):
        assert [item["series"] for item in load_cohort(folder, series="auto", series_fit=fit).test] == ["1.1"]
    assert (
        "Series 1.1 (T1, 6 slices): the only one of 5 that is readable, no localizer, of several slices, "
        "of 1 channel(s), of modality MR, original" in caplog.text
    )
    assert load_cohort(folder, series="auto", series_fit=fit._replace(volumes=False)).test[0]["series"] == "1.5"
    with pytest.raises(InputError, match=r"2 of 5 .* a modality that is not known, original \(CT \[1.4\], T1"):
        load_cohort(folder, series="auto", series_fit=SeriesFit(1))
    with pytest.raises(InputError, match=r"0 of 5 series are .*of 3 channel"):
        load_cohort(folder, series="auto", series_fit=fit._replace(channels=3))
    with pytest.warns(UserWarning, match="is a localizer"):
        LoadScan()(folder, "scout")


def test_a_detector_knows_the_kind_of_its_dicom_scans(tmp_path: Path) -> None:
    first, second = (write(tmp_path / name, named(series(PIXELS), f"1.{name}", name)) for name in "12")
    items = [{"image": str(path), "case": path.name, "patient": path.name} for path in (first, second)]
    split = describe_split(Cohort(tmp_path, items[:1], items[1:], []))
    assert split["dicom"] == {"modalities": ["MR"], "volumes": True}
    save_detector(tmp_path / "models", IntensityThreshold(), ScanPreprocessing((32, 32)), {"split": split})
    assert load_detector(tmp_path / "models").series_fit == SeriesFit(1, True, ("MR",))
    save_detector(tmp_path / "models", IntensityThreshold(), ScanPreprocessing((32, 32)), {})
    assert load_detector(tmp_path / "models").series_fit == SeriesFit(1, True, ())
    split["dicom"]["modalities"] = "MR"
    save_detector(tmp_path / "models", IntensityThreshold(), ScanPreprocessing((32, 32)), {"split": split})
    with pytest.raises(InputError, match="modalities: 'MR' is not of type 'array'"):
        load_detector(tmp_path / "models")
    np.save(tmp_path / "no.npy", PIXELS)
    assert describe_sources([(str(first), None), (str(tmp_path / "no.npy"), None)]) is None


def test_a_datalist_names_series_of_one_folder(tmp_path: Path) -> None:
    slices = named(complete(series(PIXELS)), "1.1", "T1") + named(complete(series(PIXELS + 1)), "1.2", "T2")
    folder = write(tmp_path / "s", slices)
    datalist = {
        "training": [{"image": "s", "series": "t1", "patient": "a"}],
        "test": [{"image": "s", "series": "1.2", "patient": "b"}],
    }
    (tmp_path / "list.json").write_text(json.dumps(datalist))
    cohort = load_cohort(tmp_path / "list.json")
    assert [item["case"] for item in (*cohort.training, *cohort.test)] == ["s__t1", "s__1.2"]
    entry = ScanDataset(cohort.test, ScanPreprocessing())[0]
    np.testing.assert_array_equal(entry["scan"][0].numpy(), PIXELS.T + 1)
    assert {header.SeriesInstanceUID for header in DicomSource(entry["scan"]).headers} == {"1.2"}
    # what becomes of the other series is not in the scan's digests
    before = [call(folder, series="t1") for call in (content_hash, shown_digest)]
    assert before == [call(folder, series="1.1") for call in (content_hash, shown_digest)]
    changed = pydicom.dcmread(folder / "011.dcm")
    changed.PixelData = changed.PixelData[::-1]
    changed.save_as(folder / "011.dcm")
    assert before == [call(folder, series="1.1") for call in (content_hash, shown_digest)]
    assert content_hash(str(folder)) not in before
    (tmp_path / "list.json").write_text(json.dumps({"test": [{"image": "s", "series": ["1.1"]}]}))
    with pytest.raises(InputError, match="has series"):
        load_cohort(tmp_path / "list.json")


def test_a_datalist_of_a_study_tree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tree").mkdir()
    for number in range(4):
        slices = named(series(PIXELS + number), f"1.{number}", "T1", f"2.{number}")
        slices += named(series(PIXELS[:1]), f"3.{number}", "scout", f"2.{number}")
        write(tmp_path / "tree" / f"p{number}", slices)
    for options in ([], ["--series", "T1"]):
        with pytest.warns(UserWarning, match="patients of 4 scans"):
            assert main(["datalist", str(tmp_path / "tree"), "-o", str(tmp_path / "list.json"), *options]) == 0
        written = json.loads((tmp_path / "list.json").read_text())
        items = [item for side in ("training", "calibration") for item in written[side]]
        assert sorted(item["series"] for item in items) == [f"1.{number}" for number in range(4)]
        assert sorted(item["image"] for item in items) == [f"tree/p{number}" for number in range(4)]
    write(tmp_path / "tree" / "p0", named(series(PIXELS), "4.0", "T2", "2.0"), [f"t2_{i}" for i in range(6)])
    capsys.readouterr()
    assert main(["datalist", str(tmp_path / "tree"), "-o", str(tmp_path / "list.json")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "2 of 3 series are" in line
    assert "(T1 [1.0], T2 [4.0])" in line


def test_one_series_of_each_study(tmp_path: Path) -> None:
    for number in range(3):
        name = "T1" if number else "T2"
        write(tmp_path / f"p{number}", named(series(PIXELS + number), f"1.{number}", name, f"2.{number}"))
    with pytest.warns(UserWarning, match="1 of 3 studies have no series 'T1'"):
        cohort = load_cohort(tmp_path, series="T1")
    assert [Path(item["image"]).name for item in cohort.test] == ["p1", "p2"]


@pytest.mark.parametrize("lost", [0, 5])
def test_a_slice_lost_at_an_end_is_told_where_the_header_knows(tmp_path: Path, lost: int) -> None:
    slices = series(PIXELS)
    for dataset in slices:
        dataset.ImagesInAcquisition = 6
    del slices[lost]
    with pytest.warns(UserWarning, match="states 6 images, there are 5"):
        LoadScan()(write(tmp_path / "s", slices))


def test_formats_that_are_not_read_are_told(tmp_path: Path) -> None:
    write(tmp_path / "s", series(PIXELS))
    (tmp_path / "a.dcm.gz").write_bytes(b"x")
    (tmp_path / "b.mnc").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.warns(UserWarning, match=r"scans: 1; passed over: .dcm.gz, which is not read: 1, .mnc, [^:]*: 1\.$"):
        load_cohort(tmp_path)
