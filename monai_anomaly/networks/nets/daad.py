"""DAAD: feature maps are divided into blocks and assembled anew from a memory; DAAD+ scores by a discriminator too.

J. Hou et al., *Divide-and-Assemble: Learning Block-wise Memory for Unsupervised Anomaly Detection*, ICCV 2021. Symbols
follow the paper: x image, x_hat reconstruction, G generator, D discriminator, f_D its features, R and L the scores.
"""

# No postponed annotations here: TorchScript reads the real ones of methods that it leaves out.

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv, Pool
from monai.networks.layers.utils import get_act_layer
from torch import Tensor, nn

from monai_anomaly.exceptions import check_choice
from monai_anomaly.networks.blocks import BlockMemory, StagedFeatures, SymmetricRange, TwoConvolutions, halving
from monai_anomaly.networks.detector import AnomalyDetector, AnomalyOutput

__all__ = ["DAAD", "DAADDiscriminator", "DAADGenerator"]


class DAADGenerator(nn.Module):
    """G: encoder, block-wise memories, decoder (Table 7).

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        image_size: of the image, which the memories' items follow.
        channels: width of each scale.
        division_rates: of all scales (section 3.1.2), or a list of rates for each scale.
        num_items: N of each bank.
        memory_scales: scales, counted from 1 as in Table 7, whose feature map passes through a memory.
        skips: the decoder also sees the maps of the scales before the last.
        temperature: see ``BlockMemory``, as for the next two.
        renormalize: weights that are left sum to one.
        item_std: start values of the items.
        output_activation: after the last convolution, as in MONAI; None: linear, as Table 7 has it.

    Raises:
        ValueError: for a memory that nothing would read or at a scale that there is none of, and as ``BlockMemory``.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        image_size: Sequence[int],
        channels: Sequence[int],
        division_rates: Sequence[int] | Sequence[Sequence[int]],
        num_items: int,
        memory_scales: Sequence[int],
        skips: bool,
        temperature: float = 1.0,
        renormalize: bool = False,
        item_std: float = 1.0,
        output_activation: str | None = None,
    ) -> None:
        super().__init__()
        scales = len(channels)
        for scale in memory_scales:
            if not 1 <= scale <= scales:
                raise ValueError(f"memory_scales counts the scales from 1 to {scales}, got {scale}")
            if scale < scales and not skips:
                raise ValueError(
                    f"without skips nothing reads a memory at scale {scale}: leave memory_scales with [{scales}] or []"
                )
        self.skips = skips
        self.encoder = nn.ModuleList(
            nn.Sequential(TwoConvolutions(spatial_dims, above, width, "BATCH", "RELU"), Pool["MAX", spatial_dims](2))
            for above, width in pairwise([in_channels, *channels])
        )
        rates = per_scale_rates(division_rates, scales)
        self.memories = nn.ModuleList(
            BlockMemory(
                width, [side // 2**scale for side in image_size], rate, num_items, temperature, renormalize, item_std
            )
            if scale in memory_scales
            else nn.Identity()
            for scale, (width, rate) in enumerate(zip(channels, rates), start=1)
        )
        # dec4, dec3, dec2, dec1: the last scale's width doubles first, and each stage ends with its own scale's width.
        inside = [2 * channels[-1], *reversed(channels[1:])]
        outputs = list(reversed(channels))
        self.decoder = nn.ModuleList()
        below = channels[-1]
        for i, (width, output) in enumerate(zip(inside, outputs)):
            skip = output if skips and i > 0 else 0
            self.decoder.append(
                nn.Sequential(
                    TwoConvolutions(spatial_dims, below + skip, width, "BATCH", "RELU"),
                    Conv["CONVTRANS", spatial_dims](width, output, kernel_size=2, stride=2),
                )
            )
            below = output
        self.head = nn.Sequential(
            TwoConvolutions(spatial_dims, below, channels[0], "BATCH", "RELU"),
            Conv["CONV", spatial_dims](channels[0], in_channels, kernel_size=1),
            nn.Identity() if output_activation is None else get_act_layer(output_activation),
        )

    def forward(self, x: Tensor) -> Tensor:
        """x_hat of an image of shape (B, C, *image_size), in the same shape."""
        feature = x
        recalled: list[Tensor] = []
        for encode, remember in zip(self.encoder, self.memories):
            feature = encode(feature)
            recalled.append(remember(feature))
        z = recalled.pop()
        for i, decode in enumerate(self.decoder):
            if self.skips and i > 0:
                z = torch.cat([z, recalled.pop()], dim=1)
            z = decode(z)
        return self.head(z)


class DAADDiscriminator(nn.Module):
    """D: a feature extractor, whose output f_D is compared, and a classifier (Table 8).

    Table 8 is for 256 x 256 pixels: six convolutions of stride 2 leave 4 x 4, which the next one, 4 x 4, makes one
    vector. For smaller images the last of the six are left out, so that at least 4 x 4 is left (five for 128); for
    larger ones f_D has several positions.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        image_size: of the image.
        channels: width of each convolution of stride 2.
        feature_channels: width of f_D, 100 in Table 8.

    Raises:
        ValueError: for sides below 8 pixels.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        image_size: Sequence[int],
        channels: Sequence[int] = (64, 128, 256, 512, 1024, 2048),
        feature_channels: int = 100,
    ) -> None:
        super().__init__()
        stages = min(len(channels), int(math.log2(max(1, min(image_size) // 4))))
        if stages < 1:
            raise ValueError(f"the discriminator needs image sides of 8 pixels or more, got {list(image_size)}")
        act = ("LEAKYRELU", {"negative_slope": 0.2})
        widths = [in_channels, *channels[:stages]]
        self.feature_extractor = nn.Sequential(
            *(
                # Table 8 has no batch normalisation after the first convolution.
                halving(spatial_dims, before, after, None if i == 0 else "BATCH", act)
                for i, (before, after) in enumerate(pairwise(widths))
            ),
            Conv["CONV", spatial_dims](widths[-1], feature_channels, kernel_size=4),
        )
        # The padding lets 3 x 3 see a map of 1 x 1.
        self.classifier = Conv["CONV", spatial_dims](feature_channels, 1, kernel_size=3, padding=1)

    def features(self, x: Tensor) -> Tensor:
        """f_D, shape (B, feature_channels, *positions); one position for 256 x 256 pixels."""
        return self.feature_extractor(x)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits.

        Args:
            x: shape (B, C, *image_size), in [-1, 1].

        Returns:
            f_D, and D(x) before its sigmoid, shape (B, 1, *positions).
        """
        f = self.features(x)
        return f, self.classifier(f)


class DAAD(AnomalyDetector):
    """Divide-and-Assemble Anomaly Detection: DAAD+ by default, DAAD without the discriminator, and their baselines.

    The paper's images are in [-1, 1]: the detector converts them, and its restoration back to [0, 1]. R, L and the map
    are of the paper's range.

    Args:
        spatial_dims: 2, or 3 for whole volumes (the paper is 2-D).
        in_channels: channels of the image.
        image_size: of the images, 256 x 256 (section 4.1); a memory item is a block of a feature map, so that
            a detector takes images of one size alone.
        channels: width of each scale (Table 7).
        division_rates: r_h, r_w, r_c: how many blocks lie along each spatial axis and along the channels, 8, 8, 1
            (section 4.1); or a list of such rates for each scale. None: 8 along each axis, 1 along the channels.
        num_items: N = 500 (section 4.1).
        memory_scales: scales with a memory, counted from 1; None: all.
        skips: with skip connections.
        temperature: see ``BlockMemory``.
        renormalize: see ``BlockMemory``.
        item_std: see ``BlockMemory``.
        output_activation: see ``DAADGenerator``.
        discriminator: with D (DAAD+). False: the score is R(x).
        discriminator_channels: see ``DAADDiscriminator``.
        feature_channels: width of f_D.
        gamma: weight of R in Eq. 7, 0.9; 1 is R alone, 0 is L alone.
        score_distance: R and L are ``"squared"`` distances (means over elements) or their ``"norm"``, the L2 norm to
            the letter of Eq. 4 and 6.
        pixel_map: ``"error"``: the squared error of a pixel, its mean over channels; ``"features"``: this and the
            squared distance of the features at the pixel's position, interpolated, on their scales and with the weights
            of Eq. 7. The features have one position in images of 256 x 256 or smaller powers of two: there the term
            raises all pixels of an image alike.

    Attributes:
        minimum: shape (2,), the smallest R and L of held-out normals; 0 while not fitted.
        maximum: shape (2,), the largest ones; 1 while not fitted.

    Raises:
        ValueError: for an unknown setting, a gamma outside [0, 1], or an image size that does not fit the scales, the
            division rates or the discriminator.

    Example::

        detector = DAAD(image_size=(256, 256))
        anomaly_map, anomaly_score, restoration = detector.eval().detect(torch.rand(1, 1, 256, 256))
    """

    channels_last = True

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        image_size: Sequence[int] = (256, 256),
        channels: Sequence[int] = (64, 128, 256, 512),
        division_rates: Sequence[int] | Sequence[Sequence[int]] | None = None,
        num_items: int = 500,
        memory_scales: Sequence[int] | None = None,
        skips: bool = True,
        temperature: float = 1.0,
        renormalize: bool = False,
        item_std: float = 1.0,
        output_activation: str | None = None,
        discriminator: bool = True,
        discriminator_channels: Sequence[int] = (64, 128, 256, 512, 1024, 2048),
        feature_channels: int = 100,
        gamma: float = 0.9,
        score_distance: str = "squared",
        pixel_map: str = "error",
    ) -> None:
        scales = len(channels)
        rates = per_scale_rates(division_rates or [*[8] * spatial_dims, 1], scales)
        remembered = list(range(1, scales + 1)) if memory_scales is None else list(memory_scales)
        divisors = _size_divisors(spatial_dims, scales, rates, remembered)
        super().__init__(spatial_dims, in_channels, size_divisor=math.gcd(*divisors))
        if len(image_size) != spatial_dims:
            raise ValueError(f"image_size has {spatial_dims} numbers for {spatial_dims} dimensions, got {image_size}")
        for side, divisor in zip(image_size, divisors):
            if side < divisor or side % divisor != 0:
                raise ValueError(
                    f"image_size is {list(image_size)}; {scales} scales and division rates {division_rates or 8} take "
                    f"multiples of {divisor}: take such a size, or division rates that divide its feature maps "
                    f"(the smallest has a side of {side // 2**scales})"
                )
        if not 0.0 <= gamma <= 1.0:
            raise ValueError(f"gamma lies in [0, 1], got {gamma}")
        check_choice("score_distance", score_distance, "squared", "norm")
        check_choice("pixel_map", pixel_map, "error", "features")
        if pixel_map == "features" and not discriminator:
            raise ValueError("pixel_map 'features' needs the discriminator")
        self.image_size = list(image_size)
        self.gamma = gamma
        self.score_by_norm = score_distance == "norm"
        self.map_with_features = pixel_map == "features"
        # Without L there is nothing to bring to one scale.
        self.needs_held_out = discriminator
        self.interpolation = "trilinear" if spatial_dims == 3 else "bilinear"
        self.generator = DAADGenerator(
            spatial_dims,
            in_channels,
            image_size,
            channels,
            rates,
            num_items,
            remembered,
            skips,
            temperature,
            renormalize,
            item_std,
            output_activation,
        )
        self.discriminator: DAADDiscriminator | None = None
        if discriminator:
            self.discriminator = DAADDiscriminator(
                spatial_dims, in_channels, image_size, discriminator_channels, feature_channels
            )
        self.register_buffer("minimum", torch.zeros(2))
        self.register_buffer("maximum", torch.ones(2))
        # declared here and not in the class body, which TorchScript reads
        self.minimum: Tensor
        self.maximum: Tensor

    def feature_encoder(self) -> nn.Module:
        """The encoder as features of three levels: from an image to three maps, finest first."""
        stages = list(self.generator.encoder)
        return StagedFeatures(stages, 2 ** len(stages), SymmetricRange())

    def normalise(self, image: Tensor) -> Tensor:
        """x: an image of [0, 1] brought to [-1, 1] (section 4.1)."""
        return 2.0 * image - 1.0

    def detect(self, image: Tensor) -> AnomalyOutput:
        """See ``AnomalyDetector.detect``; the score is Eq. 7, or R(x) without a discriminator."""
        self.check_input(image, self.image_size)
        x = self.normalise(image)
        x_hat = self.generator(x).to(x.dtype)
        error = ((x - x_hat) ** 2).mean(dim=1, keepdim=True)
        restoration = 0.5 * (x_hat + 1.0)
        r = self._score(x - x_hat)
        anomaly_map = error
        anomaly_score = r
        if self.discriminator is not None:
            difference = (self.discriminator.features(x) - self.discriminator.features(x_hat)).to(x.dtype)
            scaled = self._scaled(r, self._score(difference))
            anomaly_score = self.gamma * scaled[0] + (1.0 - self.gamma) * scaled[1]  # Eq. 7
            if self.map_with_features:
                distance = (difference**2).mean(dim=1, keepdim=True)
                distance = F.interpolate(distance, self.image_size, mode=self.interpolation, align_corners=False)
                # Without the minima: a map is not negative.
                spread = self.maximum - self.minimum
                anomaly_map = self.gamma * error / spread[0] + (1.0 - self.gamma) * distance / spread[1]
        return AnomalyOutput(anomaly_map, anomaly_score, restoration)

    def _score(self, difference: Tensor) -> Tensor:
        """R or L: shape (B,) from a difference of images or features."""
        if self.score_by_norm:
            return torch.linalg.vector_norm(difference.flatten(1), dim=1)
        return (difference**2).flatten(1).mean(dim=1)

    def _scaled(self, r: Tensor, l: Tensor) -> Tensor:  # noqa: E741
        """R and L, shape (2, B), such that the held-out normals span [0, 1]; values beyond stay beyond."""
        return (torch.stack([r, l]) - self.minimum[:, None]) / (self.maximum - self.minimum)[:, None]

    @torch.jit.unused
    def fit_statistics(self, training: Iterable[Tensor], held_out: Iterable[Tensor]) -> None:
        """Find the range of R and of L over held-out normals; nothing to find without a discriminator.

        Args:
            training: not used.
            held_out: see ``AnomalyDetector.fit_statistics``.

        Raises:
            ValueError: with fewer than two held-out images, or all of the same R or L.
        """
        if self.discriminator is None:
            return
        scores = []
        for image in held_out:
            x = self.normalise(image)
            x_hat = self.generator(x)
            difference = self.discriminator.features(x) - self.discriminator.features(x_hat)
            scores.append(torch.stack([self._score(x - x_hat), self._score(difference)], dim=1))
        if sum(len(s) for s in scores) < 2:
            raise ValueError("the scores need a range: give two held-out normal images or more")
        both = torch.cat(scores)
        minimum, maximum = both.amin(dim=0), both.amax(dim=0)
        if not bool((maximum > minimum).all()):
            raise ValueError(
                f"R and L of the held-out normals range from {minimum.tolist()} to {maximum.tolist()}: "
                "the images are all the same or the training has failed"
            )
        self.minimum.copy_(minimum)
        self.maximum.copy_(maximum)


def per_scale_rates(division_rates: Sequence[int] | Sequence[Sequence[int]], scales: int) -> list[list[int]]:
    """The division rates of each scale, from one list for all of them or a list of lists.

    Args:
        division_rates: (r_h, r_w, r_c), or one such for each scale.
        scales: how many there are.

    Raises:
        ValueError: for a list of lists of another length.
    """
    rates = [[rate] if isinstance(rate, int) else list(rate) for rate in division_rates]
    if all(isinstance(rate, int) for rate in division_rates):
        return [[rate[0] for rate in rates]] * scales
    if len(rates) != scales:
        raise ValueError(f"division_rates for each scale are {scales} lists, got {len(rates)}")
    return rates


def _size_divisors(dims: int, scales: int, rates: list[list[int]], remembered: list[int]) -> list[int]:
    """What each side is a multiple of: every scale halves it, and a memory divides what is left."""
    if any(len(rate) != dims + 1 for rate in rates):
        raise ValueError(f"division_rates has one number an axis and one for the channels ({dims + 1}), got {rates[0]}")
    if any(number < 1 for rate in rates for number in rate):
        raise ValueError(f"division_rates are 1 or more, got {rates}")
    here = [scale for scale in remembered if 1 <= scale <= scales]
    return [math.lcm(2**scales, *(2**scale * rates[scale - 1][axis] for scale in here)) for axis in range(dims)]
