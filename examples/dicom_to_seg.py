"""From a DICOM series to a DICOM segmentation of its anomalies, in the same study.

python examples/dicom_to_seg.py OUT/models SERIES_FOLDER anomalies.dcm [--alpha 0.05]

Needs ``pip install "monai-anomaly[dicom]"`` and a detector that was calibrated on 1/alpha - 1 normal patients.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from monai_anomaly.engines import load_detector, predict
from monai_anomaly.io.dicom_out import DetectorIdentity, DicomSource, segmentation


def main(arguments: Sequence[str] | None = None) -> Path:
    """Predict and write.

    Args:
        arguments: of the command line; None reads them from the process.

    Returns:
        The segmentation's file.
    """
    parser = argparse.ArgumentParser(description="Research use only, not for diagnosis.")
    parser.add_argument("detector", type=Path, help="output folder of a training, or its folder models")
    parser.add_argument("series", type=Path, help="folder of one DICOM series")
    parser.add_argument("output", type=Path)
    parser.add_argument("--alpha", type=float, default=0.05, help="error rate of the mask")
    given = parser.parse_args(arguments)
    detector = load_detector(given.detector)
    found = predict(detector, given.series, alpha=given.alpha)
    if found.anomaly_mask is None:
        raise SystemExit("error: the detector is not calibrated, so that there is no mask")
    identity = DetectorIdentity(
        type(detector.network).__name__, detector.description["model_sha256"], {"alpha": f"{given.alpha:g}"}
    )
    made = segmentation(DicomSource(found.anomaly_map), found.anomaly_mask[0].numpy(), identity)
    made.save_as(given.output, enforce_file_format=True)
    print(f"{given.output}: {int(found.anomaly_mask.sum())} voxels, score {found.anomaly_score:.4g}, p {found.p_value}")
    return given.output


if __name__ == "__main__":
    main()
