"""Synthetic lesions with their masks, for choosing among models without any diseased scan."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import GaussianSmooth, MapTransform, Randomizable, RandomizableTransform, ShiftIntensity
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_numpy

from monai_anomaly.exceptions import InputError

from .pseudo_abnormal import RandPseudoAbnormalProxy

__all__ = [
    "LESION_KINDS",
    "RandSyntheticLesion",
    "RandSyntheticLesionD",
    "RandSyntheticLesionDict",
    "RandSyntheticLesiond",
]

LESION_KINDS = ("cut_paste", "blob", "blur", "intensity")


class RandSyntheticLesion(RandomizableTransform):
    """Put one synthetic lesion into the foreground of a normal image, in two or three dimensions.

    The kind is drawn with equal probability:

    - ``"cut_paste"``: a box of a donor image at another place (``RandPseudoAbnormalProxy``);
    - ``"blob"``: an ellipsoid, brighter or darker, strongest at its centre;
    - ``"blur"``: an ellipsoid of smoothed tissue (``GaussianSmooth``);
    - ``"intensity"``: an ellipsoid shifted as a whole (``ShiftIntensity``).

    An ellipsoid has its centre in the foreground, axes drawn independently and any orientation. The lesion is that part
    of it that is foreground; of a pasted box, where image or donor patch is. Nothing outside of it changes.

    Args:
        kinds: to draw from.
        size_range: smallest and largest extent along an axis as fractions of the image's side, in (0, 1].
        strength_range: of blobs and shifts, in the image's unit, above 0; the sign is drawn too.
        sigma_range: of the blur, as fractions of the image's smallest side.
        foreground: a place is foreground where some channel exceeds it. 0 is the background of
            ``NormalizeForeground``.
        clip: range that the changed intensities are clipped to, or None. A shift out of the range is turned round where
            the other sign leaves more of it.
        prob: probability of a lesion.

    Raises:
        ValueError: for an unknown kind or a range that is out of order or bounds.

    Notes:
        Synthetic lesions are no disease: a model that finds them best need not find tumours best. They take no label
        and no diseased scan, which is what makes a choice by them honest.
    """

    backend: ClassVar[list[TransformBackends]] = [TransformBackends.NUMPY]

    def __init__(
        self,
        kinds: Sequence[str] = LESION_KINDS,
        size_range: Sequence[float] = (0.05, 0.25),
        strength_range: Sequence[float] = (0.15, 0.5),
        sigma_range: Sequence[float] = (0.02, 0.05),
        foreground: float = 0.0,
        clip: Sequence[float] | None = (0.0, 1.0),
        prob: float = 1.0,
    ) -> None:
        unknown = [kind for kind in kinds if kind not in LESION_KINDS]
        if unknown or not kinds:
            raise ValueError(f"kinds are of {LESION_KINDS}, got {tuple(kinds)}")
        for name, (low, high) in {
            "size_range": size_range,
            "strength_range": strength_range,
            "sigma_range": sigma_range,
        }.items():
            if not 0 < low <= high or (name != "strength_range" and high > 1):
                raise ValueError(f"{name} must satisfy 0 < smallest <= largest, fractions at most 1, got {low}, {high}")
        if not 0 <= prob <= 1:
            raise ValueError(f"prob must lie in [0, 1], got {prob}")
        super().__init__(prob, do_transform=False)
        self.kinds = tuple(kinds)
        self.size_range = (float(size_range[0]), float(size_range[1]))
        self.strength_range = (float(strength_range[0]), float(strength_range[1]))
        self.sigma_range = (float(sigma_range[0]), float(sigma_range[1]))
        self.foreground = float(foreground)
        self.clip = None if clip is None else (float(clip[0]), float(clip[1]))
        self._paste = RandPseudoAbnormalProxy(self.size_range, paste_on_foreground=True)
        self.kind = ""
        self._centre = self._radii = np.zeros(0)
        self._axes = np.zeros((0, 0))
        self._strength = self._sigma = 0.0

    @property
    def config(self) -> dict[str, Any]:
        """The arguments, JSON-able."""
        return {
            "kinds": list(self.kinds),
            "size_range": list(self.size_range),
            "strength_range": list(self.strength_range),
            "sigma_range": list(self.sigma_range),
            "foreground": self.foreground,
            "clip": None if self.clip is None else list(self.clip),
            "prob": self.prob,
        }

    def randomize(self, data: NdarrayOrTensor) -> None:
        """Draw whether there is a lesion, its kind, place, shape and strength.

        Args:
            data: the image, (C, *spatial).
        """
        super().randomize(None)
        image = convert_to_numpy(data)
        places = np.flatnonzero((image > self.foreground).any(axis=0))
        if not places.size:
            self._do_transform = False
        if not self._do_transform:
            return
        self.kind = str(self.kinds[self.R.randint(len(self.kinds))])
        if self.kind == "cut_paste":
            self._paste.set_random_state(state=self.R)
            self._paste.randomize(np.where(image > self.foreground, 1.0, 0.0))
            return
        sides = np.array(image.shape[1:])
        self._centre = np.array(np.unravel_index(places[self.R.randint(places.size)], tuple(sides)), dtype=np.float64)
        # at least the centre's own voxel
        self._radii = np.maximum(self.R.uniform(*self.size_range, size=len(sides)) * sides / 2, 0.5)
        # the orthogonal factor of a Gaussian matrix has no preferred direction
        self._axes = np.linalg.qr(self.R.normal(size=(len(sides), len(sides))))[0]
        self._strength = self.R.uniform(*self.strength_range) * (1 if self.R.rand() < 0.5 else -1)
        self._sigma = self.R.uniform(*self.sigma_range) * min(sides)

    def __call__(
        self, image: NdarrayOrTensor, donor: NdarrayOrTensor | None = None, randomize: bool = True
    ) -> tuple[NdarrayOrTensor, NdarrayOrTensor]:
        """Make one lesion; the inputs are not changed.

        Args:
            image: normal image, (C, *spatial) with 2 or 3 spatial dimensions; Tensor, MetaTensor or ndarray.
            donor: where pasted boxes are cut from, (C or 1, *spatial); None: the image itself.
            randomize: draw anew; False repeats the last draw for an image of the same spatial shape (before the first
                draw there is no lesion).

        Returns:
            The image with its lesion, float32, (C, *spatial), and the mask, float32, (1, *spatial), 1 inside (all 0
            where there is no lesion or no foreground); both of the kind of ``image``.

        Raises:
            InputError: if the image has not 2 or 3 spatial dimensions, or the donor does not fit it.
        """
        if len(image.shape) not in (3, 4):
            shape = tuple(image.shape)
            raise InputError(
                type(self).__name__, f"a channel-first 2-D or 3-D image is needed, got {shape}", "Add the channel."
            )
        if donor is not None and (donor.shape[1:] != image.shape[1:] or donor.shape[0] not in (1, image.shape[0])):
            raise InputError(
                type(self).__name__,
                f"a donor of shape {tuple(donor.shape)} does not fit an image of shape {tuple(image.shape)}",
                "Give it the image's spatial shape, and the image's number of channels or one.",
            )
        if randomize:
            self.randomize(image)
        before = np.array(convert_to_numpy(image), dtype=np.float32)
        after, mask = before, np.zeros(before.shape[1:], dtype=bool)
        if self._do_transform:
            changed, region = self._changed(before, before if donor is None else convert_to_numpy(donor))
            seen = (before > self.foreground).any(axis=0)
            if self.kind == "cut_paste":
                seen |= (changed > self.foreground).any(axis=0)
            mask = region & seen
            after = np.where(mask, changed if self.clip is None else np.clip(changed, *self.clip), before)
        return (
            convert_to_dst_type(after, dst=image, dtype=np.float32)[0],
            convert_to_dst_type(mask[None].astype(np.float32), dst=image, dtype=np.float32)[0],
        )

    def _changed(self, image: np.ndarray, donor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The image changed everywhere, (C, *spatial), and the region that the lesion lies in, (*spatial)."""
        if self.kind == "cut_paste":
            pasted, region = self._paste(image, donor, randomize=False)
            return np.asarray(pasted), np.asarray(region)[0] > 0
        grid = np.stack(np.meshgrid(*[np.arange(n) for n in image.shape[1:]], indexing="ij"), axis=-1)
        radius = np.linalg.norm((grid - self._centre) @ self._axes / self._radii, axis=-1)
        region = radius <= 1
        region[tuple(self._centre.astype(int))] = True
        if self.kind == "blur":
            return np.asarray(GaussianSmooth(self._sigma)(image)), region
        strength = self._strength
        if self.clip is not None:
            mean = float(image[:, region].mean())
            room = {1.0: self.clip[1] - mean, -1.0: mean - self.clip[0]}
            sign = float(np.sign(strength))
            if room[sign] < abs(strength) and room[-sign] > room[sign]:
                strength = -strength
        if self.kind == "intensity":
            return np.asarray(ShiftIntensity(strength)(image)), region
        # half of the strength at the border, so that the lesion is as large as its mask
        return image + strength * (1 - 0.5 * np.clip(radius, 0, 1) ** 2).astype(np.float32), region


class RandSyntheticLesiond(Randomizable, MapTransform):
    """Dictionary version of :class:`RandSyntheticLesion`.

    Several images share one draw and one mask (that of the first), so they must have one spatial shape.

    Args:
        keys: the images, each (C, *spatial).
        donor_key: key of the donor; without it in the data the image is its own.
        mask_key: key of the mask, (1, *spatial).
        kinds: see :class:`RandSyntheticLesion`, as the next six.
        size_range: extents as fractions of the image's side.
        strength_range: of blobs and shifts.
        sigma_range: of the blur.
        foreground: level of the foreground.
        clip: range of the changed intensities.
        prob: probability of a lesion.
        allow_missing_keys: do not raise if a key is missing.

    Raises:
        ValueError: see :class:`RandSyntheticLesion`.
    """

    backend = RandSyntheticLesion.backend

    def __init__(
        self,
        keys: KeysCollection,
        donor_key: str = "donor",
        mask_key: str = "lesion_mask",
        kinds: Sequence[str] = LESION_KINDS,
        size_range: Sequence[float] = (0.05, 0.25),
        strength_range: Sequence[float] = (0.15, 0.5),
        sigma_range: Sequence[float] = (0.02, 0.05),
        foreground: float = 0.0,
        clip: Sequence[float] | None = (0.0, 1.0),
        prob: float = 1.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.donor_key, self.mask_key = donor_key, mask_key
        self.lesion = RandSyntheticLesion(kinds, size_range, strength_range, sigma_range, foreground, clip, prob)

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> RandSyntheticLesiond:
        """Seed the draws; arguments as in MONAI's ``Randomizable``."""
        super().set_random_state(seed, state)
        self.lesion.set_random_state(seed, state)
        return self

    def randomize(self, data: NdarrayOrTensor) -> None:
        """Draw for the given image, (C, *spatial)."""
        self.lesion.randomize(data)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace the images and add the mask, in a copy of the dictionary.

        Args:
            data: holds the images, and the donor where there is one.

        Raises:
            KeyError: if an image is missing.
            InputError: see :meth:`RandSyntheticLesion.__call__`, or the images differ in spatial shape.
        """
        d: dict[Hashable, Any] = dict(data)
        first: tuple[int, ...] | None = None
        for key in self.key_iterator(d):
            spatial = tuple(d[key].shape[1:])
            if first not in (None, spatial):
                problem = f"the images differ in spatial shape: {first} and {spatial}"
                raise InputError(type(self).__name__, problem, "Give images of one shape.")
            d[key], mask = self.lesion(d[key], d.get(self.donor_key), randomize=first is None)
            if first is None:
                d[self.mask_key] = mask
            first = spatial
        return d


RandSyntheticLesionD = RandSyntheticLesionDict = RandSyntheticLesiond
