"""Reading one scan, of any supported format, into a ``MetaTensor`` that keeps its voxels and its place in the world."""

from __future__ import annotations

import gzip
import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from monai.config import KeysCollection
from monai.data import ITKReader, MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import MetaKeys, SpaceKeys

from monai_anomaly.exceptions import InputError
from monai_anomaly.io.dicom import DICOMSeriesReader, choose_volume, is_dicom_file, is_dicom_folder
from monai_anomaly.io.image_files import upright
from monai_anomaly.io.series import choose_series, list_series

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
# What nibabel raises for numbers of a header that cannot be.
_BAD_VALUES = (OverflowError, ValueError, TypeError, AttributeError, MemoryError)
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
    """

    array: np.ndarray
    affine: np.ndarray
    scan_kind: str
    source_format: str
    nifti_header: tuple[bytes, str, tuple[int, ...]] | None = None


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
            volumes and no ``time_point`` is given, or has an affine that maps no voxel to a place.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(path, "no such file or folder", "Check the path.")
    suffix = scan_suffix(path).lower()
    if path.is_dir():
        if not is_dicom_folder(path):
            raise InputError(
                path, "the folder holds no DICOM file", "Name a scan file or the folder of one DICOM series."
            )
        voxels = _read_dicom(path, time_point, series)
    elif suffix in NIFTI_SUFFIXES:
        voxels = _read_nifti(path, time_point)
    elif suffix in ITK_SUFFIXES:
        voxels = _read_itk(path)
        choose_volume(path, time_point, 1)
    elif suffix in MGH_SUFFIXES:
        voxels = _read_nifti(path, time_point)
    elif suffix in PICTURE_SUFFIXES:
        voxels = _read_picture(path)
        choose_volume(path, time_point, 1)
    elif suffix in DICOM_SUFFIXES or is_dicom_file(path):
        voxels = _read_dicom(path, time_point)
    else:
        known = ", ".join((*NIFTI_SUFFIXES, *PICTURE_SUFFIXES, *DICOM_SUFFIXES, *ITK_SUFFIXES, *MGH_SUFFIXES))
        raise InputError(path, "not a supported scan format", f"Supported are {known} and folders of one DICOM series.")
    if not voxels.array.size:
        shape = " x ".join(map(str, voxels.array.shape[1:]))
        raise InputError(path, f"the image is empty ({shape} voxels)", "Export the scan again.")
    _check_affine(path, voxels.affine)
    return voxels


def _check_affine(path: Path, affine: np.ndarray) -> None:
    remedy = "Correct the header's orientation and voxel size."
    if not np.isfinite(affine).all():
        raise InputError(path, "the affine holds NaN or infinite numbers", remedy)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    # The determinant of the unit axes is the volume of the cell they span, whatever the voxel size.
    if (spacing == 0).any() or abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-6:
        raise InputError(path, "the affine is singular: voxel axes are missing or parallel", remedy)


def _read_nifti(path: Path, time_point: int | None) -> Voxels:
    import zlib

    import nibabel as nib
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError
    from nibabel.wrapstruct import WrapStructError

    try:
        image: Any = nib.load(path)
        if not isinstance(image, (nib.Nifti1Pair, nib.MGHImage)):
            raise InputError(path, f"holds {type(image).__name__}, not a volume (CIFTI?)", "Give its NIfTI volume.")
        if any(size < 0 for size in image.shape):
            raise HeaderDataError(f"shape {image.shape}")
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
        array = _stored_voxels(path, image.dataobj, part)
    except InputError:
        raise
    except (ImageFileError, HeaderDataError, WrapStructError, EOFError, OSError, zlib.error, *_BAD_VALUES) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(path, f"cannot be read as NIfTI ({reason})", "Copy or export the file again.") from error
    array = array.reshape((*shape, 1)[:3])[None]
    if isinstance(image, nib.MGHImage):
        return Voxels(array, affine, "volume", "mgh")
    return Voxels(array, affine, "volume", "nifti", nifti_header(image))


def _read_itk(path: Path) -> Voxels:
    """An NRRD or MetaImage volume with the place that its header states."""
    try:
        array, meta = ITKReader().get_data(ITKReader().read(path))
    except Exception as error:
        # ITK and its wrapping raise a dozen types, some with a page of text
        reason = str(error).strip().splitlines()[-1][:200] if str(error).strip() else type(error).__name__
        raise InputError(path, f"cannot be read ({reason})", "Copy or export the file again.") from error
    if array.ndim not in (2, 3):
        problem = f"has several values a voxel or several volumes (shape {array.shape})"
        raise InputError(path, problem, "Save one volume of one intensity per voxel.")
    affine = np.asarray(meta[MetaKeys.AFFINE], dtype=np.float64)
    if affine.shape != (4, 4):  # a 2-D image in the plane
        full = np.eye(4)
        full[:2, :2], full[:2, 3] = affine[:2, :2], affine[:2, -1]
        affine = full
    return Voxels(array.reshape((*array.shape, 1)[:3])[None], affine, "volume", "itk")


def _stored_voxels(path: Path, proxy: Any, part: tuple[slice, ...]) -> np.ndarray:
    """A part of a NIfTI file's voxels, scaled. gzip's checksums, which follow the voxels, are checked on the way."""
    from nibabel.arrayproxy import ArrayProxy

    if not path.name.lower().endswith(".gz"):
        return np.asarray(proxy[part])
    with gzip.open(path) as stream:
        layout = (proxy.shape, proxy.dtype, proxy.offset, proxy.slope, proxy.inter)
        array = np.asarray(ArrayProxy(stream, layout)[part])
        while stream.read(_BLOCK):
            pass
    return array


def _read_dicom(path: Path, time_point: int | None, series: str | None = None) -> Voxels:
    uid = None if series is None else choose_series(path, list_series(path, nested=False)[0], series).uid
    reader = DICOMSeriesReader(time_point=time_point, series=uid)
    array, meta = reader.get_data(reader.read(path))
    # Colour comes last from the reader.
    array = np.moveaxis(array, -1, 0) if array.ndim == 4 else array[None]
    return Voxels(array, np.asarray(meta[MetaKeys.AFFINE], dtype=np.float64), "volume", "dicom")


def _read_picture(path: Path) -> Voxels:
    from PIL import Image
    from PIL.Image import DecompressionBombError

    try:
        if _is_deep_colour(path):
            array = _read_deep_colour(path)
        else:
            with Image.open(path) as picture:
                array = upright(np.asarray(_without_alpha(picture)), picture)
    # Pillow answers some broken PNG chunks with SyntaxError, ITK everything with RuntimeError.
    except (OSError, SyntaxError, RuntimeError, DecompressionBombError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(path, f"cannot be read as an image ({reason})", "Copy or export the file again.") from error
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

    with path.open("rb") as file:
        header = file.read(26)
    if header.startswith(b"\x89PNG\r\n\x1a\n"):
        # Bytes 24 and 25 of the IHDR chunk: bit depth and colour type (0 is gray; W3C PNG specification, 11.2.1).
        return len(header) == 26 and header[24] == 16 and header[25] != 0
    if not header.startswith((b"II", b"MM")):
        return False
    try:
        with Image.open(path) as picture:
            bits = picture.tag_v2.get(BITSPERSAMPLE, (1,)) if isinstance(picture, TiffImageFile) else (8,)
            return len(bits) > 1 and max(bits) > 8
    except UnidentifiedImageError:
        return True  # colour of floats: Pillow has no such mode


def _read_deep_colour(path: Path) -> np.ndarray:
    """(rows, columns, C) float32 of an image of several components at 16 bits or in floats."""
    import itk
    from PIL import Image

    io = itk.ImageIOFactory.CreateImageIO(str(path), itk.CommonEnums.IOFileMode_ReadMode)
    if io is None:
        raise InputError(path, "not a readable image", "Copy or export the file again.")
    io.SetFileName(str(path))
    io.ReadImageInformation()
    components, kind = io.GetNumberOfComponents(), io.GetComponentTypeAsString(io.GetComponentType())
    if io.GetNumberOfDimensions() > 2:
        raise InputError(path, "holds several pages", "Save one image per file.")
    # ITK announces 8 bits where it would have to cut deeper samples (colour planes stored apart).
    if components not in (1, 2, 3, 4) or kind in ("unsigned_char", "char"):
        remedy = "Save it as gray or RGB with interleaved samples."
        raise InputError(path, "this layout of colour samples cannot be read at its depth", remedy)
    pixel = itk.F if components == 1 else itk.Vector[itk.F, components]
    reader = ITKReader(reverse_indexing=True, pixel_type=pixel)
    array, _ = reader.get_data(reader.read(path))
    if scan_suffix(path).lower() == ".png":  # ITK heeds the tag of TIFF files alone
        with Image.open(path) as picture:
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
    file of a list), ``source_format`` (as of ``Voxels``) and ``nifti_header``.

    Args:
        time_point: which volume of a time series to read, counted from 0. Without it, such a series is rejected.
        series: which series of a DICOM folder with several: its UID, description or ``"auto"``.
    """

    def __init__(self, time_point: int | None = None, series: str | None = None) -> None:
        self.time_point = time_point
        self.series = series

    def __call__(self, image: str | Path | Sequence[str | Path]) -> MetaTensor:
        """Read one scan.

        Args:
            image: a file, the folder of one DICOM series, or a list of them to stack as channels.

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
        read = [read_voxels(path, self.time_point, self.series) for path in paths]
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
        return MetaTensor.ensure_torch_and_prune_meta(array, meta)


def _as_finite_float(path: Path, array: np.ndarray) -> np.ndarray:
    """The values as float32, rejected where they are no image."""
    with np.errstate(over="ignore"):  # values beyond float32 become infinite and are counted below
        values = np.array(array, dtype=np.float32, order="C")  # a copy: readers may lend memory
    bad = int(values.size - np.count_nonzero(np.isfinite(values)))
    if bad:
        problem = f"{bad} of {values.size} values are NaN or infinite"
        raise InputError(path, problem, "Replace them, for example by the background's value.")
    if all(channel.min() == channel.max() for channel in values):
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
        series: which series of a DICOM folder with several: its UID, description or ``"auto"``.
    """

    def __init__(
        self,
        keys: KeysCollection,
        time_point: int | None = None,
        allow_missing_keys: bool = False,
        series: str | None = None,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.loader = LoadScan(time_point, series)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Read the scans of one item.

        Args:
            data: maps each key to a path or a list of paths.

        Returns:
            A copy with (C, X, Y, Z) float32 scans under the keys.

        Raises:
            InputError: as :class:`LoadScan` does.
        """
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self.loader(item[key])
        return item


LoadScanD = LoadScanDict = LoadScand
