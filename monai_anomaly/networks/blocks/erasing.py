"""The erasing set of ITAE: operations that take information out of an image, and their tandem.

C. Huang, J. Cao, F. Ye, M. Li, Y. Zhang, C. Lu, *Inverse-Transform AutoEncoder for Anomaly Detection*,
arXiv:1911.10676, sections 3.2 and 4.1.1.
"""

from __future__ import annotations

import pydoc
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import permutations, product
from math import prod

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "CubeRotationErasing",
    "Erasing",
    "ErasingSet",
    "GrayErasing",
    "RotationErasing",
    "ScalingErasing",
    "cube_turns",
    "gray",
    "half_scale",
]


def gray(image: Tensor) -> Tensor:
    """The mean over the channels (section 4.1.1, "Graying").

    Args:
        image: shape (B, C, *spatial).

    Returns:
        Shape (B, 1, *spatial).
    """
    return image.mean(dim=1, keepdim=True)


def half_scale(image: Tensor) -> Tensor:
    """Half the resolution and back, so that the size stays (section 4.4: "0.5x scaling", which names no filter).

    Args:
        image: shape (B, C, *spatial), two or three spatial axes of two pixels or more.

    Returns:
        Shape (B, C, *spatial): the means of blocks of two pixels a side, interpolated linearly.
    """
    size = image.shape[2:]
    if image.ndim == 5:
        return F.interpolate(F.avg_pool3d(image, 2), size=size, mode="trilinear", align_corners=False)
    return F.interpolate(F.avg_pool2d(image, 2), size=size, mode="bilinear", align_corners=False)


def cube_turns() -> list[tuple[list[int], list[bool]]]:
    """The 24 rotations of a cube onto itself; the first is the identity.

    Returns:
        For each its order of the axes (X, Y, Z), and which of them are reversed afterwards.
    """
    turns = []
    for order in permutations(range(3)):
        odd = sum(order[i] > order[j] for i in range(3) for j in range(i + 1, 3)) % 2
        for reverse in product((False, True), repeat=3):
            # A rotation has determinant 1: an odd order of the axes needs an odd number of reversals.
            if sum(reverse) % 2 == odd:
                turns.append((list(order), list(reverse)))
    return turns


class Erasing(nn.Module, ABC):
    """One operation of the erasing set; base class of those that users add.

    A subclass takes ``spatial_dims`` alone, tells this constructor how many versions of an image it makes, and has a
    ``forward(image, version)`` from (B, C, *spatial) to (B, ``out_channels(C)``, *spatial), with pixels in [-1, 1].
    ``ITAE(erasing=["package.module.Class"])`` finds it by its dotted path.

    Attributes:
        versions: how many erased versions an image has.
        equal_axes: spatial axes (from 0) that the operation exchanges; ``ITAE`` pads them to one length first.

    Args:
        spatial_dims: 2 or 3.
        versions: see the attribute.
        equal_axes: see the attribute.

    Example::

        class Negative(Erasing):
            def __init__(self, spatial_dims: int) -> None:
                super().__init__(spatial_dims, versions=2)

            def forward(self, image: Tensor, version: int) -> Tensor:
                return -image if version == 1 else image
    """

    def __init__(self, spatial_dims: int, versions: int = 1, equal_axes: Sequence[int] = ()) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims
        self.versions = versions
        self.equal_axes = list(equal_axes)

    def out_channels(self, in_channels: int) -> int:
        """Channels of an erased version of an image with ``in_channels``."""
        return in_channels

    @abstractmethod
    def forward(self, image: Tensor, version: int) -> Tensor:
        """An erased version of a batch.

        Args:
            image: shape (B, C, *spatial).
            version: from 0 to ``versions - 1``.

        Returns:
            Shape (B, ``out_channels(C)``, *spatial).
        """


class GrayErasing(Erasing):
    """Graying: erases the channels; see ``gray``."""

    def out_channels(self, in_channels: int) -> int:
        """One."""
        return 1

    def forward(self, image: Tensor, version: int) -> Tensor:
        """See ``Erasing.forward``."""
        return gray(image)


class RotationErasing(Erasing):
    """Rotation by 0, 90, 180 or 270 degrees, anticlockwise (section 4.1.1): erases the orientation.

    The turns are exact, in the plane of the first two spatial axes: of an image or slice all there are, of a volume
    (X, Y, Z) the axial plane.
    """

    def __init__(self, spatial_dims: int) -> None:
        super().__init__(spatial_dims, versions=4, equal_axes=(0, 1))

    def forward(self, image: Tensor, version: int) -> Tensor:
        """See ``Erasing.forward``; version k is turned by k * 90 degrees."""
        return image.rot90(version, [2, 3])


class CubeRotationErasing(Erasing):
    """The 24 rotations of a cube (see ``cube_turns``): not in the paper, which has no volumes.

    Raises:
        ValueError: for two spatial dimensions.
    """

    def __init__(self, spatial_dims: int) -> None:
        if spatial_dims != 3:
            raise ValueError(f"the erasing operation 'rotation24' turns volumes, spatial_dims is {spatial_dims}")
        super().__init__(spatial_dims, versions=24, equal_axes=(0, 1, 2))
        self.orders = [[0, 1] + [2 + axis for axis in order] for order, _ in cube_turns()]
        self.reversed = [reverse for _, reverse in cube_turns()]

    def forward(self, image: Tensor, version: int) -> Tensor:
        """See ``Erasing.forward``."""
        image = image.permute(self.orders[version])
        for axis in range(3):
            if self.reversed[version][axis]:
                image = image.flip([2 + axis])
        return image


class ScalingErasing(Erasing):
    """Scaling by 0.5 (section 4.4): the negative control, since neighbours tell what it erases; see ``half_scale``."""

    def forward(self, image: Tensor, version: int) -> Tensor:
        """See ``Erasing.forward``."""
        return half_scale(image)


_NAMED: dict[str, type[Erasing]] = {
    "gray": GrayErasing,
    "rotation": RotationErasing,
    "rotation24": CubeRotationErasing,
    "scaling": ScalingErasing,
}


class ErasingSet(Erasing):
    """The erasing set: operations one after the other, in all combinations of their versions.

    Args:
        names: ``"gray"``, ``"rotation"``, ``"rotation24"``, ``"scaling"`` or the dotted path of a subclass of
            ``Erasing``, in the order of application; none: the image itself, of a plain auto-encoder.
        spatial_dims: 2 or 3.

    Raises:
        ValueError: for a name that is neither.
    """

    def __init__(self, names: Sequence[str], spatial_dims: int = 2) -> None:
        operations = [_operation(name, spatial_dims) for name in names]
        counts = [operation.versions for operation in operations]
        axes = sorted({axis for operation in operations for axis in operation.equal_axes})
        super().__init__(spatial_dims, prod(counts), axes)
        self.counts = counts
        self.operations = nn.ModuleList(operations)

    def out_channels(self, in_channels: int) -> int:
        """Channels that leave the last operation."""
        for operation in self.operations:
            assert isinstance(operation, Erasing)
            in_channels = operation.out_channels(in_channels)
        return in_channels

    def forward(self, image: Tensor, version: int) -> Tensor:
        """See ``Erasing.forward``; the first operation's version changes fastest."""
        for i, operation in enumerate(self.operations):
            image = operation(image, version % self.counts[i])
            version = version // self.counts[i]
        return image


def _operation(name: str, spatial_dims: int) -> Erasing:
    kind = _NAMED.get(name) or (pydoc.locate(name) if "." in name else None)
    if not (isinstance(kind, type) and issubclass(kind, Erasing)):
        raise ValueError(
            f"erasing operation {name!r} is neither one of {sorted(_NAMED)} nor the dotted path of a subclass of "
            "monai_anomaly.networks.blocks.Erasing"
        )
    return kind(spatial_dims)
