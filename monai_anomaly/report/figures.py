"""The pictures of a report as bytes: curves and histograms as SVG, slices of cases as small PNG files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from monai_anomaly.exceptions import InputError
from monai_anomaly.io.picture_files import upright
from monai_anomaly.report.evaluation import KINDS, CaseSlice, Curve
from monai_anomaly.report.overview import _gray_or_colour, _View

if TYPE_CHECKING:
    from monai.data import MetaTensor
    from PIL.Image import Image

__all__ = ["Panel", "case_panels", "case_slice", "colour_bar", "draw_curves", "draw_histogram", "load_slice", "map_top"]

# Curves in one figure; more cannot be told apart.
MOST_CURVES = 8
_AXES = {
    "roc": ("false positive rate (1 - specificity)", "sensitivity"),
    "pr": ("recall (sensitivity)", "precision"),
    "froc": ("false lesions per scan", "sensitivity to lesions"),
}
# Okabe and Ito's colours, those dark enough on white; every curve also has a line style and a marker of its own.
_COLOURS = ("#0072B2", "#D55E00", "#000000", "#009E73", "#CC79A7", "#7A5C00", "#56B4E9", "#5D3A9B")
_STYLES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (5, 5)))
_MARKERS = ("o", "s", "^", "D", "v", "x", "P", "*")
# Small in inches, so that its letters are still large where a phone shows it 350 pixels wide.
_FIGURE_INCHES = (4.0, 3.2)
# Tells outlines apart from tissue, and from one another for colour-blind readers.
_MASK_RGB, _REFERENCE_RGB = (86, 212, 255), (255, 214, 74)
_HISTOGRAM_BINS = 24


def _svg(figure: Any) -> bytes:
    """Equal figures give equal bytes."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "monai-anomaly", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _figure(extra_height: float = 0.0) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_FIGURE_INCHES[0], _FIGURE_INCHES[1] + extra_height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.grid(True, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _legend(figure: Any, handles: Sequence[Any], labels: Sequence[str]) -> None:
    # a name that begins with an underscore would be left out
    shown = [f" {label}" if label.startswith("_") else label for label in labels]
    legend = figure.legend(
        handles=list(handles), labels=shown, loc="outside lower left", frameon=False, fontsize=9, handlelength=3.2
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _short(name: str, length: int = 42) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


def shown_curves(curves: Sequence[Curve]) -> list[Curve]:
    """Those that one figure holds, methods before baselines before picture statistics."""
    return sorted(curves, key=lambda curve: KINDS.index(curve.kind))[:MOST_CURVES]


def draw_curves(curves: Sequence[Curve], chance: float | None = None) -> bytes:
    """ROC, precision-recall or FROC curves in one figure.

    Args:
        curves: of one level and one pair of axes; the first eight are drawn, methods before baselines before picture
            statistics, each with a colour, a line style and a marker of its own.
        chance: of precision-recall curves, the precision of a random ranking, drawn as a thin line. The diagonal of
            ROC curves is always drawn.

    Returns:
        An SVG.

    Raises:
        ValueError: if there is no curve, or the axes differ.
    """
    if len({curve.axes for curve in curves}) != 1:
        raise ValueError("give curves of one kind of axes.")
    axes_name = curves[0].axes
    drawn = shown_curves(curves)
    figure, axes = _figure(0.2 * len(drawn))
    handles, labels = [], []
    for number, curve in enumerate(drawn):
        thinned = curve.thinned()
        x, y = np.asarray(thinned.x), np.asarray(thinned.y)
        if x.size and x[0] > x[-1]:  # as scikit-learn gives recall; steps are drawn from left to right
            x, y = x[::-1], y[::-1]
        (line,) = axes.plot(
            x,
            y,
            color=_COLOURS[number],
            linestyle=_STYLES[number],
            linewidth=2.2 if curve.kind == "method" else 1.5,
            marker=_MARKERS[number],
            markersize=5,
            # at different places on different curves, by length along the axes
            markevery=(0.03 * number, 0.25),
            drawstyle="steps-pre" if axes_name == "pr" else "default",
            zorder=4 if curve.kind == "method" else 3,
        )
        handles.append(line)
        labels.append(_short(curve.detector) + ("" if curve.kind == "method" else f" ({curve.kind})"))
    if axes_name == "roc":
        handles += axes.plot([0, 1], [0, 1], color="#767676", linewidth=0.8)
        labels.append("chance")
    elif axes_name == "pr" and chance is not None:
        handles += axes.plot([0, 1], [chance, chance], color="#767676", linewidth=0.8)
        labels.append(f"chance ({chance:.3g})")
    axes.set(xlabel=_AXES[axes_name][0], ylabel=_AXES[axes_name][1], ylim=(-0.02, 1.02))
    if axes_name != "froc":
        axes.set(xlim=(-0.02, 1.02))
    _legend(figure, handles, labels)
    return _svg(figure)


def draw_histogram(groups: Sequence[tuple[str, np.ndarray]], threshold: float | None, xlabel: str) -> bytes:
    """Histograms of groups of scores over the same bins, each as shares of its own group.

    The score axis is logarithmic where all scores are positive and the middle 98 % of them span two decades or more.

    Args:
        groups: (name, scores of shape (n,)); up to three groups with scores. Told apart by fill, hatching and line
            style as well as by colour.
        threshold: drawn as a vertical line; None for none.
        xlabel: the name of the score.

    Returns:
        An SVG.

    Raises:
        ValueError: if there is no score at all.
    """
    from matplotlib.patches import Patch

    groups = [(name, np.asarray(scores, dtype=np.float64)) for name, scores in groups if len(scores)]
    if not groups:
        raise ValueError("no scores: there is no histogram to draw.")
    pooled = np.concatenate([scores for _, scores in groups])
    low, high = float(pooled.min()), float(pooled.max())
    if threshold is not None:
        low, high = min(low, threshold), max(high, threshold)
    inner = np.percentile(pooled, (1, 99))
    logarithmic = low > 0 and inner[1] >= 100 * inner[0]
    if low == high:
        low, high = low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0)
    bins = np.geomspace(low, high, _HISTOGRAM_BINS + 1) if logarithmic else np.linspace(low, high, _HISTOGRAM_BINS + 1)
    # rounding must not leave the extreme scores outside
    bins[0], bins[-1] = low, high

    figure, axes = _figure(0.2 * (len(groups) + 1))
    looks: tuple[dict[str, Any], ...] = (
        {"facecolor": "none", "edgecolor": "#000000", "linestyle": "--", "linewidth": 1.8},
        {"facecolor": "#56B4E955", "edgecolor": "#0072B2", "hatch": "....", "linewidth": 1.4},
        {"facecolor": "#D55E0055", "edgecolor": "#A04000", "hatch": "////", "linewidth": 1.4},
        {"facecolor": "none", "edgecolor": "#5D3A9B", "linestyle": ":", "linewidth": 1.8},
    )
    handles, labels = [], []
    order = {"calibration": 0, "normal": 1, "abnormal": 2}
    for name, scores in groups:
        look = looks[order.get(name.split()[0], 3)]
        axes.hist(scores, bins=bins, weights=np.full(scores.size, 1.0 / scores.size), histtype="stepfilled", **look)
        handles.append(Patch(**look))
        labels.append(f"{name} (n = {scores.size})")
    if threshold is not None:
        handles.append(axes.axvline(threshold, color="#B00000", linewidth=2.0, linestyle=(0, (6, 2))))
        labels.append(f"threshold {threshold:.4g}")
    if logarithmic:
        axes.set_xscale("log")
    axes.set_xlabel(_short(xlabel), parse_math=False)
    axes.set_ylabel("share of the group")
    _legend(figure, handles, labels)
    return _svg(figure)


# ---- slices of cases ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Panel:
    """One picture of a case.

    Attributes:
        name: ``input``, ``restoration``, ``anomaly map``, ``mask`` or ``reference``.
        caption: the name with what matters of the picture.
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
        scan: the scan as loaded, (C, X, Y, Z), or (C, rows, columns, 1) for a picture, as
            :func:`monai_anomaly.report.draw_overview` takes it.
        restoration: (C, X, Y, Z), in the scan's units; None where the detector restores nothing.
        anomaly_map: (X, Y, Z).
        anomaly_mask: (X, Y, Z); None for no mask.
        slice_axis: ``axial``, ``coronal`` or ``sagittal``; without effect on pictures.
        reference_mask: (X, Y, Z); None for no reference.
        by: ``score`` takes the slice of the highest score, ``reference`` the one with the most reference voxels, where
            there are any: a lesion that was missed lies elsewhere than the highest score.

    Returns:
        Small arrays that do not keep the scan in memory: images of 8 bits, the map as float32, masks as bool.
    """
    view = _View(scan, slice_axis)
    scores = view.slices(np.asarray(anomaly_map, dtype=np.float32))
    masks = [
        None if mask is None else view.slices(np.asarray(mask, dtype=bool)) for mask in (anomaly_mask, reference_mask)
    ]
    index, chosen_by = int(scores.max(axis=(1, 2)).argmax()), "highest score"
    if by == "reference" and masks[1] is not None and masks[1].any():
        index, chosen_by = int(masks[1].sum(axis=(1, 2)).argmax()), "largest reference area"
    raw = np.asarray(scan)
    image, restored = _gray_or_colour(raw, raw if restoration is None else restoration, view.picture)

    def eight_bits(array: np.ndarray) -> np.ndarray:
        return np.round(255 * view.slices(array)[index]).astype(np.uint8)

    return CaseSlice(
        image=eight_bits(image),
        restoration=None if restoration is None else eight_bits(restored),
        anomaly_map=scores[index].copy(),
        mask=None if masks[0] is None else masks[0][index].copy(),
        reference=None if masks[1] is None else masks[1][index].copy(),
        window=(0.0, 255.0),
        aspect=view.aspect,
        label="" if view.picture else f"{view.plane} slice {index} ({chosen_by})",
        letters=view.letters,
    )


def load_slice(case: str, given: CaseSlice) -> CaseSlice:
    """A slice with its files read.

    Args:
        case: the case's name, for errors.
        given: arrays or files.

    Returns:
        Arrays only.

    Raises:
        InputError: if a file cannot be read, the map is no array of finite scores, or shapes differ.
    """
    from PIL import Image

    def read(source: np.ndarray | str | Path | None) -> np.ndarray | None:
        if not isinstance(source, str | Path):
            return None if source is None else np.asarray(source)
        try:
            with Image.open(source) as picture:
                plain = picture.convert("RGB") if picture.mode in ("P", "RGBA", "CMYK") else picture
                return upright(np.asarray(plain), picture)
        except OSError as error:
            raise InputError(source, f"cannot be read ({error})", "The report needs it as a picture.") from error

    names = ("image", "restoration", "anomaly_map", "mask", "reference")
    arrays = {name: read(getattr(given, name)) for name in names}
    image = arrays["image"]
    if image is None or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        raise InputError(case, "its picture is neither (rows, columns) nor (rows, columns, 3)")
    for name in names[1:]:
        array = arrays[name]
        if array is None:
            continue
        expected = image.shape if name == "restoration" else image.shape[:2]
        if array.shape != expected:
            raise InputError(case, f"its {name} has the shape {array.shape}, the picture asks for {expected}")
    scores = arrays["anomaly_map"]
    if scores is None or not np.isfinite(scores).all():
        raise InputError(case, "its anomaly map has values that are not finite")
    return replace(
        given,
        image=image,
        restoration=arrays["restoration"],
        anomaly_map=scores,
        mask=arrays["mask"],
        reference=arrays["reference"],
    )


def map_top(slices: Sequence[CaseSlice], threshold: float | None) -> float:
    """The score at the top of the colour scale that all maps of a page share, so that they can be compared.

    Args:
        slices: as :func:`load_slice` returns them.
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
    """The five pictures of a case.

    Args:
        case: its name, for the alternative texts.
        drawn: as :func:`load_slice` returns it.
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
        # inside the border, so that the outline of a lesion at the picture's edge is closed
        line = inside & ~binary_erosion(inside, iterations=2)
        rim = binary_dilation(inside) & ~inside
        if gray.ndim == 3:
            painted = gray.copy()
            painted[rim], painted[line] = 0, colour
            return _png(Image.fromarray(painted))
        # gray levels up to 254, the last one for the outline: a third of the size of a colour picture
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
