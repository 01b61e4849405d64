"""Runs detectors over scans, and reads these one by one."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from monai_anomaly.data import ScanPreprocessing
from monai_anomaly.data.slices import ScanDataset
from monai_anomaly.exceptions import InputError
from monai_anomaly.networks import AnomalyDetector, AnomalyOutput
from monai_anomaly.transforms import foreground_mask

__all__ = ["StackInferer", "device_of", "foreground_of", "misfit", "scan_loader", "set_memory_format"]


logger = logging.getLogger(__name__)


class StackInferer(Inferer):
    """Runs a detector over a stack of slices in batches; its memory does not grow with their number.

    A detector in three dimensions gets the volume whole, in one forward pass.

    Args:
        batch_size: slices in one forward pass; where memory ends, a scan is gone on with in batches of half the size.
        amp: mixed precision on a GPU. It changes the maps of most methods by more than a thousandth of their largest
            value, and a detector is calibrated without it.
        channels_last: the memory format of weights and slices, in two dimensions; None: on a CPU, where the detector
            says that it is faster. It changes maps in the last bits.
        preprocessing: of the scans: tells of a batch which slices hold tissue, as ``tissue`` does of one scan. None:
            all slices are run, and thresholds do not hold for those without tissue.
    """

    def __init__(
        self,
        batch_size: int = 8,
        amp: bool = False,
        channels_last: bool | None = None,
        preprocessing: ScanPreprocessing | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {batch_size}")
        if not isinstance(channels_last, bool | None):
            raise ValueError(f"channels_last is True, False or None, got {channels_last!r}")
        self.batch_size, self.amp, self.channels_last = batch_size, amp, channels_last
        self.preprocessing = preprocessing

    @torch.no_grad()
    def __call__(self, inputs: Tensor, network: AnomalyDetector, tissue: Tensor | None = None) -> Any:
        """Detect.

        Args:
            inputs: shape (C, H, W, S), or (C, X, Y, Z) for a detector in three dimensions; or a batch of them, as
                MONAI's inferers take it, for which the result is the maps alone: a tensor (B, 1, ...) like the inputs.
            network: the detector, in eval mode.
            tissue: shape (S,), bool: the slices to run; the others get a zero map and are their own restoration. A
                volume is run whole.

        Returns:
            Map (1, H, W, S), score (1,) and restoration (C, H, W, S), or None where the detector gives none. The score
            of a scan is that of its most anomalous slice (see ``SliceStatistics``), of a volume the detector's own.

        Raises:
            ValueError: for another number of dimensions.
        """
        if inputs.ndim == 5:
            maps = torch.stack([self._map_of(scan.cpu(), network, tissue) for scan in inputs]).to(inputs.device)
            return MetaTensor(maps).copy_meta_from(inputs) if isinstance(inputs, MetaTensor) else maps
        if inputs.ndim != 4:
            raise ValueError(
                f"a stack has four dimensions, a batch of stacks five, got the shape {tuple(inputs.shape)}"
            )
        device = device_of(network)
        stack = inputs.as_tensor() if hasattr(inputs, "as_tensor") else inputs
        if components := network.components():
            together = network.combine([self(stack, component, tissue) for component in components])
            if network.spatial_dims == 2 and tissue is not None:
                together.anomaly_map[..., ~tissue] = 0
            return together
        restoration: Tensor | None = None
        if network.spatial_dims == 3:
            output = self._detect(network, stack[None].to(device))
            if output.restoration is not None:
                restoration = output.restoration[0].float().cpu()
                if restoration.data_ptr() == stack.data_ptr():  # whoever takes it may write to it
                    restoration = restoration.clone()
            return AnomalyOutput(output.anomaly_map[0].float().cpu(), output.anomaly_score.float().cpu(), restoration)
        layout = torch.channels_last if self._is_channels_last(network, device) else torch.contiguous_format
        set_memory_format(network, layout)
        anomaly_map = stack.new_zeros((1, *stack.shape[1:]))
        chosen = torch.arange(stack.shape[-1]) if tissue is None else torch.nonzero(tissue).flatten()
        scores = []
        pending = list(chosen.split(self.batch_size))
        while pending:
            index = pending.pop(0)
            batch = stack[..., index].movedim(-1, 0).contiguous(memory_format=layout).to(device)
            smaller = 0
            try:
                output = self._detect(network, batch)
            except (MemoryError, RuntimeError) as error:
                if len(index) == 1 or not _is_out_of_memory(error):
                    raise
                smaller = (len(index) + 1) // 2
            if smaller:  # here, where the error does not keep what the network had made
                logger.warning(f"out of memory with {len(index)} slices at once: goes on with {smaller}")
                pending = list(torch.cat([index, *pending]).split(smaller))
                continue
            anomaly_map[..., index] = output.anomaly_map.movedim(0, -1).float().cpu()
            if output.restoration is not None:
                restoration = stack.clone() if restoration is None else restoration
                restoration[..., index] = output.restoration.movedim(0, -1).float().cpu()
            scores.append(output.anomaly_score.float().cpu())
        return AnomalyOutput(anomaly_map, network.slice_statistics.volume_score(torch.cat(scores)), restoration)

    def _map_of(self, scan: Tensor, network: AnomalyDetector, tissue: Tensor | None) -> Tensor:
        """The map of one scan of a batch, (1, ...)."""
        if tissue is None and self.preprocessing is not None:
            if "foreground_level" not in getattr(scan, "meta", {}):
                raise ValueError("a batch is of MetaTensors that the preprocessing made")
            tissue = self.preprocessing.tissue(scan)
        return self(scan, network, tissue).anomaly_map

    def _is_channels_last(self, network: AnomalyDetector, device: torch.device) -> bool:
        if self.channels_last is None:
            return network.channels_last and device.type == "cpu"
        return self.channels_last

    def _detect(self, network: AnomalyDetector, batch: Tensor) -> AnomalyOutput:
        with torch.autocast(batch.device.type, enabled=self.amp and batch.device.type == "cuda"):
            return network.detect(batch)


def _is_out_of_memory(error: Exception) -> bool:
    """Of a GPU or of the process; torch has no type of its own for the latter."""
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def scan_loader(
    data: Sequence[dict[str, Any]] | Dataset, preprocessing: ScanPreprocessing | None = None, num_workers: int = 0
) -> DataLoader:
    """Scans one by one, in order; a scan that cannot be read comes as its error.

    Args:
        data: the cohort's items, or a dataset of scans.
        preprocessing: of the items.
        num_workers: processes that read ahead.
    """
    dataset = data if isinstance(data, Dataset) else ScanDataset(data, preprocessing)
    # one scan ahead in each process: scans are large
    ahead = 1 if num_workers else None
    return DataLoader(dataset, batch_size=None, shuffle=False, num_workers=num_workers, prefetch_factor=ahead)


def misfit(entry: dict[str, Any], network: AnomalyDetector) -> str | None:
    """Why a scan that was read is none for this detector."""
    if "stack" not in entry or entry["stack"].shape[0] == network.in_channels:
        return None
    problem = f"has {entry['stack'].shape[0]} channel(s), the detector takes {network.in_channels}"
    where = entry["item"]["image"]
    return str(InputError(where, problem, "Give scans of the kind that it was trained on."))


def foreground_of(scan: MetaTensor, stack: MetaTensor | None = None) -> np.ndarray:
    """Where a scan holds tissue, shape (X, Y, Z), bool: in any channel.

    Args:
        scan: as loaded.
        stack: what the preprocessing made of it, or its trace, which know the bounds of tissue.
    """
    known = itertools.repeat(None) if stack is None else stack.meta["foreground_bounds"]
    masks = (foreground_mask(channel, bounds=bounds) for channel, bounds in zip(scan.as_tensor(), known))
    return functools.reduce(torch.logical_or, masks).numpy()


def set_memory_format(network: nn.Module, layout: torch.memory_format) -> None:
    """Lay out the weights of two-dimensional convolutions.

    ``Module.to`` converts buffers too, and fails at five-dimensional ones.

    Args:
        network: changed in place; the values stay.
        layout: ``torch.channels_last`` or ``torch.contiguous_format``.
    """
    for weight in network.parameters():
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=layout)


def device_of(network: AnomalyDetector) -> torch.device:
    """Where a detector is."""
    return next(itertools.chain(network.parameters(), network.buffers())).device
