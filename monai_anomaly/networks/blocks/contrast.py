"""Global contrast normalisation of images."""

# No postponed annotations here: TorchScript reads the real ones.

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from monai_anomaly.exceptions import check_choice

__all__ = ["ContrastInput", "ContrastNormalization", "global_contrast"]


def global_contrast(image: Tensor, norm: str = "l1", eps: float = 1e-6) -> tuple[Tensor, Tensor, Tensor]:
    """Take each image's mean away and divide by its contrast; all channels and pixels of an image together.

    Args:
        image: shape (B, C, *spatial).
        norm: the contrast is the mean absolute value (``"l1"``) or the root of the mean square (``"l2"``) of what is
            left without the mean. The norm itself is the mean times the number of pixels, a constant.
        eps: least contrast, which a constant image has.

    Returns:
        The normalised image, its mean and its contrast, these two of shape (B, 1, ..., 1).
    """
    shape = [image.shape[0]] + [1] * (image.ndim - 1)
    mean = image.flatten(1).mean(dim=1).view(shape)
    centred = image - mean
    flat = centred.flatten(1)
    contrast = flat.abs().mean(dim=1) if norm == "l1" else (flat * flat).mean(dim=1).sqrt()
    contrast = contrast.clamp_min(eps).view(shape)
    return centred / contrast, mean, contrast


class ContrastNormalization(nn.Module):
    """Global contrast normalisation, then rescaling to [0, 1] by a minimum and a maximum.

    Args:
        norm: see ``global_contrast``; None leaves the contrast as it is.
        rescale: ``"training"``: by the minimum and maximum over all training images, which ``fit`` finds; a test image
            can then lie outside [0, 1]. ``"image"``: by those of each image, which undoes the contrast normalisation
            before it. None: not at all.

    Attributes:
        lower: minimum over the training images; 0 while not fitted.
        upper: maximum over the training images; 1 while not fitted.

    Raises:
        ValueError: for an unknown ``norm`` or ``rescale``.

    References:
        DDR-ID, section 4.1: "global contrast normalization using the L1 norm and rescaled to [0, 1] via
        min-max-scaling".
    """

    def __init__(self, norm: str | None = "l1", rescale: str | None = "training") -> None:
        super().__init__()
        check_choice("contrast", norm, "l1", "l2", None)
        check_choice("rescale", rescale, "training", "image", None)
        self.norm, self.rescale = norm or "", rescale or ""
        self.register_buffer("lower", torch.zeros(()))
        self.register_buffer("upper", torch.ones(()))
        # declared here and not in the class body, which TorchScript reads
        self.lower: Tensor
        self.upper: Tensor

    def contrast(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The image without its contrast, offset and scale, before any rescaling; see ``forward``."""
        if self.norm != "":
            return global_contrast(image, self.norm)
        one = torch.ones([image.shape[0]] + [1] * (image.ndim - 1), device=image.device, dtype=image.dtype)
        return image, torch.zeros_like(one), one

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalise.

        Args:
            image: shape (B, C, *spatial).

        Returns:
            ``x`` in the image's shape, ``offset`` and ``scale`` of shape (B, 1, ..., 1), with
            ``image = x * scale + offset``.
        """
        x, offset, scale = self.contrast(image)
        if self.rescale == "training":
            width = self.upper - self.lower
            return (x - self.lower) / width, offset + self.lower * scale, scale * width
        if self.rescale == "image":
            lower = x.flatten(1).amin(dim=1).view(scale.shape)
            width = (x.flatten(1).amax(dim=1).view(scale.shape) - lower).clamp_min(1e-6)  # a constant image has none
            return (x - lower) / width, offset + lower * scale, scale * width
        return x, offset, scale

    @torch.jit.unused
    @torch.no_grad()
    def fit(self, images: Iterable[Tensor]) -> None:
        """Find ``lower`` and ``upper``, over all processes where there are several.

        Args:
            images: the training images in batches (B, C, *spatial), on the buffers' device.

        Raises:
            ValueError: if there are no images, or no contrast in any.
        """
        lower, upper = torch.full_like(self.lower, torch.inf), torch.full_like(self.upper, -torch.inf)
        for image in images:
            x = self.contrast(image.float())[0]
            lower, upper = torch.minimum(lower, x.min()), torch.maximum(upper, x.max())
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(lower, op=dist.ReduceOp.MIN)
            dist.all_reduce(upper, op=dist.ReduceOp.MAX)
        if not bool(upper > lower):
            raise ValueError("the range of the training images needs images that are not constant")
        self.lower.copy_(lower)
        self.upper.copy_(upper)


class ContrastInput(nn.Module):
    """The normalised image alone, for networks that need no way back.

    Args:
        normalisation: the detector's own.
    """

    def __init__(self, normalisation: ContrastNormalization) -> None:
        super().__init__()
        self.normalisation = normalisation

    def forward(self, image: Tensor) -> Tensor:
        """``x`` of ``ContrastNormalization``, in the shape of the image."""
        return self.normalisation(image)[0]
