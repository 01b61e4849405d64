"""Cohorts of volumes with lesions, as datalists: volumes run through the bundles.

The published scans all have, or may have, lesions, so they are test items alone. What trains and calibrates, and the
normals of the test, come from a folder of scans of normals that the user names.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, ClassVar

from monai_anomaly.data.cohort import load_cohort, relative_item, write_datalist
from monai_anomaly.exceptions import InputError
from monai_anomaly.io.image_files import natural_key
from monai_anomaly.io.load import NIFTI_SUFFIXES, read_voxels, scan_suffix
from monai_anomaly.io.tables import write_json

from .base import Published, count_notes

__all__ = ["BraTSCohort", "MSLUBCohort", "PublishedCohort"]


class PublishedCohort(Published):
    """Volumes in the layout in which they are published: one folder for each case.

    Args:
        root: the folder of the cases, or one that holds nothing but it.
        modality: which of the scans of a case, by any of its names (``"t2"`` or ``"t2w"``).

    Raises:
        InputError: if the folder or its cases are missing, or there is no such modality.
    """

    protocol: ClassVar[str] = (
        "All cases test, of label 1 where their outline marks any voxel; a folder of normals, divided by patient, "
        "trains, calibrates and tests beside them."
    )
    cases: ClassVar[str]  # regular expression of a case's folder name; its first group is the patient
    modalities: ClassVar[dict[str, tuple[str, ...]]]  # the names of each in file names; the first is the main one
    outline: ClassVar[str]  # regular expression of the outline's name, without the case's name and the suffix
    published: ClassVar[tuple[int, ...]]  # cases of the published versions

    def __init__(self, root: str | Path, modality: str = "flair") -> None:
        super().__init__(os.path.abspath(root))
        known = [name for name, spellings in self.modalities.items() if modality.lower() in (name, *spellings)]
        if not known:
            names = ", ".join(self.modalities)
            raise InputError("modality", f"{self.title} has no {modality!r}", f"Choose one of {names}.")
        self.modality = known[0]
        self.folders = self._cases()

    def check(self) -> list[str]:
        """Look over the cohort: the number of cases, and whether each has its scan and its outline.

        Returns:
            What differs from the published cohort but can be worked with, one line each.

        Raises:
            InputError: for what cannot.
        """
        for folder in self.folders:
            self._scan(folder)
            self._outline(folder)
        return count_notes(self.root, {"cases": (len(self.folders), self.published)})

    def test_items(self) -> list[dict[str, Any]]:
        """The cases as items of a datalist: ``case``, ``image``, ``patient``, ``label`` and, for lesions, ``mask``.

        Raises:
            InputError: if a scan or outline is missing, there are several, or an outline cannot be read.
        """
        items = []
        for folder in self.folders:
            image, outline = self._scan(folder), self._outline(folder)
            lesion = bool((read_voxels(outline).array > 0).any())
            match = re.fullmatch(self.cases, folder.name)
            assert match is not None
            item = {"case": folder.name, "image": str(image), "patient": match[1], "label": int(lesion)}
            items.append({**item, "mask": str(outline)} if lesion else item)
        return items

    def write_datalist(
        self,
        output: str | Path,
        normals: str | Path | None = None,
        *,
        patient_regex: str | None = None,
        calibration_fraction: float = 0.2,
        test_fraction: float = 0.2,
        seed: int = 0,
    ) -> dict[str, Any]:
        """Write the datalist of the cohort, for :func:`monai_anomaly.data.load_cohort` and the bundles.

        Args:
            output: the JSON file to write; one that exists is replaced.
            normals: folder of scans of normals, of the same modality and prepared alike; None for a datalist that only
                tests, with a detector trained elsewhere.
            patient_regex: of the normals, as in :func:`monai_anomaly.data.load_cohort`.
            calibration_fraction: share of the normals' patients who are not in the test that calibrate.
            test_fraction: share of the normals' patients who test.
            seed: chooses the patients.

        Returns:
            What was written: ``name`` and the sections ``training``, ``calibration`` and ``test``.

        Raises:
            InputError: as :meth:`test_items` and :func:`monai_anomaly.data.write_datalist`, or if patients or images of
                the normals are those of the cohort.
        """
        output = Path(os.path.abspath(output))
        items = self.test_items()
        datalist: dict[str, Any] = {"training": [], "calibration": [], "test": []}
        if normals is not None:
            datalist = write_datalist(
                normals,
                output,
                patient_regex=patient_regex,
                calibration_fraction=calibration_fraction,
                test_fraction=test_fraction,
                seed=seed,
            )
        datalist["test"] += [relative_item(item, output.parent) for item in items]
        datalist["name"] = self.key
        write_json(output, datalist)
        try:
            load_cohort(output)
        except InputError:
            output.unlink()
            raise
        return datalist

    def _cases(self) -> list[Path]:
        folder = self.root
        while True:
            inner = sorted(
                (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")),
                key=lambda path: natural_key(path.name),
            )
            found = [path for path in inner if re.fullmatch(self.cases, path.name)]
            if found:
                return found
            if len(inner) != 1:
                raise self.wrong(self.root, f"holds no case of {self.title}")
            folder = inner[0]

    def _scan(self, folder: Path) -> Path:
        names = "|".join(map(re.escape, self.modalities[self.modality]))
        return self._one(folder, rf"({names})(_.*)?", f"scan of modality {self.modality}")

    def _outline(self, folder: Path) -> Path:
        return self._one(folder, self.outline, "outline of lesions")

    def _one(self, folder: Path, pattern: str, what: str) -> Path:
        """The one NIfTI file of a case whose name, without that of the case, fits; those right in its folder first."""
        found: list[Path] = []
        for path in sorted(folder.rglob("*")):
            suffix = scan_suffix(path)
            if path.name.startswith(".") or suffix.lower() not in NIFTI_SUFFIXES or not path.is_file():
                continue
            stem = path.name.removesuffix(suffix).removeprefix(folder.name).lstrip("_-").lower()
            if re.fullmatch(pattern, stem):
                found.append(path)
        highest = min((len(path.parts) for path in found), default=0)
        found = [path for path in found if len(path.parts) == highest]
        if len(found) != 1:
            problem = f"has {len(found) or 'no'} {what}" + (f" ({', '.join(p.name for p in found)})" if found else "")
            raise InputError(folder, problem, "Fetch the case again." if not found else "Leave one of them.")
        return found[0]


class BraTSCohort(PublishedCohort, key="brats"):
    """BraTS: gliomas in four modalities, of 2013 to 2023 and after; all its cases have a tumour."""

    cases = r"(BraTS\d*_\w*?_?[0-9]+|BraTS-[A-Z]+-[0-9]+|[Bb]rats_\w+?_pat[0-9]+)(?:[-_][0-9]+)?"
    outline = r"seg|otmulticlass"


class MSLUBCohort(PublishedCohort, key="mslub"):
    """The Ljubljana cohort: 30 patients with multiple sclerosis, lesions outlined by consensus of three readers."""

    cases = r"(?:[A-Za-z]+_)?(patient[0-9]+)"
    outline = r"consensus_gt|gold_standard(_.*)?"
