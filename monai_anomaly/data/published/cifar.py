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


class CIFAR10(CifarSet, key="cifar10"):
    """Ten classes of things and animals."""


class CIFAR100(CifarSet, key="cifar100"):
    """A hundred classes in twenty superclasses, which are the problems."""


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
