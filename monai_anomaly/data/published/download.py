"""Fetching published files: whole and checked, or not at all."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from monai_anomaly.exceptions import InputError

__all__ = ["RemoteFile", "fetch", "file_digest"]


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


def fetch(file: RemoteFile, root: Path) -> Path:
    """Download a file unless it is there.

    Args:
        file: what to fetch.
        root: the folder that it goes to.

    Returns:
        Where it is.

    Raises:
        InputError: if the server does not give it, or its content is not the published one; nothing is left behind.
    """
    from monai.apps.utils import HashCheckError, download_url

    target = root / file.name
    if target.is_file():
        return target
    algorithm = "sha256" if file.sha256 else "md5"
    part = target.with_name(target.name + ".part")
    try:
        download_url(file.url, part, getattr(file, algorithm) or None, algorithm, progress=False)
        part.replace(target)
    except HashCheckError as error:
        problem = f"does not have the published {algorithm}"
        raise InputError(file.url, problem, "Try again, or fetch it by hand.") from error
    except (OSError, RuntimeError) as error:
        raise InputError(file.url, f"could not be downloaded ({error})", f"Fetch it by hand to {target}.") from error
    finally:
        part.unlink(missing_ok=True)
    return target


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """The hexadecimal digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
