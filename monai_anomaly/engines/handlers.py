"""What is kept of a cohort's run: tables, drift check, figures and report, a handler each, each usable alone."""

from __future__ import annotations

import logging
import os
import pickle
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from monai_anomaly.calibration import ConformalCalibration, drift_report, scan_facts
from monai_anomaly.data.image_statistics import confounders, image_statistics
from monai_anomaly.exceptions import InputError
from monai_anomaly.io.content import shown_digest
from monai_anomaly.io.tables import write_csv, write_json
from monai_anomaly.metrics import (
    LESION_COLUMNS,
    CohortFigures,
    Figure,
    Thresholds,
    count_lesions,
    lesion_table,
)
from monai_anomaly.networks import AnomalyDetector
from monai_anomaly.report import CaseResult, CaseSlice, Evaluation, case_slice, findings, write_report

from .evaluator import CohortEvaluator, ScanEvents
from .inferer import foreground_of
from .run_settings import run_settings
from .seeds import read_evaluations, seed_figures

__all__ = [
    "DriftHandler",
    "LesionTableHandler",
    "MetricsHandler",
    "PredictionsHandler",
    "ReportHandler",
    "thresholds_of",
]

logger = logging.getLogger(__name__)

_PREDICTIONS: tuple[str, ...] = ("case", "image", "patient", "label", "anomaly_score", "p_value", "patient_p_value")
_PREDICTIONS += ("peak_p_value", "flagged", "mask_rule", "threshold", "alpha", "no_mask")
# The table of predictions is written again once it has grown by this part: time stays linear in the scans.
_SHARE = 20
# Rates of false alarms that lesions are counted at beside alpha itself: multiples of alpha for the family-wise ones,
# as they are for the per-voxel ones.
_FAMILY_MULTIPLES = (1, 2, 4)
_VOXEL_RATES = (1e-2, 1e-3)


class _ScanHandler:
    """Starts anew with each run, takes in each scan, ends with the run.

    What it needs of a scan is ``kept``; a handler that is ``storable`` needs so little that it is written into the
    case's folder, for a run that goes on later.
    """

    storable = False
    # False: nothing of the scans is needed.
    keeps = True

    @property
    def name(self) -> str:
        """Under which its part of a scan is kept: other names have other parts."""
        return type(self).__name__

    def attach(self, engine: CohortEvaluator) -> None:
        """Have the evaluator call this handler."""
        engine.add_event_handler(ScanEvents.COHORT_STARTED, self.start)
        if self.keeps:
            engine.add_event_handler(ScanEvents.SCAN_COMPLETED, self._add)
        engine.add_event_handler(ScanEvents.COHORT_COMPLETED, self.end)

    def start(self, engine: CohortEvaluator) -> None:
        """Forget an earlier run."""

    def kept(self, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """The part of a scan's dictionary that ``add`` needs.

        Args:
            data: the scan's dictionary.

        Returns:
            If ``storable``: numbers, texts, truth values, None, arrays, and lists and dictionaries of them.
        """
        return data

    def _add(self, engine: CohortEvaluator) -> None:
        self.add({**engine.state.kept[self.name], "item": engine.state.output["item"]})

    def add(self, data: Mapping[str, Any]) -> None:
        """Take in a scan: what ``kept`` gave, and its ``item``."""

    def end(self, engine: CohortEvaluator) -> None:
        """Write what was found."""


class PredictionsHandler(_ScanHandler):
    """Writes ``predictions.csv`` and, where scans failed, ``failures.csv``, as scans complete and at the end.

    Args:
        output_dir: where to.
        network: the detector, whose calibration gives the patients' p-values.
    """

    storable = True

    def __init__(self, output_dir: str | Path, network: AnomalyDetector) -> None:
        self.output_dir, self.calibration = Path(output_dir), network.calibration
        self.rows: list[dict[str, Any]] = []
        self._next = 1

    def attach(self, engine: CohortEvaluator) -> None:
        """See the base."""
        super().attach(engine)
        for event in (ScanEvents.SCAN_COMPLETED, ScanEvents.SCAN_FAILED):
            engine.add_event_handler(event, self._write_sometimes)
        engine.add_event_handler(ScanEvents.INTERRUPTED, self.end)

    def start(self, engine: CohortEvaluator) -> None:
        """See the base."""
        self.rows, self._next = [], 1

    def kept(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """See the base."""
        mask, settings = data.get("anomaly_mask"), data.get("mask_settings", {})
        return {
            "anomaly_score": data["anomaly_score"],
            "p_value": data.get("p_value"),
            # of the map, as the mask is: the score and the map may differ in what they say
            "peak_p_value": self.calibration.map_p_value(float(data["anomaly_map"].max())),
            "flagged": None if mask is None else int(mask.any()),
            "mask_rule": None if mask is None else settings.get("rule"),
            "threshold": settings.get("threshold"),
            "alpha": None if mask is None else settings.get("alpha"),
            "no_mask": settings.get("no_mask") or None,
        }

    def add(self, data: Mapping[str, Any]) -> None:
        """See the base."""
        item = data["item"]
        self.rows.append(
            {
                "case": item["case"],
                "image": item["image"] if isinstance(item["image"], str) else ";".join(item["image"]),
                "patient": item["patient"],
                "label": item.get("label"),
                "patient_p_value": None,  # known once all scans of the patient are
                **{name: value for name, value in data.items() if name != "item"},
            }
        )

    def _write_sometimes(self, engine: CohortEvaluator) -> None:
        done = len(self.rows) + len(engine.failures)
        if done >= self._next:
            self.end(engine)
            self._next = done + max(1, done // _SHARE)

    def end(self, engine: CohortEvaluator) -> None:
        """See the base."""
        highest = _highest((row["patient"], row["anomaly_score"]) for row in self.rows)
        for row in self.rows:
            row["patient_p_value"] = self.calibration.patient_p_value(highest[row["patient"]])
        write_csv(self.output_dir / "predictions.csv", self.rows, _PREDICTIONS)
        if engine.failures:
            write_csv(self.output_dir / "failures.csv", engine.failures, ["case", "image", "error"])
        else:
            (self.output_dir / "failures.csv").unlink(missing_ok=True)


class LesionTableHandler(_ScanHandler):
    """Writes ``lesions.csv``, one row for each connected finding of the masks; without masks removes an earlier one.

    Args:
        output_dir: where to.
        network: the detector, whose calibration gives the findings' p-values.
    """

    storable = True

    def __init__(self, output_dir: str | Path, network: AnomalyDetector) -> None:
        self.path, self.calibration = Path(output_dir) / "lesions.csv", network.calibration
        self.rows: list[dict[str, Any]] = []
        self.masks = False

    def start(self, engine: CohortEvaluator) -> None:
        """See the base."""
        self.rows, self.masks = [], False

    def kept(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """See the base."""
        if data.get("anomaly_mask") is None:
            return {"lesions": None}
        found = lesion_table(data["anomaly_map"], data["anomaly_mask"], _affine(data), self.calibration.map_p_value)
        return {"lesions": found}

    def add(self, data: Mapping[str, Any]) -> None:
        """See the base."""
        item, found = data["item"], data["lesions"]
        self.masks |= found is not None
        self.rows += [{"case": item["case"], "patient": item["patient"], **row} for row in found or ()]

    def end(self, engine: CohortEvaluator) -> None:
        """See the base."""
        if self.masks:
            write_csv(self.path, self.rows, ["case", "patient", *LESION_COLUMNS])
        else:
            self.path.unlink(missing_ok=True)


class DriftHandler(_ScanHandler):
    """Compares the scans with the calibration patients' (see ``drift_report``): ``drift.json`` and ``state.drift``.

    Args:
        output_dir: where to.
        network: the detector; without calibration there is no comparison.
    """

    storable = True

    def __init__(self, output_dir: str | Path, network: AnomalyDetector) -> None:
        self.path, self.calibration = Path(output_dir) / "drift.json", network.calibration

    def start(self, engine: CohortEvaluator) -> None:
        """See the base."""
        self.facts: dict[str, list[np.ndarray]] = defaultdict(list)
        self.labels: dict[str, set[int | None]] = defaultdict(set)
        self.scores: list[tuple[str, float]] = []
        engine.state.drift = None

    def kept(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """See the base."""
        foreground = data.get("foreground")
        foreground = foreground_of(data["scan"]) if foreground is None else foreground
        return {"facts": scan_facts(data["scan"], foreground), "anomaly_score": data["anomaly_score"]}

    def add(self, data: Mapping[str, Any]) -> None:
        """See the base."""
        patient = data["item"]["patient"]
        self.facts[patient].append(data["facts"])
        self.labels[patient].add(data["item"].get("label"))
        self.scores.append((patient, data["anomaly_score"]))

    def end(self, engine: CohortEvaluator) -> None:
        """See the base."""
        if not self.scores or not self.calibration.scores.numel():
            self.path.unlink(missing_ok=True)
            return
        known = any(label is not None for found in self.labels.values() for label in found)
        normals = [patient for patient, found in self.labels.items() if found == {0}] if known else None
        report = drift_report(
            self.calibration.scores, self.calibration.facts.values, _highest(self.scores), self.facts, normals
        )
        engine.state.drift = report
        write_json(self.path, report)
        if report["drift"]:
            logger.warning(report["statement"])


class _DescribedHandler(_ScanHandler):
    """Keeps what ``run_settings`` asks for."""

    def __init__(
        self,
        output_dir: str | Path,
        network: AnomalyDetector,
        alpha: float | None,
        description: Mapping[str, Any] | None,
    ) -> None:
        self.output_dir, self.network, self.alpha = Path(output_dir), network, alpha
        self.description = description
        self.detector = type(network).__name__
        self._begin()

    def _begin(self) -> None:
        self.items: list[Mapping[str, Any]] = []
        self.digests: list[str] = []
        self.mask_settings: Mapping[str, Any] | None = None

    def _description_of(self, data: Mapping[str, Any]) -> dict[str, Any]:
        image, series = data["item"]["image"], data["item"].get("series")
        images = [image] if isinstance(image, str) else image
        return {
            "digests": [shown_digest(Path(image), series=series) for image in images],
            "mask_settings": data.get("mask_settings"),
        }

    def _describe(self, data: Mapping[str, Any]) -> None:
        self.items.append(data["item"])
        self.digests += data["digests"]
        self.mask_settings = data["mask_settings"]

    def settings(self, engine: CohortEvaluator) -> dict[str, Any]:
        """See ``run_settings``."""
        return run_settings(
            self.network,
            self.description,
            self.alpha,
            labels=[item.get("label") for item in self.items],
            patients=[item["patient"] for item in self.items],
            digests=self.digests,
            mask=self.mask_settings,
            drift=getattr(engine.state, "drift", None),
            failures=engine.failures,
        )


class MetricsHandler(_DescribedHandler):
    """Measures against labels and reference masks: ``metrics.csv``, ``metrics.json`` and ``state.evaluation``.

    Args:
        output_dir: where to.
        network: the detector.
        alpha: rate that thresholds of scans, voxels and lesions are set for; None for none.
        baselines: by name, those of ``RunBaselinesd``: each is decided by its own calibration.
        description: the content of ``detector.json``; None where it is not known.
        other_seeds: ``output_dir`` of earlier evaluations of the same cohort, by detectors that differ in the training
            seed alone: mean and spread over the seeds are told.

    Raises:
        InputError: if such a folder has no readable metrics.
    """

    def __init__(
        self,
        output_dir: str | Path,
        network: AnomalyDetector,
        alpha: float | None = 0.05,
        baselines: Mapping[str, AnomalyDetector] | None = None,
        description: Mapping[str, Any] | None = None,
        other_seeds: Sequence[str | Path] | None = None,
    ) -> None:
        super().__init__(output_dir, network, alpha, description)
        self.other_seeds = read_evaluations(other_seeds or ())
        compared = {self.detector: network, **(baselines or {})}
        self.thresholds = {name: thresholds_of(each, alpha) for name, each in compared.items()}

    def _begin(self) -> None:
        super()._begin()
        self.statistics: list[dict[str, Any]] = []

    def start(self, engine: CohortEvaluator) -> None:
        """See the base."""
        self._begin()
        self.figures = CohortFigures(self.thresholds)
        engine.state.evaluation = None

    def kept(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """See the base."""
        return {**data, **self._description_of(data)}

    def add(self, data: Mapping[str, Any]) -> None:
        """See the base."""
        item, baselines = data["item"], data.get("baselines", {})
        affine = _affine(data)
        self._describe(data)
        self.figures.add(
            item,
            {self.detector: data["anomaly_score"], **{name: score for name, (_, score) in baselines.items()}},
            {self.detector: data["anomaly_map"], **{name: scores for name, (scores, _) in baselines.items()}},
            data.get("reference"),
            data.get("anomaly_mask"),
            data["scan"].meta["scan_kind"],
            None if affine is None else float(abs(np.linalg.det(affine[:3, :3]))),
        )
        self.statistics.append(image_statistics(data["scan"], item))

    def end(self, engine: CohortEvaluator) -> None:
        """See the base."""
        figures = self.figures.compute()
        found = confounders([{**item, **own} for item, own in zip(self.items, self.statistics)])
        kinds = {name: "method" if name == self.detector else "baseline" for name in self.thresholds}
        for row in found.rows:
            name = row["statistic"].replace("_", " ")
            kinds[name] = "image statistic"
            n = row["normal_scans"] + row["abnormal_scans"]
            note = row["reason"] or f"{row['abnormal_is']} in abnormal scans"
            figures.add(Figure(name, "image", "", "auroc", row["auroc"], row["low"], row["high"], n, note))
        settings = {
            **self.settings(engine),
            "detectors": kinds,
            "confounders": {"sentence": found.sentence, "separates": found.separates},
            "intervals": "95 % bootstrap over patients (image statistics: normal approximation over patients; flagged "
            "normal patients: exact binomial)",
        }
        try:
            for figure in seed_figures(settings, figures, self.other_seeds):
                figures.add(figure)
        except InputError as problem:
            # told at the end: the run's own figures are right
            engine.state.problems.append(problem)
        evaluation = Evaluation(settings, figures, self.figures.curves())
        engine.state.evaluation = evaluation
        write_csv(self.output_dir / "metrics.csv", figures.plain(), Figure._fields)
        write_json(self.output_dir / "metrics.json", {**evaluation.plain(), "findings": findings(evaluation)})


class ReportHandler(_DescribedHandler):
    """Writes ``report.html``: the figures of ``MetricsHandler``, where there is one before it, and the cases.

    Keeps one slice of each scan in a temporary file: slices of thousands of scans would fill the memory.

    Args:
        output_dir: where to.
        network: the detector.
        alpha: rate that the threshold of scores is set for; None for none.
        description: the content of ``detector.json``; None where it is not known.
        slice_axis: that of the images.
        show_patients: name patients on the page.
        write: False removes the page of an earlier run, which would tell of other figures.
    """

    storable = True

    def __init__(
        self,
        output_dir: str | Path,
        network: AnomalyDetector,
        alpha: float | None = 0.05,
        description: Mapping[str, Any] | None = None,
        slice_axis: str = "axial",
        show_patients: bool = False,
        write: bool = True,
    ) -> None:
        super().__init__(output_dir, network, alpha, description)
        self.slice_axis, self.show_patients, self.keeps = slice_axis, show_patients, write

    @property
    def name(self) -> str:
        """See the base."""
        return f"{super().name} {self.slice_axis}"

    def _begin(self) -> None:
        super()._begin()
        self.cases: list[CaseResult] = []

    def start(self, engine: CohortEvaluator) -> None:
        """See the base."""
        self._begin()
        self._aside = tempfile.TemporaryFile()  # noqa: SIM115 - it has no name, and goes with the process however that ends

    def kept(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """See the base."""
        mask, reference = data.get("anomaly_mask"), data.get("reference")
        lesions, found = (None, None) if reference is None else count_lesions(reference, mask)
        drawn = case_slice(
            data["scan"],
            data["restoration"] if data["reconstructs"] else None,
            data["anomaly_map"],
            mask,
            slice_axis=self.slice_axis,
            reference_mask=reference,
            by="reference" if lesions and found == 0 else "score",
        )
        return {
            **self._description_of(data),
            "anomaly_score": data["anomaly_score"],
            "p_value": data.get("p_value"),
            "marked": None if mask is None else bool(mask.any()),
            "lesions": lesions,
            "lesions_found": found,
            "slice": vars(drawn),
        }

    def add(self, data: Mapping[str, Any]) -> None:
        """See the base."""
        self._describe(data)
        item, score = data["item"], data["anomaly_score"]
        calibration: ConformalCalibration = self.network.calibration
        threshold = None if self.alpha is None else calibration.score_threshold(self.alpha)
        self.cases.append(
            CaseResult(
                name=item["case"],
                score=score,
                label=item.get("label"),
                p_value=data["p_value"],
                flagged=None if threshold is None else score > threshold,
                marked=data["marked"],
                patient=item["patient"],
                lesions=data["lesions"],
                lesions_found=data["lesions_found"],
                pictures=self._put_aside(CaseSlice(**data["slice"])),
            )
        )

    def _put_aside(self, drawn: CaseSlice) -> Callable[[], Any]:
        place = self._aside.seek(0, os.SEEK_END)
        pickle.dump(drawn, self._aside)
        return partial(_load_slice, self._aside, place)

    def end(self, engine: CohortEvaluator) -> None:
        """See the base."""
        page = self.output_dir / "report.html"
        with self._aside:
            if not self.keeps:
                page.unlink(missing_ok=True)
                return
            evaluation = getattr(engine.state, "evaluation", None) or Evaluation(self.settings(engine))
            calibration = self.network.calibration
            # of scans, as the cases' are; older versions kept patients' highest alone
            kept = calibration.item_scores if calibration.item_scores.numel() else calibration.scores
            write_report(
                page, evaluation, self.cases, calibration_scores=kept.cpu().numpy(), show_patients=self.show_patients
            )


def thresholds_of(network: AnomalyDetector, alpha: float | None) -> Thresholds:
    """What a detector is decided at: its calibrated thresholds, and that of the method's paper.

    Args:
        network: the detector.
        alpha: rate of false alarms; None for the paper's alone.

    Returns:
        Of scans at ``alpha``; of voxels ``family <alpha>``, ``voxel <alpha>`` and ``paper``; of lesions the calibrated
        ones at further rates too: those alone that the number of calibration patients allows. The free-response curve
        begins at the lowest family-wise one or the finest per-voxel one: coarse per-voxel ones join half a scan into
        one finding.
    """
    calibration = network.calibration
    voxels: dict[str, float | None] = {}
    lesions: dict[str, float | None] = {}
    if alpha is not None:
        family = [multiple * alpha for multiple in _FAMILY_MULTIPLES if multiple * alpha < 1]
        per_voxel = [alpha, *(rate for rate in _VOXEL_RATES if rate < alpha)]
        lesions = {f"family {rate:g}": calibration.map_threshold(rate) for rate in family}
        lesions |= {f"voxel {rate:g}": calibration.voxel_threshold(rate) for rate in per_voxel}
        voxels = {name: lesions[name] for name in (f"family {alpha:g}", f"voxel {alpha:g}")}
    voxels["paper"] = network.paper_map_threshold
    known = {name: value for name, value in lesions.items() if value is not None}
    finest = f"voxel {min(_VOXEL_RATES):g}"
    usable = [value for name, value in known.items() if name.startswith("family") or name == finest]
    return Thresholds(
        None if alpha is None else calibration.score_threshold(alpha),
        {name: value for name, value in voxels.items() if value is not None},
        known,
        min(usable or known.values(), default=None),
    )


def _highest(scores: Any) -> dict[str, float]:
    """Per patient the highest score."""
    highest: dict[str, float] = {}
    for patient, score in scores:
        highest[patient] = max(highest.get(patient, -np.inf), score)
    return highest


def _affine(data: Mapping[str, Any]) -> np.ndarray | None:
    """Of a volume, in mm; a 2-D image has none."""
    scan = data["scan"]
    return None if scan.meta["scan_kind"] == "image" else np.asarray(scan.affine, dtype=np.float64)


def _load_slice(file: IO[bytes], place: int) -> Any:
    file.seek(place)
    return pickle.load(file)
