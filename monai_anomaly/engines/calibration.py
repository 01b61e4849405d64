"""What a trained detector keeps of normals: scores of slices by place, and the calibration on held-out patients."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from monai_anomaly.calibration import ConformalCalibration, PlaceSums, ScanTail, scan_facts
from monai_anomaly.data import ScanPreprocessing
from monai_anomaly.data.slices import SliceDataset
from monai_anomaly.networks import AnomalyDetector

from .inferer import StackInferer, device_of, foreground_of, misfit, scan_loader

__all__ = ["calibrate", "fit_slice_statistics"]


@torch.no_grad()
def fit_slice_statistics(
    network: AnomalyDetector, dataset: SliceDataset, batch_size: int = 8, progress: bool = True
) -> None:
    """Fit ``network.slice_statistics`` over the training normals.

    Args:
        network: the trained detector, on the device to run on.
        dataset: the training slices.
        batch_size: slices in one forward pass.
        progress: show a progress bar.
    """
    from tqdm import tqdm

    if network.spatial_dims == 3:
        return  # volumes are scored whole
    network.eval()
    device = device_of(network)
    scans = []
    for images in tqdm(dataset.scans(), total=len(dataset.arrays), desc="normal slices", disable=not progress):
        parts = images.split(batch_size)
        scans.append(torch.cat([network.detect(part.to(device)).anomaly_score.float().cpu() for part in parts]))
    network.slice_statistics.fit(scans)


@dataclass
class _Gathered:
    """What the calibration normals gave, by patient."""

    items: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    maxima: dict[str, float] = field(default_factory=dict)
    tails: dict[str, list[ScanTail]] = field(default_factory=lambda: defaultdict(list))
    facts: dict[str, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))
    places: PlaceSums = field(default_factory=PlaceSums)
    failures: list[dict[str, str]] = field(default_factory=list)


def calibrate(
    network: AnomalyDetector,
    data: Sequence[dict[str, Any]],
    preprocessing: ScanPreprocessing,
    inferer: StackInferer | None = None,
    num_workers: int = 0,
    progress: bool = True,
) -> list[dict[str, str]]:
    """Fit ``network.calibration`` on held-out normals (see ``ConformalCalibration``).

    A detector with components has them calibrated first, on the same normals; each patient is then scored without its
    own part in the components' calibrations (see ``Ensemble``).

    Args:
        network: the trained detector, on the device to run on.
        data: the cohort's calibration items.
        preprocessing: as in training.
        inferer: how the detector is run.
        num_workers: processes that read ahead.
        progress: show a progress bar.

    Returns:
        The scans that could not be used, each ``{"case", "image", "error"}``.
    """
    return _calibrate(network, data, preprocessing, inferer or StackInferer(), num_workers, progress).failures


def _calibrate(
    network: AnomalyDetector,
    data: Sequence[dict[str, Any]],
    preprocessing: ScanPreprocessing,
    inferer: StackInferer,
    num_workers: int,
    progress: bool,
) -> _Gathered:
    from tqdm import tqdm

    network.eval()
    of_components = [
        (component, _calibrate(component, data, preprocessing, inferer, num_workers, progress))
        for component in network.components()
    ]
    gathered = _Gathered()
    scans = Counter(item["patient"] for item in data)
    loader = scan_loader(data, preprocessing, num_workers)
    for entry in tqdm(loader, total=len(data), desc="calibration", unit="scan", disable=not progress):
        item, patient = entry["item"], entry["item"]["patient"]
        problem = entry.get("error") or misfit(entry, network)
        if problem is not None:
            gathered.failures.append({"case": item["case"], "image": str(item["image"]), "error": problem})
            continue
        stack, tissue = entry["stack"], entry["tissue"]
        with _left_out(of_components, patient):
            output = inferer(stack, network, tissue)
        native = preprocessing.to_scan(output.anomaly_map, stack)[0].numpy()
        foreground = foreground_of(entry["scan"])
        gathered.items[patient].append(float(output.anomaly_score))
        gathered.maxima[patient] = max(gathered.maxima.get(patient, -np.inf), float(native.max()))
        gathered.tails[patient].append(ScanTail.of(native[foreground]))
        gathered.facts[patient].append(scan_facts(entry["scan"], foreground))
        gathered.places.add(output.anomaly_map, tissue, 1 / scans[patient], network.spatial_dims == 3)
    calibration = network.calibration
    calibration.fit({p: max(items) for p, items in gathered.items.items()}, gathered.maxima, gathered.items)
    calibration.tail.fit(gathered.tails)
    calibration.places.fit(gathered.places)
    calibration.facts.fit(gathered.facts)
    return gathered


@contextmanager
def _left_out(components: Sequence[tuple[AnomalyDetector, _Gathered]], patient: str) -> Iterator[None]:
    """Within, the components' calibrations are those of a new patient, for one that they were calibrated on."""
    kept = [component.calibration for component, _ in components]
    for component, gathered in components:
        full = component.calibration
        index = sorted(gathered.items).index(patient)
        # A score that no other reaches leaves the patient out of every count, and in the number of patients.
        own = full.item_patients == index
        left = ConformalCalibration().to(full.scores.device)
        left.fill(
            scores=full.scores,
            map_maxima=full.map_maxima,
            item_scores=full.item_scores.masked_fill(own, -torch.inf),
            item_patients=full.item_patients,
        )
        left.tail = full.tail.without(gathered.tails[patient], len(gathered.tails))
        component.calibration = left
    try:
        yield
    finally:
        for (component, _), calibration in zip(components, kept):
            component.calibration = calibration
