"""The loss of the denoising autoencoder."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["DenoisingLoss"]


class DenoisingLoss(nn.Module):
    """The error of a reconstruction, its mean over the foreground.

    Args:
        kind: ``"laplace"``: ``|x - y| / b + log b``, the negative log-likelihood of a Laplace law of scale b without
            its constant, which is least where b is the expected absolute error; ``"gaussian"``: the same of a normal
            law, ``(x - y)^2 / b^2 + 2 log b``, with b the standard deviation (Mao et al.); ``"l1"``: ``|x - y|``;
            ``"l2"``: ``(x - y)^2`` (Kascenas et al.). The last two leave b without a gradient.

    Raises:
        ValueError: for another kind.

    References:
        See ``DenoisingAutoencoder``.
    """

    def __init__(self, kind: str = "laplace") -> None:
        super().__init__()
        if kind not in ("laplace", "gaussian", "l1", "l2"):
            raise ValueError(f"kind is 'laplace', 'gaussian', 'l1' or 'l2', got {kind!r}")
        self.kind = kind

    def forward(self, restored: Tensor, expected: Tensor, image: Tensor, foreground: Tensor) -> Tensor:
        """The loss, a scalar.

        Args:
            restored: y, shape (B, C, *spatial).
            expected: b, above 0, the same shape.
            image: x, the image without noise, the same shape.
            foreground: 1 where pixels count, else 0, shape (B, 1, *spatial); where none does the loss is 0.
        """
        error = (image - restored).abs()
        if self.kind == "laplace":
            error = error / expected + expected.log()
        elif self.kind == "gaussian":
            error = (error / expected) ** 2 + 2 * expected.log()
        elif self.kind == "l2":
            error = error**2
        return (error * foreground).sum() / (foreground.sum() * image.shape[1]).clamp_min(1.0)
