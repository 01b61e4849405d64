"""The output folder of a run: which run it holds, which of its scans are finished, and who writes there."""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from monai_anomaly import __version__
from monai_anomaly.data import ScanPreprocessing
from monai_anomaly.data.slices import ScanDataset
from monai_anomaly.exceptions import InputError
from monai_anomaly.io.atomic import clear_aside
from monai_anomaly.io.case import own_files, read_record, write_record
from monai_anomaly.io.content import content_hash
from monai_anomaly.io.lock import folder_lock, this_process
from monai_anomaly.io.tables import write_json
from monai_anomaly.networks import AnomalyDetector

__all__ = ["RunFolder", "RunScans", "Shard", "described"]

# What tells of a whole run; the manifest first: without it the folder holds no run.
RUN_FILES = (
    *("run.json", "predictions.csv", "failures.csv", "lesions.csv"),
    *("drift.json", "metrics.csv", "metrics.json", "report.html"),
)
_SHARD = re.compile(r"(\d+)/(\d+)")


class Shard(NamedTuple):
    """A share of a cohort: every ``total``-th scan from the ``number``-th on, both counted from one."""

    number: int
    total: int

    @classmethod
    def parsed(cls, text: str) -> Shard:
        """From ``3/16``.

        Raises:
            InputError: for another text.
        """
        found = _SHARD.fullmatch(str(text))
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise InputError(f"--shard {text}", "is no share of a cohort", "Pass 1/16 to 16/16, and merge at the end.")
        return cls(int(found[1]), int(found[2]))

    @property
    def name(self) -> str:
        """For files."""
        return f"{self.number}-of-{self.total}"


class RunFolder:
    """The output folder of one run, whole or in shards.

    ``run.json`` says which run it holds (``run``, a digest of ``settings``), whether it is ``running``, ``complete`` or
    ``interrupted``, and by which process. Tables and report of earlier runs go when a run starts. A scan is finished
    once ``case.json`` of its folder names the run and the scan's content.

    Args:
        folder: the output folder.
        settings: all that the files of a case depend on beside its scan (see ``described``).
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.settings = {"monai_anomaly": __version__, "torch": str(torch.__version__), **settings}
        self.run = sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()

    @contextmanager
    def held(self, shard: Shard | None = None) -> Iterator[list[dict[str, str]]]:
        """Have the folder for this run alone, or for its shard, and keep its manifest.

        Args:
            shard: of the run; None for the whole.

        Yields:
            A list that takes the scans that failed.

        Raises:
            InputError: if another process has the folder, or the shard.
        """
        own = nullcontext() if shard is None else folder_lock(self.folder, f".lock.{shard.name}")
        with folder_lock(self.folder, shared=shard is not None), own:
            if shard is None:
                clear_aside(self.folder, own_files)
            for old in (self.folder / name for name in RUN_FILES):
                if old.is_dir():
                    raise InputError(old, "is a folder, where a file is to be written", "Move it away.")
                old.unlink(missing_ok=True)
            path = self.folder / ("run.json" if shard is None else f"run.{shard.name}.json")
            manifest = {"run": self.run, "settings": self.settings, **this_process()}
            failures: list[dict[str, str]] = []
            write_json(path, {**manifest, "state": "running"})
            try:
                yield failures
            except BaseException:
                write_json(path, {**manifest, "state": "interrupted"})
                raise
            write_json(path, {**manifest, "state": "complete", "failures": failures})

    def shards_failures(self) -> list[dict[str, str]]:
        """The scans that failed in the shards.

        Raises:
            InputError: if there are no shards, or one of them is missing, unfinished or of another run.
        """
        remedy = "Run it (again) with the same options, or leave --shard out to compute what is missing."
        found: dict[Shard, dict[str, Any]] = {}
        for path in self.folder.glob("run.*-of-*.json"):
            try:
                shard = Shard.parsed(path.name.removeprefix("run.").removesuffix(".json").replace("-of-", "/"))
                found[shard] = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise InputError(path, f"cannot be read ({error})", remedy) from error
        totals = {shard.total for shard in found}
        if len(totals) != 1:
            problem = f"holds shards of {sorted(totals)}" if totals else "holds no shards"
            raise InputError(self.folder, problem, "Run all of --shard 1/N to N/N into it first.")
        (total,) = totals
        failures = []
        for number in range(1, total + 1):
            manifest, name = found.get(Shard(number, total), {}), f"shard {number}/{total}"
            if manifest.get("state") != "complete":
                raise InputError(self.folder, f"{name} is {manifest.get('state', 'missing')}", remedy)
            if manifest.get("run") != self.run:
                raise InputError(self.folder, f"{name} was run with other settings", remedy)
            failures += manifest["failures"]
        return failures

    def forget_shards(self) -> None:
        """Remove the manifests of shards: the whole run is there."""
        for path in self.folder.glob("run.*-of-*.json"):
            path.unlink()

    def finish(self, case: str, content: str, kept: Mapping[str, Any]) -> dict[str, Any]:
        """Note that a case is finished, in its folder; without one nothing is noted.

        Args:
            case: its name.
            content: of ``case_content``.
            kept: what handlers keep of it: dictionaries, lists, numbers, texts, truth values, None and arrays.

        Returns:
            ``kept``, as ``finished`` gives it.
        """
        arrays: dict[str, np.ndarray] = {}
        plain = _plain(kept, arrays)
        if (self.folder / case).is_dir():
            write_record(self.folder / case, {"run": self.run, "content": content, "kept": plain}, arrays)
        return _joined(plain, arrays)

    def finished(self, case: str, content: str, names: Collection[str]) -> dict[str, Any] | None:
        """What was kept of a case that this run has finished.

        Args:
            case: its name.
            content: of ``case_content``.
            names: those in ``kept`` that are needed.

        Returns:
            ``kept``; None if the case is to be computed.
        """
        found = read_record(self.folder / case)
        if found is None:
            return None
        record, arrays = found
        try:
            fits = (record["run"], record["content"]) == (self.run, content) and {*names} <= {*record["kept"]}
            return _joined(record["kept"], arrays) if fits else None
        except (LookupError, TypeError):
            return None  # not as finish wrote it


class RunScans(Dataset):
    """The scans of a run or of its shard; those that are finished come without being read.

    Args:
        dataset: of the whole cohort.
        folder: of the run.
        shard: None for the whole.
        names: what finished cases must have kept; None: every scan is computed.
        failures: scans that are known to fail.
        merge: every other scan has to be finished.

    Notes:
        An item is ``{"item", "kept"}`` for a finished scan, ``{"item", "missing"}`` where it should be one, else that
        of ``ScanDataset`` with ``content``.
    """

    def __init__(
        self,
        dataset: ScanDataset,
        folder: RunFolder,
        shard: Shard | None = None,
        names: Collection[str] | None = None,
        failures: Sequence[Mapping[str, str]] = (),
        merge: bool = False,
    ) -> None:
        self.dataset, self.folder, self.names, self.merge = dataset, folder, names, merge
        every = range(len(dataset))
        self.indices = every if shard is None else every[shard.number - 1 :: shard.total]
        self.failures = {failure["case"]: failure["error"] for failure in failures}

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.dataset.data[self.indices[index]]
        if item["case"] in self.failures:
            return {"item": item, "error": self.failures[item["case"]]}
        try:
            content = case_content(item)
        except InputError:
            return self.dataset[self.indices[index]]  # which says what is wrong
        kept = None if self.names is None else self.folder.finished(item["case"], content, self.names)
        if kept is not None:
            return {"item": item, "kept": kept}
        if self.merge:
            return {"item": item, "missing": True}
        return {**self.dataset[self.indices[index]], "content": content}


def case_content(item: Mapping[str, Any]) -> str:
    """Digest of an item: what its files hold, and all that is said of it, but not where they lie."""
    files = {key: content_hash(item[key], item.get("series")) for key in ("image", "mask") if item.get(key) is not None}
    said = {key: value for key, value in item.items() if key not in ("image", "mask")}
    return sha256(json.dumps([files, said], sort_keys=True, default=str).encode()).hexdigest()


def described(thing: Any) -> Any:
    """The settings of a network, transform, inferer or of a list of them, JSON-able: equal ones do the same.

    Where results are written, and whether progress is shown, are none.
    """
    return _described(thing, {})


def _described(thing: Any, known: dict[int, tuple[Any, Any]]) -> Any:
    if thing is None or isinstance(thing, bool | int | str):
        return thing
    if isinstance(thing, float):
        return repr(thing)
    if id(thing) in known:
        return known[id(thing)][1]
    name = f"{type(thing).__module__}.{type(thing).__qualname__}"
    # what holds itself ends here; the thing is kept too, or another could get its id
    known[id(thing)] = thing, name
    found: Any = name
    if isinstance(thing, torch.Tensor | np.ndarray):
        array = np.ascontiguousarray(thing.detach().cpu().numpy() if isinstance(thing, torch.Tensor) else thing)
        found = f"{array.dtype} {array.shape} {sha256(array.tobytes()).hexdigest()}"
    elif isinstance(thing, Mapping):
        found = {str(key): _described(value, known) for key, value in thing.items()}
    elif isinstance(thing, list | tuple):
        found = [_described(value, known) for value in thing]
    elif isinstance(thing, type):
        found = f"{thing.__module__}.{thing.__qualname__}"
    elif inspect.isroutine(thing):
        code = getattr(thing, "__code__", None)
        # routines of built-in types have no module
        found = f"{getattr(thing, '__module__', None)}.{thing.__qualname__}"
        found += "" if code is None else f" {sha256(repr((code.co_code, code.co_consts)).encode()).hexdigest()}"
    elif isinstance(thing, AnomalyDetector):
        state = json.dumps({key: _described(value, {}) for key, value in thing.state_dict().items()})
        config = _described(thing.config, known)
        found = {"kind": name, "config": config, "state": sha256(state.encode()).hexdigest()}
    elif isinstance(thing, ScanPreprocessing):
        found = {"kind": name, "time_point": thing.time_point, **thing.config}
    elif hasattr(thing, "__dict__"):
        parts = {key: value for key, value in vars(thing).items() if key not in _NO_SETTINGS}
        found = {"kind": name, **_described(parts, known)}
    known[id(thing)] = thing, found
    return found


_NO_SETTINGS = {"output_dir", "progress"}


def _plain(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """As JSON has it; arrays and numbers that JSON has no form for are put aside."""
    if isinstance(value, np.ndarray) or (isinstance(value, float) and not math.isfinite(value)):
        name = f"a{len(arrays)}"
        arrays[name] = np.asarray(value)
        return {"array": name}
    if isinstance(value, np.generic):
        return _plain(value.item(), arrays)
    if isinstance(value, Mapping):
        return {str(key): _plain(part, arrays) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part, arrays) for part in value]
    return value


def _joined(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """What ``_plain`` was made of, with lists for tuples."""
    if isinstance(value, Mapping):
        if set(value) == {"array"}:
            array = arrays[value["array"]]
            return array if array.ndim else array.item()
        return {key: _joined(part, arrays) for key, part in value.items()}
    return [_joined(part, arrays) for part in value] if isinstance(value, list) else value
