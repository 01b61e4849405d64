"""Reading DICOM: one series in a folder, or one file of one or many frames, stacked by position in the patient."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from monai.config import PathLike
from monai.data import ImageReader
from monai.utils import MetaKeys, ensure_tuple

from monai_anomaly.exceptions import InputError
from monai_anomaly.io.untrusted import DEFLATE_RATIO, check_holds, check_readable, refuse_damage

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.uid import UID

__all__ = [
    "DICOMSeriesReader",
    "choose_volume",
    "is_dicom_file",
    "is_dicom_folder",
    "is_localizer",
    "read_header",
    "stack_affine",
    "stack_slices",
]

# Suffixes that no DICOM file carries; other files are opened to see whether they are DICOM.
_OTHER_SUFFIXES = frozenset(
    (".nii", ".gz", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".json", ".csv", ".txt", ".zip", ".py", ".md")
)
# Suffixes that DICOM files alone carry: such a file that is none is a damaged slice.
_DICOM_SUFFIXES = (".dcm", ".ima")
# Elements that hold pixels: integers, floats and doubles.
_PIXEL_DATA = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
# What tells images at one place apart, in the order by which volumes are numbered.
_DIFFERENCES = (
    *("AcquisitionNumber", "TemporalPositionIdentifier", "TemporalPositionIndex"),
    *("EchoTime", "EffectiveEchoTime", "EchoNumbers", "DiffusionBValue", "DiffusionGradientOrientation"),
    *("InversionTime", "FlipAngle", "NominalCardiacTriggerDelayTime", "TriggerTime", "ImageType", "FrameType"),
)
# Of these, what may change from slice to slice of one volume.
_MAY_VARY = ("AcquisitionNumber", "TriggerTime", "NominalCardiacTriggerDelayTime")
# What is read of each header before any pixel data.
_HEADER = (
    *_DIFFERENCES,
    *("SOPInstanceUID", "SOPClassUID", "SeriesInstanceUID", "StudyInstanceUID", "SeriesDescription", "Modality"),
    *("Manufacturer", "InstanceNumber", "ImagesInAcquisition", "AcquisitionTime", "ContentTime"),
    *("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "NumberOfFrames", "PhotometricInterpretation"),
    *("PixelSpacing", "ImagerPixelSpacing", "SpacingBetweenSlices", "SliceThickness"),
    *("ImageOrientationPatient", "ImagePositionPatient"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "SegmentSequence"),
)
# Siemens' private elements of a mosaic: how many slices it holds, and the CSA header, which has their normal.
_MOSAIC_TAGS = (0x00190010, 0x0019100A, 0x00290010, 0x00290011, 0x00291010, 0x00291110)
# Places of a frame's attributes in an enhanced file.
_GROUPS = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    **dict.fromkeys(("PixelSpacing", "SpacingBetweenSlices", "SliceThickness"), "PixelMeasuresSequence"),
    **dict.fromkeys(("TemporalPositionIndex", "DimensionIndexValues"), "FrameContentSequence"),
    "EffectiveEchoTime": "MREchoSequence",
    "DiffusionBValue": "MRDiffusionSequence",
    "NominalCardiacTriggerDelayTime": "CardiacSynchronizationSequence",
    "FrameType": "MRImageFrameTypeSequence",
    "FlipAngle": "MRTimingAndRelatedParametersSequence",
    **dict.fromkeys(("RescaleSlope", "RescaleIntercept"), "PixelValueTransformationSequence"),
}
# Positions are written to a tenth of a millimetre or finer: each may be off by half of it, and the line through them
# too. In fine stacks the limit is a fifth of the spacing: a lost slice leaves a quarter of it at the least.
_POSITION_MM, _POSITION_SHARE = 0.1, 0.2
# Nearer than this along the normal, and than half a hundredth of the spacing, two images are at one place.
_SAME_MM = 1e-2
# Direction cosines of one series differ by rounding only.
_COSINE = 1e-3
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Bytes of pixels that any compressed file may hold, since JPEG's codes of an even image have no bound; a frame has at
# least the head of a fragment.
_COMPRESSED_BYTES, _FRAGMENT_BYTES = 1 << 26, 8
# Kinds of images whose values are measurements: their polarity on a display says nothing of them.
_MEASURED = ("CT", "PT", "NM")


class _Slice(NamedTuple):
    """One image of a file: the file itself, a frame of it, or a tile of a mosaic.

    Attributes:
        file: where it is stored.
        header: of the file.
        frame: its number, from 0.
        tile: (grid, index) of a mosaic's tile; None otherwise.
        orientation: direction cosines along a row and a column, shape (6,); None where they are not known.
        position: of the first pixel, LPS mm, shape (3,); None where it is not known.
        spacing: mm between rows and between columns; None where it is not known.
        depth: mm between slices, or of the slice; None where neither is known.
        order: what tells it apart from others at its place, by name.
        last: what orders images that ``order`` does not.
    """

    file: Path
    header: Dataset
    frame: int
    tile: tuple[int, int] | None
    orientation: np.ndarray | None
    position: np.ndarray | None
    spacing: tuple[float, float] | None
    depth: float | None
    order: dict[str, Any]
    last: tuple[Any, ...]


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

    Raises:
        InputError: if the folder cannot be read.
    """
    path = Path(path)
    if not path.is_dir():
        return False
    with refuse_damage(path, remedy="Check its permissions."):
        return any(file.suffix.lower() not in _OTHER_SUFFIXES and is_dicom_file(file) for file in path.iterdir())


def is_localizer(header: Dataset) -> bool:
    """Whether an image says of itself that other images are planned on it (a scout)."""
    return "LOCALIZER" in (header.get("ImageType") or ())


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


class DICOMSeriesReader(ImageReader):
    """Reads one series, its slices ordered and checked by their positions.

    A slice is a file, a frame of an enhanced file, or a tile of a Siemens mosaic. Slices are sorted along the normal of
    their plane (the cross product of the row and column direction), never by instance number or file name, and their
    spacing is the distance of their positions, never the slice thickness. A single slice is as deep as
    ``SpacingBetweenSlices`` or ``SliceThickness`` say. The Modality LUT or rescale slope and intercept are applied, to
    each slice its own; MONOCHROME1 images, whose least value is white, are inverted unless their values are
    measurements (CT, PET, nuclear medicine). The array is (columns, rows, slices), or (columns, rows, slices, 3) for a
    colour image.

    Args:
        time_point: which volume to read where positions repeat (time points, echoes, b-values, ...), counted from 0 in
            the order of acquisition number, temporal position, echo time, b-value and what else differs, then of
            instance numbers. Without it such a series is rejected, and in any case where nothing tells the images of a
            position apart.
        series: SeriesInstanceUID of the series to read from a folder of several. Without it such a folder is rejected.

    References:
        DICOM PS3.3, C.7.6.2 (Image Plane Module), C.7.6.16 (functional groups), C.11.1 (Modality LUT):
        https://dicom.nema.org/medical/dicom/current/output/chtml/part03/
    """

    def __init__(self, time_point: int | None = None, series: str | None = None) -> None:
        super().__init__()
        self.time_point = time_point
        self.series = series
        self._where = Path()

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether a path is a DICOM file or a folder of such."""
        return all(is_dicom_file(path) or is_dicom_folder(path) for path in map(Path, ensure_tuple(filename)))

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> list[_Slice]:
        """Read the headers of one series.

        Args:
            data: the folder of one series, or one DICOM file.
            kwargs: as in MONAI; none is used.

        Returns:
            The slices of one volume, from the first to the last position.

        Raises:
            InputError: where the files are no single complete series of parallel, evenly spaced slices.
        """
        names = ensure_tuple(data)
        if len(names) != 1:
            raise InputError("DICOM", f"{len(names)} paths were given", "Read one series at a time.")
        self._where = Path(names[0])
        headers = _read_headers(self._where)
        if self.series is not None:
            headers = [(f, h) for f, h in headers if str(h.get("SeriesInstanceUID", "")) == self.series]
            if not headers:
                raise InputError(self._where, f"holds no series {self.series}", "Name one that it holds.")
        return stack_slices(self._where, headers, self.time_point)

    def get_data(self, img: list[_Slice]) -> tuple[np.ndarray, dict]:
        """Array and header of what :meth:`read` returned.

        Args:
            img: the answer of :meth:`read`.

        Returns:
            (columns, rows, slices) array, colour as a last axis; and MONAI's meta dictionary, whose ``affine`` maps
            voxel indices to RAS millimetres.

        Raises:
            InputError: where the pixel data cannot be decoded, or are more or less than the header states.
        """
        with refuse_damage(self._where, "the pixel data cannot be read", "Export the series again."):
            array = np.stack([plane.swapaxes(0, 1) for plane in self._planes(img)], axis=2)
            affine = stack_affine(self._where, img)
        meta = {
            MetaKeys.AFFINE: affine,
            MetaKeys.ORIGINAL_AFFINE: affine.copy(),
            MetaKeys.SPATIAL_SHAPE: np.asarray(array.shape[:3]),
            MetaKeys.ORIGINAL_CHANNEL_DIM: -1 if array.ndim == 4 else float("nan"),
        }
        return array, meta

    def _planes(self, slices: Sequence[_Slice]) -> Iterator[np.ndarray]:
        """The pixels of each slice, (rows, columns) or (rows, columns, 3), scaled."""
        import pydicom
        from pydicom.pixels import pixel_array
        from pydicom.uid import RLELossless

        opened: tuple[Path, Any] | None = None
        for part in slices:
            if opened is None or opened[0] != part.file:
                opened = part.file, pydicom.dcmread(part.file)
                _check_pixel_bytes(self._where, opened[1])
            dataset = opened[1]
            syntax = dataset.file_meta.get("TransferSyntaxUID")
            try:
                frame = part.frame if _number_of_frames(self._where, dataset) > 1 else None
                if syntax is not None and syntax.is_compressed:
                    _check_frame_size(self._where, dataset, part.frame)
                pixels = pixel_array(dataset, index=frame)
                if syntax == RLELossless:
                    _check_runs(self._where, dataset, part.frame)
            except InputError:
                raise
            except Exception as error:
                # decoders raise a dozen types for damaged data
                if syntax is not None and syntax.is_compressed and not _can_decode(syntax):
                    problem = f"the pixel data ({syntax.name}) cannot be decoded"
                    remedy = 'Install the decoders: pip install "monai-anomaly[dicom]".'
                    raise InputError(self._where, problem, remedy) from error
                raise
            if part.tile is not None:
                pixels = _tile(pixels, *part.tile)
            yield _scaled(self._where, pixels, dataset, part)


def read_header(file: Path) -> Dataset:
    """Read what the reader needs of a file's header, without pixel data.

    Args:
        file: a DICOM file, whatever its name.

    Raises:
        InvalidDicomError: where it is none.
        EOFError: where it ends early.
        OSError: where it cannot be opened.
    """
    import pydicom

    return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=[*_HEADER, *_MOSAIC_TAGS])


def stack_slices(where: Path, headers: list[tuple[Path, Dataset]], time_point: int | None = None) -> list[_Slice]:
    """Order the images of one series, and check that they make one whole volume.

    Args:
        where: what errors name.
        headers: files with their headers.
        time_point: as for :class:`DICOMSeriesReader`.

    Returns:
        The slices of one volume, from the first to the last position.

    Raises:
        InputError: as :meth:`DICOMSeriesReader.read` does.
    """
    # pydicom converts values where they are used, and raises what the conversion does
    with refuse_damage(where, "a value of the header cannot be read", "Export the series again."):
        _check_one_series(where, headers)
        for file, header in headers:
            _check_stated_size(where, file, header)
        slices = [part for file, header in headers for part in _slices(where, file, header)]
        stack = _select_stack(where, slices, time_point)
        _warn_of_lost_images(where, headers)
        return stack


def _warn_of_lost_images(where: Path, headers: list[tuple[Path, Dataset]]) -> None:
    """Warn where an acquisition states more images than there are: a lost slice at an end leaves no gap."""
    acquisitions = Counter(str(header.get("AcquisitionNumber")) for _, header in headers)
    for _, header in headers:
        stated, held = int(header.get("ImagesInAcquisition") or 0), acquisitions[str(header.get("AcquisitionNumber"))]
        if stated > held and not header.get("NumberOfFrames"):
            warnings.warn(
                f"{where}: the header states {stated} images, there are {held}: the series may lack slices.",
                stacklevel=3,
            )
            return


def _check_stated_size(where: Path, file: Path, header: Dataset) -> None:
    """Check that a file can hold the pixels that its header states, before a frame of them is made."""
    size, frames = check_readable(file), _number_of_frames(where, header)
    bits = frames * header.Rows * header.Columns * int(header.get("SamplesPerPixel") or 1)
    stated = bits * int(header.get("BitsAllocated") or 8) // 8
    if header.get("PhotometricInterpretation") == "YBR_FULL_422":
        stated = stated // 3 * 2
    syntax = header.file_meta.get("TransferSyntaxUID")
    if syntax is not None and syntax.is_compressed:
        check_holds(where, frames * _FRAGMENT_BYTES, size)
        check_holds(where, stated, max(DEFLATE_RATIO * size, _COMPRESSED_BYTES))
    else:
        check_holds(where, stated, size * (DEFLATE_RATIO if syntax is not None and syntax.is_deflated else 1))


def _check_pixel_bytes(where: Path, dataset: Dataset) -> None:
    """Check that pixel data are what the header states: of more or less, rows would be sheared or slices lost."""
    from pydicom.encaps import parse_basic_offsets
    from pydicom.pixels.utils import get_expected_length

    pixels = next((dataset[key].value for key in _PIXEL_DATA if dataset.get(key) is not None), None)
    if pixels is None:
        raise InputError(where, "holds no pixel data", "Export the series again.")
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is not None and syntax.is_compressed:
        held, stated, what = len(parse_basic_offsets(pixels)), _number_of_frames(where, dataset), "frames"
        differ = held > stated  # a table of their places may be left out
    else:
        held, stated, what = len(pixels), get_expected_length(dataset), "bytes"
        # less than a row or a column too many is padding
        line = min(dataset.Rows, dataset.Columns) * dataset.SamplesPerPixel * dataset.BitsAllocated // 8
        differ = not stated <= held < stated + max(line, 2)
    if differ:
        problem = f"the header states {stated} {what} of pixel data, the file holds {held}"
        raise InputError(where, problem, "Export the series again.")


def _check_frame_size(where: Path, dataset: Dataset, frame: int) -> None:
    """Check the size that a JPEG or JPEG 2000 image states itself, before a decoder makes it."""
    from PIL import Image
    from pydicom.encaps import get_frame

    content = get_frame(dataset.PixelData, frame, number_of_frames=_number_of_frames(where, dataset))
    try:
        with Image.open(BytesIO(content), formats=("JPEG", "JPEG2000")) as image:
            size = image.size
    except (OSError, SyntaxError):
        return  # another codec, or one that Pillow does not read: the decoder decides
    if size != (dataset.Columns, dataset.Rows):
        problem = f"a frame has {size[0]} x {size[1]} pixels, the header states {dataset.Columns} x {dataset.Rows}"
        raise InputError(where, problem, "Export the series again.")


def _check_runs(where: Path, dataset: Dataset, frame: int) -> None:
    """Check that a frame of run lengths is no larger than the header states; pydicom cuts it to size."""
    from pydicom.pixels import get_decoder

    # as one row that is longer by the least that a wrong number of rows or columns makes: it must be too long
    pixels = dataset.Rows * dataset.Columns + min(dataset.Rows, dataset.Columns)
    decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
    try:
        decoder.as_array(dataset, index=frame, raw=True, validate=False, rows=1, columns=pixels)
    except RuntimeError:
        return
    raise InputError(where, "a frame holds more pixels than the header states", "Export the series again.")


def _scaled(where: Path, pixels: np.ndarray, dataset: Dataset, part: _Slice) -> np.ndarray:
    """Stored values as the image's own: polarity, then Modality LUT or rescale."""
    from pydicom.pixels import apply_modality_lut

    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        if dataset.get("Modality") in _MEASURED:
            warnings.warn(f"{where}: MONOCHROME1, but the values are measurements: they are kept.", stacklevel=3)
        else:
            # the complement, of unsigned and of signed values
            top = -1 if dataset.get("PixelRepresentation") else 2 ** int(dataset.BitsStored) - 1
            pixels = (top - pixels.astype(np.int64)).astype(pixels.dtype)
    if dataset.get("ModalityLUTSequence"):
        return apply_modality_lut(pixels, dataset)
    slope, intercept = (_attribute(dataset, part.frame, key) for key in ("RescaleSlope", "RescaleIntercept"))
    if slope is None and intercept is None:
        return pixels
    slope, intercept = float(1 if slope is None else slope), float(intercept or 0)
    return pixels if (slope, intercept) == (1, 0) else (pixels * np.float64(slope) + intercept).astype(np.float32)


def _tile(mosaic: np.ndarray, grid: int, index: int) -> np.ndarray:
    rows, columns = (size // grid for size in mosaic.shape[:2])
    down, across = divmod(index, grid)
    return mosaic[down * rows : (down + 1) * rows, across * columns : (across + 1) * columns]


def _can_decode(syntax: UID) -> bool:
    from pydicom.pixels import get_decoder

    try:
        return bool(get_decoder(syntax).is_available)
    except NotImplementedError:
        return False


def _read_headers(where: Path) -> list[tuple[Path, Dataset]]:
    """Headers of the DICOM images at a path, in the order of the names; what is none is named in one warning."""
    from pydicom.errors import InvalidDicomError

    try:
        files = sorted(file for file in where.iterdir() if file.is_file()) if where.is_dir() else [where]
    except OSError as error:
        raise InputError(where, f"the folder cannot be listed ({error.strerror})", "Check its permissions.") from error
    headers, ignored, damaged = [], [], []
    for file in files:
        try:
            header = read_header(file)
        except (InvalidDicomError, EOFError):
            ignored.append(f"{file.name} (no DICOM)")
            if file.suffix.lower() in _DICOM_SUFFIXES or is_dicom_file(file):
                damaged.append(file.name)
            continue
        except OSError as error:
            raise InputError(file, f"cannot be read ({error})", "Copy the file again.") from error
        if header.get("Rows") and header.get("Columns"):
            headers.append((file, header))
        else:
            ignored.append(f"{file.name} (no image)")
    if not headers:
        raise InputError(where, "holds no DICOM image", "Name a DICOM image or the folder of one series.")
    if damaged:
        problem = f"{damaged[0]} is damaged or no DICOM file: the series may lack a slice"
        raise InputError(where, problem, "Copy the file again, or take it out if it is no slice.")
    if ignored:
        more = f" and {len(ignored) - 10} more" if len(ignored) > 10 else ""
        warnings.warn(f"{where}: ignored {', '.join(ignored[:10])}{more}.", stacklevel=2)
    return headers


def _check_one_series(where: Path, headers: list[tuple[Path, Dataset]]) -> None:
    """Reject several series, segmentations, copies, and images of different size or kind."""
    series = Counter(str(header.get("SeriesInstanceUID", "no UID")) for _, header in headers)
    if len(series) > 1:
        # not by their descriptions, which may name the patient
        listed = ", ".join(f"{uid}: {count} images" for uid, count in series.items())
        raise InputError(
            where,
            f"holds {len(series)} series ({listed})",
            "Choose one with the option series (its UID or description), or put each into a folder of its own.",
        )
    if any("SegmentSequence" in header for _, header in headers):
        raise InputError(where, "holds a segmentation, not a scan", "Name the scan it was drawn on.")
    seen: dict[str, Path] = {}
    for file, header in headers:
        uid = str(header.get("SOPInstanceUID", file))
        # equal UIDs of different images are no copies: identities lost in anonymisation
        if uid in seen and _content(seen[uid]) == _content(file):
            raise InputError(where, f"{seen[uid].name} and {file.name} are the same image", "Remove the copies.")
        seen[uid] = file
    sizes = Counter((h.Rows, h.Columns, int(h.get("SamplesPerPixel") or 1)) for _, h in headers)
    if len(sizes) > 1:
        listed = ", ".join(f"{count} of {rows} x {columns}" for (rows, columns, _), count in sizes.items())
        raise InputError(
            where, f"the images differ in size ({listed})", "Leave only one stack of slices in the folder."
        )
    if any(is_localizer(header) for _, header in headers):
        warnings.warn(f"{where}: is a localizer (ImageType): no scan that a detector is calibrated for.", stacklevel=3)
    samples = next(iter(sizes))[2]
    if samples > 1 and (len(headers) > 1 or _number_of_frames(where, headers[0][1]) > 1):
        raise InputError(where, "is a series of colour images", "Name one colour image, or export the scan as gray.")
    if headers[0][1].get("PhotometricInterpretation") == "PALETTE COLOR":
        raise InputError(where, "holds palette colours, not intensities", "Export the images as gray or RGB.")
    if any("VFRAME" in (header.get("ImageType") or ()) for _, header in headers):
        problem = "is a grid of slices in one image (ImageType VFRAME, UIH), which is not unfolded"
        raise InputError(where, problem, "Convert it to NIfTI, for example by dcm2niix.")


def _content(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _number_of_frames(where: Path, header: Dataset) -> int:
    remedy = "Correct the header, or export it again."
    stated = header.get("NumberOfFrames")
    with refuse_damage(where, f"NumberOfFrames is {stated!r}", remedy):
        frames = int(stated or 1)
    if frames < 1:
        raise InputError(where, f"NumberOfFrames is {frames}", remedy)
    return frames


def _attribute(header: Dataset, frame: int, key: str) -> Any:
    """An attribute of a frame: of its functional groups, of those that all frames share, or of the file itself."""
    places = (header.get("PerFrameFunctionalGroupsSequence") or [])[frame : frame + 1]
    for groups in (*places, *(header.get("SharedFunctionalGroupsSequence") or [])):
        items = groups.get(_GROUPS.get(key, ""))
        if items and items[0].get(key) is not None:
            return items[0].get(key)
    found = header.get(key)
    return None if found == "" else found


def _slices(where: Path, file: Path, header: Dataset) -> Iterator[_Slice]:
    """The images of a file."""
    frames = _number_of_frames(where, header)
    for frame in range(frames):

        def of(key: str, frame: int = frame) -> Any:
            return _attribute(header, frame, key)

        orientation, position = (
            np.asarray(value, dtype=np.float64) if (value := of(key)) is not None and len(value) else None
            for key in ("ImageOrientationPatient", "ImagePositionPatient")
        )
        spacing = of("PixelSpacing") or header.get("ImagerPixelSpacing")
        depth = abs(float(of("SpacingBetweenSlices") or of("SliceThickness") or 0)) or None
        order = {key: _plain(of(key)) for key in _DIFFERENCES}
        times = [str(header.get(key) or "") for key in ("AcquisitionTime", "ContentTime")]
        index = tuple(int(value) for value in of("DimensionIndexValues") or ())
        size = None if not spacing else (float(spacing[0]), float(spacing[1]))
        last = (int(header.get("InstanceNumber") or 0), *times, index)
        part = _Slice(file, header, frame, None, orientation, position, size, depth, order, last)
        if frames == 1 and "MOSAIC" in (header.get("ImageType") or ()):
            yield from _unfolded(where, part)
        else:
            yield part


def _plain(value: Any) -> Any:
    """A header's value as one that compares: numbers, texts and tuples of them; None for none."""
    if value is None or isinstance(value, (str, bytes)) or not hasattr(value, "__len__"):
        return value if isinstance(value, str) or value is None else float(value)
    return tuple(_plain(part) for part in value)


def _unfolded(where: Path, mosaic: _Slice) -> Iterator[_Slice]:
    """The slices of a Siemens mosaic: tiles row by row, along the normal from the mosaic's own position.

    The position of a mosaic is that of its corner, were the whole of it one slice around the slice's middle.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nibabel calls the whole subpackage experimental
        from nibabel.nicom import csareader

    header = mosaic.header
    remedy = "Convert it to NIfTI, for example by dcm2niix."
    csa = csareader.get_csa_header(header, "image")
    private = header.get((0x0019, 0x100A))
    number = (csareader.get_n_mosaic(csa) if csa else None) or (None if private is None else int(private.value))
    if not number:
        raise InputError(where, "is a mosaic (several slices in one image) that does not say of how many", remedy)
    if mosaic.orientation is None or mosaic.position is None or mosaic.spacing is None or mosaic.depth is None:
        raise InputError(where, "is a mosaic without position, orientation or spacing", remedy)
    grid = math.ceil(math.sqrt(number))
    if header.Rows % grid or header.Columns % grid:
        raise InputError(where, f"is a mosaic of {number} slices, into which its size does not divide", remedy)
    row, column, normal = _axes(where, mosaic.orientation)
    stated = csareader.get_slice_normal(csa) if csa else None
    if stated is not None and float(np.dot(stated, normal)) < 0:
        normal = -normal
    across = (header.Columns - header.Columns // grid) / 2 * mosaic.spacing[1]
    down = (header.Rows - header.Rows // grid) / 2 * mosaic.spacing[0]
    first = mosaic.position + across * row + down * column
    for index in range(number):
        yield mosaic._replace(tile=(grid, index), position=first + index * mosaic.depth * normal)


def _axes(where: Path, orientation: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit vectors (LPS) along a row, along a column, and along the normal."""
    row, column = orientation.reshape(2, 3)
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if not np.allclose(lengths, 1, atol=_COSINE) or abs(row @ column) > _COSINE:
        raise InputError(where, "ImageOrientationPatient holds no perpendicular unit vectors", "Correct the headers.")
    return row, column, np.cross(row, column)


def _select_stack(where: Path, slices: list[_Slice], time_point: int | None) -> list[_Slice]:
    """The slices of one volume in the order of their positions along the normal."""
    without = [part for part in slices if part.position is None or part.orientation is None]
    if without and len(slices) > 1:
        if len({part.file for part in slices}) == 1:
            problem = f"its {len(slices)} frames carry no position in the patient"
            raise InputError(where, problem, "Export it as a series of single slices.")
        problem = (
            f"{len(without)} of {len(slices)} images have no position or orientation ({without[0].file.name}, ...)"
        )
        raise InputError(where, problem, "Name one of the files, or export the series with its geometry.")
    if len(slices) == 1:
        choose_volume(where, time_point, 1)
        return slices
    orientations = np.array([part.orientation for part in slices])
    if np.abs(orientations - orientations[0]).max() > _COSINE:
        raise InputError(where, "the slices differ in orientation", "Leave only one stack of parallel slices.")
    spacings = np.array([part.spacing or (1.0, 1.0) for part in slices])
    if not np.allclose(spacings, spacings[0], rtol=_COSINE):
        raise InputError(where, "the slices differ in pixel spacing", "Leave only one stack of slices in the folder.")
    positions = np.array([part.position for part in slices])
    along = positions @ _axes(where, orientations[0])[2]
    groups: list[list[int]] = []
    for index in np.argsort(along, kind="stable"):
        if groups and along[index] - along[groups[-1][0]] <= _SAME_MM:
            groups[-1].append(int(index))
        else:
            groups.append([int(index)])
    counts = Counter(len(group) for group in groups)
    if len(counts) > 1:
        listed = ", ".join(f"{number} positions with {size}" for size, number in sorted(counts.items()))
        problem = f"the number of images differs between positions ({listed})"
        raise InputError(where, problem, "Export the complete series again, or leave one image per position.")
    chosen = _one_volume(where, slices, groups, time_point)
    if len(chosen) > 1:
        _check_even_spacing(where, positions[chosen], along[chosen])
    return [slices[index] for index in chosen]


def _one_volume(where: Path, slices: list[_Slice], groups: list[list[int]], time_point: int | None) -> list[int]:
    """By position the image of the volume that was asked for."""
    if len(groups[0]) == 1:
        choose_volume(where, time_point, 1)
        return [group[0] for group in groups]
    differing = [key for key in _DIFFERENCES if any(len({slices[i].order[key] for i in g}) > 1 for g in groups)]
    # texts and missing values compare as what they are written as
    ranked = [
        sorted(group, key=lambda i: ([_sortable(slices[i].order[key]) for key in differing], slices[i].last))
        for group in groups
    ]
    for group in ranked:
        keys = [([slices[i].order[key] for key in differing], slices[i].last) for i in group]
        alike = [place for place, (one, other) in enumerate(pairwise(keys)) if one == other]
        if alike:
            names = " and ".join(slices[i].file.name for i in group[alike[0] : alike[0] + 2])
            problem = f"nothing in the headers tells images at one position apart ({names})"
            raise InputError(where, problem, "Leave one image per position, or export the series again.")
    what = f": they differ in {', '.join(differing)}" if differing else ""
    held = f"images at every position (time points, echoes or b-values{what})"
    volume = choose_volume(where, time_point, len(groups[0]), held)
    chosen = [group[volume] for group in ranked]
    for key in differing:
        if key not in _MAY_VARY and len({slices[i].order[key] for i in chosen}) > 1:
            values = ", ".join(sorted({str(slices[i].order[key]) for i in chosen})[:4])
            problem = f"the images of volume {volume} differ in {key} ({values})"
            raise InputError(where, problem, "Leave the images of one kind in the folder.")
    return chosen


def _sortable(value: Any) -> tuple[int, Any]:
    """Numbers before texts, and missing values before both."""
    if value is None:
        return 0, 0.0
    return (1, value) if isinstance(value, float) else (2, str(value))


def _check_even_spacing(where: Path, positions: np.ndarray, along: np.ndarray) -> None:
    """Reject positions that leave the evenly spaced line through all of them, along the normal or across it."""
    steps = np.diff(along)
    number = np.arange(len(along))
    spacing = (along[-1] - along[0]) / (len(along) - 1)
    tolerance = min(_POSITION_MM, _POSITION_SHARE * spacing)
    tolerance = max(tolerance, _SAME_MM, 1e-2 * spacing)
    fitted = np.polyval(np.polyfit(number, along, 1), number)
    if np.abs(along - fitted).max() > tolerance:
        usual = float(np.median(steps))
        worst = int(np.abs(steps - usual).argmax())
        others = np.delete(steps, worst)
        elsewhere = f"{others.min():.3f} to {others.max():.3f}" if np.ptp(others) > 2e-3 else f"{usual:.3f}"
        problem = (
            f"the slices are not evenly spaced: {steps[worst]:.3f} mm between {along[worst]:.3f} and "
            f"{along[worst + 1]:.3f} mm along the normal, {elsewhere} mm elsewhere"
        )
        raise InputError(where, problem, "Export the complete series again, or resample it to even slices.")
    line = positions[0] + np.linspace(0, 1, len(positions))[:, None] * (positions[-1] - positions[0])
    away = np.linalg.norm(positions - line, axis=1)
    # the ends, which the line goes through, are rounded too
    if away.max() > 2 * tolerance:
        problem = f"slice {int(away.argmax()) + 1} of {len(away)} is shifted by {away.max():.3f} mm against the others"
        raise InputError(where, problem, "Leave only one stack of slices in the folder.")


def stack_affine(where: Path, slices: Sequence[_Slice]) -> np.ndarray:
    """Affine of a stack, of one slice, or of a projection image that has a pixel spacing but no place.

    Args:
        where: what a warning names.
        slices: of :func:`stack_slices`.

    Returns:
        (4, 4), voxel indices (column, row, slice) to RAS mm.
    """
    first, last = slices[0], slices[-1]
    row_step, column_step = first.spacing or (1.0, 1.0)
    affine = np.eye(4)
    if first.position is None or first.orientation is None or last.position is None:
        warnings.warn(
            f"{where}: the header gives no position in the patient; only the pixel size is kept.", stacklevel=3
        )
        affine[:2, :2] = np.diag([column_step, row_step])
        return affine
    row, column, normal = _axes(where, first.orientation)
    if len(slices) > 1:
        through = (last.position - first.position) / (len(slices) - 1)
    else:
        if first.depth is None:
            warnings.warn(f"{where}: the header gives no depth of the slice; 1 mm is assumed.", stacklevel=3)
        through = normal * (first.depth or 1.0)
    affine[:3, :3] = np.column_stack([row * column_step, column * row_step, through])
    affine[:3, 3] = first.position
    return _LPS_TO_RAS @ affine
