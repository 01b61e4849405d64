"""What whole runs cost: a volume, a cohort, its proxies, an epoch, and where their time goes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import wraps
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.transforms import Compose
from skimage.segmentation import slic

from monai_anomaly.data import ScanPreprocessing
from monai_anomaly.data.slices import SliceDataset
from monai_anomaly.engines import (
    CohortEvaluator,
    DriftHandler,
    MaskAboveThresholdd,
    PredictionsHandler,
    ReportHandler,
    SaveCased,
    StackInferer,
    ToScanVoxelsd,
    postprocessing,
    scan_loader,
)
from monai_anomaly.transforms import SuperpixelImage
from speed import Call, clock_of, contenders, network_of, ratio, section_target, training_stages

__all__ = [
    "cohort_breakdown",
    "cohort_call",
    "epoch_shares",
    "one_epoch",
    "proxy_speed",
    "shared_inference",
    "simulated_cohort",
    "timed_parts",
    "volume_seconds",
]


def simulated_cohort(folder: Path, scans: int, slices: int, side: int = 240) -> list[dict[str, Any]]:
    """Write volumes of a noisy disc, as 16-bit compressed NIfTI, and describe them as a cohort's items.

    Args:
        folder: for the files.
        scans: how many.
        slices: of each; all hold tissue.
        side: rows and columns.
    """
    axis = np.linspace(-1, 1, side, dtype=np.float32)
    disc = (axis[:, None] ** 2 + axis**2 < 0.7).astype(np.float32)
    random = np.random.default_rng(0)
    items = []
    for index in range(scans):
        case = f"scan{index}"
        noise = random.normal(1000, 100, (side, side, slices)).astype(np.float32)
        path = folder / f"{case}.nii.gz"
        nib.Nifti1Image((disc[..., None] * noise).astype(np.int16), np.eye(4)).to_filename(path)
        items.append({"case": case, "image": str(path), "patient": case, "label": None, "mask": None})
    return items


@contextmanager
def timed_parts(
    parts: Mapping[str, Sequence[tuple[Any, str]]], clock: Callable[[], float]
) -> Iterator[dict[str, float]]:
    """Within, the seconds spent in some functions are added up by part.

    What one part calls of another counts for the other alone.

    Args:
        parts: by name the functions, each as its module or class and its name there.
        clock: gives seconds.

    Yields:
        Seconds by part, filled while the block runs.
    """
    seconds = dict.fromkeys(parts, 0.0)
    running: list[str] = []
    last = clock()

    def switch(change: Callable[[], object]) -> None:
        nonlocal last
        now = clock()
        if running:
            seconds[running[-1]] += now - last
        last = now
        change()

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            switch(lambda: running.append(part))
            try:
                return function(*args, **kwargs)
            finally:
                switch(running.pop)

        return call

    before = [(owner, name, owner.__dict__[name]) for functions in parts.values() for owner, name in functions]
    try:
        for part, functions in parts.items():
            for owner, name in functions:
                setattr(owner, name, timed(part, owner.__dict__[name]))
        yield seconds
    finally:
        for owner, name, function in before:
            setattr(owner, name, function)


def _inference_parts() -> dict[str, list[tuple[Any, str]]]:
    return {
        "loading": [(ScanPreprocessing, "load")],
        "transforms": [(ScanPreprocessing, name) for name in ("stack", "tissue", "to_scan", "change_to_scan")],
        "network": [(StackInferer, "__call__")],
        "writing": [(postprocessing, "write_case"), (PredictionsHandler, "end")],
        "pictures": [(postprocessing, "draw_overview"), (ReportHandler, "end")],
    }


def cohort_call(
    name: str, items: Sequence[dict[str, Any]], out: Path, size: int, device: str, report: bool = True
) -> Call:
    """A function that scores a cohort as a bundle's inference does: maps, restorations, overviews, tables, report.

    Args:
        name: of ``contenders``.
        items: of the cohort.
        out: a folder for the results; each call writes into a new one below it.
        size: rows and columns that the network sees.
        device: where it runs.
        report: also end with the report.
    """

    network, preprocessing = network_of(contenders([name])[name], size), ScanPreprocessing((size, size))
    turn = 0

    def call() -> None:
        nonlocal turn
        turn += 1
        folder = out / str(turn)
        evaluator = CohortEvaluator(
            network,
            scan_loader(items, preprocessing),
            device,
            postprocessing=Compose(
                [ToScanVoxelsd(preprocessing), MaskAboveThresholdd(network, None), SaveCased(folder)]
            ),
            val_handlers=[
                PredictionsHandler(folder, network),
                DriftHandler(folder, network),
                ReportHandler(folder, network, None, write=report),
            ],
            progress=False,
        )
        evaluator.run()
        evaluator.finish()

    return call


def cohort_breakdown(
    names: Sequence[str], size: int, device: str, scans: int = 2, slices: int = 155
) -> list[dict[str, Any]]:
    """Where the time of a cohort's inference goes.

    Args:
        names: of ``contenders``.
        size: rows and columns that the network sees.
        device: where it runs.
        scans: simulated volumes of 240 x 240 x ``slices`` voxels.
        slices: of each.

    Returns:
        A row for each: ``contender``, ``scans``, ``slices``, ``seconds`` (see ``clock_of``), ``parts``: seconds of
        loading, transforms (there and back), network, writing (files and tables), images (overviews and report),
        and other; ``input_bytes`` and ``output_bytes``, all files of the cohort and of the results.
    """
    rows = []
    clock = clock_of(device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        items = simulated_cohort(folder, scans, slices)
        for contender in names:
            # the first scan warms up
            cohort_call(contender, items[:1], folder / f"{contender}-first", size, device)()
            call = cohort_call(contender, items, folder / contender, size, device)
            start = clock()
            with timed_parts(_inference_parts(), clock) as parts:
                call()
            total = clock() - start
            parts["other"] = total - sum(parts.values())
            rows.append(
                {
                    "contender": contender,
                    "scans": scans,
                    "slices": slices,
                    "seconds": total,
                    "parts": dict(parts),
                    "input_bytes": sum(Path(item["image"]).stat().st_size for item in items),
                    "output_bytes": sum(p.stat().st_size for p in (folder / contender).rglob("*") if p.is_file()),
                }
            )
    return rows


def volume_seconds(
    names: Sequence[str], size: int, device: str, slices: int = 155, repeats: int = 1
) -> dict[str, list[float]]:
    """Seconds of the network over all slices of one 240 x 240 volume, by contender (see ``clock_of``).

    Args:
        names: of ``contenders``.
        size: rows and columns that the network sees.
        device: where it runs.
        slices: of the volume.
        repeats: rounds; before each contender's first one slice warms up.
    """

    clock, inferer = clock_of(device), StackInferer()
    with tempfile.TemporaryDirectory() as name:
        preprocessing = ScanPreprocessing((size, size))
        stack = preprocessing({"image": simulated_cohort(Path(name), 1, slices)[0]["image"]})["image"]
    seconds: dict[str, list[float]] = {}
    networks = {name: network_of(entry, size).to(device) for name, entry in contenders(names).items()}
    for network in networks.values():
        inferer(stack[..., :1], network)
    for _ in range(repeats):
        for name, network in networks.items():
            start = clock()
            inferer(stack, network)
            seconds.setdefault(name, []).append(clock() - start)
    return seconds


def epoch_shares(
    methods: Mapping[str, Mapping[str, Any]], device: str, pictures: int = 64, weights: str | None = None
) -> list[dict[str, Any]]:
    """How much of a training epoch on small images is spent outside the network step.

    Args:
        methods: by name of ``methods.yaml`` the ``sides`` and perhaps ``options``.
        device: where it runs.
        images: of an epoch, in memory; the methods' batches are those of their papers.
        weights: see ``training_stages``.

    Returns:
        A row for each stage: ``method, side, stage, steps, seconds, outside`` (seconds), ``share`` and
        ``outside_per_step``. The loss curves and the checkpoint, which a run writes beside an epoch, are not in it.
    """
    rows = []
    clock = clock_of(device)
    for method, settings in methods.items():
        for side in settings["sides"]:
            options = {"max_epochs": 1, **settings.get("options", {})}
            for stage in training_stages(method, side, pictures, device, weights, options):
                stage.prepare()
                step = {"step": [(_owner(type(stage), "training_step"), "training_step")]}
                for _ in range(2):  # the first epoch warms up
                    start = clock()
                    with timed_parts(step, clock) as of:
                        one_epoch(stage)
                    total = clock() - start
                outside = total - of["step"]
                rows.append(
                    {
                        "method": method,
                        "side": side,
                        "stage": stage.stage,
                        "steps": len(stage.data_loader),
                        "seconds": total,
                        "outside": outside,
                        "share": outside / total,
                        "outside_per_step": outside / len(stage.data_loader),
                    }
                )
    return rows


def one_epoch(stage: Any) -> None:
    """Run one epoch of a stage, as ``train_stages`` does but for loss curves and checkpoints."""
    stage.state.epoch, stage.state.iteration, stage.state.max_epochs = 0, 0, 1
    stage.run()
    stage.epoch_completed(1)


def _owner(kind: type, name: str) -> type:
    """The class that a method is written in."""
    return next(base for base in kind.__mro__ if name in base.__dict__)


def proxy_speed(scans: int = 4, slices: int = 12, size: int = 256, workers: int = 2, rounds: int = 5) -> dict[str, Any]:
    """Superpixel images of a training set: ``SliceDataset`` with several threads against a loop over scikit-image.

    Both read and slice the same scans; the loop then calls ``slic`` and fills each superpixel with its mean, slice
    after slice. They take turns.

    Args:
        scans: simulated volumes of 240 x 240 x ``slices`` voxels.
        slices: of each.
        size: rows and columns of a slice.
        workers: threads.
        rounds: that count; one before them warms up.

    Returns:
        ``seconds`` of both on the clock, by round; the speed-up with its range; ``target``.
    """

    preprocessing, proxy = ScanPreprocessing((size, size)), SuperpixelImage()
    with tempfile.TemporaryDirectory() as name:
        items = simulated_cohort(Path(name), scans, slices)

        def loop() -> None:
            for item in items:
                stack = preprocessing({"image": item["image"]})["image"]
                chosen = stack.as_tensor()[..., preprocessing.tissue(stack)].movedim(-1, 0).numpy()
                for image in chosen:
                    _superpixels(image[0], proxy)

        def threads() -> None:
            SliceDataset(items, preprocessing, proxy, num_workers=workers, progress=False)

        seconds = _in_turns({"loop": loop, "threads": threads}, rounds)
    found = ratio(seconds, "loop", "threads")
    return {
        "seconds": seconds,
        "workers": workers,
        "slices": scans * slices,
        **found,
        "target": section_target("proxies", found["ratio"]),
    }


def _superpixels(image: np.ndarray, proxy: Any) -> np.ndarray:
    labels = slic(
        image,
        n_segments=proxy.count(image.shape),
        compactness=proxy.compactness,
        sigma=proxy.sigma,
        convert2lab=False,
        start_label=0,
        channel_axis=None,
    )
    means = np.bincount(labels.ravel(), weights=image.ravel()) / np.maximum(np.bincount(labels.ravel()), 1)
    return means[labels]


def _in_turns(calls: Mapping[str, Call], rounds: int) -> dict[str, list[float]]:
    """Seconds on the clock: what several cores do at once shows nowhere else."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def shared_inference(
    name: str, size: int = 256, scans: int = 8, slices: int = 16, rounds: int = 5, processes: int = 2
) -> dict[str, Any]:
    """A cohort's inference by one process of one thread, and by several that share its scans, in turns.

    Args:
        name: of ``contenders``.
        size: rows and columns that the network sees.
        scans: simulated volumes of 240 x 240 x ``slices`` voxels.
        slices: of each.
        rounds: that count; one before them warms up.
        processes: that share the cohort.

    Returns:
        ``seconds`` of both on the clock, by round, without the start of the processes; the speed-up with its range;
        ``target``.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        items = simulated_cohort(Path(folder), scans, slices)
        pools = [stack.enter_context(ProcessPoolExecutor(1, mp_context=get_context("spawn"))) for _ in range(processes)]

        def run(count: int) -> None:
            shares = [(items[i::count], Path(folder) / f"out{i}of{count}") for i in range(count)]
            done = [pool.submit(_score_share, name, *share, size) for pool, share in zip(pools, shares)]
            for each in done:
                each.result()

        seconds = _in_turns({"one": lambda: run(1), "several": lambda: run(processes)}, rounds)
    found = ratio(seconds, "one", "several")
    return {
        "contender": name,
        "processes": processes,
        "scans": scans,
        "slices": slices,
        "seconds": seconds,
        **found,
        "target": section_target("processes", found["ratio"]) if processes == 2 else None,
    }


# The calls of a worker process, kept from one round to the next.
_CALLS: dict[str, Call] = {}


def _score_share(name: str, items: Sequence[dict[str, Any]], out: Path, size: int) -> None:
    torch.set_num_threads(1)
    key = str(out)
    if key not in _CALLS:
        _CALLS[key] = cohort_call(name, items, out, size, "cpu", report=False)
    _CALLS[key]()
