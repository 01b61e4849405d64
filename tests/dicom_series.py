"""Series as a PACS has them."""

from __future__ import annotations

from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import generate_uid


def complete(slices: list[Dataset], **more: Any) -> list[Dataset]:
    """What a PACS knows of a series beside its images."""
    study, frame = generate_uid(), generate_uid()
    for dataset in slices:
        dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = study, frame
        dataset.SeriesInstanceUID = slices[0].SeriesInstanceUID
        dataset.PatientName, dataset.PatientID = "Doe^Jane", "MRN-7"
        dataset.PatientBirthDate, dataset.PatientSex = "19700102", "F"
        dataset.StudyDate, dataset.StudyTime, dataset.StudyID = "20260102", "101112", "S1"
        dataset.AccessionNumber, dataset.Modality, dataset.SeriesNumber = "A1", "MR", 7
        dataset.PositionReferenceIndicator, dataset.Manufacturer = None, "Scanner Works"
        dataset.InstitutionName, dataset.StationName, dataset.OperatorsName = "Hospital", "MR3", "Smith^John"
        for name, value in more.items():
            setattr(dataset, name, value)
    return slices
