"""An evaluation as one page, its tables and pictures; what they show is computed elsewhere."""

from __future__ import annotations

from .curves import draw_loss_curves
from .evaluation import Evaluation
from .evaluation_files import evaluation_json, write_metrics_csv
from .figures import case_slice
from .overview import draw_overview
from .page import write_report

__all__ = [
    "Evaluation",
    "case_slice",
    "draw_loss_curves",
    "draw_overview",
    "evaluation_json",
    "write_metrics_csv",
    "write_report",
]
