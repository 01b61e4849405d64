"""One scan through a trained detector, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor

from monai_anomaly.exceptions import InputError
from monai_anomaly.io.series import find_series

from .detector_files import DetectorFiles, load_detector
from .inferer import StackInferer
from .postprocessing import MaskAboveThresholdd, PValued, ToScanVoxelsd

__all__ = ["Prediction", "predict"]


class Prediction(NamedTuple):
    """What a detector finds in a scan; all tensors lie on the scan's voxels and have its affine and source.

    Attributes:
        anomaly_map: (1, X, Y, Z), larger is more anomalous.
        anomaly_mask: (1, X, Y, Z), bool, True where the map is above its threshold; None without one.
        restoration: (C, X, Y, Z), the pseudo-healthy image in the scan's unit; None where the detector gives none.
        anomaly_score: of the scan.
        p_value: of the score, in (0, 1]; None without calibration.
    """

    anomaly_map: MetaTensor
    anomaly_mask: MetaTensor | None
    restoration: MetaTensor | None
    anomaly_score: float
    p_value: float | None


def predict(
    detector: str | Path | DetectorFiles,
    image: str | Path | Sequence[str | Path],
    *,
    alpha: float | None = 0.05,
    mask_rule: str = "family",
    time_point: int | None = None,
    series: str | None = None,
    device: torch.device | str = "cpu",
) -> Prediction:
    """Detect anomalies in one scan.

    Args:
        detector: the ``output_dir`` of a training or its folder ``models``; for many scans what ``load_detector``
            gives, so that it is read once.
        image: a scan's file, the folder of a DICOM series, or a list of files that are its channels.
        alpha: rate of the mask (see ``MaskAboveThresholdd``); None for no mask.
        mask_rule: ``"family"`` or ``"voxel"``.
        time_point: which volume of a time series; with a loaded detector, give it to ``load_detector``.
        series: of a DICOM study with several series, the one with this UID or description; ``"auto"``: the only one
            that fits the detector. ``image`` is then the study's folder.
        device: where the detector runs.

    Returns:
        What was found.

    Raises:
        InputError: if the detector or the scan cannot be used, or the detector was calibrated on fewer patients than
            ``alpha`` needs.
        ValueError: for an option out of range.

    Example::

        found = predict("out", "scan.nii.gz")
        found.anomaly_score, found.p_value, found.anomaly_map.affine
    """
    if isinstance(detector, DetectorFiles):
        files = detector
    else:
        folder = Path(detector)
        files = load_detector(folder if (folder / "model.pt").is_file() else folder / "models", time_point)
    network, preprocessing = files.network.to(device).eval(), files.preprocessing
    images: str | list[str] = str(image) if isinstance(image, (str, Path)) else [str(path) for path in image]
    mask_of = MaskAboveThresholdd(network, alpha, mask_rule)
    if series is not None:
        found = find_series(Path(str(image)), series, files.series_fit)
        if len(found) > 1:
            raise InputError(Path(str(image)), f"holds {len(found)} studies", "Predict one at a time.")
        images, series = str(found[0].folder), found[0].uid
    scan = preprocessing.load(images, series)
    stack = preprocessing.stack(scan)
    if len(stack) != network.in_channels:
        problem = f"has {len(stack)} channel(s), the detector takes {network.in_channels}"
        raise InputError(scan.meta["source"][0], problem, "Give scans of the kind that it was trained on.")
    tissue = preprocessing.tissue(stack)
    output = StackInferer()(stack, network, tissue)
    data = {"scan": scan, "stack": stack, "tissue": tissue, **output._asdict()}
    data["anomaly_score"] = float(output.anomaly_score)
    for transform in (ToScanVoxelsd(preprocessing), PValued(network), mask_of):
        data = transform(data)

    def on_scan(array: np.ndarray) -> MetaTensor:
        return MetaTensor(torch.from_numpy(array), affine=scan.affine, meta=dict(scan.meta))

    mask = data["anomaly_mask"]
    return Prediction(
        on_scan(data["anomaly_map"][None]),
        None if mask is None else on_scan(mask[None]),
        on_scan(data["restoration"]) if data["reconstructs"] else None,
        data["anomaly_score"],
        data["p_value"],
    )
