"""Read damaged and hostile files for as long as asked, and count what came of them.

``python tests/fuzz/run.py --minutes 10 --seed 0`` prints a line for each fault with the number that makes it again,
then a table. File ``n`` is made from the seed ``[seed, n]``, its kind is the ``n``-th in turn; ``--only n`` reads one
with its traceback.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz.mutations import KINDS, read

from monai_anomaly.exceptions import InputError

_HANG_S = 12
_MEMORY_MB = 200


class _HangError(Exception):
    """A file took too long."""


def _hang(*_: object) -> None:
    raise _HangError


def outcome(seed: int, number: int, folder: Path) -> tuple[str, str]:
    """Make and read one file: its kind, and ``refused``, ``read``, or the fault."""
    kind = list(KINDS)[number % len(KINDS)]
    path = KINDS[kind](folder, np.random.default_rng([seed, number]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.alarm(_HANG_S)
    try:
        read(kind, path)
        found = "read"
    except InputError as error:
        found = "more than one line" if "\n" in str(error) else "refused"
    except _HangError:
        found = "hang"
    except BaseException as error:
        found = f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
    finally:
        signal.alarm(0)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return kind, f"memory grew by {grown:.0f} MB" if grown > _MEMORY_MB else found


def main() -> int:
    """The command line; 1 where there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="number of the first file")
    parser.add_argument("--only", type=int, help="number of the one file to read, with its traceback")
    given = parser.parse_args()
    signal.signal(signal.SIGALRM, _hang)
    counts: Counter[tuple[str, str]] = Counter()
    faults = 0
    if given.only is not None:
        with tempfile.TemporaryDirectory() as folder:
            kind = list(KINDS)[given.only % len(KINDS)]
            read(kind, KINDS[kind](Path(folder), np.random.default_rng([given.seed, given.only])))
        return 0
    # ITK writes to the process's error stream itself
    sys.stderr = os.fdopen(os.dup(2), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    with tempfile.TemporaryDirectory() as folder:  # load every reader, which takes memory too
        for name in ("a.mha", "a.png", "a.dcm", "a.nii"):
            (Path(folder) / name).write_bytes(b"")
            with suppress(InputError):
                read("warm-up", Path(folder) / name)
    end, number = time.monotonic() + 60 * given.minutes, given.start
    while time.monotonic() < end:
        with tempfile.TemporaryDirectory() as folder:
            kind, found = outcome(given.seed, number, Path(folder))
        fault = found not in ("read", "refused")
        if fault:
            print(f"seed {given.seed} number {number} {kind}: {found}", flush=True)
        faults += fault
        counts[kind, "faults" if fault else found] += 1
        number += 1
    print(f"seed {given.seed}, files {given.start} to {number - 1}")
    print(f"{'kind':<14}{'files':>9}{'read':>9}{'refused':>9}{'faults':>9}")
    for kind in KINDS:
        row = [counts[kind, found] for found in ("read", "refused", "faults")]
        print(f"{kind:<14}{sum(row):>9}" + "".join(f"{value:>9}" for value in row))
    print(f"{'all':<14}{number - given.start:>9}{'':>18}{faults:>9}")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
