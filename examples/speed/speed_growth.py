"""How cost grows with images, sides, memory items and slices."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from monai_anomaly.calibration import ConformalCalibration
from monai_anomaly.metrics import PixelMetrics, bootstrap_intervals, image_metrics
from speed import Call, contender_call, contenders, cost_apart, speed_plan, training_stages
from speed_cohort import cohort_call, one_epoch, simulated_cohort

__all__ = ["fitted_exponent", "growth", "growth_plan"]

IMAGES = (100, 1000, 10_000, 100_000)
SIDES = (64, 128, 256, 512)
SLICES = (20, 40, 80, 160)


def fitted_exponent(sizes: Sequence[float], costs: Sequence[float | None]) -> dict[str, Any]:
    """The exponent b of cost = a size^b, by least squares of the logarithms.

    Args:
        sizes: positive.
        costs: of each size; None, or not positive: left out.

    Returns:
        ``exponent``, over all sizes; ``last``, between the two largest, where a constant part weighs least;
        ``residual``, the root mean square of the logarithms' residuals; or None for each and the ``reason``.
    """
    points = [(math.log(size), math.log(cost)) for size, cost in zip(sizes, costs) if cost is not None and cost > 0]
    if len({x for x, _ in points}) < 2:
        return {"exponent": None, "last": None, "residual": None, "reason": "fewer than two sizes have a cost"}
    x, y = np.array(sorted(points)).T
    exponent, intercept = np.polyfit(x, y, 1)
    residual = float(np.sqrt(np.mean((y - exponent * x - intercept) ** 2)))
    return {"exponent": float(exponent), "last": float((y[-1] - y[-2]) / (x[-1] - x[-2])), "residual": residual}


def _scores(images: int) -> tuple[list[str], list[int], list[float]]:
    """Simulated patients of one scan each, a tenth of them abnormal."""
    random = np.random.default_rng(0)
    labels = (np.arange(images) % 10 == 0).astype(int)
    return [str(i) for i in range(images)], labels.tolist(), (random.normal(size=images) + labels).tolist()


def _metrics_call(images: int) -> Call:
    _, labels, scores = _scores(images)
    return lambda: image_metrics(labels, scores)


def _intervals_call(images: int) -> Call:
    patients, labels, scores = _scores(images)
    return lambda: bootstrap_intervals(patients, labels, scores, n=20)


def _calibration_call(images: int) -> Call:
    patients, _, scores = _scores(images)
    values = dict(zip(patients, scores))

    def call() -> None:
        calibration = ConformalCalibration()
        calibration.fit(values, values)
        calibration.map_threshold(0.05)
        for score in scores[:100]:
            calibration.p_value(score)

    return call


def _pixel_metrics_call(images: int, side: int = 32) -> Call:
    def call() -> None:
        random = np.random.default_rng(0)
        mask = np.zeros((side, side), dtype=bool)
        mask[:4, :4] = True
        metrics = PixelMetrics()
        for index in range(images):
            values = random.random((side, side), dtype=np.float32)
            metrics.update(values, mask if index % 10 == 0 else np.zeros_like(mask))
        metrics.compute()

    return call


def _epoch_call(images: int, method: str, options: Mapping[str, Any], side: int = 32) -> Call:
    (stage,) = training_stages(method, side, images, "cpu", None, {"max_epochs": 1, **options})
    stage.prepare()

    return lambda: one_epoch(stage)


def _volume_call(slices: int, name: str, size: int, device: str) -> Call:
    folder = tempfile.TemporaryDirectory()
    items = simulated_cohort(Path(folder.name), 1, slices)
    score = cohort_call(name, items, Path(folder.name) / "out", size, device)

    def call() -> None:
        # the folder is there as long as the function is
        assert Path(folder.name).is_dir()
        score()

    return call


def _side_call(side: int, name: str, device: str) -> Call:
    return contender_call(name, side, 1, device)


def _items_call(value: int, name: str, argument: str, size: int, device: str) -> Call:
    return contender_call(name, size, 1, device, {argument: value})


def growth_plan(names: Sequence[str], size: int, device: str, largest: float = 1e5) -> list[dict[str, Any]]:
    """What is measured: ``what``, ``of``, ``sizes``, ``build``, its further ``arguments``, and ``device``.

    Args:
        names: of ``contenders``.
        size: rows and columns, of what does not vary them.
        device: of the networks.
        largest: images.
    """
    images = [n for n in IMAGES if n <= largest] or [int(largest)]
    small = speed_plan()["growth_epoch"]
    plan: list[dict[str, Any]] = []

    def add(what: str, of: str, sizes: Sequence[int], build: Callable[..., Call], *arguments: Any) -> None:
        where = device if device in arguments else "cpu"
        entry = {"what": what, "of": of, "sizes": list(sizes), "build": build, "arguments": arguments, "device": where}
        plan.append(entry)

    add("metrics of scans", "images", images, _metrics_call)
    add("20 resamples of their intervals", "images", images, _intervals_call)
    add("calibration and 100 p-values", "images", images, _calibration_call)
    add("metrics of 32 x 32 maps", "images", images, _pixel_metrics_call)
    of_epoch = [n for n in images if n <= small["largest"]]
    add(f"an epoch of {small['method']}, 32 pixels", "images", of_epoch, _epoch_call, small["method"], small["options"])
    for name in names:
        add(contenders([name])[name]["title"], "side", SIDES, _side_call, name, device)
    for name, items in speed_plan()["items"].items():
        if name in names:
            title = contenders([name])[name]["title"]
            add(title, "memory items", items["values"], _items_call, name, items["argument"], size, device)
    for name in speed_plan()["cohort"]:
        if name in names:
            add(f"{contenders([name])[name]['title']}, a volume", "slices", SLICES, _volume_call, name, size, device)
    return plan


def growth(plan: Sequence[Mapping[str, Any]], repeats: int = 3, progress: bool = False) -> list[dict[str, Any]]:
    """Seconds and peak memory of each size, each in a process of its own, and the fitted exponents.

    Args:
        plan: of ``growth_plan``.
        repeats: calls that are timed.
        progress: show a bar over what is measured.

    Returns:
        A row for each entry: ``what``, ``of``, ``sizes``, ``seconds``, ``peak_bytes``, the exponents of both, and by
        size the ``reasons`` of what could not be measured.
    """
    rows = []
    for entry in tqdm(plan, desc="growth", disable=not progress):
        reasons: dict[str, str] = {}
        costs: list[Any] = []
        for size in entry["sizes"]:
            try:
                costs.append(
                    cost_apart(entry["build"], size, *entry["arguments"], device=entry["device"], repeats=repeats)
                )
            except (RuntimeError, ValueError) as error:
                costs.append({"seconds": None, "peak_bytes": None})
                reasons[str(size)] = " ".join(str(error).split())
        seconds, peaks = [cost["seconds"] for cost in costs], [cost["peak_bytes"] for cost in costs]
        rows.append(
            {
                "what": entry["what"],
                "of": entry["of"],
                "sizes": entry["sizes"],
                "seconds": seconds,
                "peak_bytes": peaks,
                "seconds_exponent": fitted_exponent(entry["sizes"], seconds),
                "memory_exponent": fitted_exponent(entry["sizes"], peaks),
                "reasons": reasons,
            }
        )
    return rows
