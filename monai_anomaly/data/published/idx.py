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
from .download import remote_files

__all__ = ["FashionMNIST", "IdxSet", "MNIST", "read_idx"]

_UNSIGNED_BYTE = 8  # the type code of the format; these sets use no other
_PROTOCOL = (
    "The 60,000-image training side of one class trains; all 10,000 test images test, those of the other nine "
    "classes abnormal (DDR-ID, protocol of Deep SVDD; ITAE; HFR-AE)."
)


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


class MNIST(IdxSet):
    """Handwritten digits, 28 x 28, gray."""

    key = "mnist"
    title = "MNIST"
    source = "http://yann.lecun.com/exdb/mnist/"
    licence = "CC BY-SA 3.0"
    citation = "LeCun et al., Gradient-based learning applied to document recognition, Proc. IEEE 1998"
    protocol = _PROTOCOL
    inner = ("raw", "MNIST/raw")
    classes = tuple("0123456789")
    counts: ClassVar[dict[str, tuple[int, ...]]] = {
        "train": (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
        "t10k": (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
    }
    contents: ClassVar[dict[str, str]] = {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    }
    # The publisher's own server gives them no longer; this is the mirror that PyTorch keeps.
    files = remote_files(
        "https://ossci-datasets.s3.amazonaws.com/mnist",
        {
            "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
    )


class FashionMNIST(IdxSet):
    """Images of clothing, 28 x 28, gray."""

    key = "fashion_mnist"
    title = "Fashion-MNIST"
    source = "https://github.com/zalandoresearch/fashion-mnist"
    licence = "MIT"
    citation = "Xiao et al., Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms, 2017"
    protocol = _PROTOCOL
    inner = ("raw", "FashionMNIST/raw")
    # The published names, without what no file name takes.
    classes = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle_boot")
    counts: ClassVar[dict[str, tuple[int, ...]]] = {"train": (6000,) * 10, "t10k": (1000,) * 10}
    contents: ClassVar[dict[str, str]] = {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    }
    files = remote_files(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        {
            "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
    )


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
