"""What readers of image folders share: images in files, and patients on one side alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from monai_anomaly.exceptions import InputError
from monai_anomaly.io.image_files import list_pictures, picture_size, read_mask, read_picture

from .base import ImageSet, Problem

__all__ = [
    "files_by_stem",
    "find_folder",
    "folder_pictures",
    "one_class_problem",
    "without_groups",
]


def find_folder(root: Path, *candidates: str) -> Path | None:
    """The first folder of several spellings that is there.

    Args:
        root: what they are relative to.
        candidates: relative paths, the published one first.
    """
    return next((root / name for name in candidates if (root / name).is_dir()), None)


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


def folder_pictures(
    root: Path,
    files: Sequence[Path],
    labels: Sequence[int],
    *,
    groups: Sequence[str] = (),
    masks: Sequence[Path | None] | None = None,
    kinds: Sequence[str] = (),
    positions: Sequence[int] = (),
) -> ImageSet:
    """Images that lie in files, named by their paths.

    Args:
        root: what the names are relative to.
        files: of the N images.
        labels: N, 0 normal and 1 abnormal.
        groups: as in :class:`ImageSet`.
        masks: of each image its mask file; None marks nothing in it. None for a set without masks.
        kinds: as in :class:`ImageSet`.
        positions: as in :class:`ImageSet`.
    """
    paths = list(files)
    read: Callable[[int], np.ndarray] | None = None
    if masks is not None:
        read = partial(_mask_of, paths, list(masks))
    return ImageSet(
        names=tuple(path.relative_to(root).as_posix() for path in paths),
        labels=np.asarray(labels, dtype=np.int64).reshape(len(paths)),
        read=lambda index: read_picture(paths[index]),
        groups=tuple(groups),
        read_mask=read,
        kinds=tuple(kinds),
        positions=tuple(positions),
    )


def _mask_of(files: list[Path], masks: list[Path | None], index: int) -> np.ndarray:
    mask = masks[index]
    return np.zeros(picture_size(files[index]), dtype=bool) if mask is None else read_mask(mask, files[index])


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
