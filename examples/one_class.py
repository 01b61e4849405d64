"""Train a bundle's method on one class of MNIST, Fashion-MNIST or CIFAR-10 and tell the other classes from it.

python one_class.py BUNDLE DATA --set mnist --normal 8 --output OUT [--overlay NAME ...] [--options id=value ...]

DATA holds the published files (``train-images-idx3-ubyte.gz`` and so on, or ``data_batch_1`` ... of the Python version
of CIFAR-10). The network, the stages and the schedule are those of the bundle's ``train.yaml``; only its ``data`` are
replaced by the pictures, which are scaled to [0, 1] as a whole. Some training pictures of the class are held out for
the validation loss and for statistics of held-out normals. The test side is looked at once, at the end.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import json
import pickle
import platform
import struct
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser
from monai.data import DataLoader
from torch import Tensor
from torch.utils.data import Dataset

from monai_anomaly.bundle import check_overrides, setup_process
from monai_anomaly.engines import still_improving, train_stages
from monai_anomaly.metrics import image_metrics


def read_idx(path: Path) -> np.ndarray:
    """One file of MNIST's format."""
    with gzip.open(path) as file:
        dimensions = struct.unpack(">HBB", file.read(4))[2]
        shape = struct.unpack(f">{dimensions}I", file.read(4 * dimensions))
        return np.frombuffer(file.read(), np.uint8).reshape(shape)


def read_mnist(folder: Path) -> list[tuple[Tensor, np.ndarray]]:
    """Training and test side, each pictures (N, 1, 28, 28) in [0, 1] and labels (N,)."""
    sides = []
    for side in ("train", "t10k"):
        pictures = torch.from_numpy(read_idx(folder / f"{side}-images-idx3-ubyte.gz").copy())
        sides.append((pictures[:, None] / 255.0, read_idx(folder / f"{side}-labels-idx1-ubyte.gz")))
    return sides


def read_cifar10(folder: Path) -> list[tuple[Tensor, np.ndarray]]:
    """Training and test side, each pictures (N, 3, 32, 32) in [0, 1] and labels (N,)."""
    sides = []
    for names in ([f"data_batch_{i}" for i in range(1, 6)], ["test_batch"]):
        batches = [pickle.loads((folder / name).read_bytes(), encoding="bytes") for name in names]
        data = np.concatenate([np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32) for batch in batches])
        labels = np.concatenate([np.asarray(batch[b"labels"]) for batch in batches])
        sides.append((torch.from_numpy(data) / 255.0, labels))
    return sides


READERS = {"mnist": read_mnist, "fashion_mnist": read_mnist, "cifar10": read_cifar10}


class Pictures(Dataset):
    """Pictures (N, C, H, W) as dictionaries, with a random transform of the training side."""

    def __init__(self, images: Tensor, transform: Any = None) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = {"image": self.images[index], "proxy": self.images[index]}  # each its own proxy, as in SliceDataset
        return item if self.transform is None else self.transform(item)

    def set_random_state(self, seed: int) -> None:
        """Seed the random transform."""
        if hasattr(self.transform, "set_random_state"):
            self.transform.set_random_state(seed)


def picture_data(training: Tensor, held_out: Tensor, batch_size: int, transform: Any) -> SimpleNamespace:
    """What ``train.yaml`` takes for ``data``."""
    train, validation = Pictures(training, transform), Pictures(held_out)
    return SimpleNamespace(
        train_dataset=train,
        val_dataset=validation,
        train_loader=DataLoader(train, batch_size=batch_size, shuffle=True, drop_last=True),
        val_loader=DataLoader(validation, batch_size=256),
    )


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, score, write ``OUT/result.json``.

    Args:
        arguments: of the command line; None reads them from the process.

    Returns:
        What was written.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--set", choices=READERS, required=True)
    parser.add_argument("--normal", type=int, required=True, help="the class that is normal")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--overlay", nargs="*", default=[], help="config files of the bundle, laid over train.yaml")
    parser.add_argument("--options", nargs="*", default=[], metavar="id=value", help="as on the bundle's command line")
    parser.add_argument("--size", type=int, help="resize the pictures to this many rows and columns")
    parser.add_argument("--train-limit", type=int, help="train on the first so many pictures of the class")
    parser.add_argument("--test-limit", type=int, help="test on the first so many pictures")
    parser.add_argument("--held-out", type=float, default=0.1, help="share of the class's training pictures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--val-interval", type=int, default=1)
    given = parser.parse_args(arguments)

    (pictures, labels), (test, test_labels) = READERS[given.set](given.data)
    normals = pictures[torch.from_numpy(np.flatnonzero(labels == given.normal))][: given.train_limit]
    test, test_labels = test[: given.test_limit], test_labels[: given.test_limit]
    if given.size:
        normals, test = (_resized(images, given.size) for images in (normals, test))
    order = torch.from_numpy(np.random.default_rng(given.seed).permutation(len(normals)))
    held = round(given.held_out * len(normals))

    overrides = {"progress": True, "seed": given.seed, "in_channels": normals.shape[1]}
    overrides |= {name: _literal(value) for name, _, value in (option.partition("=") for option in given.options)}
    files = [str(given.bundle / "configs" / f"{name}.yaml") for name in ("train", *given.overlay)]
    parser_ = ConfigParser()
    parser_.read_config(files)
    check_overrides(list(overrides), parser_.config, " + ".join(given.overlay or ["train"]))
    if "image_size" not in overrides:
        overrides["image_size"] = list(normals.shape[2:])
    parser_.update(overrides)
    setup_process(given.seed)
    transform, batch_size = (parser_.get_parsed_content(name) for name in ("slice_transform", "batch_size"))
    data = picture_data(normals[order[held:]], normals[order[:held]], batch_size, transform)
    parser_["data"] = data
    network = parser_.get_parsed_content("network")
    stages = parser_.get_parsed_content("stages")
    device = next(network.parameters()).device

    start = time.process_time()
    history = train_stages(stages, network, given.output, seed=given.seed, val_interval=given.val_interval)
    seconds = time.process_time() - start
    network.eval()
    with torch.no_grad():
        network.fit_statistics(
            *([part.to(device) for part in side.images.split(256)] for side in (data.train_dataset, data.val_dataset))
        )
        scores = torch.cat([network.detect(part.to(device)).anomaly_score.cpu() for part in test.split(256)])
    result = {
        "bundle": given.bundle.name,
        "overlays": given.overlay,
        "set": given.set,
        "normal": given.normal,
        "options": given.options,
        "seed": given.seed,
        "training_pictures": len(normals) - held,
        "held_out_pictures": held,
        "test_pictures": len(test),
        "stages": [
            {"stage": stage.stage, "epochs": stage.state.max_epochs, "steps": stage.state.iteration} for stage in stages
        ],
        "under_trained": still_improving(history),
        "image": image_metrics((test_labels != given.normal).astype(int).tolist(), scores.tolist()),
        "training_cpu_seconds": round(seconds),
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} thread(s), {device}",
        "command": _command(arguments or sys.argv[1:], {str(given.data): "DATA", str(given.output): "OUT"}),
    }
    (given.output / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return result


def _resized(images: Tensor, size: int) -> Tensor:
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False).clamp(0, 1)


def _command(arguments: Sequence[str], places: dict[str, str]) -> str:
    """The command line, without where things lie here."""
    return " ".join(["python", "examples/one_class.py", *(places.get(argument, argument) for argument in arguments)])


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


if __name__ == "__main__":
    main()
