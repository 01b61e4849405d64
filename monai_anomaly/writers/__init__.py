"""Maps, masks, pictures, tables and the report, each written whole or not at all."""

from __future__ import annotations

from .case import write_case
from .curves import draw_loss_curves
from .evaluation import Evaluation
from .evaluation_files import evaluation_json, write_metrics_csv
from .overview import draw_overview
from .report import write_report
from .report_figures import case_slice
from .tables import write_csv, write_json

__all__ = [
    "Evaluation",
    "case_slice",
    "draw_loss_curves",
    "draw_overview",
    "evaluation_json",
    "write_case",
    "write_csv",
    "write_json",
    "write_metrics_csv",
    "write_report",
]
