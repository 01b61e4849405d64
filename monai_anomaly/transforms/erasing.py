"""The erasing operations of ITAE as transforms of single images.

References:
    Huang et al., "Inverse-Transform AutoEncoder for Anomaly Detection", arXiv:1911.10676, sections 3.2, 4.1.1 and 4.4.

The network of ITAE erases by itself, a batch at a time; these serve to look at what it sees, or to train another.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, Randomizable, Transform
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_tensor, ensure_tuple

from monai_anomaly.networks.blocks.erasing import ErasingSet

__all__ = [
    "RandErasing",
    "RandErasingD",
    "RandErasingDict",
    "RandErasingd",
]


class RandErasing(Randomizable, Transform):
    """A random version of an erasing set, its operations in tandem (section 4.1.1).

    Args:
        erasing: operations, see ``monai_anomaly.networks.blocks.ErasingSet``.
        spatial_dims: 2 or 3.

    Attributes:
        version: the last version drawn.

    Notes:
        A quarter turn of an image that is not square has its sides exchanged, and the metadata's affine does not turn
        with it: the erased image is compared with the original, pixel by pixel.

    Example::

        erased = RandErasing(["gray", "rotation"])(torch.rand(3, 32, 32))  # shape (1, 32, 32)
    """

    backend: ClassVar[list[TransformBackends]] = [TransformBackends.TORCH]

    def __init__(self, erasing: Sequence[str] = ("gray", "rotation"), spatial_dims: int = 2) -> None:
        self.erasing = ErasingSet(erasing, spatial_dims)
        self.version = 0

    def randomize(self, data: Any = None) -> None:
        """Draw a version."""
        self.version = int(self.R.randint(self.erasing.versions))

    def __call__(self, image: NdarrayOrTensor, randomize: bool = True) -> NdarrayOrTensor:
        """Erase information of an image.

        Args:
            image: shape (C, *spatial); Tensor, MetaTensor or ndarray.
            randomize: draw anew; False repeats the last draw.

        Returns:
            The erased image, of the kind of ``image``.
        """
        if randomize:
            self.randomize()
        erased = self.erasing(convert_to_tensor(image, track_meta=True)[None], self.version)[0]
        return convert_to_dst_type(erased, dst=image)[0]


class RandErasingd(Randomizable, MapTransform):
    """Dictionary version of :class:`RandErasing`; the images stay, as what is to be restored.

    Args:
        keys: of the images, which share one draw.
        erasing: see :class:`RandErasing`.
        spatial_dims: 2 or 3.
        output_key: key of each erased image, as many as ``keys``.
        allow_missing_keys: do not raise if a key is missing.

    Raises:
        ValueError: if ``output_key`` and ``keys`` differ in number, or for an unknown operation.
    """

    backend = RandErasing.backend

    def __init__(
        self,
        keys: KeysCollection,
        erasing: Sequence[str] = ("gray", "rotation"),
        spatial_dims: int = 2,
        output_key: KeysCollection = "erased",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.output_keys = ensure_tuple(output_key)
        if len(self.output_keys) != len(self.keys):
            raise ValueError(f"{len(self.keys)} keys need as many output keys, got {self.output_keys}")
        self.transform = RandErasing(erasing, spatial_dims)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandErasingd:
        """Seed the draws; arguments as in MONAI's ``Randomizable``."""
        super().set_random_state(seed, state)
        self.transform.set_random_state(seed, state)
        return self

    def randomize(self, data: Any = None) -> None:
        """Draw a version."""
        self.transform.randomize()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the erased images to a copy of the dictionary."""
        d: dict[Hashable, Any] = dict(data)
        self.randomize()
        for key, output_key in self.key_iterator(d, self.output_keys):
            d[output_key] = self.transform(d[key], randomize=False)
        return d


RandErasingD = RandErasingDict = RandErasingd
