"""Train a detector on a folder of normal scans: a denoising autoencoder on axial slices or 2-D images.

python examples/train.py NORMALS OUT [--patient-regex '(sub-[0-9]+)'] [--epochs 50] [--size 128]

A fifth of the patients is held out to calibrate scores and masks. The detector is in OUT/models; ``score.py`` takes it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from monai.utils import set_determinism

from monai_anomaly.data.cohort import write_datalist
from monai_anomaly.engines import DenoisingTrainer, DetectorTraining, TrainingData, load_detector
from monai_anomaly.networks import DenoisingAutoencoder


def main(arguments: Sequence[str] | None = None) -> Path:
    """Describe the folder as a cohort, train, calibrate, save.

    Args:
        arguments: of the command line; None reads them from the process.

    Returns:
        The folder of the detector.
    """
    parser = argparse.ArgumentParser(description="Research use only, not for diagnosis.")
    parser.add_argument("normals", type=Path, help="folder of normal scans")
    parser.add_argument("output", type=Path, help="folder for the detector")
    parser.add_argument("--patient-regex", help="its first group, found in a scan's path, is the patient")
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--size", type=int, default=128, help="rows and columns of a slice")
    given = parser.parse_args(arguments)
    set_determinism(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    cohort = given.output / "cohort.json"
    write_datalist(given.normals, cohort, patient_regex=given.patient_regex)
    data = TrainingData(cohort, image_size=(given.size, given.size), percentiles=(0.5, 50), headroom=2.5)
    network = DenoisingAutoencoder(2, data.train_dataset.channels).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.001, amsgrad=True)
    stage = DenoisingTrainer(network, device, given.epochs, data.train_loader, optimizer)
    training = DetectorTraining(network, [stage], data, given.output)
    training.run()
    training.finish()

    patients = load_detector(given.output / "models").description["calibration_patients"]
    print(f"{given.output / 'models'}: calibrated on {patients} patients, masks for alpha >= {1 / (patients + 1):.3g}")
    return given.output / "models"


if __name__ == "__main__":
    main()
