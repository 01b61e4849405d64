"""Score the scans of a folder with a trained detector: a map and a mask each, and one table.

python examples/score.py OUT/models SCANS RESULTS [--alpha 0.05]
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import nibabel

from monai_anomaly.data import load_cohort
from monai_anomaly.engines import load_detector, predict


def main(arguments: Sequence[str] | None = None) -> Path:
    """Predict each scan and write what is found.

    Args:
        arguments: of the command line; None reads them from the process.

    Returns:
        The table, a row a scan.
    """
    parser = argparse.ArgumentParser(description="Research use only, not for diagnosis.")
    parser.add_argument("detector", type=Path, help="output folder of a training, or its folder models")
    parser.add_argument("scans", type=Path, help="folder of scans, or one scan")
    parser.add_argument("results", type=Path)
    parser.add_argument("--alpha", type=float, help="error rate of the masks; without it there are none")
    given = parser.parse_args(arguments)
    given.results.mkdir(parents=True, exist_ok=True)
    detector = load_detector(given.detector)
    table = given.results / "scores.csv"
    with table.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["case", "anomaly_score", "p_value", "flagged_voxels"])
        for item in load_cohort(given.scans).test:
            found = predict(detector, item["image"], alpha=given.alpha)
            affine = found.anomaly_map.affine.numpy()
            for name, volume in (("map", found.anomaly_map), ("mask", found.anomaly_mask)):
                if volume is not None:
                    image = nibabel.Nifti1Image(volume[0].float().numpy(), affine)
                    nibabel.save(image, given.results / f"{item['case']}_{name}.nii.gz")
            flagged = "" if found.anomaly_mask is None else int(found.anomaly_mask.sum())
            rows.writerow([item["case"], found.anomaly_score, found.p_value, flagged])
    return table


if __name__ == "__main__":
    main()
