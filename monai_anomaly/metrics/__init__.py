"""How well scores and maps find what is abnormal."""

from __future__ import annotations

from .ranking import PixelMetrics, auroc, average_precision, best_dice, image_metrics, ranking_metrics

__all__ = ["PixelMetrics", "auroc", "average_precision", "best_dice", "image_metrics", "ranking_metrics"]
