"""Collections of medical sets in one layout: BMAD and MedIAnomaly."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

from monai_anomaly.io.image_files import natural_key

from .base import find_folder
from .layout import FileSet, ImageFile, Sides, files_by_stem, one_class_sides

__all__ = ["BMAD", "MedIAnomaly"]


class BMAD(FileSet, key="bmad"):
    """BMAD's sets, each in ``train/good`` and ``test/{good,Ungood}``, with ``img`` and ``label`` where it has masks.

    Each folder below the root, up to three deep, that has ``train/good`` is a problem, called by the folder's name.
    Patients are known for the brain slices alone, whose names begin with the volume (``00003_60.png``).
    """

    @property
    def problems(self) -> tuple[str, ...]:
        return tuple(self._folders())

    def _root(self, name: str) -> Path:
        return self._folders()[name]

    def _sides(self, name: str) -> Sides:
        folder = self._root(name)
        abnormal = self._side(folder, "test/Ungood", "test/ungood")
        return one_class_sides(
            self._side(folder, "train/good"),
            self._side(folder, "test/good"),
            abnormal,
            masks=self._masks(folder, abnormal),
            patients=partial(patients_in_names, r"^([0-9]{5})_[0-9]+$"),
        )

    def check(self) -> list[str]:
        left_out = {folder: self.problem(name).facts["left_out"] for name, folder in self._folders().items()}
        return super().check() + [
            f"{folder}: {count} training slices are of test volumes and not used"
            for folder, count in left_out.items()
            if count
        ]

    def _counts(self, name: str) -> Sequence[int]:
        folder = self._root(name)
        path = (folder.relative_to(self.root).as_posix() if folder != self.root else name).lower()
        return next(((count,) for word, count in self.counts.items() if word in path), ())

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

    def _side(self, folder: Path, *spellings: str) -> list[Path]:
        side = find_folder(folder, *spellings) or folder / spellings[0]
        return self.images(side / "img" if (side / "img").is_dir() else side)

    def _masks(self, folder: Path, abnormal: list[Path]) -> list[Path] | None:
        """Of each abnormal image its mask; None for a set without."""
        labels = find_folder(folder, "test/Ungood/label", "test/ungood/label")
        if labels is None:
            return None
        by_stem = files_by_stem(labels)
        for file in abnormal:
            if file.stem not in by_stem:
                raise self.wrong(file, f"has no mask in {labels}")
        return [by_stem[file.stem] for file in abnormal]


def patients_in_names(pattern: str, files: Sequence[Path]) -> list[str]:
    """The patient of each file, by the one place in its name that a pattern fits; empty unless all names have one.

    Args:
        pattern: regular expression with one group.
        files: with their names.
    """
    found = [re.findall(pattern, file.stem) for file in files]
    known = all(len(patients) == 1 for patients in found)
    return [patients[0] if known else "" for patients in found]


class MedIAnomaly(FileSet, key="medianomaly"):
    """MedIAnomaly's seven sets; those whose folders are there.

    RSNA, VinCXR, BrainTumor and LAG have ``images`` and ``data.json`` (``{"train": {"0": [...]}, "test": {"0": [...],
    "1": [...]}}``), ISIC2018_Task3 the challenge's folders and tables, Camelyon16 ``train/good`` and
    ``test/{good,Ungood}``, BraTS2021 ``train`` and ``test/{normal,tumor,annotation}``, whose masks are called as their
    images with ``seg`` in place of ``flair``.
    """

    names: ClassVar[tuple[str, ...]]

    @property
    def problems(self) -> tuple[str, ...]:
        return tuple(name for name in self.names if (self.root / name).is_dir())

    def check(self) -> list[str]:
        absent = [name for name in self.names if name not in self.problems]
        return super().check() + ([f"{self.root}: {', '.join(absent)} not there"] if absent else [])

    def _root(self, name: str) -> Path:
        return self.root / name

    def _sides(self, name: str) -> Sides:
        folder = self.root / name
        if name == "ISIC2018_Task3":
            training, test = (self._diagnoses(folder, side) for side in ("Training", "Test"))
            # Normal test images first, as in the other sets.
            return Sides(
                [ImageFile(file.path) for file in training if not file.abnormal],
                sorted(test, key=lambda file: file.abnormal),
            )
        if name == "Camelyon16":
            files = [self.images(folder / side) for side in ("train/good", "test/good", "test/Ungood")]
            return one_class_sides(*files)
        if name == "BraTS2021":
            files = [self.images(folder / side) for side in ("train", "test/normal", "test/tumor")]
            masks = [folder / "test" / "annotation" / file.name.replace("flair", "seg") for file in files[2]]
            volumes = partial(patients_in_names, r"(?<![0-9])([0-9]{5})(?![0-9])")
            return one_class_sides(*files, masks=[self.there(mask) for mask in masks], patients=volumes)
        return one_class_sides(*self._listed(folder))

    def _listed(self, folder: Path) -> list[list[Path]]:
        """Training normals, test normals and test abnormals, by the list of a set."""
        path = self.there(folder / "data.json")
        try:
            lists = json.loads(path.read_text(encoding="utf-8"))
            sides = [lists["train"]["0"], lists["test"]["0"], lists["test"]["1"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            problem = f"is no list of train 0, test 0 and test 1 ({type(error).__name__}: {error})"
            raise self.wrong(path, problem) from error
        if not all(isinstance(side, list) and all(isinstance(entry, str) for entry in side) for side in sides):
            raise self.wrong(path, "a list has entries that are no names")
        files = [[folder / "images" / entry for entry in side] for side in sides]
        wanted = [file for side in files for file in side]
        absent = [file for file in wanted if not file.is_file()]
        if absent:
            raise self.wrong(absent[0], f"is missing, as {len(absent)} of {len(wanted)} are")
        if len(set(wanted)) < len(wanted):
            raise self.wrong(path, "names an image twice")
        return files

    def _diagnoses(self, folder: Path, side: str) -> list[ImageFile]:
        """The images of a side with the one diagnosis that its table marks."""
        stem = f"ISIC2018_Task3_{side}"
        table = folder / f"{stem}_GroundTruth" / f"{stem}_GroundTruth.csv"
        found = []
        for row in self.table(table, ["image"]):
            image = row.pop("image")
            file = self.there(folder / f"{stem}_Input" / f"{image}.jpg")
            try:
                marked = [kind for kind, value in row.items() if float(value) == 1]
            except (TypeError, ValueError) as error:
                raise self.wrong(table, f"has no number for {image}") from error
            if len(marked) != 1:
                raise self.wrong(table, f"has {len(marked)} diagnoses for {image}")
            found.append(ImageFile(file, marked[0] != "NV", marked[0]))
        return found
