"""The built-in demonstration cohort: the simulated brains of ``demo_brain``, as NIfTI files and DICOM series."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from monai_anomaly.exceptions import InputError
from monai_anomaly.io.atomic import atomic_folder, atomic_path

from .demo_brain import GROUPS, SIMULATION_VERSION, SimulatedScan, load_anatomy, simulate

__all__ = ["make_demo_cohort"]


def make_demo_cohort(
    folder: str | Path,
    *,
    seed: int = 0,
    num_training: int = 24,
    num_calibration: int = 28,
    num_normal_test: int = 24,
    num_abnormal_test: int = 24,
    num_workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Write a cohort of simulated T1-weighted brain scans and its MONAI datalist ``cohort.json``.

    Scans are int16 NIfTI files ``images/<patient>.nii.gz`` of 80 x 96 x 24 voxels (about 2 x 2 x 5.6 mm, oblique);
    a few are DICOM MR series ``dicom/<patient>/*.dcm`` instead. Abnormal scans have a uint8 mask
    ``masks/<patient>.nii.gz`` on the same grid. The datalist has the Decathlon form with the lists ``training``,
    ``calibration`` and ``test`` of items ``image`` (path relative to ``folder``), ``patient``, ``label`` (0 normal,
    1 abnormal) and, if abnormal, ``mask``; ``lesions`` names each abnormal patient's lesions (kind, radius in mm).

    A subject depends on ``seed`` and its place in its group alone: larger cohorts contain the smaller ones, and the
    number of workers changes nothing. A folder that holds the same cohort already is left as it is.

    Args:
        folder: where to write; made if absent.
        seed: seed of the whole cohort, not negative.
        num_training: number of normal scans to train on.
        num_calibration: number of normal scans to calibrate on.
        num_normal_test: number of normal scans to test on.
        num_abnormal_test: number of scans with lesions to test on.
        num_workers: number of processes; 1 works in this one. Default: 2, or 1 on a single-core machine.
        progress: whether to show a progress bar.

    Returns:
        Path of ``cohort.json``.

    Raises:
        InputError: on a negative number or seed, or if ``folder`` holds another cohort.
        ImportError: if nilearn is not installed.
    """
    folder = Path(folder)
    counts = {
        "training": num_training,
        "calibration": num_calibration,
        "normal_test": num_normal_test,
        "abnormal_test": num_abnormal_test,
    }
    workers = min(2, os.cpu_count() or 1) if num_workers is None else num_workers
    for name, value, least in [("seed", seed, 0), ("num_workers", workers, 1)] + [
        (f"num_{group}", count, 0) for group, count in counts.items()
    ]:
        if value < least:
            raise InputError(name, f"is {value}, which is below {least}", f"Give an integer of at least {least}.")

    datalist_path = folder / "cohort.json"
    parameters = {"simulation_version": SIMULATION_VERSION, "seed": seed} | {f"num_{g}": n for g, n in counts.items()}
    if _is_complete(datalist_path, parameters):
        return datalist_path

    for name in ("images", "masks", "dicom"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    load_anatomy()  # before any worker starts, which then inherits it where processes are forked
    work = partial(_write_subject, folder, seed)
    subjects = [(group, index) for group, count in counts.items() for index in range(count)]
    bar = partial(tqdm, total=len(subjects), desc="demo cohort", unit="scan", disable=not progress)
    if workers == 1:
        written = list(bar(map(work, subjects)))
    else:
        with ProcessPoolExecutor(workers) as pool:
            written = list(bar(pool.map(work, subjects)))

    datalist: dict[str, Any] = {
        "name": "monai-anomaly demonstration cohort",
        "description": "Simulated T1-weighted brain scans made from the MNI152 average; label 1 has lesions",
        "parameters": parameters,
        "lesions": {item["patient"]: lesions for item, lesions in written if lesions},
    }
    for section in ("training", "calibration", "test"):
        datalist[section] = [item for (group, _), (item, _) in zip(subjects, written) if GROUPS[group][0] == section]
    with atomic_path(datalist_path) as aside:
        aside.write_text(json.dumps(datalist, indent=2) + "\n", encoding="utf-8")
    return datalist_path


def _is_complete(datalist_path: Path, parameters: dict[str, int]) -> bool:
    """Whether the cohort of these parameters is there with all its files.

    Raises:
        InputError: if the folder holds another cohort or an unreadable datalist.
    """
    if not datalist_path.exists():
        return False
    try:
        found = json.loads(datalist_path.read_text())
        same = found["parameters"] == parameters
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(datalist_path, "is not a demonstration cohort's datalist", "Choose another folder.") from error
    if not same:
        raise InputError(
            datalist_path,
            f"was made with other parameters ({found['parameters']})",
            "Choose another folder, or remove this one.",
        )
    items = [item for section in ("training", "calibration", "test") for item in found[section]]
    return all(
        (datalist_path.parent / item[key]).exists() for item in items for key in ("image", "mask") if key in item
    )


def _write_subject(folder: Path, seed: int, subject: tuple[str, int]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Simulate and write one subject.

    Returns:
        Its item of the datalist, and the kind and radius of each of its lesions.
    """
    group, index = subject
    _, letter, label, as_dicom = GROUPS[group]
    patient = f"DEMO-{letter}{index:03d}"
    scan = simulate(seed, group, index)
    if index in as_dicom:
        image = f"dicom/{patient}"
        with atomic_folder(folder / image) as aside:
            _write_series(aside, scan, patient, seed)
    else:
        image = f"images/{patient}.nii.gz"
        _write_nifti(folder / image, scan.image, scan.affine)
    item: dict[str, Any] = {"image": image, "patient": patient, "label": label}
    if label:
        item["mask"] = f"masks/{patient}.nii.gz"
        _write_nifti(folder / item["mask"], scan.mask, scan.affine)
    return item, [{"kind": lesion.kind, "radius_mm": round(lesion.radius, 2)} for lesion in scan.lesions]


def _write_nifti(path: Path, voxels: NDArray[Any], affine: NDArray[np.float64]) -> None:
    import nibabel as nib

    image = nib.Nifti1Image(voxels, affine)
    image.set_qform(affine, code="scanner")
    image.set_sform(affine, code="scanner")
    image.header.set_xyzt_units("mm")
    # Without a time stamp, equal scans are equal files; level 1 as nibabel's own default.
    with atomic_path(path) as aside:
        aside.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))


def _write_series(folder: Path, scan: SimulatedScan, patient: str, seed: int) -> None:
    """Write a scan as a classic MR series of one file per slice (explicit little endian, PS3.3 A.4).

    Rows of a slice run along the second axis of the array and columns along the first; slices are numbered from
    inferior to superior, in the array's order.
    """
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
    from pydicom.valuerep import DSfloat

    def uid(*names: str | int) -> str:
        sources = ["monai-anomaly demo", SIMULATION_VERSION, seed, patient, *names]
        return generate_uid(entropy_srcs=[str(source) for source in sources])

    def decimals(values: Iterable[float]) -> list[DSfloat]:
        return [DSfloat(float(v), auto_format=True) for v in values]

    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ scan.affine
    columns, rows, slices = scan.image.shape
    top = float(np.percentile(scan.image, 99))
    for k in range(slices):
        ds = pydicom.Dataset()
        ds.file_meta = pydicom.dataset.FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SpecificCharacterSet = "ISO_IR 100"
        ds.ImageType = ["ORIGINAL", "PRIMARY", "OTHER"]
        ds.SOPClassUID, ds.SOPInstanceUID = MRImageStorage, uid("instance", k)
        ds.StudyInstanceUID, ds.SeriesInstanceUID = uid("study"), uid("series")
        ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = uid("frame"), ""
        ds.PatientID, ds.PatientName = patient, f"Simulated^{patient}"
        ds.PatientBirthDate = ds.PatientSex = ""
        ds.StudyDate = ds.StudyTime = ds.StudyID = ds.AccessionNumber = ds.ReferringPhysicianName = ""
        ds.Modality, ds.SeriesNumber, ds.InstanceNumber = "MR", 1, k + 1
        ds.SeriesDescription, ds.BodyPartExamined = "T1 axial, simulated", "HEAD"
        ds.Manufacturer, ds.PatientPosition = "monai-anomaly simulation", "HFS"
        ds.ScanningSequence, ds.SequenceVariant, ds.ScanOptions = "RM", "NONE", ""
        ds.MRAcquisitionType, ds.EchoTime, ds.EchoTrainLength, ds.RepetitionTime = "2D", None, None, None
        ds.ImageOrientationPatient = decimals([*(lps[:3, 0] / scan.spacing[0]), *(lps[:3, 1] / scan.spacing[1])])
        ds.ImagePositionPatient = decimals(lps[:3, 3] + k * lps[:3, 2])
        ds.PixelSpacing = decimals([scan.spacing[1], scan.spacing[0]])
        ds.SliceThickness, ds.SpacingBetweenSlices = decimals([scan.spacing[2]] * 2)
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.Rows, ds.Columns = rows, columns
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
        ds.WindowCenter, ds.WindowWidth = decimals([top / 2, top])
        ds.PixelData = np.ascontiguousarray(scan.image[:, :, k].T, dtype="<u2").tobytes()
        ds.save_as(folder / f"slice_{k + 1:03d}.dcm", enforce_file_format=True)
