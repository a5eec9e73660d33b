"""torchvision's residual nets for large images, untrained."""

from typing import Any

from torch import nn

from lit_robust.nets.builders import recorded
from lit_robust.nets.net import IMAGENET_MEAN, IMAGENET_STD, Net, PerChannel


@recorded
def imagenet_resnet18(num_classes: int = 10, mean: PerChannel = IMAGENET_MEAN, std: PerChannel = IMAGENET_STD) -> Net:
    """ResNet-18 (He et al., arXiv:1512.03385) as torchvision builds and initialises it.

    11,227,812 parameters for 100 classes, 11,689,512 for 1000. GAT and NuAT do not normalise
    ImageNet-100: ``mean=None, std=None``.
    """
    return _split("resnet18", num_classes, mean, std)


@recorded
def imagenet_resnet50(num_classes: int = 10, mean: PerChannel = IMAGENET_MEAN, std: PerChannel = IMAGENET_STD) -> Net:
    """ResNet-50 (He et al., arXiv:1512.03385) as torchvision builds and initialises it.

    23,712,932 parameters for 100 classes, 25,557,032 for 1000.
    """
    return _split("resnet50", num_classes, mean, std)


def _split(name: str, num_classes: int, mean: PerChannel, std: PerChannel) -> Net:
    from torchvision.models import resnet  # it takes as long as torch to import

    body: Any = getattr(resnet, name)(weights=None, num_classes=num_classes)
    head, body.fc = body.fc, nn.Identity()
    return Net(body, head, mean=mean, std=std)
