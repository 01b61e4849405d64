"""Picture and mask files of published sets, read as they are stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from monai_anomaly.exceptions import InputError

__all__ = ["list_pictures", "picture_reader", "read_mask", "read_picture"]

_EXTENSIONS = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff"})
# How Pillow's modes are read: palettes and alpha are not intensities.
_CONVERSIONS = {"1": "L", "LA": "L", "P": "RGB", "RGBA": "RGB", "CMYK": "RGB", "YCbCr": "RGB"}


def list_pictures(folder: Path) -> list[Path]:
    """The pictures of a folder (not of those below it), by name; empty where there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in _EXTENSIONS and not path.name.startswith(".")
    )


def read_picture(path: Path, colour: bool = False) -> np.ndarray:
    """One picture.

    Args:
        path: of the file.
        colour: gray pictures become colour too.

    Returns:
        shape (H, W) or (H, W, 3), uint8, or uint16 for 16-bit gray.

    Raises:
        InputError: if it is missing or broken.
    """
    from PIL import Image

    try:
        with Image.open(path) as picture:
            mode = "RGB" if colour else _CONVERSIONS.get(picture.mode, picture.mode)
            array = np.asarray(picture if picture.mode == mode else picture.convert(mode))
    # Pillow answers some broken PNG chunks with SyntaxError.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(path, f"cannot be read as a picture ({error})", "Copy or fetch the file again.") from error
    if array.dtype == np.int32:  # Pillow's mode I, as some versions open 16-bit PNG
        array = array.astype(np.uint16)
    return array


def picture_reader(paths: Sequence[Path], colour: bool = False) -> Callable[[int], np.ndarray]:
    """Index -> picture, of a list of files."""
    return lambda index: read_picture(paths[index], colour)


def read_mask(path: Path, picture: Path) -> np.ndarray:
    """The marked pixels of a mask file.

    Args:
        path: of the mask; every value but 0 marks.
        picture: what it is of.

    Returns:
        shape (H, W), bool.

    Raises:
        InputError: if it is missing or broken, or not of the picture's size.
    """
    from PIL import Image

    values = read_picture(path)
    marked = np.any(values > 0, axis=-1) if values.ndim == 3 else values > 0
    with Image.open(picture) as opened:
        size = opened.size[::-1]
    if marked.shape != size:
        shapes = f"{marked.shape[0]} x {marked.shape[1]} pixels, its picture {size[0]} x {size[1]}"
        raise InputError(path, f"has {shapes} (rows x columns)", f"It belongs to {picture}; resize both or neither.")
    return marked
