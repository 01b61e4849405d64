"""Figures of benchmark results: ROC curves, montages, curves over epochs and runs, maps, score against area."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monai_anomaly.exceptions import InputError
from monai_anomaly.io.atomic import atomic_path

__all__ = ["KINDS", "draw"]

# Okabe and Ito's colours, and dashes, so that neither colour vision nor a gray print loses a line.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A7A00")
_DASHES = ("-", "--", "-.", ":")
_MARKERS = "osD^vPX*"


def draw(folder: Path, results: Sequence[Mapping[str, Any]], kind: str, out: Path | None = None) -> list[Path]:
    """Draw the figures of one kind.

    Args:
        folder: of the run; holds ``scores/`` and ``shown/``.
        results: rows of ``read_results``.
        kind: one of ``KINDS``.
        out: gets the PNGs; None: ``folder/plots``.

    Returns:
        The PNGs.

    Raises:
        InputError: if there is no such kind, or nothing of these results can be drawn so; says why.
    """
    if kind not in KINDS:
        raise InputError("--kind", f"{kind!r} is no kind of figure", f"Choose one of {', '.join(KINDS)}.")
    target = folder / "plots" if out is None else out
    figures, nothing = KINDS[kind](folder, list(results))
    if not figures:
        raise InputError(folder, f"no {kind} figure can be drawn: {nothing}", "See docs/benchmarks.md.")

    paths = []
    for name, figure in figures.items():
        path = target / f"{kind}-{re.sub(r'[^A-Za-z0-9_.-]+', '_', name)}.png"
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=130)
        paths.append(path)
    return paths


_Figures = tuple[dict[str, Any], str]


def _roc(folder: Path, results: list[Mapping[str, Any]]) -> _Figures:
    """ROC curves: a figure a problem with a line a method, and a figure of a set with the mean over its problems."""
    figures = {}
    grid = np.linspace(0, 1, 201)
    for key, rows in _by(results, "suite", "set", "scale").items():
        of_set: dict[str, list[np.ndarray]] = {}
        labels = {method: _label(runs) for (method,), runs in _by(rows, "method").items()}
        for (problem,), part in _by(rows, "problem").items():
            lines = {}
            for (method,), runs in _by(part, "method").items():
                curves = [curve for row in runs if (curve := _roc_on(grid, _scores(folder, row))) is not None]
                if curves:
                    lines[_label(runs)] = np.mean(curves, axis=0)
                    of_set.setdefault(method, []).append(lines[_label(runs)])
            if lines:
                figures["-".join([*key, problem])] = _roc_figure(grid, lines, f"{key[1]}, {problem}, {key[2]} scale")
        if len({row["problem"] for row in rows}) > 1 and of_set:
            means = {labels[method]: np.mean(curves, axis=0) for method, curves in of_set.items()}
            figures["-".join([*key, "mean"])] = _roc_figure(grid, means, f"{key[1]}, mean of problems, {key[2]} scale")
    return figures, "every unit has one class alone"


def _roc_on(grid: np.ndarray, saved: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """The rate of true positives at rates of false ones; None where a class is absent."""
    from sklearn.metrics import roc_curve

    if len(np.unique(saved["labels"])) < 2:
        return None
    false, true, _ = roc_curve(saved["labels"], saved["scores"], drop_intermediate=False)
    return np.interp(grid, false, true)


def _roc_figure(grid: np.ndarray, lines: Mapping[str, np.ndarray], title: str) -> Any:
    figure, (panel,) = _figure(1, (5.2, 4.8))
    for i, (label, curve) in enumerate(lines.items()):
        panel.plot(grid, curve, label=label, **_style(i))
    panel.plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
    panel.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(0, 1), ylim=(0, 1.01), aspect="equal")
    panel.set_title(title, parse_math=False, fontsize=10)
    panel.legend(fontsize=7, loc="lower right")
    return figure


def _montage(folder: Path, results: list[Mapping[str, Any]]) -> _Figures:
    """Of each unit the most normal and the most anomalous test images, those of the normal class above."""
    figures = {}
    for row, shown in _shown(folder, results):
        lines = {}
        for label, name in ((0, "normal"), (1, "abnormal")):
            places = np.flatnonzero(shown["labels"] == label)
            ranked = places[np.argsort(shown["scores"][places], kind="stable")]
            half = (len(ranked) + 1) // 2
            lines[f"{name} images,\nlowest scores"] = ranked[:half]
            lines[f"{name} images,\nhighest scores"] = ranked[::-1][:half]
        lines = {name: places for name, places in lines.items() if len(places)}
        width = max(len(places) for places in lines.values())
        figure, panels = _figure(len(lines) * width, (0.9 * width + 1.6, 1.15 * len(lines) + 0.5), rows=len(lines))
        for r, (name, places) in enumerate(lines.items()):
            for c in range(width):
                panel = panels[r * width + c]
                panel.set_axis_off()
                if c < len(places):
                    _picture(panel, shown["images"][places[c]])
                    panel.set_title(f"{shown['scores'][places[c]]:.3g}", fontsize=6)
            panels[r * width].text(
                -0.15, 0.5, name, transform=panels[r * width].transAxes, ha="right", va="center", fontsize=7
            )
        figure.suptitle(_title(row), fontsize=9)
        figures[row["unit"]] = figure
    return figures, "there is no file under shown/"


def _maps(folder: Path, results: list[Mapping[str, Any]]) -> _Figures:
    """Of each unit input, mask, restoration and map of its most anomalous and its most normal images."""
    figures = {}
    for row, shown in _shown(folder, results):
        order = np.argsort(shown["scores"], kind="stable")
        abnormal = [i for i in order[::-1] if shown["labels"][i]][:4]
        chosen = [*abnormal, *[i for i in order if not shown["labels"][i]][:2]]
        kinds = ["images", *(kind for kind in ("masks", "restorations") if kind in shown), "maps"]
        figure, panels = _figure(
            len(chosen) * len(kinds), (1.5 * len(kinds) + 0.4, 1.5 * len(chosen) + 0.5), rows=len(chosen)
        )
        maps = shown["maps"][chosen].astype(np.float32)
        low, high = float(maps.min()), float(maps.max())
        for r, i in enumerate(chosen):
            for c, kind in enumerate(kinds):
                panel = panels[r * len(kinds) + c]
                panel.set_axis_off()
                if kind == "maps":
                    # one scale for all, or a normal image's map would look like an abnormal one's
                    panel.imshow(maps[r], cmap="cividis", vmin=low, vmax=high)
                elif kind == "masks":
                    panel.imshow(shown[kind][i], cmap="gray", vmin=0, vmax=1)
                else:
                    _picture(panel, shown[kind][i])
                if r == 0:
                    panel.set_title(kind[:-1], fontsize=8)
        figure.suptitle(_title(row), fontsize=8)
        figures[row["unit"]] = figure
    return figures, "there is no file under shown/"


def _epochs(folder: Path, results: list[Mapping[str, Any]]) -> _Figures:
    """Losses of every stage over its epochs, and the test AUROC where it was tracked: a figure a problem and method."""
    figures = {}
    for key, runs in _by(results, "suite", "set", "problem", "method", "scale").items():
        stages = list(dict.fromkeys(point["stage"] for row in runs for point in row["losses"]))
        tracked = [row for row in runs if row.get("auroc_over_epochs")]
        if not stages:
            continue
        figure, panels = _figure(len(stages) + bool(tracked), (4.2 * (len(stages) + bool(tracked)), 3.4))
        for panel, stage in zip(panels, stages):
            _draw_losses(panel, runs, stage)
            panel.set(xlabel="epoch", ylabel="loss")
            panel.set_title(stage, parse_math=False, fontsize=9)
            panel.legend(fontsize=6)
        if tracked:
            for i, row in enumerate(tracked):
                known = [(p["epoch"], p["auroc"]) for p in row["auroc_over_epochs"] if p["auroc"] is not None]
                panels[-1].plot(*zip(*known), label=f"seed {row['seed']}", **_style(i))
            panels[-1].set(xlabel="epoch of the last stage", ylabel="test AUROC")
            panels[-1].set_title("watched, not chosen by", fontsize=9)
            panels[-1].legend(fontsize=6)
        figure.suptitle(_title(runs[-1], seed=False), fontsize=9)
        figures["-".join(key)] = figure
    return figures, "nothing was trained in these runs"


def _draw_losses(panel: Any, runs: Sequence[Mapping[str, Any]], stage: str) -> None:
    for i, row in enumerate(runs):
        points = [point for point in row["losses"] if point["stage"] == stage]
        for loss, name, dash in (("train_loss", "training", "-"), ("val_loss", "held out", "--")):
            known = [(point["epoch"], point[loss]) for point in points if point[loss] is not None]
            if known:
                label = f"{name}, seed {row['seed']}"
                marker = "o" if len(known) == 1 else None  # a single epoch has no line
                panel.plot(*zip(*known), label=label, marker=marker, **{**_style(i), "linestyle": dash})


def _losses(folder: Path, results: list[Mapping[str, Any]]) -> _Figures:
    """The losses of all methods on a problem: a figure a problem, a panel a stage of each method."""
    figures = {}
    for key, rows in _by(results, "suite", "set", "problem", "scale").items():
        trained = []
        for runs in _by(rows, "method").values():
            stages = dict.fromkeys(point["stage"] for row in runs for point in row["losses"])
            trained += [(runs, stage) for stage in stages]
        if not trained:
            continue
        columns = min(4, len(trained))
        lines = -(-len(trained) // columns)
        figure, panels = _figure(columns * lines, (2.8 * columns, 2.1 * lines + 0.4), rows=lines)
        for panel, (runs, stage) in zip(panels, trained):
            _draw_losses(panel, runs, stage)
            if all(np.min(line.get_ydata()) > 0 for line in panel.lines):
                panel.set_yscale("log")  # or the first epochs hide whether the last ones still improve
            panel.set_title(f"{_label(runs)}\n{stage}", parse_math=False, fontsize=7)
            panel.tick_params(labelsize=6, which="both")
        panels[0].legend(fontsize=5)
        for panel in panels[len(trained) :]:
            panel.set_axis_off()
        figure.supxlabel("epoch", fontsize=8)
        figure.supylabel("loss", fontsize=8)
        figure.suptitle(f"{key[1]}, {key[2]}, {key[3]} scale", parse_math=False, fontsize=9)
        figures["-".join(key)] = figure
    return figures, "nothing was trained in these runs"


def _runs(folder: Path, results: list[Mapping[str, Any]]) -> _Figures:
    """The AUROC of every run: a figure a set, a column a problem, a mark a seed."""
    figures = {}
    for key, rows in _by(results, "suite", "set", "scale").items():
        problems = list(dict.fromkeys(row["problem"] for row in rows))
        methods = _by(rows, "method")
        figure, (panel,) = _figure(1, (max(4.5, 1.2 * len(problems) + 3), 4.2))
        drawn = False
        for i, runs in enumerate(methods.values()):
            known = [
                (problems.index(row["problem"]), row["metrics"]["image"]["auroc"])
                for row in runs
                if row["metrics"]["image"]["auroc"] is not None
            ]
            if known:
                drawn = True
                shift = (i - (len(methods) - 1) / 2) * 0.7 / len(methods)
                marker = _MARKERS[(i + i // len(_COLOURS)) % len(_MARKERS)]
                style = {"color": _COLOURS[i % len(_COLOURS)], "marker": marker}
                panel.plot([x + shift for x, _ in known], [y for _, y in known], linestyle="", markersize=5,
                           label=f"{_label(runs)} ({len({row['seed'] for row in runs})})", **style)  # fmt: skip
        if not drawn:
            continue
        panel.axhline(0.5, color="0.6", linewidth=0.8)
        panel.set_xticks(range(len(problems)), problems, rotation=30 if max(map(len, problems)) > 3 else 0)
        panel.set(ylabel="image AUROC")
        panel.set_title(f"{key[1]}, {key[2]} scale, every run (seeds)", parse_math=False, fontsize=10)
        panel.legend(fontsize=7, bbox_to_anchor=(1.01, 1), loc="upper left")
        figures["-".join(key)] = figure
    return figures, "every unit has one class alone"


def _area(folder: Path, results: list[Mapping[str, Any]]) -> _Figures:
    """The score of each test image against the share of it that its mask covers."""
    from scipy.stats import spearmanr

    figures = {}
    for row in results:
        saved = _scores(folder, row)
        if "areas" not in saved:
            continue
        abnormal = saved["labels"] == 1
        figure, (panel,) = _figure(1, (4.8, 3.8))
        for i, (chosen, name) in enumerate(((~abnormal, "normal"), (abnormal, "abnormal"))):
            look: dict[str, Any] = {"c": _COLOURS[i], "marker": "o^"[i], "s": 14, "alpha": 0.7}
            panel.scatter(100 * saved["areas"][chosen], saved["scores"][chosen], label=name, **look)
        panel.set(xlabel="area of the mask, % of the image", ylabel="anomaly score")
        title = _title(row)
        areas, scores = saved["areas"][abnormal], saved["scores"][abnormal]
        if len(np.unique(areas)) > 1 and len(np.unique(scores)) > 1:
            title += f"\nSpearman's rho of the abnormal ones {float(spearmanr(areas, scores).statistic):.2f}"
        panel.set_title(title, parse_math=False, fontsize=8)
        panel.legend(fontsize=7)
        figures[row["unit"]] = figure
    return figures, "none of these sets has masks"


KINDS: dict[str, Callable[[Path, list[Mapping[str, Any]]], _Figures]] = {
    "roc": _roc,
    "montage": _montage,
    "epochs": _epochs,
    "losses": _losses,
    "runs": _runs,
    "maps": _maps,
    "area": _area,
}


def _by(rows: Sequence[Mapping[str, Any]], *names: str) -> dict[tuple[str, ...], list[Mapping[str, Any]]]:
    """Rows by some of their values, in the order in which these come first."""
    parts: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        parts.setdefault(tuple(str(row[name]) for name in names), []).append(row)
    return parts


def _scores(folder: Path, row: Mapping[str, Any]) -> dict[str, np.ndarray]:
    found = _saved(folder / "scores", row)
    if found is None:
        path = folder / "scores" / f"{row['unit']}.npz"
        raise InputError(path, "is missing, the curves are drawn from it", "Copy the folder scores with the results.")
    return found


def _shown(
    folder: Path, rows: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[Mapping[str, Any], dict[str, np.ndarray]]]:
    """The units that left images, with these."""
    for row in rows:
        if (found := _saved(folder / "shown", row)) is not None:
            yield row, found


def _saved(folder: Path, row: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
    """What a unit left in a folder; None where there is nothing."""
    path = folder / f"{row['unit']}.npz"
    try:
        with np.load(path, allow_pickle=False) as saved:
            return dict(saved)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(path, f"cannot be read ({error})", "Delete it and run the unit again.") from error


def _figure(panels: int, size: tuple[float, float], rows: int = 1) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, list(figure.subplots(rows, panels // rows, squeeze=False).flat)


def _style(index: int) -> dict[str, Any]:
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        # shifted by one with each round of colours, so that no two of 32 lines look alike
        "linestyle": _DASHES[(index + index // len(_COLOURS)) % len(_DASHES)],
        "linewidth": 1.4,
    }


def _picture(panel: Any, image: np.ndarray) -> None:
    panel.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)


def _label(runs: Sequence[Mapping[str, Any]]) -> str:
    """A method's name, with its flag where a stage was stopped while it still improved."""
    return runs[-1]["table"]["title"] + (" †" if any(row["under_trained"] for row in runs) else "")


def _title(row: Mapping[str, Any], seed: bool = True) -> str:
    end = f", seed {row['seed']}" if seed else ""
    return f"{_label([row])} on {row['set']}, {row['problem']}, {row['scale']} scale{end}"
