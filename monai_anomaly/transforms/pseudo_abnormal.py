"""Pseudo Abnormal Proxy Constructor (PAPC) of ProxyAno: a patch of a normal image pasted into a normal proxy.

References:
    Zhou et al., "Proxy-bridged Image Reconstruction Network for Anomaly Detection in Medical Images", IEEE
    Transactions on Medical Imaging 2021: section III-D and Fig. 4.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, Randomizable, RandomizableTransform
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_numpy, ensure_tuple

from monai_anomaly.exceptions import InputError

__all__ = [
    "RandPseudoAbnormalProxy",
    "RandPseudoAbnormalProxyD",
    "RandPseudoAbnormalProxyDict",
    "RandPseudoAbnormalProxyd",
]


class RandPseudoAbnormalProxy(RandomizableTransform):
    """Cut a rectangular patch of random size from a donor image and paste it into a proxy at a random place.

    A superpixel image is flat inside its cells, a raw image is not: the pasted patch looks out of place, and the
    reconstruction learns to repair it. The patch is a box; its side along each axis, its place in the donor and its
    place in the proxy are drawn independently and uniformly.

    Args:
        size_range: smallest and largest side of the patch as fractions of the image's side, in (0, 1]. The paper
            says "random size" only. Default 0.1 to 0.5: at 256 pixels the smallest side is 26, about three
            superpixels, below which a patch hardly differs from the cells it covers; at the largest, three quarters
            of the proxy (of a volume seven eighths) stay normal, from which the repair can be inferred.
        paste_on_foreground: draw the centre of the pasted patch from the places where some channel of the proxy is
            not zero (the patch is then moved inside the image), so that it does not land in an empty border. Only
            sensible where background is zero. A proxy that is zero everywhere has no such place, and the patch lands
            anywhere. Default False, as in the paper.
        prob: probability that a patch is pasted. Default 1, as in the paper.

    Raises:
        ValueError: if ``size_range`` or ``prob`` is out of range.

    References:
        ProxyAno, section III-D and Fig. 4. It lets the donor be a random normal image (section I) or leaves it open
        (section III-D); here the caller chooses.
    """

    backend: ClassVar[list[TransformBackends]] = [TransformBackends.NUMPY]

    def __init__(
        self, size_range: Sequence[float] = (0.1, 0.5), paste_on_foreground: bool = False, prob: float = 1.0
    ) -> None:
        low, high = size_range
        if not 0 < low <= high <= 1:
            raise ValueError(f"size_range must satisfy 0 < smallest <= largest <= 1, got {tuple(size_range)}")
        if not 0 <= prob <= 1:
            raise ValueError(f"prob must lie in [0, 1], got {prob}")
        super().__init__(prob, do_transform=False)
        self.size_range = (float(low), float(high))
        self.paste_on_foreground = paste_on_foreground
        self._cut: tuple[slice, ...] = ()
        self._paste: tuple[slice, ...] = ()

    def randomize(self, data: NdarrayOrTensor) -> None:
        """Draw whether to paste, the patch's size, where it is cut and where it is pasted.

        Args:
            data: the proxy, (P, *spatial): its shape, and its values where ``paste_on_foreground``.
        """
        super().randomize(None)
        if not self._do_transform:
            return
        sides = data.shape[1:]
        sizes = [max(1, round(self.R.uniform(*self.size_range) * side)) for side in sides]
        room = [side - size for side, size in zip(sides, sizes)]
        cut = [int(self.R.randint(space + 1)) for space in room]
        paste = [int(self.R.randint(space + 1)) for space in room]
        if self.paste_on_foreground:
            foreground = np.flatnonzero(convert_to_numpy(data).any(axis=0))
            if foreground.size:
                centre = np.unravel_index(foreground[self.R.randint(foreground.size)], sides)
                starts = [int(place) - size // 2 for place, size in zip(centre, sizes)]
                paste = [min(max(start, 0), space) for start, space in zip(starts, room)]
        self._cut = tuple(slice(start, start + size) for start, size in zip(cut, sizes))
        self._paste = tuple(slice(start, start + size) for start, size in zip(paste, sizes))

    def __call__(
        self, proxy: NdarrayOrTensor, donor: NdarrayOrTensor, randomize: bool = True
    ) -> tuple[NdarrayOrTensor, NdarrayOrTensor]:
        """Make one pseudo abnormal proxy; neither input is changed.

        Args:
            proxy: normal proxy, (P, *spatial) with 2 or 3 spatial dimensions; Tensor, MetaTensor or ndarray.
            donor: normal image in the proxy's value range, (P, *spatial), or (1, *spatial), whose channel then
                serves for all P.
            randomize: draw anew; False repeats the last draw, for a proxy of the same spatial shape (before the
                first draw nothing is pasted).

        Returns:
            The pseudo abnormal proxy, float32, (P, *spatial), and the mask M of the pasted place, float32,
            (1, *spatial), 1 inside and 0 outside (all 0 where nothing was pasted); both of the kind of ``proxy``.

        Raises:
            InputError: if the proxy has not 2 or 3 spatial dimensions, or the donor does not fit it.
        """
        where = type(self).__name__
        if len(proxy.shape) not in (3, 4):
            shape = tuple(proxy.shape)
            raise InputError(
                where, f"a channel-first 2-D or 3-D proxy is needed, got shape {shape}", "Add the channel."
            )
        if proxy.shape[1:] != donor.shape[1:] or donor.shape[0] not in (1, proxy.shape[0]):
            raise InputError(
                where,
                f"a donor of shape {tuple(donor.shape)} does not fit a proxy of shape {tuple(proxy.shape)}",
                "Give it the proxy's spatial shape, and the proxy's number of channels or one.",
            )
        if randomize:
            self.randomize(proxy)
        pseudo = np.array(convert_to_numpy(proxy), dtype=np.float32)
        mask = np.zeros((1, *pseudo.shape[1:]), dtype=np.float32)
        if self._do_transform:
            # one donor channel spreads over all of the proxy's
            pseudo[:, *self._paste] = convert_to_numpy(donor)[:, *self._cut]
            mask[:, *self._paste] = 1.0
        return (
            convert_to_dst_type(pseudo, dst=proxy, dtype=np.float32)[0],
            convert_to_dst_type(mask, dst=proxy, dtype=np.float32)[0],
        )


class RandPseudoAbnormalProxyd(Randomizable, MapTransform):
    """Dictionary version of :class:`RandPseudoAbnormalProxy`; the proxies stay as they are.

    Several proxies share one draw and one mask, so they must have one spatial shape.

    Args:
        keys: keys of the proxies, each (P, *spatial).
        donor_key: key of the donor image, (P or 1, *spatial).
        output_key: key of each pseudo abnormal proxy, as many as ``keys``.
        mask_key: key of the mask M, (1, *spatial).
        size_range: see :class:`RandPseudoAbnormalProxy`.
        paste_on_foreground: see :class:`RandPseudoAbnormalProxy`; of several proxies the first one's foreground.
        prob: see :class:`RandPseudoAbnormalProxy`.
        allow_missing_keys: do not raise if a key is missing.

    Raises:
        ValueError: if an argument is out of range, or ``output_key`` and ``keys`` differ in number.
    """

    backend = RandPseudoAbnormalProxy.backend

    def __init__(
        self,
        keys: KeysCollection,
        donor_key: str = "donor",
        output_key: KeysCollection = "pseudo_proxy",
        mask_key: str = "paste_mask",
        size_range: Sequence[float] = (0.1, 0.5),
        paste_on_foreground: bool = False,
        prob: float = 1.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.output_keys = ensure_tuple(output_key)
        if len(self.output_keys) != len(self.keys):
            raise ValueError(f"{len(self.keys)} keys need as many output keys, got {self.output_keys}")
        self.donor_key = donor_key
        self.mask_key = mask_key
        self.constructor = RandPseudoAbnormalProxy(size_range, paste_on_foreground, prob)

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> RandPseudoAbnormalProxyd:
        """Seed the draws; arguments as in MONAI's ``Randomizable``."""
        super().set_random_state(seed, state)
        self.constructor.set_random_state(seed, state)
        return self

    def randomize(self, data: NdarrayOrTensor) -> None:
        """Draw for the given proxy, (P, *spatial)."""
        self.constructor.randomize(data)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the pseudo abnormal proxies and the mask to a copy of the dictionary.

        Args:
            data: holds the proxies and the donor.

        Returns:
            The dictionary with ``output_key`` and ``mask_key`` added.

        Raises:
            KeyError: if a proxy or the donor is missing.
            InputError: see :meth:`RandPseudoAbnormalProxy.__call__`, or the proxies differ in spatial shape.
        """
        d: dict[Hashable, Any] = dict(data)
        first: tuple[int, ...] | None = None
        for key, output_key in self.key_iterator(d, self.output_keys):
            spatial = tuple(d[key].shape[1:])
            if first not in (None, spatial):
                problem = f"the proxies differ in spatial shape: {first} and {spatial}"
                raise InputError(type(self).__name__, problem, "Give proxies of one shape.")
            d[output_key], d[self.mask_key] = self.constructor(d[key], d[self.donor_key], randomize=first is None)
            first = spatial
        return d


RandPseudoAbnormalProxyD = RandPseudoAbnormalProxyDict = RandPseudoAbnormalProxyd
