"""Train, score and evaluate every (set, problem, method, seed) of a suite, each once, whatever is killed in between."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from monai_anomaly import __version__
from monai_anomaly.data.published import PUBLISHED_SETS, Problem, PublishedSet
from monai_anomaly.data.slices import describe_failure
from monai_anomaly.engines import still_improving
from monai_anomaly.exceptions import InputError
from monai_anomaly.io.atomic import atomic_path, ensure_writable
from monai_anomaly.metrics import auroc

from .images import ImageSetReader, content_digest, limited, split_normals
from .machine import checked_device, hardware
from .processes import claim
from .results import append_line, read_results
from .scoring import calibrate_images, evaluate, save_scores, save_shown, score_images
from .suites import SCALES, Suite
from .training import merged_config, train_detector, weights_digest

__all__ = ["BenchmarkRun", "Outcome", "Unit"]

logger = logging.getLogger(__name__)

# Points of a loss curve that a result keeps.
_CURVE_POINTS = 60


@dataclass(frozen=True)
class Unit:
    """One training of one method on one problem.

    Attributes:
        configuration: all that makes it this one, JSON-able; two units with the same configuration are the same unit.
            A file among the overrides stands there by its name and hash.
        files: by override, where these files are on this machine.
    """

    configuration: Mapping[str, Any]
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Of the configuration."""
        return hashlib.sha256(json.dumps(self.configuration, sort_keys=True, default=str).encode()).hexdigest()

    @property
    def name(self) -> str:
        """Of its files: readable, and different for every configuration."""
        parts = [str(self.configuration[key]) for key in ("suite", "set", "problem", "method", "seed", "scale")]
        readable = re.sub(r"[^A-Za-z0-9_]+", "_", "-".join(parts).replace("-", "~")).strip("_")
        return f"{readable[:120]}-{self.digest[:10]}"


@dataclass
class Outcome:
    """What came of a run.

    Attributes:
        done: units that this process finished.
        skipped: units that were finished before.
        elsewhere: units that another process is at.
        failures: by unit the error.
    """

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)


class BenchmarkRun:
    """The units of a suite, and how this process works through its share of them.

    Args:
        suite: what is run.
        out: gets ``results.jsonl``, ``failures.jsonl``, ``scores/``, ``shown/`` and ``units/``.
        methods: by name; None: the suite's own.
        seeds: of the trainings.
        scale: one of ``SCALES``.
        device: where the networks run.
        data: by key of a set its folder; under the key ``""`` a folder that holds each set under its key.
        sets: some of the suite's sets; None: all that are at hand.
        problems: some of the problems; None: the suite's at that scale.
        options: by method, or ``"*"``, overrides on top of the suite's.
        download: fetch sets that are not there.
        track_auroc: score the test side after every epoch of the last stage, for plots; nothing is chosen by it.
        rank: of this process among those that share the units.
        world_size: how many they are.
        progress: show a bar over the units.

    Raises:
        InputError: for a scale, method, set or device that there is not.
    """

    def __init__(
        self,
        suite: Suite,
        out: str | Path,
        *,
        methods: Sequence[str] | None = None,
        seeds: Sequence[int] = (0,),
        scale: str = "smoke",
        device: str | torch.device = "cpu",
        data: Mapping[str, str | Path] | None = None,
        sets: Sequence[str] | None = None,
        problems: Sequence[str] | None = None,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        download: bool = False,
        track_auroc: bool = False,
        rank: int = 0,
        world_size: int = 1,
        progress: bool = True,
    ) -> None:
        if scale not in SCALES:
            raise InputError("--scale", f"{scale!r} is no scale", f"Choose one of {', '.join(SCALES)}.")
        self.suite, self.out, self.scale = suite, Path(out), scale
        self.methods = list(suite.methods if methods is None else methods)
        for method in [*self.methods, *(key for key in options or {} if key != "*")]:
            suite.method(method)
        self.seeds, self.device = list(seeds), checked_device(device)
        self.data, self.download = dict(data or {}), download
        for option, names in (("--sets", sets or ()), ("--data", self.data)):
            for name in names:
                if name and name not in suite.sets:
                    raise InputError(
                        option, f"the suite {suite.key} has no set {name!r}", f"It has {_list(suite.sets)}."
                    )
        self.sets, self.all_sets = list(suite.sets if sets is None else sets), sets is None
        self.problem_names, self.extra = problems, dict(options or {})
        self.track_auroc, self.progress = track_auroc, progress
        self.rank, self.world_size = rank, world_size
        self._opened: dict[str, PublishedSet] = {}
        # The units of one problem come one after the other.
        self._problem = lru_cache(maxsize=1)(lambda name, problem: self._set(name).problem(problem))
        self._sample_digest, self._notes = cache(self._read_sample), cache(self._differences)

    @property
    def results_file(self) -> Path:
        """The file that this process writes: its own, where several share a folder of results."""
        return self.out / f"results{self._suffix}.jsonl"

    @property
    def _suffix(self) -> str:
        return f"-rank{self.rank}" if self.world_size > 1 else ""

    def units(self) -> list[Unit]:
        """All units of the run, in their order, whoever does them.

        Raises:
            InputError: if a set cannot be opened, or no set has a problem that was named.
        """
        units = []
        for name in self._sets_at_hand():
            available = self._set(name).problems
            chosen = self.suite.problems(name, self.scale, available)
            methods = self.suite.methods_on(name, self.methods)
            if self.problem_names is not None:
                chosen = [problem for problem in available if problem in self.problem_names]
            for problem in chosen:
                self._set(name).require(problem)
                units += [self._unit(name, problem, method, seed) for method in methods for seed in self.seeds]
        known = {problem for name in self._opened for problem in self._opened[name].problems}
        if unknown := [problem for problem in self.problem_names or () if problem not in known]:
            raise InputError("--problems", f"no set has {_list(unknown)}", f"There are {_list(sorted(known))}.")
        if not units:
            raise InputError("--problems", "no set has any of them", f"Sets of the suite: {_list(self.sets)}.")
        return units

    def run(self) -> Outcome:
        """Work through this process's share of the units.

        Returns:
            What came of it. A unit that fails is listed and stops no other.
        """
        from tqdm import tqdm

        ensure_writable(self.out)
        outcome = Outcome()
        share = self.units()[self.rank :: self.world_size]
        bar = tqdm(share, desc=f"{self.suite.key} ({self.scale})", unit="unit", smoothing=0, disable=not self.progress)
        for unit in bar:
            bar.set_postfix_str(" ".join(str(unit.configuration[key]) for key in ("set", "problem", "method", "seed")))
            if self._is_done(unit):
                outcome.skipped.append(unit.name)
                continue
            with claim(self.out / "units" / unit.name) as ours:
                if not ours:
                    outcome.elsewhere.append(unit.name)
                    continue
                # Another process may have finished it between the look and the claim.
                if self._is_done(unit):
                    outcome.skipped.append(unit.name)
                    continue
                try:
                    append_line(self.results_file, self._run_unit(unit))
                    outcome.done.append(unit.name)
                except Exception as error:
                    # One bad unit must not stop the others; it is reported at the end.
                    outcome.failures[unit.name] = describe_failure(error)
                    self._list_failure(unit, error)
        return outcome

    def _sets_at_hand(self) -> list[str]:
        """The sets that were named, or, where none was, those of the suite that are there."""
        if not self.all_sets:
            return self.sets
        there, missing = [], {}
        for name in self.sets:
            try:
                self._set(name)
                there.append(name)
            except InputError as error:
                missing[name] = error
        if not there:
            raise next(iter(missing.values()))
        for name, reason in missing.items():
            logger.warning(f"left out, name it with --sets to insist: {name}: {reason}")
        return there

    def _is_done(self, unit: Unit) -> bool:
        return any(row["unit"] == unit.name for row in read_results([self.out]))

    def _list_failure(self, unit: Unit, error: Exception) -> None:
        row = {
            "unit": unit.name,
            **{key: unit.configuration[key] for key in ("suite", "set", "problem", "method", "seed", "scale")},
            "error": describe_failure(error),
            "trace": traceback.format_exception(error)[-3:],
        }
        append_line(self.out / f"failures{self._suffix}.jsonl", row)
        logger.error(f"{unit.name}: {row['error']}")

    def _set(self, name: str) -> PublishedSet:
        if name not in self._opened:
            layout, reader = self.suite.layout(name), self.suite.reader(name)
            if layout not in PUBLISHED_SETS:
                raise InputError(layout, "no reader for such a set", f"There are {_list(PUBLISHED_SETS)}.")
            opened = _open(PUBLISHED_SETS[layout], name, self._root(name), self.download, reader)
            if not opened.problems:
                raise InputError(opened.root, f"holds nothing in the layout of {opened.title}", opened.how_to_get())
            self._opened[name] = opened
        return self._opened[name]

    def _root(self, name: str) -> Path | None:
        if name in self.data:
            return Path(self.data[name])
        if "" not in self.data:
            return None
        whole = Path(self.data[""])
        return whole if len(self.sets) == 1 and not (whole / name).is_dir() else whole / name

    def _unit(self, name: str, problem: str, method: str, seed: int) -> Unit:
        made = self.suite.method(method)
        options = {
            **self.suite.options(name, method, self.scale),
            **self.extra.get("*", {}),
            **self.extra.get(method, {}),
        }
        # a result is to be the same wherever the file lies, and is no place to tell folders of a machine
        paths = {key: value for key, value in options.items() if isinstance(value, str) and Path(value).is_file()}
        options |= {key: f"{Path(path).name}, SHA-256 {_file_digest(path)}" for key, path in paths.items()}
        config = merged_config(made.files, options).config
        reader, layout = self.suite.reader(name), self.suite.layout(name)
        return Unit(
            {
                "suite": self.suite.key,
                "set": name,
                "problem": problem,
                "method": method,
                "seed": seed,
                "scale": self.scale,
                "files": [f"{file.parent.parent.name}/{file.name}" for file in made.files],
                "config_sha256": hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest(),
                "overrides": options,
                "pictures": self.suite.settings(name, self.scale),
                "data": self._sample_digest(name, problem),
                **({"layout": layout} if layout != name else {}),
                **({"reader": reader} if reader else {}),
                "limits": self.suite.limits(self.scale),
                "track_auroc": self.track_auroc,
            },
            paths,
        )

    def _read_sample(self, name: str, problem: str) -> str | None:
        """Names, labels and some images of a problem as a hash; None where it cannot be read."""
        try:
            return _sampled(self._problem(name, problem))
        except Exception:
            # Images fail to be read in many ways: the problem's units meet the same error, and report it one by one.
            return None

    def _differences(self, name: str) -> list[str]:
        """How a set differs from the published one, without the folder that it lies in on this machine."""
        opened = self._set(name)
        try:
            notes = opened.check()
        except InputError as error:
            # what is wrong with one problem of a set is no reason to reject the others
            notes = [str(error)]
        return [note.replace(f"{opened.root}{os.sep}", "") for note in notes]

    def _run_unit(self, unit: Unit) -> dict[str, Any]:
        configuration = unit.configuration
        limits, seed = configuration["limits"], configuration["seed"]
        problem: Problem = self._problem(configuration["set"], configuration["problem"])
        training, test = limited(problem.training, limits["train_limit"]), limited(problem.test, limits["test_limit"])
        sides = split_normals(training, limits["held_out"], limits["calibration"], seed)
        data_sha256, notes = content_digest(training), self._notes(configuration["set"])
        folder = self.out / "units" / unit.name
        parser = self._parser(unit, training.read(0).ndim)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

        tracked = _Tracked(folder / "auroc.json", unit.digest)
        start, cpu_start = time.perf_counter(), time.process_time()
        scaling = configuration["pictures"]["scaling"]
        trained = train_detector(
            parser,
            sides,
            lambda size, channels: ImageSetReader(size, channels, scaling),
            folder,
            seed=seed,
            identity={"unit": unit.digest, "data": data_sha256},
            val_interval=limits["val_interval"],
            save_interval=limits["save_interval"],
            watch=None
            if not self.track_auroc
            else lambda detector, reader, epoch: tracked.add(
                epoch, auroc(score_images(detector, reader, test, pixels=False).scores, test.labels)
            ),
        )
        trained_at, cpu_trained_at = time.perf_counter(), time.process_time()
        network = trained.network
        if len(sides.calibration):
            calibrate_images(network, trained.reader, sides.calibration)
        start_scoring = time.perf_counter()
        found = score_images(network, trained.reader, test)
        scored_at = time.perf_counter()
        metrics = evaluate(found, test, network, video=problem.video, resamples=limits["resamples"])
        save_scores(self.out / "scores" / f"{unit.name}.npz", found, test)
        save_shown(
            self.out / "shown" / f"{unit.name}.npz", network, trained.reader, test, found.scores, limits["shown"]
        )
        import monai

        row = {
            "unit": unit.name,
            **{key: configuration[key] for key in ("suite", "set", "problem", "method", "seed", "scale")},
            "table": {
                "title": self.suite.method(configuration["method"]).title,
                "paper": self.suite.paper,
                "metrics": self.suite.metrics(configuration["set"]),
            },
            "configuration_sha256": unit.digest,
            "configuration": configuration,
            "versions": {
                "monai_anomaly": __version__,
                "torch": torch.__version__,
                "monai": monai.__version__,
                **{name: version(name) for name in getattr(network, "libraries", ())},
            },
            "hardware": hardware(self.device),
            "seconds": {
                "training": round(trained_at - start, 3),
                "training_cpu": round(cpu_trained_at - cpu_start, 3),
                "scoring": round(scored_at - start_scoring, 3),
            },
            "data_sha256": data_sha256,
            "weights_sha256": weights_digest(network),
            "image_size": list(trained.reader.image_size),
            "pictures": {
                "training": len(sides.training),
                "held_out": len(sides.held_out),
                "calibration": len(sides.calibration),
                "test_normal": int((test.labels == 0).sum()),
                "test_abnormal": int((test.labels == 1).sum()),
                "whole": not notes and len(training) == len(problem.training) and len(test) == len(problem.test),
                "notes": notes,
            },
            "facts": problem.facts,
            "stages": [
                {"stage": stage.stage, "epochs": stage.state.max_epochs, "steps": _steps(trained.history, stage.stage)}
                for stage in trained.stages
            ],
            "under_trained": still_improving(trained.history),
            "losses": _curves(trained.history),
            "metrics": metrics,
        }
        if self.track_auroc:
            row["auroc_over_epochs"] = tracked.curve
        with contextlib.suppress(FileNotFoundError):  # it can be large, and nothing goes on from here
            (folder / "checkpoint.pt").unlink()
        return row

    def _parser(self, unit: Unit, dimensions: int) -> Any:
        """The unit's config with what the set decides: size, channels, seed, device and places."""
        overrides = {**unit.configuration["overrides"], **unit.files}
        pictures = unit.configuration["pictures"]
        if pictures["image_size"] is not None:
            overrides.setdefault("image_size", pictures["image_size"])
        overrides.setdefault("in_channels", pictures["channels"] or (1 if dimensions == 2 else 3))
        overrides |= {"seed": unit.configuration["seed"], "device": str(self.device)}
        overrides |= {"output_dir": str(self.out / "units" / unit.name), "progress": False}
        return merged_config(self.suite.method(unit.configuration["method"]).files, overrides)


class _Tracked:
    """The test AUROC after each epoch, kept through a kill."""

    def __init__(self, path: Path, digest: str) -> None:
        self.path, self.digest = path, digest
        self.curve: list[dict[str, Any]] = []
        if path.is_file():
            saved = json.loads(path.read_text(encoding="utf-8"))
            if saved["unit"] == digest:
                self.curve = saved["curve"]

    def add(self, epoch: int, value: float | None) -> None:
        self.curve = [*(point for point in self.curve if point["epoch"] < epoch), {"epoch": epoch, "auroc": value}]
        with atomic_path(self.path) as temporary:
            temporary.write_text(json.dumps({"unit": self.digest, "curve": self.curve}), encoding="utf-8")


# Images of each side that tell one copy of a set from another: all of them would be read before anything is shown.
_SAMPLE = 16


@cache
def _file_digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _sampled(problem: Problem) -> str:
    digest = hashlib.sha256()
    for side in (problem.training, problem.test):
        digest.update(json.dumps([list(side.names), side.labels.tolist(), list(side.groups)]).encode())
        some = np.linspace(0, len(side) - 1, min(_SAMPLE, len(side))).astype(int)
        digest.update(content_digest(side.take(some)).encode())
    return digest.hexdigest()[:16]


def _open(
    kind: type[PublishedSet], name: str, root: Path | None, download: bool, arguments: Mapping[str, Any]
) -> PublishedSet:
    import inspect

    parameters = inspect.signature(kind).parameters
    known = [name for name in parameters if name != "root"]
    for argument in arguments:
        if argument not in known:
            what = f"takes {_list(known)}" if known else "takes no arguments"
            raise InputError(name, f"its reader has no argument {argument!r}", f"It {what}.")
    if root is None:
        if parameters["root"].default is inspect.Parameter.empty:
            raise InputError(kind.key, f"no folder is given for {kind.title}", f"Pass --data {name}=DIR.")
        return kind(None, **arguments)  # type: ignore[arg-type]  # one that comes with a library
    if download:
        root.mkdir(parents=True, exist_ok=True)
        kind.download(root)
    return kind(root, **arguments)


def _steps(history: Sequence[Mapping[str, Any]], stage: str) -> int:
    return max((int(row["steps"]) for row in history if row["stage"] == stage), default=0)


def _curves(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The loss curves, thinned, the last epoch of every stage among them."""
    kept: list[dict[str, Any]] = []
    for stage in dict.fromkeys(row["stage"] for row in history):
        rows = [row for row in history if row["stage"] == stage]
        every = math.ceil(len(rows) / _CURVE_POINTS)
        for row in rows:
            if (len(rows) - row["epoch"]) % every == 0:
                kept.append(
                    {
                        "stage": stage,
                        "epoch": row["epoch"],
                        "train_loss": _finite(row["train_loss"]),
                        "val_loss": _finite(row["val_loss"]),
                    }
                )
    return kept


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def _list(names: Any) -> str:
    return ", ".join(names)
