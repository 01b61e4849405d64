"""Building blocks of the networks."""

from __future__ import annotations

from .encoder_decoder import EncoderDecoder, StridedDecoder, StridedEncoder
from .memory import NearestMemory, ShrinkageMemory

__all__ = ["EncoderDecoder", "NearestMemory", "ShrinkageMemory", "StridedDecoder", "StridedEncoder"]
