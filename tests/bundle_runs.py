"""Making tiny scans, and running the bundle on them in this process or in one of its own."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Compose
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from scipy.spatial.transform import Rotation
from torch.utils.data import DataLoader

from monai_anomaly.data import ScanPreprocessing
from monai_anomaly.engines import (
    CalibratedMapd,
    CleanMaskd,
    CohortEvaluator,
    DriftHandler,
    LesionTableHandler,
    LoadReferenced,
    MaskAboveThresholdd,
    MetricsHandler,
    PredictionsHandler,
    PValued,
    ReportHandler,
    SaveCased,
    ToScanVoxelsd,
)
from monai_anomaly.exceptions import InputError
from monai_anomaly.metrics import FigureTable
from monai_anomaly.networks import AnomalyDetector

BUNDLES = Path(__file__).parents[1] / "bundles"
BUNDLE = BUNDLES / "proxyano"
CONFIGS = BUNDLE / "configs"
SHAPE = (24, 28, 4)
EMPTY_SLICE = 3
SMALL: dict[str, Any] = {
    "image_size": [32, 32],
    "network_def#channels": [4, 8, 8, 8],
    "discriminator#channels": 4,
    "proxy_epochs": 1,
    "max_epochs": 1,
    "num_workers": 1,
}


def head(seed: int, lesion: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Voxels of a smooth head, lesion mask, oblique affine; the last slice is empty."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE[:2]), indexing="ij")
    voxels, mask = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.uint8)
    inside = x**2 / 0.8 + y**2 / 0.7 < 1
    for z in range(EMPTY_SLICE):
        texture = 100 + 20 * np.sin(3 * x + z + rng.normal(0, 0.3)) + rng.normal(0, 2, SHAPE[:2])
        voxels[..., z] = np.round(inside * texture)
    if lesion:
        mask[9:14, 12:17, 1] = 1
        voxels[mask > 0] += 80
    affine = np.eye(4)
    turned = Rotation.from_euler("xyz", rng.normal(0, 0.1, 3)).as_matrix()
    affine[:3, :3] = turned @ np.diag([2.0, 2.0, 5.0])
    affine[:3, 3] = rng.normal(0, 20, 3)
    if seed % 2:  # stored in another order of the axes, one of them reversed
        order = [2, 0, 1]
        voxels, mask, affine = voxels.transpose(order), mask.transpose(order), affine[:, [*order, 3]]
        voxels, mask = voxels[:, ::-1], mask[:, ::-1]
        affine[:3, 3] += affine[:3, 1] * (voxels.shape[1] - 1)
        affine[:3, 1] *= -1
    return voxels, mask, affine


def write_nifti(path: Path, seed: int, mask_path: Path | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels, mask, affine = head(seed, mask_path is not None)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    if mask_path is not None:
        mask_path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(mask, affine), mask_path)
    return path


def write_dicom(folder: Path, seed: int, uid: str | None = None, start: int = 0) -> np.ndarray:
    """A series of even seed; returns its RAS affine."""
    folder.mkdir(parents=True, exist_ok=True)
    voxels, _, affine = head(seed)
    lps = np.diag([-1.0, -1, 1, 1]) @ affine
    uid = uid or generate_uid()
    for z in range(voxels.shape[2]):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = MRImageStorage
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.SeriesInstanceUID = uid
        dataset.Columns, dataset.Rows = voxels.shape[:2]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelRepresentation = 15, 0
        dataset.ImageOrientationPatient = [float(v) for v in np.round([*lps[:3, 0] / 2, *lps[:3, 1] / 2], 10)]
        dataset.ImagePositionPatient = [float(v) for v in np.round(lps[:3, 3] + z * lps[:3, 2], 8)]
        dataset.PixelSpacing = [2.0, 2.0]
        dataset.InstanceNumber = z + 1
        dataset.PixelData = voxels[..., z].T.astype(np.uint16).tobytes()
        dataset.save_as(folder / f"{start + z:03d}.dcm", enforce_file_format=True)
    return affine


def run_bundle(
    config: str | list[str], output: Path, dataset: Path | None = None, bundle: Path = BUNDLE, **options: Any
) -> None:
    """``monai.bundle.run`` in this process, with the bundle's config files by name or by path."""
    names = [config] if isinstance(config, str) else config
    files = [str(bundle / "configs" / f"{name}.yaml") if "/" not in name else name for name in names]
    if dataset is not None:
        options["dataset_dir"] = str(dataset)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*patients of .* scans are not known")
        warnings.filterwarnings("ignore", message="parsing config_file")
        monai.bundle.run(
            config_file=files, bundle_root=str(bundle), output_dir=str(output), logging_file=False, **options
        )


def cohort_evaluator(
    network: AnomalyDetector,
    preprocessing: ScanPreprocessing,
    loader: DataLoader,
    out: Path,
    *,
    alpha: float | None = 0.05,
    mask_rule: str = "family",
    least_lesion_mm3: float = 0.0,
    inside_foreground: bool = False,
    calibrated_map: str = "none",
    evaluate: bool = False,
    overview_slices: int = 0,
    report: bool = True,
    **options: Any,
) -> CohortEvaluator:
    """The evaluator of ``inference.yaml`` or ``evaluate.yaml``."""
    return CohortEvaluator(
        network,
        loader,
        postprocessing=Compose(
            [
                *([LoadReferenced()] if evaluate else []),
                ToScanVoxelsd(preprocessing),
                CalibratedMapd(network, preprocessing, calibrated_map),
                PValued(network),
                MaskAboveThresholdd(network, alpha, mask_rule),
                CleanMaskd(least_lesion_mm3, inside_foreground),
                SaveCased(out, overview_slices),
            ]
        ),
        val_handlers=[
            PredictionsHandler(out, network),
            LesionTableHandler(out, network),
            DriftHandler(out, network),
            *([MetricsHandler(out, network, alpha)] if evaluate else []),
            ReportHandler(out, network, alpha, write=report),
        ],
        progress=False,
        **options,
    )


def figures_of(folder: Path) -> FigureTable:
    """The table in an evaluation's ``metrics.json``."""
    return FigureTable(json.loads((folder / "metrics.json").read_text())["figures"])


def train_small(output: Path, dataset: Path, *override_configs: str, **options: Any) -> Path:
    run_bundle(["train", *override_configs], output, dataset, progress=False, **{**SMALL, **options})
    return output


def detect(trained: Path, output: Path, dataset: Path, config: str = "inference", **options: Any) -> Path:
    options = {"overview_slices": 0, "progress": False, **options}
    run_bundle(config, output, dataset, model_dir=str(trained / "models"), **options)
    return output


def refusal(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """The one line of the ``InputError`` that a call ends with, whatever MONAI wraps it in."""
    with pytest.raises(Exception) as caught:
        call(*args, **kwargs)
    cause: BaseException | None = caught.value
    while cause is not None and not isinstance(cause, InputError):
        cause = cause.__cause__ or cause.__context__
    assert cause is not None, f"no InputError behind {caught.value!r}"
    assert "\n" not in str(cause)
    return str(cause)


def command(*arguments: str | Path, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A Python command in a process of its own, started in ``folder``."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(BUNDLE.parents[1]),
            "PYTHONWARNINGS": "ignore",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=300,
    )


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
