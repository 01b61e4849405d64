"""The lines that benchmark runs leave, and the claims by which processes share the units."""

from __future__ import annotations

import json
import logging
import os
import platform
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from monai_anomaly.exceptions import InputError

__all__ = ["append_line", "claim", "hardware", "read_results"]

logger = logging.getLogger(__name__)

# A claim whose owner gave no sign of life for so long is free; owners touch theirs far more often.
_STALE_SECONDS = 600.0
_TOUCH_SECONDS = 30.0


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Add a row to a file of JSON lines, whole, whatever was cut off before it.

    Args:
        path: the file.
        row: JSON-able; a number that is not finite is refused.
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
        InputError: if a path does not exist, or a line other than a last, cut off one cannot be read.
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
    lines = file.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            row["unit"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            # A killed process leaves half a line; the next one began a new line after it.
            if isinstance(error, json.JSONDecodeError):
                logger.warning(f"{file}, line {number}: cut off, passed over")
                continue
            raise InputError(f"{file}, line {number}", "is no result", "Give files that the runner wrote.") from error
        yield row


@contextmanager
def claim(folder: Path, unit: str) -> Iterator[bool]:
    """Take a unit for this process, if no living one has it.

    A claim is a file that exactly one process can make. The next generation of a claim whose owner is gone can be made
    by exactly one process too, so that nothing is ever taken from an owner by removing its file.

    Args:
        folder: of the claims, shared by the processes.
        unit: its name.

    Yields:
        Whether it is ours until the block ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    taken = sorted(folder.glob(f"{unit}.*.claim"), key=_generation)
    if taken and _alive(taken[-1]):
        yield False
        return
    own = folder / f"{unit}.{_generation(taken[-1]) + 1 if taken else 0}.claim"
    try:
        handle = os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        yield False
        return
    with os.fdopen(handle, "w") as file:
        json.dump({"host": socket.gethostname(), "pid": os.getpid()}, file)
    done = threading.Event()
    keeper = threading.Thread(target=_keep_alive, args=(own, done), daemon=True)
    keeper.start()
    try:
        yield True
    finally:
        done.set()
        keeper.join()
        for path in [*taken, own]:
            path.unlink(missing_ok=True)


def _generation(path: Path) -> int:
    return int(path.name.split(".")[-2])


def _keep_alive(path: Path, done: threading.Event) -> None:
    while not done.wait(_TOUCH_SECONDS):
        try:
            os.utime(path)
        except OSError:  # the folder is gone or away for a moment; the run itself will say so
            continue


def _alive(path: Path) -> bool:
    """Whether the owner of a claim may still be at work."""
    try:
        age = time.time() - path.stat().st_mtime
        owner = json.loads(path.read_text(encoding="utf-8") or "{}")
    except FileNotFoundError:
        return False
    except json.JSONDecodeError:
        return age < _STALE_SECONDS
    if age > _STALE_SECONDS:
        return False
    if owner.get("host") == socket.gethostname() and "pid" in owner:
        try:
            os.kill(int(owner["pid"]), 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
    return True


def hardware(device: Any) -> dict[str, Any]:
    """The machine that a unit runs on.

    Args:
        device: a torch device.
    """
    import torch

    device = torch.device(device)
    facts: dict[str, Any] = {
        "system": platform.system(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["peak_gpu_bytes"] = torch.cuda.max_memory_allocated(device)
    return facts


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
