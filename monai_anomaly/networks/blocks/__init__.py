"""Building blocks of the networks."""

from __future__ import annotations

from .block_memory import BlockMemory
from .contrast import ContrastInput, ContrastNormalization, global_contrast
from .dcgan import DCGANDecoder, DCGANEncoder, LatentAutoencoder, LatentDiscriminator, dcgan_widths
from .encoder_decoder import EncoderDecoder, StridedDecoder, StridedEncoder
from .erasing import CubeRotationErasing, Erasing, ErasingSet, GrayErasing, RotationErasing, ScalingErasing
from .features import Frozen, StagedFeatures, StridedFeatures, SymmetricRange
from .lenet import LeNetDecoder, LeNetEncoder, lenet_widths
from .memory import NearestMemory, ShrinkageMemory
from .resnet import ResNetFeatures, resnet_features
from .resnet34 import ResNet34Encoder
from .skip_autoencoder import SkipDecoder
from .smoothing import GaussianFilter, MedianFilter
from .unet import TwoConvolutions, UNetDecoder, UNetEncoder

__all__ = [
    "BlockMemory",
    "ContrastInput",
    "ContrastNormalization",
    "CubeRotationErasing",
    "DCGANDecoder",
    "DCGANEncoder",
    "EncoderDecoder",
    "Erasing",
    "Frozen",
    "GaussianFilter",
    "GrayErasing",
    "ScalingErasing",
    "LatentAutoencoder",
    "LatentDiscriminator",
    "LeNetDecoder",
    "LeNetEncoder",
    "MedianFilter",
    "NearestMemory",
    "RotationErasing",
    "ResNet34Encoder",
    "ResNetFeatures",
    "ShrinkageMemory",
    "StagedFeatures",
    "StridedDecoder",
    "StridedEncoder",
    "StridedFeatures",
    "SymmetricRange",
    "ErasingSet",
    "TwoConvolutions",
    "UNetDecoder",
    "UNetEncoder",
    "dcgan_widths",
    "global_contrast",
    "lenet_widths",
    "resnet_features",
    "SkipDecoder",
]
