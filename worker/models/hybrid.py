"""A hybrid of convolutions and attention with a norm after every linear map, as BatchNorm needs it. Owns the architecture.

Source: Graham et al. 2021, "LeViT", whose attention and MLP have BatchNorm where transformers have LayerNorm, so that it folds away at
inference. Deviations: positions come from depthwise convolutions (Chu et al. 2021, "Conditional Positional Encodings"), so that images may
have any size; strided convolutions between the stages.
"""

from typing import cast

import torch
from torch import Tensor, nn

from worker.models.sites import ConvUnit, NormFactory, Placement, initialize

EXPANSION = 2


class Residual(nn.Module):
    """x + body(x)."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, channels, H, W) to the same shape."""
        return cast("Tensor", x + self.body(x))


class Attention(nn.Module):
    """Multi-head self-attention over all positions; queries, keys, values and the result are 1x1 convolutions with a norm."""

    def __init__(self, channels: int, heads: int, norm: NormFactory) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = ConvUnit(nn.Conv2d(channels, 3 * channels, 1, bias=False), norm(3 * channels), None)
        self.activation = nn.Hardswish()
        self.out = ConvUnit(nn.Conv2d(channels, channels, 1, bias=False), norm(channels), None)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, channels, H, W) to the same shape."""
        num_samples, channels, height, width = x.shape
        per_head = (num_samples, self.heads, channels // self.heads, height * width)
        q, k, v = (part.reshape(per_head).transpose(2, 3) for part in self.qkv(x).chunk(3, 1))
        # Written out: fused attention gives no double precision on some devices, and other bits for other batch sizes.
        weights = (q @ k.transpose(2, 3) * per_head[2] ** -0.5).softmax(3)
        mixed = (weights @ v).transpose(2, 3).reshape(x.shape)
        return cast("Tensor", self.out(self.activation(mixed)))


class Hybrid(nn.Module):
    """A stem of two strided convolutions, a stage of depthwise convolutions, a stage of attention, and a linear classifier.

    Args:
        in_channels: of the images.
        num_classes: length of the output.
        width: channels of the stem; the stages have 2 and 4 times as many.
        blocks: per stage.
        heads: of the attention; must divide 4 width.
        norm: builds the norm for a number of channels.
        placement: whether norms come before or after activations, where there is one.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        norm: NormFactory,
        width: int = 32,
        blocks: int = 2,
        heads: int = 4,
        placement: Placement = "before_activation",
    ) -> None:
        super().__init__()

        def unit(before: int, after: int, size: int, stride: int = 1, *, depthwise: bool = False, is_linear: bool = False) -> ConvUnit:
            conv = nn.Conv2d(before, after, size, stride, size // 2, groups=before if depthwise else 1, bias=False)
            return ConvUnit(conv, norm(after), None if is_linear else nn.Hardswish(), placement)

        def mlp(channels: int) -> nn.Module:
            wide = EXPANSION * channels
            return Residual(nn.Sequential(unit(channels, wide, 1), unit(wide, channels, 1, is_linear=True)))

        def local(channels: int) -> nn.Module:
            return Residual(unit(channels, channels, 3, depthwise=True, is_linear=True))

        middle, last = 2 * width, 4 * width
        self.stem = nn.Sequential(unit(in_channels, width, 3, 2), unit(width, middle, 3, 2))
        self.convolutions = nn.Sequential(*(nn.Sequential(local(middle), mlp(middle)) for _ in range(blocks)))
        self.down = unit(middle, last, 3, 2)
        self.attention = nn.Sequential(
            *(nn.Sequential(local(last), Residual(Attention(last, heads, norm)), mlp(last)) for _ in range(blocks))
        )
        self.fc = nn.Linear(last, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, C, H, W) to logits (n, num_classes); n may be 0."""
        x = self.attention(self.down(self.convolutions(self.stem(x))))
        return cast("Tensor", self.fc(torch.mean(x, (2, 3))))
