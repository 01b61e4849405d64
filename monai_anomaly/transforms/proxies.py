"""The proxies of ProxyAno: superpixel image, edges, smooth image, smooth patches, and concatenations of two.

A proxy is the intermediate image between an image and its reconstruction. Each transform here takes one
channel-first image and returns its proxy in the same kind of container.

References:
    Zhou et al., "Proxy-bridged Image Reconstruction Network for Anomaly Detection in Medical Images", IEEE
    Transactions on Medical Imaging 2021: section III-B (superpixel image), section IV-E and Table III (the others).
"""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Hashable, Mapping
from typing import Any, ClassVar

import numpy as np
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import ImageMetaKey, TransformBackends, convert_to_dst_type, convert_to_numpy

from monai_anomaly.exceptions import InputError

__all__ = [
    "PAPER_CELL_SIDE",
    "CannyEdge",
    "CannyEdgeD",
    "CannyEdgeDict",
    "CannyEdged",
    "ConcatProxies",
    "ConcatProxiesD",
    "ConcatProxiesDict",
    "ConcatProxiesd",
    "Proxy",
    "SmoothImage",
    "SmoothImageD",
    "SmoothImageDict",
    "SmoothImaged",
    "SmoothPatches",
    "SmoothPatchesD",
    "SmoothPatchesDict",
    "SmoothPatchesd",
    "SuperpixelImage",
    "SuperpixelImageD",
    "SuperpixelImageDict",
    "SuperpixelImaged",
]

PAPER_CELL_SIDE = math.sqrt(256 * 256 / 800)
"""Side of a square superpixel in pixels, 9.05: the paper's 800 superpixels on 256 x 256 (section IV-A1)."""


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive number, got {value!r}")


class Proxy(Transform):
    """Base of the proxies: checks the image, computes in numpy, answers in the kind of container that came.

    A subclass writes :meth:`compute` and :attr:`parameters`.
    """

    backend: ClassVar[list[TransformBackends]] = [TransformBackends.NUMPY]

    @property
    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """Everything that the result depends on besides the image, as JSON-able values."""

    @abstractmethod
    def compute(self, image: np.ndarray) -> np.ndarray:
        """Compute the proxy of a checked image.

        Args:
            image: float32, shape (C, *spatial), 2 or 3 spatial dimensions, finite.

        Returns:
            The proxy, shape (P, *spatial).
        """

    def proxy_channels(self, in_channels: int) -> int:
        """Number of channels P of the proxy of an image with ``in_channels`` channels."""
        return in_channels

    @property
    def config(self) -> dict[str, Any]:
        """Class name (under ``"class"``) and parameters as a JSON-able dictionary, fit for a cache key."""
        return {"class": type(self).__name__, **self.parameters}

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """Make the proxy of one image.

        Args:
            img: shape (C, *spatial) with 2 or 3 spatial dimensions, any value range; Tensor, MetaTensor or ndarray.

        Returns:
            The proxy, float32, shape (P, *spatial) with P = ``proxy_channels(C)``, of the kind of ``img``; a
            MetaTensor keeps its metadata.

        Raises:
            InputError: if the image is empty, has not 2 or 3 spatial dimensions, or holds NaN or infinity.
        """
        image = np.ascontiguousarray(convert_to_numpy(img, dtype=np.float32))
        where = type(self).__name__
        if isinstance(img, MetaTensor):
            where = str(img.meta.get(ImageMetaKey.FILENAME_OR_OBJ, where))
        if image.ndim not in (3, 4) or image.size == 0:
            raise InputError(
                where,
                f"a proxy needs a channel-first 2-D or 3-D image, got shape {image.shape}",
                "Add the channel axis.",
            )
        if not np.isfinite(image).all():
            raise InputError(where, "the image holds NaN or infinity", "Repair or leave out the file.")
        return convert_to_dst_type(self.compute(image), dst=img, dtype=np.float32)[0]


class SuperpixelImage(Proxy):
    """Superpixel image (SI): SLIC superpixels, each filled with its mean per channel.

    SLIC rescales the image to [0, 1] by its own extremes first, so ``compactness`` means the same for every value
    range; the means are of the original values. Colours stay as they are (no Lab conversion): the channels of a
    medical image need not be RGB. A constant image is its own superpixel image.

    Args:
        num_superpixels: number of superpixels asked of SLIC (which returns about as many). ``None``: as many as
            keep the paper's cell, :data:`PAPER_CELL_SIDE` = 9.05 pixels a side, so 800 at 256 x 256, but at least
            two a side (4 in 2-D, 8 in 3-D). In 3-D the cell is the cube of that side: the supervoxel then follows
            structures of the same size in voxels as its 2-D counterpart. Cells are measured in voxels, not in
            millimetres: resample a volume of long voxels first.
        compactness: SLIC's weight of distance in space against distance in value. The paper gives none. 0.1 lets
            cells of a gray image in [0, 1] follow edges; the library's default of 10 gives nearly a square grid,
            which is the :class:`SmoothPatches` proxy. The smaller, the sooner noise tears cells apart, whose pieces
            SLIC merges: where fewer than half the superpixels asked for are left, a warning says so.
        sigma: width in pixels of the Gaussian smoothing before the segmentation; 0 for none (the paper names none).

    Raises:
        ValueError: if an argument is out of range.

    References:
        ProxyAno, sections III-B and IV-A1. Achanta et al., "SLIC superpixels compared to state-of-the-art
        superpixel methods", IEEE TPAMI 2012.
    """

    def __init__(self, num_superpixels: int | None = None, compactness: float = 0.1, sigma: float = 0.0) -> None:
        if num_superpixels is not None:
            _positive("num_superpixels", num_superpixels)
        _positive("compactness", compactness)
        if not (math.isfinite(sigma) and sigma >= 0):
            raise ValueError(f"sigma must be zero or a positive number, got {sigma!r}")
        self.num_superpixels = None if num_superpixels is None else int(num_superpixels)
        self.compactness = float(compactness)
        self.sigma = float(sigma)

    @property
    def parameters(self) -> dict[str, Any]:
        return {"num_superpixels": self.num_superpixels, "compactness": self.compactness, "sigma": self.sigma}

    def count(self, spatial_shape: tuple[int, ...]) -> int:
        """Number of superpixels asked of SLIC for an image of this spatial shape."""
        if self.num_superpixels is not None:
            return self.num_superpixels
        dims = len(spatial_shape)
        return max(2**dims, round(math.prod(spatial_shape) / PAPER_CELL_SIDE**dims))

    def segment(self, image: np.ndarray) -> np.ndarray:
        """Superpixel labels, int, shape (*spatial), from 0, of an image of shape (C, *spatial)."""
        from skimage.segmentation import slic

        gray = image.shape[0] == 1
        asked = self.count(image.shape[1:])
        labels: np.ndarray = slic(
            image[0] if gray else image,
            n_segments=asked,
            compactness=self.compactness,
            sigma=self.sigma,
            convert2lab=False,
            start_label=0,
            channel_axis=None if gray else 0,
        )
        # SLIC merges pieces under half a cell: fewer than half the cells means that most were torn apart by noise
        if labels.max() + 1 < asked / 2:
            warnings.warn(
                "SuperpixelImage: SLIC returned fewer than half the superpixels asked for; the image is noisy or "
                "finely textured. Raise `compactness`, or smooth first with `sigma`.",
                stacklevel=2,
            )
        return labels

    def compute(self, image: np.ndarray) -> np.ndarray:
        labels = self.segment(image).ravel()
        sizes = np.maximum(np.bincount(labels), 1)  # a label without pixels fills nothing
        # bincount sums in float64, in which float32 values of like size add up without error
        means = [np.bincount(labels, weights=channel.ravel()) / sizes for channel in image]
        return np.stack([mean[labels] for mean in means]).reshape(image.shape)


class CannyEdge(Proxy):
    """Canny edges of the channel mean: one channel, 1 on an edge and 0 elsewhere.

    The mean image is rescaled to [0, 1] by its own extremes first, so the thresholds mean the same for every value
    range; a constant image has no edges. Canny is a 2-D method: a volume is treated slice by slice over its last
    axis, rescaled as a whole.

    Args:
        sigma: width in pixels of the Gaussian smoothing. The paper gives none; 1 is scikit-image's default.
        low_threshold: gradient (Sobel, of values in [0, 1]) above which an edge goes on; scikit-image's default.
        high_threshold: gradient above which an edge starts; scikit-image's default.

    Raises:
        ValueError: if an argument is out of range.

    References:
        ProxyAno, section IV-E, Table III. Canny, "A computational approach to edge detection", IEEE TPAMI 1986.
    """

    def __init__(self, sigma: float = 1.0, low_threshold: float = 0.1, high_threshold: float = 0.2) -> None:
        _positive("sigma", sigma)
        if not 0 <= low_threshold <= high_threshold:
            raise ValueError(f"0 <= low_threshold <= high_threshold is needed, got {low_threshold}, {high_threshold}")
        self.sigma = float(sigma)
        self.low_threshold = float(low_threshold)
        self.high_threshold = float(high_threshold)

    @property
    def parameters(self) -> dict[str, Any]:
        return {"sigma": self.sigma, "low_threshold": self.low_threshold, "high_threshold": self.high_threshold}

    def proxy_channels(self, in_channels: int) -> int:
        """1, whatever ``in_channels``."""
        return 1

    def compute(self, image: np.ndarray) -> np.ndarray:
        from skimage.feature import canny

        gray = image.mean(axis=0, dtype=np.float64)
        gray -= gray.min()
        top = gray.max()
        if top > 0:
            gray /= top
        slices = gray.reshape(*gray.shape[:2], -1)
        edges = np.empty(slices.shape, dtype=np.float32)
        for index in range(slices.shape[-1]):
            edges[..., index] = canny(
                slices[..., index],
                sigma=self.sigma,
                low_threshold=self.low_threshold,
                high_threshold=self.high_threshold,
            )
        return edges.reshape(1, *gray.shape)


class SmoothImage(Proxy):
    """The image under a Gaussian blur.

    ``monai.transforms.GaussianSmooth`` pads with zeros, which darkens the border of every image that does not end
    in black; here the border value is repeated, so a constant image stays itself.

    Args:
        sigma: width of the Gaussian in pixels. The paper gives none; 2 makes the kernel, two
            sigma to either side, 8 pixels wide, about a superpixel's side of 9.05.

    Raises:
        ValueError: if ``sigma`` is not positive.

    References:
        ProxyAno, section IV-E, Table III.
    """

    def __init__(self, sigma: float = 2.0) -> None:
        _positive("sigma", sigma)
        self.sigma = float(sigma)

    @property
    def parameters(self) -> dict[str, Any]:
        return {"sigma": self.sigma}

    def compute(self, image: np.ndarray) -> np.ndarray:
        from scipy.ndimage import gaussian_filter

        return gaussian_filter(image, sigma=(0.0, *[self.sigma] * (image.ndim - 1)), mode="nearest")


class SmoothPatches(Proxy):
    """Mean over patches that do not overlap: squares in 2-D, cubes in 3-D.

    Patches start at index 0 of every axis; those at the far border hold what is left.

    Args:
        patch_size: side in pixels. The paper gives none; 8 is the power of two next to a superpixel's side of 9.05.

    Raises:
        ValueError: if ``patch_size`` is not positive.

    References:
        ProxyAno, section IV-E, Table III.
    """

    def __init__(self, patch_size: int = 8) -> None:
        _positive("patch_size", patch_size)
        self.patch_size = int(patch_size)

    @property
    def parameters(self) -> dict[str, Any]:
        return {"patch_size": self.patch_size}

    def compute(self, image: np.ndarray) -> np.ndarray:
        proxy = image.astype(np.float64)
        for axis in range(1, image.ndim):
            side = image.shape[axis]
            starts = np.arange(0, side, self.patch_size)
            widths = np.diff(starts, append=side)
            # every patch has one width along an axis, so the mean of means is the mean
            along = [-1 if other == axis else 1 for other in range(image.ndim)]
            proxy = np.add.reduceat(proxy, starts, axis=axis) / widths.reshape(along)
            proxy = np.repeat(proxy, widths, axis=axis)
        return proxy


class ConcatProxies(Proxy):
    """Two proxies of the same image, joined along the channels: the paper's edge + smooth and edge + patches.

    Args:
        first: proxy whose channels come first.
        second: proxy whose channels come after.

    References:
        ProxyAno, section IV-E, Table III.
    """

    def __init__(self, first: Proxy, second: Proxy) -> None:
        self.first, self.second = first, second

    @property
    def parameters(self) -> dict[str, Any]:
        return {"first": self.first.config, "second": self.second.config}

    def proxy_channels(self, in_channels: int) -> int:
        """Sum of both proxies' channels."""
        return self.first.proxy_channels(in_channels) + self.second.proxy_channels(in_channels)

    def compute(self, image: np.ndarray) -> np.ndarray:
        return np.concatenate([self.first.compute(image), self.second.compute(image)])


class _Proxyd(MapTransform):
    """Puts the proxy of each item in the item's place."""

    backend = Proxy.backend

    def __init__(self, keys: KeysCollection, proxy: Proxy, allow_missing_keys: bool) -> None:
        super().__init__(keys, allow_missing_keys)
        self.proxy = proxy

    @property
    def config(self) -> dict[str, Any]:
        """The array proxy's ``config``."""
        return self.proxy.config

    def proxy_channels(self, in_channels: int) -> int:
        """The array proxy's ``proxy_channels``."""
        return self.proxy.proxy_channels(in_channels)

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.proxy(d[key])
        return d


class SuperpixelImaged(_Proxyd):
    """Dictionary version of :class:`SuperpixelImage`; each item under ``keys`` becomes its proxy.

    Args:
        keys: keys of the images, each (C, *spatial).
        num_superpixels: see :class:`SuperpixelImage`.
        compactness: see :class:`SuperpixelImage`.
        sigma: see :class:`SuperpixelImage`.
        allow_missing_keys: do not raise if a key is missing.
    """

    def __init__(
        self,
        keys: KeysCollection,
        num_superpixels: int | None = None,
        compactness: float = 0.1,
        sigma: float = 0.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, SuperpixelImage(num_superpixels, compactness, sigma), allow_missing_keys)


class CannyEdged(_Proxyd):
    """Dictionary version of :class:`CannyEdge`; each item under ``keys`` becomes its proxy.

    Args:
        keys: keys of the images, each (C, *spatial).
        sigma: see :class:`CannyEdge`.
        low_threshold: see :class:`CannyEdge`.
        high_threshold: see :class:`CannyEdge`.
        allow_missing_keys: do not raise if a key is missing.
    """

    def __init__(
        self,
        keys: KeysCollection,
        sigma: float = 1.0,
        low_threshold: float = 0.1,
        high_threshold: float = 0.2,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, CannyEdge(sigma, low_threshold, high_threshold), allow_missing_keys)


class SmoothImaged(_Proxyd):
    """Dictionary version of :class:`SmoothImage`; each item under ``keys`` becomes its proxy.

    Args:
        keys: keys of the images, each (C, *spatial).
        sigma: see :class:`SmoothImage`.
        allow_missing_keys: do not raise if a key is missing.
    """

    def __init__(self, keys: KeysCollection, sigma: float = 2.0, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, SmoothImage(sigma), allow_missing_keys)


class SmoothPatchesd(_Proxyd):
    """Dictionary version of :class:`SmoothPatches`; each item under ``keys`` becomes its proxy.

    Args:
        keys: keys of the images, each (C, *spatial).
        patch_size: see :class:`SmoothPatches`.
        allow_missing_keys: do not raise if a key is missing.
    """

    def __init__(self, keys: KeysCollection, patch_size: int = 8, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, SmoothPatches(patch_size), allow_missing_keys)


class ConcatProxiesd(_Proxyd):
    """Dictionary version of :class:`ConcatProxies`; each item under ``keys`` becomes its proxy.

    Args:
        keys: keys of the images, each (C, *spatial).
        first: see :class:`ConcatProxies`.
        second: see :class:`ConcatProxies`.
        allow_missing_keys: do not raise if a key is missing.
    """

    def __init__(self, keys: KeysCollection, first: Proxy, second: Proxy, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, ConcatProxies(first, second), allow_missing_keys)


SuperpixelImageD = SuperpixelImageDict = SuperpixelImaged
CannyEdgeD = CannyEdgeDict = CannyEdged
SmoothImageD = SmoothImageDict = SmoothImaged
SmoothPatchesD = SmoothPatchesDict = SmoothPatchesd
ConcatProxiesD = ConcatProxiesDict = ConcatProxiesd
