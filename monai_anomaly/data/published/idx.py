"""MNIST and Fashion-MNIST, in the idx files in which they are published."""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path
from typing import ClassVar

import numpy as np

from monai_anomaly.exceptions import InputError

from .classes import ClassifiedSet

__all__ = ["FashionMNIST", "IdxSet", "MNIST", "read_idx"]

_UNSIGNED_BYTE = 8  # the type code of the format; these sets use no other


class IdxSet(ClassifiedSet):
    """Four idx files: images and labels of the training and of the test side.

    Args:
        root: the folder with the files, packed (``.gz``) or not, or one above it as torchvision lays it out
            (``MNIST/raw``).

    Raises:
        InputError: if the folder is missing.
    """

    sides = ("train", "t10k")
    contents: ClassVar[dict[str, str]]  # unpacked file -> MD5

    def check(self) -> list[str]:
        # What counts is what the files hold, however they were packed.
        paths = {self._path(name): md5 for name, md5 in self.contents.items()}
        notes = [
            f"{path}: is not the published content (MD5 of the unpacked file differs)"
            for path, md5 in paths.items()
            if hashlib.md5(_content(path), usedforsecurity=False).hexdigest() != md5
        ]
        return [*notes, *self._count_notes()]

    def _path(self, name: str) -> Path:
        plain = self.root / name
        return plain if plain.is_file() else self.there(self.root / f"{name}.gz")

    def _read(self, side: str) -> tuple[np.ndarray, np.ndarray]:
        path, label_path = self._path(f"{side}-images-idx3-ubyte"), self._path(f"{side}-labels-idx1-ubyte")
        images, labels = read_idx(path), read_idx(label_path)
        if images.ndim != 3 or images.shape[1:] != (28, 28):
            raise self.wrong(path, f"holds an array of shape {images.shape}, not N images of 28 x 28")
        if labels.shape != (len(images),):
            raise self.wrong(label_path, f"holds labels of shape {labels.shape} for {len(images)} images")
        if not len(labels) or labels.max() >= len(self.classes):
            raise self.wrong(label_path, "holds no labels, or labels above 9")
        return images, labels.astype(np.int64)


class MNIST(IdxSet, key="mnist"):
    """Handwritten digits, 28 x 28, gray."""


class FashionMNIST(IdxSet, key="fashion_mnist"):
    """Images of clothing, 28 x 28, gray."""


def read_idx(path: Path) -> np.ndarray:
    """The array of an idx file of unsigned bytes.

    Args:
        path: of the file, gzipped if it ends in ``.gz``.

    Raises:
        InputError: if it is no such file, truncated, or longer than it says.
    """
    content = _content(path)
    remedy = "Fetch the file again."
    if len(content) < 4 or content[:3] != bytes((0, 0, _UNSIGNED_BYTE)):
        raise InputError(path, "is no idx file of unsigned bytes", remedy)
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise InputError(path, "is truncated within its header", remedy)
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    if len(content) - start != math.prod(shape):
        found = f"{len(content) - start} bytes where its header says {math.prod(shape)}"
        raise InputError(path, f"is truncated or damaged: {found}", remedy)
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _content(path: Path) -> bytes:
    """A file's bytes, unpacked."""
    if path.suffix != ".gz":
        return path.read_bytes()
    try:
        with gzip.open(path) as file:
            return file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(path, f"cannot be unpacked ({error})", "Fetch the file again.") from error
