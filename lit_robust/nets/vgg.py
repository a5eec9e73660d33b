"""VGG for images of about 32 x 32."""

from itertools import pairwise

from torch import nn

from lit_robust.nets.builders import recorded
from lit_robust.nets.net import CIFAR10_MEAN, CIFAR10_STD, Net, PerChannel

#: The convolutions of each stage.
DEPTHS = (2, 2, 3, 3, 3)


@recorded
def vgg16(
    num_classes: int = 10,
    in_channels: int = 3,
    width: int = 64,
    mean: PerChannel = CIFAR10_MEAN,
    std: PerChannel = CIFAR10_STD,
) -> Net:
    """VGG-16 (Simonyan and Zisserman, arXiv:1409.1556) with BatchNorm, as in kuangliu/pytorch-cifar.

    14,728,266 parameters for 10 classes, with a single linear layer. Weights have torch's default initialisation.
    Images must be at least 32 x 32; the features of larger ones are averaged after the last pooling. The first stage
    has ``width`` channels; the next four have 2, 4, 8 and 8 times as many.
    """
    widths = [in_channels, width, 2 * width, 4 * width, 8 * width, 8 * width]
    groups = (_group(before, after, depth) for (before, after), depth in zip(pairwise(widths), DEPTHS, strict=True))
    body = nn.Sequential(*groups, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = Net(body, nn.Linear(widths[-1], num_classes), in_channels=in_channels, mean=mean, std=std)
    net.stages = tuple(f"body.{i}.{3 * depth - 1}" for i, depth in enumerate(DEPTHS))  # the last ReLU before a pooling
    return net


def _group(in_channels: int, channels: int, depth: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Conv2d(in_channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
        in_channels = channels
    return nn.Sequential(*layers, nn.MaxPool2d(2))
