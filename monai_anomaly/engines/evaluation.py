"""What a cohort's scans gave, gathered scan by scan, as metrics and as a report."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from monai_anomaly import __version__
from monai_anomaly.calibration import MaskCleanup
from monai_anomaly.data.picture_statistics import confounds, picture_statistics
from monai_anomaly.exceptions import InputError
from monai_anomaly.io import write_csv, write_json
from monai_anomaly.io.content import shown_digest
from monai_anomaly.metrics import (
    LESION_COLUMNS,
    LesionDetection,
    MaskMetrics,
    PixelMetrics,
    VoxelIntervals,
    bootstrap_intervals,
    by_group,
    count_lesions,
    image_metrics,
    lesion_table,
    patient_level,
    scan_statistics,
    score_gap,
)
from monai_anomaly.metrics.scans import group_name
from monai_anomaly.networks import AnomalyDetector
from monai_anomaly.report import evaluation_json, write_metrics_csv, write_report
from monai_anomaly.report.contents import (
    cohort_sides,
    detector_settings,
    drift_checks,
    froc_curves,
    group_tables,
    lesion_floor,
    lesion_tables,
    lesion_thresholds,
    level_notes,
    mask_rule_text,
    mask_table,
    metric_columns,
    scan_curves,
    table_figures,
)
from monai_anomaly.report.evaluation import (
    CaseResult,
    Confounds,
    DetectorFigures,
    Estimate,
    Evaluation,
    ReportCalibration,
    ReportMethod,
)
from monai_anomaly.report.figures import case_slice
from monai_anomaly.report.seeds import read_evaluations, seed_spreads

if TYPE_CHECKING:
    from monai.data import MetaTensor


__all__ = ["EvaluationRecorder"]


class EvaluationRecorder:
    """Takes in one scan after the other; keeps scores and sums, no volumes, and one slice of each in a temporary file.

    Args:
        network: the detector that is reported on.
        alpha: rate that its thresholds are set for; None for no threshold.
        map_threshold: of its mask; None for no mask.
        mask_rule: of that threshold (see ``CohortEvaluator``).
        cleanup: that masks went through; None for none.
        evaluate: also measure against labels and masks.
        baselines: by name; those of the detector's own class are left out. They run with ``evaluate`` alone.
        description: the content of ``detector.json``; None where it is not known.
        slice_axis: that of the pictures.
        other_seeds: folders of earlier evaluations that differ in the training seed alone, for the spread over seeds.

    Raises:
        InputError: if such a folder has no readable metrics.
    """

    def __init__(
        self,
        network: AnomalyDetector,
        alpha: float | None,
        map_threshold: float | None,
        *,
        mask_rule: str = "family",
        cleanup: MaskCleanup | None = None,
        evaluate: bool,
        baselines: Mapping[str, AnomalyDetector] | None = None,
        description: Mapping[str, Any] | None = None,
        slice_axis: str = "axial",
        other_seeds: Sequence[str | Path] = (),
    ) -> None:
        self.other_seeds = read_evaluations(other_seeds)
        self.network, self.alpha, self.map_threshold = network, alpha, map_threshold
        self.evaluate, self.description, self.slice_axis = evaluate, description, slice_axis
        self.name = type(network).__name__
        chosen = dict(baselines or {}) if evaluate else {}
        self.baselines = {n: b.eval() for n, b in chosen.items() if type(b) is not type(network)}
        # by detector: each by its own calibration
        compared = {self.name: network, **self.baselines}
        self.score_thresholds = {
            name: None if alpha is None else each.calibration.score_threshold(alpha) for name, each in compared.items()
        }
        self.thresholds = {name: _map_thresholds(each, alpha) for name, each in compared.items()}
        self.lesion_thresholds = {
            name: {} if alpha is None else lesion_thresholds(each.calibration, alpha) for name, each in compared.items()
        }
        self.pixels = {name: PixelMetrics(values) for name, values in self.thresholds.items()}
        self.voxels = {name: VoxelIntervals(values) for name, values in self.thresholds.items()}
        self.lesions: dict[str, dict[str, LesionDetection]] = {name: {} for name in compared}
        self.masks = MaskMetrics()
        self.mask_settings = self._mask_settings(mask_rule, cleanup or MaskCleanup())
        self.counts: list[tuple[int | None, int | None]] = []
        self.digests: list[str] = []
        self.scores: dict[str, list[float]] = {name: [] for name in self.baselines}
        self.lesion_rows: list[dict[str, Any]] = []
        self.statistics: list[dict[str, Any]] = []
        self.groups: list[dict[str, Any]] = []
        self._folder = tempfile.TemporaryDirectory(prefix="monai_anomaly_")
        self.slices: list[Callable[[], Any]] = []

    def add(
        self,
        item: Mapping[str, Any],
        scan: MetaTensor,
        *,
        anomaly_map: np.ndarray,
        mask: np.ndarray | None,
        reference: np.ndarray | None,
        restoration: np.ndarray | None,
        baselines: Mapping[str, tuple[np.ndarray, float]],
    ) -> None:
        """Take in a scan.

        Args:
            item: of the cohort.
            scan: as loaded, (C, X, Y, Z).
            anomaly_map: (X, Y, Z).
            mask: (X, Y, Z), as written; None for none.
            reference: (X, Y, Z), the true lesions; None where they are not known.
            restoration: (C, X, Y, Z); None for none.
            baselines: by name the map (X, Y, Z) and the score.
        """
        kind = scan.meta["scan_kind"]
        affine = None if kind == "picture" else np.asarray(scan.affine, dtype=np.float64)
        rows: list[dict[str, Any]] = []
        if mask is not None:
            rows = lesion_table(anomaly_map, mask, affine, self.network.calibration.map_p_value)
        counts = (None, None) if reference is None else count_lesions(reference, mask)
        drawn = case_slice(
            scan,
            restoration,
            anomaly_map,
            mask,
            slice_axis=self.slice_axis,
            reference_mask=reference,
            by="reference" if counts[0] and counts[1] == 0 else "score",
        )
        images = [item["image"]] if isinstance(item["image"], str) else item["image"]
        digests = [shown_digest(Path(image)) for image in images]
        statistics = picture_statistics(scan, item) if self.evaluate else {}
        volume = None if affine is None else float(abs(np.linalg.det(affine[:3, :3])))
        # What can refuse a map comes first: a scan that fails leaves no row behind in any list.
        if self.evaluate and reference is not None:
            maps = {self.name: anomaly_map, **{name: scores for name, (scores, _) in baselines.items()}}
            for name, scores in maps.items():
                self.pixels[name].update(scores, reference)
                self.voxels[name].update(item["patient"], scores, reference)
                if thresholds := self.lesion_thresholds[name]:
                    found = LesionDetection(thresholds, floor=lesion_floor(thresholds))
                    self.lesions[name].setdefault(kind, found).update(scores, reference, volume)
        if self.evaluate and mask is not None:
            self.masks.update(item["patient"], item.get("label"), mask, reference, kind, volume)
        self.lesion_rows += [{"case": item["case"], "patient": item["patient"], **row} for row in rows]
        self.slices.append(self._kept(drawn))
        self.counts.append(counts)
        self.digests += digests
        self.statistics.append(statistics)
        self.groups.append({key: item.get(key) for key in ("site", "scanner")})
        for name, (_, score) in baselines.items():
            self.scores[name].append(score)

    def _mask_settings(self, rule: str, cleanup: MaskCleanup) -> dict[str, Any] | None:
        """How masks were made, as plain values; None where there are none."""
        if self.map_threshold is None:
            return None
        return {
            "rule": rule,
            "alpha": self.alpha,
            "threshold": self.map_threshold,
            "least_lesion_mm3": cleanup.least_lesion_mm3,
            "inside_foreground": cleanup.inside_foreground,
        }

    def _kept(self, drawn: Any) -> Callable[[], Any]:
        """A slice put away, and how to get it back: slices of thousands of scans would fill the memory."""
        path = Path(self._folder.name) / f"{len(self.slices)}.pickle"
        path.write_bytes(pickle.dumps(drawn))
        return partial(_load_slice, path)

    def metrics(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """All figures; undefined ones are None, with the reason.

        Args:
            rows: of ``predictions.csv``, in the order in which the scans came.

        Returns:
            ``image``, ``pixel``, ``patient``, ``lesion`` (by volumes and pictures), ``intervals`` of scans,
            ``patient_intervals`` and ``pixel_intervals`` (each by detector), ``gap``, ``by_group``, ``confounds``,
            ``decisions`` (of scans, of voxels above the thresholds of the raw map, and of the masks as written, after
            any clean-up, with their ``settings``), ``baselines`` and ``undefined``.
        """
        labels, scores, patients = ([row[key] for row in rows] for key in ("label", "anomaly_score", "patient"))
        intervals: dict[str, Any] = {}
        patient_intervals: dict[str, Any] = {}
        pixel_intervals: dict[str, Any] = {}

        def measured(name: str, own: Sequence[float]) -> dict[str, Any]:
            threshold = self.score_thresholds[name]
            together, pixel = patient_level(patients, labels, own), self.pixels[name].compute()
            statistics = scan_statistics(threshold)
            intervals[name] = bootstrap_intervals(patients, labels, own, statistics)
            patient_intervals[name] = (
                bootstrap_intervals(together.patients, together.labels, together.scores, statistics)
                if len(together.patients) < len(patients)
                else intervals[name]  # a scan a patient
            )
            pixel_intervals[name] = self.voxels[name].compute({key: pixel[key] for key in ("auroc", "ap")})
            return {
                "image": image_metrics(labels, own, threshold),
                "pixel": pixel,
                "patient": image_metrics(together.labels, together.scores, threshold),
                "gap": score_gap(labels, own),
                "by_group": {key: self._by_group(rows, own, key, threshold) for key in ("site", "scanner")},
                "lesion": {kind: lesions.compute() for kind, lesions in self.lesions[name].items()},
            }

        found = measured(self.name, scores)
        baselines = {name: measured(name, own) for name, own in self.scores.items()}
        return {
            **found,
            "intervals": intervals,
            "patient_intervals": patient_intervals,
            "pixel_intervals": pixel_intervals,
            "confounds": confounds([{**row, **own} for row, own in zip(rows, self.statistics)])._asdict(),
            "decisions": {
                "scan": found["image"]["decision"],
                "voxel": found["pixel"]["decisions"],
                "mask": {"settings": self.mask_settings, **self.masks.compute()},
            },
            "baselines": baselines,
            "undefined": {level: found[level]["undefined"] for level in ("image", "pixel", "patient")},
        }

    def _by_group(
        self, rows: Sequence[Mapping[str, Any]], own: Sequence[float], key: str, threshold: float | None
    ) -> dict[str, dict[str, Any]]:
        """What ``by_group`` gives of a detector's scores, with the intervals of each group."""
        grouped = [
            {**row, key: group[key], "anomaly_score": score} for row, group, score in zip(rows, self.groups, own)
        ]
        found = by_group(grouped, key, threshold)
        for name, metrics in found.items():
            members = [row for row in grouped if group_name(row, key) == name]
            patients, labels, scores = (
                [row[part] for row in members] for part in ("patient", "label", "anomaly_score")
            )
            metrics["intervals"] = bootstrap_intervals(patients, labels, scores, scan_statistics(threshold))
        return found

    def evaluation(
        self,
        rows: Sequence[Mapping[str, Any]],
        failures: Sequence[Mapping[str, str]],
        drift: Mapping[str, Any] | None,
        metrics: Mapping[str, Any] | None = None,
    ) -> Evaluation:
        """What the report shows.

        Args:
            rows: as for ``metrics``.
            failures: each ``{"case", "image", "error"}``.
            drift: see ``drift_report``.
            metrics: of ``metrics``; None for an inference.
        """
        calibration = self.network.calibration
        threshold = self.score_thresholds[self.name]
        config: Any = self.network.config
        settings: dict[str, Any] = config["arguments"]
        cases = [
            CaseResult(
                name=row["case"],
                score=row["anomaly_score"],
                label=row["label"],
                p_value=row["p_value"],
                flagged=None if threshold is None else row["anomaly_score"] > threshold,
                marked=row["flagged"],
                patient=row["patient"],
                lesions=lesions[0],
                lesions_found=lesions[1],
                pictures=drawn,
            )
            for row, lesions, drawn in zip(rows, self.counts, self.slices)
        ]
        calibrated = None
        if calibration.scores.numel():
            calibrated = ReportCalibration(
                alpha=self.alpha,
                patients=int(calibration.scores.numel()),
                score_threshold=threshold,
                map_threshold=self.map_threshold,
                rule="the threshold of scores is the conformal quantile of the calibration patients' highest scores"
                + (f"; {mask_rule_text(self.mask_settings)}" if self.mask_settings else ""),
                # of scans, as the cases' are; older versions kept patients' highest alone
                scores=(calibration.item_scores if calibration.item_scores.numel() else calibration.scores)
                .cpu()
                .numpy(),
                drift=drift_checks(drift),
            )
        return Evaluation(
            title=f"{self.name}: {'evaluation' if metrics else 'inference'}",
            method=ReportMethod(
                self.name, __version__, self._weights(settings), detector_settings(settings, self.description)
            ),
            cohort=cohort_sides(self.description, rows, self.digests),
            calibration=calibrated,
            cases=cases,
            failures=[(failure["case"], failure["error"]) for failure in failures],
            **({} if metrics is None else self._tables(rows, metrics)),
        )

    def _weights(self, settings: Mapping[str, Any]) -> str:
        digest = (self.description or {}).get("model_sha256")
        parts = [f"model.pt, SHA-256 {digest}" if digest else "in memory, not loaded from a file"]
        if settings.get("encoder_label"):
            parts.append(f"encoder {settings['encoder_label']}")
        return "; ".join(parts)

    def _tables(self, rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, Any]) -> dict[str, Any]:
        columns = metric_columns(metrics, self.thresholds[self.name], self.score_thresholds[self.name])
        intervals = {
            name: {
                "image": metrics["intervals"][name],
                "patient": metrics["patient_intervals"][name],
                "pixel": metrics["pixel_intervals"][name],
            }
            for name in (self.name, *metrics["baselines"])
        }
        detectors = [DetectorFigures(self.name, "method", table_figures(columns, metrics, intervals[self.name]))]
        detectors += [
            DetectorFigures(name, "baseline", table_figures(columns, found, intervals[name]))
            for name, found in metrics["baselines"].items()
        ]
        for row in metrics["confounds"]["rows"]:
            value = Estimate(row["auroc"], row["low"], row["high"], row["reason"] if row["auroc"] is None else "")
            name = row["statistic"].replace("_", " ")
            detectors.append(DetectorFigures(name, "picture statistic", {"image": {"auroc": value}}))
        shares = {level: metrics[level]["prevalence"] for level in ("image", "patient", "pixel")}
        scores = {self.name: [row["anomaly_score"] for row in rows], **self.scores}
        return {
            "metrics": columns,
            "detectors": detectors,
            "curves": scan_curves(self.name, [row["label"] for row in rows], scores)
            + [curve for name in self.lesions for curve in froc_curves(name, self.lesions[name], name == self.name)],
            "intervals": "95 % bootstrap over patients (picture statistics: normal approximation over patients)",
            "prevalence": {level: share for level, share in shares.items() if share is not None},
            "tables": mask_table(metrics["decisions"]["mask"], self.name)
            + [
                table
                for name, found in {self.name: metrics, **metrics["baselines"]}.items()
                for table in [
                    *([] if self.alpha is None else lesion_tables(found, name, self.alpha)),
                    *group_tables(found["by_group"], name),
                ]
            ],
            "confounds": Confounds(metrics["confounds"]["sentence"], metrics["confounds"]["separates"]),
            "notes": level_notes(columns, intervals[self.name]),
        }

    def write(
        self,
        folder: Path,
        rows: Sequence[Mapping[str, Any]],
        failures: Sequence[Mapping[str, str]],
        drift: Mapping[str, Any] | None,
        show_patients: bool = False,
        report: bool = True,
    ) -> dict[str, Any]:
        """Write ``report.html``, ``lesions.csv`` and, of an evaluation, ``metrics.json`` and ``metrics.csv``.

        Args:
            folder: where to.
            rows: as for ``metrics``.
            failures: as for ``evaluation``.
            drift: see ``drift_report``.
            show_patients: name patients on the page.
            report: write the page; False removes that of an earlier run, which would tell of other figures.

        Returns:
            The metrics; empty without ``evaluate``.

        Raises:
            InputError: if an evaluation of ``other_seeds`` is of other scans or settings; all is written by then.
        """
        if self.map_threshold is None:
            (folder / "lesions.csv").unlink(missing_ok=True)
        else:
            write_csv(folder / "lesions.csv", self.lesion_rows, ["case", "patient", *LESION_COLUMNS])
        metrics = self.metrics(rows) if self.evaluate else {}
        evaluation = self.evaluation(rows, failures, drift, metrics or None)
        misfit: InputError | None = None
        if self.evaluate and self.other_seeds:
            try:
                evaluation = replace(evaluation, spreads=seed_spreads(evaluation_json(evaluation), self.other_seeds))
            except InputError as error:
                misfit = error
        if self.evaluate:
            metrics["evaluation"] = evaluation_json(evaluation)
            write_json(folder / "metrics.json", metrics)
            write_metrics_csv(folder / "metrics.csv", evaluation)
        if report:
            write_report(folder / "report.html", evaluation, show_patients=show_patients)
        else:
            (folder / "report.html").unlink(missing_ok=True)
        if misfit is not None:
            raise misfit
        return metrics


def _map_thresholds(network: AnomalyDetector, alpha: float | None) -> dict[str, float]:
    """What a detector's voxels are decided at, by name: the calibrated thresholds, and that of the method's paper."""
    calibration = network.calibration
    found = {"paper": network.paper_map_threshold}
    if alpha is not None:
        found = {"family": calibration.map_threshold(alpha), "voxel": calibration.voxel_threshold(alpha), **found}
    return {name: value for name, value in found.items() if value is not None}


def _load_slice(path: Path) -> Any:
    return pickle.loads(path.read_bytes())
