"""What is minimised."""

from __future__ import annotations

from .common import AdversarialLoss, SquaredErrorLoss
from .daad import DAADLoss
from .ddrid import DDRIDLoss
from .deep_svdd import OneClassLoss, SoftBoundaryLoss
from .denoising import DenoisingLoss
from .ganomaly import GANomalyLoss
from .hfrae import HierarchicalFeatureLoss
from .itae import RestorationLoss
from .proxyano import ImageReconstructionLoss

__all__ = [
    "AdversarialLoss",
    "DAADLoss",
    "DDRIDLoss",
    "DenoisingLoss",
    "HierarchicalFeatureLoss",
    "ImageReconstructionLoss",
    "OneClassLoss",
    "RestorationLoss",
    "SoftBoundaryLoss",
    "SquaredErrorLoss",
    "GANomalyLoss",
]
