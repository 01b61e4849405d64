"""From a detector's output to a scan's map, mask and files: the transforms of ``postprocessing``.

Each takes and returns a scan's dictionary (see ``CohortEvaluator``) and adds the keys that it names. They are listed in
the order of use; leave out what is not wanted.

MONAI's own evaluators and servers (MONAI Label, MONAI Deploy) have another dictionary: ``image``, what
``ScanPreprocessing`` made of the scan, and ``pred``, the map that the inferer gave for it, shape (1, H, W, S) or
(1, X, Y, Z). ``ToScanVoxelsd`` takes that too, and ``ToPredd`` puts the mask, or the map, back under ``pred``. Such a
dictionary has no score, no restoration and not the scan itself.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import SaveImaged, Transform
from monai.utils import convert_to_tensor
from torch import Tensor

from monai_anomaly.calibration import MaskCleanup, check_rate, least_normals
from monai_anomaly.data import ScanPreprocessing
from monai_anomaly.exceptions import InputError
from monai_anomaly.io.atomic import ensure_writable
from monai_anomaly.io.case import own_files, write_case
from monai_anomaly.io.reference_masks import load_mask
from monai_anomaly.networks import AnomalyDetector
from monai_anomaly.report.overview import draw_overview

from .inferer import StackInferer, foreground_of
from .run_folder import RUN_FILES

__all__ = [
    "CalibratedMapd",
    "CleanMaskd",
    "LoadReferenced",
    "MaskAboveThresholdd",
    "PValued",
    "RunBaselinesd",
    "SaveCased",
    "ToPredd",
    "ToScanVoxelsd",
]

logger = logging.getLogger(__name__)

Scan = dict[str, Any]


class LoadReferenced(Transform):
    """Add ``reference``, the true lesions: shape (X, Y, Z), bool; None where they are not known.

    A scan labelled normal that names no mask has no lesion.

    Args:
        resample: lay masks of another grid on the scan's (see ``load_mask``); False: reject them.
    """

    def __init__(self, resample: bool = False) -> None:
        self.resample = resample

    def __call__(self, data: Scan) -> Scan:
        item, scan = data["item"], data["scan"]
        reference = None
        if item.get("mask") is not None:
            reference = load_mask(item["mask"], scan, label=item.get("label"), resample=self.resample)
        elif item.get("label") == 0:
            reference = np.zeros(tuple(scan.shape[1:]), dtype=bool)
        return {**data, "reference": reference}


class ToScanVoxelsd(Transform):
    """Lay map and reconstruction on the voxels of the scan.

    ``anomaly_map`` becomes (X, Y, Z), float32, ``anomaly_map_grid`` keeps it as it was; ``restoration`` becomes
    (C, X, Y, Z) in the scan's unit: the scan, changed by what the detector changed, so that what the detector did not
    see stays as it is. ``reconstructs`` is whether the detector gave one. Of ``stack`` the trace alone stays, and the
    dictionary that is given loses what it has on the detector's grid: volumes are large. Of a dictionary with ``pred``,
    that becomes (1, X, Y, Z), a MetaTensor with the scan's affine.

    Args:
        preprocessing: of the scans.
    """

    def __init__(self, preprocessing: ScanPreprocessing) -> None:
        self.preprocessing = preprocessing

    def __call__(self, data: Scan) -> Scan:
        if "pred" in data:
            return self._of_pred(data)
        scan, on_grid, restored = data["scan"], data.pop("anomaly_map"), data.pop("restoration")
        restoration, reconstructs = scan.as_tensor(), restored is not None
        trace = self.preprocessing.trace(data["stack"])
        if restored is not None:
            change = restored.sub_(data.pop("stack").as_tensor())
            restoration = self.preprocessing.change_to_scan(change, trace).add_(scan.as_tensor())
            del change, restored
        data["stack"] = trace
        return {
            **data,
            "anomaly_map_grid": on_grid,
            "anomaly_map": self.preprocessing.to_scan(on_grid, trace)[0].numpy(),
            "restoration": restoration.numpy(),
            "reconstructs": reconstructs,
        }

    def _of_pred(self, data: Scan) -> Scan:
        stack = data["image"].cpu()
        on_grid = convert_to_tensor(data["pred"], dtype=torch.float32, device="cpu", track_meta=False)
        native = MetaTensor(self.preprocessing.to_scan(on_grid, stack), affine=stack.meta["original_affine"])
        return {
            **data,
            "stack": stack,
            "tissue": self.preprocessing.tissue(stack),
            "anomaly_map_grid": on_grid,
            "anomaly_map": native.as_tensor()[0].numpy(),
            "pred": native,
        }


class CalibratedMapd(Transform):
    """Add a further map on the scan's voxels to ``extra_maps``, by the name of its file; 0 where nothing was seen.

    Args:
        network: the detector, calibrated.
        preprocessing: of the scans.
        kind: ``"logp"``: ``anomaly_logp``, -log10 p against normal tissue (see ``TailTable``); ``"zscore"``:
            ``anomaly_zscore``, spreads above normals at the same place (see ``PlaceStatistics``); ``"none"``: no map.

    Raises:
        InputError: if the calibration has nothing to compare with.
        ValueError: for another kind.
    """

    def __init__(self, network: AnomalyDetector, preprocessing: ScanPreprocessing, kind: str = "none") -> None:
        tables = {"logp": network.calibration.tail.values, "zscore": network.calibration.places.mean}
        if kind != "none":
            if kind not in tables:
                raise ValueError(f"calibrated_map is 'none', 'logp' or 'zscore', got {kind!r}")
            if not tables[kind].numel():
                raise InputError(
                    f"calibrated_map {kind}",
                    "the detector's calibration has nothing to compare with",
                    "Calibrate it on two normal patients or more, or choose none.",
                )
        self.network, self.preprocessing, self.kind = network, preprocessing, kind

    def __call__(self, data: Scan) -> Scan:
        # on the detector's grid it is needed no more, and volumes are large
        on_grid: Tensor
        on_grid, data = data["anomaly_map_grid"], {k: v for k, v in data.items() if k != "anomaly_map_grid"}
        if self.kind == "none":
            return data
        calibration, native = self.network.calibration, data["anomaly_map"]
        n = int(calibration.scores.numel())
        if self.kind == "logp":
            logp = calibration.tail.log_p(torch.from_numpy(native)).cpu().numpy()
            logp[native == 0] = 0
            finest = -np.log10(float(calibration.tail.rates[-1]))
            made = (logp, f"-log10 p against normals' tissue voxels (n={n}), at most {finest:.3g}")
        else:
            z = calibration.places.z_score(on_grid, data["tissue"], self.network.spatial_dims == 3)
            native_z = self.preprocessing.to_scan(z, data["stack"])[0].numpy()
            made = (native_z, f"spreads above normals' map at the same place (n={n})")
        return {**data, "extra_maps": {**data.get("extra_maps", {}), f"anomaly_{self.kind}": made}}


class PValued(Transform):
    """Add ``p_value``, the score's conformal p-value in (0, 1]; None without calibration or score.

    Args:
        network: the detector.
    """

    def __init__(self, network: AnomalyDetector) -> None:
        self.network = network

    def __call__(self, data: Scan) -> Scan:
        score = data.get("anomaly_score")
        return {**data, "p_value": None if score is None else self.network.calibration.p_value(score)}


class MaskAboveThresholdd(Transform):
    """Add ``anomaly_mask``, bool of the map's shape, None without a threshold, and ``mask_settings``.

    The settings are ``rule``, ``alpha``, ``threshold`` (None without), ``no_mask`` (why there is none) and
    ``description`` (for the file's header).

    Args:
        network: the detector, on whose normal scans the threshold was calibrated.
        alpha: rate that the threshold is set for; None for no mask.
        rule: ``"family"``: at most ``alpha`` of normal patients have any flagged voxel; ``"voxel"``: about ``alpha``
            of normal tissue voxels are flagged.

    Raises:
        InputError: if the detector was calibrated on fewer patients than ``alpha`` needs (rule ``family``).
        ValueError: for an option out of range.
    """

    def __init__(self, network: AnomalyDetector, alpha: float | None = 0.05, rule: str = "family") -> None:
        if rule not in ("family", "voxel"):
            raise ValueError(f"mask_rule is 'family' or 'voxel', got {rule!r}")
        if isinstance(alpha, str) or alpha != alpha:
            raise ValueError(f"alpha is a rate between 0 and 1, got {alpha!r}")
        self.settings: dict[str, Any] = {"rule": rule, "alpha": alpha, "threshold": None, "no_mask": ""}
        calibration = network.calibration
        patients = int(calibration.scores.numel())
        if alpha is not None and rule == "voxel":
            self.settings["threshold"] = calibration.voxel_threshold(alpha)
        elif alpha is not None:
            # A detector that was never calibrated gives scores and maps, and says that it gives no more.
            if patients:
                check_rate(alpha, patients, "go without masks: alpha None, on a command line --alpha '$None'")
            self.settings["threshold"] = calibration.map_threshold(alpha)
        threshold = self.settings["threshold"]
        if threshold is None:
            self.settings["no_mask"] = _why_no_mask(network, alpha)
            # what was asked for is no warning
            level = logging.INFO if alpha is None else logging.WARNING
            logger.log(level, f"no masks: {self.settings['no_mask']}")
            return
        rate = f"{alpha:.4g}"
        of = f"any voxel in <= {rate} of normals" if rule == "family" else f"{rate} of normal tissue voxels"
        self.settings["description"] = f"map > {threshold:.5g}: {of} (n={patients})"

    def __call__(self, data: Scan) -> Scan:
        threshold = self.settings["threshold"]
        mask = None if threshold is None else data["anomaly_map"] > threshold
        return {**data, "anomaly_mask": mask, "mask_settings": self.settings}


def _why_no_mask(network: AnomalyDetector, alpha: float | None) -> str:
    if alpha is None:
        return "alpha is None: none are asked for"
    calibration = network.calibration
    if not calibration.scores.numel():
        needed = least_normals(alpha)
        return f"the detector is not calibrated; a rate of {alpha:g} needs {needed} normal patients"
    if not calibration.tail.rates.numel():
        return "the detector has no table of normal voxels, calibrate it again or take the mask_rule family"
    finest = float(calibration.tail.rates[-1])
    return f"the calibration voxels tell rates of {finest:.2g} and above, not {alpha}"


class CleanMaskd(Transform):
    """Clean ``anomaly_mask`` (see ``MaskCleanup``) and say so in ``mask_settings``; add ``foreground`` (X, Y, Z), bool.

    A dictionary without the scan gets no ``foreground``.

    Args:
        least_lesion_mm3: see ``MaskCleanup``; it keeps the rate.
        inside_foreground: see ``MaskCleanup``.

    Raises:
        InputError: if ``inside_foreground`` is asked for where the dictionary has no scan.
    """

    def __init__(self, least_lesion_mm3: float = 0.0, inside_foreground: bool = False) -> None:
        self.cleanup = MaskCleanup(least_lesion_mm3, inside_foreground)

    def __call__(self, data: Scan) -> Scan:
        cleanup, foreground = self.cleanup, None
        if "scan" in data:
            foreground = foreground_of(data["scan"], data.get("stack"))
            data = {**data, "foreground": foreground}
        elif cleanup.inside_foreground:
            problem = "needs the scan's own voxels, and this server or evaluator keeps only what the detector sees"
            raise InputError("inside_foreground", problem, "Set it to false.")
        if data["anomaly_mask"] is None:
            return data
        settings, on_voxels = data["mask_settings"], data["scan"] if "scan" in data else data["pred"]
        described = "; ".join(part for part in (settings["description"], cleanup.description) if part)
        return {
            **data,
            "anomaly_mask": cleanup(data["anomaly_mask"], on_voxels, foreground),
            "mask_settings": {
                **settings,
                "least_lesion_mm3": cleanup.least_lesion_mm3,
                "inside_foreground": cleanup.inside_foreground,
                # The header has room for 79 bytes.
                "description": described[:79],
            },
        }


class ToPredd(Transform):
    """Hand over the result as MONAI's evaluators and servers want it; a dictionary without ``pred`` stays as it is.

    ``pred`` becomes a MetaTensor (1, X, Y, Z) with the scan's affine: the mask, uint8, or where ``alpha`` is None the
    map. 2-D images are turned to the layout of MONAI's readers and writers, (1, columns, rows, 1), in which these
    write them as they are seen. ``result``, which MONAI Label sends beside the label, gets ``alpha``, ``threshold``,
    ``peak`` (the highest map value), ``peak_p_value`` (family-wise, None without calibration) and ``use``.

    Args:
        network: the detector.

    Raises:
        InputError: if a mask is asked for and the calibration has no threshold for it.
    """

    def __init__(self, network: AnomalyDetector) -> None:
        self.network = network

    def __call__(self, data: Scan) -> Scan:
        if "pred" not in data:
            return data
        settings, mask = data["mask_settings"], data["anomaly_mask"]
        if mask is None and settings["alpha"] is not None:
            remedy = "Calibrate on more normal scans, or ask for the map itself: alpha null."
            raise InputError(f"alpha {settings['alpha']:g}", settings["no_mask"], remedy)
        scores, image, affine = data["anomaly_map"], data["image"], data["pred"].affine
        found = torch.from_numpy(scores if mask is None else mask.astype(np.uint8))[None]
        if image.meta.get("scan_kind") == "image":
            found = found.transpose(1, 2).contiguous()
            image = image.clone()
            image.meta["spatial_shape"] = np.asarray(found.shape[1:])
        peak = float(scores.max())
        result = {
            "alpha": settings["alpha"],
            "threshold": settings["threshold"],
            "peak": peak,
            "peak_p_value": self.network.calibration.map_p_value(peak),
            "use": "Research use only, not for diagnosis.",
        }
        return {
            **data,
            "image": image,
            "pred": MetaTensor(found, affine=affine),
            "result": {**data.get("result", {}), **result},
        }


class RunBaselinesd(Transform):
    """Add ``baselines``: by name the map (X, Y, Z), float32, and the score of other detectors.

    It needs the ``stack``, and so stands before ``ToScanVoxelsd``.

    Args:
        baselines: by name, in eval mode.
        preprocessing: of the scans.
        inferer: how they are run.
    """

    def __init__(
        self,
        baselines: Mapping[str, AnomalyDetector],
        preprocessing: ScanPreprocessing,
        inferer: StackInferer | None = None,
    ) -> None:
        self.baselines = {name: network.eval() for name, network in baselines.items()}
        self.preprocessing, self.inferer = preprocessing, inferer or StackInferer()

    def __call__(self, data: Scan) -> Scan:
        found = {}
        if self.baselines and not data["stack"].numel():
            raise InputError("postprocessing", "RunBaselinesd stands behind ToScanVoxelsd", "List it before.")
        for name, network in self.baselines.items():
            output = self.inferer(data["stack"], network, data["tissue"])
            native = self.preprocessing.to_scan(output.anomaly_map, data["stack"])[0].numpy()
            found[name] = native, float(output.anomaly_score)
        return {**data, "baselines": found}


class SaveCased(SaveImaged):
    """Write the files of the scan into the folder of its case, whole or not at all (see ``write_case``).

    Where earlier transforms have put functions into ``case_files``, each writes files of its own into that folder.
    It is a ``SaveImaged`` in kind, so that MONAI's servers, which hand results over themselves, leave it out.

    Args:
        output_dir: gets a folder for each case.
        overview_slices: slices shown in ``overview.png``; 0 for no image.
        slice_axis: that of the image.

    Raises:
        InputError: if the folder cannot be written to.
        ValueError: for a negative number of slices.
    """

    def __init__(self, output_dir: str | Path, overview_slices: int = 4, slice_axis: str = "axial") -> None:
        if overview_slices < 0:
            raise ValueError(f"overview_slices is at least 0, got {overview_slices}")
        # naming the writer spares the search among those that are installed
        super().__init__("anomaly_map", writer="NibabelWriter")
        self.output_dir, self.overview_slices, self.slice_axis = Path(output_dir), overview_slices, slice_axis
        ensure_writable(self.output_dir)

    def __call__(self, data: Scan) -> Scan:
        case = data["item"]["case"]
        # of one part below output_dir, whoever made the item, and not in the way of the run's own files
        if case in ("", ".", "..", ".lock", *RUN_FILES) or case != Path(case).name or "\\" in case:
            raise InputError(f"case {case!r}", "cannot be a case's folder", "Give the scan another case name.")
        folder = self.output_dir / case
        if folder.exists() and not own_files(folder):
            raise InputError(
                folder, "exists and holds something else than a result", "Choose another output_dir for the results."
            )

        def also(case: Path) -> None:
            for write in data.get("case_files", ()):
                write(case)
            if not self.overview_slices:
                return
            draw_overview(
                case / "overview.png",
                data["scan"],
                data["restoration"],
                data["anomaly_map"],
                data.get("anomaly_mask"),
                slice_axis=self.slice_axis,
                reference_mask=data.get("reference"),
                num_slices=self.overview_slices,
                title=data["item"]["case"],
            )

        write_case(
            folder,
            data["scan"],
            anomaly_map=data["anomaly_map"],
            restoration=data["restoration"],
            anomaly_mask=data.get("anomaly_mask"),
            mask_description=data.get("mask_settings", {}).get("description", ""),
            extra_maps=data.get("extra_maps"),
            also=also,
        )
        return data
