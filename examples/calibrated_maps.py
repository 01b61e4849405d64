"""Does a calibrated map rank voxels better than the raw one? Measures a trained detector on a test side with masks.

    python examples/calibrated_maps.py OUT COHORT [--recalibrate] [--output FILE]

OUT is the ``output_dir`` of a training. Of the test scans with a mask, or of label 0, the average precision and AUROC
of the raw map, of -log10 p against normal tissue (``calibrated_map logp``) and of the z-score against normals at the
same place (``zscore``) are measured over all voxels. ``--recalibrate`` fits the calibration anew on the cohort's
calibration scans, for a detector that was trained with an older version.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from monai_anomaly.data import ScanPreprocessing, load_cohort
from monai_anomaly.engines import StackInferer, calibrate, load_detector, scan_loader
from monai_anomaly.io import load_mask
from monai_anomaly.metrics import PixelMetrics
from monai_anomaly.networks import AnomalyDetector, AnomalyOutput

MAPS = ("raw", "logp", "zscore")
KEYS = ("auroc", "ap", "aupro", "best_dice", "prevalence")


class MapMetrics:
    """Pixel metrics of a detector's raw and calibrated maps, scan by scan.

    Args:
        network: calibrated.
        preprocessing: of its scans.
    """

    def __init__(self, network: AnomalyDetector, preprocessing: ScanPreprocessing) -> None:
        self.network, self.preprocessing = network, preprocessing
        self.pixels = {name: PixelMetrics() for name in MAPS}
        self.scans = 0

    def update(self, entry: dict[str, Any], output: AnomalyOutput) -> None:
        """Take in a scan that has a mask, or is normal; another is passed over.

        Args:
            entry: of a ``ScanDataset``.
            output: of the detector on its stack.
        """
        item, stack, calibration = entry["item"], entry["stack"], self.network.calibration
        if not item.get("mask") and item.get("label") != 0:
            return
        raw = self.preprocessing.to_scan(output.anomaly_map, stack)[0].numpy()
        truth = np.zeros(raw.shape, dtype=bool)
        if item.get("mask"):
            truth = load_mask(item["mask"], entry["scan"], label=item["label"])
        z = calibration.places.z_score(output.anomaly_map, entry["tissue"], self.network.spatial_dims == 3)
        logp = calibration.tail.log_p(torch.from_numpy(raw)).numpy()
        logp[raw == 0] = 0
        for name, values in zip(MAPS, (raw, logp, self.preprocessing.to_scan(z, stack)[0].numpy())):
            self.pixels[name].update(values, truth)
        self.scans += 1

    def compute(self) -> dict[str, dict[str, Any]]:
        """By map the metrics; empty where no scan was measured."""
        if not self.scans:
            return {}
        found = {name: pixels.compute() for name, pixels in self.pixels.items()}
        return {name: {key: metrics[key] for key in KEYS} for name, metrics in found.items()}


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, write.

    Args:
        arguments: of the command line; None reads them from the process.

    Returns:
        What was written.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("training", type=Path, metavar="OUT")
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--patient-regex")
    parser.add_argument("--recalibrate", action="store_true")
    parser.add_argument("--output", type=Path, help="a JSON line is added to this file")
    given = parser.parse_args(arguments)
    detector = load_detector(given.training / "models")
    cohort = load_cohort(given.cohort, patient_regex=given.patient_regex)
    if given.recalibrate:
        calibrate(detector.network, cohort.calibration, detector.preprocessing, progress=False)
    metrics, inferer = MapMetrics(detector.network, detector.preprocessing), StackInferer()
    for entry in scan_loader(cohort.test, detector.preprocessing):
        if "error" in entry:
            raise SystemExit(f"error: {entry['item']['case']}: {entry['error']}")
        metrics.update(entry, inferer(entry["stack"], detector.network, entry["tissue"]))
    pixel = metrics.compute()
    found = {
        "network": type(detector.network).__name__,
        "calibration_patients": int(detector.network.calibration.scores.numel()),
        "scans": metrics.scans,
        "pixel": pixel,
    }
    for name, values in pixel.items():
        print(f"{name}: AP {values['ap']:.4f} (chance {values['prevalence']:.4f}), AUROC {values['auroc']:.4f}")
    if given.output is not None:
        with given.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
    return found


if __name__ == "__main__":
    main()
