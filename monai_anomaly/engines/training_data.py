"""From a cohort of normals to what a training takes: slices to learn from, and normals held out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from monai.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from monai_anomaly.data import ScanPreprocessing
from monai_anomaly.data.cohort import Cohort, check_cohort, load_cohort
from monai_anomaly.data.slices import SliceDataset
from monai_anomaly.exceptions import InputError

__all__ = ["ImageBatches", "TrainingData", "cohort_slices"]


class TrainingData:
    """The data of a training, made when they are first asked for.

    Args:
        dataset_dir: where the cohort is (see ``load_cohort``, as for the next five), or a cohort as it stands.
        patient_regex: finds the patient in a scan's path.
        calibration_fraction: share of the training patients held out for calibration.
        validation_fraction: share of the remaining ones held out for the validation loss and for statistics of
            held-out normals; with 0 the calibration normals give the validation loss, and nothing is fitted on them
            but the calibration.
        stratify_by: keys of the cohort's items; each combination of their values is drawn from alike.
        seed: chooses the patients, and the order under several processes.
        image_size: see ``ScanPreprocessing``, as for the next seven.
        slice_axis: the axis that volumes are cut along.
        spacing: pixel spacing in mm.
        tiles: patches per slice.
        percentiles: of the foreground.
        headroom: above the upper one.
        least_tissue: of a slice that counts.
        time_point: which volume of a 4-D scan.
        proxy: see ``SliceDataset``, as for the next two.
        slice_transform: random transform of the training slices.
        donors: where pasted patches come from.
        batch_size: slices in a batch.
        cache_dir: folder of the prepared slices; None keeps them in memory.
        num_workers: threads that prepare scans.
        progress: show progress bars.

    Raises:
        InputError: as ``load_cohort`` and ``SliceDataset`` do.
    """

    def __init__(
        self,
        dataset_dir: str | Path | Cohort,
        *,
        patient_regex: str | None = None,
        calibration_fraction: float = 0.2,
        validation_fraction: float = 0.0,
        stratify_by: Sequence[str] = ("site", "scanner"),
        seed: int = 0,
        image_size: Sequence[int] = (256, 256),
        slice_axis: str = "axial",
        spacing: float | None = None,
        tiles: Sequence[int] = (1, 1),
        percentiles: Sequence[float] = (0.5, 90.0),
        headroom: float = 1.6,
        least_tissue: float = 0.1,
        time_point: int | None = None,
        proxy: Any = None,
        slice_transform: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        donors: str | None = None,
        batch_size: int = 8,
        cache_dir: str | Path | None = None,
        num_workers: int = 1,
        progress: bool = True,
    ) -> None:
        self.dataset_dir, self.patient_regex = dataset_dir, patient_regex
        self.calibration_fraction, self.validation_fraction = calibration_fraction, validation_fraction
        self.stratify_by, self.seed, self.batch_size = stratify_by, seed, batch_size
        self.proxy, self.slice_transform, self.donors = proxy, slice_transform, donors
        self.cache_dir, self.num_workers, self.progress = cache_dir, num_workers, progress
        self.preprocessing = ScanPreprocessing(
            image_size, slice_axis, spacing, tiles, percentiles, least_tissue, headroom, time_point
        )

    @cached_property
    def cohort(self) -> Cohort:
        """Which scans train, validate and calibrate."""
        if isinstance(self.dataset_dir, Cohort):
            check_cohort(self.dataset_dir)
            return self.dataset_dir
        return load_cohort(
            self.dataset_dir,
            patient_regex=self.patient_regex,
            calibration_fraction=self.calibration_fraction,
            validation_fraction=self.validation_fraction,
            stratify_by=self.stratify_by,
            seed=self.seed,
        )

    @cached_property
    def train_dataset(self) -> SliceDataset:
        """The training slices, with the random transform."""
        return self._slices(self.cohort.training, slice_transform=self.slice_transform, donors=self.donors)

    @cached_property
    def val_dataset(self) -> SliceDataset:
        """The slices that the validation loss is of; empty where nothing is held out."""
        return self._slices(self.cohort.validation or self.cohort.calibration, allow_empty=True)

    @property
    def held_out(self) -> SliceDataset | None:
        """The slices of patients neither trained on nor calibrated with; None without validation patients."""
        return self.val_dataset if self.cohort.validation else None

    @cached_property
    def train_loader(self) -> DataLoader:
        """Shuffled batches, shared out among the processes where there are several."""
        sampler: DistributedSampler | None = None
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            sampler = DistributedSampler(self.train_dataset, shuffle=True, seed=self.seed)
        return DataLoader(
            self.train_dataset, batch_size=self.batch_size, shuffle=sampler is None, sampler=sampler, num_workers=0
        )

    @cached_property
    def val_loader(self) -> DataLoader:
        """Batches of ``val_dataset``, in order."""
        return DataLoader(self.val_dataset, batch_size=self.batch_size, num_workers=0)

    def _slices(self, items: Sequence[dict[str, Any]], **options: Any) -> SliceDataset:
        return SliceDataset(
            items,
            self.preprocessing,
            self.proxy,
            cache_dir=self.cache_dir,
            num_workers=self.num_workers,
            progress=self.progress,
            **options,
        )


def cohort_slices(prepared: TrainingData, side: str, data: Any) -> SliceDataset:
    """The slices of one side, as the model zoo's configs name them: ``train#dataset`` and ``validate#dataset``.

    Args:
        prepared: the data of the training.
        side: ``"training"`` or ``"validation"``.
        data: what they are made from, as the zoo's ``dataset#data``; only ``prepared``'s own will do.

    Raises:
        InputError: for other data. MONAI Label puts its labelled scans there, and a detector trains on normal ones.
    """
    if data != prepared.dataset_dir:
        problem = "a list of labelled scans is no cohort: a detector trains on normal scans, split by patient"
        remedy = "Train by monai.bundle run with --dataset_dir, then package the result (docs/monai_label.md)."
        raise InputError(f"{side} data", problem, remedy)
    return prepared.train_dataset if side == "training" else prepared.val_dataset


class ImageBatches:
    """Goes through the images of a dataset without their random transform, as often as asked.

    Args:
        dataset: the slices; None: nothing.
        batch_size: images in a batch.
        device: where the batches go.
    """

    def __init__(self, dataset: SliceDataset | None, batch_size: int, device: torch.device | str) -> None:
        self.dataset, self.batch_size, self.device = dataset, batch_size, device

    def __iter__(self) -> Iterator[torch.Tensor]:
        for images in () if self.dataset is None else self.dataset.scans():
            for part in images.split(self.batch_size):
                yield part.to(self.device)
