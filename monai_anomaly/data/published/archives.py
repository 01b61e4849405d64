"""Archives of published sets: fetched, unpacked whole, and left alone where their content is there."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import ClassVar

from monai_anomaly.exceptions import InputError

from .base import PublishedSet
from .download import fetch

__all__ = ["ArchivedSet", "unpack"]


class ArchivedSet(PublishedSet):
    """A set that its publisher offers as archives.

    Args:
        root: its folder.
    """

    unpacks: ClassVar[dict[str, tuple[str, ...]]] = {}  # archive -> what it leaves under the set's folder

    @classmethod
    def download(cls, root: str | Path) -> None:
        """Fetch the archives and unpack them; one whose content is there already is neither fetched nor unpacked.

        Args:
            root: the folder that they go to; the archives stay in it.

        Raises:
            InputError: if the set is fetched by hand, a download fails, or an archive is not as published.
        """
        root = Path(root)
        if cls.by_hand or not cls.unpacks:
            raise InputError(root, f"{cls.title} cannot be downloaded by a program", cls.how_to_get())
        for file in cls.files:
            if file.name in cls.unpacks and not all((root / name).exists() for name in cls.unpacks[file.name]):
                unpack(fetch(file, root), root)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar or zip archive, whole or not at all.

    Args:
        archive: ``.tar``, ``.tar.gz`` or ``.zip``.
        folder: where its content goes; files of the same names are replaced.

    Raises:
        InputError: if it is broken, or would write outside the folder.
    """
    # Beside the final place, so that moving is renaming.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unpacking-") as name:
        try:
            if archive.suffix == ".zip":
                with zipfile.ZipFile(archive) as zipped:
                    zipped.extractall(name)
            else:
                with tarfile.open(archive) as tar:
                    tar.extractall(name, filter="data")
        except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            raise InputError(archive, f"cannot be unpacked ({error})", "Delete it and fetch it again.") from error
        for path in sorted(Path(name).rglob("*")):
            target = folder / path.relative_to(name)
            if path.is_dir():
                target.mkdir(exist_ok=True)
            else:
                shutil.move(path, target)
