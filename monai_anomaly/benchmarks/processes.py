"""How processes share the units of a run: by rank, and by claims."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

from monai_anomaly.exceptions import InputError
from monai_anomaly.io.lock import InUseError, folder_lock

__all__ = ["claim", "process_share", "wait_for_other_ranks"]

_SHARE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}


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
def claim(folder: Path) -> Iterator[bool]:
    """Take a unit for this process, if no living one has it.

    Args:
        folder: of the unit.

    Yields:
        Whether it is ours until the block ends.

    Raises:
        InputError: if the folder cannot be written.
    """
    with ExitStack() as held:
        try:
            held.enter_context(folder_lock(folder, ".claim"))
            ours = True
        except InUseError:
            ours = False
        yield ours
