"""Suites as data: which sets, problems, methods and settings a benchmark has, read from YAML."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from monai_anomaly.bundle import bundles_folder
from monai_anomaly.exceptions import InputError

__all__ = ["SCALES", "Method", "Suite", "load_methods", "load_suite", "suite_names"]

SCALES = ("smoke", "small", "paper")

_FOLDER = Path(__file__).parent

# What a suite may say of a set, and of a scale; checked, so that a slip of the pen is no silent default.
_SET_KEYS = {"problems", "image_size", "channels", "scaling", "metrics", "options", "without", "layout", "reader"}
_LEVELS = ("image", "pixel", "video", "decision")
_SUITE_KEYS = {"title", "paper", "methods", "ablations", "sets", "scales", "extra_methods"}
_METHOD_KEYS = {"title", "bundle", "override_configs", "configs", "options", "scales"}

_DEFAULTS: dict[str, Any] = {
    "train_limit": None,
    "test_limit": None,
    "held_out": 0.1,
    "calibration": 0.1,
    "resamples": 1000,
    "val_interval": 1,
    "save_interval": 5,
    "shown": 8,
}
_SCALE_KEYS = set(_DEFAULTS)
# Keys of earlier versions.
_RENAMED = {"overlays": "override_configs"}


@dataclass(frozen=True)
class Method:
    """How one row of a table is trained.

    Attributes:
        key: its name on the command line.
        title: its name in tables.
        files: config files, merged in their order.
        options: overrides at every scale.
        scales: by scale, further overrides; none at the paper's, where the config's own schedule holds.
    """

    key: str
    title: str
    files: tuple[Path, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    scales: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """A benchmark.

    Attributes:
        key: its name on the command line.
        title: one line.
        paper: key of the paper's figures, or empty.
        methods: those that run when none are named.
        ablations: further ones.
        sets: by name what the suite does with each; the name is the published set's key unless it names a ``layout``.
        scales: by scale the limits.
        known: the methods by name.
    """

    key: str
    title: str
    paper: str
    methods: tuple[str, ...]
    ablations: tuple[str, ...]
    sets: Mapping[str, Mapping[str, Any]]
    scales: Mapping[str, Mapping[str, Any]]
    known: Mapping[str, Method]

    def limits(self, scale: str) -> dict[str, Any]:
        """Limits, shares and intervals at a scale."""
        return {**_DEFAULTS, **self.scales.get(scale, {})}

    def problems(self, name: str, scale: str, available: Sequence[str]) -> list[str]:
        """The problems of a set at a scale.

        Args:
            name: of the set.
            scale: one of ``SCALES``.
            available: those that the set has.
        """
        wanted = _at(self.sets[name].get("problems"), scale)
        return list(available) if wanted is None else [str(problem) for problem in wanted]

    def settings(self, name: str, scale: str) -> dict[str, Any]:
        """How the images of a set are read at a scale: ``image_size``, ``channels`` and ``scaling``.

        Args:
            name: of the set.
            scale: one of ``SCALES``.
        """
        given = self.sets[name]
        return {
            "image_size": _at(given.get("image_size"), scale),
            "channels": given.get("channels"),
            "scaling": given.get("scaling", "unit"),
        }

    def layout(self, name: str) -> str:
        """The key of the published set whose layout a set is in: its own name, as a rule."""
        return str(self.sets[name].get("layout", name))

    def reader(self, name: str) -> dict[str, Any]:
        """Arguments of the reader of a set, beside its folder, such as ``patient_regex``."""
        return dict(self.sets[name].get("reader", {}))

    def metrics(self, name: str) -> list[str]:
        """The metrics that tables of a set show, such as ``image.auroc``."""
        return list(self.sets[name].get("metrics", ["image.auroc"]))

    def methods_on(self, name: str, methods: Sequence[str]) -> list[str]:
        """Those of some methods that make sense on a set; the suite says which do not (``without``).

        Args:
            name: of the set.
            methods: by key.
        """
        return [method for method in methods if method not in self.sets[name].get("without", ())]

    def options(self, name: str, method: str, scale: str) -> dict[str, Any]:
        """The overrides of a method on a set at a scale, the more special ones last.

        Args:
            name: of the set.
            method: its key.
            scale: one of ``SCALES``.
        """
        made = self.method(method)
        merged = {**made.options, **made.scales.get(scale, {})}
        of_set = self.sets[name].get("options", {})
        for scales in ("*", scale):
            for methods in ("*", method):
                merged |= of_set.get(scales, {}).get(methods, {})
        return merged

    def method(self, key: str) -> Method:
        """A method by its name.

        Raises:
            InputError: if there is none of that name.
        """
        if key not in self.known:
            near = difflib.get_close_matches(key, self.known, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Choose of {', '.join(self.known)}."
            raise InputError("--methods", f"{key!r} is no method of the suite {self.key}", hint)
        return self.known[key]


def suite_names() -> list[str]:
    """The suites that come with the package."""
    return sorted(path.stem for path in (_FOLDER / "suites").glob("*.yaml"))


def load_suite(name: str | Path) -> Suite:
    """A suite by its name, or from a file of one's own.

    Args:
        name: one of ``suite_names()``, or the path of a YAML file.

    Raises:
        InputError: if there is no such suite, or the file has a key that means nothing.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = _FOLDER / "suites" / f"{name}.yaml"
        if not path.is_file():
            raise InputError("--suite", f"there is no suite {name}", f"Choose one of {', '.join(suite_names())}.")
    content = _read(path)
    _check_keys(path, content, _SUITE_KEYS)
    for key, kind in (("methods", list), ("sets", dict)):
        if not isinstance(content.get(key), kind) or not content[key]:
            what = "a list of names" if kind is list else "a mapping of sets"
            raise InputError(path, f"{key!r} is missing or no {what}", "See docs/benchmarks.md.")
    for key, entry in content["sets"].items():
        for metric in (entry or {}).get("metrics", ()):
            if str(metric).partition(".")[0] not in _LEVELS or not str(metric).partition(".")[2]:
                hint = f"Write LEVEL.NAME, the level one of {', '.join(_LEVELS)}."
                raise InputError(f"{path}, {key}", f"{metric!r} is no metric", hint)
    for place, allowed in (("sets", _SET_KEYS), ("scales", _SCALE_KEYS)):
        for key, entry in content.get(place, {}).items():
            _check_keys(f"{path}, {place}, {key}", entry or {}, allowed)
    scales = [*content.get("scales", {})]
    for entry in content["sets"].values():
        scales += (entry or {}).get("options", {})
    for key in scales:
        if key not in (*SCALES, "*"):
            raise InputError(path, f"{key!r} is no scale", f"Choose one of {', '.join(SCALES)}.")
    extra = {key: _method(key, entry, path) for key, entry in content.get("extra_methods", {}).items()}
    suite = Suite(
        key=path.stem,
        title=content.get("title", path.stem),
        paper=content.get("paper", ""),
        methods=tuple(content["methods"]),
        ablations=tuple(content.get("ablations", [])),
        sets={key: entry or {} for key, entry in content["sets"].items()},
        scales=content.get("scales", {}),
        known={**load_methods(), **extra},
    )
    without = [method for entry in suite.sets.values() for method in entry.get("without", ())]
    for method in (*suite.methods, *suite.ablations, *without):
        suite.method(method)
    return suite


@cache
def load_methods() -> dict[str, Method]:
    """The methods that every suite knows."""
    path = _FOLDER / "methods.yaml"
    return {key: _method(key, entry, path) for key, entry in _read(path).items()}


def _method(key: str, entry: Mapping[str, Any], path: Path) -> Method:
    _check_keys(f"{path}, {key}", entry, _METHOD_KEYS)
    if "bundle" in entry:
        # of this package, or a folder named from the suite's own
        of_suite = path.parent / entry["bundle"]
        folder = of_suite if of_suite.is_dir() else bundles_folder() / entry["bundle"]
        files = [folder / "configs" / f"{name}.yaml" for name in ("train", *entry.get("override_configs", []))]
    else:
        files = [path.parent / name for name in entry["configs"]]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise InputError(missing[0], f"is missing, the method {key} is made of it", "Correct the entry, or reinstall.")
    return Method(key, entry.get("title", key), tuple(files), entry.get("options", {}), entry.get("scales", {}))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(path, f"cannot be read ({' '.join(str(error).split())})", "Give a YAML file.") from error
    if not isinstance(content, dict):
        raise InputError(path, "holds no mapping", "See the suites that come with the package.")
    return content


def _check_keys(where: str | Path, entry: Mapping[str, Any], allowed: set[str]) -> None:
    for key in entry:
        if key in _RENAMED:
            raise InputError(where, f"{key!r} is now called {_RENAMED[key]!r}", "Rename it.")
        if key not in allowed:
            raise InputError(where, f"{key!r} means nothing here", f"Known here: {', '.join(sorted(allowed))}.")


def _at(value: Any, scale: str) -> Any:
    """A setting that may be given by scale."""
    return value.get(scale) if isinstance(value, dict) else value
