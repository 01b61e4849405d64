"""Image and mask files of published sets, read as they are stored."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from monai_anomaly.exceptions import InputError
from monai_anomaly.io.untrusted import DEFLATE_RATIO, check_deflated, check_holds, check_readable, refuse_damage

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "check_pixels",
    "check_tiff",
    "display_window",
    "list_pictures",
    "natural_key",
    "open_picture",
    "picture_reader",
    "picture_size",
    "read_mask",
    "read_picture",
    "upright",
]

PICTURE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff"})
# Whose compression blurs.
_LOSSY = frozenset({".jpeg", ".jpg"})
# How Pillow's modes are read: palettes and alpha are not intensities.
_CONVERSIONS = {"1": "L", "LA": "L", "P": "RGB", "RGBA": "RGB", "CMYK": "RGB", "YCbCr": "RGB"}
# What Pillow may decode. It goes by a file's first bytes, not by its name, and has decoders that start other programs.
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "PPM")
# TIFF compressions that hold a bounded number of bytes in one: none, LZW (4,096 in 12 bits), deflate, PackBits.
_TIFF_RATIOS = {1: 1, 5: 2731, 8: DEFLATE_RATIO, 32946: DEFLATE_RATIO, 32773: 64}
# What gray images are shown between: the usual percentiles against single bright voxels.
_WINDOW_PERCENTILES = (0.5, 99.5)
# Of larger volumes these are taken of every second, third, ... voxel.
_WINDOW_VOXELS = 1 << 20


def display_window(values: np.ndarray) -> tuple[float, float]:
    """The values of a gray scan that are shown black and white.

    Args:
        values: any shape, finite.

    Returns:
        The 0.5th and the 99.5th percentile, of more than a million values an estimate.
    """
    flat = values.ravel()
    low, high = np.percentile(flat[:: 1 + flat.size // _WINDOW_VOXELS], _WINDOW_PERCENTILES)
    return float(low), float(high)


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """A key that sorts names with numbers as one reads them: ``2.png`` before ``10.png``.

    Args:
        name: of a file or folder.
    """
    parts = re.split(r"([0-9]+)", name)
    return (*((1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts), (0, 0, name))


def list_pictures(folder: Path) -> list[Path]:
    """The images of a folder (not of those below it), in natural order; empty where there is no such folder."""
    if not folder.is_dir():
        return []
    found = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".") and path.is_file()
    ]
    return sorted(found, key=lambda path: natural_key(path.name))


@contextmanager
def open_picture(path: Path) -> Iterator[Image]:
    """Open an image of a known format that its file can hold; its pixels are decoded within the block.

    Args:
        path: of the file.

    Yields:
        Pillow's image.

    Raises:
        InputError: if the file is missing, of another format, larger than its file can hold or than Pillow's limit
            (``PIL.Image.MAX_IMAGE_PIXELS``, twice), or what is done in the block finds it broken.
    """
    from PIL import Image

    size = check_readable(path)
    with refuse_damage(path, "cannot be read as an image"):
        with Image.open(path, formats=_FORMATS) as picture:
            if picture.format == "PNG":  # of one bit a pixel at the least
                check_holds(path, picture.width * picture.height // 8, DEFLATE_RATIO * size)
                picture.verify()  # the chunks' checksums, which decoding passes over
            elif picture.format == "TIFF":
                check_tiff(path)
        with Image.open(path, formats=_FORMATS) as picture:
            yield picture


def check_pixels(path: Path, pixels: int) -> None:
    """Apply Pillow's limit on pixels to an image that another library decodes.

    Raises:
        InputError: if there are more.
    """
    from PIL import Image

    most = 2 * (Image.MAX_IMAGE_PIXELS or pixels)
    if pixels > most:
        raise InputError(path, f"has {pixels} pixels, more than the limit of {most}", "Save it smaller.")


def check_tiff(path: Path) -> None:
    """Check that a TIFF file can hold the pixels that its first page states, not too many, and that they are whole.

    Raises:
        InputError: if it cannot, or its directory or the checksum of a strip is broken.
    """
    import tifffile

    with refuse_damage(path, "cannot be read as an image"), tifffile.TiffFile(path) as file:
        page = file.pages.first
        pixels = page.imagewidth * page.imagelength
        if not pixels:
            raise ValueError("it has no pixel")
        check_pixels(path, pixels)
        ratio, size = _TIFF_RATIOS.get(int(page.compression)), check_readable(path)
        if ratio is not None:
            bits = page.bitspersample  # a tuple where the samples differ
            bits = sum(bits) if isinstance(bits, tuple) else bits * page.samplesperpixel
            check_holds(path, pixels * bits // 8, ratio * size)
        if ratio == DEFLATE_RATIO:  # libtiff passes over the checksums
            if sum(page.databytecounts) > size:
                raise ValueError("its strips are longer than the file")
            for offset, count in zip(page.dataoffsets, page.databytecounts):
                file.filehandle.seek(offset)
                check_deflated(path, BytesIO(file.filehandle.read(count)))


def read_picture(path: Path, colour: bool = False) -> np.ndarray:
    """One image.

    Args:
        path: of the file.
        colour: gray images become colour too.

    Returns:
        shape (H, W) or (H, W, 3), uint8, or uint16 for 16-bit gray.

    Raises:
        InputError: if it is missing, broken, or holds other numbers.
    """
    with open_picture(path) as picture:
        mode = "RGB" if colour else _CONVERSIONS.get(picture.mode, picture.mode)
        array = np.asarray(picture if picture.mode == mode else picture.convert(mode))
    if array.dtype == np.int32 and array.size and array.min() >= 0 and array.max() <= np.iinfo(np.uint16).max:
        array = array.astype(np.uint16)
    if array.dtype not in (np.uint8, np.uint16):
        raise InputError(path, f"holds {array.dtype}", "Gray and colour images of 8 or 16 bits are read.")
    return array


def picture_reader(paths: Sequence[Path], colour: bool = False) -> Callable[[int], np.ndarray]:
    """Index -> image, of a list of files."""
    return lambda index: read_picture(paths[index], colour)


def picture_size(path: Path) -> tuple[int, int]:
    """Rows and columns of an image, from its header.

    Raises:
        InputError: if it is missing or broken.
    """
    with open_picture(path) as picture:
        return picture.height, picture.width


def read_mask(path: Path, picture: Path | None = None) -> np.ndarray:
    """The marked pixels of a mask file.

    Args:
        path: of the mask. Any value above 0 marks; in JPEG files, whose compression blurs, those above half the range.
        image: what it is of, which must be as large; None: not checked.

    Returns:
        shape (H, W), bool.

    Raises:
        InputError: if it is missing or broken, or not of the image's size.
    """
    values = read_picture(path)
    marked = values > (np.iinfo(values.dtype).max // 2 if path.suffix.lower() in _LOSSY else 0)
    if marked.ndim == 3:
        marked = np.asarray(marked.any(axis=-1))
    if picture is not None and marked.shape != (size := picture_size(picture)):
        shapes = f"{marked.shape[0]} x {marked.shape[1]} pixels, its image {size[0]} x {size[1]}"
        raise InputError(path, f"has {shapes} (rows x columns)", f"It belongs to {picture}; fetch both again.")
    return marked


def upright(array: np.ndarray, picture: Image) -> np.ndarray:
    """Turn a 2-D image as viewers show it.

    Args:
        array: (rows, columns) or (rows, columns, C), as stored.
        image: the opened file, whose EXIF or XMP orientation tag counts. Pillow turns TIFF files itself.

    Returns:
        The array flipped or turned by the tag; as it is where there is none.
    """
    picture.load()
    try:
        orientation = picture.getexif().get(0x0112, 1)
    except SyntaxError:  # no EXIF that can be read: viewers show the image as stored
        orientation = 1
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return array[:, ::-1] if orientation in (2, 3, 6, 7) else array
