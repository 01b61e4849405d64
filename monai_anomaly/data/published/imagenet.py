"""Ten superclasses of ImageNet (ILSVRC 2012), in folders by WordNet id."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from monai_anomaly.io.image_files import list_pictures

from .layout import FileSet, ImageFile, Sides

__all__ = ["ImageNetSuperclasses"]


class ImageNetSuperclasses(FileSet, key="imagenet"):
    """The ten superclasses of Table 7 of ITAE, 56 of the 1,000 classes.

    Args:
        root: the folder with ``train`` and ``val``, each with a folder by WordNet id, or the one above it as the
            archive unpacks (``ILSVRC/Data/CLS-LOC``).

    Raises:
        InputError: if the folder is missing.

    References:
        Fei et al., Attribute restoration framework for anomaly detection, IEEE TMM 2020, Table 7.
    """

    superclasses: ClassVar[dict[str, tuple[str, ...]]]  # WordNet ids of each
    apart = False
    colour = True  # a few published images are gray or CMYK

    @property
    def problems(self) -> tuple[str, ...]:
        """The superclasses whose training images are there."""
        training = self.root / "train"
        return tuple(
            name for name, wnids in self.superclasses.items() if all((training / wnid).is_dir() for wnid in wnids)
        )

    def _sides(self, name: str) -> Sides:
        training = self._files("train", name, name)
        return Sides(training, [file for kind in self.superclasses for file in self._files("val", kind, name)])

    def check(self) -> list[str]:
        notes = super().check()
        if absent := [name for name in self.superclasses if name not in self.problems]:
            notes.append(f"{self.root / 'train'}: a part of the set: not all classes of {', '.join(absent)}")
        for name in self.problems:
            for wnid in self.superclasses[name]:
                count = len(self._class("train", wnid))
                # The smallest and the largest class of the published training side.
                if not 732 <= count <= 1300:
                    notes.append(f"{self.root / 'train' / wnid}: {count} images, published are 732 to 1300 a class")
        for wnids in self.superclasses.values():
            for wnid in wnids:
                if (count := len(self._class("val", wnid))) != 50:
                    notes.append(f"{self.root / 'val' / wnid}: {count} of 50 images")
        return notes

    def _files(self, side: str, kind: str, normal: str) -> list[ImageFile]:
        return [
            ImageFile(path, kind != normal, kind)
            for wnid in self.superclasses[kind]
            for path in self._class(side, wnid)
        ]

    def _class(self, side: str, wnid: str) -> list[Path]:
        folder = self.root / side / wnid
        if not folder.is_dir() and list_pictures(self.root / side):
            raise self.wrong(self.root / side, "holds images that are not sorted into classes")
        return self.images(folder)
