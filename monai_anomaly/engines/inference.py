"""From a trained detector to maps, masks and scores of a cohort, scan by scan."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.engines.evaluator import Evaluator
from torch import Tensor
from torch.utils.data import DataLoader

from monai_anomaly.calibration import MaskCleanup, check_rate, drift_report, least_normals, scan_facts
from monai_anomaly.data import ScanPreprocessing
from monai_anomaly.data.slices import describe_failure
from monai_anomaly.exceptions import InputError
from monai_anomaly.io.atomic import ensure_writable
from monai_anomaly.io.case import write_case
from monai_anomaly.io.reference_masks import load_mask
from monai_anomaly.io.tables import write_csv, write_json
from monai_anomaly.networks import AnomalyDetector
from monai_anomaly.report.overview import draw_overview

from .evaluation import EvaluationRecorder
from .inferer import StackInferer, foreground_of, misfit

__all__ = ["CohortEvaluator", "raise_for_failures"]

logger = logging.getLogger(__name__)


class CohortEvaluator(Evaluator):
    """Scores a cohort, writes what each case gives, and, asked for, evaluates against labels and masks.

    One bad scan never stops the others: it is listed in ``failures.csv`` and makes ``finish`` exit with an error.

    Args:
        network: the detector, calibrated or not.
        preprocessing: as in training.
        val_data_loader: of a ``ScanDataset``.
        output_dir: where the cases go.
        device: where the detector runs.
        inferer: how it is run.
        alpha: error rate that the mask's threshold is set for, and the threshold of scores in the report; None for
            neither.
        mask_rule: ``"family"``: at most ``alpha`` of normal patients have any flagged voxel; ``"voxel"``: about
            ``alpha`` of normal tissue voxels are flagged.
        least_lesion_mm3: see ``MaskCleanup``; it keeps the rate.
        inside_foreground: see ``MaskCleanup``.
        calibrated_map: also write ``anomaly_logp`` (``"logp"``: -log10 p against normal tissue, see ``TailTable``) or
            ``anomaly_zscore`` (``"zscore"``: spreads above normals at the same place, see ``PlaceStatistics``);
            ``"none"``: the raw map alone.
        evaluate: also write ``metrics.json`` and ``metrics.csv``.
        overview_slices: slices shown in a case's ``overview.png``.
        baselines: see ``EvaluationRecorder``, as for the next.
        description: the content of ``detector.json``.
        resample_masks: lay reference masks of another grid on the scan's (see ``load_mask``); False: refuse them.
        show_patients: name patients in ``report.html``.
        report: write ``report.html``.
        other_seeds: ``output_dir`` of earlier evaluations of the same cohort, by detectors that differ in the training
            seed alone: mean and spread over the seeds are told.
        val_handlers: MONAI or ignite handlers.
        progress: show a progress bar.

    Raises:
        InputError: if there is no scan, one of them is a result of an earlier run, the output folder cannot be
            written to, the detector was calibrated on fewer patients than ``alpha`` needs (``mask_rule`` family), or
            its calibration has nothing for the ``calibrated_map`` asked for.
        ValueError: for an option out of range.
    """

    def __init__(
        self,
        network: AnomalyDetector,
        preprocessing: ScanPreprocessing,
        val_data_loader: DataLoader,
        output_dir: str | Path,
        device: torch.device | str = "cpu",
        inferer: StackInferer | None = None,
        alpha: float | None = 0.05,
        mask_rule: str = "family",
        least_lesion_mm3: float = 0.0,
        inside_foreground: bool = False,
        calibrated_map: str = "none",
        evaluate: bool = False,
        overview_slices: int = 4,
        baselines: dict[str, AnomalyDetector] | None = None,
        description: dict[str, Any] | None = None,
        resample_masks: bool = False,
        show_patients: bool = False,
        report: bool = True,
        other_seeds: Sequence[str | Path] | None = None,
        val_handlers: Sequence[Any] | None = None,
        progress: bool = True,
    ) -> None:
        if overview_slices < 0:
            raise ValueError(f"overview_slices is at least 0, got {overview_slices}")
        if mask_rule not in ("family", "voxel"):
            raise ValueError(f"mask_rule is 'family' or 'voxel', got {mask_rule!r}")
        if isinstance(alpha, str) or alpha != alpha:
            raise ValueError(f"alpha is a rate between 0 and 1, got {alpha!r}")
        _check_calibrated_map(network, calibrated_map)
        super().__init__(
            device=device, val_data_loader=val_data_loader, val_handlers=val_handlers, mode="eval", decollate=False
        )
        if not len(val_data_loader):
            raise InputError(output_dir, "the cohort has no scan to read", "Give a folder, a file or a datalist.")
        _refuse_results(getattr(val_data_loader.dataset, "data", []))
        self.network = network.to(self.state.device)
        self.preprocessing = preprocessing
        self.output_dir = Path(output_dir)
        self.inferer = inferer or StackInferer()
        self.alpha, self.evaluate, self.overview_slices = alpha, evaluate, overview_slices
        self.progress = progress
        self.mask_rule, self.calibrated_map = mask_rule, calibrated_map
        self.threshold = self._mask_threshold()
        self.cleanup = MaskCleanup(least_lesion_mm3, inside_foreground)
        self.facts: dict[str, list[np.ndarray]] = defaultdict(list)
        self.rows: list[dict[str, Any]] = []
        self.failures: list[dict[str, str]] = []
        self.resample_masks, self.show_patients, self.report = resample_masks, show_patients, report
        self.recorder = EvaluationRecorder(
            self.network,
            alpha,
            self.threshold,
            mask_rule=mask_rule,
            cleanup=self.cleanup,
            evaluate=evaluate,
            baselines={name: each.to(self.state.device) for name, each in (baselines or {}).items()},
            description=description,
            slice_axis=preprocessing.config["slice_axis"],
            other_seeds=other_seeds or (),
        )
        ensure_writable(self.output_dir)

    def run(self, global_epoch: int = 1) -> None:
        """Go through the cohort.

        Args:
            global_epoch: as in MONAI.
        """
        from tqdm import tqdm

        if self.threshold is None:
            # what was asked for is no warning
            logger.log(logging.INFO if self.alpha is None else logging.WARNING, f"no masks: {self.why_no_mask}")
        self.network.eval()
        self._bar = tqdm(total=len(self.data_loader), desc="scans", unit="scan", disable=not self.progress)
        try:
            super().run(global_epoch)
        finally:
            self._bar.close()
            self._write_tables()
            self._write_drift()

    def _mask_threshold(self) -> float | None:
        if self.alpha is None:
            return None
        calibration = self.network.calibration
        if self.mask_rule == "voxel":
            return calibration.voxel_threshold(self.alpha)
        # A detector that was never calibrated gives scores and maps, and says that it gives no more.
        if patients := int(calibration.scores.numel()):
            check_rate(self.alpha, patients, "go without masks: alpha None, on a command line --alpha '$None'")
        return calibration.map_threshold(self.alpha)

    @property
    def why_no_mask(self) -> str:
        """The reason why there are no masks; empty where there are."""
        if self.threshold is not None:
            return ""
        if self.alpha is None:
            return "alpha is None: none are asked for"
        calibration = self.network.calibration
        if not calibration.scores.numel():
            needed = least_normals(self.alpha)
            return f"the detector is not calibrated; a rate of {self.alpha:g} needs {needed} normal patients"
        if not calibration.tail.rates.numel():
            return "the detector has no table of normal voxels, calibrate it again or take the mask_rule family"
        finest = float(calibration.tail.rates[-1])
        return f"the calibration voxels tell rates of {finest:.2g} and above, not {self.alpha}"

    def _iteration(self, engine: Any, entry: dict[str, Any]) -> dict[str, Any]:
        item = entry["item"]
        output: dict[str, Any] = {}
        problem = entry.get("error") or misfit(entry, self.network)
        if problem is None:
            try:
                output = self._score(entry)
            except Exception as error:
                # One bad scan must not stop the others; it is reported at the end.
                problem = describe_failure(error)
        if problem is not None:
            self.failures.append({"case": item["case"], "image": str(item["image"]), "error": problem})
            logger.error(f"{item['case']} failed: {problem}")
        if len(self.rows) % 20 == 0:
            self._write_tables()
        self._bar.update()
        return output

    def _score(self, entry: dict[str, Any]) -> dict[str, Any]:
        item, scan, stack = entry["item"], entry["scan"], entry["stack"]
        reference = None
        if self.evaluate and item.get("mask") is not None:
            reference = load_mask(item["mask"], scan, label=item.get("label"), resample=self.resample_masks)
        output = self.inferer(stack, self.network, entry["tissue"])
        anomaly_map = self.preprocessing.to_scan(output.anomaly_map, stack)[0].numpy()
        restoration = self._restoration(scan, stack, output.restoration)
        score = float(output.anomaly_score)
        extra_maps = self._extra_maps(output.anomaly_map, anomaly_map, entry)
        restored = output.restoration is not None
        del output  # what is on the scan's voxels now is not kept on the slices' too
        foreground = foreground_of(scan)
        mask = None if self.threshold is None else self.cleanup(anomaly_map > self.threshold, scan, foreground)
        folder = self.output_dir / item["case"]
        _refuse_foreign(folder)

        def overview(case: Path) -> None:
            draw_overview(
                case / "overview.png",
                scan,
                restoration,
                anomaly_map,
                mask,
                slice_axis=self.preprocessing.config["slice_axis"],
                reference_mask=reference,
                num_slices=self.overview_slices,
                title=item["case"],
            )

        write_case(
            folder,
            scan,
            anomaly_map=anomaly_map,
            restoration=restoration,
            anomaly_mask=mask,
            mask_description=self.mask_description,
            extra_maps=extra_maps,
            also=overview if self.overview_slices else None,
        )
        if self.evaluate and reference is None and item.get("label") == 0:
            reference = np.zeros(anomaly_map.shape, dtype=bool)
        image = item["image"] if isinstance(item["image"], str) else ";".join(item["image"])
        row = {
            "case": item["case"],
            "image": image,
            "patient": item["patient"],
            "label": item.get("label"),
            "anomaly_score": score,
            "p_value": self.network.calibration.p_value(score),
            "patient_p_value": None,  # known once all scans of the patient are
            "flagged": None if mask is None else int(mask.any()),
            "threshold": self.threshold,
            "alpha": None if mask is None else self.alpha,
            "no_mask": self.why_no_mask or None,
        }
        facts = scan_facts(scan, foreground)
        self.recorder.add(
            item,
            scan,
            anomaly_map=anomaly_map,
            mask=mask,
            reference=reference,
            restoration=restoration if restored else None,
            baselines={name: self._baseline(each, entry) for name, each in self.recorder.baselines.items()},
        )
        self.rows.append(row)
        self.facts[item["patient"]].append(facts)
        return {"case": item["case"], "anomaly_score": score}

    def _baseline(self, network: AnomalyDetector, entry: dict[str, Any]) -> tuple[np.ndarray, float]:
        output = self.inferer(entry["stack"], network, entry["tissue"])
        return self.preprocessing.to_scan(output.anomaly_map, entry["stack"])[0].numpy(), float(output.anomaly_score)

    def _extra_maps(
        self, on_grid: Tensor, native: np.ndarray, entry: dict[str, Any]
    ) -> dict[str, tuple[np.ndarray, str]] | None:
        """The calibrated map asked for, on the scan's voxels; 0 where the detector saw nothing."""
        calibration, stack = self.network.calibration, entry["stack"]
        n = int(calibration.scores.numel())
        if self.calibrated_map == "logp":
            logp = calibration.tail.log_p(torch.from_numpy(native)).cpu().numpy()
            logp[native == 0] = 0
            finest = -np.log10(float(calibration.tail.rates[-1]))
            return {"anomaly_logp": (logp, f"-log10 p against normals' tissue voxels (n={n}), at most {finest:.3g}")}
        if self.calibrated_map == "zscore":
            z = calibration.places.z_score(on_grid, entry["tissue"], self.network.spatial_dims == 3)
            native_z = self.preprocessing.to_scan(z, stack)[0].numpy()
            return {"anomaly_zscore": (native_z, f"spreads above normals' map at the same place (n={n})")}
        return None

    def _restoration(self, scan: MetaTensor, stack: MetaTensor, restored: Tensor | None) -> np.ndarray:
        """The scan, changed by what the detector changed: what it did not see stays as it is."""
        if restored is None:
            return scan.as_tensor().numpy()
        change = self.preprocessing.change_to_scan(restored - stack.as_tensor(), stack)
        return change.add_(scan.as_tensor()).numpy()

    @property
    def mask_description(self) -> str:
        """What a mask's header says of it."""
        if self.threshold is None:
            return ""
        n = int(self.network.calibration.scores.numel())
        rate = f"{self.alpha:.4g}"
        of = f"any voxel in <= {rate} of normals" if self.mask_rule == "family" else f"{rate} of normal tissue voxels"
        text = f"map > {self.threshold:.5g}: {of} (n={n})"
        # The header has room for 79 bytes.
        return "; ".join(part for part in (text, self.cleanup.description) if part)[:79]

    def _write_tables(self) -> None:
        highest = self._patient_scores()
        for row in self.rows:
            row["patient_p_value"] = self.network.calibration.patient_p_value(highest[row["patient"]])
        columns = ["case", "image", "patient", "label", "anomaly_score"]
        columns += ["p_value", "patient_p_value", "flagged", "threshold", "alpha", "no_mask"]
        write_csv(self.output_dir / "predictions.csv", self.rows, columns)
        if self.failures:
            write_csv(self.output_dir / "failures.csv", self.failures, ["case", "image", "error"])
        else:
            (self.output_dir / "failures.csv").unlink(missing_ok=True)

    def _patient_scores(self) -> dict[str, float]:
        """Per patient the highest score of its scans so far."""
        highest: dict[str, float] = {}
        for row in self.rows:
            highest[row["patient"]] = max(highest.get(row["patient"], -np.inf), row["anomaly_score"])
        return highest

    def drift(self) -> dict[str, Any] | None:
        """How the scans so far compare with the calibration patients' (see ``drift_report``); None without either."""
        calibration = self.network.calibration
        if not self.rows or not calibration.scores.numel():
            return None
        labels: dict[str, set[int | None]] = defaultdict(set)
        for row in self.rows:
            labels[row["patient"]].add(row["label"])
        known = any(label is not None for found in labels.values() for label in found)
        normals = [patient for patient, found in labels.items() if found == {0}] if known else None
        return drift_report(calibration.scores, calibration.facts.values, self._patient_scores(), self.facts, normals)

    def _write_drift(self) -> None:
        report = self.drift()
        if report is None:
            (self.output_dir / "drift.json").unlink(missing_ok=True)
            return
        write_json(self.output_dir / "drift.json", report)
        if report["drift"]:
            logger.warning(report["statement"])

    def metrics(self) -> dict[str, Any]:
        """The metrics of the scans so far (see ``EvaluationRecorder.metrics``); undefined ones are None."""
        return self.recorder.metrics(self.rows)

    def finish(self) -> dict[str, Any]:
        """Write the report and the tables, the metrics where asked for, and end with an error where scans failed.

        Returns:
            The metrics, empty without ``evaluate``.

        Raises:
            SystemExit: if a scan failed; the message lists them.
        """
        metrics = self.recorder.write(
            self.output_dir, self.rows, self.failures, self.drift(), self.show_patients, self.report
        )
        logger.info(f"{len(self.rows)} scan(s) written to {self.output_dir}")
        raise_for_failures(self.failures, self.output_dir / "failures.csv")
        return metrics


def raise_for_failures(failures: Sequence[dict[str, str]], listed: Path) -> None:
    """End the program with an error where scans failed.

    Args:
        failures: each ``{"case", "image", "error"}``.
        listed: the file that lists them too.

    Raises:
        SystemExit: with one line per failed scan.
    """
    if failures:
        lines = "\n".join(f"  {failure['case']}: {failure['error']}" for failure in failures)
        raise SystemExit(f"{len(failures)} scan(s) could not be used (also in {listed}):\n{lines}")


def _check_calibrated_map(network: AnomalyDetector, calibrated_map: str) -> None:
    tables = {"logp": network.calibration.tail.values, "zscore": network.calibration.places.mean}
    if calibrated_map == "none":
        return
    if calibrated_map not in tables:
        raise ValueError(f"calibrated_map is 'none', 'logp' or 'zscore', got {calibrated_map!r}")
    if not tables[calibrated_map].numel():
        raise InputError(
            f"calibrated_map {calibrated_map}",
            "the detector's calibration has nothing to compare with",
            "Calibrate it on two normal patients or more, or choose none.",
        )


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


def _refuse_foreign(folder: Path) -> None:
    """A case's folder is replaced whole: never do that to one that holds anything else."""
    if folder.exists() and not any(folder.glob("anomaly_map.*")):
        raise InputError(
            folder, "exists and holds something else than a result", "Choose another output_dir for the results."
        )
