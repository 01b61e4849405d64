"""Ten superclasses of ImageNet (ILSVRC 2012), in folders by WordNet id."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from monai_anomaly.io.image_files import list_pictures

from .layout import FileSet, ImageFile, Sides

__all__ = ["ImageNetSuperclasses"]


class ImageNetSuperclasses(FileSet):
    """The ten superclasses of Table 7 of ITAE, 56 of the 1,000 classes.

    Args:
        root: the folder with ``train`` and ``val``, each with a folder by WordNet id, or the one above it as the
            archive unpacks (``ILSVRC/Data/CLS-LOC``).

    Raises:
        InputError: if the folder is missing.

    References:
        Fei et al., Attribute restoration framework for anomaly detection, IEEE TMM 2020, Table 7.
    """

    key = "imagenet"
    title = "ImageNet (ILSVRC 2012)"
    source = "https://image-net.org/challenges/LSVRC/2012/"
    licence = "non-commercial research and education alone, by the publisher's terms of access"
    citation = "Russakovsky et al., ImageNet large scale visual recognition challenge, IJCV 2015"
    protocol = (
        "The training images of one superclass train; the validation images of all ten superclasses test, those "
        "of the other nine abnormal (ITAE, Table 7)."
    )
    by_hand = (
        "Ask for access at https://image-net.org, unpack the training and validation images of ILSVRC 2012, and "
        "sort both into folders train/<wnid> and val/<wnid>."
    )
    inner = ("Data/CLS-LOC", "ILSVRC/Data/CLS-LOC")
    apart = False
    colour = True  # a few published images are gray or CMYK
    superclasses: ClassVar[dict[str, tuple[str, ...]]] = {
        "snake": ("n01728920", "n01728572", "n01729322", "n01734418", "n01737021", "n01740131", "n01735189"),
        "finch": ("n01530575", "n01531178", "n01532829", "n01534433", "n01795545", "n01796340"),
        "spider": ("n01773157", "n01773549", "n01774384", "n01775062", "n01773797", "n01774750"),
        "big_cat": ("n02128385", "n02128925", "n02129604", "n02130308", "n02128757", "n02129165"),
        "beetle": ("n02165105", "n02165456", "n02169497", "n02177972", "n02167151"),
        "wading_bird": ("n02007558", "n02012849", "n02013706", "n02018795", "n02006656"),
        "monkey": ("n02486261", "n02486410", "n02488291", "n02489166"),
        "fungus": ("n12985857", "n13037406", "n13054560", "n13040303"),
        "cat": ("n02123045", "n02123394", "n02124075", "n02123159"),
        "dog": (
            "n02088364",
            "n02105412",
            "n02106030",
            "n02106166",
            "n02106662",
            "n02106550",
            "n02088466",
            "n02093754",
            "n02091635",
        ),
    }

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
