"""U-Net for images and volumes of any size. Owns the architecture; the norms come from outside.

Source: Ronneberger et al. 2015, "U-Net"; Cicek et al. 2016, "3D U-Net". Deviations: padded convolutions, so that the result has the size of
the input; upsampling by interpolation to the very size of the skip connection, so that any size will do; norms after every convolution.
"""

from typing import cast

import torch
from torch import Tensor, nn

from worker.models.sites import ConvUnit, NormFactory, Placement, initialize

_CONV: dict[int, type[nn.Conv2d | nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
_POOL: dict[int, type[nn.MaxPool2d | nn.MaxPool3d]] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}


class UNet(nn.Module):
    """Encoder and decoder of `depth` levels below full resolution, joined level by level; each level halves the size and doubles the width.

    Args:
        dimensions: 2 for images (C, H, W), 3 for volumes (C, D, H, W).
        in_channels: of the images.
        num_classes: channels of the output.
        width: channels at full resolution.
        depth: levels below it. Sides shorter than 2^depth stop halving at 1.
        norm: builds the norm for a number of channels.
        placement: whether norms come before or after activations.
    """

    def __init__(
        self,
        dimensions: int,
        in_channels: int,
        num_classes: int,
        *,
        norm: NormFactory,
        width: int = 32,
        depth: int = 4,
        placement: Placement = "before_activation",
    ) -> None:
        super().__init__()
        conv = _CONV[dimensions]

        def double(channels_before: int, channels: int) -> nn.Module:
            return nn.Sequential(
                ConvUnit(conv(channels_before, channels, 3, padding=1, bias=False), norm(channels), nn.ReLU(inplace=True), placement),
                ConvUnit(conv(channels, channels, 3, padding=1, bias=False), norm(channels), nn.ReLU(inplace=True), placement),
            )

        widths = [width << level for level in range(depth + 1)]
        # A side of an odd length is halved upwards, so that none vanishes.
        self.pool = _POOL[dimensions](2, ceil_mode=True)
        self.encoder = nn.ModuleList(double(before, after) for before, after in zip([in_channels, *widths], widths, strict=False))
        self.decoder = nn.ModuleList(double(wide + narrow, narrow) for wide, narrow in zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.head = conv(width, num_classes, 1)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, C, *spatial) to logits (n, num_classes, *spatial); n may be 0."""
        skips = []
        for level, block in enumerate(self.encoder):
            x = block(self.pool(x) if level else x)
            skips.append(x)
        for block, skip in zip(self.decoder, reversed(skips[:-1]), strict=True):
            # Nearest, because it is exact and the convolutions after it smooth.
            x = nn.functional.interpolate(x, skip.shape[2:], mode="nearest")
            x = block(torch.cat([skip, x], 1))
        return cast("Tensor", self.head(x))
