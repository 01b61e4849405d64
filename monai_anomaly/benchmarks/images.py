"""From the images of a published set to what a training and a test take."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import get_track_meta, set_track_meta
from monai.transforms import Randomizable
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from monai_anomaly.data.published import ImageSet
from monai_anomaly.exceptions import InputError
from monai_anomaly.transforms import NormalizeForeground
from monai_anomaly.transforms.slice_grid import resize_plane

__all__ = [
    "ImageSetDataset",
    "ImageSetReader",
    "Sides",
    "limited",
    "image_batches",
    "resized_mask",
    "split_normals",
    "training_data",
]

# Values of a batch in the network's input when nothing is trained: large enough to be fast, small enough for a laptop.
_BATCH_VALUES = 1 << 21
# Bytes of images and proxies that are held on a GPU beside the network.
_HELD_BYTES = 4 << 30

_SCALINGS = ("unit", "foreground")


class Sides(NamedTuple):
    """The normals of a problem, parted by group.

    Attributes:
        training: the network learns from them.
        held_out: for the validation loss and for statistics of normals that were not trained on.
        calibration: for thresholds alone.
    """

    training: ImageSet
    held_out: ImageSet
    calibration: ImageSet


def groups_of(pictures: ImageSet) -> list[str]:
    """Of each image what it is of; itself where the set does not say."""
    return [str(group) for group in (pictures.groups if len(pictures.groups) else pictures.names)]


def split_normals(pictures: ImageSet, held_out: float, calibration: float, seed: int) -> Sides:
    """Part normals by group.

    Args:
        images: all of them.
        held_out: share of the groups.
        calibration: share of the groups.
        seed: of the draw.

    Raises:
        InputError: if there are too few groups for each part to have one.
    """
    groups = groups_of(pictures)
    names = sorted(set(groups))
    order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    counts = [max(1, round(share * len(names))) if share > 0 else 0 for share in (held_out, calibration)]
    if sum(counts) >= len(names):
        raise InputError(
            "training normals",
            f"{len(names)} group(s) cannot be parted into training, held-out and calibration normals",
            "Raise the suite's limits or lower its shares.",
        )
    parts = set(order[: counts[0]]), set(order[counts[0] : sum(counts)])
    places = [[i for i, group in enumerate(groups) if group in part] for part in parts]
    taken = {i for part in places for i in part}
    rest = [i for i in range(len(groups)) if i not in taken]
    return Sides(pictures.take(rest), pictures.take(places[0]), pictures.take(places[1]))


def limited(pictures: ImageSet, limit: int | None) -> ImageSet:
    """A part of a side: the same for every seed, with labels in the proportion of the whole and in its order.

    Args:
        images: the side.
        limit: how many at most; None: all.
    """
    if limit is None or limit >= len(pictures):
        return pictures
    random = np.random.default_rng(0)
    share = limit / len(pictures)
    chosen: list[int] = []
    for label in (0, 1):
        places = np.flatnonzero(pictures.labels == label)
        if len(places):
            # two of a kind at least: with one there is no spread, with none no metric
            chosen += random.permutation(places)[: max(min(2, len(places)), round(share * len(places)))].tolist()
    return pictures.take(sorted(chosen))


class ImageSetReader:
    """Reads images as a network takes them.

    Args:
        image_size: rows and columns.
        channels: 1 or 3; gray images are repeated, colour images weighted by luminance (ITU-R BT.601).
        scaling: ``"unit"``: the published range becomes [0, 1]; ``"foreground"``: each image by its own foreground
            (see ``NormalizeForeground``), as the bundles do.
        full_scale: the value that becomes 1 with ``"unit"``; None: 255 of 8 bits, and of 16 bits the largest value of
            the images that ``fit`` saw.

    Raises:
        ValueError: for another number of channels or another scaling.
    """

    def __init__(self, image_size: Sequence[int], channels: int, scaling: str, full_scale: float | None = None) -> None:
        if channels not in (1, 3):
            raise ValueError(f"images have 1 or 3 channels, got {channels}")
        if scaling not in _SCALINGS:
            raise ValueError(f"scaling is one of {', '.join(_SCALINGS)}, got {scaling!r}")
        self.image_size, self.channels, self.scaling = (int(image_size[0]), int(image_size[1])), channels, scaling
        self.full_scale = full_scale

    def fit(self, pictures: ImageSet) -> ImageSetReader:
        """Take the full scale from the training normals, where the depth does not say it."""
        if self.full_scale is None:
            first = pictures.read(0)
            if first.dtype == np.uint8:
                self.full_scale = 255.0
            else:
                self.full_scale = max(1.0, *(float(pictures.read(i).max()) for i in range(len(pictures))))
        return self

    def __call__(self, picture: np.ndarray) -> Tensor:
        """One image, shape (C, H, W), float32 in [0, 1]."""
        values = torch.from_numpy(np.ascontiguousarray(picture).astype(np.float32))
        image = values[None] if values.ndim == 2 else values.permute(2, 0, 1)
        if image.shape[0] == 3 and self.channels == 1:
            image = (image * image.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0, keepdim=True)
        elif image.shape[0] != self.channels:
            image = image.expand(self.channels, -1, -1)
        if self.scaling == "foreground":
            image = NormalizeForeground(0.5, 90.0, headroom=1.6)(image).as_tensor()
        else:
            if self.full_scale is None:
                raise ValueError("the reader has no full scale yet: fit it to the training normals first")
            image = image / self.full_scale
        if tuple(image.shape[1:]) != self.image_size:
            image = resize_plane(image[None], self.image_size)[0]
        return image.clamp(0.0, 1.0).contiguous()

    def all(self, pictures: ImageSet) -> Tensor:
        """All images of a side, shape (N, C, H, W)."""
        if not len(pictures):
            return torch.empty(0, self.channels, *self.image_size)
        return torch.stack([self(pictures.read(i)) for i in range(len(pictures))])


def image_batches(pictures: ImageSet, reader: ImageSetReader) -> Iterator[Tensor]:
    """The images of a side in order, in batches that are read when they are asked for."""
    size = batch_size_for(reader.channels, reader.image_size)
    for start in range(0, len(pictures), size):
        stop = min(start + size, len(pictures))
        yield torch.stack([reader(pictures.read(i)) for i in range(start, stop)])


def batch_size_for(channels: int, image_size: Sequence[int]) -> int:
    """Images in a batch when nothing is trained."""
    return max(1, min(256, _BATCH_VALUES // (channels * int(np.prod(image_size)))))


def resized_mask(mask: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """A mask on the grid of a map, each of its pixels by the nearest one of the mask, bool."""
    whole = torch.from_numpy(np.ascontiguousarray(mask).astype(np.uint8))[None, None]
    return F.interpolate(whole, size=tuple(size), mode="nearest-exact")[0, 0].numpy().astype(bool)


def content_digest(pictures: ImageSet) -> str:
    """SHA-256 of the content of a side as published: shapes, types and values in order."""
    digest = hashlib.sha256()
    for i in range(len(pictures)):
        picture = np.ascontiguousarray(pictures.read(i))
        digest.update(f"{picture.shape}{picture.dtype.str}".encode())
        digest.update(picture.tobytes())
    return digest.hexdigest()


class ImageSetDataset(Dataset):
    """Images in memory, as a bundle's stages take them.

    Args:
        images: shape (N, C, H, W).
        groups: of each, N; a donor is of another group.
        proxy: array transform from image to proxy; None: each is its own.
        transform: random dictionary transform.
        donors: ``"other"``, ``"same"`` or None (see ``SliceDataset``).
    """

    def __init__(
        self,
        images: Tensor,
        groups: Sequence[str],
        proxy: Callable[[Tensor], Any] | None = None,
        transform: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        donors: str | None = None,
    ) -> None:
        self.images, self.transform, self.donors = images, transform, donors
        self._groups = np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
        self.proxies = images
        if proxy is not None and len(images):
            made = [torch.as_tensor(np.asarray(proxy(image), dtype=np.float32)) for image in images]
            self.proxies = torch.stack(made)
        self._random = np.random.RandomState(0)

    def held_on(self, device: torch.device | str) -> ImageSetDataset:
        """Itself, with the images on the device where whole batches are taken of them and they leave room there."""
        whole = self.transform is None and self.donors is None
        if whole and self.images.nbytes + self.proxies.nbytes <= _HELD_BYTES:
            same = self.proxies is self.images
            self.images = self.images.to(device)
            self.proxies = self.images if same else self.proxies.to(device)
        return self

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item: dict[str, Any] = {"image": self.images[index], "proxy": self.proxies[index]}
        if self.donors is not None:
            item["donor"] = self.images[self._donor(index)]
        if self.transform is None:
            return item
        # There is no metadata to keep, and keeping none takes an eighth of the time on small images.
        kept = get_track_meta()
        set_track_meta(False)
        try:
            return self.transform(item)
        finally:
            set_track_meta(kept)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor] | list[dict[str, Any]]:
        # What nothing random is done to is taken as a batch at once: item by item costs more than a small network.
        if self.transform is None and self.donors is None:
            return {"image": self.images[indices], "proxy": self.proxies[indices]}
        return [self[index] for index in indices]

    def scans(self) -> Iterator[Tensor]:
        """All images at once, where there are any; see ``SliceDataset.scans``."""
        if len(self.images):
            yield self.images

    def _donor(self, index: int) -> int:
        if self.donors == "same":
            return index
        others = np.flatnonzero(self._groups != self._groups[index])
        return int(others[self._random.randint(len(others))]) if len(others) else index

    def set_random_state(self, seed: int) -> None:
        """Seed the draw of donors and the random transform."""
        self._random = np.random.RandomState(seed)
        if isinstance(self.transform, Randomizable):
            self.transform.set_random_state(seed)


def _collate(batch: Any) -> Any:
    return batch if isinstance(batch, dict) else default_collate(batch)


def training_data(
    training: Tensor,
    held_out: Tensor,
    groups: tuple[Sequence[str], Sequence[str]],
    batch_size: int,
    proxy: Any = None,
    transform: Any = None,
    donors: str | None = None,
    device: torch.device | str = "cpu",
) -> SimpleNamespace:
    """What a bundle's ``train.yaml`` takes for its ``data``, of images in memory.

    Args:
        training: shape (N, C, H, W).
        held_out: shape (M, C, H, W).
        groups: of the training images and of the held-out ones.
        batch_size: of the training.
        proxy: see ``ImageSetDataset``, as for the next two.
        transform: of the training images.
        donors: of the training images.
        device: of the training; images that nothing random is done to are held there if they are small enough.
    """
    train = ImageSetDataset(training, groups[0], proxy, transform, donors).held_on(device)
    validation = ImageSetDataset(held_out, groups[1], proxy).held_on(device)
    # A last batch of one image has no batch statistics.
    alone = len(train) > batch_size and len(train) % batch_size == 1
    return SimpleNamespace(
        train_dataset=train,
        val_dataset=validation,
        train_loader=DataLoader(train, batch_size=batch_size, shuffle=True, drop_last=alone, collate_fn=_collate),
        val_loader=DataLoader(
            validation, batch_size=batch_size_for(training.shape[1], training.shape[2:]), collate_fn=_collate
        ),
    )
