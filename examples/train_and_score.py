"""Train ProxyAno on a cohort's normal scans and score its test scans, from Python: what the bundle does.

python train_and_score.py COHORT OUTPUT [--epochs 100] [--size 256] [--alpha 0.05]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from monai.networks.nets import PatchDiscriminator
from monai.transforms import Compose
from monai.utils import set_determinism

from monai_anomaly.engines import (
    CohortEvaluator,
    DetectorTraining,
    ImageReconstructionTrainer,
    LoadReferenced,
    MaskAboveThresholdd,
    MetricsHandler,
    PredictionsHandler,
    ProxyExtractionTrainer,
    PValued,
    ReportHandler,
    SaveCased,
    ToScanVoxelsd,
    TrainingData,
    load_detector,
    scan_loader,
)
from monai_anomaly.metrics import FigureTable
from monai_anomaly.networks import ProxyAno
from monai_anomaly.transforms import RandPseudoAbnormalProxyd, SuperpixelImage


def main(arguments: Sequence[str] | None = None) -> FigureTable:
    """Train, calibrate, save, score.

    Args:
        arguments: of the command line; None reads them from the process.

    Returns:
        The figures of the test scans.
    """
    parser = argparse.ArgumentParser(description="Research use only, not for diagnosis.")
    parser.add_argument("cohort", help="folder or datalist of the scans")
    parser.add_argument("output", type=Path, help="folder for the detector, the maps and the tables")
    parser.add_argument("--epochs", type=int, default=100, help="of each of the two stages")
    parser.add_argument("--size", type=int, default=256, help="rows and columns of a slice")
    parser.add_argument(
        "--alpha",
        type=lambda text: None if text == "none" else float(text),
        default=0.05,
        help="error rate of the masks, which needs 1/alpha - 1 calibration patients; none for no masks",
    )
    given = parser.parse_args(arguments)
    set_determinism(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    proxy = SuperpixelImage()
    data = TrainingData(
        given.cohort,
        image_size=(given.size, given.size),
        proxy=proxy,
        slice_transform=RandPseudoAbnormalProxyd("proxy", "donor", "pseudo_proxy", "paste_mask"),
        donors="other",
        cache_dir=given.output / "cache",
    )
    channels = data.train_dataset.channels
    network = ProxyAno(2, channels, proxy.proxy_channels(channels)).to(device)
    discriminator = PatchDiscriminator(2, channels=64, in_channels=channels, num_layers_d=3).to(device)
    modules = (network.proxy_module, network.reconstruction_module, discriminator)
    first, second, third = (torch.optim.Adam(m.parameters(), lr=0.001) for m in modules if m is not None)
    stages = [
        ProxyExtractionTrainer(network, device, given.epochs, data.train_loader, first),
        ImageReconstructionTrainer(network, discriminator, device, given.epochs, data.train_loader, second, third),
    ]
    training = DetectorTraining(network, stages, data, given.output)
    training.run()
    training.finish()

    saved = load_detector(given.output / "models")
    found = saved.network.to(device)
    evaluator = CohortEvaluator(
        found,
        scan_loader(data.cohort.test, saved.preprocessing),
        device,
        postprocessing=Compose(
            [
                LoadReferenced(),
                ToScanVoxelsd(saved.preprocessing),
                PValued(found),
                MaskAboveThresholdd(found, given.alpha),
                SaveCased(given.output),
            ]
        ),
        val_handlers=[
            PredictionsHandler(given.output, found),
            MetricsHandler(given.output, found, given.alpha, description=saved.description),
            ReportHandler(given.output, found, given.alpha, saved.description),
        ],
    )
    evaluator.run()
    evaluator.finish()
    figures = evaluator.state.evaluation.figures
    for level, metric in (("image", "auroc"), ("pixel", "ap")):
        print(level, metric, figures.value("ProxyAno", level, metric))
    return figures


if __name__ == "__main__":
    main()
