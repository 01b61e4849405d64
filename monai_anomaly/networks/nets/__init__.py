"""One file a method."""

from __future__ import annotations

from .autoencoder import Autoencoder
from .daad import DAAD, DAADDiscriminator, DAADGenerator
from .ddrid import DDRID
from .deep_svdd import DCAE, DeepSVDD
from .denoising import DenoisingAutoencoder
from .ensemble import Ensemble
from .ganomaly import GANomaly, GANomalyDiscriminator, GANomalyGenerator
from .hfrae import HFRAE
from .intensity import IntensityThreshold
from .itae import ITAE, InverseTransformAutoEncoder
from .memae import MemAE
from .proxyano import ProxyAno, ProxyExtractionModule
from .zscore import ZScore

__all__ = [
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
