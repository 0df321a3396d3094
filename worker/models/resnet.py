"""ResNet-18 for images of any size, with a choice of stem, width, norm, and the norm's place.

Parameter names are those of torchvision's `resnet18`. Owns the architecture; the norms come from outside.
Source: He et al. 2016, "Deep Residual Learning for Image Recognition".
"""

from collections.abc import Callable
from typing import Literal, cast

from torch import Tensor, nn

NormFactory = Callable[[int], nn.Module]
Placement = Literal["before_activation", "after_activation"]

BLOCKS_PER_STAGE = (2, 2, 2, 2)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut.

    before_activation:  relu(norm(conv(relu(norm(conv(x))))) + shortcut(x)), the original
    after_activation:   norm(relu(conv(norm(relu(conv(x)))))) + shortcut(x); each norm but the shortcut's sees activations
    """

    def __init__(self, in_channels: int, channels: int, stride: int, norm: NormFactory, placement: Placement) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = norm(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = norm(channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), norm(channels))
        self.placement = placement

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, in_channels, H, W) to (n, channels, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        if self.placement == "before_activation":
            h = self.relu(self.bn1(self.conv1(x)))
            return cast("Tensor", self.relu(self.bn2(self.conv2(h)) + shortcut))
        h = self.bn1(self.relu(self.conv1(x)))
        return cast("Tensor", self.bn2(self.relu(self.conv2(h))) + shortcut)


class ResNet18(nn.Module):
    """ResNet of eight basic blocks in four stages, each stage twice as wide as the one before.

    Args:
        in_channels: of the images.
        num_classes: length of the output.
        width: channels of the first stage; torchvision has 64.
        stem: small, one 3x3 convolution for small images; imagenet, 7x7 with stride 2 and max pooling.
        norm: builds the norm for a number of channels.
        placement: whether norms come before or after activations.
    """

    def __init__(
        self,
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
        channels = width
        for stage, num_blocks in enumerate(BLOCKS_PER_STAGE):
            blocks = []
            for block in range(num_blocks):
                blocks.append(BasicBlock(channels, width << stage, 2 if stage and not block else 1, norm, placement))
                channels = width << stage
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        self.placement = placement
        _initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, C, H, W) to logits (n, num_classes); n may be 0."""
        x = self.conv1(x)
        x = self.relu(self.bn1(x)) if self.placement == "before_activation" else self.bn1(self.relu(x))
        x = self.maxpool(x)
        x = self.get_submodule("layer2")(self.get_submodule("layer1")(x))
        x = self.get_submodule("layer4")(self.get_submodule("layer3")(x))
        return cast("Tensor", self.fc(self.avgpool(x).flatten(1)))


def _initialize(model: nn.Module) -> None:
    """Draw convolutions as torchvision does; norms and the linear layer keep PyTorch's own initialization."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
