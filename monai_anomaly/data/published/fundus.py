"""IDRiD: fundus photographs, healthy ones to train on and lesions outlined by kind to test."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import ClassVar

import numpy as np

from monai_anomaly.io.image_files import picture_size, read_mask, read_picture

from .base import PublishedSet, count_notes, find_folder
from .layout import FileSet, ImageFile, Sides, files_by_stem

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

Place = tuple[int, int]  # row and column of a patch


def patch_borders(size: int, patches: int) -> list[int]:
    """Where an axis is cut: patches differ by at most one pixel and cover the axis.

    Args:
        size: pixels of the axis.
        patches: how many.

    Returns:
        The ``patches + 1`` borders, from 0 to ``size``.
    """
    return [index * size // patches for index in range(patches + 1)]


class IDRiD(FileSet, key="idrid"):
    """Patches of fundus photographs, 3 x 3 of each; one problem of all lesions and one of each kind.

    Groups are photographs: the set names no patients. An outline file that is missing marks nothing, as published
    (only lesions that a photograph shows have one).
    """

    patches: ClassVar[tuple[int, int]] = (3, 3)

    def __init__(self, root: str | Path) -> None:
        super().__init__(root)
        self._marked: dict[Path, np.ndarray] = {}
        # the nine patches of a photograph are asked for in turn
        self._read = lru_cache(maxsize=2)(read_picture)
        self._whole_mask = lru_cache(maxsize=2)(_union)

    @property
    def problems(self) -> tuple[str, ...]:
        return ("all", *_LESIONS)

    def _sides(self, name: str) -> Sides:
        normals, outlined = self._normals(), self._outlined()
        kinds = _LESIONS.keys() if name == "all" else {name}
        training = [self._patch(image, path, place) for image, path in normals.items() for place in self._places()]
        test: list[ImageFile] = []
        left_out = 0
        for image, (path, outlines) in outlined.items():
            masks = tuple(mask for kind, mask in outlines.items() if kind in kinds)
            for place in self._places():
                shown = {kind for kind, mask in outlines.items() if self._shows(mask)[place]}
                if shown and not shown & kinds:
                    left_out += 1
                    continue
                patch = self._patch(image, path, place)
                test.append(replace(patch, abnormal=bool(shown), mask=partial(self._mask, path, masks, place)))
        facts = {
            "patches": list(self.patches),
            "photographs": {"training": len(normals), "test": len(outlined)},
            "other_lesions_left_out": left_out,
        }
        return Sides(training, test, facts)

    def check(self) -> list[str]:
        counts = {
            "photographs normal to train on": (len(self._normals()), 134),
            "photographs with outlines": (len(self._outlined()), 81),
        }
        # not every kind of lesion need be there: no look at the single problems
        return PublishedSet.check(self) + count_notes(self.root, counts)

    def _part(self, name: str) -> Path:
        # the archives unpack into folders of their own names, which some tools double or encode
        encoded = name.replace(" ", "%20")
        return find_folder(self.root, f"{name}/{name}", name, f"{encoded}/{name}") or self.there(self.root / name)

    def _normals(self) -> dict[str, Path]:
        """Photographs of grade 0 in the training part of the grading archive, by name."""
        part = self._part("B. Disease Grading")
        folder, table = part / "1. Original Images" / _SIDES[0], part / _GRADES
        rows, files = self.table(table, ("Image name", "Retinopathy grade")), files_by_stem(self.there(folder))
        normals = {}
        for row in rows:
            image, grade = row["Image name"].strip(), row["Retinopathy grade"].strip()
            if not image and not grade:
                continue  # the published table ends in empty lines and columns
            if not image or grade not in ("0", "1", "2", "3", "4"):
                raise self.wrong(table, f"has grade {grade!r} for image {image!r}")
            if grade == "0":
                normals[image] = files.get(image) or self.there(folder / f"{image}.jpg")
        if not normals:
            raise self.wrong(table, "names no photograph of grade 0")
        return normals

    def _outlined(self) -> dict[str, tuple[Path, dict[str, Path]]]:
        """Photographs of the segmentation archive by name, each with the outlines that it has, by kind."""
        part = self._part("A. Segmentation")
        found: dict[str, tuple[Path, dict[str, Path]]] = {}
        for side in _SIDES:
            folder, truths = part / "1. Original Images" / side, part / "2. All Segmentation Groundtruths" / side
            images = files_by_stem(folder)  # none where a side is missing: the check says so
            found |= {image: (path, {}) for image, path in images.items()}
            for kind, (name, ending) in _LESIONS.items() if images else ():
                for stem, mask in files_by_stem(self.there(truths / name)).items():
                    image = stem.removesuffix(f"_{ending}")
                    if image == stem or image not in images:
                        raise self.wrong(mask, f"is of no image in {folder}")
                    found[image][1][kind] = mask
        if not found:
            self.images(part / "1. Original Images" / _SIDES[0])
        return found

    def _places(self) -> list[Place]:
        return [(row, column) for row in range(self.patches[0]) for column in range(self.patches[1])]

    def _cut(self, array: np.ndarray, place: Place) -> np.ndarray:
        rows, columns = (patch_borders(size, patches) for size, patches in zip(array.shape, self.patches))
        row, column = place
        return array[rows[row] : rows[row + 1], columns[column] : columns[column + 1]].copy()

    def _shows(self, mask: Path) -> np.ndarray:
        """In which patches something is outlined, shape of ``patches``, bool; each mask is read once."""
        if mask not in self._marked:
            array = read_mask(mask)
            cells = [self._cut(array, place).any() for place in self._places()]
            self._marked[mask] = np.array(cells).reshape(self.patches)
        return self._marked[mask]

    def _patch(self, image: str, path: Path, place: Place) -> ImageFile:
        name = f"{image}_row{place[0]}_column{place[1]}"
        return ImageFile(path, group=image, name=name, read=lambda: self._cut(self._read(path), place))

    def _mask(self, path: Path, masks: tuple[Path, ...], place: Place) -> np.ndarray:
        return self._cut(self._whole_mask(path, masks), place)


def _union(image: Path, masks: tuple[Path, ...]) -> np.ndarray:
    """Where any of the outlines of a photograph marks something, (H, W), bool."""
    whole = np.zeros(picture_size(image), dtype=bool)
    for mask in masks:
        whole |= read_mask(mask, image)
    return whole
