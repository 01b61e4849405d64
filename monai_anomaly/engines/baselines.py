"""What every detector is compared with: fitted where it is trained, loaded where it is evaluated."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from monai_anomaly.data import ScanPreprocessing
from monai_anomaly.data.slices import SliceDataset
from monai_anomaly.exceptions import InputError
from monai_anomaly.networks import AnomalyDetector, IntensityThreshold, ZScore

from .calibration import calibrate, fit_slice_statistics
from .detector_files import DetectorFiles, load_detector, save_detector
from .inferer import StackInferer
from .training_data import ImageBatches

__all__ = ["fit_baselines", "forget_baselines", "load_baselines"]

logger = logging.getLogger(__name__)

_FOLDER = "baselines"
_INTENSITY = Path(_FOLDER) / "intensity"
_ZSCORE = Path(_FOLDER) / "zscore"


def forget_baselines(model_dir: str | Path) -> None:
    """Remove the baselines of an earlier training, which may have had other normals.

    Args:
        model_dir: the folder ``models``.
    """
    folder = Path(model_dir) / _FOLDER
    if folder.exists():
        shutil.rmtree(folder)


@torch.no_grad()
def fit_baselines(
    model_dir: str | Path,
    beside: AnomalyDetector,
    dataset: SliceDataset,
    preprocessing: ScanPreprocessing,
    calibration: Sequence[dict[str, Any]],
    inferer: StackInferer | None = None,
    standardised: bool = True,
    num_workers: int = 0,
    progress: bool = True,
) -> None:
    """Save what evaluations set beside a detector, calibrated on the same normals.

    ``baselines/intensity``: an ``IntensityThreshold``. ``baselines/zscore``: a ``ZScore`` of the training normals, two
    passes over the images, a batch at a time; it keeps two images of sums. Where the normals allow no fit, there is
    none, and a warning says why. A detector is not set beside one of its own class.

    Args:
        model_dir: the folder ``models`` of the detector that was trained on the same normals.
        beside: that detector.
        dataset: the training normals.
        preprocessing: what they were made with.
        calibration: the cohort's calibration items; none leaves the baselines without thresholds.
        inferer: how baselines are run.
        standardised: the z-score compares slices with normal slices at their place, as the detector does
            (``SliceStatistics``).
        num_workers: processes that read calibration scans ahead.
        progress: show progress bars.
    """
    inferer = inferer or StackInferer()
    size = [int(side) for side in dataset.arrays[0]["image"].shape[2:]]
    found: dict[Path, AnomalyDetector] = {}
    if not isinstance(beside, IntensityThreshold):
        found[_INTENSITY] = IntensityThreshold(len(size), dataset.channels)
    if not isinstance(beside, ZScore):
        z_score = ZScore(len(size), dataset.channels, size).eval()
        try:
            z_score.fit_statistics(ImageBatches(dataset, inferer.batch_size, "cpu"), [])
        except ValueError as error:
            logger.warning(f"evaluations will have no z-score baseline beside the detector: {error}")
        else:
            if standardised:
                fit_slice_statistics(z_score, dataset, inferer.batch_size, progress=False)
            found[_ZSCORE] = z_score
    for folder, network in found.items():
        # scans that fail here fail for the detector too, which reports them
        calibrate(network, calibration, preprocessing, inferer, num_workers, progress)
        facts = {"training_scans": sorted(dataset.hashes)}
        save_detector(Path(model_dir) / folder, network, preprocessing, facts)


def load_baselines(
    model_dir: str | Path, detector: DetectorFiles, device: torch.device | str = "cpu"
) -> dict[str, AnomalyDetector]:
    """What every detector has to beat, for the scans that one takes.

    Args:
        model_dir: its folder ``models``.
        detector: what ``load_detector`` gave for it.
        device: where the baselines go.

    Returns:
        By name, in eval mode, the intensity threshold and the z-score of its training normals, as ``fit_baselines``
        left them, but for those of the detector's own class. Folders of older versions and of ensembles hold none: the
        intensity threshold then has no calibration, and there is no z-score.

    Raises:
        InputError: if a file is unreadable, or a baseline is of scans that were prepared otherwise.
    """
    network = detector.network
    found: dict[str, AnomalyDetector] = {
        "intensity threshold": IntensityThreshold(network.spatial_dims, network.in_channels)
    }
    for name, place in (("intensity threshold", _INTENSITY), ("z-score", _ZSCORE)):
        folder = Path(model_dir) / place
        if not folder.is_dir():
            continue
        baseline = load_detector(folder)
        if (baseline.preprocessing.config, baseline.network.in_channels) != (
            detector.preprocessing.config,
            network.in_channels,
        ):
            raise InputError(
                folder,
                "is of scans that were prepared otherwise than the detector's",
                "Copy the folder models of one training as a whole, or delete this one.",
            )
        found[name] = baseline.network
    return {name: each.eval().to(device) for name, each in found.items() if type(each) is not type(network)}
