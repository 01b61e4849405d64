"""Describing a cohort: which scans train, calibrate and test, from a datalist, a folder layout or a single scan."""

from __future__ import annotations

import csv
import json
import os
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from monai_anomaly.exceptions import InputError, is_plain
from monai_anomaly.io.content import shown_digest
from monai_anomaly.io.dicom import is_dicom_file, is_dicom_folder
from monai_anomaly.io.load import DICOM_SUFFIXES, PICTURE_SUFFIXES, scan_suffix
from monai_anomaly.io.series import AUTO, SeriesFit, choose_series, find_series, list_series
from monai_anomaly.io.tables import write_json
from monai_anomaly.io.untrusted import refuse_damage

__all__ = ["SIDES", "Cohort", "check_cohort", "load_cohort", "relative_item", "write_datalist"]

Item = dict[str, Any]
Sides = dict[str, list[Item]]

SIDES = ("training", "validation", "calibration", "test")
STRATA = ("site", "scanner")
DATALISTS = ("cohort.json", "datalist.json", "dataset.json")

# Voxel bytes that tell most volumes of one size apart without unpacking them whole.
_PROBE_BYTES = 1 << 22
# BIDS 1.10: folders that repeat the subjects' scans; types and suffixes of structural images, and of other files.
_BIDS_BESIDE = frozenset({"derivatives", "sourcedata"})
_BIDS_TYPES = frozenset({"anat", "pet", "ct"})
_BIDS_SUFFIXES = frozenset(
    {"T1w", "T2w", "T2starw", "PDw", "PDT2", "FLAIR", "UNIT1", "inplaneT1", "inplaneT2", "angio", "ct", "pet"}
)
_BIDS_OTHER_TYPES = frozenset(
    {"func", "dwi", "fmap", "perf", "beh", "eeg", "ieeg", "meg", "nirs", "motion", "mrs", "figures"}
)
_BIDS_OTHER_SUFFIXES = frozenset(
    {"roi", "label", "bold", "cbv", "phase", "sbref", "dwi", "epi", "asl", "m0scan", "fieldmap", "photo"}
    | {"phasediff", "phase1", "phase2", "magnitude", "magnitude1", "magnitude2"}
)
# What an output folder holds beside the folders of the cases.
_OUTPUTS = frozenset({"predictions.csv", "failures.csv", "lesions.csv", "metrics.csv", "metrics.json", "drift.json"})
_OUTPUTS |= {"report.html", "models", "training", "run.json", "dicom_web"}
_CASE_REMEDY = "A case must be fit for a file name, and none of the files that results are written to."
# Files that hold images or volumes in formats that are not read: passed over with a word, unlike notes and tables.
_UNREAD_SUFFIXES = (
    *(".dcm.gz", ".ima.gz", ".nrrd.gz", ".nii.bz2", ".nii.zst", ".seg.nrrd", ".mnc", ".img", ".par", ".gipl", ".zip"),
    *(".webp", ".gif", ".heic", ".jp2", ".svs", ".czi", ".npy", ".npz"),
)
# What a table of patients cannot change of an item.
_OWN_KEYS = ("image", "patient", "label", "mask", "case")


@dataclass(frozen=True)
class Cohort:
    """The scans of a cohort by what they are for. No patient and no image is on two sides.

    Each item is a dictionary: ``case`` (a name unique in the cohort, fit for files), ``image`` (absolute path, or a
    list of them for several channels), ``patient``, ``label`` (0 normal, 1 abnormal, ``None`` unknown) and ``mask``
    (absolute path of the lesions' outline, or ``None``); further keys of a datalist's items are kept.

    Args:
        root: the folder that cases are named from.
        training: items to train on, all of label 0.
        calibration: items to set thresholds on, all of label 0.
        test: items to detect in.
        validation: items that a training watches and fits its held-out statistics on, all of label 0.
        split: how the sides came about, JSON-able: ``seed``, ``stratified_by`` (keys that some item has) and ``drawn``,
            the fraction by which each side was drawn from the training patients; empty for a cohort made by hand.
    """

    root: Path
    training: list[Item]
    calibration: list[Item]
    test: list[Item]
    validation: list[Item] = field(default_factory=list)
    split: dict[str, Any] = field(default_factory=dict)


def load_cohort(
    source: str | Path,
    *,
    patient_regex: str | None = None,
    calibration_fraction: float = 0.2,
    validation_fraction: float = 0.0,
    stratify_by: Sequence[str] = STRATA,
    seed: int = 0,
    series: str | None = None,
    series_fit: SeriesFit | None = None,
) -> Cohort:
    """Describe the cohort that a file or folder holds.

    Accepted are, tried in this order: a datalist JSON (sections ``training``, ``validation``, ``calibration``, ``test``
    of items with ``image`` and optionally ``label``, ``mask``, ``patient``, ``case``, and ``series``, the UID or
    description of one of several series in a DICOM folder; paths relative to its folder), a single scan file or folder
    of one DICOM series, a folder with one such JSON named ``cohort.json``, ``datalist.json`` or ``dataset.json``, a
    folder ``train/normal`` [, ``validation/normal``, ``calibration/normal``], ``test/normal``, ``test/abnormal``,
    ``test/masks``, MVTec AD's layout (``train/good``, ``test/<kind>``, ``ground_truth/<kind>/<stem>_mask.png``), and
    any other folder, all of whose scans are test items of unknown label.
    A folder with DICOM images counts as one scan. Links to folders are followed, each folder once. One warning counts
    what is passed over: of BIDS data ``derivatives``, ``sourcedata``, 2-D images, masks, and types of data other than
    structural images; folders of DICOM files without an image; 2-D images of a disc with a DICOMDIR; formats of images
    that are not read.

    The patient of an item is what the datalist says, else what ``patients.csv`` in the folder says (columns ``image``,
    relative to it, and ``patient``), else the first group of ``patient_regex`` found in the relative path, else the
    item itself, with one warning. Further columns of ``patients.csv`` (``site``, ``scanner``) are kept on the items, as
    further keys of a datalist's items are.

    Args:
        source: datalist, scan or folder.
        patient_regex: regular expression with one group.
        calibration_fraction: share (in [0, 1)) of the training patients that a folder layout without calibration scans
            gives up for calibration: at least one where there are two. A datalist is taken as it stands.
        validation_fraction: share (in [0, 1)) of the training patients that any source without validation scans gives
            up for validation: at least one where there are two.
        stratify_by: keys of the items: patients are drawn from each combination of their values in proportion to its
            size, to within one patient. Items without the keys are a stratum of their own.
        seed: chooses these patients.
        series: for a folder of DICOM studies as a PACS exports them: the UID or description of the series to test, one
            of each study; ``"auto"`` takes the only one of a study that fits. Which and why is logged; items name it.
        series_fit: what fits (``DetectorFiles.series_fit``); None: any volume.

    Returns:
        The cohort, with absolute paths.

    Raises:
        InputError: where the source is missing, empty or broken, files are missing, a patient or an image's content is
            on two sides, an item to train or calibrate on is abnormal, a normal item has a mask, two items have the
            same case, two calibration patients have the same image, or a patient cannot be told.

    References:
        P. Bergmann et al., "MVTec AD: A comprehensive real-world dataset for unsupervised anomaly detection", CVPR
        2019, for its layout.
    """
    _check_fraction("calibration_fraction", calibration_fraction)
    _check_fraction("validation_fraction", validation_fraction)
    keys = (stratify_by,) if isinstance(stratify_by, str) else tuple(stratify_by or ())
    path = Path(os.path.abspath(source))
    if not path.exists():
        raise InputError(path, "no such file or folder", "Check the path.")
    hold_out, single = False, False
    if series is not None and path.is_dir():
        root, sides, single = path.parent, _sides(test=_series_items(path, series, series_fit)), True
    elif path.is_file() and path.suffix.lower() == ".json":
        root, sides = path.parent, _read_datalist(path)
    elif path.is_file() or (is_dicom_folder(path) and _holds_image(path)):
        root, sides, single = path.parent, _sides(test=[_item(path)]), True
    else:
        root = path
        found = [path / name for name in DATALISTS if (path / name).is_file()]
        if len(found) > 1:
            names = " and ".join(file.name for file in found)
            raise InputError(path, f"holds several datalists ({names})", "Name one of them.")
        if found:
            sides = _read_datalist(found[0])
        elif layout := _read_layout(path):
            sides, hold_out = layout, not layout["calibration"]
        else:
            sides = _sides(test=[_item(scan) for scan in _find_scans(path)])
    _complete(root, sides, patient_regex, single)
    drawn: dict[str, float] = {}
    if hold_out:
        drawn["calibration"] = calibration_fraction
    if not sides["validation"]:
        drawn["validation"] = validation_fraction
    for side, fraction in drawn.items():
        sides["training"], sides[side] = _hold_out(sides["training"], fraction, seed, keys)
    known = [key for key in keys if any(key in item for side in SIDES for item in sides[side])]
    split = {"seed": seed, "stratified_by": known, "drawn": {k: v for k, v in drawn.items() if v > 0}}
    cohort = Cohort(root, **sides, split=split)
    check_cohort(cohort, path)
    return cohort


def write_datalist(
    folder: str | Path,
    output: str | Path,
    *,
    patient_regex: str | None = None,
    calibration_fraction: float = 0.2,
    test_fraction: float = 0.0,
    stratify_by: Sequence[str] = STRATA,
    seed: int = 0,
    series: str | None = None,
) -> dict[str, Any]:
    """Write the datalist of a folder, to be looked at, corrected and given to :func:`load_cohort`.

    A folder with training and test sides keeps them. Any other folder is taken as scans of normals and divided by
    patient: first ``test_fraction`` of all patients, then ``calibration_fraction`` of the others.

    Args:
        folder: the folder of scans. A datalist that lies in it is not read.
        output: the JSON file to write; one that exists is replaced.
        patient_regex: as in :func:`load_cohort`.
        calibration_fraction: share (in [0, 1)) of the patients not in the test that calibrate.
        test_fraction: share (in [0, 1)) of the patients to test on; only for a folder without a test side.
        stratify_by: as in :func:`load_cohort`; the values come from further columns of ``patients.csv``.
        seed: chooses the patients.
        series: as in :func:`load_cohort`, for a folder without sides. Without it a folder of several series gives the
            only volume among them.

    Returns:
        What was written: ``name`` and the sections ``training``, ``calibration`` and ``test``, and ``validation`` where
        the folder has that side; paths are relative to the JSON's folder where the file system allows it.

    Raises:
        InputError: as :func:`load_cohort` does, or where ``test_fraction`` is given for a folder with a test side.
    """
    _check_fraction("calibration_fraction", calibration_fraction)
    _check_fraction("test_fraction", test_fraction)
    keys = (stratify_by,) if isinstance(stratify_by, str) else tuple(stratify_by or ())
    root, output = Path(os.path.abspath(folder)), Path(os.path.abspath(output))
    if not root.is_dir():
        raise InputError(root, "no such folder", "Check the path.")
    sides = _read_layout(root)
    if sides is None:
        if series is None:
            items = [_one_series(_item(scan, label=0)) for scan in _find_scans(root)]
        else:
            items = _series_items(root, series, label=0)
        sides = _sides(training=items)
        _complete(root, sides, patient_regex, False)
        sides["training"], sides["test"] = _hold_out(sides["training"], test_fraction, seed, keys)
    elif test_fraction > 0:
        raise InputError(root, "has a test side, so test_fraction does not apply", "Leave test_fraction out.")
    else:
        _complete(root, sides, patient_regex, False)
    if not sides["calibration"]:
        sides["training"], sides["calibration"] = _hold_out(sides["training"], calibration_fraction, seed, keys)
    check_cohort(Cohort(root, **sides, split={}), root)
    written = [side for side in SIDES if sides[side] or side != "validation"]
    sections = {side: [relative_item(item, output.parent) for item in sides[side]] for side in written}
    datalist = {"name": root.name, **sections}
    write_json(output, datalist)
    return datalist


def _sides(**given: list[Item]) -> Sides:
    return {side: given.get(side, []) for side in SIDES}


def _item(image: Path, label: int | None = None, mask: Path | None = None) -> Item:
    return {"image": str(image), "label": label, "mask": None if mask is None else str(mask)}


def _files(item: Item) -> list[str]:
    """The files and DICOM folders of an item's channels."""
    image = item["image"]
    return [image] if isinstance(image, str) else image


def _check_fraction(option: str, fraction: float) -> None:
    if not 0 <= fraction < 1:
        raise InputError(option, f"is {fraction}", "Give a number from 0 up to, but not including, 1.")


def _series_items(folder: Path, wanted: str, fit: SeriesFit | None = None, label: int | None = None) -> list[Item]:
    """One series of each study below a folder."""
    chosen = find_series(folder, wanted, fit)
    return [{**_item(series.folder, label), "series": series.uid} for series in chosen]


def _one_series(item: Item) -> Item:
    """A scan that was found; of a DICOM folder with several series, the only volume."""
    found = list_series(item["image"], nested=False)[0] if os.path.isdir(item["image"]) else []
    return {**item, "series": choose_series(item["image"], found, AUTO)[0].uid} if len(found) > 1 else item


def _find_scans(folder: Path) -> list[Path]:
    """All scans below a folder, sorted; a folder with DICOM images is one. Hidden files and folders are passed over.

    Links to folders are followed, each folder once and where it lies itself before where it is linked. Of a BIDS data
    set only structural images count, and of a disc with a DICOMDIR no images; one warning counts what is left out.
    """

    scans: list[Path] = []
    discs: set[Path] = set()
    passed: Counter[str] = Counter()
    top = Path(os.path.realpath(folder))
    seen: set[Path] = set()
    pending = [str(folder)]
    while pending:
        start = pending.pop(0)
        # a folder that cannot be read is a scan that fails; the others go on
        for name, folders, files in os.walk(start, onerror=lambda error: scans.append(Path(error.filename))):
            real = Path(os.path.realpath(name))
            if real in seen or (real != top and top.is_relative_to(real)):  # another way to it, or a loop
                folders[:] = []
                continue
            seen.add(real)
            named = sorted(sub for sub in folders if not sub.startswith("."))
            bids = "dataset_description.json" in files or any(sub.startswith("sub-") for sub in named)
            folders[:] = [sub for sub in named if not (bids and sub in _BIDS_BESIDE)]
            passed.update(f"folder {sub}" for sub in named if sub not in folders)
            pending += [link for sub in folders if os.path.islink(link := os.path.join(name, sub))]
            if any(file.upper().startswith("DICOMDIR") for file in files):
                discs.add(Path(name))
            if dicom := is_dicom_folder(name):
                if _holds_image(Path(name)):
                    scans.append(Path(name))
                    continue
                passed["folder of DICOM files without an image"] += 1
            for file in files:
                path, suffix = Path(name, file), scan_suffix(file).lower()
                if suffix and not file.startswith(".") and not (dicom and suffix in DICOM_SUFFIXES):
                    scans.append(path)
                elif not suffix and not path.exists():
                    passed["link that leads nowhere"] += 1
                elif not suffix and (ending := [end for end in _UNREAD_SUFFIXES if file.lower().endswith(end)]):
                    passed[f"{ending[0]}, which is not read"] += 1
    left_out = {scan: "2-D image of a disc" for scan in scans if _is_picture(scan) and discs & set(scan.parents)}
    left_out |= _beside_structural(scans)
    passed.update(left_out.values())
    kept = sorted(scan for scan in scans if scan not in left_out)
    if passed:
        listed = ", ".join(f"{what}: {count}" for what, count in sorted(passed.items()))
        warnings.warn(f"{folder}: scans: {len(kept)}; passed over: {listed}.", stacklevel=2)
    return kept


def _holds_image(folder: Path) -> bool:
    """Whether a folder holds a DICOM image; the index of a disc, reports and other objects without pixels are none."""
    from pydicom import dcmread

    for file in filter(is_dicom_file, sorted(folder.iterdir())):
        try:
            if dcmread(file, stop_before_pixels=True, specific_tags=["Rows"]).get("Rows"):
                return True
        except Exception:
            return True  # reading it as a scan says what is wrong
    return False


def _is_picture(path: Path) -> bool:
    return scan_suffix(path).lower() in PICTURE_SUFFIXES


def _beside_structural(scans: Sequence[Path]) -> dict[Path, str]:
    """What is no structural image among scans named as BIDS has it, and its kind; empty where none is structural."""
    kinds: dict[Path, str] = {}
    structural = False
    for path in scans:
        subject, _, suffix = _stem(path).rpartition("_")
        if not subject.startswith("sub-"):
            continue
        other = suffix in _BIDS_OTHER_SUFFIXES or suffix.lower().endswith(("mask", "seg"))
        if other or path.parent.name in _BIDS_OTHER_TYPES:
            kinds[path] = suffix
        elif path.parent.name in _BIDS_TYPES or suffix in _BIDS_SUFFIXES:
            structural = structural or not _is_picture(path)
    if not structural:
        return {}
    return {path: "2-D image" for path in scans if _is_picture(path)} | kinds


def _read_layout(root: Path) -> Sides | None:
    """The sides of a folder with ``train/normal`` or ``train/good``, without patients; ``None`` for other folders."""
    if (root / "train" / "normal").is_dir():
        training, calibration, validation = (
            _labelled(root / side / "normal", 0) + _labelled(root / side / "abnormal", 1)
            for side in ("train", "calibration", "validation")
        )
        test = _labelled(root / "test" / "normal", 0)
        test += _masked(root / "test" / "abnormal", root / "test" / "masks", "")
    elif (root / "train" / "good").is_dir():
        training, calibration, validation = _labelled(root / "train" / "good", 0), [], []
        test = _labelled(root / "test" / "good", 0)
        kinds = sorted(kind for kind in (root / "test").iterdir() if kind.is_dir()) if (root / "test").is_dir() else []
        for kind in kinds:
            if kind.name != "good":
                test += _masked(kind, root / "ground_truth" / kind.name, "_mask")
    else:
        return None
    if not training:
        raise InputError(root / "train", "holds no scan", "Put the scans of normals there.")
    return _sides(training=training, validation=validation, calibration=calibration, test=test)


def _labelled(folder: Path, label: int) -> list[Item]:
    return [_item(scan, label) for scan in _find_scans(folder)] if folder.is_dir() else []


def _masked(folder: Path, masks: Path, ending: str) -> list[Item]:
    """Abnormal scans with the masks that bear their stem and the ending; a mask of no scan is rejected."""
    items = _labelled(folder, 1)
    by_stem: dict[str, Path] = {}
    for mask in _find_scans(masks) if masks.is_dir() else []:
        stem = _stem(mask)
        if stem in by_stem:
            raise InputError(mask, f"has the same stem as {by_stem[stem].name}", "Leave one mask for each scan.")
        by_stem[stem] = mask
    for item in items:
        mask_path = by_stem.pop(_stem(Path(item["image"])) + ending, None)
        item["mask"] = None if mask_path is None else str(mask_path)
    if by_stem:
        mask = next(iter(by_stem.values()))
        raise InputError(mask, f"no scan in {folder} belongs to this mask", "Name masks as their scans.")
    return items


def _stem(path: Path) -> str:
    """The name without its scan suffix."""
    return path.name.removesuffix(scan_suffix(path))


def _read_datalist(path: Path) -> Sides:
    """The sections of a datalist, with absolute paths that exist."""
    with refuse_damage(path, remedy="Save it again as UTF-8 text."):
        try:
            datalist = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            problem = f"is no valid JSON: {error.msg} in line {error.lineno}, column {error.colno}"
            raise InputError(path, problem, "Correct that line.") from error
    if not isinstance(datalist, dict):
        raise InputError(path, "is no datalist: the outermost value is no object", f"Give it the sections {SIDES}.")
    sides = _sides()
    for side in SIDES:
        section = datalist.get(side, [])
        if not isinstance(section, list):
            raise InputError(path, f"section {side} is no list", "Write it as a list of items.")
        sides[side] = [_read_item(path, f"{side}[{i}]", entry, side) for i, entry in enumerate(section)]
    items = [item for side in SIDES for item in sides[side]]
    named = [file for item in items for file in (*_files(item), *([item["mask"]] if item["mask"] else []))]
    missing = [file for file in named if not os.path.exists(file)]
    if missing:
        listed = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise InputError(path, f"{len(missing)} of {len(named)} files are missing ({listed})", "Correct the paths.")
    return sides


def _read_item(path: Path, where: str, entry: Any, side: str) -> Item:
    """One checked item of a datalist. Training and calibration items are normal unless they say otherwise."""
    if isinstance(entry, str):
        entry = {"image": entry}
    images = entry.get("image") if isinstance(entry, dict) else None
    several = isinstance(images, list)
    if not images or not all(isinstance(image, str) and image for image in (images if several else [images])):
        raise InputError(path, f"{where} has no image", "Give each item an image: a path or a list of paths.")
    label, mask = entry.get("label"), entry.get("mask")
    if label not in (None, 0, 1):
        raise InputError(path, f"{where} has label {label!r}", "Labels are 0 (normal) and 1 (abnormal).")
    if mask is not None and not isinstance(mask, str):
        raise InputError(path, f"{where} has a mask that is no path", "Give one path, or leave the mask out.")
    for key in ("patient", "series", *STRATA):
        if not isinstance(entry.get(key), str | int | float | None):
            raise InputError(path, f"{where} has {key} {str(entry[key])[:80]!r}", "Write it as text.")
    case = entry.get("case")
    if case is not None and not _is_case(case):
        raise InputError(path, f"{where} has case {case!r}", _CASE_REMEDY)
    absolute = [os.path.abspath(path.parent / image) for image in (images if several else [images])]
    item = dict(entry)
    item["image"] = absolute if several else absolute[0]
    item["label"] = (None if side == "test" else 0) if label is None else int(label)
    item["mask"] = None if not mask else os.path.abspath(path.parent / mask)
    return item


def _complete(root: Path, sides: Sides, patient_regex: str | None, single: bool) -> None:
    """Give each item its case and its patient."""
    pattern = None
    if patient_regex is not None:
        try:
            pattern = re.compile(patient_regex)
        except re.error as error:
            problem = f"{patient_regex!r} is no regular expression ({error})"
            raise InputError("patient_regex", problem, "Correct it.") from error
        if pattern.groups < 1:
            raise InputError("patient_regex", f"{patient_regex!r} has no group", "Put the patient in parentheses.")
    table = None if single else _read_patients(root / "patients.csv")
    assumed = 0
    outside = [Path(_files(item)[0]) for side in SIDES for item in sides[side]]
    outside = [path for path in outside if not path.is_relative_to(root)]
    common = Path(os.path.commonpath([path.parent for path in outside])) if outside else root
    shared = Counter(_files(item)[0] for side in SIDES for item in sides[side])
    for item in (item for side in SIDES for item in sides[side]):
        first = Path(_files(item)[0])
        inside = first.is_relative_to(root)
        relative = first.relative_to(root) if inside else first
        short = relative if inside else first.relative_to(common)
        if item.get("case") is None:
            several = [str(item["series"])] if "series" in item and shared[str(first)] > 1 else []
            item["case"] = _case_of("__".join((*short.parts[:-1], _stem(short), *several)))
        row = {} if table is None else table.get(relative.as_posix(), {})
        for key, value in row.items():
            if key not in _OWN_KEYS:
                item.setdefault(key, value)
        if item.get("patient") not in (None, ""):
            item["patient"] = str(item["patient"])
        elif row:
            item["patient"] = row["patient"]
        elif pattern is not None:
            match = pattern.search(relative.as_posix())
            if match is None or not match.group(1):
                raise InputError(first, f"patient_regex {patient_regex!r} finds no patient in its path", "Correct it.")
            item["patient"] = match.group(1)
        elif table is not None:
            raise InputError(first, f"is not listed in {root / 'patients.csv'}", "Add it, relative to that folder.")
        else:
            item["patient"] = item["case"]
            assumed += 1
    if assumed and not single:
        warnings.warn(
            f"{root}: the patients of {assumed} scans are not known; each scan is taken as a patient of its own. Name "
            "them in patients.csv (columns image, patient) or by patient_regex where patients have several scans.",
            stacklevel=3,
        )


def _is_case(case: Any) -> bool:
    """Whether a folder of results can have this name, beside the other outputs and in a table."""
    if not isinstance(case, str) or case != Path(case).name or case.startswith("."):
        return False
    return case.lower() not in _OUTPUTS and "\\" not in case and all(map(is_plain, case)) and bool(case)


def _case_of(name: str) -> str:
    """A case made of a path: what is no text is spelt as in URLs, and a name that is not free gets ``scan_``."""
    case = "".join(
        c if is_plain(c) and c not in "/\\" else "".join(f"%{byte:02X}" for byte in os.fsencode(c)) for c in name
    )
    return case if _is_case(case) else f"scan_{case}"


def _read_patients(path: Path) -> dict[str, dict[str, str]] | None:
    """The filled-in columns of a table of patients by relative image path, ``None`` where there is no such table."""
    if not path.is_file():
        return None
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if not {"image", "patient"} <= set(reader.fieldnames or ()):
                raise InputError(path, "lacks the columns image and patient", "Name them in the first line.")
            patients: dict[str, dict[str, str]] = {}
            for row in reader:
                # a line that is longer than the first has what is over under None
                filled = {k: v.strip() for k, v in row.items() if k is not None and v and v.strip()}
                image, patient = Path(row["image"] or "").as_posix(), filled.get("patient", "")
                if not patient or patients.setdefault(image, filled)["patient"] != patient:
                    problem = f"line {reader.line_num} names no patient, or another one than before, for {image!r}"
                    raise InputError(path, problem, "Name one patient for each image.")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(path, f"cannot be read ({error})", "Save it as UTF-8 CSV.") from error
    return patients


def _hold_out(items: list[Item], fraction: float, seed: int, keys: Sequence[str] = ()) -> tuple[list[Item], list[Item]]:
    """Divide items by patient into those kept and those held out.

    The patients are sorted before they are drawn, so the order of the items has no influence. At least one patient is
    kept, and at least one is held out where there are two and the fraction is above 0. Each stratum (patients with the
    same values of the keys) gives up its proportional part, rounded down, or one more: largest remainders first.
    """
    values: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for item in items:
        values[item["patient"]].add(tuple(str(item.get(key)) for key in keys))
    patients = sorted(values)
    count = 0
    if fraction > 0 and len(patients) > 1:
        count = min(max(round(fraction * len(patients)), 1), len(patients) - 1)
    strata: dict[tuple[tuple[str, ...], ...], list[str]] = defaultdict(list)
    for index in np.random.default_rng(seed).permutation(len(patients)):
        strata[tuple(sorted(values[patients[index]]))].append(patients[index])
    # in whole numbers: count * size = quotient * patients + remainder
    shares = {key: divmod(count * len(members), len(patients)) for key, members in strata.items()}
    left = count - sum(whole for whole, _ in shares.values())
    # the sort is stable, so that among equal remainders the order of the draw decides
    raised = set(sorted(shares, key=lambda key: -shares[key][1])[:left])
    held = {patient for key, members in strata.items() for patient in members[: shares[key][0] + (key in raised)]}
    return [i for i in items if i["patient"] not in held], [i for i in items if i["patient"] in held]


def check_cohort(cohort: Cohort, source: Path | None = None) -> None:
    """Reject a cohort that is empty or would make results wrong.

    Args:
        cohort: of :func:`load_cohort`, which checks it itself, or made by hand.
        source: what to name in the message; None: the cohort's root.

    Raises:
        InputError: see :func:`load_cohort`.
    """
    source = cohort.root if source is None else source
    sides: Sides = {side: getattr(cohort, side) for side in SIDES}
    if not any(sides.values()):
        raise InputError(source, "holds no scan", "Give NIfTI files, images or folders of DICOM files.")
    cases: dict[str, Item] = {}
    patients: dict[str, str] = {}
    for side, item in [(name, item) for name in SIDES for item in sides[name]]:
        case, patient, first = item["case"], item["patient"], _files(item)[0]
        if not _is_case(case):
            raise InputError(source, f"{first} has case {case!r}", _CASE_REMEDY)
        if case in cases:
            problem = f"{_files(cases[case])[0]} and {first} have the same case {case!r}"
            raise InputError(source, problem, "Rename one of them.")
        cases[case] = item
        if item["label"] == 1 and side != "test":
            raise InputError(
                first,
                f"is abnormal but in {side}",
                "Training and calibration take normals alone: move it to test.",
            )
        if item["label"] == 0 and item["mask"] is not None:
            raise InputError(first, f"is normal (label 0) but has the mask {item['mask']}", "Correct one of the two.")
        if patients.setdefault(patient, side) != side:
            problem = f"patient {patient!r} is in {patients[patient]} and in {side}"
            raise InputError(source, problem, "Put all scans of a patient on one side.")
    _check_content(sides, source)


def _check_content(sides: Sides, source: Path) -> None:
    """Reject the same image on two sides or of two calibration patients, and warn of other copies on one."""
    alike: dict[str, dict[tuple[str, str], tuple[str, str, str, str | None]]] = defaultdict(dict)
    for side in SIDES:
        for item in sides[side]:
            for file in _files(item):
                entry = (side, item["patient"], file, item.get("series"))
                # a file that is gone or broken has nothing to compare; reading it as a scan says so
                with suppress(InputError):
                    alike[shown_digest(Path(file), _PROBE_BYTES, entry[3])].setdefault((item["case"], file), entry)
    copies: dict[str, list[str]] = defaultdict(list)
    for group in alike.values():
        seen: dict[str, tuple[str, str, str, str | None]] = {}
        for entry in group.values() if len(group) > 1 else ():
            side, patient, file, series = entry
            try:
                first = seen.setdefault(shown_digest(Path(file), series=series), entry)
            except InputError:  # as above
                continue
            if first[0] != side:
                problem = f"{first[2]} ({first[0]}) and {file} ({side}) are the same image"
                raise InputError(source, problem, "Leave it on one side.")
            if side == "calibration" and first[1] != patient:
                # one unit would count as two, and the error rate would be understated
                problem = f"{first[2]} and {file} are the same image, of two calibration patients"
                raise InputError(source, problem, "Leave one of them, or give both the same patient.")
            if first is not entry:
                copies[side].append(f"{file} = {first[2]}")
    for side, pairs in copies.items():
        warnings.warn(f"{source}: {len(pairs)} images of {side} are copies of others ({pairs[0]}).", stacklevel=4)


def relative_item(item: Item, folder: Path) -> Item:
    """An item as it is written: paths relative to the datalist, no empty mask."""

    def shorten(path: str) -> str:
        try:
            return Path(os.path.relpath(path, folder)).as_posix()
        except ValueError:  # another drive of Windows
            return path

    image = item["image"]
    written = {**item, "image": shorten(image) if isinstance(image, str) else [shorten(path) for path in image]}
    mask = written.pop("mask", None)
    return written if mask is None else {**written, "mask": shorten(mask)}
