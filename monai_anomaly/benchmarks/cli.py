"""``python -m monai_anomaly benchmark``: run a suite, print its tables, draw its figures."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai_anomaly.bundle import literal
from monai_anomaly.exceptions import InputError

__all__ = ["add_arguments", "parsed_options", "run"]

_SCALES = ("smoke", "small", "paper")
_BASELINES = ("intensity", "zscore")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``benchmark``, and of ``benchmark table`` and ``benchmark plot``.

    Args:
        parser: of the command.
    """
    parser.add_argument("--suite", help="ddrid, itae, hfrae, daad, proxyano, medical, digits, or a YAML file")
    parser.add_argument("--data", nargs="+", default=[], metavar="[SET=]DIR", help="folder of all sets, or of one")
    parser.add_argument("--sets", nargs="+", help="some of the suite's sets")
    parser.add_argument("--problems", nargs="+", help="some of the problems, such as the normal class")
    parser.add_argument(
        "--methods", nargs="+", help="some of the methods; 'ablations' stands for the suite's further ones"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--device", help="such as cpu or cuda:0; a GPU where there is one, by default")
    parser.add_argument("--scale", choices=_SCALES, default="smoke")
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--download", action="store_true", help="fetch sets that are not there, where that is allowed")
    parser.add_argument(
        "--options", nargs="+", default=[], metavar="[METHOD:]id=value", help="overrides of the configs"
    )
    parser.add_argument("--no-baselines", action="store_true", help="no intensity and z-score beside --methods")
    parser.add_argument("--track-auroc", action="store_true", help="test AUROC after every epoch, for plots alone")
    parser.add_argument("--no-progress", action="store_true")
    parser.set_defaults(what="run")
    further = parser.add_subparsers(dest="further", metavar="table | plot")

    table = further.add_parser("table", help="print results beside the papers' figures")
    table.add_argument("results", nargs="*", type=Path, help="folders of runs, or files of JSON lines")
    table.add_argument("--refresh", type=Path, metavar="PAGE", help="draw the tables of a Markdown page anew, in place")
    table.add_argument("--format", choices=("markdown", "csv", "latex"), default="markdown")
    table.add_argument("--suite", dest="of_suite", help="one suite alone")
    table.set_defaults(what="table")

    plot = further.add_parser("plot", help="draw figures of results")
    plot.add_argument("folder", type=Path, help="of a run")
    plot.add_argument("--kind", required=True, help="roc, montage, epochs, losses, runs, maps or area")
    plot.add_argument("--suite", dest="of_suite", help="one suite alone")
    plot.add_argument("--only-methods", nargs="+", help="some of the methods")
    plot.add_argument("--to", type=Path, help="folder of the PNGs; FOLDER/plots by default")
    plot.set_defaults(what="plot")


def run(given: argparse.Namespace) -> int:
    """Do what the arguments ask for.

    Args:
        given: the parsed arguments.

    Returns:
        The exit code: 0, or 1 where a unit failed.
    """
    return {"run": _run, "table": _table, "plot": _plot}[given.what](given)


def _table(given: argparse.Namespace) -> int:
    from .pages import drawn_results, refreshed_page
    from .results import read_results
    from .table import build_tables, render

    if given.refresh is not None:
        given.refresh.write_text(refreshed_page(given.refresh, "table", drawn_results), encoding="utf-8")
        return 0
    if not given.results:
        raise InputError("benchmark table", "no results are given", "Name folders of runs, or files of JSON lines.")
    print(render(build_tables(read_results(given.results), suite=given.of_suite), given.format), end="")
    return 0


def _plot(given: argparse.Namespace) -> int:
    from .plots import draw
    from .results import read_results

    rows = read_results([given.folder])
    for name, wanted in (("suite", given.of_suite and [given.of_suite]), ("method", given.only_methods)):
        rows = [row for row in rows if not wanted or row[name] in wanted]
    if not rows:
        raise InputError(given.folder, "no finished run", "Run the benchmark first, or name another folder.")
    for path in draw(given.folder, rows, given.kind, given.to):
        print(path)
    return 0


def _run(given: argparse.Namespace) -> int:
    import torch

    from .processes import process_share, wait_for_other_ranks
    from .runner import BenchmarkRun
    from .suites import load_suite

    for name in ("suite", "out"):
        if getattr(given, name) is None:
            raise InputError(f"--{name}", "is not given", f"Pass --{name} {'S' if name == 'suite' else 'DIR'}.")
    suite = load_suite(given.suite)
    rank, world_size, local_rank = process_share()
    device = given.device or (f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu")
    methods = None
    if given.methods is not None:
        named = [suite.ablations if name == "ablations" else (name,) for name in given.methods]
        methods = list(dict.fromkeys(name for names in named for name in names))
        # what every result is held against, unless it is asked for to be left out
        methods += [] if given.no_baselines else [name for name in _BASELINES if name not in methods]
    outcome = BenchmarkRun(
        suite,
        given.out,
        methods=methods,
        seeds=given.seeds,
        scale=given.scale,
        device=device,
        data=_folders(given.data),
        sets=given.sets,
        problems=given.problems,
        options=parsed_options(given.options),
        download=given.download,
        track_auroc=given.track_auroc,
        rank=rank,
        world_size=world_size,
        progress=not given.no_progress,
    ).run()
    counts = {
        "finished": outcome.done,
        "finished before": outcome.skipped,
        "with another process": outcome.elsewhere,
        "failed": outcome.failures,
    }
    print("; ".join(f"{len(units)} runs {state}" for state, units in counts.items() if units or state == "finished"))
    print(f"results: {given.out}; research use only, not for diagnosis")
    for unit, error in outcome.failures.items():
        print(f"failed: {unit}: {error}", file=sys.stderr)
    wait_for_other_ranks()
    return 1 if outcome.failures else 0


def _folders(given: Sequence[str]) -> dict[str, str]:
    """By set its folder; under the empty name the folder of all."""
    folders: dict[str, str] = {}
    for item in given:
        name, equals, folder = item.partition("=")
        key, value = (name, folder) if equals else ("", item)
        if key in folders:
            raise InputError("--data", f"two folders for {key or 'all sets'}", "Give one, or SET=DIR for each set.")
        folders[key] = value
    return folders


def parsed_options(given: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Overrides by method, or under ``*``, from texts such as ``dae:max_epochs=10``."""
    options: dict[str, dict[str, Any]] = {}
    for item in given:
        left, equals, value = item.partition("=")
        if not equals:
            raise InputError("--options", f"{item} sets nothing", "Write [METHOD:]id=value.")
        method, colon, name = left.partition(":")
        key, name = (method, name) if colon else ("*", left)
        options.setdefault(key, {})[name] = literal(value)
    return options
