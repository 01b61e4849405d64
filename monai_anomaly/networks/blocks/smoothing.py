"""Filters of anomaly maps, their borders mirrored as in scipy's ``ndimage``."""

# No postponed annotations here: TorchScript reads the real ones.

from typing import List  # noqa: UP035 (TorchScript)

import torch
from torch import Tensor, nn

__all__ = ["GaussianFilter", "MedianFilter"]


def _mirrored(x: Tensor, dim: int, radius: int) -> Tensor:
    size = x.shape[dim]
    if size < radius:
        raise ValueError(f"the filter reaches over {radius} pixels, the image has {size} along axis {dim - 2}")
    first, last = x.narrow(dim, 0, radius).flip(dim), x.narrow(dim, size - radius, radius).flip(dim)
    return torch.cat([first, x, last], dim=dim)


class GaussianFilter(nn.Module):
    """A Gaussian cut at four sigma, as scipy's ``gaussian_filter``.

    Args:
        sigma: standard deviation in pixels; 0 does nothing.
    """

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.radius = int(4.0 * sigma + 0.5)
        x = torch.arange(-self.radius, self.radius + 1, dtype=torch.float64)
        kernel = torch.exp(-0.5 * (x / sigma) ** 2) if sigma > 0 else torch.ones(1, dtype=torch.float64)
        self.register_buffer("kernel", (kernel / kernel.sum()).float())
        self.kernel: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Smooth a map of shape (B, 1, *spatial), in two or three dimensions.

        Raises:
            ValueError: if a side is shorter than four sigma, which cannot be mirrored once.
        """
        r = self.radius
        if r == 0:
            return x
        last = x.dim() - 1
        x = torch.matmul(_mirrored(x, last, r), self._matrix(x.shape[last]))
        x = torch.matmul(self._matrix(x.shape[last - 1]).t(), _mirrored(x, last - 1, r))
        if last == 4:
            x = torch.matmul(_mirrored(x, 2, r).transpose(2, 4), self._matrix(x.shape[2])).transpose(2, 4)
        return x

    def _matrix(self, size: int) -> Tensor:
        """Takes size + 2 radius values to the size smoothed ones: on a CPU faster than a convolution of one channel."""
        device = self.kernel.device
        tap = torch.arange(size + 2 * self.radius, device=device)[:, None] - torch.arange(size, device=device)
        inside = (tap >= 0) & (tap <= 2 * self.radius)
        return self.kernel[tap.clamp(0, 2 * self.radius)] * inside


class MedianFilter(nn.Module):
    """The median over a square or cube, as scipy's ``median_filter``.

    Args:
        size: side in pixels, odd; 1 does nothing. A volume takes ``size ** 3`` copies of itself.

    Raises:
        ValueError: for an even or non-positive size.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        if size < 1 or size % 2 == 0:
            raise ValueError(f"the median's size is odd and positive, got {size}")
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Filter a map of shape (B, 1, *spatial).

        Raises:
            ValueError: if a side is shorter than half the filter.
        """
        if self.size == 1:
            return x
        views: List[Tensor] = [x]  # noqa: UP006
        for dim in range(2, x.dim()):
            shifted: List[Tensor] = []  # noqa: UP006
            for view in views:
                wide = _mirrored(view, dim, self.size // 2)
                for start in range(self.size):
                    shifted.append(wide.narrow(dim, start, x.shape[dim]))
            views = shifted
        # the middle by sorting: ONNX has no median
        ordered = torch.stack(views, dim=-1).sort(dim=-1)[0]
        return ordered[..., ordered.shape[-1] // 2]
