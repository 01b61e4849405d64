"""What every published data set gives: one-class problems, read from the layout in which it is published."""

from __future__ import annotations

import csv
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import yaml

from monai_anomaly.exceptions import InputError
from monai_anomaly.io.image_files import list_pictures

from .download import RemoteFile, fetch

__all__ = ["KINDS", "ImageSet", "Problem", "Published", "PublishedSet", "count_notes", "find_folder"]


@dataclass(frozen=True)
class ImageSet:
    """One side of a problem: images that are read when they are asked for.

    Args:
        names: of the N images, unique.
        labels: shape (N,), int: 0 normal, 1 abnormal.
        read: index -> the image as published, (H, W) or (H, W, 3), uint8 (uint16 for 16-bit scans).
        groups: who or what each image is of (patient, clip): no group is ever split, intervals are clustered by it.
            Empty: each image is its own.
        read_mask: index -> shape (H, W), bool, where the image is abnormal; None for a set without masks.
        kinds: of each image its class, defect or lesion type, for break-downs; empty for none.
        positions: of each frame its place in its clip, for videos; empty for images.
    """

    names: Sequence[str]
    labels: np.ndarray
    read: Callable[[int], np.ndarray]
    groups: Sequence[str] = ()
    read_mask: Callable[[int], np.ndarray] | None = None
    kinds: Sequence[str] = ()
    positions: Sequence[int] = ()

    def __post_init__(self) -> None:
        count = len(self.names)
        if self.labels.shape != (count,) or not np.isin(self.labels, (0, 1)).all():
            raise ValueError(f"{count} images have {count} labels, each 0 or 1, got shape {self.labels.shape}")
        for name in ("groups", "kinds", "positions"):
            if len(getattr(self, name)) not in (0, count):
                raise ValueError(f"{count} images have {count} {name} or none, got {len(getattr(self, name))}")

    def __len__(self) -> int:
        return len(self.names)

    def take(self, indices: Sequence[int] | np.ndarray) -> ImageSet:
        """Some of the images, in the order given.

        Args:
            indices: of the images.
        """
        chosen = [int(index) for index in indices]
        read, mask = self.read, self.read_mask

        def part(values: Sequence) -> tuple:
            return tuple(values[index] for index in chosen) if len(values) else ()

        return ImageSet(
            names=part(self.names),
            labels=self.labels[np.asarray(chosen, dtype=np.int64)],
            read=lambda index: read(chosen[index]),
            groups=part(self.groups),
            read_mask=None if mask is None else lambda index: mask(chosen[index]),
            kinds=part(self.kinds),
            positions=part(self.positions),
        )


@dataclass(frozen=True)
class Problem:
    """A one-class problem: normals to learn from, and a test side.

    Args:
        name: which one of the set (the normal class, the category).
        training: normals alone.
        test: normal and abnormal.
        video: the test images are frames of clips (``test.groups``), scored by clip.
        facts: what a result should state (``{"patches": [3, 3]}``), JSON-able.
    """

    name: str
    training: ImageSet
    test: ImageSet
    video: bool = False
    facts: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.training.labels.any():
            raise ValueError(f"{self.name}: abnormal images are in the training side")


# Every published set by its key; a class enters it by being defined with one.
KINDS: dict[str, type[Published]] = {}


@cache
def _facts() -> dict[str, dict[str, Any]]:
    return yaml.safe_load(Path(__file__).with_name("sets.yaml").read_text(encoding="utf-8"))


def _frozen(value: Any) -> Any:
    """Lists as tuples, however deep."""
    if isinstance(value, dict):
        return {key: _frozen(inner) for key, inner in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


class Published(ABC):
    """What is published about a data set, and where it lies.

    A subclass with a ``key`` takes its facts from ``sets.yaml``.

    Args:
        root: its folder.

    Raises:
        InputError: if the folder is missing; the message says how to get the set.
    """

    key: ClassVar[str]  # its name on the command line
    title: ClassVar[str]
    source: ClassVar[str]  # the publisher's page
    licence: ClassVar[str]
    citation: ClassVar[str]
    protocol: ClassVar[str]  # which images train, which test, and by which paper
    by_hand: ClassVar[str] = ""  # how to fetch it where the publisher allows no direct download
    inner: ClassVar[tuple[str, ...]] = ()  # folders below the one named in which the set may lie

    def __init_subclass__(cls, key: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if key:
            cls.key, KINDS[key] = key, cls
            for name, value in _facts()[key].items():
                files = name == "files"
                setattr(cls, name, tuple(RemoteFile(**file) for file in value) if files else _frozen(value))

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise InputError(self.root, f"no folder with {self.title}", self.how_to_get())
        self.root = find_folder(self.root, *self.inner) or self.root

    @classmethod
    def how_to_get(cls) -> str:
        """One sentence: how a user comes by the set."""
        return cls.by_hand or f"Pass --download, or fetch it from {cls.source}."

    def there(self, path: Path) -> Path:
        """A file or folder of the layout, which must be there.

        Raises:
            InputError: if it is not.
        """
        if not path.exists():
            raise InputError(path, f"is missing, it is part of {self.title}", self.how_to_get())
        return path

    def wrong(self, where: Path, problem: str) -> InputError:
        """The error for what is not as published: the set has to be fetched again."""
        return InputError(where, problem, self.how_to_get())

    def images(self, folder: Path) -> list[Path]:
        """The images of a folder of the layout, in natural order, one at least.

        Raises:
            InputError: if the folder is missing or holds none.
        """
        if not (files := list_pictures(self.there(folder))):
            raise self.wrong(folder, "holds no images")
        return files

    def table(self, path: Path, columns: Sequence[str], delimiter: str = ",") -> list[dict[str, str]]:
        """The rows of a CSV file with a header.

        Args:
            path: of the file.
            columns: that it must have; others may be there.
            delimiter: between columns.

        Raises:
            InputError: if it is missing, has no rows, other columns, or rows that are too short.
        """
        try:
            with self.there(path).open(encoding="utf-8-sig", newline="") as file:
                rows = list(csv.DictReader(file, delimiter=delimiter))
        except (UnicodeDecodeError, csv.Error) as error:
            raise self.wrong(path, f"cannot be read as a table ({error})") from error
        if not rows or not set(columns) <= rows[0].keys():
            raise self.wrong(path, f"is no table with rows and the columns {', '.join(columns)}")
        for number, row in enumerate(rows, start=2):
            if any(row[column] is None for column in columns):
                raise self.wrong(path, f"line {number} is too short")
        return rows


class PublishedSet(Published):
    """A data set of one-class problems in the layout in which it is published; arguments as :class:`Published`."""

    files: ClassVar[tuple[RemoteFile, ...]] = ()
    unpacks: ClassVar[dict[str, tuple[str, ...]]] = {}  # archive -> what it leaves under the set's folder

    @property
    def problems(self) -> tuple[str, ...]:
        """Names of its one-class problems, in the published order."""
        return ("all",)

    @abstractmethod
    def problem(self, name: str) -> Problem:
        """One of them.

        Args:
            name: of ``problems``.

        Raises:
            InputError: if there is no such problem, or files are missing, too few, or not as published.
        """

    def check(self) -> list[str]:
        """Look over the whole set: counts, sizes, checksums where they are published.

        Returns:
            What differs from the published set but can be worked with (a part of it, a copy), one line each.

        Raises:
            InputError: for what cannot.
        """
        copies = [(file, self.root / file.name) for file in self.files if (self.root / file.name).is_file()]
        return [f"{path}: {wrong}" for file, path in copies if (wrong := file.difference(path))]

    def require(self, name: str) -> None:
        """Reject a problem that the set does not have.

        Raises:
            InputError: with the names there are.
        """
        if not self.problems:
            raise self.wrong(self.root, f"holds nothing in the layout of {self.title}")
        if name not in self.problems:
            raise InputError(
                self.root, f"{self.title} has no problem {name!r}", f"Choose one of {', '.join(self.problems)}."
            )

    @classmethod
    def download(cls, root: str | Path) -> None:
        """Fetch the set into a folder, checked, and only what is not there yet; archives are unpacked and stay.

        Args:
            root: the folder.

        Raises:
            InputError: if the publisher wants it fetched by hand, a download fails, or a file is not as published.
        """
        remote = [file for file in cls.files if file.url]
        if cls.by_hand or not remote:
            raise InputError(root, f"{cls.title} cannot be downloaded by a program", cls.how_to_get())
        for file in remote:
            fetch(file, Path(root), cls.unpacks.get(file.name, ()))


def find_folder(root: Path, *candidates: str) -> Path | None:
    """The first folder of several spellings that is there.

    Args:
        root: what they are relative to.
        candidates: relative paths, the published one first.
    """
    return next((root / name for name in candidates if (root / name).is_dir()), None)


def count_notes(where: object, counts: Mapping[str, tuple[int, int | Sequence[int]]], source: str = "") -> list[str]:
    """How numbers differ from the published ones, one line each.

    Args:
        where: the folder.
        counts: by what is counted the number found and the published one, or those of several versions.
        source: who has the published numbers, ``"published are"`` by default.
    """
    notes = []
    for what, (found, published) in counts.items():
        versions = [published] if isinstance(published, int) else published
        if found not in versions:
            notes.append(f"{where}: {found} {what}, {source or 'published are'} {' or '.join(map(str, versions))}")
    return notes
