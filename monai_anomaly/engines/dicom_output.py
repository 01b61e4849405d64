"""DICOM results of a scan, as a transform of ``postprocessing``."""

from __future__ import annotations

import importlib.util
import logging
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from monai.transforms import Transform

from monai_anomaly.data.slices import describe_failure
from monai_anomaly.exceptions import InputError
from monai_anomaly.io.dicom_out import (
    MOST_LESIONS,
    DetectorIdentity,
    DicomSource,
    measurement_report,
    overlay_series,
    parametric_map,
    segmentation,
)
from monai_anomaly.io.slicer_out import numbered_lesions
from monai_anomaly.metrics import lesion_table
from monai_anomaly.networks import AnomalyDetector
from monai_anomaly.report.overlay import overlay_pictures

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["SaveDicomd"]

logger = logging.getLogger(__name__)


class SaveDicomd(Transform):
    """Have ``SaveCased`` write the results of a DICOM scan as DICOM too, in the folder ``dicom`` of its case.

    ``seg.dcm`` (the mask), ``map.dcm`` (the map), ``report.dcm`` (score and lesions) and ``overlay/`` (colour images):
    new series of the scan's study. The log says in one line what cannot be written and why; the rest is written.

    Args:
        network: the detector, whose calibration gives the lesions' p-values.
        description: of the detector (``DetectorFiles.description``).
        time_point: which volume of a series the scans are.

    Raises:
        InputError: if highdicom is not installed.
    """

    def __init__(self, network: AnomalyDetector, description: Mapping[str, Any], time_point: int | None = None) -> None:
        if importlib.util.find_spec("highdicom") is None:
            raise InputError("--dicom", "highdicom is not installed", 'pip install "monai-anomaly[dicom]".')
        self.name, self.calibration = type(network).__name__, network.calibration
        self.sha256, self.time_point = str(description["model_sha256"]), time_point

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "case_files": [*data.get("case_files", ()), partial(self._write, data)]}

    def _write(self, data: Mapping[str, Any], case: Path) -> None:
        name = data["item"]["case"]
        try:
            source = DicomSource(data["scan"], self.time_point)
        except InputError as error:
            logger.warning(f"{name}: no DICOM results: {error}")
            return
        settings, mask = data.get("mask_settings", {}), data.get("anomaly_mask")
        parameters = {key: settings[key] for key in ("rule", "alpha", "threshold") if settings.get(key) is not None}
        identity = DetectorIdentity(self.name, self.sha256, {key: f"{value}" for key, value in parameters.items()})
        threshold, highest = settings.get("threshold"), float(data["anomaly_map"].max())
        # of one detector all overlays have one scale: its middle is the threshold
        top = 2 * threshold if threshold else highest or 1.0
        described = f"Map of {self.name} over the scan, black 0, brightest {top:.4g}"
        if mask is not None:
            described += f"; outline: {settings.get('description', 'mask')}"
        folder = case / "dicom"
        folder.mkdir()

        def made(what: str, make: Callable[[], Any]) -> Any:
            try:
                return make()
            except Exception as error:
                # highdicom raises a dozen types for headers that it cannot carry over
                logger.warning(f"{name}: no DICOM {what}: {describe_failure(error)}")
                return None

        if mask is None:
            logger.warning(f"{name}: no DICOM segmentation and report: {settings.get('no_mask') or 'there is no mask'}")
        elif segments := made("segmentation", lambda: segmentation(source, mask, identity)):
            _save(segments, folder / "seg.dcm")
            if report := made("report", lambda: self._report(data, source, segments, identity)):
                _save(report, folder / "report.dcm")
        if found := made("parametric map", lambda: parametric_map(source, data["anomaly_map"], identity)):
            _save(found, folder / "map.dcm")

        def overlay() -> bool:
            (folder / "overlay").mkdir()
            pictures = overlay_pictures(data["scan"], data["anomaly_map"], mask, top)
            for image in overlay_series(source, pictures, identity, described):
                _save(image, folder / "overlay" / f"{image.InstanceNumber:04d}.dcm")
            return True

        if not made("overlay", overlay):
            shutil.rmtree(folder / "overlay", ignore_errors=True)

    def _report(
        self, data: Mapping[str, Any], source: DicomSource, segments: Dataset, identity: DetectorIdentity
    ) -> Dataset:
        affine = np.asarray(data["scan"].affine, dtype=np.float64)
        rows = lesion_table(data["anomaly_map"], data["anomaly_mask"], affine, self.calibration.map_p_value)
        if len(rows) > MOST_LESIONS:
            name = data["item"]["case"]
            logger.warning(f"{name}: the DICOM report lists the first {MOST_LESIONS} of {len(rows)} lesions.")
        numbers = numbered_lesions(data["anomaly_mask"], affine, rows)
        return measurement_report(source, segments, rows, numbers, data["anomaly_score"], data.get("p_value"), identity)


def _save(dataset: Dataset, path: Path) -> None:
    dataset.save_as(path, enforce_file_format=True)
