"""One scan's results on the scan's own grid: volumes as NIfTI, images as TIFF and PNG."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from monai_anomaly.exceptions import InputError
from monai_anomaly.io.atomic import atomic_folder, atomic_path, others_in
from monai_anomaly.io.tables import write_json

if TYPE_CHECKING:
    from monai.data import MetaTensor

__all__ = ["own_files", "read_record", "write_case", "write_record"]

_RECORD, _ARRAYS = "case.json", "case.npz"
# Files of versions that wrote no record.
_OWN = re.compile(r"(anomaly_(map|mask|logp|zscore)|restoration(_\d+)?|overview)\.(nii\.gz|tiff|png)")

# The header's field for a description is 80 bytes with a closing zero.
_DESCRIPTION_BYTES = 79
# Cosine up to which axes are perpendicular, so that a qform, which knows no shear, can state them.
_PERPENDICULAR = 1e-4


def write_case(
    folder: str | Path,
    scan: MetaTensor,
    *,
    anomaly_map: np.ndarray,
    restoration: np.ndarray,
    anomaly_mask: np.ndarray | None,
    mask_description: str = "",
    extra_maps: Mapping[str, tuple[np.ndarray, str]] | None = None,
    also: Callable[[Path], None] | None = None,
) -> None:
    """Write the results of one scan, whole or not at all.

    A volume gives ``anomaly_map.nii.gz`` (float32), ``restoration.nii.gz`` (float32, (X, Y, Z) for one channel and
    (X, Y, Z, C) for more) and ``anomaly_mask.nii.gz`` (uint8, 0 or 1). For a NIfTI source they carry the geometry
    fields of its header bit for bit (shape, qform, sform, both codes, voxel sizes, units), for others the affine of
    the scan as qform and sform, code 1 (scanner), in mm. A sheared stack (CT with gantry tilt) has no qform (code 0),
    since a qform cannot state it: ITK, which reads no sheared image, then raises an error. gzip runs at level 1: float
    maps hardly shrink further, and higher levels take several times as long. Header extensions and free text of the
    source, which may name the patient, are not copied.

    An image gives ``anomaly_map.tiff`` (float32, rows x columns), ``anomaly_map.png`` (a colour rendering, black at 0
    and below, brightest at this map's own maximum: to be looked at, not measured), ``restoration.png`` and
    ``anomaly_mask.png`` (0 or 255). The restoration is clipped to the source's range and rounded: 8 bits for sources
    of up to 8 bits, 16 bits for 16-bit sources; other sources (floating point, 32 bits) are scaled linearly from
    their lowest and highest value to 16 bits. Images stacked as channels give one gray ``restoration_<channel>.png``
    each, counted from 0. All lie on the image as viewers show it, turned as its EXIF orientation says.

    Args:
        folder: the case's folder. Of one that exists all files of an earlier run go; what others put there stays.
        scan: the scan as loaded, (C, X, Y, Z), or (C, rows, columns, 1) for an image, with ``scan_kind``, ``source``
            and, of a NIfTI source, ``nifti_header`` in its meta.
        anomaly_map: anomaly scores, (X, Y, Z).
        restoration: the normal image restored, (C, X, Y, Z), in the scan's units.
        anomaly_mask: True where the map is above the chosen threshold, (X, Y, Z); None for no mask file.
        mask_description: how the mask was made, for the NIfTI header (``descrip``): at most 79 bytes of UTF-8.
        extra_maps: further maps, (X, Y, Z) each, by the name of their file, with what the NIfTI header says of them;
            written float32 as the anomaly map is (an image's as TIFF alone).
        also: writes further files into the folder that it is given, before the case appears.

    ``case.json`` lists the ``files`` of the case, and the ``others`` that were there.

    Raises:
        InputError: if the folder cannot be written to, or a file of others has the name of one that is to be written.
        ValueError: if an array's shape does not fit the scan's, or the description is too long.
    """
    folder = Path(folder)
    channels, *spatial = scan.shape
    for name, array, shape in (
        ("anomaly_map", anomaly_map, tuple(spatial)),
        ("restoration", restoration, (channels, *spatial)),
        ("anomaly_mask", anomaly_mask, tuple(spatial)),
        *((name, extra, tuple(spatial)) for name, (extra, _) in (extra_maps or {}).items()),
    ):
        if array is not None and array.shape != shape:
            raise ValueError(f"{name} has the shape {array.shape}, the scan asks for {shape}.")
    if len(mask_description.encode()) > _DESCRIPTION_BYTES:
        raise ValueError(f"mask_description is longer than {_DESCRIPTION_BYTES} bytes: {mask_description!r}.")
    anomaly_map, restoration = np.asarray(anomaly_map, np.float32), np.asarray(restoration, np.float32)
    with atomic_folder(folder, own_files) as temporary:
        if also is not None:
            also(temporary)
        if scan.meta["scan_kind"] == "image":
            _write_picture(temporary, scan, anomaly_map, restoration, anomaly_mask)
            for name, (extra, _) in (extra_maps or {}).items():
                _save_tiff(extra, temporary / f"{name}.tiff")
        else:
            grid = _Grid(scan)
            grid.save(temporary / "anomaly_map.nii.gz", anomaly_map, "anomaly map")
            stacked = restoration[0] if channels == 1 else np.moveaxis(restoration, 0, -1)
            grid.save(temporary / "restoration.nii.gz", stacked, "restoration")
            if anomaly_mask is not None:
                grid.save(temporary / "anomaly_mask.nii.gz", anomaly_mask.astype(np.uint8), mask_description)
            for name, (extra, description) in (extra_maps or {}).items():
                grid.save(temporary / f"{name}.nii.gz", np.asarray(extra, np.float32), description)
        others = sorted(path.name for path in others_in(folder, own_files))
        files = sorted(path.name for path in temporary.iterdir())
        write_json(temporary / _RECORD, {"files": files, "others": others})


def own_files(folder: str | Path) -> set[str]:
    """The entries of a case's folder that this package wrote.

    Args:
        folder: of a case; it need not exist.

    Returns:
        Their names: those that the case's record lists, or without one those of an earlier version that are there.
    """
    folder = Path(folder)
    try:
        return {_RECORD, _ARRAYS, *map(str, json.loads((folder / _RECORD).read_text(encoding="utf-8"))["files"])}
    except (OSError, ValueError, LookupError, TypeError):
        return {path.name for path in folder.glob("*") if _OWN.fullmatch(path.name)}


def write_record(folder: str | Path, record: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Note in ``case.json`` that a case is finished: its ``files``, and what is to be known of it without them.

    Args:
        folder: of the case, as ``write_case`` and what came after it left it.
        record: JSON-able.
        arrays: by name; written to ``case.npz``.
    """
    folder = Path(folder)
    try:
        others = set(json.loads((folder / _RECORD).read_text(encoding="utf-8"))["others"])
    except (OSError, ValueError, LookupError, TypeError):
        return  # not of write_case
    if arrays:
        with atomic_path(folder / _ARRAYS) as path:
            named: dict[str, Any] = {**arrays}
            np.savez_compressed(path, **named)
    files = sorted(path.name for path in folder.iterdir() if path.name not in others)
    write_json(folder / _RECORD, {"files": files, "others": sorted(others), **record})


def read_record(folder: str | Path) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """What ``write_record`` was given.

    Args:
        folder: of a case; it need not exist.

    Returns:
        None if the case is not finished, or misses one of its files.
    """
    folder = Path(folder)
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        if "run" not in record or not all((folder / name).exists() for name in record["files"]):
            return None
        arrays: dict[str, np.ndarray] = {}
        if _ARRAYS in record["files"]:
            with np.load(folder / _ARRAYS, allow_pickle=False) as file:
                arrays = dict(file)
    except (OSError, ValueError, LookupError, TypeError, EOFError, BadZipFile):
        return None
    return record, arrays


class _Grid:
    """Where a volume's voxels lie, as its source says it."""

    def __init__(self, scan: MetaTensor) -> None:
        import nibabel

        self._shape = tuple(scan.shape[1:])
        self._file_shape = self._shape
        self._affine = np.asarray(scan.affine, dtype=np.float64)
        self._header: Any = None
        self._image_class = nibabel.Nifti1Image
        source = scan.meta.get("nifti_header")
        if source is None:
            return
        block, endianness, shape = source
        if len(block) == nibabel.Nifti2Header.sizeof_hdr:
            self._image_class = nibabel.Nifti2Image
        if all(size == 1 for size in shape[3:]):  # (X, Y), (X, Y, Z) and (X, Y, Z, 1) stay what they are
            self._file_shape = shape
        # from the raw bytes, which carry the geometry exactly and no extensions
        header = self._image_class.header_class(block, endianness, check=False)
        header.set_data_offset(0)  # nibabel then finds the place itself
        for field in ("aux_file", "intent_name", "data_type", "db_name"):
            if field in header:
                header[field] = b""
        for field in ("intent_code", "intent_p1", "intent_p2", "intent_p3"):
            header[field] = 0
        self._header = header

    def save(self, path: Path, voxels: np.ndarray, description: str) -> None:
        """Write one array, of (X, Y, Z) or (X, Y, Z, C), in its own dtype."""
        if voxels.ndim == 3:
            voxels = voxels.reshape(self._file_shape)
        if self._header is None:
            image = self._image_class(voxels, self._affine)
            image.header.set_xyzt_units("mm")
            image.set_sform(self._affine, code="scanner")
            axes = self._affine[:3, :3] / np.linalg.norm(self._affine[:3, :3], axis=0)
            rigid = np.allclose(axes.T @ axes, np.eye(3), atol=_PERPENDICULAR)
            image.set_qform(self._affine, code="scanner" if rigid else "unknown")
        else:
            # affine=None leaves the header's own geometry untouched
            image = self._image_class(voxels, None, self._header)
        header = image.header
        header.set_data_dtype(voxels.dtype)
        # 1 and 0 rather than unset, or nibabel would choose a scaling of its own
        header.set_slope_inter(1, 0)
        header["cal_min"], header["cal_max"] = voxels.min(), voxels.max()
        header["descrip"] = description.encode()
        image.to_filename(path)


def _write_picture(
    folder: Path, scan: MetaTensor, anomaly_map: np.ndarray, restoration: np.ndarray, anomaly_mask: np.ndarray | None
) -> None:
    from matplotlib import colormaps

    scores = anomaly_map[..., 0]
    _save_tiff(anomaly_map, folder / "anomaly_map.tiff")
    top = max(float(scores.max()), np.finfo(np.float32).tiny)  # a map without anomalies is black
    colours = colormaps["inferno"](np.clip(scores / top, 0.0, 1.0), bytes=True)[..., :3]
    _save_png(colours, folder / "anomaly_map.png")
    if anomaly_mask is not None:
        _save_png(anomaly_mask[..., 0].astype(np.uint8) * 255, folder / "anomaly_mask.png")

    sources = [Path(source) for source in scan.meta["source"]]
    values = np.asarray(scan)[..., 0]
    images = restoration[..., 0]
    if len(sources) == 1 and len(images) in (1, 3):
        _write_restored(folder / "restoration.png", images, sources[0], values)
        return
    per_source = len(images) // len(sources)
    for channel, image in enumerate(images):
        source = sources[min(channel // max(per_source, 1), len(sources) - 1)]
        name = f"restoration_{channel}.png"
        _write_restored(folder / name, image[None], source, values[channel : channel + 1])


def _save_tiff(values: np.ndarray, path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.asarray(values[..., 0], np.float32)).save(path)


def _save_png(pixels: np.ndarray, path: Path) -> None:
    """Write an image with its caution in the file, since its own pixels have no room for one."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    note = PngInfo()
    note.add_text("Disclaimer", "Research use only, not for diagnosis")
    Image.fromarray(pixels).save(path, pnginfo=note)


def _write_restored(path: Path, image: np.ndarray, source: Path, values: np.ndarray) -> None:
    """Write one gray (1, rows, columns) or colour (3, rows, columns) image in its source's range and depth."""
    low, high, depth = _picture_range(source, values)
    share = np.clip((image.astype(np.float64) - low) / (high - low), 0.0, 1.0)
    kind = np.uint8 if depth == 8 else np.uint16
    pixels = np.rint(share * np.iinfo(kind).max).astype(kind)
    if len(pixels) == 1:
        _save_png(pixels[0], path)
    elif depth == 8:
        _save_png(np.ascontiguousarray(np.moveaxis(pixels, 0, -1)), path)
    else:  # PIL has no 16-bit colour
        import itk

        itk.imwrite(itk.image_from_array(np.ascontiguousarray(np.moveaxis(pixels, 0, -1)), is_vector=True), str(path))


def _picture_range(source: Path, values: np.ndarray) -> tuple[float, float, int]:
    """The values that stand for black and for white, and the bits a channel that the restoration is written with.

    PIL does not tell the depth of 16-bit colour images, so the formats are asked themselves.
    """
    dtype: np.dtype = np.dtype(np.uint8)  # JPEG and BMP have no other
    try:
        with source.open("rb") as file:
            start = file.read(25)
        if start[:4] == b"\x89PNG":
            # byte 24 is the bit depth: https://www.w3.org/TR/png-3/#11IHDR
            dtype = np.dtype({1: np.bool_, 16: np.uint16}.get(start[24], np.uint8))
        elif start[:2] in (b"II", b"MM"):
            import tifffile

            with tifffile.TiffFile(source) as tiff:
                dtype = np.dtype(tiff.pages.first.dtype)
    except (OSError, IndexError, ValueError) as error:
        remedy = "Its depth is needed to write the restoration: keep scans in place until their results are written."
        raise InputError(source, f"cannot be read again ({error})", remedy) from error
    if dtype == np.bool_ and values.max() <= 1:
        return 0.0, 1.0, 8
    if dtype in (np.bool_, np.uint8):
        return 0.0, 255.0, 8
    if dtype == np.uint16:
        return 0.0, 65535.0, 16
    return float(values.min()), float(values.max()), 16
