"""The whole training of a detector: stages, calibration, files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from monai_anomaly.data.content import content_hash
from monai_anomaly.data.slices import SliceDataset
from monai_anomaly.exceptions import InputError
from monai_anomaly.networks import AnomalyDetector
from monai_anomaly.transforms import ScanPreprocessing

from .detector_files import save_detector
from .inference import StackInferer, calibrate, fit_slice_statistics, raise_for_failures
from .stages import StageTrainer, first_process, train_stages

__all__ = ["DetectorTraining"]

logger = logging.getLogger(__name__)


class DetectorTraining:
    """Train a detector in stages, calibrate it on held-out normals, and write ``models/``.

    Args:
        network: the detector, on its device.
        stages: its trainers, in order.
        train_dataset: the training slices.
        calibration_data: the cohort's calibration items; never trained on.
        output_dir: gets ``models/`` and ``training/`` (checkpoint, loss curves).
        inferer: how the detector is run for calibration.
        volume_score: ``"standardised"``: each slice is compared with normal slices at its place in the stack (see
            ``SliceStatistics``); ``"maximum"``: the plain maximum over the slices.
        seed: of the whole run.
        resume: take up the last checkpoint.
        save_interval: epochs between checkpoints.
        val_interval: epochs between validation losses.
        num_workers: processes that read calibration scans ahead.
        progress: show progress bars.

    Raises:
        InputError: if the output folder cannot be written to, or the scans' channels or the slices' size do not fit the
            network.
    """

    def __init__(
        self,
        network: AnomalyDetector,
        stages: Sequence[StageTrainer],
        train_dataset: SliceDataset,
        calibration_data: Sequence[dict[str, Any]],
        output_dir: str | Path,
        inferer: StackInferer | None = None,
        volume_score: str = "standardised",
        seed: int = 0,
        resume: bool = True,
        save_interval: int = 1,
        val_interval: int = 1,
        num_workers: int = 0,
        progress: bool = True,
    ) -> None:
        from monai_anomaly.writers.atomic import ensure_writable

        self.network, self.stages, self.train_dataset = network, list(stages), train_dataset
        self.calibration_data = list(calibration_data)
        self.output_dir = Path(output_dir)
        self.inferer = inferer or StackInferer()
        if save_interval < 1 or val_interval < 1:
            raise ValueError(f"intervals are at least one epoch, got {save_interval} and {val_interval}")
        if volume_score not in ("standardised", "maximum"):
            raise ValueError(f"volume_score is 'standardised' or 'maximum', got {volume_score!r}")
        self.volume_score = volume_score
        self.seed, self.resume = seed, resume
        self.save_interval, self.val_interval = save_interval, val_interval
        self.num_workers, self.progress = num_workers, progress
        ensure_writable(self.output_dir)
        if train_dataset.channels != network.in_channels:
            raise InputError(
                train_dataset.data[0]["image"],
                f"the scans have {train_dataset.channels} channel(s), the network takes {network.in_channels}",
                f"Pass --in_channels {train_dataset.channels}.",
            )
        size, divisor = self.preprocessing.config["image_size"], network.size_divisor
        fitting = [-(-side // divisor) * divisor for side in size]
        if size != fitting:
            raise InputError(
                "image_size", f"is {size}, the network takes multiples of {divisor}", f'Pass --image_size "{fitting}".'
            )

    @property
    def preprocessing(self) -> ScanPreprocessing:
        """Of the training scans."""
        return self.train_dataset.transform

    def identity(self) -> dict[str, Any]:
        """What makes this training this training: data, network, preprocessing, proxy, batches and seed."""
        proxy = self.train_dataset.proxy
        return {
            "network": self.network.config,
            "preprocessing": self.preprocessing.config,
            "time_point": self.preprocessing.time_point,
            "proxy": None if proxy is None else proxy.config,
            "training_scans": sorted(self.train_dataset.hashes),
            "stages": [
                {
                    "stage": stage.stage,
                    "batch_size": getattr(stage.data_loader, "batch_size", None),
                    "optimizers": {
                        name: {k: v for k, v in optimizer.defaults.items() if isinstance(v, int | float | tuple)}
                        for name, optimizer in stage.optimizers.items()
                    },
                    "settings": {k: v for k, v in vars(stage).items() if isinstance(v, bool)},
                    "loss": _plain(getattr(stage, "loss_function", None)),
                }
                for stage in self.stages
            ],
            "donors": self.train_dataset.donors,
            "slice_transform": _plain(self.train_dataset.slice_transform),
            "seed": self.seed,
        }

    def run(self) -> list[dict[str, Any]]:
        """Train, calibrate, save.

        Returns:
            The loss history (see ``train_stages``).
        """
        identity = self.identity()
        history = train_stages(
            self.stages,
            self.network,
            self.output_dir / "training",
            seed=self.seed,
            identity=identity,
            resume=self.resume,
            save_interval=self.save_interval,
            val_interval=self.val_interval,
            progress=self.progress,
        )
        self.failures = list(self.train_dataset.failures)
        if first_process():
            if self.volume_score == "standardised":
                fit_slice_statistics(self.network, self.train_dataset, self.inferer.batch_size, self.progress)
            self.failures += calibrate(
                self.network, self.calibration_data, self.preprocessing, self.inferer, self.num_workers, self.progress
            )
            facts = {
                **identity,
                "epochs": [stage.state.max_epochs for stage in self.stages],
                "calibration_scans": sorted(
                    content_hash(item["image"])
                    for item in self.calibration_data
                    if item["case"] not in {failure["case"] for failure in self.failures}
                ),
            }
            save_detector(self.output_dir / "models", self.network, self.preprocessing, facts)
            logger.info(f"the detector is in {self.output_dir / 'models'}")
        return history

    def finish(self) -> None:
        """Report scans that could not be used.

        Raises:
            SystemExit: if there are any; the message lists them.
        """
        if first_process():
            from monai_anomaly.writers.tables import write_csv

            listed = self.output_dir / "training" / "failures.csv"
            if self.failures:
                write_csv(listed, self.failures, ["case", "image", "error"])
            raise_for_failures(self.failures, listed)


def _plain(thing: Any) -> Any:
    """The plain settings of a loss or transform, for telling two runs apart."""
    if thing is None:
        return None
    own = {k: v for k, v in vars(thing).items() if _is_plain(v) and not k.startswith("_")}
    parts = dict(thing.named_children()) if isinstance(thing, nn.Module) else {}
    inner = {k: v for k, v in vars(thing).items() if type(v).__module__.startswith("monai_anomaly")}
    return {
        "kind": type(thing).__name__,
        **own,
        **{name: _plain(part) for name, part in {**inner, **parts}.items()},
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(v) for v in value)
    return value is None or isinstance(value, bool | int | float | str)
