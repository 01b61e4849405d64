"""Sets of classified images: one class is normal, the others are abnormal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .base import ImageSet, Problem

__all__ = ["ClassifiedPictures", "class_counts", "one_against_rest"]


@dataclass(frozen=True)
class ClassifiedPictures:
    """One published side of a set of classified images, held in memory.

    Args:
        side: what it is called (``"train"``), the first part of the images' names.
        images: shape (N, H, W) or (N, H, W, 3), uint8.
        classes: shape (N,), int, the class of each.
    """

    side: str
    images: np.ndarray
    classes: np.ndarray


def one_against_rest(
    name: str, training: ClassifiedPictures, test: ClassifiedPictures, class_names: Sequence[str]
) -> Problem:
    """The usual protocol: train on all training images of a class, test on all test images.

    Args:
        name: of the normal class.
        training: the published training side; of it the normal class alone is used.
        test: the published test side; images of other classes are abnormal.
        class_names: of all classes.
    """
    normal = list(class_names).index(name)
    return Problem(
        name=name,
        training=_pictures(training, np.flatnonzero(training.classes == normal), normal, class_names),
        test=_pictures(test, np.arange(len(test.classes)), normal, class_names),
    )


def class_counts(part: ClassifiedPictures, class_names: Sequence[str], published: Sequence[int]) -> list[str]:
    """How the numbers of images differ from the published ones, in at most two lines.

    Args:
        part: one side of a set.
        class_names: of all classes.
        published: number of images of each class.
    """
    found = np.bincount(part.classes, minlength=len(class_names))
    absent = [name for name, count in zip(class_names, found) if count == 0]
    other = [
        f"{count} of {expected} of {name}"
        for name, count, expected in zip(class_names, found, published)
        if count not in (0, expected)
    ]
    notes = [f"a part of the set: no images of {', '.join(absent)}"] if absent else []
    return notes + ([f"not the published number of images: {', '.join(other)}"] if other else [])


def _pictures(part: ClassifiedPictures, indices: np.ndarray, normal: int, class_names: Sequence[str]) -> ImageSet:
    classes = part.classes[indices]
    return ImageSet(
        names=tuple(f"{part.side}/{index:05d}" for index in indices),
        labels=(classes != normal).astype(np.int64),
        read=_reader(part.images, indices),
        kinds=tuple(class_names[index] for index in classes),
    )


def _reader(images: np.ndarray, indices: np.ndarray) -> Callable[[int], np.ndarray]:
    # A copy: whoever gets an image may change it.
    return lambda index: images[indices[index]].copy()
