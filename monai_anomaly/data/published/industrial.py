"""Industrial inspection: MVTec AD, VisA and BTAD. Each category is a problem, each defect has a mask."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from monai_anomaly.exceptions import InputError
from monai_anomaly.io.image_files import list_pictures

from .layout import FileSet, ImageFile, Sides

__all__ = ["BTAD", "MVTecAD", "VisA"]


class _Inspection(FileSet):
    """What the three sets share: categories with normal training images and a marked test side."""

    apart = False
    _category = ""  # where the folder is one category's: its name

    @abstractmethod
    def _cases(self, name: str) -> tuple[list[ImageFile], list[ImageFile]]:
        """Training and test side of a category."""

    def _sides(self, name: str) -> Sides:
        training, test = self._cases(name)
        without = sum(file.abnormal and file.mask is None for file in test)
        return Sides(training, test, {"abnormal_without_mask": without} if without else {})

    def check(self) -> list[str]:
        notes = super().check()
        if self._category:
            notes.append(f"{self.root / self._category}: a part of the set: one category")
        elif absent := [name for name in self.counts if name not in self.problems]:
            notes.append(f"{self.root}: a part of the set: no {', '.join(absent)}")
        notes += [f"{name}: is no published category" for name in self.problems if name not in self.counts]
        for name in self.problems:
            _, test, facts = self._sides(name)
            if facts:
                abnormal = sum(file.abnormal for file in test)
                without = facts["abnormal_without_mask"]
                notes.append(f"{name}: {without} of {abnormal} abnormal images have no mask, so none are used")
        return notes


class _Folders(_Inspection):
    """``<category>/train/<normal>``, ``test/<normal or defect>``, ``ground_truth/<defect>``."""

    normal: ClassVar[str]
    mask_ending: ClassVar[str]  # what a mask's name has after its image's

    def __init__(self, root: str | Path) -> None:
        super().__init__(root)
        if (self.root / "train" / self.normal).is_dir():
            # One category by itself: its folder names the problem.
            self.root = self.root.resolve()
            self._category, self.root = self.root.name, self.root.parent

    @property
    def problems(self) -> tuple[str, ...]:
        """The categories that are there: the published ones in their order, then others."""
        if self._category:
            return (self._category,)
        found = {path.parent.parent.name for path in self.root.glob(f"*/train/{self.normal}") if path.is_dir()}
        return (*(name for name in self.counts if name in found), *sorted(found - self.counts.keys()))

    def _cases(self, name: str) -> tuple[list[ImageFile], list[ImageFile]]:
        folder = self.root / name
        training, test = (
            [ImageFile(path, kind=self.normal) for path in self.images(folder / side / self.normal)]
            for side in ("train", "test")
        )
        kinds = sorted(path for path in (folder / "test").iterdir() if path.is_dir() and path.name != self.normal)
        for kind in kinds:
            # Images and masks go by the stem: their extensions differ in places.
            masks = {path.stem: path for path in list_pictures(folder / "ground_truth" / kind.name)}
            test += [
                ImageFile(path, True, kind.name, mask=masks.get(path.stem + self.mask_ending))
                for path in list_pictures(kind)
            ]
        if not any(file.abnormal for file in test):
            raise self.wrong(folder / "test", "holds no images with defects")
        return training, test


class MVTecAD(_Folders, key="mvtec_ad"):
    """Ten objects and five textures, with defects of several types each.

    Args:
        root: the folder of the categories, or one category's (its folder's name is the problem's).

    Raises:
        InputError: if the folder is missing.
    """

    normal = "good"
    mask_ending = "_mask"


class BTAD(_Folders, key="btad"):
    """Three products of beanTech: ``train/ok``, ``test/ok``, ``test/ko``, ``ground_truth/ko``; PNG and BMP mixed.

    Args:
        root: the folder of the products, one product's, or the one above (``BTech_Dataset_transformed``).

    Raises:
        InputError: if the folder is missing.
    """

    normal = "ok"
    mask_ending = ""


class VisA(_Inspection, key="visa"):
    """Twelve objects; the one-class split is the published table ``split_csv/1cls.csv``.

    The published defect types stand in each object's ``image_anno.csv``; without that file every abnormal image is
    of the kind ``anomaly``. In the masks each defect type has its own value; all are marked alike.

    Args:
        root: the folder of the objects and of ``split_csv``.

    Raises:
        InputError: if the folder is missing.
    """

    @property
    def problems(self) -> tuple[str, ...]:
        """The objects of the split whose folders are there, in its order."""
        return tuple(
            name for name in dict.fromkeys(row["object"] for row in self._split) if (self.root / name).is_dir()
        )

    @property
    def _split_table(self) -> Path:
        return self.root / "split_csv" / "1cls.csv"

    @cached_property
    def _split(self) -> list[dict[str, str]]:
        rows = self.table(self._split_table, ("object", "split", "label", "image", "mask"))
        for number, row in enumerate(rows, start=2):
            if row["split"] not in ("train", "test") or row["label"] not in ("normal", "anomaly"):
                problem = f"line {number} is neither train nor test, or neither normal nor anomaly"
                raise self.wrong(self._split_table, problem)
        return rows

    def _cases(self, name: str) -> tuple[list[ImageFile], list[ImageFile]]:
        annotations = self.root / name / "image_anno.csv"
        rows = self.table(annotations, ("image", "label")) if annotations.is_file() else []
        kinds = {row["image"]: row["label"] for row in rows}
        sides: dict[str, list[ImageFile]] = {"train": [], "test": []}
        for row in self._split:
            if row["object"] != name:
                continue
            abnormal = row["label"] == "anomaly"
            path = self.there(self.root / row["image"])
            mask = self.there(self.root / row["mask"]) if abnormal and row["mask"] else None
            sides[row["split"]].append(ImageFile(path, abnormal, kinds.get(row["image"], row["label"]), mask=mask))
        for side, files in sides.items():
            if not files:
                raise self.wrong(self._split_table, f"has no {side} rows of {name}")
        if any(file.abnormal for file in sides["train"]):
            problem = f"trains on abnormal images of {name}"
            raise InputError(self._split_table, problem, "Take the published one-class split.")
        return sides["train"], sides["test"]
