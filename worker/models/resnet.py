"""ResNet-18, -34 and -50 for images of any size, with a choice of stem, width, norm, and the norm's place.

Parameter names are those of torchvision. Owns the architecture; the norms come from outside.
Source: He et al. 2016, "Deep Residual Learning for Image Recognition"; in the bottleneck, the stride is that of the 3x3 convolution, as in
torchvision.
"""

from functools import partial
from typing import Literal, cast

from torch import Tensor, nn

from worker.models.sites import NormFactory, Placement, initialize

BLOCKS_PER_STAGE = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut.

    before_activation:  relu(norm(conv(relu(norm(conv(x))))) + shortcut(x)), the original
    after_activation:   norm(relu(conv(norm(relu(conv(x)))))) + shortcut(x); each norm but the shortcut's sees activations
    """

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, norm: NormFactory, placement: Placement) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = norm(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = norm(channels)
        self.downsample = _shortcut(in_channels, channels, stride, norm)
        self.placement = placement

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, in_channels, H, W) to (n, channels, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        if self.placement == "before_activation":
            h = self.relu(self.bn1(self.conv1(x)))
            return cast("Tensor", self.relu(self.bn2(self.conv2(h)) + shortcut))
        h = self.bn1(self.relu(self.conv1(x)))
        return cast("Tensor", self.bn2(self.relu(self.conv2(h))) + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, the last four times as wide, and a shortcut; norms placed as in `BasicBlock`."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, norm: NormFactory, placement: Placement) -> None:
        super().__init__()
        wide = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = norm(channels)
        self.conv3 = nn.Conv2d(channels, wide, 1, bias=False)
        self.bn3 = norm(wide)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, wide, stride, norm)
        self.placement = placement

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, in_channels, H, W) to (n, 4 channels, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        if self.placement == "before_activation":
            h = self.relu(self.bn1(self.conv1(x)))
            h = self.relu(self.bn2(self.conv2(h)))
            return cast("Tensor", self.relu(self.bn3(self.conv3(h)) + shortcut))
        h = self.bn1(self.relu(self.conv1(x)))
        h = self.bn2(self.relu(self.conv2(h)))
        return cast("Tensor", self.bn3(self.relu(self.conv3(h))) + shortcut)


class ResNet(nn.Module):
    """ResNet of four stages, each twice as wide as the one before.

    Args:
        depth: 18 or 34, of basic blocks, or 50, of bottlenecks.
        in_channels: of the images.
        num_classes: length of the output.
        width: channels of the first stage; torchvision has 64.
        stem: small, one 3x3 convolution for small images; imagenet, 7x7 with stride 2 and max pooling.
        norm: builds the norm for a number of channels.
        placement: whether norms come before or after activations.
    """

    def __init__(
        self,
        depth: Literal[18, 34, 50],
        in_channels: int,
        num_classes: int,
        *,
        norm: NormFactory,
        width: int = 64,
        stem: Literal["small", "imagenet"] = "small",
        placement: Placement = "before_activation",
    ) -> None:
        super().__init__()
        self.conv1 = (
            nn.Conv2d(in_channels, width, 3, 1, 1, bias=False) if stem == "small" else nn.Conv2d(in_channels, width, 7, 2, 3, bias=False)
        )
        self.bn1 = norm(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if stem == "small" else nn.MaxPool2d(3, 2, 1)
        block = Bottleneck if depth == 50 else BasicBlock
        channels = width
        for stage, num_blocks in enumerate(BLOCKS_PER_STAGE[depth]):
            blocks = []
            for number in range(num_blocks):
                blocks.append(block(channels, width << stage, 2 if stage and not number else 1, norm, placement))
                channels = (width << stage) * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        self.placement = placement
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, C, H, W) to logits (n, num_classes); n may be 0."""
        x = self.conv1(x)
        x = self.relu(self.bn1(x)) if self.placement == "before_activation" else self.bn1(self.relu(x))
        x = self.maxpool(x)
        x = self.get_submodule("layer2")(self.get_submodule("layer1")(x))
        x = self.get_submodule("layer4")(self.get_submodule("layer3")(x))
        return cast("Tensor", self.fc(self.avgpool(x).flatten(1)))


def _shortcut(in_channels: int, channels: int, stride: int, norm: NormFactory) -> nn.Module | None:
    """Return what fits the shortcut to the block's result, None where it fits."""
    if stride == 1 and in_channels == channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), norm(channels))


ResNet18 = partial(ResNet, 18)
