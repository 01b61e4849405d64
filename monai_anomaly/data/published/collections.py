"""Collections of medical sets in one layout: BMAD and MedIAnomaly."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import ClassVar

from monai_anomaly.exceptions import InputError
from monai_anomaly.io.image_files import list_pictures, natural_key

from .base import ImageSet, Problem, PublishedSet
from .download import RemoteFile
from .layout import files_by_stem, find_folder, folder_pictures, one_class_problem

__all__ = ["BMAD", "MedIAnomaly"]


class BMAD(PublishedSet):
    """BMAD's sets, each in ``train/good`` and ``test/{good,Ungood}``, with ``img`` and ``label`` where it has masks.

    Each folder below the root, up to three deep, that has ``train/good`` is a problem, called by the folder's name.
    Patients are known for the brain slices alone, whose names begin with the volume (``00003_60.png``).
    """

    key = "bmad"
    title = "BMAD"
    source = "https://github.com/DorisBao/BMAD"
    licence = "that of each source set (BraTS2021, BTCV and LiTS, RESC, OCT2017, RSNA, Camelyon16)"
    citation = "Bao et al., BMAD: benchmarks for medical anomaly detection, CVPR Workshops 2024"
    protocol = (
        "As published: train/good trains, test/good and test/Ungood test; the validation folder, which has abnormal "
        "images, is not used."
    )
    by_hand = (
        "Fetch the sets from the drive linked from https://github.com/DorisBao/BMAD, unpack them below one folder (the "
        "licences of the sources apply)."
    )
    # Of training normals, where a second source confirms them; by a word of the folder's path.
    counts: ClassVar[dict[str, int]] = {"brain": 7500, "liver": 1542, "resc": 4297, "camelyon": 5088}

    @property
    def problems(self) -> tuple[str, ...]:
        return tuple(self._folders())

    def problem(self, name: str) -> Problem:
        """One set of the collection.

        Args:
            name: of its folder.

        Raises:
            InputError: if there is no such set, or a folder of it is missing or empty, or some of its abnormal images
                have a mask and others none.
        """
        folders = self._folders()
        if not folders:
            raise self.missing(self.root / "Brain" / "train" / "good")
        self.require(name)
        folder = folders[name]
        train, normal = self._files(folder, "train/good"), self._files(folder, "test/good")
        abnormal = self._files(folder, "test/Ungood", "test/ungood")
        masks = self._masks(folder, abnormal)
        tested = [*normal, *abnormal]
        volumes = self._volumes([*train, *tested])
        training = folder_pictures(folder, train, [0] * len(train), groups=volumes[: len(train)])
        test = folder_pictures(
            folder,
            tested,
            [0] * len(normal) + [1] * len(abnormal),
            groups=volumes[len(train) :],
            masks=None if masks is None else [*[None] * len(normal), *masks],
        )
        facts = {"patients": "known" if volumes else "not known, each image counts as its own"}
        return one_class_problem(folder, Problem(name, training, test, facts=facts))

    def check(self) -> list[str]:
        notes = super().check()
        folders = self._folders()
        if not folders:
            raise self.missing(self.root / "Brain" / "train" / "good")
        for name, folder in folders.items():
            problem = self.problem(name)
            found = len(self._files(folder, "train/good"))
            path = (folder.relative_to(self.root).as_posix() if folder != self.root else name).lower()
            for word, count in self.counts.items():
                if word in path and found != count:
                    notes.append(f"{folder}: {found} images to train on, published are {count}")
            if problem.facts["left_out"]:
                notes.append(f"{folder}: {problem.facts['left_out']} training slices are of test volumes and not used")
        return notes

    def _folders(self) -> dict[str, Path]:
        """The sets by name: their folders, which may lie in folders of the archives."""
        found = [
            folder
            for depth in ("", "*/", "*/*/")
            for folder in sorted(self.root.glob(depth) if depth else [self.root])
            if (folder / "train" / "good").is_dir()
        ]
        names = [folder.name for folder in found]
        return {
            folder.name
            if names.count(folder.name) == 1
            else "__".join(folder.relative_to(self.root).parts or (folder.name,)): folder
            for folder in sorted(found, key=lambda folder: natural_key(folder.as_posix()))
        }

    def _files(self, folder: Path, *sides: str) -> list[Path]:
        side = find_folder(folder, *sides)
        if side is None:
            raise self.missing(folder / sides[0])
        files = list_pictures(side / "img" if (side / "img").is_dir() else side)
        if not files:
            raise InputError(side, "holds no image", self.how_to_get())
        return files

    def _masks(self, folder: Path, abnormal: list[Path]) -> list[Path] | None:
        """Of each abnormal image its mask; None for a set without."""
        labels = find_folder(folder, "test/Ungood/label", "test/ungood/label")
        if labels is None:
            return None
        by_stem = files_by_stem(labels)
        for file in abnormal:
            if file.stem not in by_stem:
                raise InputError(file, f"has no mask in {labels}", self.how_to_get())
        return [by_stem[file.stem] for file in abnormal]

    def _volumes(self, files: list[Path]) -> list[str]:
        """Of each slice its volume; none unless all names are of five digits and a slice."""
        found = [re.fullmatch(r"([0-9]{5})_[0-9]+", file.stem) for file in files]
        return [match[1] for match in found if match] if all(found) else []


class MedIAnomaly(PublishedSet):
    """MedIAnomaly's seven sets; those whose folders are there.

    RSNA, VinCXR, BrainTumor and LAG have ``images`` and ``data.json`` (``{"train": {"0": [...]}, "test": {"0": [...],
    "1": [...]}}``), ISIC2018_Task3 the challenge's folders and tables, Camelyon16 ``train/good`` and
    ``test/{good,Ungood}``, BraTS2021 ``train`` and ``test/{normal,tumor,annotation}``, whose masks are called as their
    images with ``seg`` in place of ``flair``.
    """

    key = "medianomaly"
    title = "MedIAnomaly"
    source = "https://zenodo.org/records/12677223"
    licence = "not established; the terms of the source sets apply"
    citation = "Cai et al., MedIAnomaly: a comparative study of anomaly detection in medical images, arXiv:2404.04518"
    protocol = (
        "As published: the normals of the training list train, the test list tests. In ISIC2018_Task3 nevi (NV) are "
        "normal, all other lesions abnormal. Where names tell the patient (BraTS2021), training slices of test "
        "patients are left out, and counted; elsewhere patients are not known."
    )
    by_hand = (
        "Fetch the archives from https://zenodo.org/records/12677223, and of ISIC2018_Task3 from "
        "https://challenge.isic-archive.com/data/#2018, and unpack them into one folder (the terms of the source sets "
        "apply)."
    )
    # The archive may lie beside what was unpacked from it. Zenodo publishes MD5 sums; of the others none is at hand.
    files = (RemoteFile("BraTS2021.tar.gz", md5="237f2aee77e099f7483808ddec49a57c", size=70_262_263),)
    names: ClassVar[tuple[str, ...]] = (
        "RSNA",
        "VinCXR",
        "BrainTumor",
        "LAG",
        "ISIC2018_Task3",
        "Camelyon16",
        "BraTS2021",
    )
    # Training normals, test normals, test abnormals, where a second source confirms them.
    counts: ClassVar[dict[str, tuple[int, int, int]]] = {
        "RSNA": (3851, 1000, 1000),
        "BraTS2021": (4211, 828, 1948),
    }

    @property
    def problems(self) -> tuple[str, ...]:
        return tuple(name for name in self.names if (self.root / name).is_dir())

    def problem(self, name: str) -> Problem:
        """One set of the collection.

        Args:
            name: of its folder.

        Raises:
            InputError: if there is no such set, or files are missing or not as published.
        """
        self._some()
        self.require(name)
        return one_class_problem(self.root / name, self._sides(name))

    def check(self) -> list[str]:
        notes = super().check()
        self._some()
        absent = [name for name in self.names if name not in self.problems]
        if absent:
            notes.append(f"{self.root}: {', '.join(absent)} not there")
        for name in self.problems:
            problem = self._sides(name)
            one_class_problem(self.root / name, problem)
            normal = int((problem.test.labels == 0).sum())
            found = (len(problem.training), normal, len(problem.test) - normal)
            if found != self.counts.get(name, found):
                notes.append(
                    f"{self.root / name}: {found} images (training, test normal, test abnormal), published are "
                    f"{self.counts[name]}"
                )
        return notes

    def _some(self) -> None:
        if not self.problems:
            raise InputError(self.root, f"holds none of {', '.join(self.names)}", self.how_to_get())

    def _sides(self, name: str) -> Problem:
        if name == "ISIC2018_Task3":
            return self._isic(name)
        if name == "Camelyon16":
            return self._camelyon(name)
        if name == "BraTS2021":
            return self._brats(name)
        return self._listed(name)

    def _pictures(self, name: str, normal: list[Path], abnormal: list[Path], **more: list) -> ImageSet:
        labels = [0] * len(normal) + [1] * len(abnormal)
        return folder_pictures(self.root / name, [*normal, *abnormal], labels, **more)

    def _listed(self, name: str) -> Problem:
        path = self.root / name / "data.json"
        if not path.is_file():
            raise self.missing(path)
        try:
            lists = json.loads(path.read_text(encoding="utf-8"))
            sides = [lists["train"]["0"], lists["test"]["0"], lists["test"]["1"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            problem = f"is no list of train 0, test 0 and test 1 ({type(error).__name__}: {error})"
            raise InputError(path, problem, self.how_to_get()) from error
        folder = self.root / name / "images"
        files = []
        for side in sides:
            if not isinstance(side, list) or not all(isinstance(entry, str) for entry in side):
                raise InputError(path, "a list has entries that are no names", self.how_to_get())
            files.append([folder / entry for entry in side])
        wanted = [file for side in files for file in side]
        absent = [file for file in wanted if not file.is_file()]
        if absent:
            raise InputError(absent[0], f"is missing, as {len(absent)} of {len(wanted)} are", self.how_to_get())
        twice = set(sides[0]) & {*sides[1], *sides[2]}
        if twice or len(set(wanted)) < len(wanted):
            raise InputError(path, "names an image twice", self.how_to_get())
        train, normal, abnormal = files
        return Problem(name, self._pictures(name, train, []), self._pictures(name, normal, abnormal))

    def _camelyon(self, name: str) -> Problem:
        train, normal, abnormal = (self._folder(name, side) for side in ("train/good", "test/good", "test/Ungood"))
        return Problem(name, self._pictures(name, train, []), self._pictures(name, normal, abnormal))

    def _brats(self, name: str) -> Problem:
        train, normal, abnormal = (self._folder(name, side) for side in ("train", "test/normal", "test/tumor"))
        annotation = self.root / name / "test" / "annotation"
        masks: list[Path | None] = [None] * len(normal)
        for file in abnormal:
            mask = annotation / file.name.replace("flair", "seg")
            if not mask.is_file():
                raise self.missing(mask)
            masks.append(mask)
        found = [re.findall(r"(?<![0-9])[0-9]{5}(?![0-9])", file.stem) for file in (*train, *normal, *abnormal)]
        known = all(len(digits) == 1 for digits in found)
        groups = [digits[0] for digits in found] if known else []
        facts = {"patients": "known" if known else "not known, each image counts as its own"}
        training = self._pictures(name, train, [], groups=groups[: len(train)])
        test = self._pictures(name, normal, abnormal, groups=groups[len(train) :], masks=masks)
        return Problem(name, training, test, facts=facts)

    def _isic(self, name: str) -> Problem:
        sides = {side: self._diagnoses(name, side) for side in ("Training", "Test")}
        train = [file for file, kind in sides["Training"] if kind == "NV"]
        normal = [file for file, kind in sides["Test"] if kind == "NV"]
        abnormal = [(file, kind) for file, kind in sides["Test"] if kind != "NV"]
        test = self._pictures(
            name,
            normal,
            [file for file, _ in abnormal],
            kinds=["NV"] * len(normal) + [kind for _, kind in abnormal],
        )
        return Problem(name, self._pictures(name, train, []), test)

    def _diagnoses(self, name: str, side: str) -> list[tuple[Path, str]]:
        """The images of a side with the one diagnosis that its table marks."""
        stem = f"ISIC2018_Task3_{side}"
        table = self.root / name / f"{stem}_GroundTruth" / f"{stem}_GroundTruth.csv"
        folder = self.root / name / f"{stem}_Input"
        for path in (table, folder):
            if not path.exists():
                raise self.missing(path)
        with table.open(encoding="utf-8-sig", newline="") as lines:
            rows = list(csv.DictReader(lines))
        found = []
        for row in rows:
            image = row.pop("image", None) or ""
            file = folder / f"{image}.jpg"
            if not file.is_file():
                raise self.missing(file)
            try:
                marked = [kind for kind, value in row.items() if float(value) == 1]
            except (TypeError, ValueError) as error:
                raise InputError(table, f"has no number for {image}", self.how_to_get()) from error
            if len(marked) != 1:
                raise InputError(table, f"has {len(marked)} diagnoses for {image}", self.how_to_get())
            found.append((file, marked[0]))
        return found

    def _folder(self, name: str, side: str) -> list[Path]:
        folder = self.root / name / side
        if not folder.is_dir():
            raise self.missing(folder)
        files = list_pictures(folder)
        if not files:
            raise InputError(folder, "holds no image", self.how_to_get())
        return files
