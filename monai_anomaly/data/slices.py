"""Datasets: training slices (or volumes) with their proxies, and whole scans one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from monai.transforms import Randomizable
from torch.utils.data import Dataset

from monai_anomaly.exceptions import InputError, check_choice
from monai_anomaly.io.content import content_hash

from .proxy_cache import ArrayCache

__all__ = ["ScanDataset", "SliceDataset", "describe_failure"]


class SliceDataset(Dataset, Randomizable):
    """The tissue slices of a cohort's normal scans, each with its proxy.

    Where the preprocessing keeps volumes whole (``transform.spatial_dims`` is 3) each scan is one item (C, X, Y, Z),
    and what is said of slices here holds of volumes: the proxy is made in 3-D, the donor is another volume.

    Every scan is read, preprocessed and turned into proxies once; with a cache folder, once for all runs.

    Args:
        data: the cohort's items (``image``, ``case``).
        transform: the scans' preprocessing (``ScanPreprocessing``).
        proxy: array transform from image to proxy, with a ``config`` property; None: the image is its own proxy.
        slice_transform: random dictionary transform applied to each drawn item.
        donors: also draw a slice of another scan under ``donor``, for pseudo abnormal proxies; ``"other"``, ``"same"``
            (the image itself) or None.
        cache_dir: folder of the cache; None keeps all in memory.
        num_workers: threads that prepare scans.
        progress: show a progress bar.
        allow_empty: no usable scan gives an empty dataset.

    Attributes:
        failures: per scan that could not be used, ``{"case", "image", "error"}``.
        scan_of: for each slice the number of its scan, among those that could be used.

    Raises:
        InputError: if there are no scans, or none can be used.
    """

    def __init__(
        self,
        data: Sequence[dict[str, Any]],
        transform: Any,
        proxy: Any = None,
        slice_transform: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        donors: str | None = None,
        cache_dir: str | Path | None = None,
        num_workers: int = 1,
        progress: bool = True,
        allow_empty: bool = False,
    ) -> None:
        check_choice("donors", donors, "other", "same", None)
        self.data = list(data)
        self.transform, self.proxy, self.slice_transform, self.donors = transform, proxy, slice_transform, donors
        self.cache = ArrayCache(cache_dir)
        self.failures: list[dict[str, str]] = []
        self.hashes: list[str] = []
        self.arrays: list[dict[str, np.ndarray]] = []
        self._prepare(num_workers, progress)
        if not self.arrays and not allow_empty:
            where = self.failures[0]["error"] if self.failures else "cohort"
            raise InputError(where, "no usable normal scan", "Give at least one readable scan of a normal subject.")
        counts = [len(arrays["image"]) for arrays in self.arrays]
        self.scan_of = np.repeat(np.arange(len(counts)), counts)
        self._slice = np.concatenate([np.arange(n) for n in counts] or [np.arange(0)])

    def _prepare(self, num_workers: int, progress: bool) -> None:
        from tqdm import tqdm

        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if several and self.cache.folder is not None:
            # Each process fills its share of the cache; afterwards all is there for all.
            for item in self.data[dist.get_rank() :: dist.get_world_size()]:
                self._arrays_or_failure(item)
            dist.barrier()
        with ThreadPoolExecutor(max(1, num_workers)) as pool:
            results = tqdm(
                pool.map(self._arrays_or_failure, self.data),
                total=len(self.data),
                desc="preparing scans",
                disable=not progress or not _first_process(),
            )
            for item, (digest, result) in zip(self.data, results):
                if not isinstance(result, str) and self.arrays and result["image"].shape[1] != self.channels:
                    channels = result["image"].shape[1]
                    result = f"{item['image']}: has {channels} channel(s) where the scans before have {self.channels}."
                if isinstance(result, str):
                    self.failures.append({"case": item["case"], "image": str(item["image"]), "error": result})
                else:
                    self.hashes.append(digest)
                    self.arrays.append(result)

    def _arrays_or_failure(self, item: dict[str, Any]) -> tuple[str, dict[str, np.ndarray] | str]:
        try:
            digest = content_hash(item["image"], item.get("series"))
            key = {
                "content": digest,
                "preprocessing": {**self.transform.config, "time_point": self.transform.time_point},
                "proxy": None if self.proxy is None else self.proxy.config,
            }
            return digest, self.cache.get(key, lambda: self._make(item))
        except Exception as error:
            # One bad scan must not stop the others; it is reported at the end.
            return "", describe_failure(error)

    def _make(self, item: dict[str, Any]) -> dict[str, np.ndarray]:
        stack = self.transform({"image": item["image"], "series": item.get("series")})["image"]
        if self.transform.spatial_dims == 3:
            slices = stack.as_tensor()[None].float()
        else:
            slices = stack.as_tensor()[..., self.transform.tissue(stack)].movedim(-1, 0).float()
        image = np.ascontiguousarray(slices.numpy())
        if self.proxy is None:
            return {"image": image}
        return {"image": image, "proxy": np.stack([np.asarray(self.proxy(s), dtype=np.float32) for s in slices])}

    @property
    def channels(self) -> int:
        """Channels of the images; 0 of an empty dataset."""
        return int(self.arrays[0]["image"].shape[1]) if self.arrays else 0

    def scans(self) -> Iterator[torch.Tensor]:
        """Each scan's tissue slices in their order, shape (S, C, H, W), or its volume, shape (1, C, X, Y, Z)."""
        for arrays in self.arrays:
            yield torch.from_numpy(np.array(arrays["image"]))

    def __len__(self) -> int:
        return len(self.scan_of)

    def _tensor(self, index: int, name: str) -> torch.Tensor:
        arrays = self.arrays[int(self.scan_of[index])]
        return torch.from_numpy(np.array(arrays.get(name, arrays["image"])[int(self._slice[index])]))

    def _donor(self, index: int) -> int:
        """Another scan's slice; where there is one scan only, another of its slices."""
        if self.donors == "same":
            return index
        others = np.flatnonzero(self.scan_of != self.scan_of[index])
        if not len(others):
            others = np.arange(len(self))
        return int(others[self.R.randint(len(others))])

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = {"image": self._tensor(index, "image"), "proxy": self._tensor(index, "proxy")}
        if self.donors is not None:
            item["donor"] = self._tensor(self._donor(index), "image")
        return item if self.slice_transform is None else self.slice_transform(item)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> SliceDataset:
        """Seed the draw of donors and the random slice transform."""
        super().set_random_state(seed, state)
        if isinstance(self.slice_transform, Randomizable):
            self.slice_transform.set_random_state(seed, state)
        return self


class ScanDataset(Dataset):
    """Whole scans, one by one; a scan that cannot be read comes as its error.

    Args:
        data: the cohort's items.
        transform: the scans' preprocessing (``ScanPreprocessing``).

    Notes:
        An item is ``{"item", "scan", "stack", "tissue"}`` (the cohort's entry, the loaded scan, its slices or its
        volume on the grid, which slices hold tissue) or ``{"item", "error"}``.
    """

    def __init__(self, data: Sequence[dict[str, Any]], transform: Any) -> None:
        self.data, self.transform = list(data), transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.data[index]
        try:
            scan = self.transform.load(item["image"], item.get("series"))
            stack = self.transform.stack(scan)
            return {"item": item, "scan": scan, "stack": stack, "tissue": self.transform.tissue(stack)}
        except Exception as error:
            # One bad scan must not stop the others; it is reported at the end.
            return {"item": item, "error": describe_failure(error)}


def describe_failure(error: BaseException) -> str:
    """One line for an error: the text of an ``InputError``, or the type and text of anything else.

    Args:
        error: the error; an ``InputError`` among its causes speaks for it.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, InputError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    return " ".join(f"{type(error).__name__}: {error}".split())


def _first_process() -> bool:
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
