"""CSV and JSON results, written whole or not at all."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from monai_anomaly.exceptions import is_plain
from monai_anomaly.io.atomic import atomic_path

__all__ = ["clean_text", "plain_values", "write_csv", "write_json"]


# First characters of a cell that make a spreadsheet take it for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def _cell(value: Any) -> Any:
    """A table's cell: NumPy's scalars as Python's; what is no number and looks like a formula behind an apostrophe."""
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, str):
        return value
    if value.startswith(_FORMULA):
        with suppress(ValueError):
            float(value)
            return value
        value = f"'{value}"
    return clean_text(value)


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write a table as UTF-8 CSV with a header line, commas and Unix line ends.

    Args:
        path: the file to write.
        rows: one mapping a line, each with exactly the keys ``columns``. None becomes an empty field; floats are
            written with as many digits as give the same float back. Text that a spreadsheet would take for a formula
            gets an apostrophe in front; control characters and undecodable bytes are spelt out.
        columns: the columns' names, in order.

    Raises:
        ValueError: if a row's keys differ from ``columns``.
        InputError: if the folder cannot be written to.
    """
    for number, row in enumerate(rows):
        if set(row) != set(columns):
            raise ValueError(f"row {number} has the keys {sorted(row)}, the table the columns {sorted(columns)}.")
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        # the csv module itself writes None as an empty field and floats by repr()
        writer.writerows([_cell(row[column]) for column in columns] for row in rows)


def _number(value: Any) -> Any:
    """json's fallback: NumPy's scalars only."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON: give plain Python values.")


def write_json(path: str | Path, obj: Any) -> None:
    """Write an object as UTF-8 JSON, keys sorted, two spaces of indent: equal objects give equal bytes.

    Args:
        path: the file to write.
        obj: plain Python values and NumPy scalars.

    Raises:
        ValueError: if a number is NaN or infinite, which JSON has no form for (say None for undefined).
        TypeError: if a value has no JSON form.
        InputError: if the folder cannot be written to.
    """
    text = json.dumps(obj, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False, default=_number)
    with atomic_path(path) as temporary:
        # JSON spells an undecodable byte of a file's name as Python does, and reads it back
        temporary.write_bytes((text + "\n").encode("utf-8", "backslashreplace"))


def plain_values(value: Any) -> Any:
    """Settings as JSON has them: what is neither a finite number, a text, a list nor a mapping becomes text."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {clean_text(key): plain_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(item) for item in value]
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return clean_text(value)


def clean_text(text: Any) -> str:
    """Text that UTF-8 and HTML can hold: undecodable bytes of file names and control characters are spelt out."""
    return "".join(c if c in "\t\n" or is_plain(c) else c.encode("unicode_escape").decode("ascii") for c in str(text))
