"""CIFAR-10 and CIFAR-100, in the Python version in which they are published."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from monai_anomaly.exceptions import InputError

from .classes import ClassifiedSet
from .download import RemoteFile, remote_files

__all__ = ["CIFAR10", "CIFAR100", "CifarSet", "read_batch"]


class CifarSet(ClassifiedSet):
    """Images of 32 x 32, colour, in pickled batches.

    Args:
        root: the unpacked folder (``cifar-10-batches-py``), or the one above it.

    Raises:
        InputError: if the folder is missing.
    """

    label_key: ClassVar[str]
    batches: ClassVar[dict[str, tuple[str, ...]]]  # of each side

    @property
    def problems(self) -> tuple[str, ...]:
        """The classes that this copy has training images of."""
        (_, classes), _ = self._parts
        return tuple(self.classes[index] for index in np.unique(classes))

    def _read(self, side: str) -> tuple[np.ndarray, np.ndarray]:
        batches = [self._batch(self.there(self.root / name)) for name in self.batches[side]]
        images, classes = zip(*batches)
        return np.concatenate(images), np.concatenate(classes)

    def _batch(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        batch = read_batch(path)
        data, labels = batch.get("data"), np.asarray(batch.get(self.label_key, ()))
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3072,):
            raise self.wrong(path, "holds no images of 3 x 32 x 32 bytes under 'data'")
        fits = labels.shape == data.shape[:1] and (not len(labels) or labels.dtype.kind in "iu")
        if not fits or not np.isin(labels, np.arange(len(self.classes))).all():
            expected = f"{len(data)} labels from 0 to {len(self.classes) - 1}"
            raise self.wrong(path, f"does not hold {expected} under {self.label_key!r}")
        return data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels.astype(np.int64)


class CIFAR10(CifarSet):
    """Ten classes of things and animals."""

    key = "cifar10"
    title = "CIFAR-10 (Python version)"
    source = "https://www.cs.toronto.edu/~kriz/cifar.html"
    licence = "none stated; the authors ask to cite the report"
    citation = "Krizhevsky, Learning multiple layers of features from tiny images, 2009"
    protocol = (
        "The 5,000 training images of one class train; all 10,000 test images test, those of the other nine "
        "classes abnormal (DDR-ID, protocol of Deep SVDD; ITAE; HFR-AE)."
    )
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    inner = ("cifar-10-batches-py",)
    label_key = "labels"
    batches: ClassVar[dict[str, tuple[str, ...]]] = {
        "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
        "test": ("test_batch",),
    }
    counts: ClassVar[dict[str, tuple[int, ...]]] = {"train": (5000,) * 10, "test": (1000,) * 10}
    unpacks: ClassVar[dict[str, tuple[str, ...]]] = {
        "cifar-10-python.tar.gz": ("cifar-10-batches-py/data_batch_5", "cifar-10-batches-py/test_batch")
    }
    files = (
        *remote_files(
            "https://www.cs.toronto.edu/~kriz",
            {"cifar-10-python.tar.gz": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"},
        ),
        RemoteFile("data_batch_1", md5="c99cafc152244af753f735de768cd75f"),
        RemoteFile("data_batch_2", md5="d4bba439e000b95fd0a9bffe97cbabec"),
        RemoteFile("data_batch_3", md5="54ebc095f3ab1f0389bbae665268c751"),
        RemoteFile("data_batch_4", md5="634d18415352ddfa80567beed471001a"),
        RemoteFile("data_batch_5", md5="482c414d41f54cd18b22e5b47cb7c3cb"),
        RemoteFile("test_batch", md5="40351d587109b95175f43aff81a1287e"),
    )


class CIFAR100(CifarSet):
    """A hundred classes in twenty superclasses, which are the problems."""

    key = "cifar100"
    title = "CIFAR-100 (Python version)"
    source = "https://www.cs.toronto.edu/~kriz/cifar.html"
    licence = "none stated; the authors ask to cite the report"
    citation = "Krizhevsky, Learning multiple layers of features from tiny images, 2009"
    protocol = (
        "The 2,500 training images of one superclass train; all 10,000 test images test, those of the other "
        "nineteen superclasses abnormal (ITAE)."
    )
    classes = (
        "aquatic_mammals",
        "fish",
        "flowers",
        "food_containers",
        "fruit_and_vegetables",
        "household_electrical_devices",
        "household_furniture",
        "insects",
        "large_carnivores",
        "large_man-made_outdoor_things",
        "large_natural_outdoor_scenes",
        "large_omnivores_and_herbivores",
        "medium_mammals",
        "non-insect_invertebrates",
        "people",
        "reptiles",
        "small_mammals",
        "trees",
        "vehicles_1",
        "vehicles_2",
    )
    inner = ("cifar-100-python",)
    label_key = "coarse_labels"
    batches: ClassVar[dict[str, tuple[str, ...]]] = {
        "train": ("train",),
        "test": ("test",),
    }
    counts: ClassVar[dict[str, tuple[int, ...]]] = {"train": (2500,) * 20, "test": (500,) * 20}
    unpacks: ClassVar[dict[str, tuple[str, ...]]] = {
        "cifar-100-python.tar.gz": ("cifar-100-python/train", "cifar-100-python/test")
    }
    files = (
        *remote_files(
            "https://www.cs.toronto.edu/~kriz",
            {"cifar-100-python.tar.gz": "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"},
        ),
        RemoteFile("train", md5="16019d7e3df5f24257cddd939b257f8d"),
        RemoteFile("test", md5="f0ef6b0ae62326f3e7ffdfab6717acfc"),
    )


def read_batch(path: Path) -> dict[str, Any]:
    """A pickled batch, without running any code that it may carry.

    Args:
        path: of the pickle; written by Python 2 or 3.

    Returns:
        Its dictionary, with keys as text.

    Raises:
        InputError: if it is broken, no dictionary, or holds more than numbers, text, containers and arrays.
    """
    try:
        content = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except _RefusedError as error:
        raise InputError(path, f"is not loaded: {error}", "Fetch it from its publisher again.") from error
    except Exception as error:  # damaged pickles fail in every way there is
        kind = type(error).__name__
        raise InputError(path, f"is truncated or damaged ({kind}: {error})", "Fetch the file again.") from error
    if not isinstance(content, dict):
        raise InputError(path, f"holds a {type(content).__name__}, not a batch", "Fetch the file again.")
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in content.items()}


class _RefusedError(pickle.UnpicklingError):
    """A pickle asks for more than arrays."""


class _ArrayUnpickler(pickle.Unpickler):
    """Makes arrays; rejects every other global, so that loading runs nothing."""

    def find_class(self, module: str, name: str) -> Any:
        if (found := _ALLOWED.get((module, name))) is None:
            raise _RefusedError(f"it asks for {module}.{name}, and batches hold arrays alone")
        return found


def _encode(text: str, encoding: str = "latin1") -> bytes:
    # Python 3 writes bytes so where it writes pickles for Python 2.
    return text.encode("latin1")


_reconstruct: Callable[..., np.ndarray] = np.zeros(0).__reduce__()[0]  # type: ignore[assignment]
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("_codecs", "encode"): _encode,
}
