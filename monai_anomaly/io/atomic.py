"""Files and folders written whole or not at all: aside first, then renamed into place."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from monai_anomaly.exceptions import InputError

__all__ = ["atomic_folder", "atomic_path", "ensure_writable"]


def ensure_writable(folder: str | Path) -> Path:
    """Make the folder where it is missing, and check that a file can be made in it.

    Args:
        folder: the folder, absolute or relative.

    Returns:
        The folder as a path.

    Raises:
        InputError: if the folder cannot be made or written to.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # trying is the only sure check: permission bits say nothing of read-only or full file systems
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        problem = f"the folder cannot be written to ({error.strerror or error})"
        raise InputError(folder, problem, "Choose another output folder, or make this one writable.") from error
    return folder


def _sync(path: Path) -> None:
    """Have the file's or the folder's content on disk, so that a crash after the rename leaves no empty file."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open folders
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Write a file aside and rename it into place when the block ends well.

    Args:
        path: the file to write. Its folder is made where it is missing.

    Yields:
        A new path in the same folder with the same suffixes (``.nii.gz`` is kept whole), which the block must create.
        When the block raises, that file is removed and ``path`` is left as it was.

    Raises:
        InputError: if the folder cannot be written to, or ``path`` is a folder.
    """
    path = Path(path)
    folder = ensure_writable(path.parent)
    if path.is_dir():
        raise InputError(path, "is a folder, where a file is to be written", "Move it away or choose another name.")
    # two suffixes are the most a format has; a name with more dots could grow past the file system's limit
    temporary = folder / f".{uuid.uuid4().hex}{''.join(path.suffixes[-2:])}"
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(folder)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Fill a folder aside and rename it into place when the block ends well.

    Args:
        path: the folder to write. One that exists is replaced whole: every file in it goes. Its parent is made where
            it is missing.

    Yields:
        A new, empty, hidden folder beside ``path``. When the block raises, it is removed and ``path`` is left as it
        was.

    Raises:
        InputError: if the parent cannot be written to, or ``path`` is a file.
    """
    path = Path(path)
    parent = ensure_writable(path.parent)
    if path.exists() and not path.is_dir():
        raise InputError(path, "is a file, where a folder is to be written", "Move it away or choose another name.")
    token = uuid.uuid4().hex
    temporary, replaced = parent / f".{token}.new", parent / f".{token}.old"
    try:
        temporary.mkdir()
        yield temporary
        for entry in [*temporary.rglob("*"), temporary]:
            _sync(entry)
        if path.is_dir():
            os.replace(path, replaced)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if replaced.is_dir() and not path.exists():
            os.replace(replaced, path)
        raise
    _sync(parent)
    shutil.rmtree(replaced, ignore_errors=True)
