"""What methods, their parts and peers cost, side by side in one run."""

from __future__ import annotations

import copy
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from monai.bundle import ConfigParser

from monai_anomaly.exceptions import InputError

__all__ = ["compare", "contenders", "inference_calls", "peak_memory", "speed_targets", "training_calls"]

Call = Callable[[], object]


@cache
def _plan() -> dict[str, Any]:
    return yaml.safe_load(Path(__file__).with_name("speed.yaml").read_text(encoding="utf-8"))


def contenders(names: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """What can be measured, by name.

    Args:
        names: some of them; None: all, without the peers whose library is not installed.

    Raises:
        InputError: for a name that is not there.
    """
    known = _plan()["contenders"]
    if names is None:
        return {name: entry for name, entry in known.items() if not entry.get("peer") or _peers_installed()}
    for name in names:
        if name not in known:
            raise InputError("--methods", f"has no contender {name!r}", f"Choose among {', '.join(known)}.")
    return {name: known[name] for name in names}


def _peers_installed() -> bool:
    from importlib.util import find_spec

    return find_spec("anomalib") is not None


@contextmanager
def _random_weights() -> Iterator[None]:
    """Within, networks of peers start from random weights: they cost the same, and nothing is downloaded."""
    if not _peers_installed():
        yield
        return
    from .peers import random_backbones

    with random_backbones():
        yield


def inference_calls(
    chosen: Mapping[str, Mapping[str, Any]], size: int, batch: int, device: str, channels_last: bool = False
) -> dict[str, Call]:
    """By name a function that runs a detector, or a part of it, over one batch.

    Args:
        chosen: of ``contenders``.
        size: rows and columns.
        batch: pictures.
        device: where it runs.
        channels_last: memory format of weights and pictures.
    """
    image = torch.rand(batch, 1, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    form = torch.channels_last if channels_last else torch.contiguous_format
    image = image.contiguous(memory_format=form)
    return {name: _inference_call(entry, size, image, form) for name, entry in chosen.items()}


def _inference_call(entry: Mapping[str, Any], size: int, image: torch.Tensor, form: torch.memory_format) -> Call:
    torch.manual_seed(0)
    parser = ConfigParser({"image_size": [size, size], "network": copy.deepcopy(entry["network"])})
    with _random_weights():
        network = parser.get_parsed_content("network")
    # the memory format is one of 4-D tensors, which some buffers are not
    network = network.eval().to(image.device)
    if form is torch.channels_last:
        network = network.to(memory_format=form)
    part = getattr(network, entry.get("call", "detect"))

    def call() -> object:
        with torch.no_grad():
            return part(image)

    return call


def training_calls(
    names: Sequence[str], size: int, batch: int, device: str, weights: str | None = None
) -> tuple[dict[str, Call], dict[str, str]]:
    """By name a function that makes one optimiser step of each stage of a method, at the paper's widths.

    Args:
        names: of ``methods.yaml``.
        size: rows and columns.
        batch: pictures in a step.
        device: where it runs.
        weights: file of an encoder's weights, for the methods that need one.

    Returns:
        The functions, and by name why a method cannot be measured so.
    """
    from monai_anomaly.data.published import Pictures

    from .pictures import PictureReader, Sides
    from .suites import load_methods
    from .training import build_detector, merged_config

    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (2 * batch + 2, size, size)).astype(np.uint8)
    whole = Pictures(
        tuple(str(i) for i in range(len(pictures))), np.zeros(len(pictures), dtype=np.int64), pictures.__getitem__
    )
    sides = Sides(whole.take(range(2 * batch)), whole.take([2 * batch]), whole.take([2 * batch + 1]))
    calls: dict[str, Call] = {}
    reasons: dict[str, str] = {}
    for name in names:
        method = load_methods()[name]
        overrides: dict[str, Any] = {"image_size": [size, size], "in_channels": 1, "device": torch.device(device)}
        overrides |= {"batch_size": batch, "amp": False, **method.options}
        parser_keys = merged_config(method.files, {}).config
        if "weights" in method.options:  # peers keep their random ones, whatever their backbone
            overrides["weights"] = weights
        try:
            with _random_weights():
                parser = merged_config(method.files, {key: overrides[key] for key in overrides if key in parser_keys})
                _, stages, _, _ = build_detector(
                    parser, sides, lambda image_size, channels: PictureReader(image_size, channels, "unit")
                )
            calls[name] = _steps(stages)
            calls[name]()
        except (InputError, ValueError, RuntimeError) as error:
            calls.pop(name, None)
            reasons[name] = " ".join(str(error).split())
    return calls, reasons


def _steps(stages: Sequence[Any]) -> Call:
    prepared = []
    for stage in stages:
        stage.prepare()
        prepared.append((stage, stage.to_device(next(iter(stage.data_loader)))))

    def call() -> object:
        # as ``train_stages`` runs them: a stage trains what it trains, and the losses are waited for
        return [float(stage.training_step(batch)["loss"].detach()) for stage, batch in prepared]

    return call


def compare(calls: Mapping[str, Call], repeats: int, device: str = "cpu") -> dict[str, list[float]]:
    """Seconds of each function, taking turns, so that all see the same machine; a first round warms up.

    On a CPU these are CPU seconds of the process, which other programs add little to; on a GPU they are those on the
    clock, to the end of the work.

    Args:
        calls: by name.
        repeats: rounds that count.
        device: where the functions run.

    Returns:
        By name the seconds of each round, in order.
    """
    cuda = torch.device(device).type == "cuda"
    clock = time.perf_counter if cuda else time.process_time
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            if cuda:
                torch.cuda.synchronize()
            start = clock()
            call()
            if cuda:
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(clock() - start)
    return seconds


def ratio(seconds: Mapping[str, Sequence[float]], one: str, other: str) -> dict[str, float]:
    """The median of the rounds' ratios, and their range."""
    ratios = [a / b for a, b in zip(seconds[one], seconds[other])]
    return {"ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def speed_targets(seconds: Mapping[str, Sequence[float]], device: str, batch: int) -> list[dict[str, Any]]:
    """The targets that were measured, each with what was reached.

    Args:
        seconds: of ``compare``.
        device: where it ran.
        batch: pictures in a batch.
    """
    kind = torch.device(device).type
    rows = []
    for target in _plan()["targets"]:
        one, other = target["contender"], target["reference"]
        applies = target.get("device", kind) == kind and target.get("batch", batch) == batch
        if applies and one in seconds and other in seconds:
            found = ratio(seconds, one, other)
            rows.append({**target, "batch": batch, **found, "met": found["ratio"] <= target["at_most"]})
    return rows


def training_names() -> list[str]:
    """The methods whose training step is measured."""
    peers = {name for name, entry in _plan()["contenders"].items() if entry.get("peer")}
    return [name for name in _plan()["training"] if name not in peers or _peers_installed()]


def peak_memory(name: str, size: int, batch: int, device: str) -> int:
    """Bytes that one contender's inference needs at its peak, beyond what the libraries hold before it.

    On a CPU a process of its own runs it; on a GPU it is what torch allocates.

    Args:
        name: of ``contenders``.
        size: rows and columns.
        batch: pictures.
        device: where it runs.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        call = inference_calls(contenders([name]), size, batch, device)[name]
        call()
        return int(torch.cuda.max_memory_allocated())
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=_measure_memory, args=(queue, name, size, batch, torch.get_num_threads()))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"the memory of {name} could not be measured (exit code {process.exitcode})")
    return int(queue.get())


def _measure_memory(queue: Any, name: str, size: int, batch: int, threads: int) -> None:
    torch.set_num_threads(threads)
    chosen = contenders([name])
    # What the libraries load on first use is not the method's.
    inference_calls(chosen, 64 if size > 64 else size, 1, "cpu")
    before = _reset_peak()
    inference_calls(chosen, size, batch, "cpu")[name]()
    queue.put(_peak() - before)


def _reset_peak() -> int:
    """Bytes that the process holds; on Linux its peak is counted anew from here."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _peak()
    return _status("VmRSS")


def _peak() -> int:
    status = _status("VmHWM")
    return status or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _status(field: str) -> int:
    path = Path("/proc/self/status")
    if not path.is_file():
        return 0
    lines = (line.split() for line in path.read_text().splitlines() if line.startswith(field))
    return next((1024 * int(line[1]) for line in lines), 0)
