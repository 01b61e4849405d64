"""The ResNet34 encoder of ITAE's video protocol (section 4.3)."""

from __future__ import annotations

from pathlib import Path

import torch
from monai.networks.nets.resnet import ResNet, ResNetBlock
from torch import Tensor, nn

__all__ = ["RESNET34_CHANNELS", "ResNet34Encoder"]

# K. He et al., Deep Residual Learning for Image Recognition, CVPR 2016, Table 1.
_BLOCKS = [3, 4, 6, 3]
RESNET34_CHANNELS = (64, 64, 128, 256, 512)


class ResNet34Encoder(nn.Module):
    """MONAI's ResNet with 34 layers without its head, giving the features of every size.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the input.

    Notes:
        Maps (B, C, *spatial), sides multiples of 32, to features of ``RESNET34_CHANNELS`` channels at 1/2, 1/4, 1/8,
        1/16 and 1/32 of the size. Shortcuts that change the size are 1 x 1 convolutions (option B of the paper on
        ResNet), as in common weights.
    """

    def __init__(self, spatial_dims: int, in_channels: int) -> None:
        super().__init__()
        widths = [64, 128, 256, 512]
        resnet = ResNet(
            ResNetBlock,
            _BLOCKS,
            widths,
            spatial_dims,
            in_channels,
            conv1_t_size=7,
            conv1_t_stride=2,
            shortcut_type="B",
            bias_downsample=False,
            feed_forward=False,
        )
        self.conv1, self.bn1, self.act, self.maxpool = resnet.conv1, resnet.bn1, resnet.act, resnet.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4

    def forward(self, x: Tensor) -> list[Tensor]:
        """The features, from the largest down."""
        x0 = self.act(self.bn1(self.conv1(x)))
        x1 = self.layer1(self.maxpool(x0))
        x2 = self.layer2(x1)
        x3 = self.layer3(x2)
        return [x0, x1, x2, x3, self.layer4(x3)]

    @torch.jit.unused
    def load_weights(self, path: str | Path) -> None:
        """Take up the weights of a classifier, as the usual ImageNet files name them.

        Args:
            path: a file of ``torch.save`` with the ``state_dict``; its head (``fc``) is left out. Where it takes
                colour and the encoder one channel, the first convolution's weights are summed over the channels,
                which is what it computes for a gray image.

        Raises:
            ValueError: if weights are missing, left over or of another shape.
        """
        saved = torch.load(path, map_location="cpu", weights_only=True)
        saved = {key: value for key, value in saved.items() if not key.startswith("fc.")}
        if "conv1.weight" in saved and self.conv1.weight.shape[1] == 1:
            saved["conv1.weight"] = saved["conv1.weight"].sum(dim=1, keepdim=True)
        try:
            self.load_state_dict(saved)
        except RuntimeError as error:
            raise ValueError(f"{path} does not hold the weights of this ResNet34: {error}") from error
