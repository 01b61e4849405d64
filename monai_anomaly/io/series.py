"""The DICOM series below a folder, as a PACS or a disc delivers them, and the choice of one."""

from __future__ import annotations

import logging
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from monai_anomaly.exceptions import InputError
from monai_anomaly.io.dicom import is_dicom_file, is_localizer, read_header, stack_affine, stack_slices

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = [
    "AUTO",
    "FoundSeries",
    "SeriesFit",
    "choose_series",
    "describe_sources",
    "find_series",
    "list_series",
    "scan_files",
    "series_columns",
]

logger = logging.getLogger(__name__)

# The name that chooses the only series that fits a detector.
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
        size: columns, rows and slices of one volume; empty where the files make no volume.
        spacing: mm along columns, rows and slices; empty likewise.
        problem: why it cannot be read as it is, or what to heed; empty for none.
        readable: whether it can be read as it is.
        scattered: whether its files lie in several folders.
        channels: values of a pixel.
        localizer: whether it says that it is one.
        derived: whether it says that it was computed from other images.
    """

    uid: str
    study: str
    modality: str
    description: str
    folder: Path
    files: int = 0
    size: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    problem: str = ""
    readable: bool = True
    scattered: bool = False
    channels: int = 1
    localizer: bool = False
    derived: bool = False

    @property
    def slices(self) -> int:
        """Of one volume; 0 where the files make none."""
        return self.size[2] if self.size else 0


class SeriesFit(NamedTuple):
    """What the scans of a detector are like.

    Attributes:
        channels: values of a voxel; None: any number.
        volumes: whether they have several slices; None: either.
        modalities: of DICOM; empty where they are not known.
    """

    channels: int | None = None
    volumes: bool | None = True
    modalities: tuple[str, ...] = ()

    def rules(self) -> dict[str, Callable[[FoundSeries], bool]]:
        """In a few words each, what a series has to be."""
        rules: dict[str, Callable[[FoundSeries], bool]] = {
            "readable": lambda series: series.readable,
            "no localizer": lambda series: not series.localizer,
        }
        if self.volumes is not None:
            form = "of several slices" if self.volumes else "a single image"
            rules[form] = lambda series: (series.slices > 1) == self.volumes
        if self.channels is not None:
            rules[f"of {self.channels} channel(s)"] = lambda series: series.channels == self.channels
        wanted = f"of modality {' or '.join(self.modalities)}" if self.modalities else "of a modality that is not known"
        rules[wanted] = lambda series: not self.modalities or series.modality in self.modalities
        return rules


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
    groups, others = _series_headers(Path(folder), nested)
    found = [_describe(uid, headers) for uid, headers in groups.items()]
    return sorted(found, key=lambda series: (series.study, series.description, series.uid)), others


def _series_headers(where: Path, nested: bool) -> tuple[dict[str, list[tuple[Path, Dataset]]], dict[str, int]]:
    """Files with their headers by series, and what else there is."""
    from pydicom.errors import InvalidDicomError

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
    return groups, dict(others)


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
        size,
        spacing,
        "; ".join(" ".join(note.split()).rstrip(".") for note in notes),
        readable,
        len(folders) > 1,
        int(header.get("SamplesPerPixel") or 1),
        is_localizer(header),
        "DERIVED" in (header.get("ImageType") or ()),
    )


def scan_files(path: Path, series: str | None = None) -> list[Path]:
    """The files that a scan is read from.

    Args:
        path: a file or folder.
        series: of a DICOM folder with several, the one that is meant (see ``choose_series``).

    Returns:
        The file itself; of a folder all its files, or those of the series.

    Raises:
        InputError: where not exactly one series is so called.
    """
    if not path.is_dir():
        return [path]
    if series is None:
        return sorted(file for file in path.iterdir() if file.is_file())
    groups, _ = _series_headers(path, nested=False)
    if series not in groups:
        series = choose_series(path, [_describe(uid, headers) for uid, headers in groups.items()], series)[0].uid
    return [file for file, _ in groups[series]]


def describe_sources(scans: Sequence[tuple[str, str | None]]) -> dict[str, Any] | None:
    """What the headers of DICOM scans say of their kind.

    Args:
        scans: of each the path and the series, as for ``scan_files``.

    Returns:
        JSON-able: ``modalities``, sorted, and ``volumes``, whether one of them has several slices; None where a scan
        is no readable DICOM, or there is none.
    """
    modalities, volumes = set(), False
    for path, series in scans:
        try:
            files = [file for file in scan_files(Path(path), series) if is_dicom_file(file)]
            header = read_header(files[0])
            modalities.add(str(header.Modality))
            volumes |= len(files) > 1 or int(header.get("NumberOfFrames") or 1) > 1
        except Exception:
            return None  # pydicom raises a dozen types; what is wrong is told where the scan is used
    return {"modalities": sorted(modalities), "volumes": volumes} if modalities else None


def choose_series(
    where: str | Path, found: Sequence[FoundSeries], wanted: str, fit: SeriesFit | None = None
) -> tuple[FoundSeries, str]:
    """Choose one series.

    Args:
        where: what errors name.
        found: of :func:`list_series`.
        wanted: SeriesInstanceUID, SeriesDescription (in any case), or ``"auto"``, which takes the only one that fits.
        fit: what fits; None: any volume of several slices. Of several that fit, those computed from others count only
            where there is no other.

    Returns:
        The series, and why it was taken.

    Raises:
        InputError: where none or several fit.
    """
    wanted, fit = str(wanted), fit or SeriesFit()  # a command line takes a description of digits for a number
    if wanted == AUTO:
        rules = fit.rules()
        fitting = [series for series in found if all(rule(series) for rule in rules.values())]
        originals = [series for series in fitting if not series.derived]
        words = ", ".join([*rules, *(["original"] if 0 < len(originals) < len(fitting) else [])])
        fitting = originals or fitting
        what, why = f"are {words}", f"the only one of {len(found)} that is {words}"
    else:
        fitting = [s for s in found if s.uid == wanted or s.description.casefold() == wanted.casefold()]
        what, why = f"are called {wanted!r}", "as asked for"
    if len(fitting) == 1:
        return fitting[0], why
    shown = fitting or list(found)
    listed = ", ".join(f"{series.description or 'unnamed'} [{series.uid}]" for series in shown[:10])
    more = f" and {len(shown) - 10} more" if len(shown) > 10 else ""
    problem = f"{len(fitting)} of {len(found)} series {what} ({listed}{more})"
    raise InputError(where, problem, "Name one by its UID or description with the option series.")


def find_series(folder: str | Path, wanted: str, fit: SeriesFit | None = None) -> list[FoundSeries]:
    """Choose one series of each study below a folder, and log which and why.

    Args:
        folder: as for :func:`list_series`.
        wanted: as for :func:`choose_series`. Studies in which nothing is so called are named in one warning.
        fit: as for :func:`choose_series`.

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
    chosen = []
    for study in (study for study in studies if study in fits):
        series, why = choose_series(folder, studies[study], wanted, fit)
        if series.scattered:
            raise InputError(folder, f"series {series.uid}: {series.problem}", "Put its files into one folder.")
        logger.info("Series %s (%s, %d slices): %s", series.uid, series.description, series.slices, why)
        chosen.append(series)
    return chosen


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
