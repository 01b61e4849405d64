"""Reading DICOM: one series in a folder, or one file of one or many frames, stacked by position in the patient."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from monai.config import PathLike
from monai.data import ITKReader, PydicomReader
from monai.utils import MetaKeys, ensure_tuple

from monai_anomaly.exceptions import InputError

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.uid import UID

__all__ = ["DICOMSeriesReader", "choose_volume", "is_dicom_file", "is_dicom_folder"]

# Suffixes that no DICOM file carries; other files are opened to see whether they are DICOM.
_OTHER_SUFFIXES = frozenset(
    (".nii", ".gz", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".json", ".csv", ".txt", ".zip", ".py", ".md")
)
# What is read of each header before any pixel data.
_HEADER = (
    "SOPInstanceUID",
    "SOPClassUID",
    "SeriesInstanceUID",
    "SeriesDescription",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "NumberOfFrames",
    "PhotometricInterpretation",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "SpacingBetweenSlices",
    "InstanceNumber",
    "AcquisitionNumber",
    "TemporalPositionIdentifier",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "SegmentSequence",
)
# Scanners write positions to about 1e-3 mm; a hundredth, or a hundredth of the spacing, is no gap.
_POSITION_MM, _POSITION_SHARE = 1e-2, 1e-2
# Direction cosines of one series differ by rounding only.
_COSINE = 1e-3
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def is_dicom_file(path: str | Path) -> bool:
    """Whether a file starts as DICOM files do (128 bytes, then ``DICM``), whatever its name.

    Args:
        path: an existing file.

    Returns:
        Whether it does; ``False`` for folders and files that cannot be opened.
    """
    from pydicom.misc import is_dicom

    try:
        return Path(path).is_file() and bool(is_dicom(path))
    except OSError:
        return False


def is_dicom_folder(path: str | Path) -> bool:
    """Whether a folder holds at least one DICOM file directly.

    Args:
        path: any path.

    Returns:
        Whether it does; ``False`` for anything but a folder.
    """
    path = Path(path)
    if not path.is_dir():
        return False
    return any(file.suffix.lower() not in _OTHER_SUFFIXES and is_dicom_file(file) for file in path.iterdir())


def choose_volume(where: str | Path, time_point: int | None, volumes: int, held: str = "volumes") -> int:
    """The volume to read of a time series.

    Args:
        where: the file or folder, for the message.
        time_point: the wanted volume, counted from 0, or ``None``.
        volumes: how many there are, at least 1.
        held: what the message says there are several of.

    Returns:
        The index of the volume, 0 where there is but one.

    Raises:
        InputError: where there are several and none was chosen, or the chosen one does not exist.
    """
    remedy = f"Choose one with the option time_point (0 to {volumes - 1})."
    if time_point is None and volumes > 1:
        raise InputError(where, f"holds {volumes} {held}", remedy)
    if time_point is not None and not 0 <= time_point < volumes:
        raise InputError(where, f"has no time_point {time_point}, the number of volumes is {volumes}", remedy)
    return time_point or 0


class DICOMSeriesReader(PydicomReader):
    """MONAI's ``PydicomReader`` for one series, ordered and checked by the slices' positions.

    The slices of a folder are sorted along the normal of their plane (the cross product of the row and column
    direction), never by instance number or file name, and their spacing is the distance of their positions, never the
    slice thickness. Rescale slope and intercept are applied. The array is (columns, rows, slices), or
    (columns, rows, slices, 3) for a colour image. A single slice is taken as ``SpacingBetweenSlices`` deep, or 1 mm
    where the header does not say. Enhanced multi-frame files are read by MONAI's ``ITKReader`` and checked against the
    position of every frame.

    Args:
        time_point: which volume to read where positions repeat (time points, echoes, b-values), counted from 0 in the
            order of acquisition number, temporal position and instance number. Without it such a series is rejected.

    References:
        DICOM PS3.3, C.7.6.2 (Image Plane Module): https://dicom.nema.org/medical/dicom/current/output/chtml/part03/
    """

    def __init__(self, time_point: int | None = None) -> None:
        super().__init__()
        self.time_point = time_point
        self._where = Path()
        self._first: Any = None

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Any:
        """Read the files of one series.

        Args:
            data: the folder of one series, or one DICOM file.
            kwargs: further arguments of ``pydicom.dcmread``.

        Returns:
            The datasets from the first to the last position, or an ITK image for a multi-frame file.

        Raises:
            InputError: where the files are no single complete series of parallel, evenly spaced slices.
        """
        import pydicom

        names = ensure_tuple(data)
        if len(names) != 1:
            raise InputError("DICOM", f"{len(names)} paths were given", "Read one series at a time.")
        self._where = Path(names[0])
        headers = _read_headers(self._where)
        _check_one_series(self._where, headers)
        path, first = headers[0]
        if int(first.get("NumberOfFrames") or 1) > 1:
            choose_volume(self._where, self.time_point, 1)
            self._first = first
            return _read_enhanced(path)
        headers = _select_stack(self._where, headers, self.time_point)
        self._first = headers[0][1]
        datasets = [pydicom.dcmread(file, **kwargs) for file, _ in headers]
        for index, dataset in enumerate(datasets):
            # The parent class stacks by this number.
            dataset.InstanceNumber = index + 1
            for key in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
                if key in dataset and not dataset.get(key):
                    delattr(dataset, key)  # the parent class takes an empty attribute for a value
        self.has_series = len(datasets) > 1
        self.filenames = [[str(file) for file, _ in headers]] if self.has_series else [str(path)]
        return datasets

    def get_data(self, data: Any) -> tuple[np.ndarray, dict]:
        """Array and header of what :meth:`read` returned.

        Args:
            data: the answer of :meth:`read`.

        Returns:
            (columns, rows, slices) array, colour as a last axis; and MONAI's meta dictionary, whose ``affine`` maps
            voxel indices to RAS millimetres.

        Raises:
            InputError: where the pixel data cannot be decoded, or a multi-frame file lies elsewhere than its header
                says.
        """
        if not isinstance(data, list):
            return _enhanced_voxels(self._where, data, self._first)
        syntax = data[0].file_meta.get("TransferSyntaxUID")
        try:
            with warnings.catch_warnings():
                # A lone projection image has no position; that is dealt with below.
                warnings.filterwarnings("ignore", message="PydicomReader: ImageOrientationPatient")
                array, meta = super().get_data(data)
        except (RuntimeError, NotImplementedError, AttributeError, TypeError, ValueError) as error:
            if syntax is not None and syntax.is_compressed and not _can_decode(syntax):
                problem = f"the pixel data ({syntax.name}) cannot be decoded"
                remedy = 'Install the decoders: pip install "monai-anomaly[dicom]".'
                raise InputError(self._where, problem, remedy) from error
            problem = f"the pixel data cannot be read ({' '.join(str(error).split())})"
            raise InputError(self._where, problem, "Export the series again.") from error
        if len(data) == 1:
            array = array[:, :, None]
            meta[MetaKeys.AFFINE] = _affine_of_slice(self._where, self._first)
            meta[MetaKeys.ORIGINAL_AFFINE] = meta[MetaKeys.AFFINE].copy()
            meta[MetaKeys.SPATIAL_SHAPE] = array.shape[:3]
            meta[MetaKeys.ORIGINAL_CHANNEL_DIM] = -1 if array.ndim == 4 else float("nan")
        return array, meta


def _can_decode(syntax: UID) -> bool:
    from pydicom.pixels import get_decoder

    try:
        return bool(get_decoder(syntax).is_available)
    except NotImplementedError:
        return False


def _read_headers(where: Path) -> list[tuple[Path, Dataset]]:
    """Headers of the DICOM images at a path, in the order of the names; what is none is named in one warning."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        files = sorted(file for file in where.iterdir() if file.is_file()) if where.is_dir() else [where]
    except OSError as error:
        raise InputError(where, f"the folder cannot be listed ({error.strerror})", "Check its permissions.") from error
    headers, ignored = [], []
    for file in files:
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_HEADER))
        except (InvalidDicomError, EOFError):
            ignored.append(f"{file.name} (no DICOM)")
            continue
        except OSError as error:
            raise InputError(file, f"cannot be read ({error})", "Copy the file again.") from error
        if header.get("Rows") and header.get("Columns"):
            headers.append((file, header))
        else:
            ignored.append(f"{file.name} (no image)")
    if not headers:
        raise InputError(where, "holds no DICOM image", "Name a DICOM image or the folder of one series.")
    if ignored:
        more = f" and {len(ignored) - 10} more" if len(ignored) > 10 else ""
        warnings.warn(f"{where}: ignored {', '.join(ignored[:10])}{more}.", stacklevel=2)
    return headers


def _check_one_series(where: Path, headers: list[tuple[Path, Dataset]]) -> None:
    """Reject several series, segmentations, copies, several multi-frame files, and images of different size."""
    series = Counter(str(header.get("SeriesInstanceUID", "no UID")) for _, header in headers)
    if len(series) > 1:
        names = {str(h.get("SeriesInstanceUID", "no UID")): h.get("SeriesDescription") or "unnamed" for _, h in headers}
        listed = ", ".join(f"{names[uid]} [{uid}]: {count} images" for uid, count in series.items())
        raise InputError(where, f"holds {len(series)} series ({listed})", "Put each series into a folder of its own.")
    if any("SegmentSequence" in header for _, header in headers):
        raise InputError(where, "holds a segmentation, not a scan", "Name the scan it was drawn on.")
    seen: dict[str, Path] = {}
    for file, header in headers:
        uid = str(header.get("SOPInstanceUID", file))
        if uid in seen:
            raise InputError(where, f"{seen[uid].name} and {file.name} are the same image", "Remove the copies.")
        seen[uid] = file
    if len(headers) > 1 and any(int(header.get("NumberOfFrames") or 1) > 1 for _, header in headers):
        raise InputError(where, f"holds {len(headers)} files with multi-frame images", "Name one of the files.")
    sizes = Counter((h.Rows, h.Columns, int(h.get("SamplesPerPixel") or 1)) for _, h in headers)
    if len(sizes) > 1:
        listed = ", ".join(f"{count} of {rows} x {columns}" for (rows, columns, _), count in sizes.items())
        raise InputError(
            where, f"the images differ in size ({listed})", "Leave only one stack of slices in the folder."
        )
    samples = next(iter(sizes))[2]
    if samples > 1 and len(headers) > 1:
        raise InputError(where, "is a series of colour images", "Name one of the files.")
    if headers[0][1].get("PhotometricInterpretation") == "PALETTE COLOR":
        raise InputError(where, "holds palette colours, not intensities", "Export the images as gray or RGB.")


def _axes(where: Path, header: Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit vectors (LPS) along a row, along a column, and along the normal."""
    row, column = np.asarray(header.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if not np.allclose(lengths, 1, atol=_COSINE) or abs(row @ column) > _COSINE:
        raise InputError(where, "ImageOrientationPatient holds no perpendicular unit vectors", "Correct the headers.")
    return row, column, np.cross(row, column)


def _has_plane(header: Dataset) -> bool:
    return bool(header.get("ImageOrientationPatient")) and bool(header.get("ImagePositionPatient"))


def _select_stack(
    where: Path, headers: list[tuple[Path, Dataset]], time_point: int | None
) -> list[tuple[Path, Dataset]]:
    """The slices of one volume in the order of their positions along the normal."""
    without = [file.name for file, header in headers if not _has_plane(header)]
    if without and len(headers) > 1:
        problem = f"{len(without)} of {len(headers)} images have no position or orientation ({without[0]}, ...)"
        raise InputError(where, problem, "Name one of the files, or export the series with its geometry.")
    if len(headers) == 1:
        choose_volume(where, time_point, 1)
        return headers
    normal = _axes(where, headers[0][1])[2]
    orientations = np.array([header.ImageOrientationPatient for _, header in headers], dtype=np.float64)
    if np.abs(orientations - orientations[0]).max() > _COSINE:
        raise InputError(where, "the slices differ in orientation", "Leave only one stack of parallel slices.")
    spacings = np.array([header.get("PixelSpacing") or (1, 1) for _, header in headers], dtype=np.float64)
    if not np.allclose(spacings, spacings[0], rtol=_COSINE):
        raise InputError(where, "the slices differ in pixel spacing", "Leave only one stack of slices in the folder.")

    positions = np.array([header.ImagePositionPatient for _, header in headers], dtype=np.float64)
    along = positions @ normal
    order = np.argsort(along, kind="stable")
    groups: list[list[int]] = []
    for index in order:
        if groups and along[index] - along[groups[-1][0]] <= _POSITION_MM:
            groups[-1].append(int(index))
        else:
            groups.append([int(index)])
    counts = Counter(len(group) for group in groups)
    if len(counts) > 1:
        listed = ", ".join(f"{number} positions with {size}" for size, number in sorted(counts.items()))
        problem = f"the number of images differs between positions ({listed})"
        raise InputError(where, problem, "Export the complete series again, or leave one image per position.")
    repeated = "images at every position (time points, echoes or b-values)"
    volume = choose_volume(where, time_point, len(groups[0]), repeated)
    chosen = [sorted(group, key=lambda index: _time_key(headers[index][1]))[volume] for group in groups]
    _check_even_spacing(where, positions[chosen], along[chosen])
    return [headers[index] for index in chosen]


def _time_key(header: Dataset) -> tuple[int, ...]:
    keys = ("AcquisitionNumber", "TemporalPositionIdentifier", "InstanceNumber")
    return tuple(int(header.get(key) or 0) for key in keys)


def _check_even_spacing(where: Path, positions: np.ndarray, along: np.ndarray) -> None:
    """Reject gaps along the normal and slices that leave the straight line from the first to the last position."""
    steps = np.diff(along)
    if not len(steps):
        return
    spacing = float(np.median(steps))
    tolerance = max(_POSITION_MM, _POSITION_SHARE * spacing)
    gaps = np.flatnonzero(np.abs(steps - spacing) > tolerance)
    if len(gaps):
        low, high = along[gaps[0]], along[gaps[0] + 1]
        problem = (
            f"the slices are not evenly spaced: {high - low:.3f} mm between {low:.3f} and {high:.3f} mm along the "
            f"normal, {spacing:.3f} mm elsewhere"
        )
        raise InputError(where, problem, "Export the complete series again.")
    line = positions[0] + np.linspace(0, 1, len(positions))[:, None] * (positions[-1] - positions[0])
    away = np.linalg.norm(positions - line, axis=1)
    if away.max() > tolerance:
        problem = f"slice {int(away.argmax()) + 1} of {len(away)} is shifted by {away.max():.3f} mm against the others"
        raise InputError(where, problem, "Leave only one stack of slices in the folder.")


def _affine_of_slice(where: Path, header: Dataset) -> np.ndarray:
    """(4, 4) RAS affine of one slice, or of a projection image that has a pixel spacing but no place."""
    row_step, column_step = (float(v) for v in header.get("PixelSpacing") or header.get("ImagerPixelSpacing") or (1, 1))
    affine = np.eye(4)
    if not _has_plane(header):
        warnings.warn(
            f"{where}: the header gives no position in the patient; only the pixel size is kept.", stacklevel=2
        )
        affine[:2, :2] = np.diag([column_step, row_step])
        return affine
    row, column, normal = _axes(where, header)
    depth = abs(float(header.get("SpacingBetweenSlices") or 1)) or 1.0
    affine[:3, :3] = np.column_stack([row * column_step, column * row_step, normal * depth])
    affine[:3, 3] = np.asarray(header.ImagePositionPatient, dtype=np.float64)
    return _LPS_TO_RAS @ affine


def _read_enhanced(path: Path) -> Any:
    """The ITK image of a multi-frame file."""
    try:
        return ITKReader().read(path)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        problem = f"the multi-frame image cannot be read ({reason})"
        raise InputError(path, problem, "Export it as a series of single slices.") from error


def _functional_group(header: Dataset, frame: Dataset, sequence: str, key: str) -> Any:
    """An attribute of a frame: its own, or the one that all frames share."""
    for groups in (frame, *(header.get("SharedFunctionalGroupsSequence") or [])):
        items = groups.get(sequence)
        if items and items[0].get(key) is not None:
            return items[0].get(key)
    return None


def _enhanced_voxels(where: Path, image: Any, header: Dataset) -> tuple[np.ndarray, dict]:
    """Array and meta of a multi-frame image, rejected unless each frame lies where the header says."""
    remedy = "Export it as a series of single slices."
    frames = header.get("PerFrameFunctionalGroupsSequence") or []
    attributes: dict[str, list[Any]] = defaultdict(list)
    for frame in frames:
        for sequence, key in (
            ("PlanePositionSequence", "ImagePositionPatient"),
            ("PlaneOrientationSequence", "ImageOrientationPatient"),
            ("PixelMeasuresSequence", "PixelSpacing"),
            ("PixelValueTransformationSequence", "RescaleSlope"),
            ("PixelValueTransformationSequence", "RescaleIntercept"),
        ):
            attributes[key].append(_functional_group(header, frame, sequence, key))
    geometry = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
    if not frames or any(value is None for key in geometry for value in attributes[key]):
        raise InputError(where, f"its {header.NumberOfFrames} frames carry no position in the patient", remedy)
    for key in ("RescaleSlope", "RescaleIntercept"):
        if len({str(value) for value in attributes[key]}) > 1:
            raise InputError(where, f"the frames differ in {key}", remedy)
    positions = np.array(attributes["ImagePositionPatient"], dtype=np.float64)
    if len(np.unique(np.round(positions / _POSITION_MM), axis=0)) < len(positions):
        raise InputError(where, "holds several frames at one position (time points, echoes or b-values)", remedy)

    array, meta = ITKReader().get_data(image)
    size = (int(header.Columns), int(header.Rows), len(frames))
    if array.shape != size:
        raise InputError(where, f"was read as {array.shape} where the header says {size}", remedy)
    affine = np.asarray(meta[MetaKeys.AFFINE], dtype=np.float64)
    for index in range(len(frames)):
        row, column = np.asarray(attributes["ImageOrientationPatient"][index], dtype=np.float64).reshape(2, 3)
        row_step, column_step = (float(value) for value in attributes["PixelSpacing"][index])
        for i, j in ((0, 0), (size[0] - 1, 0), (0, size[1] - 1)):
            stated = _LPS_TO_RAS[:3, :3] @ (positions[index] + i * column_step * row + j * row_step * column)
            away = float(np.linalg.norm((affine @ (i, j, index, 1))[:3] - stated))
            if away > max(_POSITION_MM, _POSITION_SHARE * float(np.linalg.norm(affine[:3, 2]))):
                problem = f"frame {index + 1} was read {away:.3f} mm away from where the header places it"
                raise InputError(where, problem, remedy)
    return array, meta
