"""What builds the normalization of a model: what every architecture here shares. Owns no kind of norm."""

from collections.abc import Callable
from typing import Literal, cast

from torch import Tensor, nn

NormFactory = Callable[[int], nn.Module]
"""From a number of channels to a norm."""

Placement = Literal["before_activation", "after_activation"]
"""norm then activation, or activation then norm."""


class ConvUnit(nn.Module):
    """A convolution without bias, its norm, and an activation or none; the norm before or after the activation."""

    def __init__(self, conv: nn.Module, norm: nn.Module, activation: nn.Module | None, placement: Placement = "before_activation") -> None:
        super().__init__()
        self.conv, self.norm, self.placement = conv, norm, placement
        self.activation = activation or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, in_channels, *spatial) to (n, channels, *spatial of the convolution)."""
        x = self.conv(x)
        if self.placement == "before_activation":
            return cast("Tensor", self.activation(self.norm(x)))
        return cast("Tensor", self.norm(self.activation(x)))


def initialize(model: nn.Module) -> None:
    """Draw convolutions by He's rule, fan-out, as torchvision does; everything else keeps PyTorch's own initialization."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
