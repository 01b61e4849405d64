"""Runs a detector over a cohort, scan by scan."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import EventEnum
from monai.engines.evaluator import Evaluator
from torch.utils.data import DataLoader

from monai_anomaly.data.slices import describe_failure
from monai_anomaly.exceptions import InputError
from monai_anomaly.networks import AnomalyDetector

from .inferer import StackInferer, misfit

__all__ = ["CohortEvaluator", "ScanEvents", "raise_for_failures"]

logger = logging.getLogger(__name__)


class ScanEvents(EventEnum):
    """What happens to the scans of a ``CohortEvaluator``.

    ``SCAN_COMPLETED``: ``engine.state.output`` is the scan's dictionary after ``postprocessing``. ``SCAN_FAILED``: the
    scan is the last of ``engine.state.failures``. ``INTERRUPTED``: the run ends by an exception.
    """

    SCAN_COMPLETED = "scan_completed"
    SCAN_FAILED = "scan_failed"
    INTERRUPTED = "interrupted"


class CohortEvaluator(Evaluator):
    """Runs scans one by one: the detector, then ``postprocessing``; what is kept of them is the handlers' part.

    A scan's dictionary has ``item`` (of the cohort), ``scan`` (as loaded, (C, X, Y, Z)), ``stack`` (what the detector
    sees, (C, H, W, S) or (C, X, Y, Z)) and ``tissue`` (the slices that it sees), then ``anomaly_map`` (1, H, W, S),
    ``anomaly_score`` (float) and ``restoration`` (as ``stack``, or None), then what ``postprocessing`` makes of it.

    One bad scan never stops the others: it is listed in ``state.failures``, each ``{"case", "image", "error"}``, and
    makes ``finish`` exit with an error.

    Args:
        network: the detector, calibrated or not.
        val_data_loader: of a ``ScanDataset``.
        device: where the detector runs.
        inferer: how it is run.
        postprocessing: of a scan's dictionary, such as a ``Compose`` of the transforms of this package.
        val_handlers: MONAI or ignite handlers.
        progress: show a progress bar.

    Raises:
        InputError: if there is no scan, or one of them is a result of an earlier run.
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
        self.state.failures = []
        # errors that are told once everything is written
        self.state.problems = []
        self.register_events(*ScanEvents)
        for handler in val_handlers or ():
            handler.attach(self)

    def run(self, global_epoch: int = 1) -> None:
        """Go through the cohort.

        Args:
            global_epoch: as in MONAI.
        """
        from tqdm import tqdm

        self.network.eval()
        self.state.failures, self.state.problems = [], []
        self._bar = tqdm(total=len(self.data_loader), desc="scans", unit="scan", disable=not self.progress)
        try:
            super().run(global_epoch)
        except BaseException:
            self.fire_event(ScanEvents.INTERRUPTED)
            raise
        finally:
            self._bar.close()

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
        for problem in self.state.problems:
            raise problem
        raise_for_failures(self.failures, listed)

    def _iteration(self, engine: Any, entry: dict[str, Any]) -> dict[str, Any]:
        # the last scan's arrays, which would stay while this one's are made
        self.state.output = None
        problem = entry.get("error") or misfit(entry, self.network)
        if problem is None:
            try:
                self.state.output = self._score(entry)
            except Exception as error:
                # One bad scan must not stop the others; it is reported at the end.
                problem = describe_failure(error)
        if problem is None:
            self.fire_event(ScanEvents.SCAN_COMPLETED)
        else:
            item = entry["item"]
            self.state.failures.append({"case": item["case"], "image": str(item["image"]), "error": problem})
            logger.error(f"{item['case']} failed: {problem}")
            self.fire_event(ScanEvents.SCAN_FAILED)
        self._bar.update()
        return self.state.output or {}

    def _score(self, entry: dict[str, Any]) -> dict[str, Any]:
        output = self.inferer(entry["stack"], self.network, entry["tissue"])
        if not torch.isfinite(output.anomaly_map).all():
            raise ValueError("the detector's map has values that are not finite")
        scored = {**entry, **output._asdict(), "anomaly_score": float(output.anomaly_score)}
        del output  # what postprocessing lays on the scan's voxels must not stay on the detector's grid too
        return scored if self.scan_postprocessing is None else self.scan_postprocessing(scored)


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
        also = "" if listed is None else f" (also in {listed})"
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
