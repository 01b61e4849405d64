"""How often normal tissue reaches a map value: thresholds at a voxel-wise rate, and maps of -log10 p."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .fitted import FittedBuffers

__all__ = ["ScanTail", "TailTable"]

# Rates told apart in each factor of ten, and the least rate.
_PER_DECADE = 64
_LEAST_RATE = 1e-6
# Values kept of one scan: every one of its highest, then ever fewer.
_POINTS = 512
_HALVINGS = 48


@dataclass(frozen=True)
class ScanTail:
    """The share of a scan's voxels at or above a value, kept at some of its values.

    Attributes:
        values: shape (P,), ascending, no value twice.
        shares: shape (P,), descending, in (0, 1].
    """

    values: np.ndarray
    shares: np.ndarray

    @classmethod
    def of(cls, voxels: np.ndarray) -> ScanTail:
        """Keep a scan's tail.

        Args:
            voxels: map values of its tissue voxels, any shape, at least one.

        Raises:
            ValueError: without voxels.
        """
        ordered = np.sort(np.asarray(voxels, dtype=np.float32), axis=None)
        if not ordered.size:
            raise ValueError("a scan without tissue voxels has no tail")
        ranks = np.unique(np.rint(np.geomspace(1, ordered.size, _POINTS)).astype(np.int64))
        values = np.unique(ordered[ordered.size - ranks])
        shares = 1.0 - np.searchsorted(ordered, values, side="left") / ordered.size
        return cls(values.astype(np.float64), shares)

    def share(self, at: np.ndarray) -> np.ndarray:
        """The share of voxels at or above each value, linear between the values kept; 0 above the highest."""
        return np.interp(at, self.values, self.shares, left=1.0, right=0.0)


class TailTable(FittedBuffers):
    """For rates from 1 down to 1e-6, evenly on a log scale, the map value that so many normal tissue voxels reach.

    The rate of a value is the mean over patients of the share of their tissue voxels at or above it; each patient has
    the same weight, and within a patient each scan. Where the voxels are too few for 1e-6 the table ends at the
    highest value of any of them. Rates are estimates: for the voxels of one new patient they vary about the rate as
    patients do, and below 1 / (n + 1) no number of voxels makes them a guarantee.

    Attributes:
        rates: shape (L,), descending, 64 in each factor of ten; empty while not fitted.
        values: shape (L,), ascending: the least value that the rate or less of the voxels reach.
    """

    def __init__(self) -> None:
        super().__init__({"rates": 1, "values": 1}, optional=("rates", "values"))
        # declared here and not in the class body, which TorchScript reads
        self.rates: Tensor
        self.values: Tensor

    @torch.jit.unused
    def fit(self, patients: Mapping[str, Sequence[ScanTail]]) -> None:
        """Fit.

        Args:
            patients: the tails of each calibration patient's scans; without any the table becomes empty.
        """
        weighted = [(tail, 1.0 / (len(patients) * len(tails))) for tails in patients.values() for tail in tails]
        if not weighted:
            self.fill(rates=torch.empty(0), values=torch.empty(0))
            return

        def rate(at: np.ndarray) -> np.ndarray:
            return np.sum([weight * tail.share(at) for tail, weight in weighted], axis=0)

        highest = max(float(tail.values[-1]) for tail, _ in weighted)
        least = float(rate(np.array([highest]))[0])
        wanted = 10.0 ** (-np.arange(round(-np.log10(_LEAST_RATE)) * _PER_DECADE + 1) / _PER_DECADE)
        if least > _LEAST_RATE:
            wanted = np.append(wanted[wanted > least], least)
        low = np.full(len(wanted), min(float(tail.values[0]) for tail, _ in weighted))
        high = np.full(len(wanted), highest)
        reached = rate(low) <= wanted
        high[reached] = low[reached]
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            enough = rate(middle) <= wanted * (1 + 1e-12)
            low, high = np.where(enough, low, middle), np.where(enough, middle, high)
        values = high.astype(np.float32)
        # Rounded up: no rate becomes larger than it says.
        values = np.where(values < high, np.nextafter(values, np.float32(np.inf)), values)
        self.fill(rates=torch.from_numpy(wanted), values=torch.from_numpy(np.maximum.accumulate(values)))

    @torch.jit.unused
    def threshold(self, alpha: float) -> float | None:
        """The map value that at most ``alpha`` of normal tissue voxels lie above.

        Args:
            alpha: rate of voxels, in (0, 1); the next finer rate of the table is taken, at most 4 % below.

        Returns:
            The threshold, or None where the table is empty or ends at a coarser rate.

        Raises:
            ValueError: if ``alpha`` is outside (0, 1).
        """
        if not 0.0 < alpha < 1.0:
            raise ValueError(f"alpha is a rate between 0 and 1, got {alpha}")
        fine = torch.nonzero(self.rates <= alpha * (1 + 1e-6)).flatten()
        return float(self.values[int(fine[0])]) if fine.numel() else None

    def log_p(self, anomaly_map: Tensor) -> Tensor:
        """-log10 of the rate at which normal tissue voxels reach each value of a map.

        Args:
            anomaly_map: any shape, finite.

        Returns:
            The same shape, float32: 0 at the lowest normal value and below, and the table's end (6, or less where the
            voxels are few) at the highest and above.

        Raises:
            ValueError: if the table is empty.
        """
        if self.values.numel() == 0:
            raise ValueError("there is no table of normal voxels: calibrate the detector")
        levels = -torch.log10(self.rates)
        last = self.values.numel() - 1
        above = torch.searchsorted(self.values, anomaly_map.to(self.values).contiguous(), right=True)
        lower, upper = (above - 1).clamp(0, last), above.clamp(0, last)
        low, high = self.values[lower], self.values[upper]
        share = ((anomaly_map.to(self.values) - low) / (high - low).clamp_min(1e-30)).clamp(0.0, 1.0)
        return torch.lerp(levels[lower], levels[upper], torch.where(upper > lower, share, torch.zeros_like(share)))

    @torch.jit.unused
    def without(self, tails: Sequence[ScanTail], patients: int) -> TailTable:
        """The table as it is for one of its own patients: without that patient's voxels.

        Args:
            tails: of the patient's scans.
            patients: number n of patients that the table was fitted on, which the rates stay shares of.

        Returns:
            A table of the same values, the patient's share taken from each rate; it ends at the same rate.
        """
        own = np.mean([tail.share(self.values.double().cpu().numpy()) for tail in tails], axis=0) / patients
        rates = self.rates.double().cpu().numpy()
        left = np.minimum.accumulate(np.clip(rates - own, rates[-1], None))
        table = TailTable().to(self.rates.device)
        table.fill(rates=torch.from_numpy(left), values=self.values)
        return table
