"""One process a folder: a lock that the system frees when its process ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from monai_anomaly.exceptions import InputError
from monai_anomaly.io.atomic import ensure_writable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["InUseError", "folder_lock", "this_process"]

logger = logging.getLogger(__name__)

# Seconds that a killed process's workers may take to notice.
_PATIENCE = 20.0


class InUseError(InputError):
    """Another process holds the folder."""


def this_process() -> dict[str, Any]:
    """Host, process and time, as locks and manifests tell them."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"host": socket.gethostname(), "pid": os.getpid(), "start": now}


@contextlib.contextmanager
def folder_lock(folder: str | Path, name: str = ".lock", shared: bool = False) -> Iterator[None]:
    """Hold a folder, so that no other run writes there.

    Args:
        folder: made where it is missing.
        name: of the lock's file, which stays.
        shared: several may hold it so at once, but none of them with one that does not share.

    Raises:
        InUseError: if another process holds it; names its host, its id and its start.
        InputError: if it cannot be made or written.
    """
    path = ensure_writable(folder) / name
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _take(handle, path, shared)
        os.ftruncate(handle, 0)
        os.write(handle, json.dumps(this_process()).encode())
        yield
    finally:
        if fcntl is not None:
            # workers forked in between hold the file open: closing it would not free the lock
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


def _take(handle: int, path: Path, shared: bool) -> None:
    if fcntl is None:
        logger.warning(f"{path.parent}: this system has no locks; run nothing else into this folder")
        return
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                logger.warning(f"{path.parent}: its file system has no locks; run nothing else into this folder")
                return
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
        holder = _holder(path)
        if time.monotonic() > deadline or not _is_gone(holder):
            by = f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('start')}"
            problem = f"another run writes into it ({by})"
            raise InUseError(path.parent, problem, "Wait for it, end it, or choose another output folder.")
        time.sleep(0.1)


def _holder(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_gone(holder: dict[str, Any]) -> bool:
    """Whether the holder was killed: its workers keep the lock for a moment."""
    if holder.get("host") != socket.gethostname() or not isinstance(holder.get("pid"), int):
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
