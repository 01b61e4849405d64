"""What methods, their parts and external baselines cost, side by side in one run."""

from __future__ import annotations

import copy
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
import yaml
from monai.bundle import ConfigParser

from monai_anomaly.benchmarks.images import ImageSetReader, Sides
from monai_anomaly.benchmarks.peers import random_backbones
from monai_anomaly.benchmarks.suites import load_methods
from monai_anomaly.benchmarks.training import build_detector, merged_config
from monai_anomaly.data.published import ImageSet
from monai_anomaly.data.slices import describe_failure
from monai_anomaly.engines.inferer import set_memory_format
from monai_anomaly.exceptions import InputError

__all__ = [
    "FORMS",
    "TOLERANCE",
    "Call",
    "Cost",
    "clock_of",
    "compare",
    "compare_forms",
    "contenders",
    "cost_apart",
    "inference_calls",
    "judged",
    "peak_memory",
    "ratio",
    "section_target",
    "speed_plan",
    "speed_targets",
    "training_calls",
    "training_names",
    "training_stages",
]

Call = Callable[[], object]

FORMS = ("channels_last", "compile", "amp")
"""What the plain form of a network is held against."""

TOLERANCE = 1e-3
"""The largest difference of two maps, relative to the largest value of the plain one, that is taken for the same."""

# A form pays where it takes off more than a twentieth: less is within what rounds differ by.
_PAYS = 0.95


@cache
def speed_plan() -> dict[str, Any]:
    """The content of ``speed.yaml``."""
    return yaml.safe_load(Path(__file__).with_name("speed.yaml").read_text(encoding="utf-8"))


def contenders(names: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """What can be measured, by name.

    Args:
        names: some of them; None: all, without the external baselines whose library is not installed.

    Raises:
        InputError: for a name that is not there, or an external baseline whose library is not installed.
    """
    known = speed_plan()["contenders"]
    if names is None:
        return {name: entry for name, entry in known.items() if not entry.get("peer") or _peers_installed()}
    for name in names:
        if name not in known:
            raise InputError("--methods", f"has no contender {name!r}", f"Choose among {', '.join(known)}.")
        if known[name].get("peer") and not _peers_installed():
            raise InputError("--methods", f"{name} is anomalib's", 'Run pip install "monai-anomaly[peers]".')
    return {name: known[name] for name in names}


def _peers_installed() -> bool:
    return find_spec("anomalib") is not None


@contextmanager
def _random_weights() -> Iterator[None]:
    """Within, external baselines start from random weights: they cost the same, and nothing is downloaded."""
    if not _peers_installed():
        yield
        return
    with random_backbones():
        yield


def inference_calls(
    chosen: Mapping[str, Mapping[str, Any]], size: int, batch: int, device: str, form: str = "plain"
) -> dict[str, Call]:
    """By name a function that runs a detector, or a part of it, over one batch.

    Args:
        chosen: of ``contenders``.
        size: rows and columns.
        batch: images.
        device: where it runs.
        form: ``"plain"``, or one of ``FORMS``: memory format of weights and images, torch.compile, mixed precision
            (on a GPU).
    """
    image = torch.rand(batch, 1, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    if form == "channels_last":
        image = image.contiguous(memory_format=torch.channels_last)
    return {name: _inference_call(network_of(entry, size), entry, image, form) for name, entry in chosen.items()}


def network_of(entry: Mapping[str, Any], size: int) -> Any:
    """The network of a contender, in eval mode, from the same random weights each time.

    Raises:
        InputError: if it cannot be made for this size.
    """
    torch.manual_seed(0)
    parser = ConfigParser({"image_size": [size, size], "network": copy.deepcopy(entry["network"])})
    with _random_weights():
        try:
            return parser.get_parsed_content("network").eval()
        except RuntimeError as error:  # MONAI's, around what the network rejects
            title, cause = entry.get("title", "a network"), " ".join(str(error.__cause__ or error).split())
            raise InputError(
                f"--size {size}", f"does not suit {title} ({cause})", "Give another, or name others."
            ) from error


def _inference_call(network: Any, entry: Mapping[str, Any], image: torch.Tensor, form: str) -> Call:
    network = network.to(image.device)
    if form == "channels_last":
        set_memory_format(network, torch.channels_last)
    part = getattr(network, entry.get("call", "detect"))
    if form == "compile":
        part = torch.compile(part)

    def call() -> object:
        with torch.no_grad(), torch.autocast(image.device.type, enabled=form == "amp"):
            return part(image)

    return call


def training_stages(
    name: str,
    size: int,
    pictures: int,
    device: str,
    weights: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[Any]:
    """The stages of a method at the paper's widths, on images of noise.

    Args:
        name: of ``methods.yaml``.
        size: rows and columns.
        images: to train on.
        device: where it runs.
        weights: file of an encoder's weights, for the methods that need one.
        options: further overrides of the config; those that it does not have are passed over.
    """
    random = np.random.default_rng(0)
    # two held out: one alone gives scores no range
    values = random.integers(0, 256, (pictures + 3, size, size)).astype(np.uint8)
    whole = ImageSet(
        tuple(str(i) for i in range(len(values))), np.zeros(len(values), dtype=np.int64), values.__getitem__
    )
    held_out, calibration = whole.take([pictures, pictures + 1]), whole.take([pictures + 2])
    sides = Sides(whole.take(range(pictures)), held_out, calibration)
    method = load_methods()[name]
    known = merged_config(method.files, {}).config
    overrides = {"image_size": [size, size], "in_channels": 1, "device": torch.device(device), "amp": False}
    overrides |= {**method.options, **(options or {})}
    if "weights" in method.options:  # external baselines keep their random ones, whatever their backbone
        overrides["weights"] = weights
    overrides = {key: value for key, value in overrides.items() if key.partition("#")[0] in known}
    with _random_weights():
        parser = merged_config(method.files, overrides)
        _, stages, _, _ = build_detector(
            parser, sides, lambda image_size, channels: ImageSetReader(image_size, channels, "unit")
        )
    return stages


def training_calls(
    names: Sequence[str], size: int, batch: int, device: str, weights: str | None = None
) -> tuple[dict[str, Call], dict[str, str]]:
    """By name a function that makes one optimiser step of each stage of a method, at the paper's widths.

    Args:
        names: of ``methods.yaml``.
        size: rows and columns.
        batch: images in a step.
        device: where it runs.
        weights: file of an encoder's weights, for the methods that need one.

    Returns:
        The functions, and by name why a method cannot be measured so.
    """
    calls: dict[str, Call] = {}
    reasons: dict[str, str] = {}
    for name in names:
        try:
            calls[name] = _steps(training_stages(name, size, 2 * batch, device, weights, {"batch_size": batch}))
            calls[name]()
        except (InputError, ValueError, RuntimeError) as error:
            calls.pop(name, None)
            reasons[name] = describe_failure(error)
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


def clock_of(device: str) -> Callable[[], float]:
    """CPU seconds of the process, which others add little to, on a CPU with one thread; else those on the clock.

    Args:
        device: where the work runs; on a GPU the clock waits for its end.
    """
    if torch.device(device).type != "cuda":
        return time.process_time if torch.get_num_threads() == 1 else time.perf_counter

    def clock() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return clock


def compare(calls: Mapping[str, Call], repeats: int, device: str = "cpu") -> dict[str, list[float]]:
    """Seconds of each function (see ``clock_of``), taking turns, so that all see the same machine.

    Args:
        calls: by name.
        repeats: rounds that count; one before them warms up.
        device: where the functions run.

    Returns:
        By name the seconds of each round, in order.
    """
    clock = clock_of(device)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            start = clock()
            call()
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
        batch: images in a batch.
    """
    kind = torch.device(device).type
    rows = []
    for target in speed_plan()["targets"]:
        one, other = target["contender"], target["reference"]
        applies = target.get("device", kind) == kind and target.get("batch", batch) == batch
        if applies and one in seconds and other in seconds:
            found = ratio(seconds, one, other)
            rows.append({**target, "batch": batch, **found, "met": found["ratio"] <= target["at_most"]})
    return rows


def section_target(section: str, value: float, device: str = "cpu") -> dict[str, Any] | None:
    """The target of a whole section with what was reached; None where it has none on this device.

    Args:
        section: of ``section_targets`` in ``speed.yaml``.
        value: what was measured.
        device: where it ran.
    """
    target = speed_plan()["section_targets"][section]
    kind = torch.device(device).type
    return judged(target, value) if target.get("device", kind) == kind else None


def judged(target: Mapping[str, Any], value: float) -> dict[str, Any]:
    """A target with the value that was reached and whether that meets it.

    Args:
        target: has ``at_most`` or ``at_least``.
        value: what was measured.
    """
    met = value <= target["at_most"] if "at_most" in target else value >= target["at_least"]
    return {**target, "value": value, "met": met}


def compare_forms(
    chosen: Mapping[str, Mapping[str, Any]], forms: Sequence[str], size: int, batch: int, device: str, repeats: int
) -> list[dict[str, Any]]:
    """Forms of the same network in turns with the plain one, and how far their maps are apart.

    Args:
        chosen: of ``contenders``; those that are a part of a network have no map and are passed over.
        forms: some of ``FORMS``; mixed precision is measured on a GPU alone.
        size: rows and columns.
        batch: images.
        device: where it runs.
        repeats: rounds that count.

    Returns:
        Rows ``contender, form, batch, ratio, least, most, difference`` (see ``TOLERANCE``), ``same``, ``use``: the
        maps are the same and the form pays; or ``reason``, why it could not be measured.
    """
    rows: list[dict[str, Any]] = []
    for name, entry in chosen.items():
        if "call" in entry:
            continue
        for form in forms:
            row: dict[str, Any] = {"contender": name, "form": form, "batch": batch}
            if form == "amp" and torch.device(device).type != "cuda":
                rows.append({**row, "reason": "mixed precision is for GPUs"})
                continue
            try:
                calls = {
                    kind: inference_calls({name: entry}, size, batch, device, kind)[name] for kind in ("plain", form)
                }
                maps = {kind: _map_of(call()) for kind, call in calls.items()}
                seconds = compare(calls, repeats, device)
            except Exception as error:  # compilers fail in many ways, and each is a finding
                rows.append({**row, "reason": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"})
                continue
            largest = float(maps["plain"].abs().max())
            difference = float((maps[form] - maps["plain"]).abs().max()) / largest
            found = ratio(seconds, form, "plain")
            same = difference <= TOLERANCE
            row |= {**found, "difference": difference, "same": same, "use": same and found["ratio"] <= _PAYS}
            rows.append(row)
    return rows


def _map_of(output: Any) -> torch.Tensor:
    return output.anomaly_map.float()


def training_names() -> list[str]:
    """The methods whose training step is measured."""
    peers = {name for name, entry in speed_plan()["contenders"].items() if entry.get("peer")}
    return [name for name in speed_plan()["training"] if name not in peers or _peers_installed()]


def peak_memory(name: str, size: int, batch: int, device: str) -> int:
    """Bytes that one contender's inference needs at its peak, beyond what the libraries hold before it.

    On a CPU a process of its own runs it; on a GPU it is what torch allocates.

    Args:
        name: of ``contenders``.
        size: rows and columns.
        batch: images.
        device: where it runs.
    """
    return cost_apart(contender_call, name, size, batch, device, device=device)["peak_bytes"]


def contender_call(name: str, size: int, batch: int, device: str, overrides: Mapping[str, Any] | None = None) -> Call:
    """One contender's inference; ``overrides`` are arguments of its network."""
    entry = copy.deepcopy(contenders([name])[name])
    entry["network"].update(overrides or {})
    return inference_calls({name: entry}, size, batch, device)[name]


class Cost(TypedDict):
    """What a call costs: bytes at its peak, and the median of its seconds, or None where none were taken."""

    peak_bytes: int
    seconds: float | None


def cost_apart(build: Callable[..., Call], *arguments: Any, device: str = "cpu", repeats: int = 0) -> Cost:
    """What making and calling a function costs, in a process of its own.

    Args:
        build: makes the function; of a module, so that another process finds it.
        arguments: of ``build``.
        device: where the function runs.
        repeats: calls that are timed, after a first one.

    Returns:
        ``peak_bytes``, beyond what the libraries hold before it (on a GPU what torch allocates); ``seconds``, the
        median of the calls, or None without any.

    Raises:
        RuntimeError: if the process fails.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_cost, build, arguments, device, repeats, torch.get_num_threads()).result()


def _cost(build: Callable[..., Call], arguments: Sequence[Any], device: str, repeats: int, threads: int) -> Cost:
    torch.set_num_threads(threads)
    cuda = torch.device(device).type == "cuda"
    # what the libraries load on first use is not the function's
    torch.nn.functional.conv2d(torch.rand(1, 1, 8, 8, device=device), torch.rand(1, 1, 3, 3, device=device))
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        before = _reset_peak()
    call = build(*arguments)
    call()
    peak = torch.cuda.max_memory_allocated() if cuda else _peak()
    clock = clock_of(device)
    seconds = []
    for _ in range(repeats):
        start = clock()
        call()
        seconds.append(clock() - start)
    return {"peak_bytes": max(0, peak - before), "seconds": statistics.median(seconds) if seconds else None}


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
