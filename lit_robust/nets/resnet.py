"""Residual nets for images of about 32 x 32: a 3 x 3 stem, four stages, average pooling."""

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

from torch import nn

from lit_robust.nets.blocks import BasicBlock, Block, Bottleneck, PreActBlock, conv3x3, stages
from lit_robust.nets.builders import recorded
from lit_robust.nets.net import CIFAR10_MEAN, CIFAR10_STD, Net, PerChannel


@recorded
def resnet18(
    num_classes: int = 10,
    in_channels: int = 3,
    width: int = 64,
    mean: PerChannel = CIFAR10_MEAN,
    std: PerChannel = CIFAR10_STD,
    stem_stride: int = 1,
) -> Net:
    """ResNet-18 (He et al., arXiv:1512.03385) in its CIFAR form, as in kuangliu/pytorch-cifar.

    11,173,962 parameters for 10 classes. Weights have torch's default initialisation. NuAT and GAT do not normalise:
    ``mean=None, std=None``. The first stage has ``width`` channels; each later stage doubles them. With
    ``stem_stride=2`` all stages see half of height and width, so that twice the width costs about as much as before.
    """
    return _resnet(BasicBlock, width, 1, (2, 2, 2, 2), num_classes, in_channels, mean, std, stem_stride)


@recorded
def resnet50(
    num_classes: int = 10,
    in_channels: int = 3,
    width: int = 64,
    mean: PerChannel = CIFAR10_MEAN,
    std: PerChannel = CIFAR10_STD,
) -> Net:
    """ResNet-50 (He et al., arXiv:1512.03385) in its CIFAR form, as in kuangliu/pytorch-cifar.

    23,520,842 parameters for 10 classes. Weights have torch's default initialisation. The first stage's blocks have
    ``width`` channels inside and return four times as many; each later stage doubles both.
    """
    return _resnet(Bottleneck, width, 4, (3, 4, 6, 3), num_classes, in_channels, mean, std)


@recorded
def preact_resnet18(
    num_classes: int = 10,
    in_channels: int = 3,
    width: int = 64,
    mean: PerChannel = CIFAR10_MEAN,
    std: PerChannel = CIFAR10_STD,
) -> Net:
    """PreAct ResNet-18 (He et al., arXiv:1603.05027) as in the code of N-FGSM and of FastAT's later version.

    11,172,170 parameters for 10 classes: 1,024 more than kuangliu/pytorch-cifar's net, which has no BatchNorm before
    the pooling; neither have GradAlign's code and RobustBench's FastAT net. A shortcut that changes the shape reads the
    block's input; in He et al. (and RobustBench's net of Rice et al. for CIFAR-100) it reads the activated input.
    Weights have torch's default initialisation. The first stage has ``width`` channels; each later stage doubles them.
    """
    widths = [width, 2 * width, 4 * width, 8 * width]
    body = nn.Sequential(
        OrderedDict(
            stem=conv3x3(in_channels, width),
            **stages(partial(PreActBlock, activate_shortcut=False), width, widths, (2, 2, 2, 2)),
            bn=nn.BatchNorm2d(widths[-1]),
            relu=nn.ReLU(),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
        )
    )
    return Net(body, nn.Linear(widths[-1], num_classes), in_channels=in_channels, mean=mean, std=std)


def _resnet(
    block: Block,
    width: int,
    expansion: int,
    depths: Sequence[int],
    num_classes: int,
    in_channels: int,
    mean: PerChannel,
    std: PerChannel,
    stem_stride: int = 1,
) -> Net:
    widths = [expansion * width * 2**stage for stage in range(4)]
    body = nn.Sequential(
        OrderedDict(
            stem=nn.Sequential(conv3x3(in_channels, width, stem_stride), nn.BatchNorm2d(width), nn.ReLU()),
            **stages(block, width, widths, depths),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
        )
    )
    return Net(body, nn.Linear(widths[-1], num_classes), in_channels=in_channels, mean=mean, std=std)
