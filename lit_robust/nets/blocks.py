"""Residual blocks, and how they are stacked."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from lit_robust.nets.narrow import ENOUGH_CHANNELS, SubsamplingConv2d

#: Makes a module from its input channels, its output channels and its stride.
Block = Callable[[int, int, int], nn.Module]


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """Make a 3 x 3 convolution that keeps the size at stride 1, without a bias, because BatchNorm has one."""
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """Make a 1 x 1 convolution without a bias."""
    narrow = stride > 1 and in_channels < ENOUGH_CHANNELS
    return (SubsamplingConv2d if narrow else nn.Conv2d)(in_channels, out_channels, 1, stride, bias=False)


def stages(block: Block, in_channels: int, widths: Sequence[int], depths: Sequence[int]) -> dict[str, nn.Module]:
    """Stack blocks into ``stage1``, ``stage2``, ...; each but the first halves height and width.

    Args:
        block: Makes one block.
        in_channels: The channels that enter the first stage.
        widths: The channels that leave each stage.
        depths: The number of blocks of each stage.
    """
    made: dict[str, nn.Module] = {}
    for number, (width, depth) in enumerate(zip(widths, depths, strict=True), start=1):
        first = block(in_channels, width, 1 if number == 1 else 2)
        made[f"stage{number}"] = nn.Sequential(first, *(block(width, width, 1) for _ in range(depth - 1)))
        in_channels = width
    return made


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions (He et al., arXiv:1512.03385, fig. 5 left)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = _normalized_shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation after the sum."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions (He et al., arXiv:1512.03385, fig. 5 right), narrow inside.

    The 3 x 3 convolution has the stride, as in torchvision and most later code.

    Args:
        in_channels: The channels of the input.
        out_channels: The channels of the output; the inner layers have a quarter as many.
        stride: The stride of the 3 x 3 convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        channels = out_channels // 4
        self.conv1 = conv1x1(in_channels, channels)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = conv1x1(channels, out_channels)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = _normalized_shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation after the sum."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


def _normalized_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))


class PreActBlock(nn.Module):
    """BatchNorm and activation before each of two 3 x 3 convolutions (He et al., arXiv:1603.05027, fig. 4e).

    Published nets differ in the shortcut of a block that changes the shape; all others add ``x`` itself.

    Args:
        in_channels: The channels of the input.
        out_channels: The channels of the output.
        stride: The stride of the first convolution.
        shortcut: Makes the shortcut of a block that changes the shape.
        activate_shortcut: Whether that shortcut reads the activated input (as in He et al.), or ``x`` itself.
        activation: Applied after each BatchNorm.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        *,
        shortcut: Block = conv1x1,
        activate_shortcut: bool,
        activation: Callable[[Tensor], Tensor] = F.relu,
    ) -> None:
        super().__init__()
        reshapes = stride != 1 or in_channels != out_channels
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.shortcut = shortcut(in_channels, out_channels, stride) if reshapes else nn.Identity()
        self.activate_shortcut = activate_shortcut and reshapes
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Leave the sum as it is: the next block, or the end of the net, applies BatchNorm and activation."""
        activated = self.activation(self.bn1(x))
        out = self.conv2(self.activation(self.bn2(self.conv1(activated))))
        summed: Tensor = out + self.shortcut(activated if self.activate_shortcut else x)
        return summed
