"""From scores of normal subjects to thresholds."""

from __future__ import annotations

from .conformal import ConformalCalibration, conformal_quantile
from .slice_statistics import SliceStatistics

__all__ = ["ConformalCalibration", "SliceStatistics", "conformal_quantile"]
