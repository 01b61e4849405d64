"""The whole training of a detector: stages, calibration, files."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from monai.transforms import Compose, Transform
from torch import nn

from monai_anomaly.calibration import least_normals
from monai_anomaly.data import ScanPreprocessing
from monai_anomaly.data.split import describe_split
from monai_anomaly.exceptions import InputError
from monai_anomaly.io.atomic import ensure_writable
from monai_anomaly.io.content import content_hash
from monai_anomaly.io.lock import folder_lock
from monai_anomaly.io.tables import write_csv
from monai_anomaly.networks import AnomalyDetector

from .baselines import fit_baselines, forget_baselines
from .calibration import calibrate, fit_slice_statistics
from .detector_files import save_detector
from .evaluator import raise_for_failures
from .inferer import StackInferer
from .selection import SyntheticLesionSelection, selection_named
from .stages import StageTrainer, first_process, train_stages
from .training_data import ImageBatches, TrainingData

__all__ = ["DetectorTraining"]

logger = logging.getLogger(__name__)

# alpha of inference and evaluation where none is given.
_MASK_RATE = 0.05


class DetectorTraining:
    """Train a detector in stages, fit its normal statistics, calibrate it on held-out normals, and write ``models/``.

    What evaluations set beside it is fitted and calibrated last, on the same normals (see ``fit_baselines``).

    Args:
        network: the detector, on its device.
        stages: its trainers, in order; none for a detector that is fitted alone.
        data: what they train on.
        output_dir: gets ``models/`` and ``training/`` (checkpoint, loss curves).
        inferer: how the detector is run for calibration.
        volume_score: ``"standardised"``: each slice is compared with normal slices at its place in the stack (see
            ``SliceStatistics``); ``"maximum"``: the plain maximum over the slices.
        seed: of the whole run.
        resume: take up the last checkpoint.
        save_interval: epochs between checkpoints.
        val_interval: epochs between validation losses.
        select_by: ``"synthetic_lesions"``: of the states after every ``val_interval`` epochs of the last stage, the
            one whose maps find synthetic lesions in the validation normals best (see ``SyntheticLesionSelection``);
            None: the last.
        map_choices: settings of the trained detector's map, to choose from by synthetic lesions in the validation
            normals (see ``AnomalyDetector.choose_map``); without such normals, and for None, the network's own stay.
        num_workers: processes that read calibration scans ahead.
        progress: show progress bars.

    Raises:
        InputError: if the output folder cannot be written to, the scans' channels, dimensions or the slices' size do
            not fit the network, it or ``select_by`` needs held-out normals and there are none, or there is no epoch to
            select.
    """

    def __init__(
        self,
        network: AnomalyDetector,
        stages: Sequence[StageTrainer],
        data: TrainingData,
        output_dir: str | Path,
        inferer: StackInferer | None = None,
        volume_score: str = "standardised",
        seed: int = 0,
        resume: bool = True,
        save_interval: int = 1,
        val_interval: int = 1,
        select_by: str | None = None,
        map_choices: Sequence[Mapping[str, Any]] | None = None,
        num_workers: int = 0,
        progress: bool = True,
    ) -> None:
        self.network, self.stages, self.data = network, list(stages), data
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
        self.map_choices = [dict(choice) for choice in map_choices or ()]
        ensure_writable(self.output_dir)
        self._check_fit()
        self.selection = selection_named(
            select_by, data.held_out, data.train_dataset, self.inferer.batch_size, self.stages
        )
        if first_process():
            self._warn_of_few()

    def _warn_of_few(self) -> None:
        """Say before the training what the calibration patients cannot carry."""
        cohort, needed = self.data.cohort, least_normals(_MASK_RATE)
        patients = len({item["patient"] for item in cohort.calibration})
        if not patients:
            logger.warning(
                f"{cohort.root}: no normals are left for calibration: the detector will have no thresholds and write "
                "no masks. Raise calibration_fraction (two or more training patients), or list some under calibration."
            )
        elif patients < needed:
            logger.warning(
                f"{cohort.root}: {patients} calibration patient{'s' * (patients > 1)}: a mask at alpha {_MASK_RATE:g} "
                f"needs {needed}; the least rate is 1/{patients + 1}. Raise calibration_fraction, or list more under "
                "calibration."
            )

    def _check_fit(self) -> None:
        """Reject data that the network would only fail on after the training, or deep inside it."""
        network, size = self.network, self.preprocessing.config["image_size"]
        if len(size) != network.spatial_dims:
            raise InputError(
                "image_size",
                f"has {len(size)} numbers, the network {network.spatial_dims} dimensions",
                "Two for slices (spatial_dims 2), three for whole volumes (spatial_dims 3).",
            )
        divisor = network.size_divisor
        fitting = [-(-side // divisor) * divisor for side in size]
        if size != fitting:
            raise InputError(
                "image_size", f"is {size}, the network takes multiples of {divisor}", f'Pass --image_size "{fitting}".'
            )
        if network.needs_held_out and not self.data.cohort.validation:
            raise InputError(
                self.data.cohort.root,
                f"{type(network).__name__} needs validation patients, and there are none",
                "Pass --validation_fraction 0.1 (two or more training patients), or list them under validation.",
            )
        dataset = self.data.train_dataset
        if dataset.channels != network.in_channels:
            raise InputError(
                dataset.data[0]["image"],
                f"the scans have {dataset.channels} channel(s), the network takes {network.in_channels}",
                f"Pass --in_channels {dataset.channels}.",
            )

    @property
    def preprocessing(self) -> ScanPreprocessing:
        """Of the training scans."""
        return self.data.preprocessing

    def identity(self) -> dict[str, Any]:
        """What makes this training this training: data, network, preprocessing, proxy, batches and seed."""
        dataset = self.data.train_dataset
        # only where one is asked for: other checkpoints stay valid
        chosen = {} if self.selection is None else {"selection": {**self.selection.config, "every": self.val_interval}}
        return {
            **chosen,
            "network": self.network.config,
            "preprocessing": self.preprocessing.config,
            "time_point": self.preprocessing.time_point,
            "proxy": None if dataset.proxy is None else dataset.proxy.config,
            "training_scans": sorted(dataset.hashes),
            "stages": [
                {
                    "stage": stage.stage,
                    "batch_size": getattr(stage.data_loader, "batch_size", None),
                    "optimizers": {
                        name: {k: v for k, v in optimizer.defaults.items() if isinstance(v, int | float | tuple)}
                        for name, optimizer in stage.optimizers.items()
                    },
                    "lr_schedulers": [_plain(scheduler) for scheduler in stage.lr_schedulers],
                    "settings": {
                        k: v for k, v in vars(stage).items() if isinstance(v, bool | int | float | str) and k[0] != "_"
                    },
                    "loss": _plain(getattr(stage, "loss_function", None)),
                    "transforms": {k: _plain(v) for k, v in vars(stage).items() if isinstance(v, Transform)},
                }
                for stage in self.stages
            ],
            "donors": dataset.donors,
            "slice_transform": _plain(dataset.slice_transform),
            "seed": self.seed,
        }

    def run(self) -> list[dict[str, Any]]:
        """Train, calibrate, save.

        Returns:
            The loss history (see ``train_stages``).

        Raises:
            InputError: if another process trains into the output folder.
        """
        with folder_lock(self.output_dir / "training") if first_process() else nullcontext():
            return self._run()

    def _run(self) -> list[dict[str, Any]]:
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
            selection=self.selection,
            progress=self.progress,
        )
        dataset, calibration_data = self.data.train_dataset, self.data.cohort.calibration
        self.failures = list(dataset.failures)
        if self.data.cohort.validation:
            self.failures += self.data.val_dataset.failures
        if first_process():
            self._fit_statistics()
            choices = self._choices()
            if self.volume_score == "standardised":
                fit_slice_statistics(self.network, dataset, self.inferer.batch_size, self.progress)
            self.failures += calibrate(
                self.network, calibration_data, self.preprocessing, self.inferer, self.num_workers, self.progress
            )
            facts = {
                **identity,
                "selection": None if self.selection is None else self.selection.report(),
                "choices": choices,
                "split": describe_split(self.data.cohort, self.data.num_workers),
                "epochs": [stage.state.max_epochs for stage in self.stages],
                "validation_scans": sorted(self.data.val_dataset.hashes if self.data.cohort.validation else []),
                "calibration_scans": sorted(
                    content_hash(item["image"], item.get("series"))
                    for item in calibration_data
                    if item["case"] not in {failure["case"] for failure in self.failures}
                ),
            }
            models = self.output_dir / "models"
            forget_baselines(models)
            save_detector(models, self.network, self.preprocessing, facts)
            fit_baselines(
                models,
                self.network,
                dataset,
                self.preprocessing,
                calibration_data,
                self.inferer,
                self.volume_score == "standardised",
                self.num_workers,
                self.progress,
            )
            logger.info(f"the detector is in {models}")
        return history

    def _choices(self) -> dict[str, Any]:
        """What was chosen by synthetic lesions in validation normals: by the stages, and the settings of the map."""
        choices = {name: value for stage in self.stages for name, value in stage.choices().items()}
        if not self.map_choices:
            return choices
        held_out = self.data.held_out
        if held_out is None or not len(held_out):
            logger.warning("no validation normals: the map keeps its own settings (--validation_fraction 0.1)")
            return choices
        lesions = SyntheticLesionSelection(held_out, self.data.train_dataset, self.inferer.batch_size)
        rows = lesions.choose_map(self.network, self.map_choices)
        best = next(row for row in rows if row["chosen"])
        logger.info(f"settings of the map that find synthetic lesions best: {best}")
        return {**choices, "map": rows, "pixel_ap_of_chance": lesions.lesion_share}

    @torch.no_grad()
    def _fit_statistics(self) -> None:
        device = next(chain(self.network.parameters(), self.network.buffers())).device
        batch_size = self.inferer.batch_size
        self.network.eval()
        self.network.fit_statistics(
            ImageBatches(self.data.train_dataset, batch_size, device),
            ImageBatches(self.data.held_out, batch_size, device),
        )

    def finish(self) -> None:
        """Report scans that could not be used.

        Raises:
            SystemExit: if there are any; the message lists them.
        """
        if first_process():
            listed = self.output_dir / "training" / "failures.csv"
            if self.failures:
                write_csv(listed, self.failures, ["case", "image", "error"])
            raise_for_failures(self.failures, listed)


def _plain(thing: Any) -> Any:
    """The plain settings of a loss, transform or scheduler and of its parts, for telling two runs apart."""
    if thing is None:
        return None
    own = {k: v for k, v in vars(thing).items() if _is_plain(v) and not k.startswith("_")}
    parts = dict(thing.named_children()) if isinstance(thing, nn.Module) else {}
    ours = ("monai_anomaly", "monai.transforms")
    parts |= {k: v for k, v in vars(thing).items() if type(v).__module__.startswith(ours)}
    if isinstance(thing, Compose):
        parts |= {f"transform {i}": part for i, part in enumerate(thing.transforms)}
    return {"kind": type(thing).__name__, **own, **{name: _plain(part) for name, part in parts.items()}}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(v) for v in value)
    return value is None or isinstance(value, bool | int | float | str)
