"""Loss curves of the training stages as one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_anomaly.io.atomic import atomic_path

__all__ = ["draw_loss_curves"]

# Below one decade between its ends a curve reads as well on a linear axis.
_LOG_SCALE_FROM = 10.0


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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    stages = list(dict.fromkeys(str(row["stage"]) for row in history))
    figure = Figure(figsize=(5.0 * len(stages), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
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
