"""The first three stages of ResNets, under the key names of torchvision's weight files.

MONAI's ResNets have other key shapes for the wide variant (they widen a block's output too), so that no published
ImageNet file fits them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["RESNETS", "ResNetFeatures", "resnet_features"]


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut (K. He et al., CVPR 2016, Fig. 5 left).

    Args:
        in_channels: channels of the input.
        width: channels of both convolutions and of the output.
        stride: of the first convolution.
    """

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.downsample(x))


class WideBottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1 beside a shortcut, the inner width doubled (S. Zagoruyko and N. Komodakis, BMVC 2016).

    Args:
        in_channels: channels of the input.
        width: a quarter of the output's channels; the inner convolutions have twice as many.
        stride: of the 3 x 3 convolution, as in torchvision.
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        inner, outer = 2 * width, self.expansion * width
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outer, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outer)
        self.downsample = _shortcut(in_channels, outer, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + self.downsample(x))


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


class ResNetFeatures(nn.Module):
    """conv1, bn1, ReLU, max pooling, then three stages; the outputs of the stages.

    Args:
        block: ``BasicBlock`` or ``WideBottleneck``.
        blocks: number of blocks of each stage.

    Attributes:
        channels: of the three outputs.
        size_divisor: 16, the stride of the third output; the others have 4 and 8.
    """

    def __init__(self, block: type[BasicBlock] | type[WideBottleneck], blocks: Sequence[int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        width = 64
        stages: list[nn.Module] = []
        self.channels: list[int] = []
        for k, number in enumerate(blocks):
            plain = 64 * 2**k
            stage: list[nn.Module] = []
            for i in range(number):
                stage.append(block(width, plain, 2 if k > 0 and i == 0 else 1))
                width = block.expansion * plain
            stages.append(nn.Sequential(*stage))
            self.channels.append(width)
        self.layer1, self.layer2, self.layer3 = stages
        self.size_divisor = 16

    def forward(self, x: Tensor) -> list[Tensor]:
        """The three feature maps, finest first.

        Args:
            x: shape (B, 3, H, W), normalised as the weights want it.

        Returns:
            Shapes (B, c_1, H/4, W/4), (B, c_2, H/8, W/8) and (B, c_3, H/16, W/16).
        """
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        f1 = self.layer1(x)
        f2 = self.layer2(f1)
        f3 = self.layer3(f2)
        return [f1, f2, f3]


# Blocks of the first three stages: He et al., Table 1 (18 layers; 50 layers, of which the wide one is a variant).
RESNETS: dict[str, tuple[type[BasicBlock] | type[WideBottleneck], tuple[int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2)),
    "wide_resnet50_2": (WideBottleneck, (3, 4, 6)),
}


def resnet_features(name: str) -> ResNetFeatures:
    """The first three stages of ``"resnet18"`` or ``"wide_resnet50_2"``, with random weights.

    Raises:
        ValueError: for another name.
    """
    if name not in RESNETS:
        raise ValueError(f"ResNets are {', '.join(RESNETS)}, got {name!r}")
    block, blocks = RESNETS[name]
    return ResNetFeatures(block, blocks)
