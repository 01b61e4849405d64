"""Compare methods on one cohort: train each on the same normal scans, evaluate each on the same test scans.

python examples/compare_methods.py COHORT OUT [--epochs 50] [--size 128]

COHORT has ``train/normal``, ``test/normal``, ``test/abnormal`` and, for pixel figures, ``test/masks``. The table has a
line for each method, for two baselines, which each training fits beside its detector, and for plain statistics of the
images.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.transforms import Compose
from monai.utils import set_determinism

from monai_anomaly import engines
from monai_anomaly.metrics import FigureTable
from monai_anomaly.networks import AnomalyDetector, Autoencoder, DenoisingAutoencoder

# To add a method: its network for a number of channels, and its trainer.
METHODS: dict[str, tuple[Callable[[int], AnomalyDetector], type[engines.StageTrainer]]] = {
    "dae": (lambda channels: DenoisingAutoencoder(2, channels), engines.DenoisingTrainer),
    "autoencoder": (lambda channels: Autoencoder(2, channels), engines.ReconstructionTrainer),
}
FIGURES = (("image", "auroc"), ("image", "ap"), ("pixel", "auroc"), ("pixel", "ap"))


def evaluate(models: Path, data: engines.TrainingData, output: Path) -> FigureTable:
    """The figures of a trained detector and of the baselines beside it, on the test scans."""
    trained = engines.load_detector(models)
    network, preprocessing = trained.network, trained.preprocessing
    baselines = engines.load_baselines(models, trained, torch.device("cpu"))
    evaluator = engines.CohortEvaluator(
        network,
        engines.scan_loader(data.cohort.test, preprocessing),
        postprocessing=Compose(
            [
                engines.LoadReferenced(),
                engines.RunBaselinesd(baselines, preprocessing),
                engines.ToScanVoxelsd(preprocessing),
            ]
        ),
        val_handlers=[engines.MetricsHandler(output, network, None, baselines)],
        progress=False,
    )
    evaluator.run()
    evaluator.finish()
    return FigureTable(evaluator.state.evaluation.figures)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, evaluate, print.

    Args:
        arguments: of the command line; None reads them from the process.

    Returns:
        By detector its figures, by level and metric.
    """
    parser = argparse.ArgumentParser(description="Research use only, not for diagnosis.")
    parser.add_argument("cohort", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--patient-regex", help="its first group, found in a scan's path, is the patient")
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--size", type=int, default=128, help="rows and columns of a slice")
    given = parser.parse_args(arguments)
    found: dict[str, Any] = {}
    for name, (make, trainer) in METHODS.items():
        set_determinism(0)
        size = (given.size, given.size)
        data = engines.TrainingData(given.cohort, patient_regex=given.patient_regex, image_size=size)
        network = make(data.train_dataset.channels)
        optimizer = torch.optim.Adam(network.parameters(), lr=0.001)
        stage: Any = trainer
        stages = [stage(network, "cpu", given.epochs, data.train_loader, optimizer)]
        training = engines.DetectorTraining(network, stages, data, given.output / name)
        training.run()
        training.finish()
        for row in evaluate(given.output / name / "models", data, given.output / name):
            if (row.level, row.metric) in FIGURES and not row.group:
                found.setdefault(row.detector, {})[f"{row.level} {row.metric}"] = row
    for detector, figures in found.items():
        known = {name: row for name, row in figures.items() if row.value is not None}
        print(f"{detector}: {', '.join(f'{name} {row.value:.3f} (n={row.n})' for name, row in known.items())}")
    return found


if __name__ == "__main__":
    main()
