"""One file a method."""

from __future__ import annotations

from .intensity import IntensityThreshold
from .proxyano import ProxyAno, ProxyExtractionModule

__all__ = ["IntensityThreshold", "ProxyAno", "ProxyExtractionModule"]
