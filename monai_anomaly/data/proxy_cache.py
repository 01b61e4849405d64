"""An on-disk cache of named arrays, safe for several processes: superpixel images are made once, not once an epoch."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from monai_anomaly.exceptions import InputError

__all__ = ["CACHE_VERSION", "ArrayCache"]

CACHE_VERSION = 1
"""Part of every key. Raise it when a transform's result changes for the same parameters."""

_RECORD = "key.json"
_logger = logging.getLogger(__name__)


class ArrayCache:
    """Named arrays on disk, each entry found by the SHA-256 of what it was made from.

    An entry is a folder ``<folder>/<first 2 hex>/<hash>/`` of one plain ``<name>.npy`` per array and a ``key.json``
    with the key's parts and each file's SHA-256. It is written under another name and renamed when whole, so readers
    never see half of it, and of two processes that make the same entry the later one discards its own.

    Args:
        folder: where the entries live, made if absent; ``None`` keeps nothing: every call computes.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else Path(folder)

    def get(self, key_parts: dict[str, Any], make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """The arrays of this key: from disk, or made and kept.

        Every file is checked against its SHA-256 on each read; an entry that fails is logged and made anew.

        Args:
            key_parts: JSON-able values that say all that the arrays depend on: the content hash of the file they come
                from (not its name) and every parameter. :data:`CACHE_VERSION` is added. Equal JSON is an equal key:
                order of the items does not matter, and a tuple is a list.
            make: computes the arrays by name; called only where they are not on disk. Names must be identifiers.

        Returns:
            Arrays by name with shapes, dtypes and values as ``make`` gave them. From a folder they are read-only
            memory maps, so copy what you change or hand to torch; without a folder they are ``make``'s own.

        Raises:
            InputError: if the folder cannot be read or written.
            TypeError: if ``key_parts`` cannot be written as JSON.
            ValueError: if ``key_parts`` holds NaN or infinity, a name is no identifier, or an array holds objects.
        """
        if self.folder is None:
            return make()
        key = json.dumps({"cache_version": CACHE_VERSION, "parts": key_parts}, sort_keys=True, allow_nan=False)
        digest = hashlib.sha256(key.encode()).hexdigest()
        entry = self.folder / digest[:2] / digest
        found = self._guard(_read, entry, key)
        if found is None:
            arrays = make()
            self._guard(_write, entry, key, arrays)
            # absent only where another process is replacing the entry at this moment
            found = self._guard(_read, entry, key) or arrays
        return found

    def _guard(self, act: Callable[..., Any], *args: Any) -> Any:
        """Run a step on the disk; name the folder where the disk rejects."""
        try:
            return act(*args)
        except OSError as error:
            problem = f"the cache folder cannot be used ({error})"
            raise InputError(str(self.folder), problem, "Name a folder that can be read and written.") from error


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read(entry: Path, key: str) -> dict[str, np.ndarray] | None:
    """The entry's arrays; None where it is absent or not what was written."""
    if not entry.is_dir():
        return None
    try:
        record = json.loads((entry / _RECORD).read_text(encoding="utf-8"))
        if record["key"] != json.loads(key):
            raise ValueError("its record names another key")
        for name, sha256 in record["files"].items():
            if _sha256(entry / f"{name}.npy") != sha256:
                raise ValueError(f"{name}.npy has changed")
        return {name: np.load(entry / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in record["files"]}
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
        _logger.warning("cache entry %s is damaged and will be made anew: %s", entry, error)
        return None


def _write(entry: Path, key: str, arrays: dict[str, np.ndarray]) -> None:
    """Write the entry aside, then put it in place unless a sound one is there by now."""
    aside = entry.with_name(f".{entry.name}.{uuid.uuid4().hex}")
    aside.mkdir(parents=True)
    try:
        files = {}
        for name, array in arrays.items():
            if not name.isidentifier():
                raise ValueError(f"an array's name must be an identifier, got {name!r}")
            file = aside / f"{name}.npy"
            np.save(file, np.asarray(array), allow_pickle=False)
            files[name] = _sha256(file)
        record = {"key": json.loads(key), "files": files}
        (aside / _RECORD).write_text(json.dumps(record, indent=1, sort_keys=True), encoding="utf-8")
        if entry.exists() and _read(entry, key) is None:
            _discard(entry)
        try:
            os.rename(aside, entry)
        except OSError as error:
            # taken: another process put its own there (it may be gone again by now); anything else, the disk rejects
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) and not entry.exists():
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _discard(entry: Path) -> None:
    """Take a damaged entry out of sight in one step, then delete it."""
    away = entry.with_name(f".{entry.name}.{uuid.uuid4().hex}")
    try:
        os.rename(entry, away)
    except FileNotFoundError:  # another process was first
        return
    shutil.rmtree(away, ignore_errors=True)
