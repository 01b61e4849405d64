"""What a scan's files hold: their bytes, for caches, and what they show, for copies that are packed otherwise."""

from __future__ import annotations

import gzip
import os
from collections.abc import Sequence
from functools import lru_cache
from hashlib import file_digest, sha256
from pathlib import Path

import numpy as np

from monai_anomaly.io.dicom import is_dicom_file
from monai_anomaly.io.image_files import open_picture, upright
from monai_anomaly.io.load import NIFTI_SUFFIXES, PICTURE_SUFFIXES, scan_suffix
from monai_anomaly.io.series import scan_files
from monai_anomaly.io.untrusted import check_readable, refuse_damage

__all__ = ["content_hash", "shown_digest"]

# A NIfTI-1 header with the four bytes that say whether extensions follow.
_NIFTI_HEADER = 352
_BLOCK = 1 << 20


def content_hash(image: str | Sequence[str], series: str | None = None) -> str:
    """SHA-256 of what a scan's files hold, whatever they are called.

    Args:
        image: path of a file or DICOM folder, or a list of them.
        series: which series of a DICOM folder with several; None: all that is in the folder.

    Returns:
        64 hexadecimal digits. For one file, the digest of its bytes; for a folder, of the sorted digests of its files;
        for a list of several, of their digests in turn.

    Raises:
        InputError: where a file cannot be read.
    """
    paths = [Path(image)] if isinstance(image, (str, os.PathLike)) else [Path(path) for path in image]
    digests = []
    for path in paths:
        with refuse_damage(path):
            if path.is_dir():
                parts = sorted(_file_hash(file) for file in scan_files(path, series))
                digests.append(sha256("".join(parts).encode()).hexdigest())
            else:
                digests.append(_file_hash(path))
    return digests[0] if len(digests) == 1 else sha256("".join(digests).encode()).hexdigest()


def shown_digest(path: Path, most: int = -1, series: str | None = None) -> str:
    """Digest of what an image shows, however it is packed: recompressed or converted copies have the same.

    Args:
        path: of a scan.
        most: voxel bytes of a NIfTI file that are read at the most; -1 reads all.
        series: as for ``content_hash``.

    Raises:
        InputError: where the file cannot be read or is damaged.
    """
    with refuse_damage(path):
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        stats = [(file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return _digest_of(path.absolute(), tuple(stats), most, series)


@lru_cache(maxsize=1 << 16)
def _digest_of(path: Path, stats: tuple[tuple[int, int], ...], most: int, series: str | None) -> str:
    """``shown_digest``, once for each state of a file: the check for known scans, tables and report all ask for it."""
    suffix = scan_suffix(path).lower()
    check_readable(path)
    with refuse_damage(path):
        if path.is_dir():
            files = filter(is_dicom_file, scan_files(path, series))
            return sha256("".join(sorted(_file_hash(file) for file in files)).encode()).hexdigest()
        if suffix in PICTURE_SUFFIXES:
            with open_picture(path) as picture:
                pixels = upright(np.asarray(picture), picture)
            return sha256(f"{pixels.shape}{pixels.dtype}".encode() + pixels.tobytes()).hexdigest()
        if suffix in NIFTI_SUFFIXES:
            with gzip.open(path) if suffix.endswith(".gz") else path.open("rb") as file:
                header = file.read(_NIFTI_HEADER)
                # bytes 40 to 55 are the dimensions, 70 to 73 the type of a voxel
                digest = sha256(header[40:56] + header[70:74])
                while block := file.read(_BLOCK if most < 0 else min(_BLOCK, most)):
                    digest.update(block)
                    if most >= 0 and (most := most - len(block)) <= 0:
                        break
            return digest.hexdigest()
        return _file_hash(path)


def _file_hash(path: Path) -> str:
    check_readable(path)
    with refuse_damage(path), path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
