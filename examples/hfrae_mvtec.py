"""HFR-AE on images with pixel masks: image AUROC, pixel AUROC, pixel AP and PRO.

    python examples/hfrae_mvtec.py COHORT OUT --weights resnet18-f37072fd.pth --epochs 100

COHORT is one category of MVTec AD, or a folder ``train/normal``, ``test/normal``, ``test/abnormal``, ``test/masks``.
A tenth of the training patients (images, without ``--patient-regex``) is held out, for the validation curve alone:
the detector of the last epoch is tested, and nothing is chosen on test images. ``--scaling unit`` takes 8-bit
images as they are, divided by 255; ``foreground`` normalises each by its foreground, as the bundles do. Metrics are
of the maps at ``--size``. Research use only, not for diagnosis.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.utils import set_determinism
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from monai_anomaly.data import ScanPreprocessing, load_cohort
from monai_anomaly.engines import HFRAETrainer, fill_encoder, still_improving, train_stages
from monai_anomaly.metrics import PixelMetrics, image_metrics
from monai_anomaly.networks import HFRAE


class ImageSet(Dataset):
    """Images in memory.

    Args:
        items: of a cohort.
        size: rows and columns.
        channels: 1 or 3.
        scaling: ``"unit"`` or ``"foreground"``.
    """

    def __init__(self, items: Sequence[dict[str, Any]], size: int, channels: int, scaling: str) -> None:
        preprocessing = ScanPreprocessing((size, size))
        self.images: list[Tensor] = []
        for item in items:
            if scaling == "unit":
                with Image.open(item["image"]) as picture:
                    converted = picture.convert("L" if channels == 1 else "RGB")
                    array = np.asarray(converted.resize((size, size), Image.Resampling.BILINEAR), dtype=np.float32)
                self.images.append(torch.from_numpy(array / 255.0).reshape(size, size, channels).permute(2, 0, 1))
            else:
                stack = preprocessing.stack(preprocessing.load(item["image"])).as_tensor()
                self.images.append(stack[..., 0].contiguous())

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.images[index]}


def read_mask(item: dict[str, Any], size: int) -> np.ndarray:
    """The lesions of an image, shape (size, size), bool."""
    if item["mask"] is None:
        return np.zeros((size, size), dtype=bool)
    with Image.open(item["mask"]) as mask:
        binary = Image.fromarray((np.asarray(mask.convert("L")) > 0).astype(np.uint8))
        return np.asarray(binary.resize((size, size), Image.Resampling.NEAREST)) > 0


@torch.no_grad()
def evaluate(network: HFRAE, items: Sequence[dict[str, Any]], pictures: ImageSet) -> dict[str, Any]:
    """The metrics of the test images."""
    network.eval()
    device = network.encoder_source.device
    pixels, scores = PixelMetrics(), []
    for item, image in zip(items, pictures.images):
        output = network.detect(image[None].to(device))
        anomaly_map = output.anomaly_map[0, 0].cpu().numpy()
        mask = read_mask(item, anomaly_map.shape[0])
        pixels.update(anomaly_map, mask)
        scores.append(float(output.anomaly_score))
    return {"image": image_metrics([item["label"] for item in items], scores), "pixel": pixels.compute()}


def main() -> None:
    """Train, test, write ``results.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--weights", required=True, help="file in torchvision's format, or imagenet: download it")
    parser.add_argument("--encoder", default="resnet18", choices=["resnet18", "wide_resnet50_2"])
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=0.4)
    parser.add_argument("--cosine", action="store_true", help="lower the rate to 0 along a cosine; default: constant")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--channels", type=int, default=1, choices=[1, 3])
    parser.add_argument("--scaling", default="unit", choices=["unit", "foreground"])
    parser.add_argument("--level-weights", default="paper", choices=["paper", "mean"])
    parser.add_argument("--hidden-channels", type=int, nargs=3)
    parser.add_argument("--patient-regex")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    set_determinism(given.seed)

    cohort = load_cohort(
        given.cohort,
        patient_regex=given.patient_regex,
        calibration_fraction=0.0,
        validation_fraction=0.1,
        seed=given.seed,
    )
    sides = {
        side: ImageSet(items, given.size, given.channels, given.scaling)
        for side, items in (("train", cohort.training), ("val", cohort.validation), ("test", cohort.test))
    }
    network = HFRAE(
        in_channels=given.channels,
        encoder=given.encoder,
        hidden_channels=given.hidden_channels,
        level_weights=given.level_weights,
    )
    network = fill_encoder(network, given.weights, cache_dir=given.output / "weights").to(given.device)
    optimizer = torch.optim.SGD(network.decoder.parameters(), lr=given.learning_rate, momentum=0.9, weight_decay=1e-4)
    schedulers = [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, given.epochs)] if given.cosine else []
    trainer = HFRAETrainer(
        network,
        given.device,
        given.epochs,
        DataLoader(sides["train"], given.batch_size, shuffle=True),
        optimizer,
        val_data_loader=DataLoader(sides["val"], given.batch_size),
        lr_schedulers=schedulers,
    )
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(given).items()}
    start = time.time()
    # A run may go on for more epochs than it was first asked for, but for the schedule, which knows their number.
    identity = {k: v for k, v in settings.items() if k not in ("output", "device") and (k != "epochs" or given.cosine)}
    history = train_stages(
        [trainer], network, given.output, seed=given.seed, identity=identity, save_interval=5, progress=False
    )
    seconds = time.time() - start
    results = {
        **settings,
        "encoder_label": network.encoder_label,
        "num_train": len(sides["train"]),
        "num_val": len(sides["val"]),
        "steps": given.epochs * math.ceil(len(sides["train"]) / given.batch_size),
        "train_seconds": round(seconds, 1),
        "last_train_loss": history[-1]["train_loss"],
        "last_val_loss": history[-1]["val_loss"],
        "under_trained": still_improving(history),
        **evaluate(network, cohort.test, sides["test"]),
    }
    with open(given.output / "results.json", "w", encoding="utf-8") as file:
        json.dump(results, file, indent=2)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
