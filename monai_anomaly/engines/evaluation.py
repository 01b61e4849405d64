"""What a cohort's scans gave, gathered scan by scan, as metrics and as a report."""

from __future__ import annotations

import hashlib
import json
import pickle
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from monai_anomaly.metrics import (
    LESION_COLUMNS,
    LesionDetection,
    PixelMetrics,
    bootstrap_intervals,
    by_group,
    image_metrics,
    lesion_table,
    patient_level,
)
from monai_anomaly.networks import AnomalyDetector

if TYPE_CHECKING:
    from monai.data import MetaTensor

    from monai_anomaly.writers.evaluation import Curve, Estimate, Evaluation

__all__ = ["EvaluationRecorder"]

_IMAGE = {"auroc": "AUROC", "ap": "AP", "sensitivity_at_specificity": "sensitivity at 95 % specificity"}
_PIXEL = {"auroc": "AUROC", "ap": "AP", "aupro": "AUPRO", "best_dice": "best Dice"}


class EvaluationRecorder:
    """Takes in one scan after the other; keeps scores and sums, no volumes, and one slice of each in a temporary file.

    Args:
        network: the detector that is reported on.
        alpha: rate that its thresholds are set for.
        map_threshold: of its mask; None for no mask.
        evaluate: also measure against labels and masks.
        baselines: by name; those of the detector's own class are left out. They run with ``evaluate`` alone.
        description: the content of ``detector.json``; None where it is not known.
        slice_axis: that of the pictures.
    """

    def __init__(
        self,
        network: AnomalyDetector,
        alpha: float,
        map_threshold: float | None,
        *,
        evaluate: bool,
        baselines: Mapping[str, AnomalyDetector] | None = None,
        description: Mapping[str, Any] | None = None,
        slice_axis: str = "axial",
    ) -> None:
        self.network, self.alpha, self.map_threshold = network, alpha, map_threshold
        self.evaluate, self.description, self.slice_axis = evaluate, description, slice_axis
        self.name = type(network).__name__
        chosen = dict(baselines or {}) if evaluate else {}
        self.baselines = {n: b.eval() for n, b in chosen.items() if type(b) is not type(network)}
        calibration = network.calibration
        found = {"family": calibration.map_threshold(alpha), "voxel": calibration.voxel_threshold(alpha)}
        self.thresholds = {name: value for name, value in found.items() if value is not None}
        self.pixels = {self.name: PixelMetrics(self.thresholds), **{name: PixelMetrics() for name in self.baselines}}
        self.lesions: dict[str, LesionDetection] = {}
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
        from monai_anomaly.data.picture_statistics import picture_statistics
        from monai_anomaly.writers.report_figures import case_slice

        kind = scan.meta["scan_kind"]
        affine = None if kind == "picture" else np.asarray(scan.affine, dtype=np.float64)
        rows: list[dict[str, Any]] = []
        if mask is not None:
            rows = lesion_table(anomaly_map, mask, affine, self.network.calibration.map_p_value)
        drawn = case_slice(scan, restoration, anomaly_map, mask, slice_axis=self.slice_axis, reference_mask=reference)
        statistics = picture_statistics(scan, item) if self.evaluate else {}
        # What can refuse a map comes first: a scan that fails leaves no row behind in any list.
        if self.evaluate and reference is not None:
            self.pixels[self.name].update(anomaly_map, reference)
            for name, (scores, _) in baselines.items():
                self.pixels[name].update(scores, reference)
            if self.thresholds:
                volume = None if affine is None else float(abs(np.linalg.det(affine[:3, :3])))
                self.lesions.setdefault(kind, LesionDetection(self.thresholds)).update(anomaly_map, reference, volume)
        self.lesion_rows += [{"case": item["case"], "patient": item["patient"], **row} for row in rows]
        self.slices.append(self._kept(drawn))
        self.statistics.append(statistics)
        self.groups.append({key: item.get(key) for key in ("site", "scanner")})
        for name, (_, score) in baselines.items():
            self.scores[name].append(score)

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
            ``image``, ``pixel``, ``patient``, ``lesion`` (by volumes and pictures), ``intervals``, ``by_group``,
            ``confounds``, ``decisions``, ``baselines`` and ``undefined``.
        """
        from monai_anomaly.data.picture_statistics import confounds

        labels, scores, patients = ([row[key] for row in rows] for key in ("label", "anomaly_score", "patient"))
        threshold = self.network.calibration.score_threshold(self.alpha)
        together = patient_level(patients, labels, scores)
        image = image_metrics(labels, scores, threshold)
        pixel = self.pixels[self.name].compute()
        patient = image_metrics(together.labels, together.scores, threshold)
        intervals = {self.name: bootstrap_intervals(patients, labels, scores)}
        baselines = {}
        for name, own in self.scores.items():
            baselines[name] = {
                "image": image_metrics(labels, own),
                "pixel": self.pixels[name].compute(),
                "patient": image_metrics(*patient_level(patients, labels, own)[1:]),
            }
            intervals[name] = bootstrap_intervals(patients, labels, own)
        grouped = [{**row, **group} for row, group in zip(rows, self.groups)]
        return {
            "image": image,
            "pixel": pixel,
            "patient": patient,
            "lesion": {kind: found.compute() for kind, found in self.lesions.items()},
            "intervals": intervals,
            "by_group": {key: by_group(grouped, key, threshold) for key in ("site", "scanner")},
            "confounds": confounds([{**row, **found} for row, found in zip(rows, self.statistics)])._asdict(),
            "decisions": {"scan": image["decision"], "voxel": pixel["decisions"]},
            "baselines": baselines,
            "undefined": {"image": image["undefined"], "pixel": pixel["undefined"], "patient": patient["undefined"]},
        }

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
        from monai_anomaly import __version__
        from monai_anomaly.writers.evaluation import CaseResult, DriftCheck, Evaluation, ReportCalibration, ReportMethod

        calibration = self.network.calibration
        threshold = calibration.score_threshold(self.alpha)
        config: Any = self.network.config
        settings: dict[str, Any] = config["arguments"]
        label = settings.get("encoder_label")
        cases = [
            CaseResult(
                name=row["case"],
                score=row["anomaly_score"],
                label=row["label"],
                p_value=row["p_value"],
                flagged=None if threshold is None else row["anomaly_score"] > threshold,
                patient=row["patient"],
                pictures=drawn,
            )
            for row, drawn in zip(rows, self.slices)
        ]
        calibrated = None
        if calibration.scores.numel():
            calibrated = ReportCalibration(
                alpha=self.alpha,
                patients=int(calibration.scores.numel()),
                score_threshold=threshold,
                map_threshold=self.map_threshold,
                rule="a scan is flagged where its score is above the conformal quantile of the calibration patients",
                scores=calibration.scores.cpu().numpy(),
                drift=[] if drift is None else [DriftCheck("all checks", drift["statement"], drift["drift"])],
            )
        return Evaluation(
            title=f"{self.name}: {'evaluation' if metrics else 'inference'}",
            method=ReportMethod(
                self.name, __version__, f"model.pt, encoder {label}" if label else "model.pt", settings
            ),
            cohort=self._cohort(rows),
            calibration=calibrated,
            cases=cases,
            failures=[(failure["case"], failure["error"]) for failure in failures],
            **({} if metrics is None else self._tables(rows, metrics)),
        )

    def _cohort(self, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
        from monai_anomaly.writers.evaluation import CohortSide

        def digest(names: Sequence[str]) -> str:
            return hashlib.sha256(json.dumps(sorted(names)).encode()).hexdigest()

        split = ((self.description or {}).get("training") or {}).get("split") or {}
        sides = [
            CohortSide(name, side["scans"], side["patients"], digest(side["digests"]))
            for name, side in split.get("sides", {}).items()
            if name != "test" and side["scans"]
        ]
        labels = [row["label"] for row in rows]
        counts = (labels.count(0), labels.count(1)) if any(label is not None for label in labels) else (None, None)
        patients = len({row["patient"] for row in rows})
        return [*sides, CohortSide("test", len(rows), patients, digest([row["case"] for row in rows]), *counts)]

    def _tables(self, rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, Any]) -> dict[str, Any]:
        from monai_anomaly.writers.evaluation import DetectorFigures, Estimate, MetricColumn

        def figures(
            found: Mapping[str, Any], keys: Mapping[str, str], bounds: Mapping[str, Any]
        ) -> dict[str, Estimate]:
            return {
                key: Estimate(
                    found[key],
                    bounds.get(key, {}).get("low"),
                    bounds.get(key, {}).get("high"),
                    "" if found[key] is not None else found["undefined"].get(key, "undefined"),
                )
                for key in keys
            }

        tables: tuple[tuple[Literal["image", "patient", "pixel"], dict[str, str]], ...]
        tables = (("image", _IMAGE), ("patient", _IMAGE), ("pixel", _PIXEL))
        columns = [
            MetricColumn(
                level,
                key,
                label,
                headline=key == "auroc",
                chance=0.5 if key == "auroc" else None,
                two_sided=level == "image" and key == "auroc",
            )
            for level, keys in tables
            for key, label in keys.items()
        ]
        detectors = []
        for name, found in ((self.name, metrics), *metrics["baselines"].items()):
            levels = {
                "image": figures(found["image"], _IMAGE, metrics["intervals"][name]["intervals"]),
                "patient": figures(found["patient"], _IMAGE, {}),
                "pixel": figures(found["pixel"], _PIXEL, {}),
            }
            detectors.append(DetectorFigures(name, "method" if name == self.name else "baseline", levels))
        for row in metrics["confounds"]["rows"]:
            value = Estimate(row["auroc"], row["low"], row["high"], row["reason"] if row["auroc"] is None else "")
            detectors.append(DetectorFigures(row["statistic"], "picture statistic", {"image": {"auroc": value}}))
        shares = {level: metrics[level]["prevalence"] for level in ("image", "patient", "pixel")}
        return {
            "metrics": columns,
            "detectors": detectors,
            "curves": self._curves(rows),
            "intervals": "95 % bootstrap over patients (picture statistics: normal approximation over patients)",
            "prevalence": {level: share for level, share in shares.items() if share is not None},
        }

    def _curves(self, rows: Sequence[Mapping[str, Any]]) -> list[Curve]:
        from sklearn.metrics import precision_recall_curve, roc_curve

        from monai_anomaly.writers.evaluation import Curve

        known = [i for i, row in enumerate(rows) if row["label"] is not None]
        truth = np.array([rows[i]["label"] for i in known])
        if len(set(truth.tolist())) < 2:
            return []
        curves = []
        for name, scores in ((self.name, [row["anomaly_score"] for row in rows]), *self.scores.items()):
            kind: Literal["method", "baseline"] = "method" if name == self.name else "baseline"
            values = np.array([scores[i] for i in known], dtype=np.float64)
            false_rate, sensitivity, _ = roc_curve(truth, values)
            precision, recall, _ = precision_recall_curve(truth, values)
            curves.append(Curve(name, kind, "image", "roc", false_rate, sensitivity))
            curves.append(Curve(name, kind, "image", "pr", recall, precision))
        return curves

    def write(
        self,
        folder: Path,
        rows: Sequence[Mapping[str, Any]],
        failures: Sequence[Mapping[str, str]],
        drift: Mapping[str, Any] | None,
        show_patients: bool = False,
    ) -> dict[str, Any]:
        """Write ``report.html``, ``lesions.csv`` and, of an evaluation, ``metrics.json`` and ``metrics.csv``.

        Returns:
            The metrics; empty without ``evaluate``.
        """
        from monai_anomaly.writers import evaluation_json, write_csv, write_json, write_metrics_csv, write_report

        if self.map_threshold is None:
            (folder / "lesions.csv").unlink(missing_ok=True)
        else:
            write_csv(folder / "lesions.csv", self.lesion_rows, ["case", "patient", *LESION_COLUMNS])
        metrics = self.metrics(rows) if self.evaluate else {}
        evaluation = self.evaluation(rows, failures, drift, metrics or None)
        if self.evaluate:
            metrics["evaluation"] = evaluation_json(evaluation)
            write_json(folder / "metrics.json", metrics)
            write_metrics_csv(folder / "metrics.csv", evaluation)
        write_report(folder / "report.html", evaluation, show_patients=show_patients)
        return metrics


def _load_slice(path: Path) -> Any:
    return pickle.loads(path.read_bytes())
