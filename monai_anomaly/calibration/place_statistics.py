"""What a normal's map is like at each place, for z-scores where scans lie on each other."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .fitted import FittedBuffers
from .slice_statistics import places_along

__all__ = ["PlaceStatistics", "PlaceSums"]

_NUM_POSITIONS = 10


class PlaceSums:
    """Running sums of normals' maps at each place of the grid and along the stack.

    Args:
        num_positions: places along a stack of slices that are told apart (see ``SliceStatistics``).
    """

    def __init__(self, num_positions: int = _NUM_POSITIONS) -> None:
        self.num_positions = num_positions
        # per position: sum of weights, of squared weights, of weighted maps and of weighted squares
        self._sums: dict[int, list] = {}

    def add(self, anomaly_map: Tensor, tissue: Tensor, weight: float, volume: bool = False) -> None:
        """Add a scan.

        Args:
            anomaly_map: shape (1, H, W, S) of slices, or (1, X, Y, Z).
            tissue: shape (S,), bool, the slices that were run.
            weight: of the scan; 1 / number of the patient's scans gives each patient the same weight.
            volume: whether the map is of a volume run whole, which has no places along a stack.
        """
        maps = anomaly_map[0].double()
        if volume:
            self._add(0, maps, maps**2, weight)
            return
        chosen = maps[..., tissue].unsqueeze(-1)
        places = places_along(chosen.shape[2], self.num_positions)
        for place in places.unique().tolist():
            # The slices of one scan at one place count once.
            here = chosen[:, :, places == place]
            self._add(int(place), here.mean(dim=2), (here**2).mean(dim=2), weight)

    def _add(self, place: int, mean: Tensor, square: Tensor, weight: float) -> None:
        sums = self._sums.setdefault(place, [0.0, 0.0, torch.zeros_like(mean), torch.zeros_like(mean)])
        sums[0] += weight
        sums[1] += weight**2
        sums[2] += weight * mean
        sums[3] += weight * square

    def moments(self) -> tuple[Tensor, Tensor] | None:
        """Mean and variance, each (P, X, Y, Z) with Z = 1 for slices; None with less than two patients' worth.

        A position that no scan has takes those of the nearest that one has; scans of one slice alone give P = 1.
        """
        enough = {place: sums for place, sums in self._sums.items() if sums[0] ** 2 > 1.5 * sums[1]}
        if not enough:
            return None
        count = self.num_positions if len(enough) > 1 else 1
        nearest = [min(enough, key=lambda place: abs(place - wanted)) for wanted in range(count)]
        means, variances = [], []
        for place in nearest:
            total, squares, first, second = enough[place]
            effective = total**2 / squares  # patients, where weights are equal
            mean = first / total
            means.append(mean)
            variances.append((second / total - mean**2).clamp_min(0) * effective / (effective - 1))
        return torch.stack(means), torch.stack(variances)


class PlaceStatistics(FittedBuffers):
    """Mean and spread of calibration normals' maps at each place of the network's grid and place along the stack.

    Raw maps are high along edges, in normals too; the z-score says how far a voxel lies above what normals have at its
    place. That means something where scans lie on each other (registered heads, say) and little elsewhere.

    Mean and variance are smoothed with a Gaussian of ``sigma`` pixels of the grid, since scans are never aligned to
    the pixel and patients are few; the spread then is not below ``floor`` times its root mean square over the places
    where normals' maps vary at all. The normals' own z-scores are lower than those of new normals, which are not part
    of the mean: z ranks voxels, it carries no error rate.

    Attributes:
        mean: shape (P, X, Y, Z), Z = 1 for slices; empty while not fitted.
        spread: the same shape, a standard deviation, above 0.
    """

    def __init__(self) -> None:
        super().__init__({"mean": 4, "spread": 4}, optional=("mean", "spread"))
        # declared here and not in the class body, which TorchScript reads
        self.mean: Tensor
        self.spread: Tensor

    @torch.jit.unused
    def fit(self, sums: PlaceSums, sigma: float = 2.0, floor: float = 0.1) -> None:
        """Fit.

        Args:
            sums: of the calibration normals' maps; with too few, or maps that do not vary, the buffers become empty.
            sigma: of the smoothing, in pixels of the grid; 0 for none.
            floor: of the spread, a share of its root mean square.
        """
        from scipy.ndimage import gaussian_filter

        empty = torch.empty(0, 0, 0, 0)
        self.fill(mean=empty, spread=empty)
        moments = sums.moments()
        if moments is None or not bool((moments[1] > 0).any()):
            return
        mean, variance = (
            torch.from_numpy(np.stack([gaussian_filter(part, sigma, mode="nearest") for part in moment.cpu().numpy()]))
            for moment in moments
        )
        level = floor * math.sqrt(float(moments[1][moments[1] > 0].mean()))
        self.fill(mean=mean, spread=variance.clamp_min(0).sqrt().clamp_min(level))

    @torch.jit.unused
    def z_score(self, anomaly_map: Tensor, tissue: Tensor, volume: bool = False) -> Tensor:
        """How many spreads a map lies above the normals' mean at each place.

        Args:
            anomaly_map: shape (1, H, W, S) of slices, or (1, X, Y, Z).
            tissue: shape (S,), bool, the slices that were run; the others get 0.
            volume: whether the map is of a volume run whole.

        Returns:
            The same shape, float32.

        Raises:
            ValueError: if nothing is fitted, or on another grid.
        """
        if self.mean.numel() == 0:
            raise ValueError("there are no normals' maps to compare with: calibrate the detector")
        mean, spread, maps = self.mean.cpu(), self.spread.cpu(), anomaly_map.float().cpu()
        if volume:
            return (maps - mean) / spread
        if maps.shape[1:3] != mean.shape[1:3]:
            raise ValueError(f"normals' maps are of slices of {mean.shape[1:3]}, got {maps.shape[1:3]}")
        places = places_along(int(tissue.sum()), len(mean))
        out = torch.zeros_like(maps)
        at = [statistic[places, :, :, 0].movedim(0, -1) for statistic in (mean, spread)]
        out[0][..., tissue] = (maps[0][..., tissue] - at[0]) / at[1]
        return out
