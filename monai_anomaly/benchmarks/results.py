"""The lines that benchmark runs leave."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from monai_anomaly.exceptions import InputError

__all__ = ["append_line", "read_results"]

logger = logging.getLogger(__name__)

# What tables and figures need of a row.
_KEYS = ("unit", "suite", "set", "problem", "method", "seed", "scale")


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Add a row to a file of JSON lines, whole, whatever was cut off before it.

    Args:
        path: the file.
        row: JSON-able; a number that is not finite is rejected.
    """
    line = json.dumps(row, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":
            line = "\n" + line
        os.write(handle, line.encode())
        os.fsync(handle)
    finally:
        os.close(handle)


def read_results(paths: Iterable[str | Path], name: str = "results") -> list[dict[str, Any]]:
    """The rows of result files, those of all ranks together.

    Args:
        paths: files of JSON lines, or folders of runs, whose ``NAME.jsonl`` and ``NAME-rank*.jsonl`` are read.
        name: of the files in a folder.

    Returns:
        The rows; of several of the same unit the last one.

    Raises:
        InputError: if a path does not exist or cannot be read, or a line is no result. One that was cut off is passed
            over with a warning: its process was killed, and the unit is done again.
    """
    rows: dict[str, dict[str, Any]] = {}
    for path in map(Path, paths):
        if path.is_dir():
            files = [path / f"{name}.jsonl", *sorted(path.glob(f"{name}-rank*.jsonl"))]
        elif path.is_file():
            files = [path]
        else:
            raise InputError(path, "does not exist", f"Give a folder of a run, or a file {name}.jsonl.")
        for file in files:
            if file.is_file():
                rows.update((row["unit"], row) for row in _lines(file))
    return list(rows.values())


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(file, f"cannot be read ({error})", "Give files that the runner wrote.") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if missing := [key for key in _KEYS if key not in row]:
                raise KeyError(missing[0])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            # A killed process leaves half a line; the next one began a new line after it.
            if isinstance(error, json.JSONDecodeError):
                logger.warning(f"{file}, line {number}: cut off, passed over")
                continue
            raise InputError(f"{file}, line {number}", "is no result", "Give files that the runner wrote.") from error
        yield row
