"""CSV and JSON results, written whole or not at all."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monai_anomaly.io.atomic import atomic_path

__all__ = ["clean_text", "plain_values", "write_csv", "write_json"]


def _plain(value: Any) -> Any:
    """NumPy's scalars as Python's, everything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write a table as UTF-8 CSV with a header line, commas and Unix line ends.

    Args:
        path: the file to write.
        rows: one mapping a line, each with exactly the keys ``columns``. None becomes an empty field; floats are
            written with as many digits as give the same float back.
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
        writer.writerows([_plain(row[column]) for column in columns] for row in rows)


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
        temporary.write_text(text + "\n", encoding="utf-8", newline="\n")


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
    kept = str(text).encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c in "\t\n" or (c >= " " and not "\x7f" <= c <= "\x9f") else f"\\x{ord(c):02x}" for c in kept)
