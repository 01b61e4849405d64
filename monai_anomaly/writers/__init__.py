"""Maps, masks, pictures and tables, each written whole or not at all."""

from __future__ import annotations

from .case import write_case
from .curves import draw_loss_curves
from .overview import draw_overview
from .tables import write_csv, write_json

__all__ = ["draw_loss_curves", "draw_overview", "write_case", "write_csv", "write_json"]
