"""How methods are trained, calibrated and run."""

from __future__ import annotations

from .baselines import fit_baselines, forget_baselines, load_baselines
from .calibration import calibrate, fit_slice_statistics
from .daad import DAADTrainer
from .ddrid import DDRIDPretrainer, DDRIDTrainer
from .deep_svdd import DCAETrainer, DeepSVDDTrainer
from .denoising import DenoisingTrainer
from .detector_files import DetectorFiles, check_unseen, load_detector, save_detector
from .ensemble import load_members
from .evaluator import CohortEvaluator, ScanEvents, raise_for_failures
from .ganomaly import GANomalyTrainer
from .handlers import (
    DriftHandler,
    LesionTableHandler,
    MetricsHandler,
    PredictionsHandler,
    ReportHandler,
    thresholds_of,
)
from .hfrae import EncoderAutoencoder, EncoderPretrainingTrainer, HFRAETrainer, fill_encoder, own_encoder_source
from .inferer import StackInferer, scan_loader
from .itae import HalvingLR, ITAETrainer
from .postprocessing import (
    CalibratedMapd,
    CleanMaskd,
    LoadReferenced,
    MaskAboveThresholdd,
    PValued,
    RunBaselinesd,
    SaveCased,
    ToScanVoxelsd,
)
from .proxyano import ImageReconstructionTrainer, ProxyExtractionTrainer
from .reconstruction import ReconstructionTrainer
from .selection import SyntheticLesionSelection
from .stages import StageTrainer, still_improving, train_stages
from .training import DetectorTraining
from .training_data import ImageBatches, TrainingData

__all__ = [
    "CalibratedMapd",
    "CleanMaskd",
    "CohortEvaluator",
    "DAADTrainer",
    "DCAETrainer",
    "DDRIDPretrainer",
    "DDRIDTrainer",
    "DeepSVDDTrainer",
    "DenoisingTrainer",
    "DetectorFiles",
    "DetectorTraining",
    "DriftHandler",
    "EncoderAutoencoder",
    "EncoderPretrainingTrainer",
    "HFRAETrainer",
    "HalvingLR",
    "ITAETrainer",
    "ImageBatches",
    "ImageReconstructionTrainer",
    "LesionTableHandler",
    "LoadReferenced",
    "MaskAboveThresholdd",
    "MetricsHandler",
    "PValued",
    "PredictionsHandler",
    "ProxyExtractionTrainer",
    "ReportHandler",
    "RunBaselinesd",
    "SaveCased",
    "ScanEvents",
    "StackInferer",
    "StageTrainer",
    "SyntheticLesionSelection",
    "ToScanVoxelsd",
    "TrainingData",
    "calibrate",
    "check_unseen",
    "fill_encoder",
    "fit_baselines",
    "fit_slice_statistics",
    "forget_baselines",
    "load_baselines",
    "load_detector",
    "load_members",
    "own_encoder_source",
    "raise_for_failures",
    "save_detector",
    "scan_loader",
    "still_improving",
    "thresholds_of",
    "train_stages",
    "GANomalyTrainer",
    "ReconstructionTrainer",
]
