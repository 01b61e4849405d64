"""ProxyAno's ablation (Table IV, rows 1 to 8) on a cohort of your own, at equal budgets, beside an intensity threshold.

    python examples/table4_ablation.py COHORT OUT --rows 1 4 5 6 7 8 --seeds 0 1 2 --size 128 --steps 2000

Every row gets the same number of optimiser steps: rows with two modules spend half of them on each. Nothing is chosen
on the test set: each row is trained to its last step. One JSON line a row and seed is added to OUT/table4.jsonl; a row
that stands there already is not run again. Research use only, not for diagnosis.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from monai.data import DataLoader
from monai.networks.nets import PatchDiscriminator
from monai.utils import set_determinism

from monai_anomaly.data import Cohort, ScanPreprocessing, SliceDataset, load_cohort
from monai_anomaly.engines import (
    ImageReconstructionTrainer,
    ProxyExtractionTrainer,
    StackInferer,
    StageTrainer,
    fit_slice_statistics,
    save_detector,
    scan_loader,
    still_improving,
    train_stages,
)
from monai_anomaly.io import load_mask
from monai_anomaly.metrics import PixelMetrics, image_metrics
from monai_anomaly.networks import AnomalyDetector, IntensityThreshold, ProxyAno
from monai_anomaly.transforms import RandPseudoAbnormalProxyd, SuperpixelImage

# Table IV: memory, proxy bridge, repairing loss. Row 8 is row 7 with the latent score.
ROWS: dict[int, dict[str, Any]] = {
    1: {"memory": None, "bridge": False, "repair": False},
    2: {"memory": "shrinkage", "bridge": False, "repair": False},
    3: {"memory": "nearest", "bridge": False, "repair": False},
    4: {"memory": None, "bridge": True, "repair": False},
    5: {"memory": "nearest", "bridge": True, "repair": False},
    6: {"memory": None, "bridge": True, "repair": True},
    7: {"memory": "nearest", "bridge": True, "repair": True},
}


def evaluate(network: AnomalyDetector, cohort: Cohort, preprocessing: ScanPreprocessing) -> dict[str, Any]:
    """Image- and pixel-level metrics on the test scans; pixels on the scans' own grids."""
    pixels, labels, scores = PixelMetrics(), [], []
    inferer = StackInferer()
    network.eval()
    for entry in scan_loader(cohort.test, preprocessing):
        if "error" in entry:
            raise SystemExit(entry["error"])
        item, stack = entry["item"], entry["stack"]
        output = inferer(stack, network, entry["tissue"])
        anomaly_map = preprocessing.to_scan(output.anomaly_map, stack)[0].numpy()
        if item["mask"] is not None or item["label"] == 0:
            empty = torch.zeros(anomaly_map.shape, dtype=torch.bool).numpy()
            pixels.update(anomaly_map, empty if item["mask"] is None else load_mask(item["mask"], entry["scan"]))
        labels.append(item["label"])
        scores.append(float(output.anomaly_score))
    return {"image": image_metrics(labels, scores), "pixel": pixels.compute()}


def train(
    row: int, seed: int, given: argparse.Namespace, cohort: Cohort, folder: Path
) -> tuple[ProxyAno, list[dict], SliceDataset]:
    """One row of Table IV."""
    settings = ROWS[row]
    set_determinism(seed)
    proxy = SuperpixelImage() if settings["bridge"] else None
    common = {"transform": given.preprocessing, "proxy": proxy, "cache_dir": given.output / "cache", "num_workers": 2}
    dataset = SliceDataset(
        cohort.training,
        slice_transform=RandPseudoAbnormalProxyd(keys="proxy") if settings["repair"] else None,
        donors="other" if settings["repair"] else None,
        **common,
    )
    loader = DataLoader(dataset, batch_size=given.batch_size, shuffle=True, drop_last=True)
    validation = DataLoader(SliceDataset(cohort.calibration, **common, allow_empty=True), batch_size=given.batch_size)
    network = ProxyAno(
        in_channels=dataset.channels,
        channels=given.channels,
        memory=settings["memory"],
        bridge=settings["bridge"],
        score_space="image",
    ).to(given.device)
    steps = given.steps // 2 if settings["bridge"] else given.steps
    epochs = math.ceil(steps / len(loader))
    shared = {"network": network, "device": given.device, "max_epochs": epochs, "train_data_loader": loader}
    stages: list[StageTrainer] = [
        ProxyExtractionTrainer(
            optimizer=torch.optim.Adam(network.proxy_module.parameters(), 1e-3), val_data_loader=validation, **shared
        )
    ]
    if network.reconstruction_module is not None:
        discriminator = PatchDiscriminator(2, given.channels[0], network.in_channels).to(given.device)
        stages.append(
            ImageReconstructionTrainer(
                discriminator=discriminator,
                optimizer=torch.optim.Adam(network.reconstruction_module.parameters(), 1e-3),
                discriminator_optimizer=torch.optim.Adam(discriminator.parameters(), 1e-3),
                repair=settings["repair"],
                val_data_loader=validation,
                **shared,
            )
        )
    history = train_stages(
        stages, network, folder / "training", seed=seed, identity={"row": row, "steps": steps}, save_interval=10
    )
    fit_slice_statistics(network, dataset, given.batch_size)
    save_detector(folder / "models", network, given.preprocessing, {"row": row, "seed": seed, "steps": steps})
    return network, history, dataset


def main() -> None:
    """Run what is asked for and not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 7, 8], choices=range(9), help="0: intensity")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--channels", type=int, nargs=4, default=[64, 128, 256, 512])
    parser.add_argument("--steps", type=int, default=2000, help="optimiser steps of a row, over both of its modules")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--slice-axis", default="axial")
    parser.add_argument("--patient-regex")
    parser.add_argument("--percentiles", type=float, nargs=2, default=[0.5, 90.0])
    parser.add_argument("--headroom", type=float, default=1.6)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    given.preprocessing = ScanPreprocessing(
        (given.size, given.size), given.slice_axis, percentiles=given.percentiles, headroom=given.headroom
    )
    cohort = load_cohort(given.cohort, patient_regex=given.patient_regex)
    given.output.mkdir(parents=True, exist_ok=True)
    results = given.output / "table4.jsonl"
    lines = results.read_text().splitlines() if results.exists() else []
    done = {(line["row"], line["seed"]) for line in map(json.loads, lines)}

    def note(row: int, seed: int, **found: Any) -> None:
        line = {"row": row, "seed": seed, "size": given.size, "channels": given.channels, **found}
        with results.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)

    if 0 in given.rows and (0, 0) not in done:
        network: AnomalyDetector = IntensityThreshold(in_channels=1)
        note(0, 0, steps=0, **evaluate(network, cohort, given.preprocessing))
    for seed in given.seeds:
        for row in sorted(set(given.rows) - {0, 8} | ({7} if 8 in given.rows else set())):
            if (row, seed) in done:
                continue
            start = time.time()
            trained, history, dataset = train(row, seed, given, cohort, given.output / f"row{row}_seed{seed}")
            facts = {"steps": given.steps, "seconds": time.time() - start, "under_trained": still_improving(history)}
            note(row, seed, **facts, **evaluate(trained, cohort, given.preprocessing))
            if row == 7:
                trained.latent_score = True
                fit_slice_statistics(trained, dataset, given.batch_size)
                note(8, seed, **facts, **evaluate(trained, cohort, given.preprocessing))


if __name__ == "__main__":
    main()
