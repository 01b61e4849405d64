"""Sets of files: images by their paths, and patients on one side alone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from monai_anomaly.exceptions import InputError
from monai_anomaly.io.image_files import list_pictures, picture_size, read_mask, read_picture

from .base import ImageSet, Problem, PublishedSet, count_notes

__all__ = [
    "FileSet",
    "ImageFile",
    "Sides",
    "files_by_stem",
    "image_set",
    "one_class_problem",
    "one_class_sides",
    "patients_fact",
    "without_groups",
]


@dataclass(frozen=True)
class ImageFile:
    """An image of a set, which is read when it is asked for.

    Args:
        path: of the file.
        abnormal: the label.
        kind: its class, defect or lesion type; empty where the set names none.
        group: who or what it is of; empty where that is not known.
        mask: a file, or what gives an array of shape (H, W), bool; None marks nothing.
        position: of a frame in its clip.
        name: where the path does not name it.
        read: gives the image where it is not the whole file.
    """

    path: Path
    abnormal: bool = False
    kind: str = ""
    group: str = ""
    mask: Path | Callable[[], np.ndarray] | None = None
    position: int | None = None
    name: str = ""
    read: Callable[[], np.ndarray] | None = None

    def read_mask(self) -> np.ndarray:
        """Where the image is abnormal, shape (H, W), bool."""
        if isinstance(self.mask, Path):
            return read_mask(self.mask, self.path)
        if self.mask is not None:
            return self.mask()
        return np.zeros(picture_size(self.path) if self.read is None else self.read().shape[:2], dtype=bool)


def image_set(root: Path, files: Sequence[ImageFile], colour: bool = False) -> ImageSet:
    """One side of a problem.

    Args:
        root: what the names are relative to.
        files: of the N images. Groups, kinds and positions count where all have one, masks where all abnormal ones do.
        colour: gray images become colour too.
    """
    readers = [file.read or partial(read_picture, file.path, colour) for file in files]
    masked = any(file.mask for file in files) and all(file.mask for file in files if file.abnormal)

    def whole(values: Iterable[Any], absent: object = "") -> tuple:
        found = tuple(values)
        return () if absent in found else found

    return ImageSet(
        names=tuple(file.name or file.path.relative_to(root).as_posix() for file in files),
        labels=np.array([file.abnormal for file in files], dtype=np.int64),
        read=lambda index: readers[index](),
        groups=whole(file.group for file in files),
        read_mask=(lambda index: files[index].read_mask()) if masked else None,
        kinds=whole(file.kind for file in files),
        positions=whole((file.position for file in files), None),
    )


class Sides(NamedTuple):
    """What trains and what tests.

    Args:
        training: normal images.
        test: normal and abnormal images.
        facts: as in :class:`Problem`.
    """

    training: list[ImageFile]
    test: list[ImageFile]
    facts: dict[str, Any] = {}  # noqa: RUF012 - never changed


class FileSet(PublishedSet):
    """A set whose images lie in files."""

    # published, of a problem: images to train on, normal and abnormal ones to test
    counts: ClassVar[dict[str, Any]] = {}
    counted: ClassVar[str] = ""  # who has these numbers, where it is not the publisher
    colour: ClassVar[bool] = False  # gray images become colour too
    video: ClassVar[bool] = False
    apart: ClassVar[bool] = True  # training images of test patients are left out, and counted

    def problem(self, name: str) -> Problem:
        self.require(name)
        root, sides = self._root(name), self._sides(name)
        training, test = (image_set(root, side, self.colour) for side in (sides.training, sides.test))
        problem = Problem(name, training, test, self.video, sides.facts)
        return one_class_problem(root, problem) if self.apart else problem

    def check(self) -> list[str]:
        notes = super().check()
        for name in self.problems:
            problem = self.problem(name)
            abnormal = int(problem.test.labels.sum())
            training = len(problem.training) + problem.facts.get("left_out", 0)
            found = {
                "images to train on": training,
                "normal images to test": len(problem.test) - abnormal,
                "abnormal images to test": abnormal,
            }
            counts = dict(zip(found, zip(found.values(), self._counts(name))))
            notes += count_notes(name, counts, self.counted)
        return notes

    def _counts(self, name: str) -> Sequence[int]:
        """The published numbers of a problem, where there are any."""
        return self.counts.get(name, ())

    def _root(self, name: str) -> Path:
        """What the images of a problem are named relative to."""
        return self.root

    @abstractmethod
    def _sides(self, name: str) -> Sides:
        """The images of a problem; errors as :meth:`problem`."""


def one_class_sides(
    training: Sequence[Path],
    normal: Sequence[Path],
    abnormal: Sequence[Path],
    *,
    masks: Sequence[Path] | None = None,
    patients: Callable[[Sequence[Path]], Sequence[str]] | None = None,
) -> Sides:
    """Sides of files whose labels are all that is known of each.

    Args:
        training: normal images.
        normal: of the test.
        abnormal: of the test.
        masks: of the abnormal images, in their order; None for a set without.
        patients: from all files to the patient of each, empty strings where these are not known; None: no fact tells.
    """
    files = [*training, *normal, *abnormal]
    groups = [""] * len(files) if patients is None else patients(files)
    first = len(files) - len(abnormal)
    images = [
        ImageFile(file, index >= first, group=group, mask=masks[index - first] if masks and index >= first else None)
        for index, (file, group) in enumerate(zip(files, groups))
    ]
    facts = {} if patients is None else patients_fact(images)
    return Sides(images[: len(training)], images[len(training) :], facts)


def patients_fact(files: Sequence[ImageFile]) -> dict[str, str]:
    """What a result states about the patients."""
    known = all(file.group for file in files)
    return {"patients": "known" if known else "not known, each image counts as its own"}


def files_by_stem(folder: Path) -> dict[str, Path]:
    """The images right in a folder by their stems.

    Raises:
        InputError: if two have the same.
    """
    found: dict[str, Path] = {}
    for path in list_pictures(folder):
        if path.stem in found:
            raise InputError(path, f"has the same stem as {found[path.stem].name}", "Leave one of them.")
        found[path.stem] = path
    return found


def without_groups(pictures: ImageSet, groups: Iterable[str]) -> tuple[ImageSet, int]:
    """Images that are of none of some patients.

    Args:
        images: with groups, or without: then all stay.
        groups: whose images to leave out.

    Returns:
        The others, and how many were left out.
    """
    if not pictures.groups:
        return pictures, 0
    out = set(groups)
    kept = [index for index, group in enumerate(pictures.groups) if group not in out]
    return (pictures, 0) if len(kept) == len(pictures) else (pictures.take(kept), len(pictures) - len(kept))


def one_class_problem(root: Path, problem: Problem) -> Problem:
    """A problem with no patient on both sides: training images of test patients are left out, and counted.

    Args:
        root: what to name in the message.
        problem: as its files have it.

    Returns:
        The problem; its fact ``left_out`` counts the training images that had to go.

    Raises:
        InputError: if no image is left to train on, or a class is missing from the test.
    """
    training, left_out = without_groups(problem.training, problem.test.groups)
    if not len(training):
        found = f"all {left_out} are of test patients" if left_out else "there are none"
        raise InputError(root, f"{problem.name} has no normal image to train on: {found}", "Fetch the whole set.")
    for label, what in ((0, "normal"), (1, "abnormal")):
        if not (problem.test.labels == label).any():
            raise InputError(root, f"{problem.name} has no {what} test image", "Fetch the whole set.")
    return replace(problem, training=training, facts={**problem.facts, "left_out": left_out})
