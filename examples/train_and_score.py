"""Train ProxyAno on a cohort's normal scans and score its test scans, from Python: what the bundle does.

python train_and_score.py COHORT OUTPUT [--epochs 100] [--size 256]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import PatchDiscriminator
from monai.utils import set_determinism
from torch.utils.data import DataLoader

from monai_anomaly.data import SliceDataset, load_cohort
from monai_anomaly.engines import (
    CohortEvaluator,
    DetectorTraining,
    ImageReconstructionTrainer,
    ProxyExtractionTrainer,
    load_detector,
    scan_loader,
)
from monai_anomaly.networks import ProxyAno
from monai_anomaly.transforms import RandPseudoAbnormalProxyd, ScanPreprocessing, SuperpixelImage


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, calibrate, save, score.

    Args:
        arguments: of the command line; None reads them from the process.

    Returns:
        The metrics of the test scans, image- and pixel-level.
    """
    parser = argparse.ArgumentParser(description="Research use only, not for diagnosis.")
    parser.add_argument("cohort", help="folder or datalist of the scans")
    parser.add_argument("output", type=Path, help="folder for the detector, the maps and the tables")
    parser.add_argument("--epochs", type=int, default=100, help="of each of the two stages")
    parser.add_argument("--size", type=int, default=256, help="rows and columns of a slice")
    given = parser.parse_args(arguments)
    set_determinism(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    cohort = load_cohort(given.cohort)
    preprocessing = ScanPreprocessing(image_size=(given.size, given.size))
    proxy = SuperpixelImage()
    paste = RandPseudoAbnormalProxyd("proxy", "donor", "pseudo_proxy", "paste_mask")
    slices = SliceDataset(cohort.training, preprocessing, proxy, paste, "other", cache_dir=given.output / "cache")
    loader = DataLoader(slices, batch_size=8, shuffle=True)

    channels = slices.channels
    network = ProxyAno(2, channels, proxy.proxy_channels(channels)).to(device)
    discriminator = PatchDiscriminator(2, channels=64, in_channels=channels, num_layers_d=3).to(device)
    modules = (network.proxy_module, network.reconstruction_module, discriminator)
    first, second, third = (torch.optim.Adam(m.parameters(), lr=0.001) for m in modules if m is not None)
    stages = [
        ProxyExtractionTrainer(network, device, given.epochs, loader, first),
        ImageReconstructionTrainer(network, discriminator, device, given.epochs, loader, second, third),
    ]
    training = DetectorTraining(network, stages, slices, cohort.calibration, given.output)
    training.run()
    training.finish()

    saved = load_detector(given.output / "models")
    scans = scan_loader(cohort.test, saved.preprocessing)
    evaluator = CohortEvaluator(saved.network, saved.preprocessing, scans, given.output, device, evaluate=True)
    evaluator.run()
    metrics = evaluator.finish()
    print(metrics)
    return metrics


if __name__ == "__main__":
    main()
