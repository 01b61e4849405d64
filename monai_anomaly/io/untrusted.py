"""What every reader asks of a file before and while it decodes it, be it whole, damaged or hostile."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import BinaryIO

from monai_anomaly.exceptions import InputError

__all__ = ["DEFLATE_RATIO", "check_deflated", "check_holds", "check_readable", "refuse_damage"]

# Bytes that one byte of deflate (gzip, PNG) can stand for at the most: two bits for a match of 258 bytes.
DEFLATE_RATIO = 1032

_BLOCK = 1 << 20
_REMEDY = "Copy or export the file again."


@contextmanager
def refuse_damage(path: str | Path, what: str = "cannot be read", remedy: str = _REMEDY) -> Iterator[None]:
    """Turn whatever a decoder raises into one line on the file.

    Args:
        path: of the file.
        what: what the message says of it, before the reason.
        remedy: what the user can do.

    Raises:
        InputError: as it was raised within, or for any other error.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        # damaged bytes lead nibabel, pydicom, Pillow and ITK to two dozen types; ITK's text ends with its point
        text = str(error).strip()
        reason = " ".join((text.splitlines()[-1] if type(error) is RuntimeError and text else text).split())[:200]
        raise InputError(path, f"{what} ({reason or type(error).__name__})", remedy) from error


def check_readable(path: str | Path) -> int:
    """Check that a file can be read to its end: a pipe, a device or a socket under a scan's name would wait for ever.

    Args:
        path: of a file or a folder.

    Returns:
        Its size in bytes.

    Raises:
        InputError: where it is missing, or neither a file nor a folder.
    """
    with refuse_damage(path, remedy="Check the path."):
        found = os.stat(path)
    if not (S_ISREG(found.st_mode) or S_ISDIR(found.st_mode)):
        raise InputError(path, "is no regular file", "Give a file or a folder.")
    return found.st_size


def check_holds(path: str | Path, stated: int, most: int) -> None:
    """Check that a file can hold what its header states, before memory is taken for it.

    Args:
        path: of the file.
        stated: bytes that the header asks for.
        most: bytes that the file can hold.

    Raises:
        InputError: where it states more.
    """
    if stated > most:
        problem = f"the header states {stated} bytes of voxels, the file holds {most} at the most"
        raise InputError(path, problem, _REMEDY)


def check_deflated(path: str | Path, file: BinaryIO, stated: int | None = None) -> None:
    """Check a zlib or gzip stream to its end, checksum included, in little memory.

    Args:
        path: of the file, for the message.
        file: open where the stream begins.
        stated: bytes that it must unpack to; None: not known.

    Raises:
        InputError: where the stream is damaged, cut, or of another length.
    """
    with refuse_damage(path):
        stream, length = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32), 0
        while not stream.eof and (stated is None or length <= stated):
            block = stream.unconsumed_tail or file.read(_BLOCK)
            if not block:
                raise EOFError("the compressed voxels end early")
            length += len(stream.decompress(block, _BLOCK))
        if stated is not None and length != stated:
            raise ValueError(f"the compressed voxels are not the {stated} bytes that the header states")
