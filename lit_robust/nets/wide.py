"""Wide residual nets (Zagoruyko and Komodakis, arXiv:1605.07146) for images of about 32 x 32."""

from collections import OrderedDict
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_robust.nets.blocks import Block, PreActBlock, conv3x3, stages
from lit_robust.nets.builders import recorded
from lit_robust.nets.net import CIFAR10_MEAN, CIFAR10_STD, Net, PerChannel


@recorded
def wide_resnet28_10(
    num_classes: int = 10,
    in_channels: int = 3,
    width: int = 160,
    mean: PerChannel = CIFAR10_MEAN,
    std: PerChannel = CIFAR10_STD,
) -> Net:
    """WRN-28-10 as in the code of TRADES and RobustBench: 4 blocks per stage, no dropout.

    36,479,194 parameters for 10 classes. Convolutions are initialised from N(0, 2 / (k * k * out_channels)), the head's
    bias with 0. The first stage has ``width`` channels, 16 times the widening factor; each later stage doubles them.
    """
    body = _body(partial(PreActBlock, activate_shortcut=True), 4, width, in_channels, nn.ReLU())
    return _initialized(Net(body, nn.Linear(4 * width, num_classes), in_channels=in_channels, mean=mean, std=std))


@recorded
def wide_resnet34_10(
    num_classes: int = 10,
    in_channels: int = 3,
    width: int = 160,
    mean: PerChannel = CIFAR10_MEAN,
    std: PerChannel = CIFAR10_STD,
) -> Net:
    """WRN-34-10 as in the code of TRADES and RobustBench: 5 blocks per stage, no dropout.

    46,160,474 parameters for 10 classes. TRADES' own file has 2,102,112 more, in a stage that is never used. NuAT's net
    of this name differs: its convolutions have biases, a block's second convolution has the stride, shortcuts read the
    block's input, and the last BatchNorm has momentum 0.9. ``width`` and initialisation are as in ``wide_resnet28_10``.
    """
    body = _body(partial(PreActBlock, activate_shortcut=True), 5, width, in_channels, nn.ReLU())
    return _initialized(Net(body, nn.Linear(4 * width, num_classes), in_channels=in_channels, mean=mean, std=std))


@recorded
def wide_resnet32_10(num_classes: int = 10, in_channels: int = 3, width: int = 160) -> Net:
    """WRN-32-10: the Madry CIFAR challenge's net (arXiv:1706.06083), also that of FreeAT (arXiv:1904.12843).

    45,901,914 parameters for 10 classes. With 5 blocks per stage it is as deep as WRN-34-10: 32 counts the blocks' 30
    convolutions, the stem and the head; 34 counts the 30, the stem and 3 convolutional shortcuts. Here shortcuts pool
    and add zero channels, ReLUs are leaky with slope 0.1, BatchNorm has eps 1e-3, and each image is standardised
    separately, so there are no ``mean`` and ``std``. Friendly AT's PyTorch net of this name has none of that and equals
    ``wide_resnet34_10``. Convolutions and biases are initialised as there, the head as in the authors' code. The first
    stage has ``width`` channels, at least 16; each later stage doubles them.

    Differences from the authors' code: convolutions of stride 2 pad both sides of an image, where TensorFlow
    pads one.
    """
    if width < 16:
        raise ValueError(f"width={width} is less than the stem's 16 channels, which shortcuts can only add to.")
    body = nn.Sequential(Standardize(), _body(_madry_block, 5, width, in_channels, nn.LeakyReLU(0.1)))
    net = _initialized(Net(body, nn.Linear(4 * width, num_classes), in_channels=in_channels))
    bound = (3 / net.head.in_features) ** 0.5
    nn.init.uniform_(net.head.weight, -bound, bound)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = 1e-3
    return net


class Standardize(nn.Module):
    """Each image minus its mean, over its standard deviation (TensorFlow's ``per_image_standardization``)."""

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape; the deviation counts as at least one grey level over sqrt(C * H * W)."""
        std, mean = torch.std_mean(x, dim=(1, 2, 3), correction=0, keepdim=True)
        return (x - mean) / std.clamp_min(1 / (255 * x[0].numel() ** 0.5))


class PaddedShortcut(nn.Module):
    """Average pooling, then zero channels, half of them before and half after the input's."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        before = (out_channels - in_channels) // 2
        self.channels = (before, out_channels - in_channels - before)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, out_channels, H // stride, W // stride)``."""
        return F.pad(F.avg_pool2d(x, self.stride), (0, 0, 0, 0, *self.channels))


def _madry_block(in_channels: int, out_channels: int, stride: int) -> PreActBlock:
    return PreActBlock(
        in_channels,
        out_channels,
        stride,
        shortcut=PaddedShortcut,
        activate_shortcut=stride == 1,  # that is in the first stage
        activation=nn.LeakyReLU(0.1),
    )


def _body(block: Block, depth: int, width: int, in_channels: int, activation: nn.Module) -> nn.Sequential:
    widths = [width, 2 * width, 4 * width]
    return nn.Sequential(
        OrderedDict(
            stem=conv3x3(in_channels, 16),
            **stages(block, 16, widths, [depth] * 3),
            bn=nn.BatchNorm2d(widths[-1]),
            activation=activation,
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
        )
    )


def _initialized(net: Net) -> Net:
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(net.head.bias)
    return net
