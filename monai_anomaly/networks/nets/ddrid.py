"""DDR-ID: an image is taken apart into its normal-class component and the residual.

D. Lin, Y. Li, S. Xie, T. L. Nwe, S. Dong, *DDR-ID: Dual Deep Reconstruction Networks Based Image Decomposition for
Anomaly Detection*, 2020. Symbols follow the paper: R_C = D_C(E_C) the class-specific network, R_N the
non-class-specific one, Z_C the mean latent vector, AS_l and AS_r the two scores.
"""

# No postponed annotations here: TorchScript reads the real ones.

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from monai_anomaly.exceptions import check_choice
from monai_anomaly.networks.blocks import (
    ContrastInput,
    ContrastNormalization,
    DCGANDecoder,
    DCGANEncoder,
    LatentAutoencoder,
    LeNetEncoder,
    StagedFeatures,
)
from monai_anomaly.networks.detector import AnomalyDetector, AnomalyOutput

__all__ = ["DDRID"]


class SquareDetector(AnomalyDetector):
    """Base of the detectors of square images of one size, whose contrast is normalised first.

    Args:
        spatial_dims: 2.
        in_channels: channels of the image.
        image_size: its side, or both.
        contrast: see ``ContrastNormalization``, as the next.
        rescale: to [0, 1].

    Raises:
        ValueError: for three dimensions, or a rectangle, which a latent vector's decoder cannot make.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        image_size: int | Sequence[int],
        contrast: str | None,
        rescale: str | None,
    ) -> None:
        sides = [image_size, image_size] if isinstance(image_size, int) else [int(side) for side in image_size]
        if len(sides) != 2 or sides[0] != sides[1]:
            raise ValueError(f"image_size must be square, got {sides}")
        super().__init__(spatial_dims, in_channels, size_divisor=sides[0])
        if spatial_dims != 2:
            raise ValueError(
                f"{type(self).__name__} is two-dimensional (spatial_dims 2), got spatial_dims {spatial_dims}"
            )
        self.image_side = sides[0]
        self.normalisation = ContrastNormalization(contrast, rescale)

    def normalise(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the networks see of an image: ``x``, ``offset`` and ``scale`` of ``ContrastNormalization``.

        Args:
            image: shape (B, C, S, S).

        Raises:
            ValueError: if channels or size do not fit the network.
        """
        self.check_input(image, [self.image_side, self.image_side])
        return self.normalisation(image)


def contrast_features(encoder: nn.Module, normalisation: ContrastNormalization) -> StagedFeatures:
    """The convolutions of an encoder as features of three levels, on images whose contrast is normalised."""
    assert isinstance(encoder, DCGANEncoder | LeNetEncoder)
    stages = encoder.stages()
    return StagedFeatures(stages, 2 ** len(stages), ContrastInput(normalisation))


class DDRID(SquareDetector):
    """Dual Deep Reconstruction networks based Image Decomposition.

    Args:
        spatial_dims: 2; the networks of Table 1 are for images, and volumes go slice by slice.
        in_channels: channels C of the image.
        image_size: side of the (square) image: 28 or 32 (Table 1), 64, 128 or 256 by the same rule; see
            ``dcgan_widths``.
        channels: width of the first convolution, 64 in Table 1; the others keep their ratio to it.
        latent_channels: 128 on MNIST, 512 elsewhere (Table 1).
        order: ``"NA"`` (Table 1) or ``"AN"`` (section 3.1), see ``DCGANEncoder``.
        first_norm: see ``DCGANEncoder``.
        projection: see ``DCGANDecoder``.
        output_activation: of both decoders; Tanh in Table 1, of which R_C needs the positive half for an input in
            [0, 1].
        contrast: norm of the global contrast normalisation, ``"l1"`` (section 4.1), ``"l2"`` or None.
        rescale: to [0, 1] over the training set (``"training"``), per image (``"image"``, which undoes the contrast
            normalisation) or not at all (None).
        centre_margin: coordinates of Z_C nearer to 0 than this are moved that far from it, as Deep SVDD does with 0.1;
            the paper does not say that it does: 0.
        score: ``"val"``: AS_l or AS_r, whichever Algorithm 2 selects; ``"latent"``: AS_l; ``"restoration"``: AS_r;
            ``"sum"``: AS_l + AS_r (Table 6).
        selection: ``"paper"``: the score with the lower mean over held-out normals; ``"standardised"``: each mean is
            first divided by the score's mean over the training normals, since the two are distances in spaces of
            different dimension. The score that grows less on unseen normals is then selected.
        distance: ``"squared"`` (Eq. 7 and 8 as printed) or ``"euclidean"`` (as the text calls them).
        pixel_map: ``"template"``: the terms of Eq. 8 per pixel, (R_C(x) - D_C(Z_C))^2, or their absolute value with the
            Euclidean distance; ``"restoration"``: |x - R_C(x)|; ``"residual"``: |R_N(x)|. The paper defines none. The
            mean over channels.
        encoder_bias: of E_C and E_N. Table 1 is silent; Deep SVDD, whose loss Eq. 3 is, has none, since an encoder with
            biases can map every image to Z_C. False: no learnt scale and shift of their batch normalisation either.

    Attributes:
        centre: Z_C, shape (latent_channels,).
        score_weights: shape (2,), the weights of AS_l and AS_r in the score, each 0 or 1. With ``score="val"`` they
            stand at AS_l until ``fit_statistics`` has selected.

    Raises:
        ValueError: for three dimensions, a size that is not served, or an unknown setting.

    Notes:
        Eq. 8's text feeds Z_C "through the encoder"; its formula, D_C(Z_C), is what makes sense and what is computed.

    Example::

        detector = DDRID(in_channels=1, image_size=32)
        anomaly_map, anomaly_score, restoration = detector.eval().detect(torch.rand(1, 1, 32, 32))
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        image_size: int | Sequence[int] = 32,
        channels: int = 64,
        latent_channels: int = 512,
        order: str = "NA",
        first_norm: bool = False,
        projection: bool = False,
        output_activation: str | None = "tanh",
        contrast: str | None = "l1",
        rescale: str | None = "training",
        centre_margin: float = 0.0,
        score: str = "val",
        selection: str = "paper",
        distance: str = "squared",
        pixel_map: str = "template",
        encoder_bias: bool = True,
    ) -> None:
        super().__init__(spatial_dims, in_channels, image_size, contrast, rescale)
        check_choice("order", order, "NA", "AN")
        check_choice("score", score, "val", "latent", "restoration", "sum")
        check_choice("selection", selection, "paper", "standardised")
        check_choice("distance", distance, "squared", "euclidean")
        check_choice("pixel_map", pixel_map, "template", "restoration", "residual")
        side = self.image_side
        self.selects = score == "val"
        self.needs_held_out = self.selects
        self.standardised_selection = selection == "standardised"
        self.squared = distance == "squared"
        self.pixel_map = pixel_map
        self.centre_margin = centre_margin

        def network() -> LatentAutoencoder:
            return LatentAutoencoder(
                DCGANEncoder(
                    in_channels, side, channels, latent_channels, order, first_norm, encoder_bias, encoder_bias
                ),
                DCGANDecoder(in_channels, side, channels, latent_channels, order, projection, output_activation),
            )

        self.class_network = network()  # R_C
        self.residual_network = network()  # R_N
        self.register_buffer("centre", torch.zeros(latent_channels))
        weights = [float(score != "restoration"), float(score in ("restoration", "sum"))]
        self.register_buffer("score_weights", torch.tensor(weights))
        # declared here and not in the class body, which TorchScript reads
        self.centre: Tensor
        self.score_weights: Tensor

    def detect(self, image: Tensor) -> AnomalyOutput:
        """See ``AnomalyDetector.detect``; the restoration is R_C(x) in the image's own contrast."""
        x, offset, scale = self.normalise(image)
        component, z = self.class_network(x)  # X_C
        difference = component - self.template()
        latent, restoration = self._distances(z, difference)
        anomaly_score = self.score_weights[0] * latent + self.score_weights[1] * restoration
        if self.pixel_map == "template":
            pixels = difference * difference if self.squared else difference.abs()
        elif self.pixel_map == "restoration":
            pixels = (x - component).abs()
        else:
            pixels = self.residual_network(x)[0].abs()
        return AnomalyOutput(pixels.mean(dim=1, keepdim=True), anomaly_score, component * scale + offset)

    def feature_encoder(self) -> nn.Module:
        """E_C as features of three levels: from an image to three maps, finest first."""
        return contrast_features(self.class_network.encoder, self.normalisation)

    def template(self) -> Tensor:
        """D_C(Z_C), shape (1, C, S, S)."""
        return self.class_network.decoder(self.centre[None])

    def scores(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """AS_l (Eq. 7) and AS_r (Eq. 8) of a batch, each of shape (B,)."""
        component, z = self.class_network(self.normalise(image)[0])
        return self._distances(z, component - self.template())

    def _distances(self, z: Tensor, difference: Tensor) -> tuple[Tensor, Tensor]:
        latent = ((z - self.centre) ** 2).sum(dim=1)  # Eq. 7
        restoration = (difference * difference).flatten(1).sum(dim=1)  # Eq. 8
        if self.squared:
            return latent, restoration
        return latent.sqrt(), restoration.sqrt()

    @torch.jit.unused
    def fit_statistics(self, training: Iterable[Tensor], held_out: Iterable[Tensor]) -> None:
        """Algorithm 2: select the score that is lower on held-out normals; see ``AnomalyDetector.fit_statistics``."""
        if not self.selects:
            return
        latent, restoration = self._mean_scores(held_out, "held-out")
        if self.standardised_selection:
            known_latent, known_restoration = self._mean_scores(training, "training")
            # A ratio of normals not trained on to normals trained on, compared without dividing by a zero.
            latent, restoration = latent * known_restoration, restoration * known_latent
        lower = latent < restoration  # strictly: a tie goes to AS_r (Algorithm 2)
        self.score_weights.copy_(torch.stack([lower, ~lower]))

    def _mean_scores(self, images: Iterable[Tensor], which: str) -> tuple[Tensor, Tensor]:
        sums, count = torch.zeros(2, dtype=torch.float64), 0
        for batch in images:
            latent, restoration = self.scores(batch)
            sums += torch.stack([latent.double().sum(), restoration.double().sum()]).cpu()
            count += len(batch)
        if count == 0:
            raise ValueError(f"selecting between AS_l and AS_r needs {which} normals, and there are none")
        return sums[0] / count, sums[1] / count
