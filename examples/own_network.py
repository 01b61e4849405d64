"""A network of your own in the contract of a detector: train it, calibrate it, score a scan with it.

python examples/own_network.py NORMALS OUT SCAN [--epochs 50] [--size 128]

All that is asked of a method is ``detect``: a map, a score and, where it has one, the image as it would be if it were
normal. Preprocessing, calibration, files and evaluation are then the same as for the methods of this package.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from monai.networks.nets import BasicUNet
from monai.utils import set_determinism
from torch import Tensor

from monai_anomaly.data.cohort import write_datalist
from monai_anomaly.engines import DetectorTraining, Prediction, ReconstructionTrainer, TrainingData, predict
from monai_anomaly.networks import AnomalyDetector, AnomalyOutput


class BlindSpot(AnomalyDetector):
    """Restores each pixel from a coarse copy of the image: what is not like normal tissue comes back wrong."""

    def __init__(self, spatial_dims: int = 2, in_channels: int = 1, shrink: int = 4) -> None:
        # sides of the input are multiples of this; BasicUNet halves them four times
        super().__init__(spatial_dims, in_channels, size_divisor=16 * shrink)
        self.shrink = shrink
        self.unet = BasicUNet(spatial_dims, in_channels, in_channels, features=(8, 8, 16, 16, 32, 8))

    def reconstruct(self, image: Tensor) -> Tensor:
        """What ``ReconstructionTrainer`` trains."""
        coarse = torch.nn.functional.interpolate(image, scale_factor=1 / self.shrink, mode="area")
        return self.unet(torch.nn.functional.interpolate(coarse, size=image.shape[2:]))

    def detect(self, image: Tensor) -> AnomalyOutput:
        """Map (B, 1, H, W), score (B,) and restoration (B, C, H, W) of a batch (B, C, H, W)."""
        self.check_input(image)
        restored = self.reconstruct(image)
        anomaly_map = (image - restored).abs().mean(dim=1, keepdim=True)
        return AnomalyOutput(anomaly_map, anomaly_map.flatten(1).mean(dim=1), restored)


def main(arguments: Sequence[str] | None = None) -> Prediction:
    """Train, calibrate, save, predict.

    Args:
        arguments: of the command line; None reads them from the process.

    Returns:
        What is found in the scan.
    """
    parser = argparse.ArgumentParser(description="Research use only, not for diagnosis.")
    parser.add_argument("normals", type=Path, help="folder of normal scans")
    parser.add_argument("output", type=Path, help="folder for the detector")
    parser.add_argument("scan", type=Path)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--size", type=int, default=128, help="rows and columns of a slice")
    given = parser.parse_args(arguments)
    set_determinism(0)
    cohort = given.output / "cohort.json"
    write_datalist(given.normals, cohort)
    data = TrainingData(cohort, image_size=(given.size, given.size))
    network = BlindSpot(2, data.train_dataset.channels)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.001)
    stage = ReconstructionTrainer(network, "cpu", given.epochs, data.train_loader, optimizer)
    training = DetectorTraining(network, [stage], data, given.output)
    training.run()
    training.finish()
    # the files name the network: its class must be defined, or named by an entry point, where they are read
    found = predict(given.output, given.scan, alpha=None)
    print(f"{given.scan}: score {found.anomaly_score:.4g}, p {found.p_value}; the detector is in {given.output}")
    return found


if __name__ == "__main__":
    main()
