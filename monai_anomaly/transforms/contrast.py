"""Global contrast normalisation as MONAI transforms."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform

from monai_anomaly.networks.blocks import global_contrast

__all__ = [
    "GlobalContrastNormalize",
    "GlobalContrastNormalizeD",
    "GlobalContrastNormalizeDict",
    "GlobalContrastNormalized",
]


class GlobalContrastNormalize(InvertibleTransform):
    """Take an image's mean away, divide by its contrast, and rescale; all channels and pixels together.

    Args:
        norm: the contrast is the mean absolute value (``"l1"``) or the root of the mean square (``"l2"``).
        value_range: the values that become 0 and 1, those of the contrast-normalised training set; None: no rescaling.
        eps: least contrast, which a constant image has.

    Raises:
        ValueError: for an unknown ``norm`` or an empty range.

    Notes:
        DDR-ID (section 4.1) rescales "via min-max-scaling"; by each image's own minimum and maximum that would undo the
        contrast normalisation, so the range is given. ``DDRID`` does all this itself, with the range of its training
        set in a buffer: this transform is for other networks. The inverse gives the image back.

    Example::

        normalised = GlobalContrastNormalize()(torch.rand(1, 28, 28))  # mean 0, mean absolute value 1
    """

    def __init__(self, norm: str = "l1", value_range: Sequence[float] | None = None, eps: float = 1e-6) -> None:
        if norm not in ("l1", "l2"):
            raise ValueError(f"norm is 'l1' or 'l2', got {norm!r}")
        if value_range is not None and not value_range[0] < value_range[1]:
            raise ValueError(f"value_range must go up, got {list(value_range)}")
        self.norm, self.value_range, self.eps = norm, value_range, eps

    def __call__(self, img: MetaTensor) -> MetaTensor:
        """Normalise an image of shape (C, *spatial), finite; the result is float32 in the same shape."""
        img = img if isinstance(img, MetaTensor) else MetaTensor(img)
        x, mean, contrast = global_contrast(img.as_tensor().float()[None], self.norm, self.eps)
        offset, scale = float(mean), float(contrast)
        if self.value_range is not None:
            lower, upper = self.value_range
            x = (x - lower) / (upper - lower)
            offset, scale = offset + lower * scale, scale * (upper - lower)
        out = MetaTensor(x[0], meta=img.meta, applied_operations=img.applied_operations)
        self.push_transform(out, extra_info={"offset": offset, "scale": scale})
        return out

    def inverse(self, data: MetaTensor) -> MetaTensor:
        """Back to the image's own intensities; shape (C, *spatial)."""
        info = self.pop_transform(data)["extra_info"]
        return data * info["scale"] + info["offset"]


class GlobalContrastNormalized(MapTransform, InvertibleTransform):
    """Dictionary version of ``GlobalContrastNormalize``.

    Args:
        keys: the images.
        norm: see ``GlobalContrastNormalize``, as the others.
        value_range: the values that become 0 and 1.
        eps: least contrast.
        allow_missing_keys: as in MONAI.
    """

    def __init__(
        self,
        keys: KeysCollection,
        norm: str = "l1",
        value_range: Sequence[float] | None = None,
        eps: float = 1e-6,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = GlobalContrastNormalize(norm, value_range, eps)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = self.transform(out[key])
        return out

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = self.transform.inverse(out[key])
        return out


GlobalContrastNormalizeD = GlobalContrastNormalizeDict = GlobalContrastNormalized
