"""What every detector is compared with: fitted where it is trained, loaded where it is evaluated."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import torch

from monai_anomaly.data.slices import SliceDataset
from monai_anomaly.exceptions import InputError
from monai_anomaly.networks import AnomalyDetector, IntensityThreshold, ZScore
from monai_anomaly.transforms import ScanPreprocessing

from .calibration import fit_slice_statistics
from .detector_files import load_detector, save_detector
from .training_data import ImageBatches

__all__ = ["fit_baselines", "forget_baselines", "load_baselines"]

logger = logging.getLogger(__name__)

_FOLDER = "baselines"
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
    dataset: SliceDataset,
    preprocessing: ScanPreprocessing,
    batch_size: int = 8,
    standardised: bool = True,
) -> None:
    """Fit a ``ZScore`` on the training normals and save it under ``baselines/zscore``; no random number is drawn.

    Two passes over the images, a batch at a time; it keeps two images of sums. Where the normals allow no fit, there
    is none, and a warning says why.

    Args:
        model_dir: the folder ``models`` of the detector that was trained on the same normals.
        dataset: the training normals.
        preprocessing: what they were made with.
        batch_size: images in a batch.
        standardised: compare slices with normal slices at their place, as the detector does (``SliceStatistics``).
    """
    size = dataset.arrays[0]["image"].shape[2:]
    network = ZScore(len(size), dataset.channels, [int(side) for side in size]).eval()
    try:
        network.fit_statistics(ImageBatches(dataset, batch_size, "cpu"), [])
    except ValueError as error:
        logger.warning(f"evaluations will have no z-score baseline beside the detector: {error}")
        return
    if standardised:
        fit_slice_statistics(network, dataset, batch_size, progress=False)
    facts = {"training_scans": sorted(dataset.hashes)}
    save_detector(Path(model_dir) / _ZSCORE, network, preprocessing, facts)


def load_baselines(model_dir: str | Path) -> dict[str, AnomalyDetector]:
    """What every detector has to beat, for the scans that one takes.

    Args:
        model_dir: its folder ``models``.

    Returns:
        By name, in eval mode, the intensity threshold and, where ``baselines/zscore`` holds one (folders of older
        versions and of ensembles have none) and the detector is none itself, the z-score of its training normals.

    Raises:
        InputError: if a file is unreadable, or the z-score is of scans that were prepared otherwise.
    """
    files = load_detector(model_dir)
    network, folder = files.network, Path(model_dir) / _ZSCORE
    found: dict[str, AnomalyDetector] = {
        "intensity threshold": IntensityThreshold(network.spatial_dims, network.in_channels).eval()
    }
    if folder.is_dir() and not isinstance(network, ZScore):
        baseline = load_detector(folder)
        if (baseline.preprocessing.config, baseline.network.in_channels) != (
            files.preprocessing.config,
            network.in_channels,
        ):
            raise InputError(
                folder,
                "is of scans that were prepared otherwise than the detector's",
                "Copy the folder models of one training as a whole, or delete this one.",
            )
        found["z-score"] = baseline.network
    return found
