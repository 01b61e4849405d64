"""The tables that come with published sets."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from monai_anomaly.exceptions import InputError

__all__ = ["read_table"]


def read_table(path: Path, columns: Sequence[str], remedy: str, delimiter: str = ",") -> list[dict[str, str]]:
    """The rows of a CSV file with a header.

    Args:
        path: of the file, which exists.
        columns: that it must have; others may be there.
        remedy: what to do where it is broken.
        delimiter: between columns.

    Raises:
        InputError: if it has no rows, other columns, or rows that are too short.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, delimiter=delimiter))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(path, f"cannot be read as a table ({error})", remedy) from error
    if not rows or not set(columns) <= rows[0].keys():
        raise InputError(path, f"is no table with rows and the columns {', '.join(columns)}", remedy)
    for number, row in enumerate(rows, start=2):
        if any(row[column] is None for column in columns):
            raise InputError(path, f"line {number} is too short", remedy)
    return rows
