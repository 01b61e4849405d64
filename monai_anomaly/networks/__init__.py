"""What is computed."""

from __future__ import annotations

from .detector import AnomalyDetector, AnomalyOutput
from .nets import IntensityThreshold, ProxyAno, ProxyExtractionModule

__all__ = ["AnomalyDetector", "AnomalyOutput", "IntensityThreshold", "ProxyAno", "ProxyExtractionModule"]
