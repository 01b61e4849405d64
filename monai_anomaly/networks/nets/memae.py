"""MemAE: an autoencoder whose decoder sees combinations of memory items alone.

D. Gong, L. Liu, V. Le, B. Saha, M. R. Mansour, S. Venkatesh, A. van den Hengel, *Memorizing Normality to Detect
Anomaly: Memory-augmented Deep Autoencoder for Unsupervised Anomaly Detection*, ICCV 2019. Symbols follow the paper:
z = f_e(x), z-hat = w-hat M, x-hat = f_d(z-hat).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from monai.networks.blocks import Convolution
from torch import Tensor, nn

from monai_anomaly.exceptions import check_choice
from monai_anomaly.networks.blocks.features import StagedFeatures, SymmetricRange
from monai_anomaly.networks.blocks.memory import ShrinkageMemory
from monai_anomaly.networks.detector import AnomalyDetector, AnomalyOutput

from .autoencoder import reconstruction_output

__all__ = ["MemAE"]


class MemAE(AnomalyDetector):
    """The memory-augmented autoencoder.

    Its published forms, by argument:

    ============  ==================  ================  ============  =============  ==========  =========
    experiment    channels            decoder_channels  first_kernel  activation     addressing  num_items
    ============  ==================  ================  ============  =============  ==========  =========
    MNIST         16, 32, 64          64, 32            1             ``relu``       image       100
    CIFAR-10      64, 128, 128, 256   256, 128, 128     3             ``relu``       image       500
    video, 256    96, 128, 256, 256   256, 128, 96      3             ``leakyrelu``  position    2000
    ============  ==================  ================  ============  =============  ==========  =========

    The defaults are the last row, whose images have the size of ours; its convolutions over time are not there with
    ``spatial_dims=2``.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        channels: of the convolutions, each of stride 2.
        decoder_channels: of the deconvolutions, but for the last, which has the image's; None: ``channels`` backwards,
            the deepest left out.
        first_kernel: kernel of the first convolution; all others have 3.
        activation: ``"relu"`` or ``"leakyrelu"`` (slope 0.2), after batch normalisation and each layer but the last.
        addressing: what a memory item stands for: ``"position"``: the features of one position of z; ``"image"``: all
            of z, which needs ``image_size``.
        num_items: N.
        shrink_threshold: lambda of Eq. 6; None: 1/N, the lower end of the paper's interval [1/N, 3/N].
        entropy_weight: alpha = 0.0002 (Eq. 9).
        similarity: ``"cosine"`` (Eq. 5) or ``"dot"``, see ``ShrinkageMemory``.
        image_size: size of the image where it is fixed. Sides that do not halve evenly (28) need it too.
        symmetric: the network sees images in [-1, 1], as the published implementation does; False: in [0, 1].
        distance: ``"squared"``: e = ||x - x-hat||_2^2 (Eq. 2), per pixel as the map and its mean as the score; or
            ``"absolute"``.

    Raises:
        ValueError: for an unknown setting, or widths or an ``image_size`` that do not fit.

    Example::

        detector = MemAE(in_channels=1)
        anomaly_map, anomaly_score, restoration = detector.eval().detect(torch.rand(1, 1, 256, 256))
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        channels: Sequence[int] = (96, 128, 256, 256),
        decoder_channels: Sequence[int] | None = None,
        first_kernel: int = 3,
        activation: str = "leakyrelu",
        addressing: str = "position",
        num_items: int = 2000,
        shrink_threshold: float | None = None,
        entropy_weight: float = 0.0002,
        similarity: str = "cosine",
        image_size: Sequence[int] | None = None,
        symmetric: bool = True,
        distance: str = "squared",
    ) -> None:
        super().__init__(spatial_dims, in_channels, size_divisor=2 ** len(channels) if image_size is None else 1)
        check_choice("activation", activation, "relu", "leakyrelu")
        check_choice("addressing", addressing, "position", "image")
        check_choice("distance", distance, "squared", "absolute")
        back = list(channels)[-2::-1] if decoder_channels is None else list(decoder_channels)
        if len(back) != len(channels) - 1:
            raise ValueError(f"decoder_channels has one width fewer than channels, got {back} for {list(channels)}")
        if image_size is not None and len(image_size) != spatial_dims:
            raise ValueError(f"image_size has {spatial_dims} numbers, got {list(image_size)}")
        if addressing == "image" and image_size is None:
            raise ValueError("addressing 'image' needs image_size: an item is as long as the whole encoding")
        # Zeros where any size will do; TorchScript takes no empty list.
        self.image_size = [0] * spatial_dims if image_size is None else [int(side) for side in image_size]
        self.sized = image_size is not None
        self.whole = addressing == "image"
        self.symmetric = symmetric
        self.squared = distance == "squared"
        sides = _halved(self.image_size, len(channels))  # before each stride-2 convolution, and after the last
        act = ("LEAKYRELU", {"negative_slope": 0.2}) if activation == "leakyrelu" else "RELU"

        def layer(i: int, inputs: int, outputs: int, up: bool, last: bool = False) -> nn.Module:
            return Convolution(
                spatial_dims,
                inputs,
                outputs,
                strides=2,
                kernel_size=first_kernel if i == 0 and not up else 3,
                is_transposed=up,
                # A transposed convolution of stride 2 makes 2 n - 1 pixels of n, or one more where these are even.
                output_padding=[(side + 1) % 2 for side in sides[i]] if up else None,
                norm="BATCH",
                act=act,
                adn_ordering="NA",
                conv_only=last,
            )

        widths, count = list(channels), len(channels)
        self.encoder = nn.Sequential(
            *(
                layer(i, before, after, up=False)
                for i, (before, after) in enumerate(zip([in_channels, *widths], widths))
            )
        )
        back = [widths[-1], *back, in_channels]
        self.decoder = nn.Sequential(
            *(layer(count - 1 - k, back[k], back[k + 1], up=True, last=k == count - 1) for k in range(count))
        )
        item_dim = widths[-1] * (math.prod(sides[-1]) if self.whole else 1)
        self.memory = ShrinkageMemory(num_items, item_dim, shrink_threshold, entropy_weight, similarity)

    def detect(self, image: Tensor) -> AnomalyOutput:
        """See ``AnomalyDetector.detect`` and ``reconstruction_output``."""
        self.check_input(image, self.image_size if self.sized else None)
        return reconstruction_output(image, self.reconstruct(image)[0], self.squared)

    def feature_encoder(self) -> nn.Module:
        """The encoder as features of three levels: from an image to three maps, finest first."""
        stages = list(self.encoder)
        return StagedFeatures(stages, 2 ** len(stages), SymmetricRange() if self.symmetric else None)

    def reconstruct(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The reconstruction x-hat, in the image's shape and range, and alpha times the entropy of w-hat (a scalar)."""
        z = self.encoder(2.0 * image - 1.0 if self.symmetric else image)
        if self.whole:
            z_hat, auxiliary = self.memory(z.flatten(1).unsqueeze(-1))
            z_hat = z_hat.view(z.shape)
        else:
            z_hat, auxiliary = self.memory(z)
        restored = self.decoder(z_hat)
        if self.symmetric:
            # A squared error in [0, 1] is a quarter of that in [-1, 1], which alpha belongs to (Eq. 9).
            return 0.5 * restored + 0.5, 0.25 * auxiliary
        return restored, auxiliary


def _halved(size: Sequence[int], times: int) -> list[list[int]]:
    """A size, and what is left of it after each of the stride-2 convolutions."""
    sides = [list(size)]
    for _ in range(times):
        sides.append([(side + 1) // 2 for side in sides[-1]])
    return sides
