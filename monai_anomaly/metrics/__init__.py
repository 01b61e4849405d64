"""How well scores and maps find what is abnormal."""

from __future__ import annotations

from .cohort import CohortFigures, Curve, Thresholds
from .figures import LEVELS, METRICS, Figure, FigureTable, Metric, group_parts
from .intervals import bootstrap_intervals, mean_and_spread, scan_statistics
from .lesions import LESION_COLUMNS, PIXEL_CLASSES, VOLUME_CLASSES, LesionDetection, count_lesions, lesion_table
from .masks import MaskMetrics
from .ranking import auroc, average_precision, best_dice
from .scans import (
    PatientScores,
    by_group,
    decision_metrics,
    image_metrics,
    patient_level,
    score_gap,
    sensitivity_at_specificity,
)
from .score_digest import ScoreDigest
from .video import normality_scores, video_metrics, video_metrics_of
from .voxel_intervals import VoxelIntervals
from .voxels import PixelMetrics

__all__ = [
    "LESION_COLUMNS",
    "LEVELS",
    "METRICS",
    "PIXEL_CLASSES",
    "VOLUME_CLASSES",
    "CohortFigures",
    "Curve",
    "Figure",
    "FigureTable",
    "LesionDetection",
    "MaskMetrics",
    "Metric",
    "PatientScores",
    "PixelMetrics",
    "ScoreDigest",
    "Thresholds",
    "VoxelIntervals",
    "auroc",
    "average_precision",
    "best_dice",
    "bootstrap_intervals",
    "by_group",
    "count_lesions",
    "decision_metrics",
    "group_parts",
    "image_metrics",
    "lesion_table",
    "mean_and_spread",
    "normality_scores",
    "patient_level",
    "scan_statistics",
    "score_gap",
    "sensitivity_at_specificity",
    "video_metrics",
    "video_metrics_of",
]
