"""The backbone of one-stage detectors: strided convolutions, CSP blocks, spatial pyramid pooling. Owns the architecture.

Source: Wang et al. 2020, "CSPNet"; Redmon and Farhadi 2018, "YOLOv3" (Darknet); pyramid pooling by repeated pooling as in YOLOv5.
"""

from typing import cast

import torch
from torch import Tensor, nn

from worker.models.sites import ConvUnit, NormFactory, Placement, initialize

# Bottlenecks of the CSP blocks, in units of `depth`.
_BOTTLENECKS = (1, 2, 3, 1)


class CspBlock(nn.Module):
    """Two paths of half the channels, one through bottlenecks with shortcuts, joined by a 1x1 convolution."""

    def __init__(self, channels: int, num_bottlenecks: int, norm: NormFactory, placement: Placement) -> None:
        super().__init__()
        half = channels // 2
        self.through = conv_unit(channels, half, 1, 1, norm, placement)
        self.past = conv_unit(channels, half, 1, 1, norm, placement)
        self.bottlenecks = nn.ModuleList(
            nn.Sequential(conv_unit(half, half, 1, 1, norm, placement), conv_unit(half, half, 3, 1, norm, placement))
            for _ in range(num_bottlenecks)
        )
        self.join = conv_unit(2 * half, channels, 1, 1, norm, placement)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, channels, H, W) to the same shape."""
        h = self.through(x)
        for bottleneck in self.bottlenecks:
            h = h + bottleneck(h)
        return cast("Tensor", self.join(torch.cat([h, self.past(x)], 1)))


class PyramidPool(nn.Module):
    """The maxima over windows of 5, 9 and 13 pixels beside the input, by three poolings of 5 one after the other."""

    def __init__(self, channels: int, norm: NormFactory, placement: Placement) -> None:
        super().__init__()
        half = channels // 2
        self.reduce = conv_unit(channels, half, 1, 1, norm, placement)
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.join = conv_unit(4 * half, channels, 1, 1, norm, placement)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, channels, H, W) to the same shape."""
        levels = [self.reduce(x)]
        for _ in range(3):
            levels.append(self.pool(levels[-1]))
        return cast("Tensor", self.join(torch.cat(levels, 1)))


class CspDarknet(nn.Module):
    """Stem and four stages, each of half the size and twice the width of the one before; `features` are for a detector's neck.

    Args:
        in_channels: of the images.
        num_classes: length of the output.
        width: channels of the stem, an even number or one that doubles to it; the stages have 2, 4, 8 and 16 times as many.
        depth: bottlenecks of the first CSP block.
        norm: builds the norm for a number of channels.
        placement: whether norms come before or after activations.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        norm: NormFactory,
        width: int = 16,
        depth: int = 1,
        placement: Placement = "before_activation",
    ) -> None:
        super().__init__()
        self.stem = conv_unit(in_channels, width, 3, 2, norm, placement)
        stages = []
        for stage, factor in enumerate(_BOTTLENECKS):
            channels = width << (stage + 1)
            layers = [conv_unit(channels // 2, channels, 3, 2, norm, placement), CspBlock(channels, factor * depth, norm, placement)]
            if stage == len(_BOTTLENECKS) - 1:
                layers.append(PyramidPool(channels, norm, placement))
            stages.append(nn.Sequential(*layers))
        self.stages = nn.ModuleList(stages)
        self.fc = nn.Linear(width << len(_BOTTLENECKS), num_classes)
        initialize(self)

    def features(self, x: Tensor) -> list[Tensor]:
        """Map images (n, C, H, W) to the maps of the last three stages, of strides 8, 16 and 32."""
        maps = []
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps[1:]

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, C, H, W) to logits (n, num_classes); n may be 0."""
        return cast("Tensor", self.fc(self.features(x)[-1].mean((2, 3))))


def conv_unit(  # noqa: PLR0917  those of a convolution first, then those of a norm site
    before: int, after: int, size: int, stride: int, norm: NormFactory, placement: Placement
) -> ConvUnit:
    """Return a convolution that keeps the size, or divides it by the stride, with norm and SiLU."""
    return ConvUnit(nn.Conv2d(before, after, size, stride, size // 2, bias=False), norm(after), nn.SiLU(inplace=True), placement)
