"""Sets of classified images, held in memory: one class is normal, the others are abnormal."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar

import numpy as np

from .base import ImageSet, Problem, PublishedSet

__all__ = ["ClassifiedSet"]


class ClassifiedSet(PublishedSet):
    """Arrays of images and of their classes: all training images of a class train, all test images test.

    Args:
        root: as :class:`PublishedSet`.
    """

    classes: ClassVar[tuple[str, ...]]
    sides: ClassVar[tuple[str, str]] = ("train", "test")  # the first part of the images' names
    counts: ClassVar[dict[str, tuple[int, ...]]] = {}  # published, of each side and class

    @property
    def problems(self) -> tuple[str, ...]:
        return self.classes

    def problem(self, name: str) -> Problem:
        self.require(name)
        normal = self.classes.index(name)
        training, test = self._parts
        members = np.flatnonzero(training[1] == normal)
        return Problem(
            name,
            self._images(self.sides[0], training, members, normal),
            self._images(self.sides[1], test, np.arange(len(test[1])), normal),
        )

    def check(self) -> list[str]:
        return [*super().check(), *self._count_notes()]

    def _count_notes(self) -> list[str]:
        """How the numbers of images differ from the published ones, in at most two lines a side."""
        notes = []
        for side, (_, classes) in zip(self.sides, self._parts):
            published = self.counts.get(side, ())
            found = np.bincount(classes, minlength=len(self.classes))
            absent = [name for name, count in zip(self.classes, found) if count == 0]
            if absent:
                notes.append(f"{side}: a part of the set: no images of {', '.join(absent)}")
            other = [
                f"{count} of {expected} of {name}"
                for name, count, expected in zip(self.classes, found, published)
                if count not in (0, expected)
            ]
            if other:
                notes.append(f"{side}: not the published number of images: {', '.join(other)}")
        return notes

    @cached_property
    def _parts(self) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        return self._read(self.sides[0]), self._read(self.sides[1])

    @abstractmethod
    def _read(self, side: str) -> tuple[np.ndarray, np.ndarray]:
        """Images of a side, shape (N, H, W) or (N, H, W, 3), uint8, and their classes, shape (N,), int."""

    def _images(
        self, side: str, part: tuple[np.ndarray, np.ndarray], indices: Sequence[int] | np.ndarray, normal: int
    ) -> ImageSet:
        images, classes = part[0], part[1][indices]
        return ImageSet(
            names=tuple(f"{side}/{index:05d}" for index in indices),
            labels=(classes != normal).astype(np.int64),
            read=lambda index: images[indices[index]].copy(),  # whoever gets an image may change it
            kinds=tuple(self.classes[index] for index in classes),
        )
