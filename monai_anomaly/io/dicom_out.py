"""Results as DICOM objects of the study that the scan is from: segmentation, parametric map, overlay and report."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from monai_anomaly import __version__
from monai_anomaly.exceptions import InputError
from monai_anomaly.io.dicom import DICOMSeriesReader

if TYPE_CHECKING:
    from monai.data import MetaTensor
    from pydicom import Dataset

__all__ = [
    "MASK_RGB",
    "MOST_LESIONS",
    "DetectorIdentity",
    "DicomSource",
    "measurement_report",
    "overlay_series",
    "parametric_map",
    "segmentation",
]

# Light blue, as in overview.png.
MASK_RGB = (86, 212, 255)
# Lesions of one report: voxel-wise masks may have thousands of single voxels.
MOST_LESIONS = 100
# Outlines of one report, beyond which lesions are outlined in one slice: each takes highdicom hundredths of a second.
_MOST_OUTLINES = 50
_RESEARCH = "Research use only, not for diagnosis"
# Attributes of patient and study that must be there but may be empty (PS3.3, C.7.1.1 and C.7.2.1).
_MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
# Directions of the patient along x, y and z (LPS), rising and falling (PS3.3, C.7.6.1.1.1).
_LETTERS = (("L", "R"), ("P", "A"), ("H", "F"))
# A code of our own needs a scheme of our own, marked by 99 (PS3.3, section 8.2).
_SCHEME = "99MONAIANOMALY"
_SERIES = {"segmentation": 1, "parametric map": 2, "overlay": 3, "report": 4}


class DetectorIdentity(NamedTuple):
    """Who made a result.

    Attributes:
        name: of the method.
        sha256: of ``model.pt``, 64 hexadecimal digits.
        parameters: what else decides the result, such as threshold and rate, by name.
    """

    name: str
    sha256: str
    parameters: Mapping[str, str]


class DicomSource:
    """The images that a scan was read from.

    Args:
        scan: as ``LoadScan`` gives it, (C, columns, rows, slices); of several series the first is the source.
        time_point: which volume of the series it is.

    Attributes:
        where: the folder or file.
        headers: one of each file, without pixels, in the order of the slices.
        slices: as ``DICOMSeriesReader`` finds them.

    Raises:
        InputError: if the scan is no DICOM, its files changed since it was read, or its study has no UID.
    """

    def __init__(self, scan: MetaTensor, time_point: int | None = None) -> None:
        import pydicom

        self.where = Path(scan.meta["source"][0])
        if scan.meta.get("source_format") != "dicom":
            raise InputError(self.where, "is no DICOM: there is no study that DICOM results could belong to")
        reader = DICOMSeriesReader(time_point=time_point, series=scan.meta.get("series"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # told when the scan was read
            self.slices = reader.read(self.where)
        read = {part.file: pydicom.dcmread(part.file, stop_before_pixels=True) for part in self.slices}
        self.headers = list(read.values())
        self._read = read
        header = self.headers[0]
        if self.slices[0].tile is None and (header.Columns, header.Rows, len(self.slices)) != tuple(scan.shape[1:]):
            raise InputError(self.where, "has changed since it was read")
        for header in self.headers:
            if not header.get("StudyInstanceUID"):
                raise InputError(self.where, "has no StudyInstanceUID: there is no study that results could belong to")
            for keyword in _MAY_BE_EMPTY:
                if keyword not in header:
                    setattr(header, keyword, None)
            if header.get("NumberOfFrames") == 1 and "SharedFunctionalGroupsSequence" not in header:
                del header.NumberOfFrames  # a plain image, which highdicom would take for an enhanced one

    def header(self, index: int) -> Dataset:
        """Of the file that a slice is in."""
        return self._read[self.slices[index].file]

    @property
    def has_place(self) -> bool:
        """Whether the images say where they are in the patient."""
        return bool(self.headers[0].get("FrameOfReferenceUID")) and self.slices[0].position is not None

    def frame_arguments(self, volume: np.ndarray) -> dict[str, Any]:
        """What highdicom's multi-frame objects take of a volume.

        Args:
            volume: (columns, rows, slices).

        Returns:
            Source images and planes, (slices, rows, columns), and the planes' places where they are not all frames.

        Raises:
            InputError: if the images are tiles of a mosaic, or frames that such an object cannot refer to.
        """
        import highdicom as hd

        planes, header = np.ascontiguousarray(np.asarray(volume).transpose(2, 1, 0)), self.headers[0]
        if self.slices[0].tile is not None:
            raise InputError(self.where, "is a mosaic: there is no way to refer to slices within an image")
        if "NumberOfFrames" not in header:
            return {"source_images": self.headers, "pixel_array": planes}
        if "SharedFunctionalGroupsSequence" not in header:
            raise InputError(self.where, "is a file of frames of an older kind, without functional groups")
        if len(self.headers) > 1:
            raise InputError(self.where, f"is {len(self.headers)} files of frames: only one can be referred to")
        frames = [part.frame for part in self.slices]
        if len(frames) == int(header.NumberOfFrames):
            ordered = np.empty_like(planes)
            ordered[frames] = planes
            return {"source_images": self.headers, "pixel_array": ordered}
        places = [hd.PlanePositionSequence("PATIENT", part.position) for part in self.slices]
        return {"source_images": self.headers, "pixel_array": planes, "plane_positions": places}

    def corrected(self, dataset: Dataset) -> Dataset:
        """What highdicom leaves open: the depth of one slice, and which of several frames at a place is meant."""
        depth = self.slices[0].depth
        if len(self.slices) == 1 and self.has_place and depth:
            (measures,) = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
            measures.SpacingBetweenSlices = measures.SliceThickness = depth
        if "NumberOfFrames" in self.headers[0]:
            chosen = {part.frame + 1 for part in self.slices}
            for groups in dataset.PerFrameFunctionalGroupsSequence:
                for derivation in groups.DerivationImageSequence:
                    items = derivation.SourceImageSequence
                    derivation.SourceImageSequence = [item for item in items if item.ReferencedFrameNumber in chosen]
        return dataset

    def common(self, kind: str, identity: DetectorIdentity) -> dict[str, Any]:
        """New identity of a series, and the equipment that it is from."""
        import highdicom as hd

        number = min(int(self.headers[0].get("SeriesNumber") or 0), 10**6)
        return {
            "series_instance_uid": hd.UID(),
            "series_number": 100 * number + _SERIES[kind],
            "series_description": f"Anomaly {kind} ({identity.name}), research use only"[:64],
            "manufacturer": "MONAI",
            "manufacturer_model_name": "monai_anomaly",
            "software_versions": __version__,
            "device_serial_number": identity.sha256,
        }


def segmentation(source: DicomSource, mask: np.ndarray, identity: DetectorIdentity) -> Dataset:
    """A binary segmentation with the segment "Anomaly"; all slices are in it, so that any reader finds the grid.

    Args:
        source: the images.
        mask: (columns, rows, slices), bool.
        identity: of the detector.

    Returns:
        The object, with UIDs of its own.
    """
    import highdicom as hd
    from pydicom.sr.codedict import codes

    segment = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label="Anomaly",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Lesion,
        algorithm_type="AUTOMATIC",
        algorithm_identification=_algorithm(identity),
        tracking_uid=hd.UID(),
        tracking_id="Anomaly",
        display_color=hd.color.CIELabColor.from_rgb(*MASK_RGB),
    )
    found = hd.seg.Segmentation(
        **source.frame_arguments(np.asarray(mask, np.uint8)),
        **source.common("segmentation", identity),
        segmentation_type="BINARY",
        segment_descriptions=[segment],
        sop_instance_uid=hd.UID(),
        instance_number=1,
        content_label="ANOMALY",
        content_description=_RESEARCH,
        omit_empty_frames=False,
    )
    if not source.has_place:
        found.PatientOrientation = source.headers[0].get("PatientOrientation")
    return _without_equipment(source.corrected(found))


def parametric_map(source: DicomSource, anomaly_map: np.ndarray, identity: DetectorIdentity) -> Dataset:
    """The map as float32, without a unit.

    Args:
        source: the images.
        anomaly_map: (columns, rows, slices).
        identity: of the detector.

    Returns:
        The object, with UIDs of its own.

    Raises:
        InputError: if the images have no place in the patient.
    """
    import highdicom as hd
    from pydicom.sr.codedict import codes

    if not source.has_place:
        raise InputError(source.where, "has no place in the patient, without which there is no parametric map")
    values = np.asarray(anomaly_map, np.float32)
    low, high = float(values.min()), float(values.max())
    mapping = hd.pm.RealWorldValueMapping(
        lut_label="ANOMALY",
        lut_explanation="Anomaly map, larger is more anomalous",
        unit=codes.UCUM.NoUnits,
        value_range=(low, high),
        slope=1,
        intercept=0,
        quantity_definition=_code("anomaly_map", "Anomaly map value"),
    )
    found = hd.pm.ParametricMap(
        **source.frame_arguments(values),
        **source.common("parametric map", identity),
        sop_instance_uid=hd.UID(),
        instance_number=1,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        # only this function may have a window of less than 1
        voi_lut_transformations=[
            hd.VOILUTTransformation(
                window_center=(low + high) / 2, window_width=max(high - low, 1e-6), voi_lut_function="LINEAR_EXACT"
            )
        ],
        content_label="ANOMALY",
        content_description=_RESEARCH,
    )
    return _completed(source.corrected(found), source.headers[0])


def overlay_series(
    source: DicomSource, pictures: Iterable[np.ndarray], identity: DetectorIdentity, description: str
) -> Iterator[Dataset]:
    """Colour images of the slices, one a slice, that any viewer shows.

    Args:
        source: the images.
        pictures: (rows, columns, 3), uint8, in the order of the slices.
        identity: of the detector.
        description: how they were made.

    Yields:
        Secondary captures with UIDs of their own, marked as derived.
    """
    import highdicom as hd

    common = source.common("overlay", identity)
    for index, (part, picture) in enumerate(zip(source.slices, pictures)):
        header = source.header(index)
        image = hd.sc.SCImage.from_ref_dataset(
            ref_dataset=header,
            pixel_array=np.ascontiguousarray(picture),
            photometric_interpretation="RGB",
            bits_allocated=8,
            coordinate_system="PATIENT",
            sop_instance_uid=hd.UID(),
            instance_number=index + 1,
            pixel_spacing=part.spacing,
            patient_orientation=("L", "P"),  # replaced below
            transfer_syntax_uid="1.2.840.10008.1.2.1",
            **common,
        )
        image.copy_patient_and_study_information(header)  # as highdicom's other objects do by themselves
        image.PatientOrientation = header.get("PatientOrientation")
        if part.orientation is not None:
            image.PatientOrientation = [_direction(vector) for vector in part.orientation.reshape(2, 3)]
        if source.has_place and part.orientation is not None and part.position is not None:
            image.ImageOrientationPatient = [_decimal(value) for value in part.orientation]
            image.ImagePositionPatient = [_decimal(value) for value in part.position]
            image.FrameOfReferenceUID = header.FrameOfReferenceUID
            image.PositionReferenceIndicator = header.get("PositionReferenceIndicator")
        image.BurnedInAnnotation = "NO"  # no patient is named
        image.DerivationDescription = f"{description}. {_RESEARCH}."
        image.SourceImageSequence = [_reference(header, part.frame)]
        yield _completed(image, header)


def measurement_report(
    source: DicomSource,
    segments: Dataset,
    lesions: Sequence[Mapping[str, Any]],
    numbers: np.ndarray,
    score: float,
    p_value: float | None,
    identity: DetectorIdentity,
) -> Dataset:
    """A report of the scan's score and of each lesion's volume, peak and p-value (TID 1500).

    Args:
        source: the images.
        segments: of the mask, as ``segmentation`` gave them.
        lesions: rows of ``lesion_table``, the most anomalous first; more than ``MOST_LESIONS`` are counted alone.
        numbers: (columns, rows, slices), of the lesion at each voxel, as ``numbered_lesions`` gives them.
        score: of the scan.
        p_value: of the score; None without calibration.
        identity: of the detector.

    Returns:
        A Comprehensive SR, with UIDs of its own. All lesions together refer to the segment, each alone to its outlines
        in the images (without holes; of many lesions the later ones in one image each), and its name says where its
        peak is in the patient.
    """
    import highdicom as hd
    from pydicom.sr.codedict import codes
    from scipy.ndimage import find_objects

    none, millilitre = codes.UCUM.NoUnits, hd.sr.CodedConcept("ml", "UCUM", "milliliter")
    p_name = hd.sr.CodedConcept("C44185", "NCIt", "P-Value")
    algorithm = hd.sr.AlgorithmIdentification(
        name=identity.name,
        version=__version__,
        parameters=[f"{name}: {value}" for name, value in _parameters(identity).items()],
    )

    def measured(name: Any, value: float | None, unit: Any = none) -> list[Any]:
        return [] if value is None else [hd.sr.Measurement(name=name, value=value, unit=unit)]

    def lesion_group(name: str, measurements: list[Any], **referenced: Any) -> Any:
        return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
            tracking_identifier=hd.sr.TrackingIdentifier(uid=hd.UID(), identifier=name),
            finding_category=codes.SCT.MorphologicallyAbnormalStructure,
            finding_type=codes.SCT.Lesion,
            algorithm_id=algorithm,
            measurements=measurements,
            **referenced,
        )

    whole = hd.sr.ReferencedSegment(
        sop_class_uid=segments.SOPClassUID,
        sop_instance_uid=segments.SOPInstanceUID,
        segment_number=1,
        source_series=hd.sr.SourceSeriesForSegmentation(source.headers[0].SeriesInstanceUID),
    )
    groups: list[Any] = [
        hd.sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=hd.sr.TrackingIdentifier(uid=hd.UID(), identifier="Scan"),
            algorithm_id=algorithm,
            measurements=[
                *measured(_code("anomaly_score", "Anomaly score of the scan"), score),
                *measured(p_name, p_value),
            ],
        ),
        lesion_group(
            "All anomalies",
            measured(_code("anomaly_count", "Number of anomalies"), len(lesions)),
            referenced_segment=whole,
        ),
    ]
    boxes, outlined = find_objects(numbers, MOST_LESIONS), 0
    for row in lesions[:MOST_LESIONS]:
        name = f"Anomaly {row['lesion']}"
        if source.has_place:
            # a volume's group has no room for coordinates (TID 1411)
            point = (-row["peak_x_mm"], -row["peak_y_mm"], row["peak_z_mm"])
            named = (f"{letters[int(value < 0)]}{abs(value):.1f}" for value, letters in zip(point, _LETTERS))
            name += f", peak at {' '.join(named)} mm"
        measurements = [
            *measured(codes.SCT.Volume, row["volume_ml"], millilitre),
            *measured(_code("anomaly_peak", "Peak of the anomaly map"), row["peak"]),
            *measured(p_name, row["p_value"]),
        ]
        outlines = list(_outlines(source, numbers, row["lesion"], boxes[row["lesion"] - 1], outlined < _MOST_OUTLINES))
        outlined += len(outlines)
        groups.append(lesion_group(name, measurements, referenced_regions=outlines))
    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=hd.UID(), name="monai_anomaly", manufacturer_name="MONAI", model_name=identity.name
    )
    context = hd.sr.ObservationContext(
        observer_device_context=hd.sr.ObserverContext(
            observer_type=codes.DCM.Device, observer_identifying_attributes=device
        )
    )
    content = hd.sr.MeasurementReport(
        observation_context=context,
        procedure_reported=hd.sr.CodedConcept("363679005", "SCT", "Imaging procedure"),
        imaging_measurements=groups,
    )
    report = hd.sr.ComprehensiveSR(
        evidence=[*source.headers, segments],
        content=content,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        is_complete=True,
        **source.common("report", identity),
    )
    report.CompletionFlagDescription = _RESEARCH
    return _without_equipment(report)


def _outlines(source: DicomSource, numbers: np.ndarray, lesion: int, box: Any, full: bool) -> Iterator[Any]:
    """The outlines of a lesion, which lies in a box, in every slice or in that where most of it is."""
    import highdicom as hd
    from scipy.ndimage import binary_fill_holes
    from skimage.measure import find_contours

    part = numbers[box] == lesion
    pixels = part.sum(axis=(0, 1))
    for depth in np.flatnonzero(pixels).tolist() if full else [int(pixels.argmax())]:
        index = box[2].start + depth
        reference = _reference(source.header(index), source.slices[index].frame)
        frame = reference.get("ReferencedFrameNumber")
        image = hd.sr.SourceImageForRegion(
            reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID, None if frame is None else [frame]
        )
        plane = np.pad(binary_fill_holes(part[:, :, depth]), 1)
        for contour in find_contours(plane.astype(np.float64), 0.5, fully_connected="high"):
            # half a pixel around the outermost ones; the centre of the first, 1 of the padded plane, is at .5
            yield hd.sr.ImageRegion("POLYLINE", contour - 0.5 + [box[0].start, box[1].start], image)


def _parameters(identity: DetectorIdentity) -> dict[str, str]:
    return {"detector_sha256": identity.sha256, **identity.parameters}


def _algorithm(identity: DetectorIdentity) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    return hd.AlgorithmIdentificationSequence(
        name=identity.name,
        family=codes.DCM.ArtificialIntelligence,
        version=__version__,
        source="monai_anomaly",
        parameters=_parameters(identity),
    )


def _code(value: str, meaning: str) -> Any:
    import highdicom as hd

    return hd.sr.CodedConcept(value, _SCHEME, meaning)


def _without_equipment(dataset: Dataset) -> Dataset:
    """Drop what highdicom carries over of the scanner and its institution."""
    if "ContributingEquipmentSequence" in dataset:
        del dataset.ContributingEquipmentSequence
    return dataset


def _completed(dataset: Dataset, header: Dataset) -> Dataset:
    """Add the body part of an image, or an empty side where the source names neither: one of the two must be there."""
    for keyword in ("Laterality", "BodyPartExamined"):
        if header.get(keyword):
            setattr(dataset, keyword, header.get(keyword))
    if not header.get("Laterality") and not header.get("BodyPartExamined"):
        dataset.Laterality = None
    return _without_equipment(dataset)


def _direction(vector: np.ndarray) -> str:
    """The letters of a direction, the strongest first (PS3.3, C.7.6.1.1.1)."""
    order = [int(axis) for axis in np.argsort(-np.abs(vector), kind="stable") if abs(vector[axis]) > 1e-3]
    return "".join(_LETTERS[axis][int(vector[axis] < 0)] for axis in order)


def _decimal(value: float) -> Any:
    from pydicom.valuerep import DSfloat

    return DSfloat(float(value), auto_format=True)


def _reference(header: Dataset, frame: int) -> Dataset:
    from pydicom import Dataset

    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    if "NumberOfFrames" in header:
        item.ReferencedFrameNumber = frame + 1
    return item
