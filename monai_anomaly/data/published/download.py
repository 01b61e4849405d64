"""Fetching published files: whole and checked, or not at all."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from monai_anomaly.exceptions import InputError

__all__ = ["RemoteFile", "fetch", "file_digest", "unpack"]


@dataclass(frozen=True)
class RemoteFile:
    """A file as its publisher offers it.

    Args:
        name: what it is called under the set's folder.
        url: where it is fetched from; empty where the publisher wants it fetched by hand.
        sha256: of its content, hexadecimal; empty where none is published.
        md5: of its content, where that is all that is published.
        size: bytes; 0 where unknown.
    """

    name: str
    url: str = ""
    sha256: str = ""
    md5: str = ""
    size: int = 0

    def difference(self, path: Path) -> str:
        """How a copy differs from the published file; empty where it does not, or nothing is published.

        Args:
            path: of the copy, which exists.
        """
        if self.size and path.stat().st_size != self.size:
            return f"has {path.stat().st_size} bytes, the published one {self.size}"
        algorithm, expected = self.checksum
        if expected and file_digest(path, algorithm) != expected:
            return f"is not the published file ({algorithm} differs)"
        return ""

    @property
    def checksum(self) -> tuple[str, str]:
        """The algorithm and the digest by which the file is checked; an empty digest checks nothing."""
        return ("sha256", self.sha256) if self.sha256 else ("md5", self.md5)


def fetch(file: RemoteFile, root: Path, unpacks: Sequence[str] = ()) -> None:
    """Download a file, and unpack an archive, unless the file or what it unpacks to is there.

    Args:
        file: what to fetch.
        root: the folder that it goes to.
        unpacks: what an archive leaves there; empty for a file that is read as it is.

    Raises:
        InputError: if the server does not give it, its content is not the published one, or it cannot be unpacked;
            nothing is left behind but a whole archive.
    """
    from monai.apps.utils import HashCheckError, download_url

    target = root / file.name
    if unpacks and all((root / name).exists() for name in unpacks):
        return
    if not target.is_file():
        algorithm, expected = file.checksum
        part = target.with_name(target.name + ".part")
        try:
            download_url(file.url, part, expected or None, algorithm, progress=False)
            part.replace(target)
        except HashCheckError as error:
            problem = f"does not have the published {algorithm}"
            raise InputError(file.url, problem, "Try again, or fetch it by hand.") from error
        except (OSError, RuntimeError) as error:
            problem = f"could not be downloaded ({error})"
            raise InputError(file.url, problem, f"Fetch it by hand to {target}.") from error
        finally:
            part.unlink(missing_ok=True)
    if unpacks:
        unpack(target, root)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar or zip archive, whole or not at all.

    Args:
        archive: ``.tar``, ``.tar.gz`` or ``.zip``.
        folder: where its content goes; files of the same names are replaced.

    Raises:
        InputError: if it is broken, or would write outside the folder.
    """
    from monai.apps.utils import extractall

    # Beside the final place, so that moving is renaming.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unpacking-") as name:
        try:
            extractall(archive, name, has_base=False)
        except Exception as error:  # each format and its compression have errors of their own
            raise InputError(archive, f"cannot be unpacked ({error})", "Delete it and fetch it again.") from error
        for path in sorted(Path(name).rglob("*")):
            target = folder / path.relative_to(name)
            if path.is_dir():
                target.mkdir(exist_ok=True)
            else:
                path.replace(target)


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """The hexadecimal digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
