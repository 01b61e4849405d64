"""Small good files of every kind that is read, and damaged or hostile versions of them."""

from __future__ import annotations

import gzip
import io
import json
import math
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from monai_anomaly.data import ScanPreprocessing, load_cohort
from monai_anomaly.engines import check_unseen, load_detector, save_detector
from monai_anomaly.engines.run_settings import run_settings
from monai_anomaly.io.content import shown_digest
from monai_anomaly.io.load import LoadScan
from monai_anomaly.networks import IntensityThreshold, ProxyAno

Rng = np.random.Generator
SHAPE = (6, 7, 5)

# What numbers of a header are overwritten with.
_NUMBERS = [
    *(struct.pack("<h", value) for value in (0, 1, -1, 32767, -32768)),
    *(struct.pack("<i", value) for value in (0, 1, -1, 2**31 - 1, -(2**31), 1 << 20)),
    *(struct.pack("<f", value) for value in (0.0, -1.0, 1e30, -1e30, 1e-38, math.inf, -math.inf, math.nan)),
    *(struct.pack("<d", value) for value in (1e300, math.inf, math.nan)),
    b"\0" * 16,
    b"\xff" * 16,
]
# What elements of DICOM and fields of text are overwritten with.
_TEXTS = [
    "",
    "1A",
    "-1",
    "0",
    "1e999",
    "nan",
    "inf",
    "-inf",
    "1e30",
    "99999999999",
    "\\",
    "1\\2\\3",
    "x" * 70,
    "é\0",
    "1\\",
]
_VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1e308,
    10**9,
    10**40,
    "",
    ".",
    "..",
    "../x",
    "/dev/zero",
    "a\0b",
    "\ud800",
    "\x1b[2J",
]
_VALUES += [[], {}, [[]], [None], {"image": None}, "report.html", "=1+1", "x" * 300]


def voxels() -> np.ndarray:
    """int16, smooth enough that gzip packs them."""
    x, y, z = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    return (10 * x + y * z + 3).astype(np.int16)


def mutate(content: bytes, rng: Rng, header: int = 400) -> bytes:
    """Bytes with a few flips, numbers, cuts, repeats; half of them among the first ``header`` bytes."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        end = max(1, min(len(data), header) if rng.random() < 0.7 else len(data))
        place, kind = int(rng.integers(end)), rng.random()
        if kind < 0.3:
            data[place : place + 1] = bytes([data[place] ^ (1 << int(rng.integers(8)))]) if data else b"\0"
        elif kind < 0.8:
            number = _NUMBERS[int(rng.integers(len(_NUMBERS)))]
            place -= place % 2
            data[place : place + len(number)] = number
        elif kind < 0.87:
            del data[place:]
        elif kind < 0.94:
            data[place:place] = data[place : place + int(rng.integers(1, 64))]
        else:
            data += bytes(int(rng.integers(1, 64)))
    return bytes(data)


def _nifti() -> bytes:
    import nibabel as nib

    image = nib.Nifti1Image(voxels(), np.diag([-2.0, 2, 3, 1]))
    image.header.set_slope_inter(2, -1)
    return image.to_bytes()


def nii(folder: Path, rng: Rng) -> Path:
    """A NIfTI file."""
    return _written(folder / "a.nii", mutate(_nifti(), rng))


def nii_gz(folder: Path, rng: Rng) -> Path:
    """A packed NIfTI file, damaged before or after it was packed."""
    whole = _nifti()
    inside = rng.random() < 0.7
    packed = gzip.compress(mutate(whole, rng) if inside else whole, mtime=0)
    return _written(folder / "a.nii.gz", packed if inside else mutate(packed, rng, 20))


def mgh(folder: Path, rng: Rng) -> Path:
    """A FreeSurfer volume."""
    import nibabel as nib

    content = mutate(nib.MGHImage(voxels(), np.diag([-2.0, 2, 3, 1])).to_bytes(), rng, 100)
    if rng.random() < 0.5:
        return _written(folder / "a.mgz", gzip.compress(content, mtime=0))
    return _written(folder / "a.mgh", content)


def itk_volume(folder: Path, rng: Rng) -> Path:
    """An NRRD or MetaImage volume."""
    import itk

    suffix = ("nrrd", "mha")[int(rng.integers(2))]
    path = folder / f"a.{suffix}"
    itk.imwrite(itk.image_from_array(np.ascontiguousarray(voxels())), str(path), compression=bool(rng.integers(2)))
    content = path.read_bytes()
    if rng.random() < 0.5:  # a word of the header
        words = content[:400].split(b" ")
        words[int(rng.integers(len(words)))] = _TEXTS[int(rng.integers(len(_TEXTS)))].encode()
        return _written(path, b" ".join(words) + content[400:])
    return _written(path, mutate(content, rng))


def _dicom(plane: np.ndarray, index: int, compressed: str | None = None) -> Any:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = MRImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.{index + 1}"
    dataset.SeriesInstanceUID, dataset.Modality, dataset.PatientName = "1.2.3", "MR", "Doe^Jane"
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = *plane.shape[-2:], len(plane) if plane.ndim > 2 else 1
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.ImageOrientationPatient, dataset.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 3 * index]
    dataset.PixelSpacing, dataset.SliceThickness, dataset.InstanceNumber = [2, 2], 3, index + 1
    dataset.RescaleSlope, dataset.RescaleIntercept = 2, -1
    dataset.AcquisitionNumber, dataset.EchoTime, dataset.ImageType = 1, 5, ["ORIGINAL", "PRIMARY"]
    dataset.PixelData = plane.astype(np.uint16).tobytes()
    if compressed is not None:
        dataset.compress(compressed)
    return dataset


def _dicom_bytes(dataset: Any) -> bytes:
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def _dicom_damaged(rng: Rng, index: int) -> bytes:
    """The bytes of a slice, or one of its elements, overwritten."""
    from pydicom.uid import JPEG2000Lossless, RLELossless

    plane = voxels()[..., index].T
    compressed = (None, None, None, RLELossless, JPEG2000Lossless)[int(rng.integers(5))] if index == 0 else None
    if compressed == JPEG2000Lossless:  # which packs no image of a few pixels
        plane = plane.repeat(10, axis=0).repeat(10, axis=1)
    dataset = _dicom(np.stack([plane, plane + 1]) if rng.random() < 0.2 else plane, index, compressed)
    if rng.random() < 0.4:
        return mutate(_dicom_bytes(dataset), rng, 900)
    element = list(dataset)[int(rng.integers(len(list(dataset))))]
    content = _dicom_bytes(dataset)
    # explicit little endian: tag, two letters, two or four bytes of length, value
    tag = struct.pack("<HH", element.tag.group, element.tag.element)
    place = content.find(tag + element.VR.encode(), 132)
    long = element.VR in ("OB", "OW", "SQ", "UN", "UT")
    start = place + (12 if long else 8)
    length = struct.unpack("<I" if long else "<H", content[start - (4 if long else 2) : start])[0]
    if element.VR in ("US", "SS", "UL"):
        value = _NUMBERS[int(rng.integers(10))][: max(length, 2)].ljust(length, b"\0")
    else:
        value = _TEXTS[int(rng.integers(len(_TEXTS)))].encode()
        value += b" " * (len(value) % 2)
    if long:
        return mutate(content, rng, start)
    return content[: start - 2] + struct.pack("<H", len(value)) + value + content[start + length :]


def dicom(folder: Path, rng: Rng) -> Path:
    """A DICOM file."""
    return _written(folder / "a.dcm", _dicom_damaged(rng, 0))


def dicom_series(folder: Path, rng: Rng) -> Path:
    """A folder of a series, one slice of which is damaged."""
    series = folder / "series"
    series.mkdir()
    for index in range(SHAPE[2]):
        _written(series / f"{index}.dcm", _dicom_bytes(_dicom(voxels()[..., index].T, index)))
    index = int(rng.integers(SHAPE[2]))
    _written(series / f"{index}.dcm", _dicom_damaged(rng, index))
    return series


def picture(folder: Path, rng: Rng) -> Path:
    """A PNG, TIFF, JPEG or BMP image, gray or colour, of 8 or 16 bits."""
    import tifffile
    from PIL import Image

    gray = np.add.outer(np.arange(12), 9 * np.arange(14)).astype(np.uint8)
    colour = np.stack([gray, gray + 1, 255 - gray], axis=-1)
    kind = ("png", "png16", "tiff", "tiff16", "jpeg", "bmp")[int(rng.integers(6))]
    path = folder / f"a.{kind.removesuffix('16')}"
    if kind == "tiff16":
        packing = (None, "zlib")[int(rng.integers(2))]
        tifffile.imwrite(path, colour.astype(np.uint16) * 257, photometric="rgb", compression=packing)
    elif kind == "png16":
        _write_png16(path, colour.astype(np.uint16) * 257)
    else:
        Image.fromarray(gray if rng.random() < 0.5 else colour).save(path)
    content = mutate(path.read_bytes(), rng, 200)
    return _written(path, _with_checksums(content) if path.suffix == ".png" and rng.random() < 0.7 else content)


def _write_png16(path: Path, colour: np.ndarray) -> None:
    rows, columns, _ = colour.shape
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colour)
    header = struct.pack(">IIBBBBB", columns, rows, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    content = b"".join(struct.pack(">I", len(data)) + kind + data + bytes(4) for kind, data in chunks)
    _written(path, _with_checksums(b"\x89PNG\r\n\x1a\n" + content))


def _with_checksums(content: bytes) -> bytes:
    """A PNG whose chunks have the right checksums, so that decoders look at what is in them."""
    place, data = 8, bytearray(content)
    while place + 12 <= len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        if place + 12 + length > len(data):
            break
        data[place + 8 + length : place + 12 + length] = struct.pack(
            ">I", zlib.crc32(data[place + 4 : place + 8 + length])
        )
        place += 12 + length
    return bytes(data)


def datalist(folder: Path, rng: Rng) -> Path:
    """A datalist of two scans with one value, key or byte replaced."""
    for index in range(2):
        _written(folder / f"s{index}.nii", _nifti()[:-1] + bytes([index]))
    items = [
        {"image": f"s{index}.nii", "patient": f"p{index}", "case": f"c{index}", "label": 0, "site": "x"}
        for index in range(2)
    ]
    content = {"name": "x", "training": items[:1], "test": items[1:]}
    text = json.dumps(content if rng.random() < 0.2 else _replaced(content, rng))
    return _written(folder / "list.json", mutate(text.encode(), rng) if rng.random() < 0.3 else text.encode())


def _replaced(content: Any, rng: Rng) -> Any:
    """Nested lists and mappings with one value, somewhere, replaced."""
    if isinstance(content, dict | list) and content and rng.random() < 0.85:
        keys = list(content) if isinstance(content, dict) else list(range(len(content)))
        key = keys[int(rng.integers(len(keys)))]
        changed = dict(content) if isinstance(content, dict) else list(content)
        changed[key] = _replaced(content[key], rng)
        return changed
    return _VALUES[int(rng.integers(len(_VALUES)))]


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def detector(folder: Path, rng: Rng) -> Path:
    """A detector, a value of its description or bytes of either file replaced."""
    network = IntensityThreshold() if rng.random() < 0.2 else ProxyAno(channels=(2, 4), latent_channels=2, num_items=2)
    side = {"scans": 1, "patients": 1, "digests": ["0" * 64]}
    sides = dict.fromkeys(("training", "validation", "calibration"), side)
    stages = [{"batch_size": 2, "optimizers": {"network": {"lr": 1e-3}}}]
    facts = {"seed": 0, "stages": stages, "split": {"by": "patient", "sides": sides}}
    save_detector(folder, network, ScanPreprocessing((32, 32)), facts)
    if rng.random() < 0.2:
        _written(folder / "model.pt", mutate((folder / "model.pt").read_bytes(), rng))
        return folder
    path = folder / "detector.json"
    changed = _replaced(json.loads(path.read_text()), rng)
    text = json.dumps(changed).encode()
    _written(path, mutate(text, rng) if rng.random() < 0.2 else text)
    return folder


KINDS: dict[str, Callable[[Path, Rng], Path]] = {
    "nii": nii,
    "nii.gz": nii_gz,
    "mgh": mgh,
    "itk": itk_volume,
    "dicom": dicom,
    "dicom series": dicom_series,
    "image": picture,
    "datalist": datalist,
    "detector": detector,
}


def read(kind: str, path: Path) -> None:
    """Read a file as the package does.

    Raises:
        InputError: where it cannot be used.
        AssertionError: where it was read, but to something that is no scan.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "datalist":
            cohort = load_cohort(path)
            cases = [item["case"] for item in (*cohort.training, *cohort.calibration, *cohort.test)]
            assert len(set(cases)) == len(cases)
            assert all(Path(case).name == case not in ("", ".", "..") for case in cases)
            return
        if kind == "detector":
            files = load_detector(path)
            check_unseen(files.description, [], refuse=False)
            run_settings(files.network, files.description, 0.05, labels=[], patients=[], digests=[])
            return
        scan = LoadScan()(path)
        assert scan.ndim == 4
        assert scan.numel()
        assert bool(scan.isfinite().all())
        assert bool(scan.affine.isfinite().all())
        shown_digest(path)
