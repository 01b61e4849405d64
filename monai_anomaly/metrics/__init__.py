"""How well scores and maps find what is abnormal."""

from __future__ import annotations

from .evaluators import (
    ImageScoreHandler,
    ImageScoreMetric,
    LesionDetectionHandler,
    LesionDetectionMetric,
    PixelMapHandler,
    PixelMapMetric,
)
from .intervals import bootstrap_intervals, mean_and_spread, scan_statistics
from .lesions import LESION_COLUMNS, PIXEL_CLASSES, VOLUME_CLASSES, LesionDetection, count_lesions, lesion_table
from .masks import MaskMetrics
from .papers import score_gap, selection_summary, training_stability
from .pro import RegionOverlap
from .ranking import auroc, average_precision, best_dice, ranking_metrics
from .scans import (
    PatientScores,
    by_group,
    decision_metrics,
    image_metrics,
    patient_level,
    sensitivity_at_specificity,
)
from .score_digest import ScoreDigest
from .video import normality_scores, video_metrics, video_metrics_of
from .voxel_intervals import VoxelIntervals
from .voxels import PixelMetrics

__all__ = [
    "LESION_COLUMNS",
    "PIXEL_CLASSES",
    "VOLUME_CLASSES",
    "ImageScoreHandler",
    "ImageScoreMetric",
    "LesionDetection",
    "LesionDetectionHandler",
    "LesionDetectionMetric",
    "MaskMetrics",
    "PatientScores",
    "PixelMapHandler",
    "PixelMapMetric",
    "PixelMetrics",
    "RegionOverlap",
    "ScoreDigest",
    "VoxelIntervals",
    "auroc",
    "average_precision",
    "best_dice",
    "bootstrap_intervals",
    "by_group",
    "count_lesions",
    "decision_metrics",
    "image_metrics",
    "lesion_table",
    "mean_and_spread",
    "normality_scores",
    "patient_level",
    "ranking_metrics",
    "scan_statistics",
    "score_gap",
    "selection_summary",
    "sensitivity_at_specificity",
    "training_stability",
    "video_metrics",
    "video_metrics_of",
]
