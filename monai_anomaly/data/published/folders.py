"""Sets published as folders of images by class, and any other in the product's own layout of such folders."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import ClassVar

import numpy as np

from monai_anomaly.data.cohort import load_cohort
from monai_anomaly.exceptions import InputError
from monai_anomaly.io.content import shown_digest
from monai_anomaly.io.image_files import PICTURE_SUFFIXES, list_pictures

from .base import ImageSet, Problem, PublishedSet
from .layout import find_folder, folder_pictures, one_class_problem

__all__ = ["OCT2017", "BrainMRI", "ChestXray", "Endosome", "FolderSet"]


class FolderSet(PublishedSet):
    """Images in ``train/normal``, ``test/normal``, ``test/abnormal`` and, with the same stems, ``test/masks``.

    The patient of an image is what ``patients.csv`` (columns ``image``, relative to the root, and ``patient``) says,
    else the first group of ``patient_regex`` found in its relative path, else each image is its own.

    Args:
        root: the folder of these.
        patient_regex: regular expression with one group.
    """

    key = "folders"
    title = "a set in folders train/normal, test/normal, test/abnormal"
    source = "your own"
    licence = "your own"
    citation = ""
    protocol = "train/normal trains, test/normal and test/abnormal test; no patient and no image may be on both sides."
    by_hand = "Put images into train/normal, test/normal, test/abnormal and, named as those, masks into test/masks."
    patient_regex: str | None = None
    counts: ClassVar[dict[str, int]] = {}  # published, of each of the three folders

    def __init__(self, root: str | Path, patient_regex: str | None = None) -> None:
        super().__init__(root)
        if patient_regex is not None:
            self.patient_regex = patient_regex

    @property
    def problems(self) -> tuple[str, ...]:
        return ("all",)

    def problem(self, name: str) -> Problem:
        """The one problem of the set.

        Args:
            name: ``"all"``.

        Raises:
            InputError: as :func:`monai_anomaly.data.load_cohort`, or if a folder of the layout is missing, or a scan is
                no image.
        """
        self.require(name)
        for folder in ("train/normal", "test/normal", "test/abnormal"):
            if not (self.root / folder).is_dir():
                raise self.missing(self.root / folder)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            cohort = load_cohort(self.root, patient_regex=self.patient_regex, calibration_fraction=0.0)
        assumed = [w for w in caught if "patients of" in str(w.message)]
        for other in (w for w in caught if w not in assumed):
            warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
        items = {"training": [*cohort.training, *cohort.validation, *cohort.calibration], "test": cohort.test}
        for item in (item for side in items.values() for item in side):
            if Path(item["image"]).suffix.lower() not in PICTURE_SUFFIXES:
                raise InputError(item["image"], "is no image", "Volumes run through the bundles, by a datalist.")
        masked = any(item["mask"] for item in cohort.test)
        for item in cohort.test:
            if masked and item["label"] == 1 and not item["mask"]:
                raise InputError(item["image"], "is abnormal and has no mask, as others have", "Add it, or remove all.")
        sides = {}
        for side, entries in items.items():
            masks = [None if entry["mask"] is None else Path(entry["mask"]) for entry in entries]
            sides[side] = folder_pictures(
                cohort.root,
                [Path(entry["image"]) for entry in entries],
                [entry["label"] for entry in entries],
                groups=() if assumed else [entry["patient"] for entry in entries],
                masks=masks if masked and side == "test" else None,
            )
        facts = {"patients": "not known, each image counts as its own" if assumed else "known"}
        return one_class_problem(self.root, Problem(name, sides["training"], sides["test"], facts=facts))

    def check(self) -> list[str]:
        notes = super().check()
        problem = self.problem("all")
        normal = int((problem.test.labels == 0).sum())
        found = {
            "train/normal": len(problem.training),
            "test/normal": normal,
            "test/abnormal": len(problem.test) - normal,
        }
        for folder, count in self.counts.items():
            if found[folder] != count:
                notes.append(f"{self.root / folder}: {found[folder]} images, published are {count}")
        return notes


class Endosome(FolderSet):
    """Fluorescence microscopy: ring-like endosomes are normal, other patterns abnormal."""

    key = "endosome"
    title = "Endosome"
    source = "https://doi.org/10.1371/journal.pone.0218931"
    licence = "of the article CC BY 4.0; of the images not stated"
    citation = (
        "Lin et al., A two-stage method for automated detection of ring-like endosomes in fluorescent microscopy "
        "images, PLoS ONE 14(6), 2019"
    )
    protocol = (
        "DDR-ID section 4.3: 165 endosomes train, 214 others and 366 non-endosome patterns test. No folder layout is "
        "published with the article: the product's own is read."
    )
    by_hand = (
        "Ask the authors of https://doi.org/10.1371/journal.pone.0218931 for the patterns, and put endosomes of the "
        "training set into train/normal, of the test set into test/normal, other patterns into test/abnormal."
    )
    counts: ClassVar[dict[str, int]] = {"train/normal": 165, "test/normal": 214, "test/abnormal": 366}


class _ClassFolders(PublishedSet):
    """Training and test folders of classes, patients in the names of the files."""

    inner: ClassVar[tuple[str, ...]]
    normal: ClassVar[str] = "NORMAL"
    abnormal: ClassVar[tuple[str, ...]]
    patient: ClassVar[str]  # regular expression: its only group that matches is the patient
    form: ClassVar[str]  # of the names, in words
    counts: ClassVar[dict[str, tuple[int, ...]]]  # published, by folder; several versions have been

    def __init__(self, root: str | Path) -> None:
        super().__init__(root)
        inner = find_folder(self.root, *self.inner)
        self.root = self.root if inner is None else inner

    @property
    def problems(self) -> tuple[str, ...]:
        return ("all",)

    def problem(self, name: str) -> Problem:
        """The one problem of the set.

        Args:
            name: ``"all"``.

        Raises:
            InputError: if there is no such problem, or a folder is missing or empty, or a name has no patient.
        """
        self.require(name)
        training = self._side([("train", self.normal)])
        test = self._side([("test", kind) for kind in (self.normal, *self.abnormal)])
        return one_class_problem(self.root, Problem(name, training, test))

    def check(self) -> list[str]:
        notes = super().check()
        self.problem("all")
        for folder, published in self.counts.items():
            found = len(list_pictures(self.root / folder))
            if found not in published:
                versions = " or ".join(map(str, published))
                notes.append(f"{self.root / folder}: {found} images, published are {versions}")
        return notes

    def _kind(self, folder: str, file: Path) -> str:
        return folder

    def _side(self, folders: list[tuple[str, str]]) -> ImageSet:
        files: list[Path] = []
        kinds: list[str] = []
        for side, kind in folders:
            folder = self.root / side / kind
            if not folder.is_dir():
                raise self.missing(folder)
            found = list_pictures(folder)
            if not found:
                raise InputError(folder, "holds no image", self.how_to_get())
            files += found
            kinds += [self._kind(kind, file) for file in found]
        labels = [int(file.parent.name != self.normal) for file in files]
        return folder_pictures(self.root, files, labels, groups=[self._patient(file) for file in files], kinds=kinds)

    def _patient(self, file: Path) -> str:
        match = re.match(self.patient, file.name)
        if match is None:
            raise InputError(file, "names no patient", f"Keep the published names, {self.form}.")
        return next(group for group in match.groups() if group)


class OCT2017(_ClassFolders):
    """Optical coherence tomography of the retina: normal, neovascularisation (CNV), macular oedema (DME), drusen."""

    key = "oct2017"
    title = "OCT2017"
    source = "https://data.mendeley.com/datasets/rscbjbr9sj"
    licence = "CC BY 4.0"
    citation = (
        "Kermany et al., Identifying medical diagnoses and treatable diseases by image-based deep learning, Cell 2018"
    )
    protocol = (
        "ProxyAno section IV-C: normals of the published training folder train, the whole published test folder tests. "
        "Training images of patients who are in the test folder are left out, and counted."
    )
    by_hand = (
        "Fetch the OCT archive from https://data.mendeley.com/datasets/rscbjbr9sj (CC BY 4.0), unpack it, and name the "
        "folder OCT2017 or the one around it."
    )
    inner = ("OCT2017", "OCT2017 ", "CellData/OCT")
    abnormal = ("CNV", "DME", "DRUSEN")
    patient = r"[A-Z]+-([0-9]+)-[0-9]+\."
    form = "NORMAL-<patient>-<number>.jpeg"
    counts: ClassVar[dict[str, tuple[int, ...]]] = {
        "train/NORMAL": (26315, 51140),
        **{f"test/{kind}": (242, 250) for kind in ("NORMAL", "CNV", "DME", "DRUSEN")},
    }


class ChestXray(_ClassFolders):
    """Chest X-rays of children: normal and pneumonia, bacterial or viral."""

    key = "cxr_kermany"
    title = "Kermany's chest X-rays"
    source = "https://data.mendeley.com/datasets/rscbjbr9sj"
    licence = "CC BY 4.0"
    citation = OCT2017.citation
    protocol = (
        "Normals of the published training folder train, the whole published test folder tests. Training images of "
        "patients who are in the test folder are left out, and counted."
    )
    by_hand = (
        "Fetch the chest X-ray archive from https://data.mendeley.com/datasets/rscbjbr9sj (CC BY 4.0), unpack it, and "
        "name the folder chest_xray or the one around it."
    )
    inner = ("chest_xray", "CellData/chest_xray")
    abnormal = ("PNEUMONIA",)
    patient = r"(?:(?:NORMAL|BACTERIA|VIRUS)-([0-9]+)-[0-9]|((?:NORMAL2-)?IM-[0-9]+)-|(person[0-9]+)_)"
    form = "IM-<patient>-<number>.jpeg, person<patient>_bacteria_<number>.jpeg or NORMAL-<patient>-<number>.jpeg"
    counts: ClassVar[dict[str, tuple[int, ...]]] = {
        "train/NORMAL": (1341, 1349),
        "test/NORMAL": (234,),
        "test/PNEUMONIA": (390,),
    }

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


class BrainMRI(PublishedSet):
    """Brain MRI images from the web, without and with tumours.

    ProxyAno joins two sources: one is the set of the four classes, in folders ``Training`` and ``Testing`` of
    ``no_tumor``, ``glioma_tumor``, ``meningioma_tumor`` and ``pituitary_tumor``; of the other it names
    an article alone. Sets in folders ``yes`` and ``no`` are read beside it, or without it.
    """

    key = "brain_mri"
    title = "Brain MRI"
    source = "https://www.kaggle.com/sartajbhuvaji/brain-tumor-classification-mri"
    licence = "not established; see the page"
    citation = (
        "Zhou et al., Proxy-bridged image reconstruction network for anomaly detection in medical images, TMI 2022"
    )
    protocol = (
        "ProxyAno section IV-B has 500 normals to train, 500 normals and 500 abnormals to test, and leaves the split "
        "open: drawn by seed 0 from images that differ (copies are dropped; near-copies are not found). Half of the "
        "normals train, up to 500; of the others up to 500 test, and up to 500 abnormals. Patients are not known, and "
        "the sources mix modalities and planes between the classes."
    )
    by_hand = (
        "Fetch the Kaggle set sartajbhuvaji/brain-tumor-classification-mri (folders Training and Testing), another "
        "with folders yes and no, or both (see the pages for their licences), and unpack them below one folder."
    )
    most: ClassVar[int] = 500
    seed: ClassVar[int] = 0

    @property
    def problems(self) -> tuple[str, ...]:
        return ("all",)

    def problem(self, name: str) -> Problem:
        """The one problem of the set.

        Args:
            name: ``"all"``.

        Raises:
            InputError: if there is no such problem, or folders of a class are missing, or an image is both normal and
                abnormal.
        """
        self.require(name)
        files, kinds, copies = self._distinct()
        rng = np.random.default_rng(self.seed)
        normal = rng.permutation([i for i, kind in enumerate(kinds) if kind == "normal"])
        abnormal = rng.permutation([i for i, kind in enumerate(kinds) if kind != "normal"])
        train = min(len(normal) // 2, self.most)
        sides = {
            "training": sorted(normal[:train]),
            "test": [*sorted(normal[train : train + self.most]), *sorted(abnormal[: self.most])],
        }
        pictures = {
            side: folder_pictures(
                self.root,
                [files[i] for i in chosen],
                [int(kinds[i] != "normal") for i in chosen],
                kinds=[kinds[i] for i in chosen],
            )
            for side, chosen in sides.items()
        }
        facts = {"seed": self.seed, "copies_dropped": copies, "patients": "not known, each image counts as its own"}
        return one_class_problem(self.root, Problem(name, pictures["training"], pictures["test"], facts=facts))

    def check(self) -> list[str]:
        notes = super().check()
        problem = self.problem("all")
        if problem.facts["copies_dropped"]:
            notes.append(f"{self.root}: {problem.facts['copies_dropped']} images are copies of others and not used")
        sides = {
            "to train on": len(problem.training),
            "normal to test": int((problem.test.labels == 0).sum()),
            "abnormal to test": int((problem.test.labels == 1).sum()),
        }
        notes += [
            f"{self.root}: {count} images {what}, ProxyAno has {self.most}"
            for what, count in sides.items()
            if count != self.most
        ]
        return notes

    def _distinct(self) -> tuple[list[Path], list[str], int]:
        """Images that differ, what each is of, and how many copies there are besides."""
        folders = [path for path in sorted(self.root.glob("**/")) if self._kind(path) is not None]
        first: dict[str, tuple[Path, str]] = {}
        count = 0
        for folder in folders:
            kind = self._kind(folder)
            assert kind is not None
            for file in list_pictures(folder):
                count += 1
                other = first.setdefault(shown_digest(file), (file, kind))
                if (other[1] == "normal") != (kind == "normal"):
                    raise InputError(file, f"shows the same as {other[0]}, of the other class", "Leave one of them.")
        kinds = [kind for _, kind in first.values()]
        for normal, what in ((True, "no (or no_tumor)"), (False, "yes (or glioma_tumor, ...)")):
            if not any((kind == "normal") is normal for kind in kinds):
                raise InputError(self.root, f"holds no folder {what} with images", self.how_to_get())
        return [file for file, _ in first.values()], kinds, count - len(first)

    def _kind(self, folder: Path) -> str | None:
        """What images right in a folder are of; None for another folder, or one deeper than the published."""
        if not 1 <= len(folder.relative_to(self.root).parts) <= 3:
            return None
        name = re.sub(r"[^a-z]|tumou?r", "", folder.name.lower())
        return _BRAIN_KINDS.get(name)
