"""What a detector remembers of the cohort that it came from, and whether a scan was part of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from monai_anomaly.exceptions import InputError
from monai_anomaly.io.content import shown_digest
from monai_anomaly.io.series import describe_sources

from .cohort import SIDES, STRATA, Cohort

__all__ = ["describe_split", "seen_scans"]

# The sides whose scans a detector has taken something from.
_USED = ("training", "validation", "calibration")


def describe_split(cohort: Cohort, num_workers: int = 1) -> dict[str, Any]:
    """The split of a cohort as it is stored with a detector: no names of patients or files, and no labels.

    Args:
        cohort: whose files are there.
        num_workers: threads that read them.

    Returns:
        JSON-able: ``by`` (``"patient"``), what ``Cohort.split`` holds, ``dicom`` (of the training scans, see
        ``describe_sources``), and under ``sides`` for each side ``scans`` and ``patients`` (their numbers), ``strata``
        (the number of patients by site and scanner, where items have them) and ``digests`` (sorted; what each file that
        can be read shows, see ``shown_digest``).
    """
    sides: dict[str, Any] = {}
    for side in SIDES:
        items = getattr(cohort, side)
        sides[side] = {
            "scans": len(items),
            "patients": len({item["patient"] for item in items}),
            "strata": _strata(items, cohort.split.get("stratified_by") or STRATA),
            "digests": sorted({digest for digests in _digests(items, num_workers) for digest in digests}),
        }
    return {"by": "patient", **cohort.split, "sides": sides, "dicom": describe_sources(_scans(cohort.training))}


def _scans(items: Sequence[dict[str, Any]]) -> list[tuple[str, str | None]]:
    """Path and series of each file or folder."""
    return [
        (path, item.get("series"))
        for item in items
        for path in ([item["image"]] if isinstance(item["image"], str) else item["image"])
    ]


def seen_scans(split: Mapping[str, Any], data: Sequence[dict[str, Any]], num_workers: int = 1) -> list[dict[str, str]]:
    """The scans that a detector was trained, validated or calibrated with, by what their files show.

    Recompressed, renamed and losslessly converted files are recognised; resampled, rescaled or cropped ones, and a
    DICOM series converted to NIfTI, are not.

    Args:
        split: of ``describe_split``.
        data: a cohort's items.
        num_workers: threads that read the files.

    Returns:
        ``{"case", "image", "side"}`` of each such scan; one known file among its channels is enough.
    """
    side_of = {digest: side for side in _USED for digest in split["sides"][side]["digests"]}
    found = []
    for item, digests in zip(data, _digests(data, num_workers)):
        side = next((side_of[digest] for digest in digests if digest in side_of), None)
        if side is not None:
            found.append({"case": item["case"], "image": str(item["image"]), "side": side})
    return found


def _digests(items: Sequence[dict[str, Any]], num_workers: int) -> list[list[str]]:
    def of_scan(item: dict[str, Any]) -> list[str]:
        try:
            return [shown_digest(Path(path), series=series) for path, series in _scans([item])]
        except InputError:
            return []  # a scan that cannot be read is listed as such where it is used

    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        return list(pool.map(of_scan, items))


def _strata(items: Sequence[dict[str, Any]], keys: Sequence[str]) -> list[dict[str, Any]]:
    """Patients by the values of the keys; one with several values counts for each."""
    known = [key for key in keys if any(key in item for item in items)]
    if not known:
        return []
    pairs = {(item["patient"], tuple(str(item.get(key)) for key in known)) for item in items}
    counts = Counter(values for _, values in pairs)
    return [{**dict(zip(known, values)), "patients": count} for values, count in sorted(counts.items())]
