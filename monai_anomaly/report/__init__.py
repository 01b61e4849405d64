"""An evaluation as one page, its tables and images; what they show is computed elsewhere."""

from __future__ import annotations

from .evaluation import CaseResult, CaseSlice, Evaluation
from .findings import findings
from .overview import draw_overview
from .page import write_report
from .plots import draw_loss_curves
from .slices import case_slice

__all__ = [
    "CaseResult",
    "CaseSlice",
    "Evaluation",
    "case_slice",
    "draw_loss_curves",
    "draw_overview",
    "findings",
    "write_report",
]
