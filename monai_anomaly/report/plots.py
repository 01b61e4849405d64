"""Curves and histograms of a report, as SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monai_anomaly.io.atomic import atomic_path
from monai_anomaly.metrics import Curve

from .evaluation import KINDS

__all__ = ["MOST_CURVES", "draw_curves", "draw_histogram", "draw_loss_curves", "shown_curves"]

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
_HISTOGRAM_BINS = 24
# Below one decade between its ends a curve reads as well on a linear axis.
_LOG_SCALE_FROM = 10.0


def _svg(figure: Any) -> bytes:
    """Equal figures give equal bytes."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "monai-anomaly", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _figure(extra_height: float = 0.0) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_FIGURE_INCHES[0], _FIGURE_INCHES[1] + extra_height), layout="constrained")
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


def shown_curves(curves: Sequence[Curve], kinds: Mapping[str, str]) -> list[Curve]:
    """Those that one figure holds, the method before baselines."""
    return sorted(curves, key=lambda curve: KINDS.index(kinds[curve.detector]))[:MOST_CURVES]


def draw_curves(curves: Sequence[Curve], kinds: Mapping[str, str], chance: float | None = None) -> bytes:
    """ROC, precision-recall or FROC curves in one figure.

    Args:
        curves: of one level and one pair of axes; the first eight are drawn, the method before baselines, each with a
            colour, a line style and a marker of its own.
        kinds: of the detectors, by name.
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
    drawn = shown_curves(curves, kinds)
    figure, axes = _figure(0.2 * len(drawn))
    handles, labels = [], []
    for number, curve in enumerate(drawn):
        x, y = np.asarray(curve.x), np.asarray(curve.y)
        is_method = kinds[curve.detector] == "method"
        if x.size and x[0] > x[-1]:  # as scikit-learn gives recall; steps are drawn from left to right
            x, y = x[::-1], y[::-1]
        (line,) = axes.plot(
            x,
            y,
            color=_COLOURS[number],
            linestyle=_STYLES[number],
            linewidth=2.2 if is_method else 1.5,
            marker=_MARKERS[number],
            markersize=5,
            # at different places on different curves, by length along the axes
            markevery=(0.03 * number, 0.25),
            drawstyle="steps-pre" if axes_name == "pr" else "default",
            zorder=4 if is_method else 3,
        )
        handles.append(line)
        labels.append(_short(curve.detector) + ("" if is_method else f" ({kinds[curve.detector]})"))
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


def draw_loss_curves(path: str | Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Draw the training and the validation loss against the epoch, one panel for each stage.

    The loss axis is logarithmic where all losses of a stage are positive and span a decade or more.

    Args:
        path: the PNG to write.
        history: one row for each epoch with ``stage`` (str), ``epoch`` (int), ``train_loss`` (float) and
            ``val_loss`` (float, or None for an epoch without validation); other keys are ignored. Stages are drawn in
            the order in which they come first.

    Raises:
        ValueError: if ``history`` is empty.
        InputError: if the folder cannot be written to.
    """
    if not history:
        raise ValueError("no epochs: there are no loss curves to draw.")
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    stages = list(dict.fromkeys(str(row["stage"]) for row in history))
    figure = Figure(figsize=(5.0 * len(stages), 3.6), layout="constrained")
    panels = figure.subplots(1, len(stages), squeeze=False)[0]
    for panel, stage in zip(panels, stages):
        rows = [row for row in history if str(row["stage"]) == stage]
        losses: list[float] = []
        for key, label, colour, style in (
            ("train_loss", "training", "#0072B2", "-"),
            ("val_loss", "validation", "#D55E00", "--"),
        ):
            points = [(int(row["epoch"]), float(row[key])) for row in rows if row.get(key) is not None]
            if points:
                panel.plot(*zip(*points), color=colour, linestyle=style, marker="o", markersize=2.5, label=label)
                losses += [loss for _, loss in points]
        if losses and min(losses) > 0 and max(losses) >= _LOG_SCALE_FROM * min(losses):
            panel.set_yscale("log")
        panel.set_title(stage, parse_math=False)
        panel.set_xlabel("epoch")
        panel.set_ylabel("loss")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(True, alpha=0.3)
        if losses:
            panel.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
