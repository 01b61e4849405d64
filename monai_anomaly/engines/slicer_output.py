"""Files for 3D Slicer, as a transform of ``postprocessing``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from monai.transforms import Transform

from monai_anomaly.io.image_files import display_window
from monai_anomaly.io.slicer_out import open_in_slicer, write_segmentation
from monai_anomaly.metrics import lesion_table
from monai_anomaly.networks import AnomalyDetector

__all__ = ["SaveSlicerd"]

logger = logging.getLogger(__name__)


class SaveSlicerd(Transform):
    """Have ``SaveCased`` write what 3D Slicer needs to open the case of a volume.

    ``anomaly_mask.seg.nrrd`` has a segment for each lesion, ``scan.nii.gz`` is the scan (its first channel), and
    ``open_in_slicer.py`` shows all together. The folder can be taken to another machine. For 2-D images nothing is
    written, and the log says so.

    Args:
        network: the detector, whose calibration gives the lesions' p-values.
    """

    def __init__(self, network: AnomalyDetector) -> None:
        self.calibration = network.calibration

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        if data["scan"].meta["scan_kind"] == "image":
            logger.warning(f"{data['item']['case']}: no files for 3D Slicer, since it is a 2-D image.")
            return data
        return {
            **data,
            "extra_maps": {**data.get("extra_maps", {}), "scan": (data["scan"].as_tensor()[0].numpy(), "scan")},
            "case_files": [*data.get("case_files", ()), partial(self._write, data)],
        }

    def _write(self, data: Mapping[str, Any], case: Path) -> None:
        scan, anomaly_map, mask = data["scan"], data["anomaly_map"], data.get("anomaly_mask")
        affine = np.asarray(scan.affine, dtype=np.float64)
        if mask is not None:
            rows = lesion_table(anomaly_map, mask, affine, self.calibration.map_p_value)
            write_segmentation(case / "anomaly_mask.seg.nrrd", mask, affine, rows)
        low, high = display_window(scan[0].numpy())
        highest = float(anomaly_map.max())
        threshold = data.get("mask_settings", {}).get("threshold")
        top = 2 * threshold if threshold else highest or 1.0
        peak = np.unravel_index(int(anomaly_map.argmax()), anomaly_map.shape)
        place = affine[:3, :3] @ np.array(peak) + affine[:3, 3]
        # the lowest tenth of the colours is as good as black, and would hide the scan
        script = open_in_slicer(
            (low, high), (top / 10, top), max(highest, top), place.tolist(), data["reconstructs"] and len(scan) == 1
        )
        (case / "open_in_slicer.py").write_text(script, encoding="utf-8")
