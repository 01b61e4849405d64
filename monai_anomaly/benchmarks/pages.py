"""Markdown pages whose tables are drawn from the result files that they name, so that the two cannot disagree."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from monai_anomaly.exceptions import InputError

from .results import read_results
from .table import build_tables, render

__all__ = ["drawn_results", "refreshed_page"]


def refreshed_page(page: Path, kind: str, draw: Callable[[Path, Sequence[str]], str]) -> str:
    """A Markdown page whose tables are drawn anew.

    Args:
        page: the file. Its tables stand between ``<!-- benchmark KIND NAME ... -->`` and ``<!-- end -->``.
        kind: of the tables to draw; others stay.
        draw: of the page's folder and the names gives the text.

    Returns:
        The page's text with these tables as they are now.

    Raises:
        InputError: if the page cannot be read, and what ``draw`` raises.
    """
    try:
        text = page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(page, f"cannot be read ({error})", "Give a Markdown page.") from error
    block = rf"(?P<head><!-- benchmark {kind} (?P<given>[^>]*?) -->\n).*?(?P<end><!-- end -->)"

    def drawn(found: re.Match[str]) -> str:
        return f"{found['head']}\n{draw(page.parent, found['given'].split())}\n{found['end']}"

    return re.sub(block, drawn, text, flags=re.DOTALL)


def drawn_results(folder: Path, names: Sequence[str]) -> str:
    """The tables of some result files, for a page in ``folder``; of the kind ``table``."""
    return render(build_tables(read_results(folder / name for name in names)))
