"""Coarse noise: Gaussian noise on a grid, enlarged to the image, for denoising autoencoders."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, Randomizable, RandomizableTransform
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_tensor

__all__ = ["RandCoarseNoise", "RandCoarseNoiseD", "RandCoarseNoiseDict", "RandCoarseNoised"]

# torch's names of the interpolations, by the number of spatial dimensions.
_MODES = {("cubic", 2): "bicubic", ("linear", 2): "bilinear", ("linear", 3): "trilinear"}


class RandCoarseNoise(RandomizableTransform):
    """Add coarse noise to the foreground of an image, in two or three dimensions.

    Noise N(0, std^2) is drawn on a grid of r x r points (r x r x r in a volume), one for each channel, enlarged to the
    image, and shifted cyclically by a random number of pixels, so that no place is the grid's.

    Args:
        std: standard deviation on the grid, in the image's unit: a number, or a range to draw it from.
        grid: smallest and largest r, drawn uniformly. Kascenas et al. have 16.
        mode: ``"cubic"`` or ``"linear"`` enlargement; volumes are always enlarged linearly.
        background: a pixel that no channel exceeds it in gets no noise; None: all get noise.
        pixel: independent noise in each pixel; ``grid`` then says nothing (an ablation of Kascenas et al.).
        prob: probability of noise.

    Raises:
        ValueError: for a range that is out of order or bounds, or an unknown mode.

    References:
        A. Kascenas, N. Pugeault, A. Q. O'Neil, *Denoising Autoencoders for Unsupervised Anomaly Detection in Brain
        MRI*, MIDL 2022.

    Example::

        noisy = RandCoarseNoise(std=0.2, grid=(4, 23))(torch.rand(1, 128, 128))
    """

    backend: ClassVar[list[TransformBackends]] = [TransformBackends.TORCH]

    def __init__(
        self,
        std: float | Sequence[float] = 0.2,
        grid: Sequence[int] = (4, 23),
        mode: str = "cubic",
        background: float | None = 0.0,
        pixel: bool = False,
        prob: float = 1.0,
    ) -> None:
        low, high = (std, std) if isinstance(std, int | float) else std
        if not 0 < low <= high:
            raise ValueError(f"std is above 0 and in order, got {std}")
        if len(grid) != 2 or not 1 <= grid[0] <= grid[1]:
            raise ValueError(f"grid is the smallest and the largest number of points, at least 1, got {grid}")
        if mode not in ("cubic", "linear"):
            raise ValueError(f"mode is 'cubic' or 'linear', got {mode!r}")
        super().__init__(prob)
        self.std = (float(low), float(high))
        self.grid = (int(grid[0]), int(grid[1]))
        self.mode, self.background, self.pixel = mode, background, pixel
        self._noise = torch.zeros(0)

    @property
    def config(self) -> dict[str, Any]:
        """The arguments, JSON-able."""
        return {
            "std": list(self.std),
            "grid": list(self.grid),
            "mode": self.mode,
            "background": self.background,
            "pixel": self.pixel,
            "prob": self.prob,
        }

    def randomize(self, data: NdarrayOrTensor) -> None:
        """Draw the noise of an image, (C, *spatial)."""
        super().randomize(None)
        if not self._do_transform:
            return
        channels, *sides = data.shape
        std = self.R.uniform(*self.std)
        points = sides if self.pixel else [int(self.R.randint(self.grid[0], self.grid[1] + 1))] * len(sides)
        noise = torch.from_numpy(self.R.standard_normal((1, channels, *points)).astype(np.float32)) * std
        if not self.pixel:
            mode = _MODES[self.mode if len(sides) == 2 else "linear", len(sides)]
            noise = F.interpolate(noise, size=tuple(sides), mode=mode, align_corners=False)
            shifts = [int(self.R.randint(side)) for side in sides]
            noise = torch.roll(noise, shifts, dims=list(range(2, len(sides) + 2)))
        self._noise = noise[0]

    def __call__(self, img: NdarrayOrTensor, randomize: bool = True) -> NdarrayOrTensor:
        """Add the noise; the input is not changed.

        Args:
            img: shape (C, *spatial), two or three spatial dimensions.
            randomize: draw anew; False repeats the last draw for an image of the same shape.

        Returns:
            Of the kind and shape of ``img``, float32.
        """
        if randomize:
            self.randomize(img)
        image = convert_to_tensor(img, dtype=torch.float32)
        if not self._do_transform:
            return convert_to_dst_type(image, dst=img, dtype=np.float32)[0]
        noise = self._noise.to(image.device)
        if self.background is not None:
            noise = noise * (image > self.background).any(dim=0)
        return convert_to_dst_type(image + noise, dst=img, dtype=np.float32)[0]


class RandCoarseNoised(Randomizable, MapTransform):
    """Dictionary version of ``RandCoarseNoise``; each image gets noise of its own.

    Args:
        keys: the images, each (C, *spatial).
        std: see ``RandCoarseNoise``, as the others.
        grid: smallest and largest number of points.
        mode: enlargement.
        background: level of the background.
        pixel: independent noise in each pixel.
        prob: probability of noise.
        allow_missing_keys: as in MONAI.
    """

    backend = RandCoarseNoise.backend

    def __init__(
        self,
        keys: KeysCollection,
        std: float | Sequence[float] = 0.2,
        grid: Sequence[int] = (4, 23),
        mode: str = "cubic",
        background: float | None = 0.0,
        pixel: bool = False,
        prob: float = 1.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.noise = RandCoarseNoise(std, grid, mode, background, pixel, prob)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandCoarseNoised:
        """Seed the draws; arguments as in MONAI's ``Randomizable``."""
        super().set_random_state(seed, state)
        self.noise.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add noise to the images, in a copy of the dictionary."""
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = self.noise(out[key])
        return out


RandCoarseNoiseD = RandCoarseNoiseDict = RandCoarseNoised
