"""How methods are trained, calibrated and run."""

from __future__ import annotations

from .detector_files import DetectorFiles, load_detector, save_detector
from .inference import CohortEvaluator, StackInferer, calibrate, fit_slice_statistics, scan_loader
from .proxyano import ImageReconstructionTrainer, ProxyExtractionTrainer
from .stages import StageTrainer, still_improving, train_stages
from .training import DetectorTraining

__all__ = [
    "CohortEvaluator",
    "DetectorFiles",
    "DetectorTraining",
    "ImageReconstructionTrainer",
    "ProxyExtractionTrainer",
    "StackInferer",
    "StageTrainer",
    "calibrate",
    "fit_slice_statistics",
    "load_detector",
    "save_detector",
    "scan_loader",
    "still_improving",
    "train_stages",
]
