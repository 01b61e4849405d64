"""Runs a detector over a cohort, scan by scan."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import EventEnum
from monai.engines.evaluator import Evaluator
from torch.utils.data import DataLoader

from monai_anomaly.data.slices import describe_failure
from monai_anomaly.exceptions import InputError
from monai_anomaly.networks import AnomalyDetector

from .inferer import StackInferer, misfit, scan_loader
from .run_folder import RunFolder, RunScans, Shard, described

__all__ = ["CohortEvaluator", "ScanEvents", "raise_for_failures"]

logger = logging.getLogger(__name__)


class ScanEvents(EventEnum):
    """What happens to the scans of a ``CohortEvaluator``.

    ``COHORT_STARTED`` and ``COHORT_COMPLETED``: of the whole cohort, so not in a shard. ``SCAN_COMPLETED``:
    ``engine.state.output`` is the scan's dictionary after ``postprocessing`` (of a scan that was finished earlier its
    ``item`` alone), ``engine.state.kept`` what handlers keep of it. ``SCAN_FAILED``: the scan is the last of
    ``engine.state.failures``. ``INTERRUPTED``: the run ends by an exception.
    """

    COHORT_STARTED = "cohort_started"
    SCAN_COMPLETED = "scan_completed"
    SCAN_FAILED = "scan_failed"
    COHORT_COMPLETED = "cohort_completed"
    INTERRUPTED = "interrupted"


class CohortEvaluator(Evaluator):
    """Runs scans one by one: the detector, then ``postprocessing``; what is kept of them is the handlers' part.

    A scan's dictionary has ``item`` (of the cohort), ``scan`` (as loaded, (C, X, Y, Z)), ``stack`` (what the detector
    sees, (C, H, W, S) or (C, X, Y, Z)) and ``tissue`` (the slices that it sees), then ``anomaly_map`` (1, H, W, S),
    ``anomaly_score`` (float) and ``restoration`` (as ``stack``, or None), then what ``postprocessing`` makes of it.

    One bad scan never stops the others: it is listed in ``state.failures``, each ``{"case", "image", "error"}``, and
    makes ``finish`` exit with an error.

    With an ``output_dir`` the run has that folder for itself, says in ``run.json`` which run it is (see ``RunFolder``),
    and does not compute again what an earlier run of the same settings finished there: tables and report are those of
    an undisturbed run. Handlers that need the whole scan again (those of metrics, and MONAI's) have it computed again.
    Under torchrun each process takes its share of the scans, and the first one writes the tables in the end.

    Args:
        network: the detector, calibrated or not.
        val_data_loader: of a ``ScanDataset``.
        device: where the detector runs.
        inferer: how it is run.
        postprocessing: of a scan's dictionary, such as a ``Compose`` of the transforms of this package.
        val_handlers: MONAI or ignite handlers.
        progress: show a progress bar.
        output_dir: that of ``SaveCased``; None: each run computes all, and nothing guards its folder.
        resume: leave finished scans as they are.
        shard: ``"3/16"``: every 16th scan from the third on, without tables; ``"merge"``: the tables of all shards in
            ``output_dir``; None: all scans.

    Raises:
        InputError: if there is no scan, one of them is a result of an earlier run, or ``shard`` is none of these.
    """

    def __init__(
        self,
        network: AnomalyDetector,
        val_data_loader: DataLoader,
        device: torch.device | str = "cpu",
        inferer: StackInferer | None = None,
        postprocessing: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        val_handlers: Sequence[Any] | None = None,
        progress: bool = True,
        output_dir: str | Path | None = None,
        resume: bool = True,
        shard: str | None = None,
    ) -> None:
        # the registration of MONAI's engines makes the state; its events have to be known before handlers attach
        super().__init__(device=device, val_data_loader=val_data_loader, mode="eval", decollate=False)
        if not len(val_data_loader):
            raise InputError("dataset_dir", "the cohort has no scan to read", "Give a folder, a file or a datalist.")
        _refuse_results(getattr(val_data_loader.dataset, "data", []))
        self.network = network.to(self.state.device)
        self.inferer = inferer or StackInferer()
        self.scan_postprocessing = postprocessing
        self.progress = progress
        self.output_dir, self.resume = output_dir, resume
        self.merge = shard == "merge"
        self.shard = None if shard is None or self.merge else Shard.parsed(shard)
        if shard is not None and output_dir is None:
            raise InputError(f"--shard {shard}", "there is no folder that shards meet in", "Give an output_dir.")
        self.val_data_loader = val_data_loader
        self.val_handlers = list(val_handlers or ())
        self.state.failures = []
        # errors that are told once everything is written
        self.state.problems = []
        self.state.kept = {}
        self.folder: RunFolder | None = None
        self.register_events(*ScanEvents)
        for handler in self.val_handlers:
            handler.attach(self)

    def run(self, global_epoch: int = 1) -> None:
        """Go through the cohort, or its shard.

        Args:
            global_epoch: as in MONAI.

        Raises:
            InputError: if another run writes into ``output_dir``, a shard that is to be merged is missing, unfinished
                or of other settings, or a handler needs the whole cohort in one process.
        """
        self.network.eval()
        rank, ranks = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
        if self.output_dir is None or self.shard is not None or self.merge or ranks == 1:
            self._run(global_epoch, self.shard, self.merge)
            return
        with _process_group():
            self._run(global_epoch, Shard(rank + 1, ranks))
            dist.barrier()
            if rank == 0:
                self._run(global_epoch, merge=True)
            # a process that ends early would have torchrun end the first one
            dist.barrier()

    def _run(self, global_epoch: int, shard: Shard | None = None, merge: bool = False) -> None:
        from tqdm import tqdm

        self.state.failures, self.state.problems = [], []
        # by name, those whose part of a scan can be kept in its folder; None: some need the scan itself
        keeping = [handler for handler in self.val_handlers if getattr(handler, "keeps", True)]
        needing = [type(handler).__name__ for handler in keeping if not getattr(handler, "storable", False)]
        if needing and (shard or merge):
            problem = f"{', '.join(needing)} cannot be put together from shards"
            raise InputError("--shard", problem, "Run it in one process, without torchrun and --shard.")
        if needing and self.output_dir is not None and self.resume:
            logger.info(f"{', '.join(needing)} take every scan anew: what an earlier run finished is computed again")
        self.folder = None if self.output_dir is None else RunFolder(self.output_dir, self._settings())
        with ExitStack() as stack:
            failures = [] if self.folder is None else stack.enter_context(self.folder.held(shard))
            dataset: Any = self.val_data_loader.dataset
            self.data_loader = self.val_data_loader
            if self.folder is not None:
                known = self.folder.shards_failures() if merge else []
                names = None if needing or not (self.resume or merge) else {handler.name for handler in keeping}
                scans = RunScans(dataset, self.folder, shard, names, known, merge)
                self.data_loader = scan_loader(scans, num_workers=self.val_data_loader.num_workers)
            self.state.epoch_length, self._tables = len(self.data_loader), shard is None
            first = shard is None or shard.number == 1
            self._bar = tqdm(
                total=len(self.data_loader), desc="scans", unit="scan", disable=not self.progress or not first
            )
            try:
                if shard is None:
                    self.fire_event(ScanEvents.COHORT_STARTED)
                if len(self.data_loader):  # there may be fewer scans than shards
                    super().run(global_epoch)
                if shard is None:
                    self.fire_event(ScanEvents.COHORT_COMPLETED)
            except BaseException:
                if shard is None:
                    self.fire_event(ScanEvents.INTERRUPTED)
                raise
            finally:
                self._bar.close()
            failures += self.state.failures
        if self.folder is not None and shard is None:
            self.folder.forget_shards()

    def _settings(self) -> dict[str, Any]:
        """All that a case's files depend on beside its scan."""
        return {
            "network": described(self.network),
            "preprocessing": described(getattr(self.val_data_loader.dataset, "transform", None)),
            "inferer": described(self.inferer),
            "device": self.state.device.type,
            "postprocessing": described(self.scan_postprocessing),
        }

    @property
    def failures(self) -> list[dict[str, str]]:
        """The scans that could not be used, each ``{"case", "image", "error"}``."""
        return self.state.failures

    def finish(self, listed: Path | str | None = None) -> None:
        """End with an error where scans failed.

        Args:
            listed: the file that lists them too.

        Raises:
            InputError: if a handler has found a problem that is told at the end.
            SystemExit: if a scan failed; the message lists them.
        """
        if int(os.environ.get("RANK", "0")) and self.output_dir is not None and self.shard is None:
            return  # the first process tells of all
        for problem in self.state.problems:
            raise problem
        raise_for_failures(self.failures, listed)

    def _iteration(self, engine: Any, entry: dict[str, Any]) -> dict[str, Any]:
        # the last scan's arrays, which would stay while this one's are made
        self.state.output = self.state.kept = None
        item, kept = entry["item"], entry.get("kept")
        if "missing" in entry:
            remedy = "Run the shards again with the same scans."
            raise InputError(f"case {item['case']}", "no shard has finished it as it is now", remedy)
        problem: str | None = entry.get("error")
        if kept is not None:
            self.state.output, self.state.kept = {"item": item}, kept
        elif problem is None:
            problem = misfit(entry, self.network)
        if kept is None and problem is None:
            try:
                self.state.output = self._score(entry)
                self.state.kept = self._keep(item["case"], entry.get("content"))
            except Exception as error:
                # One bad scan must not stop the others; it is reported at the end.
                problem = describe_failure(error)
        if problem is None:
            self._fire(ScanEvents.SCAN_COMPLETED)
        else:
            self.state.output = None
            self.state.failures.append({"case": item["case"], "image": str(item["image"]), "error": problem})
            logger.error(f"{item['case']} failed: {problem}")
            self._fire(ScanEvents.SCAN_FAILED)
        self._bar.update()
        return self.state.output or {}

    def _fire(self, event: Any) -> None:
        if self._tables:
            self.fire_event(event)

    def _keep(self, case: str, content: str | None) -> dict[str, Any]:
        """What handlers keep of the scan at hand, noted in its folder where it can be."""
        ours = [handler for handler in self.val_handlers if hasattr(handler, "kept") and handler.keeps]
        kept = {handler.name: handler.kept(self.state.output) for handler in ours}
        if self.folder is None or content is None:
            return kept
        stored = {handler.name: kept[handler.name] for handler in ours if handler.storable}
        return {**kept, **self.folder.finish(case, content, stored)}

    def _score(self, entry: dict[str, Any]) -> dict[str, Any]:
        output = self.inferer(entry["stack"], self.network, entry["tissue"])
        if not all(map(math.isfinite, torch.aminmax(output.anomaly_map))):
            raise ValueError("the detector's map has values that are not finite")
        scored = {**entry, **output._asdict(), "anomaly_score": float(output.anomaly_score)}
        # what postprocessing takes out of the dictionary, to lay it on the scan's voxels, must not stay here
        del output, entry["stack"]
        return scored if self.scan_postprocessing is None else self.scan_postprocessing(scored)


@contextmanager
def _process_group() -> Iterator[None]:
    """Processes of torchrun that can wait for one another, however long one takes."""
    own = not dist.is_initialized()
    if own:
        dist.init_process_group("gloo", timeout=timedelta(days=30))
    try:
        yield
    finally:
        if own:
            dist.destroy_process_group()


def raise_for_failures(failures: Sequence[dict[str, str]], listed: Path | str | None = None) -> None:
    """End the program with an error where scans failed.

    Args:
        failures: each ``{"case", "image", "error"}``.
        listed: the file that lists them too.

    Raises:
        SystemExit: with one line per failed scan.
    """
    if failures:
        lines = "\n".join(f"  {failure['case']}: {failure['error']}" for failure in failures)
        also = f" (also in {listed})" if listed is not None and Path(listed).is_file() else ""
        raise SystemExit(f"{len(failures)} scan(s) could not be used{also}:\n{lines}")


def _refuse_results(data: Sequence[dict[str, Any]]) -> None:
    """A folder that holds both scans and results would have its maps scored as scans."""
    for item in data:
        first = Path(item["image"] if isinstance(item["image"], str) else item["image"][0])
        name = first.name.partition(".")[0]
        if name in ("anomaly_map", "anomaly_mask", "restoration", "anomaly_logp", "anomaly_zscore") and any(
            first.parent.glob("anomaly_map.*")
        ):
            raise InputError(
                first, "is a result of an earlier run, not a scan", "Keep output_dir outside of the folder of scans."
            )
