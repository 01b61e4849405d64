"""One image that shows what the detector saw: input, restoration, anomaly map and overlay of the worst slices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from monai_anomaly.io.atomic import atomic_path
from monai_anomaly.io.image_files import display_window

if TYPE_CHECKING:
    from monai.data import MetaTensor

__all__ = ["ScanView", "draw_overview"]

# World axis (right, anterior, superior) along which the slices of a plane are stacked.
_PLANES = {"sagittal": 0, "coronal": 1, "axial": 2}
# Rows nearer to each other than a common clinical slice thickness would show the same finding again.
_ROW_DISTANCE_MM = 5.0
# The page, in inches: a panel's long side, margins that hold title, row labels and colour bar, and the least
# cell that holds a column's title and a row's label.
_PANEL_INCHES = 2.5
_LEFT, _TOP, _BOTTOM, _GAP = 0.45, 0.6, 0.6, 0.05
_LEAST_COLUMN, _LEAST_ROW = 1.5, 1.1
# Light blue and white: told apart by colour-blind readers, and neither is in the inferno map.
_MASK_COLOUR, _REFERENCE_COLOUR = "#56D4FF", "#FFFFFF"
# Left, right, top and bottom of a panel.
_LETTER_PLACES: tuple[dict[str, Any], ...] = (
    {"x": 0.02, "y": 0.5, "ha": "left", "va": "center"},
    {"x": 0.98, "y": 0.5, "ha": "right", "va": "center"},
    {"x": 0.5, "y": 0.98, "ha": "center", "va": "top"},
    {"x": 0.5, "y": 0.02, "ha": "center", "va": "bottom"},
)


def draw_overview(
    path: str | Path,
    scan: MetaTensor,
    restoration: np.ndarray,
    anomaly_map: np.ndarray,
    anomaly_mask: np.ndarray | None,
    *,
    slice_axis: str = "axial",
    reference_mask: np.ndarray | None = None,
    num_slices: int = 4,
    vmax: float | None = None,
    title: str = "",
) -> None:
    """Draw the most anomalous slices of a scan, one row each: input, restoration, anomaly map and overlay.

    Slices are taken along the voxel axis that is nearest to the anatomical axis, so nothing is resampled, by their
    highest score, most anomalous first. Rows lie at least 5 mm apart where the volume is thick enough. Volumes are
    drawn in radiological orientation: axial and coronal slices with the patient's right at the left of the image,
    sagittal ones with anterior at the left; letters at the panels' edges say so. Pixels have the voxels' true
    proportions. Images are drawn upright, as stored. Of a volume with several channels the first is drawn.

    Args:
        path: the PNG to write.
        scan: the scan as loaded, (C, X, Y, Z), or (C, rows, columns, 1) for an image, with ``scan_kind`` in its meta
            and an affine in mm (RAS).
        restoration: the normal image restored, (C, X, Y, Z), in the scan's units; shown in the scan's gray window.
        anomaly_map: anomaly scores, (X, Y, Z).
        anomaly_mask: True where an anomaly is reported, (X, Y, Z); its outline is drawn on the overlay.
        slice_axis: ``axial``, ``coronal`` or ``sagittal``; without effect on images.
        reference_mask: True where an expert marked a lesion, (X, Y, Z); drawn as a second outline.
        num_slices: rows at most.
        vmax: the score at the top of the colour scale, which begins at 0; None for the map's maximum. Give one number
            to compare several scans.
        title: a line above the image.

    Raises:
        ValueError: if ``slice_axis`` is unknown, ``num_slices`` is below 1, or an array does not fit the scan.
        InputError: if the folder cannot be written to.
    """
    if slice_axis not in _PLANES:
        raise ValueError(f"slice_axis is {slice_axis!r}: choose one of {sorted(_PLANES)}.")
    if num_slices < 1:
        raise ValueError(f"num_slices is {num_slices}: give 1 or more.")
    spatial = tuple(scan.shape[1:])
    for name, array in (("anomaly_map", anomaly_map), ("anomaly_mask", anomaly_mask), ("reference", reference_mask)):
        if array is not None and array.shape != spatial:
            raise ValueError(f"{name} has the shape {array.shape}, the scan asks for {spatial}.")
    if restoration.shape != tuple(scan.shape):
        raise ValueError(f"restoration has the shape {restoration.shape}, the scan {tuple(scan.shape)}.")

    view = ScanView(scan, slice_axis)
    window = view.window(np.asarray(scan))
    scores = view.slices(np.asarray(anomaly_map, dtype=np.float32))
    rows = _worst_slices(scores.max(axis=(1, 2)), view.thickness, num_slices)
    top = float(scores.max()) if vmax is None else float(vmax)
    figure = _draw(
        view,
        rows,
        image=view.shades(np.asarray(scan), rows, window),
        restored=view.shades(restoration, rows, window),
        scores=scores[rows],
        outlines=[
            (label, colour, style, view.slices(np.asarray(mask, dtype=bool))[rows])
            for label, colour, style, mask in (
                ("reported", _MASK_COLOUR, "solid", anomaly_mask),
                ("reference", _REFERENCE_COLOUR, "dashed", reference_mask),
            )
            if mask is not None
        ],
        # a map without any score still needs a scale
        vmax=top if top > 0 else 1.0,
        title=title,
    )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


class ScanView:
    """How a scan's arrays become slices to look at: (slices, rows, columns) from (X, Y, Z)."""

    def __init__(self, scan: MetaTensor, slice_axis: str) -> None:
        self.picture = scan.meta["scan_kind"] == "image"
        if self.picture:
            self._order: tuple[int, ...] = (2, 0, 1)
            self._flips: tuple[bool, ...] = (False, False, False)
            self.thickness, self.aspect = 1.0, 1.0
            self.letters: tuple[str, ...] = ()
            self.plane = ""
            return
        from nibabel.affines import voxel_sizes
        from nibabel.orientations import io_orientation

        affine = np.asarray(scan.affine, dtype=np.float64)
        to_world = io_orientation(affine)  # per voxel axis: world axis, and 1 or -1
        voxel_axis = {int(world): voxel for voxel, (world, _) in enumerate(to_world)}
        rising = {int(world): direction > 0 for world, direction in to_world}
        through = _PLANES[slice_axis]
        # images run down and to the right: superior and anterior go up, right and anterior to the left
        across, down = {0: (1, 2), 1: (0, 2), 2: (0, 1)}[through]
        self._order = tuple(voxel_axis[world] for world in (through, down, across))
        self._flips = (False, rising[down], rising[across])
        sizes = voxel_sizes(affine)[list(self._order)]
        self.thickness, self.aspect = float(sizes[0]), float(sizes[1] / sizes[2])
        self.letters = {0: ("A", "P", "S", "I"), 1: ("R", "L", "S", "I"), 2: ("R", "L", "A", "P")}[through]
        self.plane = slice_axis

    def slices(self, array: np.ndarray) -> np.ndarray:
        """(X, Y, Z[, colour]) as (slices, rows, columns[, colour]); slices keep their number in the file."""
        turned = array.transpose(*self._order, *range(3, array.ndim))
        return np.flip(turned, tuple(axis for axis, flip in enumerate(self._flips) if flip))

    def window(self, scan: np.ndarray) -> tuple[float, float]:
        """The values of a scan, (C, X, Y, Z), that are shown black and white."""
        if self.picture:
            shown = scan if len(scan) == 3 else scan[0]
            return float(shown.min()), float(shown.max())
        return display_window(scan[0])

    def shades(self, array: np.ndarray, slices: Any, window: tuple[float, float]) -> np.ndarray:
        """Slices of a scan, (C, X, Y, Z), in [0, 1]: (..., rows, columns[, colour])."""
        shown = np.moveaxis(array, 0, -1) if self.picture and len(array) == 3 else array[0]
        low, high = window
        return np.clip((self.slices(shown)[slices] - low) / max(high - low, np.finfo(np.float32).tiny), 0.0, 1.0)


def _worst_slices(peaks: np.ndarray, thickness: float, number: int) -> list[int]:
    """The slices of the highest peaks, worst first; neighbours are taken only when there is nothing else."""
    ranked = [int(index) for index in np.argsort(-peaks, kind="stable")]
    chosen: list[int] = []
    for distance in (_ROW_DISTANCE_MM, 0.0):
        for index in ranked:
            apart = all(abs(index - other) * thickness >= distance for other in chosen)
            if len(chosen) < number and index not in chosen and apart:
                chosen.append(index)
    return sorted(chosen, key=ranked.index)


def _draw(
    view: ScanView,
    rows: Sequence[int],
    *,
    image: np.ndarray,
    restored: np.ndarray,
    scores: np.ndarray,
    outlines: Sequence[tuple[str, str, str, np.ndarray]],
    vmax: float,
    title: str,
) -> Any:
    """The figure: a row for each slice and four columns, every panel placed by hand so that all line up."""
    from matplotlib import colormaps
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patheffects import withStroke

    height, width = image.shape[1] * view.aspect, image.shape[2]
    # long sides alike, so that neither tall nor wide slices make a huge image
    panel_width, panel_height = (_PANEL_INCHES * side / max(height, width) for side in (width, height))
    step_x, step_y = max(panel_width, _LEAST_COLUMN) + _GAP, max(panel_height, _LEAST_ROW) + _GAP
    total_width = _LEFT + 4 * step_x
    total_height = _TOP + len(rows) * step_y + _BOTTOM
    figure = Figure(figsize=(total_width, total_height))

    def add_panel(column: int, row: int) -> Any:
        left = _LEFT + column * step_x + (step_x - _GAP - panel_width) / 2
        bottom = total_height - _TOP - (row + 1) * step_y + _GAP + (step_y - _GAP - panel_height) / 2
        box = (left / total_width, bottom / total_height, panel_width / total_width, panel_height / total_height)
        panel = figure.add_axes(box)
        panel.set_axis_off()
        return panel

    gray: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 1, "aspect": "auto", "interpolation": "nearest"}
    heat: dict[str, Any] = {
        "cmap": colormaps["inferno"],
        "norm": Normalize(0.0, vmax),
        "aspect": "auto",
        "interpolation": "nearest",
    }
    stroke = withStroke(linewidth=2.0, foreground="black")  # lines and letters show on bright and on dark tissue
    for row, index in enumerate(rows):
        panels = [add_panel(column, row) for column in range(4)]
        panels[0].imshow(image[row], **gray)
        panels[1].imshow(restored[row], **gray)
        drawn = panels[2].imshow(scores[row], **heat)
        panels[3].imshow(image[row], **gray)
        # the higher the score, the less of the scan shows through
        panels[3].imshow(scores[row], alpha=0.75 * np.clip(scores[row] / vmax, 0.0, 1.0), **heat)
        for _, colour, style, mask in outlines:
            if mask[row].any():
                # a rim of zeros closes the outlines of lesions that reach the border
                rows_at, columns_at = (np.arange(-1, size + 1) for size in mask[row].shape)
                lines = panels[3].contour(
                    columns_at,
                    rows_at,
                    np.pad(mask[row], 1),
                    levels=[0.5],
                    colors=colour,
                    linestyles=style,
                    linewidths=1.1,
                )
                lines.set_path_effects([stroke])
        panels[3].set(xlim=panels[0].get_xlim(), ylim=panels[0].get_ylim())
        label = f"peak {scores[row].max():.4g}"
        if not view.picture:
            label = f"{view.plane} slice {index}\n{label}"
        panels[0].text(
            -0.06, 0.5, label, transform=panels[0].transAxes, rotation=90, ha="right", va="center", fontsize=8
        )
        for letter, place in zip(view.letters, _LETTER_PLACES):
            sign = panels[0].text(**place, s=letter, transform=panels[0].transAxes, fontsize=8, color="#FFD54A")
            sign.set_path_effects([stroke])
        if row == 0:
            for panel, name in zip(panels, ("input", "restoration", "anomaly map", "overlay")):
                panel.set_title(name, fontsize=10, pad=4)

    def below(column: int, bottom: float, bar_height: float) -> tuple[float, float, float, float]:
        left = _LEFT + column * step_x + 0.05 * step_x
        return left / total_width, bottom / total_height, 0.85 * step_x / total_width, bar_height / total_height

    bar = figure.colorbar(drawn, cax=figure.add_axes(below(2, _BOTTOM - 0.15, 0.08)), orientation="horizontal")
    bar.ax.tick_params(labelsize=7, length=2, pad=1)
    bar.set_label("anomaly score", fontsize=8, labelpad=1)
    if outlines:
        handles = [Line2D([], [], color=colour, linestyle=style, label=label) for label, colour, style, _ in outlines]
        legend = figure.add_axes(below(3, _BOTTOM - 0.3, 0.25))
        legend.set_axis_off()
        legend.legend(
            handles=handles,
            loc="upper center",
            borderaxespad=0,
            ncols=len(handles),
            columnspacing=1.0,
            fontsize=7,
            facecolor="#505050",
            labelcolor="white",
        )
    if title:
        figure.text(0.5, 1 - 0.1 / total_height, title, ha="center", va="top", fontsize=11, parse_math=False)
    notice = "Research use only, not for diagnosis"
    figure.text(_LEFT / total_width, 0.12 / total_height, notice, va="bottom", fontsize=9, color="#B00000")
    return figure
