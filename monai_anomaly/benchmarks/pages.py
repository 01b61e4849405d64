"""Markdown pages whose tables are drawn from the result files that they name, so that the two cannot disagree."""

from __future__ import annotations

import json
import re
from pathlib import Path

from monai_anomaly.exceptions import InputError

from .results import read_results
from .speed_tables import section_text
from .table import build_tables, render

__all__ = ["refreshed_page"]

_BLOCK = re.compile(
    r"(?P<head><!-- benchmark (?P<kind>table|speed) (?P<given>[^>]*?) -->\n).*?(?P<end><!-- end -->)", re.DOTALL
)


def refreshed_page(page: Path) -> str:
    """A Markdown page whose tables are drawn anew from the result files that it names.

    Tables of results stand between ``<!-- benchmark table FILE ... -->`` and ``<!-- end -->``, measurements of
    ``benchmark speed`` between ``<!-- benchmark speed FILE SECTION ... -->`` and ``<!-- end -->``; files are relative
    to the page.

    Args:
        page: the file.

    Returns:
        Its text with the tables as they are now.

    Raises:
        InputError: if the page or a result file cannot be read, or a file of measurements has no such section.
    """
    try:
        text = page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(page, f"cannot be read ({error})", "Give a Markdown page.") from error

    def drawn(block: re.Match[str]) -> str:
        given = block["given"].split()
        if block["kind"] == "table":
            tables = render(build_tables(read_results(page.parent / name for name in given)))
        else:
            tables = _measured(page.parent / given[0], given[1:])
        return f"{block['head']}\n{tables}\n{block['end']}"

    return _BLOCK.sub(drawn, text)


def _measured(path: Path, sections: list[str]) -> str:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        return "\n\n".join(section_text(report, name) for name in sections) + "\n"
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"holds no measurement {' or '.join(sections)} ({type(error).__name__}: {error})"
        raise InputError(path, problem, "Measure it with benchmark speed.") from error
