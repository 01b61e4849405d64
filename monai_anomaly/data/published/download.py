"""Fetching published files: whole and checked, or not at all."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

from monai_anomaly.exceptions import InputError

from .base import RemoteFile, file_digest

__all__ = ["fetch"]

_CHUNK = 1 << 20


def fetch(file: RemoteFile, root: Path, timeout: float = 60.0) -> Path:
    """Download a file unless it is there.

    Args:
        file: what to fetch.
        root: the folder that it goes to.
        timeout: seconds without an answer.

    Returns:
        Where it is.

    Raises:
        InputError: if the server does not give it, or its content is not the published one; nothing is left behind.
    """
    target = root / file.name
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    try:
        with urllib.request.urlopen(file.url, timeout=timeout) as answer, part.open("wb") as out:
            while chunk := answer.read(_CHUNK):
                out.write(chunk)
        for algorithm in ("sha256", "md5"):
            expected = getattr(file, algorithm)
            if expected and file_digest(part, algorithm) != expected:
                raise InputError(
                    file.url, f"does not have the published {algorithm}", "Try again, or fetch it by hand."
                )
        part.replace(target)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise InputError(file.url, f"could not be downloaded ({error})", f"Fetch it by hand to {target}.") from error
    finally:
        part.unlink(missing_ok=True)
    return target
