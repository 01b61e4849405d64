"""GTSRB's stop signs, with adversarial images of stop signs as the abnormal side."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from monai_anomaly.exceptions import InputError
from monai_anomaly.io.image_files import list_pictures, read_picture

from .layout import FileSet, ImageFile, Sides

__all__ = ["GTSRBStopSigns", "Sign"]

_COLUMNS = ("Filename", "Roi.X1", "Roi.Y1", "Roi.X2", "Roi.Y2", "ClassId")


@dataclass(frozen=True)
class Sign:
    """One published image and where its sign is.

    Args:
        path: of the image.
        box: first column, first row, one past the last column and row of the sign, pixels.
        kind: number of its class, 0 to 42.
    """

    path: Path
    box: tuple[int, int, int, int]
    kind: int

    def read(self) -> np.ndarray:
        """The sign without the border around it, shape (H, W, 3), uint8.

        Raises:
            InputError: if the image is missing or broken, or the box is not within it.
        """
        picture = read_picture(self.path, colour=True)
        left, top, right, bottom = self.box
        if not (0 <= left < right <= picture.shape[1] and 0 <= top < bottom <= picture.shape[0]):
            shape = f"{picture.shape[0]} rows and {picture.shape[1]} columns"
            raise InputError(
                self.path, f"has {shape}, and its sign at {self.box} is not within them", "Fetch it again."
            )
        return picture[top:bottom, left:right].copy()


class GTSRBStopSigns(FileSet, key="gtsrb_stop_signs"):
    """Stop signs to train on, other stop signs and adversarial images made of them to test on.

    Signs are read without the border that the published tables mark (about a tenth of the image on each side).
    The adversarial images are nobody's publication: ``examples/adversarial_stop_signs.py`` makes them, and their
    names begin with that of the test image that each is made of, which is its group.

    Args:
        root: the folder with ``Final_Training``, ``Final_Test``, ``GT-final_test.csv`` and ``adversarial``, or the
            one above it as the archives unpack (``GTSRB``).

    Raises:
        InputError: if the folder is missing.

    References:
        Ruff et al., Deep one-class classification, ICML 2018, section 4.3; Lin et al., DDR-ID, 2022, section 4.4.
    """

    stop_sign = 14
    apart = False

    def __init__(self, root: str | Path) -> None:
        super().__init__(root)
        self.base = self.root / "GTSRB" if (self.root / "GTSRB" / "Final_Training").is_dir() else self.root

    @property
    def problems(self) -> tuple[str, ...]:
        return ("stop_sign",)

    @property
    def adversarial_folder(self) -> Path:
        """Where the adversarial images are looked for."""
        folders = (self.root / "adversarial", self.base / "adversarial")
        return next((folder for folder in folders if folder.is_dir()), folders[0])

    def training_signs(self, kind: int) -> list[Sign]:
        """The published training images of a class.

        Args:
            kind: number of the class, 0 to 42.

        Raises:
            InputError: if files are missing, or the table is not as published.
        """
        folder = self.base / "Final_Training" / "Images" / f"{kind:05d}"
        return self._signs(folder / f"GT-{kind:05d}.csv", folder)

    def test_signs(self) -> list[Sign]:
        """The published test images of all classes.

        Raises:
            InputError: if files are missing, or the table is not as published.
        """
        images = self.base / "Final_Test" / "Images"
        tables = [folder / "GT-final_test.csv" for folder in (self.root, self.base, images.parent, images)]
        return self._signs(next((table for table in tables if table.is_file()), tables[0]), images)

    def _root(self, name: str) -> Path:
        return self.base

    def _sides(self, name: str) -> Sides:
        def file(sign: Sign, group: str) -> ImageFile:
            return ImageFile(sign.path, kind=name, group=group, read=sign.read)

        # Thirty images of a track show one sign as the car nears it.
        training = [
            file(sign, f"track {sign.path.stem.partition('_')[0]}") for sign in self.training_signs(self.stop_sign)
        ]
        test = [file(sign, sign.path.stem) for sign in self._normal()]
        numbers = {normal.group for normal in test}
        for path in self._adversarial():
            source = path.stem.partition("_")[0]
            group = source if source in numbers else path.name
            read = partial(read_picture, path, colour=True)
            test.append(ImageFile(path, True, "adversarial", group, name=f"adversarial/{path.name}", read=read))
        return Sides(training, test)

    def _normal(self) -> list[Sign]:
        signs = [sign for sign in self.test_signs() if sign.kind == self.stop_sign]
        if not signs:
            raise self.wrong(self.base / "Final_Test", "has no stop signs")
        return signs

    def _adversarial(self) -> list[Path]:
        if not (paths := list_pictures(self.adversarial_folder)):
            remedy = "Make them by examples/adversarial_stop_signs.py."
            raise InputError(self.adversarial_folder, "has no adversarial images of stop signs", remedy)
        return paths

    def _signs(self, table: Path, folder: Path) -> list[Sign]:
        rows = self.table(table, _COLUMNS, delimiter=";")
        signs = [_sign(row, number, table, folder) for number, row in enumerate(rows, start=2)]
        for sign in signs:
            self.there(sign.path)
        return signs


def _sign(row: dict[str, str], number: int, table: Path, folder: Path) -> Sign:
    try:
        left, top, right, bottom, kind = (int(row[column]) for column in _COLUMNS[1:])
    except ValueError as error:
        raise InputError(table, f"line {number} is broken ({error})", "Fetch the file again.") from error
    return Sign(folder / row["Filename"], (left, top, right, bottom), kind)
