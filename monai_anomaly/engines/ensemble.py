"""From the folders of several trainings to one detector."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from monai_anomaly.data import ScanPreprocessing
from monai_anomaly.exceptions import InputError
from monai_anomaly.networks import Ensemble

from .detector_files import load_detector

__all__ = ["load_members"]


def load_members(folders: Sequence[str | Path], combine: str = "fisher") -> tuple[Ensemble, ScanPreprocessing]:
    """Join the detectors of several folders ``models/`` into an ``Ensemble``, which is then to be calibrated.

    Args:
        folders: each with ``model.pt`` and ``detector.json``.
        combine: see ``Ensemble``.

    Returns:
        The ensemble and the preprocessing that its members share.

    Raises:
        InputError: if a folder holds no detector, or its scans are prepared otherwise than those of the first.

    Example::

        ensemble, preprocessing = load_members(["one/models", "two/models"])
        calibrate(ensemble, cohort.calibration, preprocessing)
        save_detector("both/models", ensemble, preprocessing, {})
    """
    files = [load_detector(folder) for folder in folders]
    for folder, other in zip(folders[1:], files[1:]):
        one, two = files[0].preprocessing.config, other.preprocessing.config
        for name in one:
            if one[name] != two[name]:
                raise InputError(
                    folder, f"{name} is {two[name]}, of {folders[0]} {one[name]}", "Train all members alike."
                )
    try:
        return Ensemble.of([file.network for file in files], combine), files[0].preprocessing
    except ValueError as error:
        raise InputError(", ".join(map(str, folders)), str(error), "Train all members alike.") from error
