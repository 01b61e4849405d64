"""ITAE: restore an image from versions of it whose information was erased.

C. Huang, J. Cao, F. Ye, M. Li, Y. Zhang, C. Lu, *Inverse-Transform AutoEncoder for Anomaly Detection*,
arXiv:1911.10676. Symbols follow the paper: x image, f_T_i the T erasing operations, M the auto-encoder.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution
from monai.networks.layers.utils import get_act_layer
from torch import Tensor, nn

from monai_anomaly.exceptions import check_choice
from monai_anomaly.networks.blocks.erasing import ErasingSet
from monai_anomaly.networks.blocks.features import StagedFeatures, SymmetricRange
from monai_anomaly.networks.blocks.resnet34 import RESNET34_CHANNELS, ResNet34Encoder
from monai_anomaly.networks.blocks.unet import TwoConvolutions, UNetDecoder, UNetEncoder, up_sampling
from monai_anomaly.networks.detector import AnomalyDetector, AnomalyOutput

__all__ = ["ITAE", "InverseTransformAutoEncoder"]


class InverseTransformAutoEncoder(nn.Module):
    """M of Eq. 1: encoder, decoder with skips, a last 3 x 3 convolution (Table 10).

    Args:
        spatial_dims: 2 or 3.
        in_channels: of an erased image.
        out_channels: of the image.
        channels: see ``ITAE``, as for the rest.
        norm: normalisation.
        act: activation.
        upsample: way of upsampling.
        out_act: activation of the output.
        encoder: kind of encoder.

    Attributes:
        size_divisor: the input's sides must be multiples of it.

    Raises:
        ValueError: for fewer than two ``channels``, an unknown ``encoder`` or ``upsample``.

    Notes:
        Table 10 prints 256 channels for x_3-2 and x_3-3, whose convolutions have 512 filters, and for x_4-1, which
        pools x_3-3: 512 it is; 1/8 H for x_4-1, beside 1/16 W: 1/16; and x_1-3 as the input of up_0-1, which would
        bypass the decoder: up_1-3. Its output of 3 channels is that of colour images.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = (64, 128, 256, 512, 512),
        norm: str | tuple | None = "BATCH",
        act: str | tuple | None = "RELU",
        upsample: str = "linear",
        out_act: str | tuple | None = "TANH",
        encoder: str = "unet",
    ) -> None:
        super().__init__()
        if len(channels) < 2:
            raise ValueError(f"channels are of two levels at least, got {list(channels)}")
        # A block of the decoder gives what the next one's skip has: up_3-3 has 256 channels, as x_2-3.
        widths = [*reversed(channels[:-2]), channels[0]]
        exit_layers: list[nn.Module] = []
        self.encoder: nn.Module
        if encoder == "unet":
            self.encoder = UNetEncoder(spatial_dims, in_channels, channels, norm, act)
            self.decoder = UNetDecoder(spatial_dims, channels, widths, norm, act, upsample)
            self.size_divisor = 2 ** (len(channels) - 1)
        elif encoder == "resnet34":
            features = RESNET34_CHANNELS
            self.encoder = ResNet34Encoder(spatial_dims, in_channels)
            widths = [256, 128, 64, 64]
            self.decoder = UNetDecoder(spatial_dims, features, widths, norm, act, upsample)
            # ResNet34 begins with a stride of 2: one more block, without a skip, leads to the full size.
            exit_layers = [
                up_sampling(spatial_dims, widths[-1], upsample),
                TwoConvolutions(spatial_dims, widths[-1], widths[-1], norm, act),
            ]
            self.size_divisor = 2 ** len(features)
        else:
            raise ValueError(f"encoder is 'unet' or 'resnet34', got {encoder!r}")
        exit_layers.append(Convolution(spatial_dims, widths[-1], out_channels, kernel_size=3, conv_only=True))
        if out_act is not None:
            exit_layers.append(get_act_layer(out_act))
        self.exit = nn.Sequential(*exit_layers)

    def forward(self, erased: Tensor) -> Tensor:
        """x-hat of Eq. 1.

        Args:
            erased: shape (B, ``in_channels``, *spatial), in [-1, 1].

        Returns:
            Shape (B, ``out_channels``, *spatial), of images in [-1, 1].
        """
        return self.exit(self.decoder(self.encoder(erased)))


class ITAE(AnomalyDetector):
    """The Inverse-Transform AutoEncoder.

    Args:
        spatial_dims: 2 or 3.
        in_channels: C, channels of the image.
        erasing: the erasing set, operations in tandem (see ``ErasingSet``); ``[]`` is a plain auto-encoder; None:
            graying and rotation for images of several channels, rotation for others (section 4.1.2).
        channels: of each level of the encoder (Table 10). A ``resnet34`` has its own.
        norm: normalisation after each convolution, as in MONAI. Table 10 names none; without it SGD at the paper's rate
            of 0.1 stays at the mean image. None: none.
        act: activation after it; Table 10 names none.
        upsample: ``"linear"``, ``"nearest"`` or ``"deconv"``; Table 10 says "UpSample".
        out_act: activation of the output; Tanh, whose range is that of the images. Table 10 names none; with a linear
            output and batch normalisation the first steps at the rate of 0.1 diverge. None: linear.
        encoder: ``"unet"`` (Table 10) or ``"resnet34"`` (section 4.3).
        test_error: ``"l1"`` (Eq. 3) or ``"l2"``, its square (Table 5).
        restoration: ``"mean"`` of the T restorations, or ``"first"``, that of the first version.

    Attributes:
        num_versions: T.
        expected_errors: buffer of shape (T,), the expected error of each version over the training normals; ones
            before ``fit_statistics``.

    Raises:
        ValueError: for an unknown ``test_error``, ``restoration`` or operation, or as ``InverseTransformAutoEncoder``.

    Notes:
        Images of any size: they are padded with 0, the value of the background, around their centre to what the
        network divides, and to a square where the erasing set rotates; what lies outside of the image counts in no
        error.

    Example::

        detector = ITAE(spatial_dims=2, in_channels=1)
        anomaly_map, anomaly_score, restoration = detector.eval().detect(torch.rand(1, 1, 256, 256))
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        erasing: Sequence[str] | None = None,
        channels: Sequence[int] = (64, 128, 256, 512, 512),
        norm: str | tuple | None = "BATCH",
        act: str | tuple | None = "RELU",
        upsample: str = "linear",
        out_act: str | tuple | None = "TANH",
        encoder: str = "unet",
        test_error: str = "l1",
        restoration: str = "mean",
    ) -> None:
        super().__init__(spatial_dims, in_channels)
        check_choice("test_error", test_error, "l1", "l2")
        check_choice("restoration", restoration, "mean", "first")
        if erasing is None:
            erasing = ["gray", "rotation"] if in_channels > 1 else ["rotation"]
        if isinstance(erasing, str):
            raise ValueError(f"erasing is a list of operations, got {erasing!r}")
        self.erasing = ErasingSet(erasing, spatial_dims)
        self.num_versions = self.erasing.versions
        self.squared = test_error == "l2"
        self.first = restoration == "first"
        self.autoencoder = InverseTransformAutoEncoder(
            spatial_dims,
            self.erasing.out_channels(in_channels),
            in_channels,
            channels,
            norm,
            act,
            upsample,
            out_act,
            encoder,
        )
        self.padded_divisor = self.autoencoder.size_divisor
        self.equal_axes = [axis in self.erasing.equal_axes for axis in range(spatial_dims)]
        self.expected_errors: Tensor
        self.register_buffer("expected_errors", torch.ones(self.num_versions))

    def feature_encoder(self) -> nn.Module:
        """The encoder as features of three levels: from an image to three maps, finest first.

        Raises:
            ValueError: with ``encoder="resnet34"``.
        """
        encoder = self.autoencoder.encoder
        if not isinstance(encoder, UNetEncoder):
            raise ValueError("ITAE offers the features of its encoder 'unet' alone")
        gray = self.erasing.out_channels(self.in_channels) != self.in_channels
        stages = [encoder.entrance, *encoder.blocks]
        return StagedFeatures(stages, self.padded_divisor, SymmetricRange(gray))

    def to_network(self, image: Tensor) -> Tensor:
        """What the network works on: padded, and in [-1, 1] (section 4.1.1).

        Args:
            image: shape (B, C, *spatial), in [0, 1].

        Returns:
            Shape (B, C, *padded).
        """
        low, high = self._margins(image)
        pad: list[int] = []
        for axis in range(self.spatial_dims - 1, -1, -1):
            pad += [low[axis], high[axis]]
        return 2.0 * F.pad(image, pad) - 1.0

    def crop(self, padded: Tensor, image: Tensor) -> Tensor:
        """What lies on the image.

        Args:
            padded: shape (B', C', *padded), of the padded size of ``image``.
            image: shape (B, C, *spatial), of which the size alone counts.

        Returns:
            Shape (B', C', *spatial).
        """
        low, _ = self._margins(image)
        for axis in range(self.spatial_dims):
            padded = padded.narrow(axis + 2, low[axis], image.shape[axis + 2])
        return padded

    def _margins(self, image: Tensor) -> tuple[list[int], list[int]]:
        """How many pixels are missing before and after the image along each axis."""
        square = 0
        for axis in range(self.spatial_dims):
            if self.equal_axes[axis]:
                square = max(square, image.shape[axis + 2])
        low: list[int] = []
        high: list[int] = []
        for axis in range(self.spatial_dims):
            size = image.shape[axis + 2]
            wanted = square if self.equal_axes[axis] else size
            wanted = (wanted + self.padded_divisor - 1) // self.padded_divisor * self.padded_divisor
            low.append((wanted - size) // 2)
            high.append(wanted - size - (wanted - size) // 2)
        return low, high

    def erase(self, x: Tensor) -> Tensor:
        """All T erased versions.

        Args:
            x: what ``to_network`` gave for B images.

        Returns:
            Shape (T * B, C', *padded): the B images of the first version, then those of the second, and so on.
        """
        versions: list[Tensor] = []
        for version in range(self.num_versions):
            versions.append(self.erasing(x, version))
        return torch.cat(versions)

    def restore(self, image: Tensor) -> Tensor:
        """The T restorations of a batch: in one pass of the network, or on a CPU in eval mode one version at a time.

        Args:
            image: shape (B, C, *spatial), in [0, 1].

        Returns:
            Shape (T, B, C, *spatial), in [-1, 1], float of the image's precision.
        """
        versions = self.erase(self.to_network(image))
        if torch.jit.is_scripting():  # noqa: SIM114 - what TorchScript cannot read stands in a branch of its own
            restored = self.autoencoder(versions)
        elif self.training or versions.is_cuda or torch.jit.is_tracing() or torch.compiler.is_compiling():
            restored = self.autoencoder(versions)
        else:
            # One by one they find their activations in a CPU's cache, and take a T-th of the memory.
            restored = torch.cat([self.autoencoder(version) for version in versions.split(image.shape[0])])
        restored = self.crop(restored, image).to(image.dtype)
        return restored.reshape([self.num_versions, image.shape[0]] + list(restored.shape[1:]))  # noqa: RUF005

    def pixel_errors(self, restored: Tensor, image: Tensor) -> Tensor:
        """What Eq. 3 sums up: the error of each version at each pixel.

        Args:
            restored: what ``restore`` gave.
            image: shape (B, C, *spatial), in [0, 1]: the image itself, not an erased one.

        Returns:
            Shape (T, B, 1, *spatial): the mean over the channels of the absolute or squared difference in [-1, 1].
        """
        difference = restored - (2.0 * image - 1.0)
        error = difference * difference if self.squared else difference.abs()
        return error.mean(dim=2, keepdim=True)

    def detect(self, image: Tensor) -> AnomalyOutput:
        """See ``AnomalyDetector.detect``; the score is Eq. 3, the map what it sums up, the restoration in [0, 1]."""
        self.check_input(image)
        restored = self.restore(image)
        shape = [self.num_versions] + [1] * (self.spatial_dims + 2)
        # Means in the place of norms: numerator and denominator of Eq. 3 have the same number of pixels.
        normalised = self.pixel_errors(restored, image) / self.expected_errors.reshape(shape)
        anomaly_map = normalised.mean(dim=0)
        anomaly_score = anomaly_map.flatten(1).mean(dim=1)
        restoration = restored[0] if self.first else restored.mean(dim=0)
        return AnomalyOutput(anomaly_map, anomaly_score, (restoration + 1.0) / 2.0)

    @torch.jit.unused
    def fit_statistics(self, training: Iterable[Tensor], held_out: Iterable[Tensor]) -> None:
        """The denominator of Eq. 3: the expected error of each version over the training normals.

        Args:
            training: batches of training normals.
            held_out: not used.

        Raises:
            ValueError: if there is no training image, or a version is restored without any error.
        """
        total, count = torch.zeros(self.num_versions, dtype=torch.float64), 0
        for image in training:
            errors = self.pixel_errors(self.restore(image), image).flatten(2).mean(dim=2)
            total += errors.double().sum(dim=1).cpu()
            count += len(image)
        if count == 0:
            raise ValueError("ITAE compares errors with those of the training normals, and there are none")
        if not bool((total > 0).all()):
            raise ValueError(f"Eq. 3 divides by the expected errors; one is not positive: {(total / count).tolist()}")
        self.expected_errors.copy_(total / count)
