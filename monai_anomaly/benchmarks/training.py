"""One detector of a bundle, trained on images in memory."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from monai_anomaly.bundle import check_overrides, setup_process
from monai_anomaly.engines import StageTrainer, train_stages
from monai_anomaly.engines.inferer import device_of
from monai_anomaly.engines.training_data import ImageBatches
from monai_anomaly.networks import AnomalyDetector

from .images import ImageSetReader, Sides, batch_size_for, groups_of, training_data

__all__ = ["Trained", "build_detector", "merged_config", "train_detector", "weights_digest"]


@dataclass
class Trained:
    """A trained and fitted detector.

    Attributes:
        network: in eval mode, not yet calibrated.
        reader: of its images.
        stages: in order.
        history: see ``train_stages``.
    """

    network: AnomalyDetector
    reader: ImageSetReader
    stages: list[StageTrainer]
    history: list[dict[str, Any]]


def merged_config(files: Sequence[str | Path], overrides: Mapping[str, Any]) -> ConfigParser:
    """Config files of a bundle merged in their order, with overrides.

    Args:
        files: the first is a ``train.yaml``.
        overrides: by id, such as ``max_epochs`` or ``network_def#channels``.

    Raises:
        InputError: for an override that names nothing.
    """
    parser = ConfigParser(copy.deepcopy(_content(tuple(str(file) for file in files))))
    check_overrides(list(overrides), parser.config, " + ".join(Path(file).stem for file in files))
    parser.update(dict(overrides))
    return parser


@cache
def _content(files: tuple[str, ...]) -> dict[str, Any]:
    return ConfigParser.load_config_files(list(files))


def build_detector(
    parser: ConfigParser, sides: Sides, reader_of: Callable[[Sequence[int], int], ImageSetReader]
) -> tuple[AnomalyDetector, list[StageTrainer], ImageSetReader, Any]:
    """Network and stages of a config, with its ``data`` replaced by images.

    Args:
        parser: the merged config.
        sides: the normals.
        reader_of: from image size and channels to a reader.

    Returns:
        Network, stages, reader and the data.
    """
    size, channels = parser.get_parsed_content("image_size"), parser.get_parsed_content("in_channels")
    reader = reader_of(size, channels).fit(sides.training)
    proxy, transform, donors = (
        parser.get_parsed_content(name) if name in parser.config else None
        for name in ("proxy", "slice_transform", "donors")
    )
    data = training_data(
        reader.all(sides.training),
        reader.all(sides.held_out),
        (groups_of(sides.training), groups_of(sides.held_out)),
        parser.get_parsed_content("batch_size"),
        proxy,
        transform,
        donors,
        parser.get_parsed_content("device"),
    )
    parser["data"] = data
    network = parser.get_parsed_content("network")
    return network, parser.get_parsed_content("stages"), reader, data


def train_detector(
    parser: ConfigParser,
    sides: Sides,
    reader_of: Callable[[Sequence[int], int], ImageSetReader],
    folder: Path,
    *,
    seed: int,
    identity: Mapping[str, Any],
    val_interval: int = 1,
    save_interval: int = 1,
    watch: Callable[[AnomalyDetector, ImageSetReader, int], None] | None = None,
    progress: bool = False,
) -> Trained:
    """Train the stages of a config, and fit the statistics of the detector.

    Args:
        parser: the merged config.
        sides: the normals.
        reader_of: from image size and channels to a reader.
        folder: for the checkpoint and the loss curves; a training that was killed goes on from there.
        seed: of the training.
        identity: what makes this training this training.
        val_interval: epochs between validation losses.
        save_interval: epochs between checkpoints.
        watch: called after every epoch of the last stage with a copy of the detector, its statistics fitted, the
            reader, and the epoch; it can change nothing of the training.
        progress: show a bar over the epochs.
    """
    setup_process(seed)
    network, stages, reader, data = build_detector(parser, sides, reader_of)

    def fit(detector: AnomalyDetector) -> None:
        detector.eval()
        size = batch_size_for(reader.channels, reader.image_size)
        sides = (ImageBatches(part, size, device_of(detector)) for part in (data.train_dataset, data.val_dataset))
        with torch.no_grad():
            detector.fit_statistics(*sides)

    if watch is not None and stages:
        _watch_epochs(stages[-1], network, fit, lambda detector, epoch: watch(detector, reader, epoch))
    history: list[dict[str, Any]] = []
    if stages:
        history = train_stages(
            stages,
            network,
            folder,
            seed=seed,
            identity=dict(identity),
            val_interval=val_interval,
            save_interval=save_interval,
            progress=progress,
        )
    fit(network)
    return Trained(network, reader, stages, history)


def _watch_epochs(
    stage: StageTrainer,
    network: AnomalyDetector,
    fit: Callable[[AnomalyDetector], None],
    watch: Callable[[AnomalyDetector, int], None],
) -> None:
    """Have a stage show a copy of its detector after each epoch, with the random numbers as they were."""
    from ignite.engine import Events

    def look(engine: Any) -> None:
        device = device_of(network)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            detector = copy.deepcopy(network)
            fit(detector)
            watch(detector, engine.state.epoch)

    # Added when the stage starts, so as to come after what the stage itself does at the end of an epoch.
    stage.add_event_handler(Events.STARTED, lambda engine: engine.add_event_handler(Events.EPOCH_COMPLETED, look))


def weights_digest(network: AnomalyDetector) -> str:
    """SHA-256 of a detector: the names, shapes, types and values of its ``state_dict``."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(json.dumps([name, list(values.shape), str(values.dtype)]).encode())
        digest.update(values.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
