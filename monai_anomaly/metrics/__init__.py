"""How well scores and maps find what is abnormal."""

from __future__ import annotations

from .pro import RegionOverlap
from .ranking import PixelMetrics, auroc, average_precision, best_dice, image_metrics, ranking_metrics
from .video import normality_scores, video_metrics, video_metrics_of

__all__ = [
    "PixelMetrics",
    "RegionOverlap",
    "auroc",
    "average_precision",
    "best_dice",
    "image_metrics",
    "normality_scores",
    "ranking_metrics",
    "video_metrics",
    "video_metrics_of",
]
