"""One look at the test side of a problem, and what it says of a detector."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from monai_anomaly.calibration import least_normals
from monai_anomaly.data.published import ImageSet
from monai_anomaly.engines.inferer import device_of
from monai_anomaly.io.atomic import atomic_path
from monai_anomaly.metrics import (
    PixelMetrics,
    auroc,
    average_precision,
    bootstrap_intervals,
    image_metrics,
    video_metrics,
)
from monai_anomaly.networks import AnomalyDetector

from .images import ImageSetReader, groups_of, image_batches, resized_mask

__all__ = ["TestScores", "calibrate_images", "evaluate", "save_scores", "save_shown", "score_images"]


@dataclass
class TestScores:
    """What a detector says of each test image.

    Attributes:
        scores: shape (N,), float64.
        areas: shape (N,), the share of the image that the mask covers; None for a set without masks.
        pixels: the metrics of the maps against the masks; None for a set without masks.
    """

    __test__ = False  # for pytest, which takes it for a test

    scores: np.ndarray
    areas: np.ndarray | None = None
    pixels: dict[str, Any] | None = None


@torch.no_grad()
def calibrate_images(network: AnomalyDetector, reader: ImageSetReader, pictures: ImageSet) -> None:
    """Fit ``network.calibration`` on normals that nothing else was fitted on.

    Args:
        network: in eval mode.
        reader: of its images.
        images: the calibration normals; each group counts once.
    """
    device = device_of(network)
    items: dict[str, list[float]] = {}
    maxima: dict[str, float] = {}
    names = iter(groups_of(pictures))
    for batch in image_batches(pictures, reader):
        output = network.detect(batch.to(device))
        tops = output.anomaly_map.flatten(1).amax(1).float().cpu().tolist()
        for score, top in zip(output.anomaly_score.float().cpu().tolist(), tops):
            group = next(names)
            items.setdefault(group, []).append(score)
            maxima[group] = max(maxima.get(group, top), top)
    network.calibration.fit({group: max(scores) for group, scores in items.items()}, maxima, items)


@torch.no_grad()
def score_images(
    network: AnomalyDetector, reader: ImageSetReader, pictures: ImageSet, pixels: bool = True
) -> TestScores:
    """Score images, each once.

    Args:
        network: in eval mode.
        reader: of its images.
        images: the test side.
        pixels: measure the maps too, where the set has masks.
    """
    device = device_of(network)
    scores: list[float] = []
    metrics = PixelMetrics() if pixels and pictures.read_mask is not None else None
    areas: list[float] = []
    for batch in image_batches(pictures, reader):
        output = network.detect(batch.to(device))
        first = len(scores)
        scores += output.anomaly_score.double().cpu().tolist()
        if metrics is not None:
            for i, anomaly_map in enumerate(output.anomaly_map[:, 0].float().cpu().numpy(), start=first):
                mask = mask_of(pictures, i, anomaly_map.shape)
                areas.append(float(mask.mean()))
                metrics.update(anomaly_map, mask)
    if metrics is None:
        return TestScores(np.array(scores))
    return TestScores(np.array(scores), np.array(areas), metrics.compute())


def mask_of(pictures: ImageSet, index: int, size: tuple[int, ...]) -> np.ndarray:
    """The mask of an image on the grid of its map; nothing of a normal one."""
    if not pictures.labels[index] or pictures.read_mask is None:
        return np.zeros(size, dtype=bool)
    return resized_mask(pictures.read_mask(index), size)


def evaluate(
    found: TestScores, pictures: ImageSet, network: AnomalyDetector, *, video: bool, resamples: int, alpha: float = 0.05
) -> dict[str, Any]:
    """The metrics of the test side.

    Args:
        found: its scores.
        images: the test side.
        network: calibrated.
        video: the images are frames of clips.
        resamples: of the groups, for intervals; 0: no intervals.
        alpha: rate of false positives that the calibration is asked for.

    Returns:
        ``image``: see ``image_metrics``, with ``intervals``; ``decision``: the rate of false positives and of true
        ones at the calibrated threshold; ``pixel`` and ``video`` where the set has masks or clips. What is undefined
        is None, with its reason under ``undefined``.
    """
    labels, scores = pictures.labels.astype(int).tolist(), found.scores
    image: dict[str, Any] = image_metrics(labels, scores.tolist())
    image["intervals"] = None
    if resamples:
        drawn = bootstrap_intervals(
            groups_of(pictures),
            labels,
            scores.tolist(),
            {"auroc": lambda y, s: auroc(s, y), "ap": lambda y, s: average_precision(s, y)},
            n=resamples,
        )
        image["intervals"] = {name: drawn[name] for name in ("intervals", "undefined", "n", "level", "seed")}
    metrics: dict[str, Any] = {"image": image, "decision": _decision(found.scores, pictures.labels, network, alpha)}
    if found.pixels is not None:
        metrics["pixel"] = {
            name: found.pixels[name]
            for name in ("auroc", "ap", "aupro", "aupro_limit", "best_dice", "prevalence", "num_regions", "undefined")
        }
    if video:
        metrics["video"] = _video(scores, pictures)
    return metrics


def _decision(scores: np.ndarray, labels: np.ndarray, network: AnomalyDetector, alpha: float) -> dict[str, Any]:
    """What the calibrated threshold does to normals and to what is not."""
    groups = len(network.calibration.scores)
    result: dict[str, Any] = {"alpha": alpha, "calibration_groups": groups}
    rates = {"false_positive_rate": labels == 0, "true_positive_rate": labels == 1}
    if groups < least_normals(alpha):
        reason = f"alpha {alpha:g} needs {least_normals(alpha)} calibration groups, there are {groups}"
        return {**result, **dict.fromkeys(rates), "undefined": dict.fromkeys(rates, reason)}
    flagged = network.calibration.item_p_values(torch.from_numpy(scores).float()).cpu().numpy() <= alpha
    undefined = {name: "no such image" for name, chosen in rates.items() if not chosen.any()}
    values = {name: float(flagged[chosen].mean()) if chosen.any() else None for name, chosen in rates.items()}
    return {**result, **values, "undefined": undefined}


def _video(scores: np.ndarray, pictures: ImageSet) -> dict[str, Any]:
    clips = groups_of(pictures)
    try:
        found: dict[str, Any] = dict(video_metrics(scores, pictures.labels, clips))
    except ValueError as error:  # a clip of one frame, or with equal errors, cannot be scaled by itself
        reason = str(error)
        return {
            "auroc": auroc(scores, pictures.labels),
            "auroc_transductive": None,
            "undefined": {"auroc_transductive": reason},
        }
    return {**found, "undefined": {name: "a class is absent" for name, value in found.items() if value is None}}


def save_scores(path: Path, found: TestScores, pictures: ImageSet) -> None:
    """The scores of each image, with what ROC curves, break-downs and splits by group need.

    Args:
        path: the ``.npz`` to write.
        found: the scores.
        images: the test side.
    """
    columns: dict[str, np.ndarray] = {
        "names": np.array([str(name) for name in pictures.names]),
        "labels": pictures.labels.astype(np.int8),
        "scores": found.scores,
        "groups": np.array(groups_of(pictures)),
        "kinds": np.array([str(kind) for kind in pictures.kinds]),
        "positions": np.array([int(position) for position in pictures.positions], dtype=np.int64),
    }
    if found.areas is not None:
        columns["areas"] = found.areas
    _save(path, columns)


@torch.no_grad()
def save_shown(
    path: Path, network: AnomalyDetector, reader: ImageSetReader, pictures: ImageSet, scores: np.ndarray, count: int
) -> None:
    """The most normal and the most anomalous images of both classes, with maps, for montages.

    Args:
        path: the ``.npz`` to write.
        network: in eval mode.
        reader: of its images.
        images: the test side.
        scores: of each image.
        count: images of each of the four kinds.
    """
    chosen: list[int] = []
    for label in (0, 1):
        places = np.flatnonzero(pictures.labels == label)
        ranked = places[np.argsort(scores[places], kind="stable")]
        chosen += dict.fromkeys([*ranked[:count].tolist(), *ranked[::-1][:count].tolist()])
    part = pictures.take(chosen)
    device = device_of(network)
    images, maps, restorations = [], [], []
    for batch in image_batches(part, reader):
        output = network.detect(batch.to(device))
        images.append(_bytes(batch))
        maps.append(output.anomaly_map[:, 0].cpu().numpy().astype(np.float16))
        if output.restoration is not None:
            restorations.append(_bytes(output.restoration.float().cpu()))
    columns: dict[str, np.ndarray] = {
        "index": np.array(chosen),
        "labels": part.labels.astype(np.int8),
        "scores": scores[chosen],
        "images": np.concatenate(images),
        "maps": np.concatenate(maps),
    }
    if restorations:
        columns["restorations"] = np.concatenate(restorations)
    if part.read_mask is not None:
        size = columns["maps"].shape[1:]
        columns["masks"] = np.stack([mask_of(part, i, size) for i in range(len(part))])
    _save(path, columns)


def _save(path: Path, columns: dict[str, np.ndarray]) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **columns)  # type: ignore[arg-type]


def _bytes(images: torch.Tensor) -> np.ndarray:
    """Images (B, C, H, W) in [0, 1] as (B, H, W, C), uint8."""
    return (images.clamp(0, 1) * 255).round().byte().movedim(1, -1).numpy()
