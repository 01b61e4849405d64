"""What readers of picture folders share: natural order, reading pictures and masks, patients on one side alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from monai_anomaly.exceptions import InputError

from .base import Pictures, Problem

__all__ = [
    "files_by_stem",
    "find_folder",
    "folder_pictures",
    "natural_key",
    "one_class_problem",
    "picture_files",
    "read_mask",
    "read_picture",
    "without_groups",
]

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_LOSSY = (".jpg", ".jpeg")


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """A key that sorts names with numbers as one reads them: ``2.png`` before ``10.png``.

    Args:
        name: of a file or folder.
    """
    parts = re.split(r"([0-9]+)", name)
    return (*((1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts), (0, 0, name))


def picture_files(folder: Path) -> list[Path]:
    """The pictures right in a folder, in natural order; hidden files are passed over.

    Args:
        folder: one that exists.
    """
    found = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".") and path.is_file()
    ]
    return sorted(found, key=lambda path: natural_key(path.name))


def find_folder(root: Path, *candidates: str) -> Path | None:
    """The first folder of several spellings that is there.

    Args:
        root: what they are relative to.
        candidates: relative paths, the published one first.
    """
    return next((root / name for name in candidates if (root / name).is_dir()), None)


def files_by_stem(folder: Path) -> dict[str, Path]:
    """The pictures right in a folder by their stems.

    Raises:
        InputError: if two have the same.
    """
    found: dict[str, Path] = {}
    for path in picture_files(folder):
        if path.stem in found:
            raise InputError(path, f"has the same stem as {found[path.stem].name}", "Leave one of them.")
        found[path.stem] = path
    return found


def read_picture(path: Path) -> np.ndarray:
    """A picture as it is published.

    Args:
        path: of a picture file.

    Returns:
        (H, W), or (H, W, 3) for colour, uint8 or uint16.

    Raises:
        InputError: if it cannot be read or has other numbers.
    """
    from monai_anomaly.transforms.load import read_voxels

    array = read_voxels(path).array[..., 0]
    if array.dtype == np.int32 and array.size and array.min() >= 0 and array.max() <= np.iinfo(np.uint16).max:
        array = array.astype(np.uint16)  # how Pillow gives some 16-bit files
    if array.dtype not in (np.uint8, np.uint16) or array.shape[0] not in (1, 3):
        problem = f"holds {array.shape[0]} channel(s) of {array.dtype}"
        raise InputError(path, problem, "Gray and colour pictures of 8 or 16 bits are read.")
    return array[0] if array.shape[0] == 1 else np.ascontiguousarray(np.moveaxis(array, 0, -1))


def read_mask(path: Path, picture: Path | None = None) -> np.ndarray:
    """Where a mask picture marks something.

    Args:
        path: of the mask. Any value above 0 marks; in JPEG files, whose compression blurs, those above half the range.
        picture: whose mask it is, which must be as large.

    Returns:
        (H, W), bool.

    Raises:
        InputError: if it cannot be read or is of another size.
    """
    array = read_picture(path)
    threshold = np.iinfo(array.dtype).max // 2 if path.suffix.lower() in _LOSSY else 0
    mask = array > threshold if array.ndim == 2 else np.asarray((array > threshold).any(axis=-1))
    if picture is not None and (size := _size(picture)) != mask.shape:
        raise InputError(path, f"the mask has size {mask.shape} and its picture {picture} {size}", "Fetch both again.")
    return mask


def _size(path: Path) -> tuple[int, int]:
    """Rows and columns, from the header."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return picture.height, picture.width
    except (OSError, SyntaxError) as error:
        raise InputError(path, f"cannot be read as a picture ({error})", "Copy or fetch the file again.") from error


def folder_pictures(
    root: Path,
    files: Sequence[Path],
    labels: Sequence[int],
    *,
    groups: Sequence[str] = (),
    masks: Sequence[Path | None] | None = None,
    kinds: Sequence[str] = (),
    positions: Sequence[int] = (),
) -> Pictures:
    """Pictures that lie in files, named by their paths.

    Args:
        root: what the names are relative to.
        files: of the N pictures.
        labels: N, 0 normal and 1 abnormal.
        groups: as in :class:`Pictures`.
        masks: of each picture its mask file; None marks nothing in it. None for a set without masks.
        kinds: as in :class:`Pictures`.
        positions: as in :class:`Pictures`.
    """
    paths = list(files)
    read: Callable[[int], np.ndarray] | None = None
    if masks is not None:
        read = partial(_mask_of, paths, list(masks))
    return Pictures(
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
    return np.zeros(_size(files[index]), dtype=bool) if mask is None else read_mask(mask, files[index])


def without_groups(pictures: Pictures, groups: Iterable[str]) -> tuple[Pictures, int]:
    """Pictures that are of none of some patients.

    Args:
        pictures: with groups, or without: then all stay.
        groups: whose pictures to leave out.

    Returns:
        The others, and how many were left out.
    """
    if not pictures.groups:
        return pictures, 0
    out = set(groups)
    kept = [index for index, group in enumerate(pictures.groups) if group not in out]
    return (pictures, 0) if len(kept) == len(pictures) else (pictures.take(kept), len(pictures) - len(kept))


def one_class_problem(root: Path, problem: Problem) -> Problem:
    """A problem with no patient on both sides: training pictures of test patients are left out, and counted.

    Args:
        root: what to name in the message.
        problem: as its files have it.

    Returns:
        The problem; its fact ``left_out`` counts the training pictures that had to go.

    Raises:
        InputError: if no picture is left to train on, or a class is missing from the test.
    """
    training, left_out = without_groups(problem.training, problem.test.groups)
    if not len(training):
        found = f"all {left_out} are of test patients" if left_out else "there are none"
        raise InputError(root, f"{problem.name} has no normal picture to train on: {found}", "Fetch the whole set.")
    for label, what in ((0, "normal"), (1, "abnormal")):
        if not (problem.test.labels == label).any():
            raise InputError(root, f"{problem.name} has no {what} test picture", "Fetch the whole set.")
    return replace(problem, training=training, facts={**problem.facts, "left_out": left_out})
