"""Files and folders written whole or not at all: aside first, then renamed into place."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from monai_anomaly.exceptions import InputError

__all__ = ["atomic_folder", "atomic_path", "clear_aside", "ensure_writable", "others_in"]

# What files and folders are called while they are written or replaced.
_ASIDE = re.compile(r"\.[0-9a-f]{32}(\..*)?")


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
def atomic_folder(path: str | Path, own: Callable[[Path], Collection[str]] | None = None) -> Iterator[Path]:
    """Fill a folder aside and rename it into place when the block ends well.

    Args:
        path: the folder to write. Its parent is made where it is missing.
        own: names the entries of an existing folder that are replaced; all others stay. None: it is replaced whole.

    Yields:
        A new, empty, hidden folder beside ``path``. When the block raises, it is removed and ``path`` is left as it
        was. After a kill ``clear_aside`` does the same.

    Raises:
        InputError: if the parent cannot be written to, ``path`` is a file, or an entry that is to stay has the name of
            a new one.
    """
    path = Path(path)
    parent = ensure_writable(path.parent)
    if path.exists() and not path.is_dir():
        raise InputError(path, "is a file, where a folder is to be written", "Move it away or choose another name.")
    token = uuid.uuid4().hex
    # the name within tells clear_aside where a replaced folder belongs
    temporary, replaced = parent / f".{token}.new", parent / f".{token}.old" / path.name
    try:
        temporary.mkdir()
        yield temporary
        if own is not None and path.is_dir():
            for entry in others_in(path, own):
                if (temporary / entry.name).exists():
                    raise InputError(entry, "was not written by this package, and would be replaced", "Rename it.")
                _link(entry, temporary / entry.name)
        for entry in [*temporary.rglob("*"), temporary]:
            if not entry.is_symlink():
                _sync(entry)
        if path.is_dir():
            replaced.parent.mkdir()
            os.replace(path, replaced)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if replaced.is_dir() and not path.exists():
            os.replace(replaced, path)
        if replaced.parent.is_dir():
            replaced.parent.rmdir()
        raise
    _sync(parent)
    shutil.rmtree(replaced.parent, ignore_errors=True)


def clear_aside(folder: str | Path, own: Callable[[Path], Collection[str]]) -> None:
    """Undo what killed processes left of ``atomic_path`` and ``atomic_folder``; call it while none is at work there.

    Args:
        folder: that their targets lie in.
        own: see ``atomic_folder``.
    """
    folder = Path(folder)
    for entry in [entry for entry in folder.iterdir() if _ASIDE.fullmatch(entry.name)]:
        if not entry.is_dir():
            entry.unlink()
            continue
        if entry.suffix == ".old":
            for replaced in list(entry.iterdir()):
                target = folder / replaced.name
                if not target.exists():
                    os.replace(replaced, target)
                    continue
                for other in others_in(replaced, own):
                    if not (target / other.name).exists():
                        os.replace(other, target / other.name)
        shutil.rmtree(entry)


def others_in(folder: Path, own: Callable[[Path], Collection[str]]) -> list[Path]:
    """The entries of a folder that are somebody else's.

    Args:
        folder: need not exist.
        own: see ``atomic_folder``.

    Returns:
        Their paths; what a killed process left half written is nobody's.
    """
    if not folder.is_dir():
        return []
    names = own(folder)
    return [entry for entry in folder.iterdir() if entry.name not in names and not _ASIDE.fullmatch(entry.name)]


def _link(source: Path, target: Path) -> None:
    """The same file or folder under a second name: links cost nothing, and the first name stays until all is done."""
    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, symlinks=True, copy_function=_link_file)
    else:
        _link_file(source, target)


def _link_file(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # file systems without hard links
        shutil.copy2(source, target, follow_symlinks=False)
