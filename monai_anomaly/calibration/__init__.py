"""From scores of normal subjects to thresholds."""

from __future__ import annotations

from .conformal import ConformalCalibration, conformal_quantile

__all__ = ["ConformalCalibration", "conformal_quantile"]
