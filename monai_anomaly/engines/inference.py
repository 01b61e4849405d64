"""From a trained detector to maps, masks and scores of a cohort, scan by scan."""

from __future__ import annotations

import itertools
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.engines.evaluator import Evaluator
from monai.inferers import Inferer
from torch import Tensor
from torch.utils.data import DataLoader

from monai_anomaly.calibration import (
    ConformalCalibration,
    MaskCleanup,
    PlaceSums,
    ScanTail,
    drift_report,
    least_normals,
    scan_facts,
)
from monai_anomaly.data.cohort import load_mask
from monai_anomaly.data.slices import ScanDataset, SliceDataset, describe_failure
from monai_anomaly.exceptions import InputError
from monai_anomaly.networks import AnomalyDetector, AnomalyOutput
from monai_anomaly.transforms import ScanPreprocessing, foreground_level

from .evaluation import EvaluationRecorder

__all__ = ["CohortEvaluator", "StackInferer", "calibrate", "fit_slice_statistics", "scan_loader"]

logger = logging.getLogger(__name__)


class StackInferer(Inferer):
    """Runs a detector over a stack of slices in batches; its memory does not grow with their number.

    A detector in three dimensions gets the volume whole, in one forward pass.

    Args:
        batch_size: slices in one forward pass.
        amp: mixed precision on a GPU.
    """

    def __init__(self, batch_size: int = 8, amp: bool = False) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {batch_size}")
        self.batch_size, self.amp = batch_size, amp

    @torch.no_grad()
    def __call__(self, inputs: Tensor, network: AnomalyDetector, tissue: Tensor | None = None) -> AnomalyOutput:
        """Detect.

        Args:
            inputs: shape (C, H, W, S), or (C, X, Y, Z) for a detector in three dimensions.
            network: the detector, in eval mode.
            tissue: shape (S,), bool: the slices to run; the others get a zero map and are their own restoration. A
                volume is run whole.

        Returns:
            Map (1, H, W, S), score (1,) and restoration (C, H, W, S), or None where the detector gives none. The score
            of a scan is that of its most anomalous slice (see ``SliceStatistics``), of a volume the detector's own.
        """
        device = _device(network)
        stack = inputs.as_tensor() if hasattr(inputs, "as_tensor") else inputs
        if components := network.components():
            together = network.combine([self(stack, component, tissue) for component in components])
            if network.spatial_dims == 2 and tissue is not None:
                together.anomaly_map[..., ~tissue] = 0
            return together
        restoration: Tensor | None = None
        if network.spatial_dims == 3:
            output = self._detect(network, stack[None].to(device))
            if output.restoration is not None:
                restoration = output.restoration[0].float().cpu()
            return AnomalyOutput(output.anomaly_map[0].float().cpu(), output.anomaly_score.float().cpu(), restoration)
        anomaly_map = stack.new_zeros((1, *stack.shape[1:]))
        chosen = torch.arange(stack.shape[-1]) if tissue is None else torch.nonzero(tissue).flatten()
        scores = []
        for index in chosen.split(self.batch_size):
            output = self._detect(network, stack[..., index].movedim(-1, 0).contiguous().to(device))
            anomaly_map[..., index] = output.anomaly_map.movedim(0, -1).float().cpu()
            if output.restoration is not None:
                restoration = stack.clone() if restoration is None else restoration
                restoration[..., index] = output.restoration.movedim(0, -1).float().cpu()
            scores.append(output.anomaly_score.float().cpu())
        return AnomalyOutput(anomaly_map, network.slice_statistics.volume_score(torch.cat(scores)), restoration)

    def _detect(self, network: AnomalyDetector, batch: Tensor) -> AnomalyOutput:
        with torch.autocast(batch.device.type, enabled=self.amp and batch.device.type == "cuda"):
            return network.detect(batch)


def scan_loader(
    data: Sequence[dict[str, Any]] | ScanDataset, preprocessing: ScanPreprocessing | None = None, num_workers: int = 0
) -> DataLoader:
    """Scans one by one, in order; a scan that cannot be read comes as its error.

    Args:
        data: the cohort's items, or a ``ScanDataset``.
        preprocessing: of the items.
        num_workers: processes that read ahead.
    """
    dataset = data if isinstance(data, ScanDataset) else ScanDataset(data, preprocessing)
    return DataLoader(dataset, batch_size=None, shuffle=False, num_workers=num_workers)


@dataclass
class _Gathered:
    """What the calibration normals gave, by patient."""

    items: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    maxima: dict[str, float] = field(default_factory=dict)
    tails: dict[str, list[ScanTail]] = field(default_factory=lambda: defaultdict(list))
    facts: dict[str, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))
    places: PlaceSums = field(default_factory=PlaceSums)
    failures: list[dict[str, str]] = field(default_factory=list)


def calibrate(
    network: AnomalyDetector,
    data: Sequence[dict[str, Any]],
    preprocessing: ScanPreprocessing,
    inferer: StackInferer | None = None,
    num_workers: int = 0,
    progress: bool = True,
) -> list[dict[str, str]]:
    """Fit ``network.calibration`` on held-out normals (see ``ConformalCalibration``).

    A detector with components has them calibrated first, on the same normals; each patient is then scored without its
    own part in the components' calibrations (see ``Ensemble``).

    Args:
        network: the trained detector, on the device to run on.
        data: the cohort's calibration items.
        preprocessing: as in training.
        inferer: how the detector is run.
        num_workers: processes that read ahead.
        progress: show a progress bar.

    Returns:
        The scans that could not be used, each ``{"case", "image", "error"}``.
    """
    return _calibrate(network, data, preprocessing, inferer or StackInferer(), num_workers, progress).failures


def _calibrate(
    network: AnomalyDetector,
    data: Sequence[dict[str, Any]],
    preprocessing: ScanPreprocessing,
    inferer: StackInferer,
    num_workers: int,
    progress: bool,
) -> _Gathered:
    from tqdm import tqdm

    network.eval()
    of_components = [
        (component, _calibrate(component, data, preprocessing, inferer, num_workers, progress))
        for component in network.components()
    ]
    gathered = _Gathered()
    scans = Counter(item["patient"] for item in data)
    loader = scan_loader(data, preprocessing, num_workers)
    for entry in tqdm(loader, total=len(data), desc="calibration", unit="scan", disable=not progress):
        item, patient = entry["item"], entry["item"]["patient"]
        problem = entry.get("error") or _misfit(entry, network)
        if problem is not None:
            gathered.failures.append({"case": item["case"], "image": str(item["image"]), "error": problem})
            continue
        stack, tissue = entry["stack"], entry["tissue"]
        with _left_out(of_components, patient):
            output = inferer(stack, network, tissue)
        native = preprocessing.to_scan(output.anomaly_map, stack)[0].numpy()
        foreground = _foreground(entry["scan"])
        gathered.items[patient].append(float(output.anomaly_score))
        gathered.maxima[patient] = max(gathered.maxima.get(patient, -np.inf), float(native.max()))
        gathered.tails[patient].append(ScanTail.of(native[foreground]))
        gathered.facts[patient].append(scan_facts(entry["scan"], foreground))
        gathered.places.add(output.anomaly_map, tissue, 1 / scans[patient], network.spatial_dims == 3)
    calibration = network.calibration
    calibration.fit({p: max(items) for p, items in gathered.items.items()}, gathered.maxima, gathered.items)
    calibration.tail.fit(gathered.tails)
    calibration.places.fit(gathered.places)
    calibration.facts.fit(gathered.facts)
    return gathered


@contextmanager
def _left_out(components: Sequence[tuple[AnomalyDetector, _Gathered]], patient: str) -> Iterator[None]:
    """Within, the components' calibrations are those of a new patient, for one that they were calibrated on."""
    kept = [component.calibration for component, _ in components]
    for component, gathered in components:
        full = component.calibration
        index = sorted(gathered.items).index(patient)
        # A score that no other reaches leaves the patient out of every count, and in the number of patients.
        own = full.item_patients == index
        left = ConformalCalibration().to(full.scores.device)
        left.fill(
            scores=full.scores,
            map_maxima=full.map_maxima,
            item_scores=full.item_scores.masked_fill(own, -torch.inf),
            item_patients=full.item_patients,
        )
        left.tail = full.tail.without(gathered.tails[patient], len(gathered.tails))
        component.calibration = left
    try:
        yield
    finally:
        for (component, _), calibration in zip(components, kept):
            component.calibration = calibration


def _foreground(scan: MetaTensor) -> np.ndarray:
    """Where a scan holds tissue, shape (X, Y, Z), bool: any channel above its level."""
    channels = scan.as_tensor()
    return np.any([(channel > foreground_level(channel)).numpy() for channel in channels], axis=0)


@torch.no_grad()
def fit_slice_statistics(
    network: AnomalyDetector, dataset: SliceDataset, batch_size: int = 8, progress: bool = True
) -> None:
    """Fit ``network.slice_statistics`` over the training normals.

    Args:
        network: the trained detector, on the device to run on.
        dataset: the training slices.
        batch_size: slices in one forward pass.
        progress: show a progress bar.
    """
    from tqdm import tqdm

    if network.spatial_dims == 3:
        return  # volumes are scored whole
    network.eval()
    device = _device(network)
    scans = []
    for images in tqdm(dataset.scans(), total=len(dataset.arrays), desc="normal slices", disable=not progress):
        parts = images.split(batch_size)
        scans.append(torch.cat([network.detect(part.to(device)).anomaly_score.float().cpu() for part in parts]))
    network.slice_statistics.fit(scans)


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
        alpha: error rate that the mask's threshold is set for.
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
        val_handlers: MONAI or ignite handlers.
        progress: show a progress bar.

    Raises:
        InputError: if there is no scan, one of them is a result of an earlier run, the output folder cannot be
            written to, or the detector's calibration has nothing for the ``calibrated_map`` asked for.
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
        alpha: float = 0.05,
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
        val_handlers: Sequence[Any] | None = None,
        progress: bool = True,
    ) -> None:
        from monai_anomaly.writers.atomic import ensure_writable

        if overview_slices < 0:
            raise ValueError(f"overview_slices is at least 0, got {overview_slices}")
        if mask_rule not in ("family", "voxel"):
            raise ValueError(f"mask_rule is 'family' or 'voxel', got {mask_rule!r}")
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
        calibration = network.calibration
        self.threshold = (
            calibration.map_threshold(alpha) if mask_rule == "family" else calibration.voxel_threshold(alpha)
        )
        self.cleanup = MaskCleanup(least_lesion_mm3, inside_foreground)
        self.facts: dict[str, list[np.ndarray]] = defaultdict(list)
        self.rows: list[dict[str, Any]] = []
        self.failures: list[dict[str, str]] = []
        self.resample_masks, self.show_patients, self.report = resample_masks, show_patients, report
        self.recorder = EvaluationRecorder(
            self.network,
            alpha,
            self.threshold,
            evaluate=evaluate,
            baselines={name: each.to(self.state.device) for name, each in (baselines or {}).items()},
            description=description,
            slice_axis=preprocessing.config["slice_axis"],
        )
        ensure_writable(self.output_dir)

    def run(self, global_epoch: int = 1) -> None:
        """Go through the cohort.

        Args:
            global_epoch: as in MONAI.
        """
        from tqdm import tqdm

        if self.threshold is None:
            logger.warning(f"no masks: {self._why_no_mask()}")
        self.network.eval()
        self._bar = tqdm(total=len(self.data_loader), desc="scans", unit="scan", disable=not self.progress)
        try:
            super().run(global_epoch)
        finally:
            self._bar.close()
            self._write_tables()
            self._write_drift()

    def _why_no_mask(self) -> str:
        calibration = self.network.calibration
        patients = int(calibration.scores.numel())
        if self.mask_rule == "family" or not patients:
            needed = least_normals(self.alpha)
            return f"the detector was calibrated on {patients} patient(s), a rate of {self.alpha} needs {needed}"
        if not calibration.tail.rates.numel():
            return "the detector has no table of normal voxels, calibrate it again or take the mask_rule family"
        finest = float(calibration.tail.rates[-1])
        return f"the calibration voxels tell rates of {finest:.2g} and above, not {self.alpha}"

    def _iteration(self, engine: Any, entry: dict[str, Any]) -> dict[str, Any]:
        item = entry["item"]
        output: dict[str, Any] = {}
        problem = entry.get("error") or _misfit(entry, self.network)
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
        from monai_anomaly.writers.case import write_case
        from monai_anomaly.writers.overview import draw_overview

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
        foreground = _foreground(scan)
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
        from monai_anomaly.writers.tables import write_csv

        highest = self._patient_scores()
        for row in self.rows:
            row["patient_p_value"] = self.network.calibration.patient_p_value(highest[row["patient"]])
        columns = ["case", "image", "patient", "label", "anomaly_score"]
        columns += ["p_value", "patient_p_value", "flagged", "threshold", "alpha"]
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
        from monai_anomaly.writers.tables import write_json

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


def _misfit(entry: dict[str, Any], network: AnomalyDetector) -> str | None:
    """Why a scan that was read is none for this detector."""
    if "stack" not in entry or entry["stack"].shape[0] == network.in_channels:
        return None
    problem = f"has {entry['stack'].shape[0]} channel(s), the detector takes {network.in_channels}"
    where = entry["item"]["image"]
    return str(InputError(where, problem, "Give scans of the kind that it was trained on."))


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


def _device(network: AnomalyDetector) -> torch.device:
    return next(itertools.chain(network.parameters(), network.buffers())).device


def _refuse_foreign(folder: Path) -> None:
    """A case's folder is replaced whole: never do that to one that holds anything else."""
    if folder.exists() and not any(folder.glob("anomaly_map.*")):
        raise InputError(
            folder, "exists and holds something else than a result", "Choose another output_dir for the results."
        )
