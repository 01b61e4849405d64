"""Slices of cases as small PNG files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from .evaluation import CaseSlice
from .overview import ScanView

if TYPE_CHECKING:
    from monai.data import MetaTensor
    from PIL.Image import Image

__all__ = ["Panel", "case_panels", "case_slice", "colour_bar", "map_top"]

# Tells outlines apart from tissue, and from one another for colour-blind readers.
_MASK_RGB, _REFERENCE_RGB = (86, 212, 255), (255, 214, 74)


@dataclass(frozen=True)
class Panel:
    """One image of a case.

    Attributes:
        name: ``input``, ``restoration``, ``anomaly map``, ``mask`` or ``reference``.
        caption: the name with what matters of the image.
        alt: what it shows, in words.
        png: the file; empty where there is nothing to show.
        size: (width, height) in pixels.
        absent: why there is nothing to show; empty where there is.
    """

    name: str
    caption: str
    alt: str
    png: bytes
    size: tuple[int, int] = (0, 0)
    absent: str = ""


def case_slice(
    scan: MetaTensor,
    restoration: np.ndarray | None,
    anomaly_map: np.ndarray,
    anomaly_mask: np.ndarray | None,
    *,
    slice_axis: str = "axial",
    reference_mask: np.ndarray | None = None,
    by: Literal["score", "reference"] = "score",
) -> CaseSlice:
    """The slice of a scan that stands for it in the report, turned and windowed as in ``overview.png``.

    Args:
        scan: the scan as loaded, (C, X, Y, Z), or (C, rows, columns, 1) for an image, as
            :func:`monai_anomaly.report.draw_overview` takes it.
        restoration: (C, X, Y, Z), in the scan's units; None where the detector restores nothing.
        anomaly_map: (X, Y, Z).
        anomaly_mask: (X, Y, Z); None for no mask.
        slice_axis: ``axial``, ``coronal`` or ``sagittal``; without effect on images.
        reference_mask: (X, Y, Z); None for no reference.
        by: ``score`` takes the slice of the highest score, ``reference`` the one with the most reference voxels, where
            there are any: a lesion that was missed lies elsewhere than the highest score.

    Returns:
        Small arrays that do not keep the scan in memory: images of 8 bits, the map as float32, masks as bool.
    """
    view = ScanView(scan, slice_axis)
    scores = view.slices(np.asarray(anomaly_map, dtype=np.float32))
    masks = [
        None if mask is None else view.slices(np.asarray(mask, dtype=bool)) for mask in (anomaly_mask, reference_mask)
    ]
    index, chosen_by = int(scores.max(axis=(1, 2)).argmax()), "highest score"
    if by == "reference" and masks[1] is not None and masks[1].any():
        index, chosen_by = int(masks[1].sum(axis=(1, 2)).argmax()), "largest reference area"
    raw = np.asarray(scan)
    window = view.window(raw)

    def eight_bits(array: np.ndarray) -> np.ndarray:
        return np.round(255 * view.shades(array, index, window)).astype(np.uint8)

    return CaseSlice(
        image=eight_bits(raw),
        restoration=None if restoration is None else eight_bits(restoration),
        anomaly_map=scores[index].copy(),
        mask=None if masks[0] is None else masks[0][index].copy(),
        reference=None if masks[1] is None else masks[1][index].copy(),
        window=(0.0, 255.0),
        aspect=view.aspect,
        label="" if view.picture else f"{view.plane} slice {index} ({chosen_by})",
        letters=view.letters,
    )


def map_top(slices: Sequence[CaseSlice], threshold: float | None) -> float:
    """The score at the top of the colour scale that all maps of a page share, so that they can be compared.

    Args:
        slices: as ``case_slice`` returns them.
        threshold: of the mask; always within the scale, so that a reader sees what it cuts.

    Returns:
        The 99.8th percentile of all pixels, or 1.25 times the threshold where that is higher: a few extreme pixels
        would leave every other map black. Above 0.
    """
    pooled = np.concatenate([np.asarray(each.anomaly_map, dtype=np.float32).ravel() for each in slices])
    top = max(float(np.percentile(pooled, 99.8)), 1.25 * (threshold or 0.0))
    return top if top > 0 else float(pooled.max()) if pooled.max() > 0 else 1.0


def _inferno() -> np.ndarray:
    from matplotlib import colormaps

    return (255 * colormaps["inferno"](np.arange(256))[:, :3]).round().astype(np.uint8)


def _png(picture: Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def _heat(levels: np.ndarray) -> bytes:
    """(rows, columns) in [0, 1] as inferno; the palette keeps the file small."""
    from PIL import Image

    picture = Image.fromarray(np.round(255 * np.clip(levels, 0.0, 1.0)).astype(np.uint8), mode="P")
    picture.putpalette(_inferno().tobytes())
    return _png(picture)


def colour_bar() -> bytes:
    """The colour scale of the maps, lowest score at the left: a PNG of 256 x 1 pixels."""
    return _heat(np.linspace(0.0, 1.0, 256)[None])


def case_panels(case: str, drawn: CaseSlice, top: float, side: int) -> list[Panel]:
    """The five images of a case.

    Args:
        case: its name, for the alternative texts.
        drawn: as ``case_slice`` returns it.
        top: the score of the brightest colour; the scale begins at 0.
        side: longest side in pixels. Larger slices are averaged down (any part of a mask is kept), smaller ones are
            enlarged without smoothing.

    Returns:
        Input, restoration, anomaly map, mask and reference; masks as outlines on the input.
    """
    from PIL import Image

    image = np.asarray(drawn.image, dtype=np.float32)
    height, width = image.shape[0] * drawn.aspect, float(image.shape[1])
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    low, high = drawn.window or (float(image.min()), float(image.max()))
    span = max(high - low, float(np.finfo(np.float32).tiny))

    def resized(array: np.ndarray) -> np.ndarray:
        if array.ndim == 3:
            return np.stack([resized(array[..., channel]) for channel in range(3)], axis=-1)
        plane = Image.fromarray(np.ascontiguousarray(array, dtype=np.float32))
        return np.asarray(plane.resize(size, Image.Resampling.BOX))

    def shades(array: np.ndarray) -> np.ndarray:
        return np.round(255 * np.clip((resized(array) - low) / span, 0.0, 1.0)).astype(np.uint8)

    gray = shades(image)

    def outlined(mask: np.ndarray, colour: tuple[int, int, int]) -> bytes:
        from scipy.ndimage import binary_dilation, binary_erosion

        # 1e-6 and not 0: resampling rounds
        inside = resized(mask != 0) > 1e-6
        # inside the border, so that the outline of a lesion at the image's edge is closed
        line = inside & ~binary_erosion(inside, iterations=2)
        rim = binary_dilation(inside) & ~inside
        if gray.ndim == 3:
            painted = gray.copy()
            painted[rim], painted[line] = 0, colour
            return _png(Image.fromarray(painted))
        # gray levels up to 254, the last one for the outline: a third of the size of a colour image
        levels = np.minimum(gray, 254)
        levels[rim], levels[line] = 0, 255
        picture = Image.fromarray(levels, mode="P")
        palette = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
        palette[255] = colour
        picture.putpalette(palette.tobytes())
        return _png(picture)

    where = f" ({drawn.label})" if drawn.label else ""
    panels = [Panel("input", "input", f"Input of {case}{where}", _png(Image.fromarray(gray)), size)]
    if drawn.restoration is None:
        panels.append(Panel("restoration", "", "", b"", absent="this detector restores no image"))
    else:
        restored = shades(np.asarray(drawn.restoration, dtype=np.float32))
        panels.append(
            Panel("restoration", "restoration", f"What {case} was restored to", _png(Image.fromarray(restored)), size)
        )
    scores = np.asarray(drawn.anomaly_map, dtype=np.float32)
    alt = f"Anomaly map of {case}, highest score {scores.max():.4g}"
    panels.append(
        Panel("anomaly map", f"anomaly map, peak {scores.max():.4g}", alt, _heat(resized(scores) / top), size)
    )
    for name, mask, colour, absent in (
        ("mask", drawn.mask, _MASK_RGB, "no calibrated threshold"),
        ("reference", drawn.reference, _REFERENCE_RGB, "none is given"),
    ):
        if mask is None:
            panels.append(Panel(name, "", "", b"", absent=absent))
            continue
        share = float((np.asarray(mask) != 0).mean())
        what = f"{100 * share:.2g} % of its pixels" if share else "none in this slice"
        alt = f"{name.capitalize()} of {case} as an outline: {what}"
        panels.append(Panel(name, f"{name}: {what}", alt, outlined(np.asarray(mask), colour), size))
    return panels
