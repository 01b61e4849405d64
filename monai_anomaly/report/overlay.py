"""A scan with its map and mask painted on, slice by slice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from monai_anomaly.io.dicom_out import MASK_RGB
from monai_anomaly.io.image_files import display_window

if TYPE_CHECKING:
    from monai.data import MetaTensor

__all__ = ["overlay_pictures"]

# As in overview.png: the strongest score hides this much of the scan.
_OPACITY = 0.75
_WORDS = ("RESEARCH", "USE", "ONLY")
# The smallest letters that can be read, and how many fit across a large slice.
_LEAST_LETTER, _LETTERS_ACROSS = 8, 48


def overlay_pictures(
    scan: MetaTensor, anomaly_map: np.ndarray, anomaly_mask: np.ndarray | None, top: float
) -> Iterator[np.ndarray]:
    """Paint each slice along the last axis: the map in colour, more opaque the higher it is, and the mask's outline.

    "RESEARCH USE ONLY" is written into every image, since images leave the files that say so.

    Args:
        scan: (C, columns, rows, slices); shown between its usual percentiles.
        anomaly_map: (columns, rows, slices).
        anomaly_mask: (columns, rows, slices), bool; None for no outline.
        top: the map's value at the top of the colour scale, which begins at 0.

    Yields:
        (rows, columns, 3), uint8, slice by slice.
    """
    from matplotlib import colormaps
    from scipy.ndimage import binary_erosion

    raw = np.asarray(scan)
    if len(raw) != 3 or raw.shape[-1] != 1:
        raw = raw[:1]  # of several channels the first; colour is one slice of three
    low, high = display_window(raw) if len(raw) == 1 else (float(raw.min()), float(raw.max()))
    width = np.float32(max(high - low, float(np.finfo(np.float32).tiny)))
    colours = colormaps["inferno"](np.arange(256))[:, :3].astype(np.float32)
    for index in range(raw.shape[-1]):
        shown = np.clip((raw[..., index].transpose(2, 1, 0) - np.float32(low)) / width, 0, 1)
        share = np.clip(np.asarray(anomaly_map[..., index], np.float32).T / np.float32(top), 0, 1)
        opacity = _OPACITY * share[..., None]
        heat = colours[np.rint(255 * share).astype(np.uint8)]
        painted = np.rint(255 * (shown * (1 - opacity) + heat * opacity)).astype(np.uint8)
        if anomaly_mask is not None:
            inside = np.asarray(anomaly_mask[..., index], dtype=bool).T
            painted[inside & ~binary_erosion(inside)] = MASK_RGB
        yield _stamped(painted)


def _stamped(picture: np.ndarray) -> np.ndarray:
    from PIL import Image, ImageDraw, ImageFont

    image = Image.fromarray(picture)
    size = max(_LEAST_LETTER, picture.shape[1] // _LETTERS_ACROSS)
    font = ImageFont.load_default(size)
    draw = ImageDraw.Draw(image)
    text = " ".join(_WORDS)
    if draw.textlength(text, font=font) > picture.shape[1]:
        text = "\n".join(_WORDS)  # small slices
    draw.text((1, 1), text, fill=(255, 214, 74), font=font, stroke_width=1, stroke_fill=(0, 0, 0))
    return np.array(image)
