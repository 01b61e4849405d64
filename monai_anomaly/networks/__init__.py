"""What is computed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import nets
from .detector import AnomalyDetector, AnomalyOutput, make_detector
from .frozen_encoder import FrozenEncoderDetector, feature_encoder_of

globals().update({name: getattr(nets, name) for name in nets.__all__})
__all__ = [
    "AnomalyDetector",
    "AnomalyOutput",
    "FrozenEncoderDetector",
    "feature_encoder_of",
    "make_detector",
    *nets.__all__,
]

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...
