"""From scores and maps of normal subjects to p-values and thresholds."""

from __future__ import annotations

from .conformal import (
    ConformalCalibration,
    check_rate,
    conformal_p_value,
    conformal_quantile,
    hierarchical_p_value,
    least_normals,
)
from .cross_conformal import CrossConformal
from .drift import FACTS, CohortFacts, drift_report, scan_facts
from .fitted import FittedBuffers
from .mask_cleanup import MaskCleanup
from .place_statistics import PlaceStatistics, PlaceSums
from .slice_statistics import SliceStatistics
from .tail_table import ScanTail, TailTable

__all__ = [
    "FACTS",
    "CohortFacts",
    "ConformalCalibration",
    "CrossConformal",
    "FittedBuffers",
    "MaskCleanup",
    "PlaceStatistics",
    "PlaceSums",
    "ScanTail",
    "SliceStatistics",
    "TailTable",
    "check_rate",
    "conformal_p_value",
    "conformal_quantile",
    "drift_report",
    "hierarchical_p_value",
    "least_normals",
    "scan_facts",
]
