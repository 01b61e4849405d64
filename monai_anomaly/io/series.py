"""The DICOM series below a folder, as a PACS or a disc delivers them, and the choice of one."""

from __future__ import annotations

import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from monai_anomaly.exceptions import InputError
from monai_anomaly.io.dicom import is_dicom_file, read_header, stack_affine, stack_slices

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["AUTO", "FoundSeries", "choose_series", "find_series", "list_series", "series_columns"]

# The name that chooses the only series that can be read as a volume.
AUTO = "auto"


class FoundSeries(NamedTuple):
    """One series, without anything that names the patient.

    Attributes:
        uid: SeriesInstanceUID.
        study: StudyInstanceUID.
        modality: such as ``"MR"``.
        description: SeriesDescription.
        folder: that its files lie in; of several, the first.
        files: how many there are.
        slices: of one volume; 0 where the files make none.
        size: columns, rows, slices; empty where the files make no volume.
        spacing: mm along columns, rows and slices; empty likewise.
        problem: why it cannot be read as it is, or what to heed; empty for none.
        readable: whether it can be read as it is.
        scattered: whether its files lie in several folders.
    """

    uid: str
    study: str
    modality: str
    description: str
    folder: Path
    files: int
    slices: int
    size: tuple[int, ...]
    spacing: tuple[float, ...]
    problem: str
    readable: bool
    scattered: bool


def list_series(folder: str | Path, nested: bool = True) -> tuple[list[FoundSeries], dict[str, int]]:
    """Find the series below a folder, and check each as it would be read.

    Args:
        folder: of one or many studies, in any folders, with or without suffixes. Hidden files are passed over.
        nested: whether to look into its folders too.

    Returns:
        The series, sorted by study, description and UID; and what else there is, by kind with its count.

    Raises:
        InputError: where the folder is missing or cannot be listed.
    """
    from pydicom.errors import InvalidDicomError

    where = Path(folder)
    if not where.is_dir():
        raise InputError(where, "no such folder", "Check the path.")

    def refuse(error: OSError) -> None:
        raise InputError(error.filename, f"the folder cannot be read ({error.strerror})", "Check its permissions.")

    groups: dict[str, list[tuple[Path, Dataset]]] = defaultdict(list)
    others: Counter[str] = Counter()
    for name, folders, files in os.walk(where, onerror=refuse):
        folders[:] = sorted(sub for sub in folders if nested and not sub.startswith("."))
        for file in sorted(Path(name, file) for file in files if not file.startswith(".")):
            if not is_dicom_file(file):
                others["no DICOM"] += 1
                continue
            try:
                header = read_header(file)
            except (InvalidDicomError, OSError, EOFError):
                others["damaged"] += 1
                continue
            if "SeriesInstanceUID" in header:
                groups[str(header.SeriesInstanceUID)].append((file, header))
            else:
                others["index of a disc (DICOMDIR) or without a series"] += 1
    found = [_describe(uid, headers) for uid, headers in groups.items()]
    return sorted(found, key=lambda series: (series.study, series.description, series.uid)), dict(others)


def _describe(uid: str, headers: list[tuple[Path, Dataset]]) -> FoundSeries:
    """What the reader makes of one series."""
    folders = sorted({file.parent for file, _ in headers})
    images = [(file, header) for file, header in headers if header.get("Rows") and header.get("Columns")]
    size: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    notes: list[str] = []
    readable = False
    if not images:
        notes.append("holds no image")
    else:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                stack = stack_slices(folders[0], images)
                grid = (stack[0].tile or (1, 0))[0]
                first = stack[0].header
                size = (int(first.Columns) // grid, int(first.Rows) // grid, len(stack))
                affine = stack_affine(folders[0], stack)
                spacing = tuple(round(float(mm), 4) for mm in np.linalg.norm(affine[:3, :3], axis=0))
                readable = True
            except InputError as error:
                notes.append(error.problem)
        notes += [str(warning.message).removeprefix(f"{folders[0]}: ") for warning in caught]
    if len(folders) > 1:
        readable = False
        notes.append(f"its files lie in {len(folders)} folders")
    header = headers[0][1]
    return FoundSeries(
        uid,
        str(header.get("StudyInstanceUID") or ""),
        str(header.get("Modality") or ""),
        str(header.get("SeriesDescription") or ""),
        folders[0],
        len(headers),
        size[2] if size else 0,
        size,
        spacing,
        "; ".join(" ".join(note.split()).rstrip(".") for note in notes),
        readable,
        len(folders) > 1,
    )


def choose_series(where: str | Path, found: Sequence[FoundSeries], wanted: str) -> FoundSeries:
    """Choose one series.

    Args:
        where: what errors name.
        found: of :func:`list_series`.
        wanted: SeriesInstanceUID, SeriesDescription (in any case), or ``"auto"``, which takes the only one that can be
            read as a volume of several slices.

    Returns:
        The series.

    Raises:
        InputError: where none or several fit.
    """
    wanted = str(wanted)  # a command line takes a description of digits for a number
    if wanted == AUTO:
        fitting = [series for series in found if series.readable and series.slices > 1]
        what = "can be read as volumes"
    else:
        fitting = [s for s in found if s.uid == wanted or s.description.casefold() == wanted.casefold()]
        what = f"are called {wanted!r}"
    if len(fitting) == 1:
        return fitting[0]
    shown = fitting or list(found)
    listed = ", ".join(f"{series.description or 'unnamed'} [{series.uid}]" for series in shown[:10])
    more = f" and {len(shown) - 10} more" if len(shown) > 10 else ""
    raise InputError(
        where,
        f"{len(fitting)} of {len(found)} series {what} ({listed}{more})",
        "Name one by its UID with the option series.",
    )


def find_series(folder: str | Path, wanted: str) -> list[FoundSeries]:
    """Choose one series of each study below a folder.

    Args:
        folder: as for :func:`list_series`.
        wanted: as for :func:`choose_series`. Studies in which nothing is so called are named in one warning.

    Returns:
        The chosen series, at least one.

    Raises:
        InputError: where no study has one, several of a study fit, or a chosen one cannot be read from one folder.
    """
    wanted = str(wanted)
    found, _ = list_series(folder)
    studies: dict[str, list[FoundSeries]] = defaultdict(list)
    for series in found:
        studies[series.study].append(series)
    fits = {s.study for s in found if wanted in (AUTO, s.uid) or s.description.casefold() == wanted.casefold()}
    if not fits:
        choose_series(folder, found, wanted)
    if without := len(studies) - len(fits):
        warnings.warn(f"{folder}: {without} of {len(studies)} studies have no series {wanted!r}.", stacklevel=3)
    return [choose_series(folder, studies[study], wanted) for study in studies if study in fits]


def series_columns(series: FoundSeries) -> dict[str, Any]:
    """The JSON-able row of a series in a table: no path, since folders are often called after patients.

    Args:
        series: of :func:`list_series`.
    """
    return {
        "uid": series.uid,
        "modality": series.modality,
        "description": series.description,
        "files": series.files,
        "slices": series.slices,
        "size": list(series.size),
        "spacing": list(series.spacing),
        "problem": series.problem,
    }
