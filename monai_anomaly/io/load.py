"""Reading one scan, of any supported format, into a ``MetaTensor`` that keeps its voxels and its place in the world."""

from __future__ import annotations

import gzip
import math
import os
import warnings
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from monai.config import KeysCollection
from monai.data import ITKReader, MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import MetaKeys, SpaceKeys

from monai_anomaly.exceptions import InputError
from monai_anomaly.io.dicom import DICOMSeriesReader, choose_volume, is_dicom_file, is_dicom_folder, read_header
from monai_anomaly.io.image_files import check_pixels, check_tiff, open_picture, upright
from monai_anomaly.io.series import scan_files
from monai_anomaly.io.untrusted import DEFLATE_RATIO, check_deflated, check_holds, check_readable, refuse_damage

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "DICOM_SUFFIXES",
    "ITK_SUFFIXES",
    "LoadScan",
    "LoadScanD",
    "LoadScanDict",
    "LoadScand",
    "MGH_SUFFIXES",
    "NIFTI_SUFFIXES",
    "PICTURE_SUFFIXES",
    "Voxels",
    "nifti_header",
    "read_voxels",
    "scan_suffix",
]

NIFTI_SUFFIXES = (".nii.gz", ".nii")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
DICOM_SUFFIXES = (".dcm", ".ima")
# Volumes of ITK and 3D Slicer, and of FreeSurfer.
ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
MGH_SUFFIXES = (".mgz", ".mgh")

# Bytes that are read at once where only checksums count.
_BLOCK = 1 << 20
# Millimetres in a NIfTI file's unit of length, the lowest three bits of xyzt_units: metre, micrometre.
_UNIT_MM = {1: 1e3, 3: 1e-3}
# Sides of a voxel and places of one, in mm, beyond which a header is wrong: from a nanometre to ten metres and a
# kilometre. Float32 holds every number that is made of them.
_LEAST_SIDE_MM, _MOST_SIDE_MM, _FARTHEST_MM = 1e-6, 1e4, 1e6
# Intensities beyond which float32 cannot hold their squares.
_MOST_INTENSITY = 1e18
# Fields of a MetaImage header that hold numbers: to which power of its dimensions.
_META_NUMBERS = dict.fromkeys(("offset", "position", "origin", "centerofrotation", "dimsize"), 1)
_META_NUMBERS |= dict.fromkeys(("elementspacing", "elementsize"), 1)
_META_NUMBERS |= dict.fromkeys(("transformmatrix", "rotation", "orientation"), 2)
_META_NUMBERS |= dict.fromkeys(("headersize", "compresseddatasize", "elementnumberofchannels"), 0)
# Channels of one scan must lie on the same grid to this distance.
_SAME_GRID_MM = 1e-3
# Pillow modes that are converted because their numbers are no intensities (palette), or carry alpha or ink.
_PILLOW_CONVERSIONS = {
    "1": "L",
    "LA": "L",
    "La": "L",
    "P": "RGB",
    "PA": "RGB",
    "RGBA": "RGB",
    "RGBa": "RGB",
} | dict.fromkeys(("RGBX", "CMYK", "YCbCr", "LAB", "HSV"), "RGB")


class Voxels(NamedTuple):
    """What one file (or DICOM folder) holds.

    Args:
        array: (C, X, Y, Z) in the file's own number type; images are (C, rows, columns, 1).
        affine: (4, 4) float64, voxel indices to RAS millimetres; the identity for images.
        scan_kind: ``"volume"`` or ``"image"``.
        source_format: ``"nifti"``, ``"dicom"``, ``"itk"``, ``"mgh"`` or ``"image"``.
        nifti_header: see ``nifti_header``; None for other formats.
        series: SeriesInstanceUID, where one of several was asked for.
    """

    array: np.ndarray
    affine: np.ndarray
    scan_kind: str
    source_format: str
    nifti_header: tuple[bytes, str, tuple[int, ...]] | None = None
    series: str | None = None


def nifti_header(image: Any) -> tuple[bytes, str, tuple[int, ...]]:
    """What ``write_case`` needs of a NIfTI source: its header's bytes, their order (``<`` or ``>``), and its shape.

    Args:
        image: as nibabel loaded it.
    """
    return image.header.binaryblock, image.header.endianness, tuple(image.shape)


def scan_suffix(path: str | Path) -> str:
    """The suffix of a scan as it is written in the name, ``""`` where it is none of the supported ones.

    Args:
        path: a path, which need not exist.

    Returns:
        For example ``".nii.gz"``, ``".PNG"``, or ``""``.
    """
    name = Path(path).name
    if name.lower().endswith(".seg.nrrd"):  # a segmentation of 3D Slicer
        return ""
    for suffix in (*NIFTI_SUFFIXES, *PICTURE_SUFFIXES, *DICOM_SUFFIXES, *ITK_SUFFIXES, *MGH_SUFFIXES):
        if name.lower().endswith(suffix):
            return name[-len(suffix) :]
    return ""


def read_voxels(path: str | Path, time_point: int | None = None, series: str | None = None) -> Voxels:
    """Read one file or DICOM folder as it is, without judging its values.

    Args:
        path: NIfTI, NRRD, MetaImage or MGH file, 2-D image, DICOM file, or folder of one DICOM series.
        time_point: which volume of a file or series with several, counted from 0.
        series: which series of a DICOM folder (see ``choose_series``); other paths have no use for it.

    Returns:
        The voxels with their geometry.

    Raises:
        InputError: where the path is missing, cannot be read, is of no supported format, is empty, holds several
            volumes and no ``time_point`` is given, states more voxels than it can hold, or has an affine that maps no
            voxel to a place.
    """
    path = Path(path)
    with refuse_damage(path):
        if not path.exists():
            raise InputError(path, "no such file or folder", "Check the path.")
        check_readable(path)
        voxels = _read_format(path, time_point, series)
        if not voxels.array.size:
            shape = " x ".join(map(str, voxels.array.shape[1:]))
            raise InputError(path, f"the image is empty ({shape} voxels)", "Export the scan again.")
        _check_affine(path, voxels.affine)
    return voxels


def _read_format(path: Path, time_point: int | None, series: str | None) -> Voxels:
    """``read_voxels``, by the reader of the format."""
    suffix = scan_suffix(path).lower()
    if path.is_dir():
        if not is_dicom_folder(path):
            raise InputError(
                path, "the folder holds no DICOM file", "Name a scan file or the folder of one DICOM series."
            )
        return _read_dicom(path, time_point, series)
    if suffix in NIFTI_SUFFIXES or suffix in MGH_SUFFIXES:
        return _read_nifti(path, time_point)
    if suffix in ITK_SUFFIXES or suffix in PICTURE_SUFFIXES:
        choose_volume(path, time_point, 1)
        return _read_itk(path) if suffix in ITK_SUFFIXES else _read_picture(path)
    if suffix in DICOM_SUFFIXES or is_dicom_file(path):
        return _read_dicom(path, time_point)
    known = ", ".join((*NIFTI_SUFFIXES, *PICTURE_SUFFIXES, *DICOM_SUFFIXES, *ITK_SUFFIXES, *MGH_SUFFIXES))
    raise InputError(path, "not a supported scan format", f"Supported are {known} and folders of one DICOM series.")


def _check_affine(path: Path, affine: np.ndarray) -> None:
    remedy = "Correct the header's orientation and voxel size."
    if not np.isfinite(affine).all():
        raise InputError(path, "the affine holds NaN or infinite numbers", remedy)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    # The determinant of the unit axes is the volume of the cell they span, whatever the voxel size.
    if (spacing == 0).any() or abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-6:
        raise InputError(path, "the affine is singular: voxel axes are missing or parallel", remedy)
    if spacing.min() < _LEAST_SIDE_MM or spacing.max() > _MOST_SIDE_MM or np.abs(affine[:3, 3]).max() > _FARTHEST_MM:
        sides = " x ".join(f"{side:.3g}" for side in spacing)
        place = ", ".join(f"{value:.3g}" for value in affine[:3, 3])
        raise InputError(path, f"the affine states voxels of {sides} mm at ({place}) mm", remedy)


def _read_nifti(path: Path, time_point: int | None) -> Voxels:
    import nibabel as nib

    with refuse_damage(path, "cannot be read as NIfTI"):
        image: Any = nib.load(path)
        if not isinstance(image, (nib.Nifti1Pair, nib.MGHImage)):
            raise InputError(path, f"holds {type(image).__name__}, not a volume (CIFTI?)", "Give its NIfTI volume.")
        if any(size < 0 for size in image.shape):
            raise ValueError(f"shape {image.shape}")
        _tell_repairs(path, image)
        affine = np.array(image.affine, dtype=np.float64)
        if isinstance(image, nib.Nifti1Pair):
            affine[:3] *= _UNIT_MM.get(int(image.header["xyzt_units"]) & 7, 1.0)
        kind = image.get_data_dtype()
        if kind.kind not in "biuf":
            name = "RGB" if kind.names else str(kind)
            raise InputError(path, f"holds {name} voxels", "Save one real-valued intensity per voxel.")
        shape = image.shape
        if any(size == 0 for size in shape):
            raise InputError(path, f"the image is empty (shape {shape})", "Export the scan again.")
        if len(shape) < 2 or any(size > 1 for size in shape[4:]):
            raise InputError(path, f"has shape {shape}", "Only 2-D, 3-D and 4-D (time series) images are read.")
        chosen = choose_volume(path, time_point, shape[3] if len(shape) > 3 else 1)
        # Only the chosen volume is kept and scaled.
        part = (slice(None),) * 3 + (slice(chosen, chosen + 1),) if len(shape) > 3 else ()
        array = _stored_voxels(Path(image.file_map["image"].filename), image.dataobj, part)
    array = array.reshape((*shape, 1)[:3])[None]
    if isinstance(image, nib.MGHImage):
        return Voxels(array, affine, "volume", "mgh")
    return Voxels(array, affine, "volume", "nifti", nifti_header(image))


def _tell_repairs(path: Path, image: Any) -> None:
    """Warn of what nibabel mended in a header, or raise where programs differ in what the file's geometry then is."""
    import nibabel as nib

    kind = type(image.header)
    with image.file_map["image"].get_prepare_fileobj("rb") as file:
        block = file.read(kind.template_dtype.itemsize)
    if isinstance(image, nib.MGHImage):
        if not int.from_bytes(block[28:30], "big", signed=True):
            problem = "the header states no geometry (goodRASFlag 0): voxels of 1 mm, coronal slices are assumed"
            warnings.warn(f"{path}: {problem}.", stacklevel=2)
        return
    header = kind(block, endianness=image.header.endianness, check=False)
    told: list[str] = []
    sform, qform, pixdim = (header[name].copy() for name in ("sform_code", "qform_code", "pixdim"))
    header.check_fix(logger=SimpleNamespace(log=lambda level, message: told.append(message) if level else None))
    if not told:
        return
    what = f"the header was mended: {'; '.join(told)}"
    # a sform needs nothing else; a qform needs the voxel size and its sign, which all programs take for 1 where it is 0
    sized = qform == header["qform_code"] and np.array_equal(pixdim[1:4], header["pixdim"][1:4])
    signed = pixdim[0] >= 0 or pixdim[0] == -1 or not qform
    if sform != header["sform_code"] or not (sform or (sized and signed)):
        raise InputError(path, f"{what}; programs differ in where its voxels then lie", "Correct the header.")
    warnings.warn(f"{path}: {what}.", stacklevel=2)


def _stored_voxels(path: Path, proxy: Any, part: tuple[slice, ...]) -> np.ndarray:
    """A part of a NIfTI or MGH file's voxels, scaled. gzip's checksums, which follow them, are checked on the way."""
    from nibabel.arrayproxy import ArrayProxy

    packed = path.name.lower().endswith((".gz", ".mgz"))
    stated = proxy.offset + math.prod(int(size) for size in proxy.shape) * proxy.dtype.itemsize
    check_holds(path, stated, check_readable(path) * (DEFLATE_RATIO if packed else 1))
    if not packed:
        return np.asarray(proxy[part])
    with gzip.open(path) as stream:
        layout = (proxy.shape, proxy.dtype, proxy.offset, proxy.slope, proxy.inter)
        array = np.asarray(ArrayProxy(stream, layout)[part])
        while stream.read(_BLOCK):
            pass
    return array


def _read_itk(path: Path) -> Voxels:
    """An NRRD or MetaImage volume with the place that its header states."""
    with refuse_damage(path):
        reader = _check_itk_voxels(path)
        array, meta = ITKReader().get_data(ITKReader(imageio=reader).read(path))
        affine = np.asarray(meta[MetaKeys.AFFINE], dtype=np.float64)
    if array.ndim not in (2, 3):
        problem = f"has several values a voxel or several volumes (shape {array.shape})"
        raise InputError(path, problem, "Save one volume of one intensity per voxel.")
    if affine.shape != (4, 4):  # a 2-D image in the plane
        full = np.eye(4)
        full[:2, :2], full[:2, 3] = affine[:2, :2], affine[:2, -1]
        affine = full
    return Voxels(array.reshape((*array.shape, 1)[:3])[None], affine, "volume", "itk")


def _check_itk_voxels(path: Path) -> Any:
    """Check that the voxels of an NRRD or MetaImage file are all there and whole; ITK's reader, its header read.

    ITK takes memory for what the header states, goes on with what it has where voxels end early or do not unpack, and
    ends the process at numbers of a MetaImage header that cannot be.
    """
    import itk

    fields, start = _itk_header(path)
    nrrd = scan_suffix(path).lower() in (".nrrd", ".nhdr")
    if not nrrd:
        _check_meta_fields(path, fields)
    reader = _itk_information(path, itk.NrrdImageIO if nrrd else itk.MetaImageIO)
    stated = int(reader.GetImageSizeInBytes())
    detached = fields.get("elementdatafile") or fields.get("data file") or fields.get("datafile") or "LOCAL"
    data = path
    if detached.upper() != "LOCAL":
        data, start = path.parent / detached, max(0, int(fields.get("headersize") or fields.get("byte skip") or 0))
        if not data.is_file():
            raise InputError(path, f"its voxels are not in one file beside it ({detached})", "Save it as one file.")
    size = check_readable(data) - start
    encoding = fields.get("encoding", "").lower()
    if fields.get("compresseddata", "").lower() == "true" or encoding in ("gzip", "gz"):
        check_holds(path, stated, DEFLATE_RATIO * size)
        with data.open("rb") as file:
            file.seek(start)
            check_deflated(path, file, stated)
    else:  # as text, a value of up to eight bytes is a digit and a space at the least
        check_holds(path, stated, size * (4 if encoding in ("ascii", "text", "txt", "hex") else 1))
    return reader


def _check_meta_fields(path: Path, fields: Mapping[str, str]) -> None:
    """Check that a MetaImage header has as many numbers in each place as its dimensions ask for."""
    dimensions = fields.get("ndims", "")
    if dimensions not in ("2", "3", "4"):
        raise InputError(path, f"cannot be read (NDims is {dimensions[:20]!r})", "Copy or export the file again.")
    count = int(dimensions)
    for key, value in fields.items():
        needed = _META_NUMBERS.get(key)
        if needed is not None:
            numbers = [float(number) for number in value.split()]
            if len(numbers) != count**needed or not np.isfinite(numbers).all():
                raise InputError(path, f"cannot be read ({key} is {value[:80]!r})", "Copy or export the file again.")


def _itk_information(path: Path, kind: Any) -> Any:
    """ITK's reader of a format, which has read a file's header."""
    reader = kind.New()
    if not reader.CanReadFile(str(path)):
        raise InputError(path, "cannot be read as an image", "Copy or export the file again.")
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return reader


def _itk_header(path: Path) -> tuple[dict[str, str], int]:
    """The fields of an NRRD (``key: value``) or MetaImage (``key = value``) header, and where the voxels begin."""
    nrrd = scan_suffix(path).lower() in (".nrrd", ".nhdr")
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        while line := file.readline(_BLOCK):
            if nrrd and not line.strip():
                break
            key, _, value = line.decode("latin-1").partition(":" if nrrd else "=")
            fields[key.strip().lower()] = value.strip()
            if not nrrd and key.strip().lower() == "elementdatafile":
                break
        return fields, file.tell()


def _read_dicom(path: Path, time_point: int | None, series: str | None = None) -> Voxels:
    uid = None if series is None else str(read_header(scan_files(path, series)[0]).SeriesInstanceUID)
    reader = DICOMSeriesReader(time_point=time_point, series=uid)
    array, meta = reader.get_data(reader.read(path))
    # Colour comes last from the reader.
    array = np.moveaxis(array, -1, 0) if array.ndim == 4 else array[None]
    return Voxels(array, np.asarray(meta[MetaKeys.AFFINE], dtype=np.float64), "volume", "dicom", series=uid)


def _read_picture(path: Path) -> Voxels:
    if _is_deep_colour(path):
        with refuse_damage(path, "cannot be read as an image"):
            array = _read_deep_colour(path)
    else:
        with open_picture(path) as picture:
            array = upright(np.asarray(_without_alpha(picture)), picture)
    array = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
    return Voxels(array[..., None], np.eye(4), "image", "image")


def _without_alpha(picture: Image) -> Image:
    """The image as plain gray or colour intensities."""
    if picture.format in ("TIFF", "PNG") and getattr(picture, "n_frames", 1) > 1:
        where = getattr(picture, "filename", "picture")
        raise InputError(where, f"holds {getattr(picture, 'n_frames', 0)} pages", "Save one image per file.")
    mode = _PILLOW_CONVERSIONS.get(picture.mode)
    return picture.convert(mode) if mode else picture


def _is_deep_colour(path: Path) -> bool:
    """Whether an image has colour or alpha at more than 8 bits, which Pillow would cut to 8 or not open."""
    from PIL import Image, UnidentifiedImageError
    from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile

    with refuse_damage(path), path.open("rb") as file:
        header = file.read(26)
    if header.startswith(b"\x89PNG\r\n\x1a\n"):
        # Bytes 24 and 25 of the IHDR chunk: bit depth and colour type (0 is gray; W3C PNG specification, 11.2.1).
        return len(header) == 26 and header[24] == 16 and header[25] != 0
    if not header.startswith((b"II", b"MM")):
        return False
    with refuse_damage(path, "cannot be read as an image"):
        try:
            with Image.open(path, formats=["TIFF"]) as picture:
                bits = picture.tag_v2.get(BITSPERSAMPLE, (1,)) if isinstance(picture, TiffImageFile) else (8,)
                return len(bits) > 1 and max(bits) > 8
        except UnidentifiedImageError:
            return True  # colour of floats: Pillow has no such mode


def _read_deep_colour(path: Path) -> np.ndarray:
    """(rows, columns, C) float32 of an image of several components at 16 bits or in floats."""
    import itk

    png = scan_suffix(path).lower() == ".png"
    if not png:  # ITK takes memory for the rows of a TIFF file as it opens it
        check_tiff(path)
    io = _itk_information(path, itk.PNGImageIO if png else itk.TIFFImageIO)
    components, kind = io.GetNumberOfComponents(), io.GetComponentTypeAsString(io.GetComponentType())
    if io.GetNumberOfDimensions() > 2:
        raise InputError(path, "holds several pages", "Save one image per file.")
    check_pixels(path, int(io.GetDimensions(0)) * int(io.GetDimensions(1)))
    # ITK announces 8 bits where it would have to cut deeper samples (colour planes stored apart).
    if components not in (1, 2, 3, 4) or kind in ("unsigned_char", "char"):
        remedy = "Save it as gray or RGB with interleaved samples."
        raise InputError(path, "this layout of colour samples cannot be read at its depth", remedy)
    if png:
        check_holds(path, int(io.GetImageSizeInBytes()), DEFLATE_RATIO * check_readable(path))
    pixel = itk.F if components == 1 else itk.Vector[itk.F, components]
    reader = ITKReader(reverse_indexing=True, pixel_type=pixel, imageio=io)
    array, _ = reader.get_data(reader.read(path))
    if png:  # ITK heeds the tag of TIFF files alone
        with open_picture(path) as picture:
            array = upright(array, picture)
    # Gray + alpha and colour + alpha lose the alpha.
    return array[..., : components - 1] if components in (2, 4) else array


class LoadScan(Transform):
    """Read a scan: a volume (NIfTI, NRRD, MetaImage, MGH), a DICOM series, an image, or several files as channels.

    Volumes keep the voxel order of their file (first axis = columns for DICOM) and come with their RAS affine;
    images are (C, rows, columns, 1) with the identity, turned as viewers show them (EXIF orientation), so that maps
    lie on what a viewer shows; masks of turned images must be drawn likewise. Intensities are the
    stored ones after the file's own scaling (NIfTI ``scl_slope``, DICOM rescale); 16-bit and float values are kept
    exactly, alpha channels are dropped.

    The result's ``meta`` holds ``affine`` and ``original_affine`` (4 x 4 float64), ``spatial_shape``,
    ``filename_or_obj``, ``scan_kind`` (``"volume"`` or ``"image"``), ``source`` (absolute paths as given, one per
    file of a list), ``source_format``, ``nifti_header`` and ``series`` (as of ``Voxels``).

    Args:
        time_point: which volume of a time series to read, counted from 0. Without it, such a series is rejected.
    """

    def __init__(self, time_point: int | None = None) -> None:
        self.time_point = time_point

    def __call__(self, image: str | Path | Sequence[str | Path], series: str | None = None) -> MetaTensor:
        """Read one scan.

        Args:
            image: a file, the folder of one DICOM series, or a list of them to stack as channels.
            series: which series of a DICOM folder with several: its UID, description or ``"auto"``.

        Returns:
            float32, (C, X, Y, Z).

        Raises:
            InputError: where a file is missing, damaged or of no supported format; where it holds NaN, infinite or
                constant values, no voxels, complex numbers, or several volumes without ``time_point``; where its
                affine is singular; where files of a list differ in shape or lie more than 1e-3 mm apart.
        """
        paths = [Path(image)] if isinstance(image, (str, os.PathLike)) else [Path(path) for path in image]
        if not paths:
            raise InputError("image", "the list of files is empty", "Name at least one file.")
        read = [read_voxels(path, self.time_point, series) for path in paths]
        arrays = [_as_finite_float(path, voxels.array) for path, voxels in zip(paths, read)]
        for path, voxels in zip(paths[1:], read[1:]):
            _check_same_grid(paths[0], read[0], path, voxels)
        array = np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
        meta: dict[str, Any] = {
            MetaKeys.AFFINE: read[0].affine,
            MetaKeys.ORIGINAL_AFFINE: read[0].affine.copy(),
            MetaKeys.SPATIAL_SHAPE: np.asarray(array.shape[1:]),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.ORIGINAL_CHANNEL_DIM: 0,
            "filename_or_obj": str(paths[0].absolute()),
            "scan_kind": read[0].scan_kind,
            "source": [str(path.absolute()) for path in paths],
            "source_format": read[0].source_format,
            "nifti_header": read[0].nifti_header,
        }
        if read[0].series is not None:
            meta["series"] = read[0].series
        return MetaTensor.ensure_torch_and_prune_meta(array, meta)


def _as_finite_float(path: Path, array: np.ndarray) -> np.ndarray:
    """The values as float32, rejected where they are no image."""
    with np.errstate(over="ignore"):  # values beyond float32 become infinite and are counted below
        values = np.array(array, dtype=np.float32, order="C")  # a copy: readers may lend memory
    bad = int(values.size - np.count_nonzero(np.isfinite(values)))
    if bad:
        problem = f"{bad} of {values.size} values are NaN or infinite"
        raise InputError(path, problem, "Replace them, for example by the background's value.")
    extremes = [(channel.min(), channel.max()) for channel in values]
    if (largest := max(max(-low, high) for low, high in extremes)) > _MOST_INTENSITY:
        problem = f"its values reach {largest:.3g}, beyond what intensities can be reckoned with"
        raise InputError(path, problem, f"Scale them to below {_MOST_INTENSITY:g}.")
    if all(low == high for low, high in extremes):
        raise InputError(path, f"every voxel has the same value ({values.flat[0]:g})", "Leave this scan out.")
    return values


def _check_same_grid(first_path: Path, first: Voxels, path: Path, other: Voxels) -> None:
    shapes = first.array.shape[1:], other.array.shape[1:]
    remedy = "Channels of one scan must be co-registered and resampled to one grid."
    if first.scan_kind != other.scan_kind or shapes[0] != shapes[1]:
        sizes = " and ".join(" x ".join(map(str, shape)) for shape in shapes)
        raise InputError(path, f"is on another grid than {first_path} ({sizes} voxels)", remedy)
    corners = np.array(np.meshgrid(*[(0, size - 1) for size in shapes[0]], [1], indexing="ij")).reshape(4, -1)
    distance = np.linalg.norm(((first.affine - other.affine) @ corners)[:3], axis=0).max()
    if distance > _SAME_GRID_MM:
        raise InputError(path, f"lies up to {distance:.3g} mm away from {first_path}", remedy)


class LoadScand(MapTransform):
    """Dictionary form of :class:`LoadScan`.

    Args:
        keys: the keys whose paths are replaced by scans.
        time_point: which volume of a time series to read, counted from 0.
        allow_missing_keys: whether an item may lack a key.
    """

    def __init__(self, keys: KeysCollection, time_point: int | None = None, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.loader = LoadScan(time_point)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Read the scans of one item.

        Args:
            data: maps each key to a path or a list of paths, and may name the ``series`` of DICOM folders.

        Returns:
            A copy with (C, X, Y, Z) float32 scans under the keys.

        Raises:
            InputError: as :class:`LoadScan` does.
        """
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self.loader(item[key], item.get("series"))
        return item


LoadScanD = LoadScanDict = LoadScand
