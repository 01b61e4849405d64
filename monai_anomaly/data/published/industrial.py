"""Industrial inspection: MVTec AD, VisA and BTAD. Each category is a problem, each defect has a mask."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from monai_anomaly.exceptions import InputError
from monai_anomaly.io.image_files import list_pictures

from .download import remote_files
from .layout import FileSet, ImageFile, Sides

__all__ = ["BTAD", "MVTecAD", "VisA"]


class _Inspection(FileSet):
    """What the three sets share: categories with normal training images and a marked test side."""

    # Category -> number of training images, normal test images, abnormal ones.
    published: ClassVar[dict[str, tuple[int, int, int]]]
    apart = False
    _category = ""  # where the folder is one category's: its name

    @abstractmethod
    def _cases(self, name: str) -> tuple[list[ImageFile], list[ImageFile]]:
        """Training and test side of a category."""

    def _sides(self, name: str) -> Sides:
        training, test = self._cases(name)
        without = _without_mask(test)
        return Sides(training, test, {"abnormal_without_mask": without} if without else {})

    def check(self) -> list[str]:
        notes = super().check()
        if self._category:
            notes.append(f"{self.root / self._category}: a part of the set: one category")
        elif absent := [name for name in self.published if name not in self.problems]:
            notes.append(f"{self.root}: a part of the set: no {', '.join(absent)}")
        for name in self.problems:
            training, test = self._cases(name)
            abnormal = sum(file.abnormal for file in test)
            found = (len(training), len(test) - abnormal, abnormal)
            if name not in self.published:
                notes.append(f"{name}: is no published category")
            elif found != self.published[name]:
                expected = " + ".join(map(str, self.published[name]))
                notes.append(
                    f"{name}: {' + '.join(map(str, found))} images (training + normal + abnormal), not {expected}"
                )
            if without := _without_mask(test):
                notes.append(f"{name}: {without} of {abnormal} abnormal images have no mask, so none are used")
        return notes


def _without_mask(files: Sequence[ImageFile]) -> int:
    return sum(file.abnormal and file.mask is None for file in files)


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
        return (*(name for name in self.published if name in found), *sorted(found - self.published.keys()))

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


class MVTecAD(_Folders):
    """Ten objects and five textures, with defects of several types each.

    Args:
        root: the folder of the categories, or one category's (its folder's name is the problem's).

    Raises:
        InputError: if the folder is missing.
    """

    key = "mvtec_ad"
    title = "MVTec AD"
    source = "https://www.mvtec.com/company/research/datasets/mvtec-ad"
    licence = "CC BY-NC-SA 4.0"
    citation = "Bergmann et al., MVTec AD: a comprehensive real-world dataset for unsupervised anomaly detection, 2019"
    protocol = (
        "The published sides of each category: train/good trains, all of test tests (Bergmann et al.; ITAE; HFR-AE; "
        "DAAD)."
    )
    by_hand = (
        "Fill in the form at https://www.mvtec.com/company/research/datasets/mvtec-ad and unpack the archive, so that "
        "each category has train/good, test and ground_truth."
    )
    normal = "good"
    mask_ending = "_mask"
    published: ClassVar[dict[str, tuple[int, int, int]]] = {
        "bottle": (209, 20, 63),
        "cable": (224, 58, 92),
        "capsule": (219, 23, 109),
        "carpet": (280, 28, 89),
        "grid": (264, 21, 57),
        "hazelnut": (391, 40, 70),
        "leather": (245, 32, 92),
        "metal_nut": (220, 22, 93),
        "pill": (267, 26, 141),
        "screw": (320, 41, 119),
        "tile": (230, 33, 84),
        "toothbrush": (60, 12, 30),
        "transistor": (213, 60, 40),
        "wood": (247, 19, 60),
        "zipper": (240, 32, 119),
    }


class BTAD(_Folders):
    """Three products of beanTech: ``train/ok``, ``test/ok``, ``test/ko``, ``ground_truth/ko``; PNG and BMP mixed.

    Args:
        root: the folder of the products, one product's, or the one above (``BTech_Dataset_transformed``).

    Raises:
        InputError: if the folder is missing.
    """

    key = "btad"
    title = "BTAD"
    source = "https://github.com/pankajmishra000/VT-ADL"
    licence = "CC BY-SA 4.0"
    citation = "Mishra et al., VT-ADL: a vision transformer network for image anomaly detection and localization, 2021"
    protocol = "The published sides of each product: train/ok trains, test/ok and test/ko test (Mishra et al.)."
    normal = "ok"
    mask_ending = ""
    inner = ("BTech_Dataset_transformed",)
    published: ClassVar[dict[str, tuple[int, int, int]]] = {
        "01": (400, 21, 49),
        "02": (399, 30, 200),
        "03": (1000, 400, 41),
    }
    unpacks: ClassVar[dict[str, tuple[str, ...]]] = {"btad.zip": ("BTech_Dataset_transformed",)}
    files = remote_files(
        "https://avires.dimi.uniud.it/papers/btad",
        {"btad.zip": "461c9387e515bfed41ecaae07c50cf6b10def647b36c9e31d239ab2736b10d2a"},
    )


class VisA(_Inspection):
    """Twelve objects; the one-class split is the published table ``split_csv/1cls.csv``.

    The published defect types stand in each object's ``image_anno.csv``; without that file every abnormal image is
    of the kind ``anomaly``. In the masks each defect type has its own value; all are marked alike.

    Args:
        root: the folder of the objects and of ``split_csv``.

    Raises:
        InputError: if the folder is missing.
    """

    key = "visa"
    title = "VisA"
    source = "https://github.com/amazon-science/spot-diff"
    licence = "CC BY 4.0"
    citation = "Zou et al., SPot-the-difference self-supervised pre-training for anomaly detection, ECCV 2022"
    protocol = (
        "The published one-class split (split_csv/1cls.csv): its train rows train, its test rows test (Zou et al.)."
    )
    published: ClassVar[dict[str, tuple[int, int, int]]] = {
        "candle": (900, 100, 100),
        "capsules": (542, 60, 100),
        "cashew": (450, 50, 100),
        "chewinggum": (453, 50, 100),
        "fryum": (450, 50, 100),
        "macaroni1": (900, 100, 100),
        "macaroni2": (900, 100, 100),
        "pcb1": (904, 100, 100),
        "pcb2": (901, 100, 100),
        "pcb3": (905, 101, 100),
        "pcb4": (904, 101, 100),
        "pipe_fryum": (450, 50, 100),
    }
    unpacks: ClassVar[dict[str, tuple[str, ...]]] = {"VisA_20220922.tar": ("pipe_fryum", "split_csv")}
    files = remote_files(
        "https://amazon-visual-anomaly.s3.us-west-2.amazonaws.com",
        {"VisA_20220922.tar": "2eb8690c803ab37de0324772964100169ec8ba1fa3f7e94291c9ca673f40f362"},
    )

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
