"""Measure what methods, their parts and external baselines cost; keep it, print it, draw it into a page.

python examples/speed/measure_speed.py --out DIR [--what inference training ...]
python examples/speed/measure_speed.py --refresh PAGE
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from monai_anomaly.benchmarks.machine import checked_device, hardware
from monai_anomaly.benchmarks.pages import refreshed_page
from monai_anomaly.exceptions import InputError
from monai_anomaly.io.atomic import atomic_path, ensure_writable
from speed import (
    FORMS,
    TOLERANCE,
    compare,
    compare_forms,
    contenders,
    inference_calls,
    peak_memory,
    section_target,
    speed_plan,
    speed_targets,
    training_calls,
    training_names,
)
from speed_cohort import cohort_breakdown, epoch_shares, proxy_speed, shared_inference, volume_seconds
from speed_growth import growth, growth_plan
from speed_tables import render_speed, section_text

SECTIONS = (
    "inference",
    "training",
    "memory",
    "forms",
    "volume",
    "breakdown",
    "epoch",
    "proxies",
    "processes",
    "growth",
)
"""What can be measured."""

# What several cores do at once shows on the clock alone.
_ON_THE_CLOCK = ("proxies", "processes")

# What runs whole detectors over scans.
_WHOLE = ("volume", "cohort", "processes")

# What --what measures unless it is given: whole volumes and growth take long.
_USUAL = ("inference", "training", "memory", "breakdown")


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments ask for.

    Args:
        arguments: of the command line; None reads them from the process.

    Returns:
        The exit code: 0, or 1 after one line on what is wrong.
    """
    given = _parser().parse_args(arguments)
    try:
        if given.refresh is not None:
            text = refreshed_page(given.refresh, "speed", _drawn)
            given.refresh.write_text(text, encoding="utf-8")
            return 0
        if given.speed_out is None:
            raise InputError("--out", "is not given", "Pass --out DIR.")
        return measure(given)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _drawn(folder: Path, names: Sequence[str]) -> str:
    """Sections of a file of measurements, for a page in ``folder``."""
    path, sections = folder / names[0], names[1:]
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        return "\n\n".join(section_text(report, name) for name in sections) + "\n"
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"holds no measurement {' or '.join(sections)} ({type(error).__name__}: {error})"
        raise InputError(path, problem, "Measure it first.") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--refresh", type=Path, metavar="PAGE", help="draw the measurements of a page anew, in place")
    parser.add_argument("--out", dest="speed_out", type=Path, help="folder that gets speed.json")
    parser.add_argument("--what", dest="sections", nargs="+", choices=SECTIONS, default=list(_USUAL))
    parser.add_argument("--methods", dest="contenders", nargs="+", help="some of what speed.yaml names")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--size", type=int, default=256, help="rows and columns")
    parser.add_argument("--repeats", type=int, default=7, help="rounds that count")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", dest="speed_device", default="cpu")
    parser.add_argument("--weights", help="file of an encoder's weights, for the training of methods that need one")
    parser.add_argument("--forms", nargs="+", help="channels_last, compile, amp; all by default")
    parser.add_argument("--scans", type=int, default=2, help="volumes of the breakdown")
    parser.add_argument("--slices", type=int, default=155, help="of each volume")
    parser.add_argument("--images", type=float, default=1e5, help="the most simulated images of growth")
    parser.add_argument("--note", default="", help="kept with what is measured, such as what else the machine does")
    parser.add_argument("--show", action="store_true", help="print what was measured before, and measure nothing")
    return parser


def measure(given: argparse.Namespace) -> int:
    """Measure what the arguments ask for, write ``speed.json`` and print tables.

    Sections that are in the file already are kept, unless they are measured again.

    Args:
        given: the parsed arguments.

    Returns:
        0. A target that is not met is a finding, not a failure.

    Raises:
        InputError: for an argument out of range, or a file there that is no result.
    """
    path = given.speed_out / "speed.json"
    report = _earlier(path)
    if given.show:
        if not report["sections"]:
            raise InputError(path, "holds nothing", "Measure something first, without --show.")
        print(render_speed(report), end="")
        return 0
    _check(given)
    ensure_writable(given.speed_out)
    torch.set_num_threads(given.threads)
    for section in dict.fromkeys(given.sections):
        load, start = os.getloadavg()[0], time.time()
        found = _MEASURES[section](given)
        report["sections"][section] = {"context": _context(given, section, load, time.time() - start), **found}
        # kept section by section: the whole takes long
        with atomic_path(path) as aside:
            aside.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    chosen = {section: report["sections"][section] for section in dict.fromkeys(given.sections)}
    print(render_speed({**report, "sections": chosen}), end="")
    print(f"\nwritten: {path}; research use only, not for diagnosis")
    return 0


def _earlier(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {"sections": {}}
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        for section in report["sections"].values():
            section["context"]["machine"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(path, "is no result of this command", "Choose another folder.") from error
    return report


def _check(given: argparse.Namespace) -> None:
    for name, least in (("size", 32), ("repeats", 1), ("threads", 1), ("scans", 1), ("slices", 1), ("images", 1)):
        if getattr(given, name) < least:
            raise InputError(f"--{name}", f"is {getattr(given, name):g}", f"Give at least {least}.")
    if min(given.batches) < 1:
        raise InputError("--batches", f"holds {min(given.batches)}", "Give positive numbers.")
    for form in given.forms or ():
        if form not in FORMS:
            raise InputError("--forms", f"has no form {form!r}", f"Choose among {', '.join(FORMS)}.")
    if given.size % 32:
        raise InputError("--size", f"is {given.size}", "Give a multiple of 32.")
    checked_device(given.speed_device)
    known = set(training_names())
    contenders([name for name in given.contenders or () if name not in known])


def _context(given: argparse.Namespace, section: str, load: float, seconds: float) -> dict[str, Any]:
    def of(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    cuda = torch.device(given.speed_device).type == "cuda"
    cpu_seconds = given.threads == 1 and not cuda and section not in _ON_THE_CLOCK
    versions = {name: of(name) for name in ("torch", "monai", "numpy", "scikit-image", "anomalib")}
    return {
        "machine": hardware(given.speed_device),
        "versions": {"monai-anomaly": of("monai-anomaly"), "python": platform.python_version(), **versions},
        "clock": "CPU seconds" if cpu_seconds else "seconds on the clock",
        "load_before": round(load, 2),
        "measured_in_seconds": round(seconds, 1),
        "when": time.strftime("%Y-%m-%d", time.gmtime()),
        "size": given.size,
        "repeats": given.repeats,
        "note": given.note,
    }


def _named(given: argparse.Namespace, section: str | None = None) -> list[str]:
    """The contenders of a section: those named, else its own ones of ``speed.yaml`` that are installed."""
    known = contenders()
    if section in _WHOLE and (parts := [name for name in given.contenders or () if "call" in known.get(name, {})]):
        raise InputError(
            "--methods", f"{', '.join(parts)}: a part of a network, which no scan is run through", "Name others."
        )
    if given.contenders is not None:
        # a method may have a training step and no plain part
        return [name for name in given.contenders if name in known or name in speed_plan()["contenders"]]
    return list(known) if section is None else [name for name in speed_plan()[section] if name in known]


def _inference(given: argparse.Namespace) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    targets: list[dict[str, Any]] = []
    for batch in given.batches:
        calls = inference_calls(contenders(_named(given)), given.size, batch, given.speed_device)
        seconds = compare(calls, given.repeats, given.speed_device)
        rows += [{"contender": name, "batch": batch, "seconds": rounds} for name, rounds in seconds.items()]
        targets += speed_targets(seconds, given.speed_device, batch)
    return {"rows": rows, "targets": targets}


def _training(given: argparse.Namespace) -> dict[str, Any]:
    names = [name for name in training_names() if given.contenders is None or name in given.contenders]
    rows: list[dict[str, Any]] = []
    reasons: dict[str, str] = {}
    for batch in given.batches:
        calls, failed = training_calls(names, given.size, batch, given.speed_device, given.weights)
        seconds = compare(calls, given.repeats, given.speed_device)
        rows += [{"method": name, "batch": batch, "seconds": rounds} for name, rounds in seconds.items()]
        reasons |= {f"{name}, batch {batch}": reason for name, reason in failed.items()}
    return {"rows": rows, "reasons": reasons}


def _memory(given: argparse.Namespace) -> dict[str, Any]:
    return {
        "rows": [
            {
                "contender": name,
                "batch": batch,
                "peak_bytes": peak_memory(name, given.size, batch, given.speed_device),
            }
            for batch in given.batches
            for name in _named(given)
        ]
    }


def _forms(given: argparse.Namespace) -> dict[str, Any]:
    chosen = contenders(_named(given))
    rows = [
        row
        for batch in given.batches
        for row in compare_forms(
            chosen, given.forms or FORMS, given.size, batch, given.speed_device, min(given.repeats, 5)
        )
    ]
    return {"rows": rows, "tolerance": TOLERANCE}


def _volume(given: argparse.Namespace) -> dict[str, Any]:
    seconds = volume_seconds(_named(given, "volume"), given.size, given.speed_device, given.slices)
    return {
        "slices": given.slices,
        "rows": [{"contender": name, "seconds": rounds} for name, rounds in seconds.items()],
    }


def _breakdown(given: argparse.Namespace) -> dict[str, Any]:
    names = _named(given, "cohort")
    return {"rows": cohort_breakdown(names, given.size, given.speed_device, given.scans, given.slices)}


def _epoch(given: argparse.Namespace) -> dict[str, Any]:
    methods = speed_plan()["epoch"]
    if given.contenders is not None:
        methods = {name: settings for name, settings in methods.items() if name in given.contenders}
    rows = epoch_shares(methods, given.speed_device, weights=given.weights)
    target = section_target("epoch", max(row["share"] for row in rows), given.speed_device) if rows else None
    return {"rows": rows, "target": target}


def _proxies(given: argparse.Namespace) -> dict[str, Any]:
    return proxy_speed(size=given.size, rounds=given.repeats)


def _processes(given: argparse.Namespace) -> dict[str, Any]:
    names = _named(given, "processes")
    return {"rows": [shared_inference(name, given.size, rounds=given.repeats) for name in names]}


def _growth(given: argparse.Namespace) -> dict[str, Any]:
    plan = growth_plan(_named(given, "growth"), given.size, given.speed_device, given.images)
    return {"rows": growth(plan, min(given.repeats, 3))}


_MEASURES: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "inference": _inference,
    "training": _training,
    "memory": _memory,
    "forms": _forms,
    "volume": _volume,
    "breakdown": _breakdown,
    "epoch": _epoch,
    "proxies": _proxies,
    "processes": _processes,
    "growth": _growth,
}


if __name__ == "__main__":
    sys.exit(main())
