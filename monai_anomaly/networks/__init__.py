"""What is computed."""

from __future__ import annotations

from .detector import AnomalyDetector, AnomalyOutput, make_detector
from .nets import (
    DAAD,
    DCAE,
    DDRID,
    HFRAE,
    ITAE,
    Autoencoder,
    DAADDiscriminator,
    DAADGenerator,
    DeepSVDD,
    DenoisingAutoencoder,
    Ensemble,
    GANomaly,
    GANomalyDiscriminator,
    GANomalyGenerator,
    IntensityThreshold,
    InverseTransformAutoEncoder,
    MemAE,
    ProxyAno,
    ProxyExtractionModule,
    ZScore,
)

__all__ = [
    "AnomalyDetector",
    "AnomalyOutput",
    "make_detector",
    "DAAD",
    "DAADDiscriminator",
    "DAADGenerator",
    "DCAE",
    "DDRID",
    "DeepSVDD",
    "DenoisingAutoencoder",
    "Ensemble",
    "HFRAE",
    "ITAE",
    "IntensityThreshold",
    "InverseTransformAutoEncoder",
    "ProxyAno",
    "ProxyExtractionModule",
    "Autoencoder",
    "GANomaly",
    "GANomalyDiscriminator",
    "GANomalyGenerator",
    "MemAE",
    "ZScore",
]
