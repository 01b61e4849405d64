"""A PACS in the place of a folder: where scans come from, and where results go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monai.transforms import Transform

from monai_anomaly.io.dicom_web import fetch_series, store_files
from monai_anomaly.io.series import SeriesFit

__all__ = ["StoreDicomd", "scans_of"]


def scans_of(
    dataset_dir: str | Path | None,
    url: str | None,
    study: str | None,
    series: str | None,
    output_dir: str | Path,
    fit: SeriesFit,
) -> str | Path | None:
    """Where the scans of a run are.

    Args:
        dataset_dir: what the user names.
        url: of a DICOMweb service, whose series takes its place; None for none.
        study: UID.
        series: UID or description; None or ``"auto"``: the study has one scan that fits.
        output_dir: the series is kept in its folder ``dicom_web``.
        fit: of the detector.

    Returns:
        A folder, or ``dataset_dir`` as it is.

    Raises:
        InputError: as ``fetch_series`` does.
    """
    if not url:
        return dataset_dir
    return fetch_series(url, study or "", series, Path(output_dir) / "dicom_web", fit)


class StoreDicomd(Transform):
    """Store the DICOM results that ``SaveCased`` has written in a PACS.

    Args:
        url: of its DICOMweb service.
        output_dir: of the cases.

    Raises:
        InputError: at each scan, if the PACS does not take its results; they are on disk all the same.
    """

    def __init__(self, url: str, output_dir: str | Path) -> None:
        self.url, self.output_dir = url, Path(output_dir)

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        store_files(self.url, sorted((self.output_dir / data["item"]["case"] / "dicom").rglob("*.dcm")))
        return data
