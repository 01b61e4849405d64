"""Pieces of HTML that the parts of the report share; all text is escaped."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import numpy as np

from monai_anomaly.report.evaluation import Estimate, clean_text
from monai_anomaly.report.statements import number

__all__ = ["cell_html", "data_uri", "estimate_cell", "plural", "table_html", "text"]


def text(value: Any) -> str:
    """Escaped for HTML, in text and in attributes."""
    return escape(clean_text(value), quote=True)


def data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def plural(count: int, name: str) -> str:
    return f"{count} {name}" + ("" if count == 1 else "s")


def estimate_cell(estimate: Estimate) -> str:
    """The figure, its interval below it, or why there is none."""
    if estimate.value is None:
        return f'<small class="why">undefined: {text(estimate.undefined)}</small>'
    if estimate.low is None or estimate.high is None:
        return number(estimate.value)
    return f"{number(estimate.value)} <small>{number(estimate.low)} to {number(estimate.high)}</small>"


def cell_html(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, Estimate):
        return estimate_cell(value)
    if isinstance(value, float | np.floating):
        return number(float(value))
    return text(value)


def table_html(
    columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], scroll_name: str, look: str = ""
) -> Iterator[str]:
    """A table that scrolls within its own box on a narrow screen.

    Args:
        columns: headings, as HTML.
        rows: (class, cells as HTML); the first cell names the row.
        scroll_name: what a screen reader calls the box, as HTML.
        look: class of the table.
    """
    # focusable, so that it can be scrolled by the keyboard
    yield f'<div class="scroll" tabindex="0" role="region" aria-label="{scroll_name}">'
    yield f'<table class="{look}">' if look else "<table>"
    yield "<thead><tr>" + "".join(f'<th scope="col">{column}</th>' for column in columns) + "</tr></thead>"
    yield "<tbody>"
    for row_look, (head, *cells) in rows:
        row_class = f' class="{row_look}"' if row_look else ""
        yield f'<tr{row_class}><th scope="row">{head}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    yield "</tbody>"
    yield "</table>"
    yield "</div>"
