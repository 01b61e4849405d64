"""How processes share the units of a run: by rank, and by claims."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from monai_anomaly.exceptions import InputError

__all__ = ["claim", "process_share", "wait_for_other_ranks"]

_SHARE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}

# A claim whose owner gave no sign of life for so long is free; owners touch theirs far more often.
_STALE_SECONDS = 600.0
_TOUCH_SECONDS = 30.0


def process_share() -> tuple[int, int, int]:
    """Rank, number of processes and rank on this machine, as torchrun tells them; 0, 1, 0 without it.

    Raises:
        InputError: if one is no number, or the rank is none of that many processes.
    """
    given = {name: os.environ.get(name) or default for name, default in _SHARE.items()}
    for name, text in given.items():
        if not text.isdecimal():
            raise InputError(name, f"is {text!r}", "Set it to a whole number, or unset it.")
    rank, size, local = (int(text) for text in given.values())
    if rank >= size:
        raise InputError("RANK", f"is {rank} with a WORLD_SIZE of {size}", "Ranks go from 0 to WORLD_SIZE - 1.")
    return rank, size, local


def wait_for_other_ranks() -> None:
    """Under torchrun, wait until every rank is done: it ends all others once one has ended with an error."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_torchelastic_launched():
        dist.init_process_group("gloo", timeout=timedelta(days=20))
        dist.barrier()
        dist.destroy_process_group()


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
