"""Sets published as folders of images by class, and any other in the product's own layout of such folders."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from monai_anomaly.data.cohort import load_cohort
from monai_anomaly.exceptions import InputError
from monai_anomaly.io.content import shown_digest
from monai_anomaly.io.image_files import PICTURE_SUFFIXES, list_pictures

from .base import count_notes
from .layout import FileSet, ImageFile, Sides, patients_fact

__all__ = ["OCT2017", "BrainMRI", "ChestXray", "Endosome", "FolderSet"]


class FolderSet(FileSet, key="folders"):
    """Images in ``train/normal``, ``test/normal``, ``test/abnormal`` and, with the same stems, ``test/masks``.

    The patient of an image is what ``patients.csv`` (columns ``image``, relative to the root, and ``patient``) says,
    else the first group of ``patient_regex`` found in its relative path, else each image is its own.

    Args:
        root: the folder of these.
        patient_regex: regular expression with one group.
    """

    patient_regex: str | None = None

    def __init__(self, root: str | Path, patient_regex: str | None = None) -> None:
        super().__init__(root)
        if patient_regex is not None:
            self.patient_regex = patient_regex

    def _root(self, name: str) -> Path:
        return Path(os.path.abspath(self.root))  # as load_cohort names it

    def _sides(self, name: str) -> Sides:
        for folder in ("train/normal", "test/normal", "test/abnormal"):
            self.there(self.root / folder)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            cohort = load_cohort(self.root, patient_regex=self.patient_regex, calibration_fraction=0.0)
        assumed = [w for w in caught if "patients of" in str(w.message)]
        for other in (w for w in caught if w not in assumed):
            warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
        training = [*cohort.training, *cohort.validation, *cohort.calibration]
        for item in (*training, *cohort.test):
            if Path(item["image"]).suffix.lower() not in PICTURE_SUFFIXES:
                raise InputError(item["image"], "is no image", "Volumes run through the bundles, by a datalist.")
        masked = any(item["mask"] for item in cohort.test)
        for item in cohort.test:
            if masked and item["label"] == 1 and not item["mask"]:
                raise InputError(item["image"], "is abnormal and has no mask, as others have", "Add it, or remove all.")

        def files(items: Iterable[dict[str, Any]]) -> list[ImageFile]:
            return [
                ImageFile(
                    Path(item["image"]),
                    bool(item["label"]),
                    group="" if assumed else item["patient"],
                    mask=Path(item["mask"]) if item["mask"] else None,
                )
                for item in items
            ]

        sides = Sides(files(training), files(cohort.test))
        return sides._replace(facts=patients_fact([*sides.training, *sides.test]))


class Endosome(FolderSet, key="endosome"):
    """Fluorescence microscopy: ring-like endosomes are normal, other patterns abnormal."""


class _ClassFolders(FileSet):
    """Training and test folders of classes, patients in the names of the files."""

    normal: ClassVar[str] = "NORMAL"
    abnormal: ClassVar[tuple[str, ...]]
    patient: ClassVar[str]  # regular expression: its only group that matches is the patient
    form: ClassVar[str]  # of the names, in words
    counts: ClassVar[dict[str, tuple[int, ...]]]  # published, by folder; several versions have been

    def _sides(self, name: str) -> Sides:
        test = [file for kind in (self.normal, *self.abnormal) for file in self._files("test", kind)]
        return Sides(self._files("train", self.normal), test)

    def check(self) -> list[str]:
        return super().check() + [
            note
            for folder, published in self.counts.items()
            for note in count_notes(self.root / folder, {"images": (len(list_pictures(self.root / folder)), published)})
        ]

    def _kind(self, folder: str, file: Path) -> str:
        return folder

    def _files(self, side: str, kind: str) -> list[ImageFile]:
        return [
            ImageFile(file, kind != self.normal, self._kind(kind, file), self._patient(file))
            for file in self.images(self.root / side / kind)
        ]

    def _patient(self, file: Path) -> str:
        match = re.match(self.patient, file.name)
        if match is None:
            raise InputError(file, "names no patient", f"Keep the published names, {self.form}.")
        return next(group for group in match.groups() if group)


class OCT2017(_ClassFolders, key="oct2017"):
    """Optical coherence tomography of the retina: normal, neovascularisation (CNV), macular oedema (DME), drusen."""

    abnormal = ("CNV", "DME", "DRUSEN")
    patient = r"[A-Z]+-([0-9]+)-[0-9]+\."
    form = "NORMAL-<patient>-<number>.jpeg"


class ChestXray(_ClassFolders, key="cxr_kermany"):
    """Chest X-rays of children: normal and pneumonia, bacterial or viral."""

    abnormal = ("PNEUMONIA",)
    patient = r"(?:(?:NORMAL|BACTERIA|VIRUS)-([0-9]+)-[0-9]|((?:NORMAL2-)?IM-[0-9]+)-|(person[0-9]+)_)"
    form = "IM-<patient>-<number>.jpeg, person<patient>_bacteria_<number>.jpeg or NORMAL-<patient>-<number>.jpeg"

    def _kind(self, folder: str, file: Path) -> str:
        cause = re.search(r"bacteria|virus", file.name, re.IGNORECASE)
        return folder if cause is None else cause.group().lower()


# What a folder's name says, without capitals, underscores and the word tumor.
_BRAIN_KINDS = {
    "no": "normal",
    "normal": "normal",
    "yes": "tumor",
    "glioma": "glioma",
    "meningioma": "meningioma",
    "pituitary": "pituitary",
}


class BrainMRI(FileSet, key="brain_mri"):
    """Brain MRI images from the web, without and with tumours.

    ProxyAno joins two sources: one is the set of the four classes, in folders ``Training`` and ``Testing`` of
    ``no_tumor``, ``glioma_tumor``, ``meningioma_tumor`` and ``pituitary_tumor``; of the other it names
    an article alone. Sets in folders ``yes`` and ``no`` are read beside it, or without it.
    """

    most: ClassVar[int] = 500
    seed: ClassVar[int] = 0

    def _sides(self, name: str) -> Sides:
        files, copies = self._distinct
        rng = np.random.default_rng(self.seed)
        normal = rng.permutation([i for i, file in enumerate(files) if not file.abnormal])
        abnormal = rng.permutation([i for i, file in enumerate(files) if file.abnormal])
        train = min(len(normal) // 2, self.most)
        test = [*sorted(normal[train : train + self.most]), *sorted(abnormal[: self.most])]
        facts = {"seed": self.seed, "copies_dropped": copies, **patients_fact(files)}
        return Sides([files[i] for i in sorted(normal[:train])], [files[i] for i in test], facts)

    def check(self) -> list[str]:
        copies = self._distinct[1]
        dropped = [f"{self.root}: {copies} images are copies of others and not used"] if copies else []
        return super().check() + dropped

    @cached_property
    def _distinct(self) -> tuple[list[ImageFile], int]:
        """Images that differ, and how many copies there are besides."""
        first: dict[str, ImageFile] = {}
        count = 0
        for folder in sorted(self.root.glob("**/")):
            kind = self._kind(folder)
            for file in list_pictures(folder) if kind else []:
                count += 1
                image = ImageFile(file, kind != "normal", kind)
                other = first.setdefault(shown_digest(file), image)
                if other.abnormal != image.abnormal:
                    problem = f"shows the same as {other.path}, of the other class"
                    raise InputError(file, problem, "Leave one of them.")
        files = list(first.values())
        for abnormal, what in ((False, "no (or no_tumor)"), (True, "yes (or glioma_tumor, ...)")):
            if not any(file.abnormal == abnormal for file in files):
                raise self.wrong(self.root, f"holds no folder {what} with images")
        return files, count - len(files)

    def _kind(self, folder: Path) -> str:
        """What images right in a folder are of; empty for another folder, or one deeper than the published."""
        if not 1 <= len(folder.relative_to(self.root).parts) <= 3:
            return ""
        name = re.sub(r"[^a-z]|tumou?r", "", folder.name.lower())
        return _BRAIN_KINDS.get(name, "")
