"""IDRiD: fundus photographs, healthy ones to train on and lesions outlined by kind to test."""

from __future__ import annotations

import csv
from functools import lru_cache, partial
from pathlib import Path
from typing import ClassVar

import numpy as np

from monai_anomaly.exceptions import InputError
from monai_anomaly.io.image_files import read_mask, read_picture

from .base import ImageSet, Problem, PublishedSet
from .layout import files_by_stem, find_folder, one_class_problem

__all__ = ["IDRiD", "patch_borders"]

# Folder and ending of the outlines of each kind.
_LESIONS = {
    "microaneurysms": ("1. Microaneurysms", "MA"),
    "haemorrhages": ("2. Haemorrhages", "HE"),
    "hard_exudates": ("3. Hard Exudates", "EX"),
    "soft_exudates": ("4. Soft Exudates", "SE"),
}
_SIDES = ("a. Training Set", "b. Testing Set")
_GRADES = "2. Groundtruths/a. IDRiD_Disease Grading_Training Labels.csv"

Place = tuple[str, int, int]  # the image, and its patch's row and column


def patch_borders(size: int, patches: int) -> list[int]:
    """Where an axis is cut: patches differ by at most one pixel and cover the axis.

    Args:
        size: pixels of the axis.
        patches: how many.

    Returns:
        The ``patches + 1`` borders, from 0 to ``size``.
    """
    return [index * size // patches for index in range(patches + 1)]


class IDRiD(PublishedSet):
    """Patches of fundus photographs, 3 x 3 of each; one problem of all lesions and one of each kind.

    Groups are photographs: the set names no patients. An outline file that is missing marks nothing, as published
    (only lesions that a photograph shows have one).
    """

    key = "idrid"
    title = "IDRiD"
    source = "https://ieee-dataport.org/open-access/indian-diabetic-retinopathy-image-dataset-idrid"
    licence = "CC BY 4.0"
    citation = (
        "Porwal et al., IDRiD: Diabetic retinopathy - segmentation and grading challenge, Medical Image Analysis 2020"
    )
    protocol = (
        "ProxyAno section IV-D: patches of the photographs of grade 0 in the training part of B. Disease Grading (134) "
        "train, patches of the photographs with outlines in A. Segmentation test. The paper has 69 of these, the set "
        "81 (54 and 27), of which none is normal: all 81 test. A patch is abnormal where a lesion (of the problem's "
        "kind) is outlined in it; patches with lesions of other kinds alone are left out."
    )
    by_hand = (
        "Fetch A. Segmentation.zip and B. Disease Grading.zip from "
        "https://ieee-dataport.org/open-access/indian-diabetic-retinopathy-image-dataset-idrid (CC BY 4.0), unpack "
        "both into one folder."
    )
    patches: ClassVar[tuple[int, int]] = (3, 3)
    photographs: ClassVar[dict[str, int]] = {"normal to train on": 134, "with outlines": 81}

    def __init__(self, root: str | Path) -> None:
        super().__init__(root)
        self._found: dict[Path, np.ndarray] = {}
        # the nine patches of a photograph are asked for in turn
        self._read = lru_cache(maxsize=2)(read_picture)
        self._whole_mask = lru_cache(maxsize=2)(_union)

    @property
    def problems(self) -> tuple[str, ...]:
        return ("all", *_LESIONS)

    def problem(self, name: str) -> Problem:
        """All lesions, or those of one kind.

        Args:
            name: ``"all"`` or a kind.

        Raises:
            InputError: if there is no such problem, or files are missing or broken.
        """
        self.require(name)
        images = self._normals()
        places = self._places(images)
        training = self._pictures(images, places, [0] * len(places))
        outlined, masks = self._outlined()
        kinds = tuple(_LESIONS) if name == "all" else (name,)
        tested: list[Place] = []
        labels: list[int] = []
        left_out = 0
        for place in self._places(outlined):
            shows = {kind: self._shows(masks[place[0]][kind], place) for kind in _LESIONS}
            wanted = any(shows[kind] for kind in kinds)
            if not wanted and any(shows.values()):
                left_out += 1
                continue
            tested.append(place)
            labels.append(int(wanted))
        files = [[masks[image][kind] for kind in kinds] for image, _, _ in tested]
        test = self._pictures(outlined, tested, labels, files)
        facts = {
            "patches": list(self.patches),
            "photographs": {"training": len(images), "test": len(outlined)},
            "other_lesions_left_out": left_out,
        }
        return one_class_problem(self.root, Problem(name, training, test, facts=facts))

    def check(self) -> list[str]:
        notes = super().check()
        found = {"normal to train on": len(self._normals()), "with outlines": len(self._outlined()[0])}
        for what, count in self.photographs.items():
            if found[what] != count:
                notes.append(f"{self.root}: {found[what]} photographs {what}, published are {count}")
        return notes

    def _part(self, name: str) -> Path:
        # the archives unpack into folders of their own names, which some tools double or encode
        encoded = name.replace(" ", "%20")
        folder = find_folder(self.root, f"{name}/{name}", name, f"{encoded}/{name}")
        if folder is None:
            raise self.missing(self.root / name)
        return folder

    def _normals(self) -> dict[str, Path]:
        """Photographs of grade 0 in the training part of the grading archive, by name."""
        part = self._part("B. Disease Grading")
        table, folder = part / _GRADES, part / "1. Original Images" / _SIDES[0]
        for path in (table, folder):
            if not path.exists():
                raise self.missing(path)
        files = files_by_stem(folder)
        try:
            with table.open(encoding="utf-8-sig", newline="") as lines:
                rows = list(csv.DictReader(lines))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise InputError(table, f"cannot be read ({error})", self.how_to_get()) from error
        normals = {}
        for row in rows:
            image = (row.get("Image name") or "").strip()
            grade = (row.get("Retinopathy grade") or "").strip()
            if not image and not grade:
                continue  # the published table ends in empty lines and columns
            if not image or grade not in ("0", "1", "2", "3", "4"):
                raise InputError(table, f"has grade {grade!r} for image {image!r}", self.how_to_get())
            if grade == "0":
                if image not in files:
                    raise self.missing(folder / f"{image}.jpg")
                normals[image] = files[image]
        if not normals:
            raise InputError(table, "names no photograph of grade 0", self.how_to_get())
        return normals

    def _outlined(self) -> tuple[dict[str, Path], dict[str, dict[str, Path | None]]]:
        """Photographs of the segmentation archive by name, and of each the outlines that it has."""
        part = self._part("A. Segmentation")
        images: dict[str, Path] = {}
        masks: dict[str, dict[str, Path | None]] = {}
        for side in _SIDES:
            folder, truths = part / "1. Original Images" / side, part / "2. All Segmentation Groundtruths" / side
            if not folder.is_dir():
                continue  # a part of the set: the check says so
            side_images = files_by_stem(folder)
            outlines = {}
            for kind, (name, ending) in _LESIONS.items():
                if not (truths / name).is_dir():
                    raise self.missing(truths / name)
                found = files_by_stem(truths / name)
                outlines[kind] = found
                strange = set(found) - {f"{image}_{ending}" for image in side_images}
                if strange:
                    raise InputError(found[min(strange)], f"is of no image in {folder}", self.how_to_get())
            for image, path in side_images.items():
                images[image] = path
                masks[image] = {kind: outlines[kind].get(f"{image}_{end}") for kind, (_, end) in _LESIONS.items()}
        if not images:
            raise self.missing(part / "1. Original Images" / _SIDES[0])
        return images, masks

    def _places(self, images: dict[str, Path]) -> list[Place]:
        rows, columns = self.patches
        return [(image, row, column) for image in images for row in range(rows) for column in range(columns)]

    def _cut(self, array: np.ndarray, place: Place) -> np.ndarray:
        _, row, column = place
        rows = patch_borders(array.shape[0], self.patches[0])
        columns = patch_borders(array.shape[1], self.patches[1])
        return array[rows[row] : rows[row + 1], columns[column] : columns[column + 1]]

    def _shows(self, mask: Path | None, place: Place) -> bool:
        """Whether something is outlined in a patch; each mask is read once."""
        if mask is None:
            return False
        if mask not in self._found:
            array = read_mask(mask)
            cells = [(place[0], row, column) for row in range(self.patches[0]) for column in range(self.patches[1])]
            self._found[mask] = np.array([self._cut(array, cell).any() for cell in cells]).reshape(self.patches)
        return bool(self._found[mask][place[1], place[2]])

    def _pictures(
        self,
        images: dict[str, Path],
        places: list[Place],
        labels: list[int],
        masks: list[list[Path | None]] | None = None,
    ) -> ImageSet:
        return ImageSet(
            names=tuple(f"{image}_row{row}_column{column}" for image, row, column in places),
            labels=np.asarray(labels, dtype=np.int64),
            read=partial(self._patch, images, places),
            groups=tuple(image for image, _, _ in places),
            read_mask=None if masks is None else partial(self._mask, images, places, masks),
        )

    def _patch(self, images: dict[str, Path], places: list[Place], index: int) -> np.ndarray:
        place = places[index]
        return self._cut(self._read(images[place[0]]), place).copy()

    def _mask(
        self, images: dict[str, Path], places: list[Place], masks: list[list[Path | None]], index: int
    ) -> np.ndarray:
        place = places[index]
        return self._cut(self._whole_mask(images[place[0]], tuple(masks[index])), place).copy()


def _union(image: Path, masks: tuple[Path | None, ...]) -> np.ndarray:
    """Where any of the outlines of a photograph marks something, (H, W), bool."""
    whole = np.zeros(read_picture(image).shape[:2], dtype=bool)
    for mask in masks:
        if mask is not None:
            whole |= read_mask(mask, image)
    return whole
