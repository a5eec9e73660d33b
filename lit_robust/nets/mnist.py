"""The convolutional nets that papers train on MNIST, and one of our own for scikit-learn's digits."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from lit_robust.nets.builders import recorded
from lit_robust.nets.net import Net, PerChannel


@recorded
def small_cnn(
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: int = 28,
    mean: PerChannel = None,
    std: PerChannel = None,
) -> Net:
    """TRADES' SmallCNN (arXiv:1901.08573): 4 convolutions and 2 hidden layers of 200, dropout between them.

    312,202 parameters for MNIST. Convolutions are initialised from He's normal distribution, their biases with 0 and,
    as in the authors' code, the head with 0: until the first update, an attack finds no gradient. Images must be at
    least 16 x 16.
    """
    convs = nn.Sequential(
        *_convs([in_channels, 32, 32], kernel_size=3),
        nn.MaxPool2d(2),
        *_convs([32, 64, 64], kernel_size=3),
        nn.MaxPool2d(2),
    )
    first, second = nn.Linear(_flat_size(convs, in_channels, image_size), 200), nn.Linear(200, 200)
    body = nn.Sequential(convs, nn.Flatten(), first, nn.ReLU(), nn.Dropout(0.5), second, nn.ReLU())
    net = Net(body, nn.Linear(200, num_classes), in_channels=in_channels, mean=mean, std=std)
    for parameter in convs.parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter)
        else:
            nn.init.zeros_(parameter)
    for parameter in net.head.parameters():
        nn.init.zeros_(parameter)
    return net


@recorded
def madry_cnn(
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: int = 28,
    mean: PerChannel = None,
    std: PerChannel = None,
) -> Net:
    """The Madry MNIST challenge's net (arXiv:1706.06083): 2 convolutions and a hidden layer of 1024.

    3,274,634 parameters for MNIST. As in the authors' code, every weight is initialised from N(0, 0.1^2), cut off at
    0.2, and every bias with 0.1; the rest is as in ``lenet_plus``. Images must be at least 4 x 4.
    """
    net = _two_pools([in_channels, 32], [32, 64], 1024, num_classes, image_size, mean, std)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            nn.init.trunc_normal_(parameter, std=0.1, a=-0.2, b=0.2)
        else:
            nn.init.constant_(parameter, 0.1)
    return net


@recorded
def lenet_plus(
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: int = 28,
    mean: PerChannel = None,
    std: PerChannel = None,
) -> Net:
    """R-MGM's LeNet+ (code of arXiv:2002.00614): 2 convolutions and a hidden layer of 1024.

    3,274,634 parameters for MNIST. Weights have torch's default initialisation. Images must be at least 4 x 4.
    """
    return _two_pools([in_channels, 32], [32, 64], 1024, num_classes, image_size, mean, std)


@recorded
def lenet_gat(
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: int = 28,
    mean: PerChannel = None,
    std: PerChannel = None,
) -> Net:
    """GAT's and NuAT's "modified LeNet" (code of arXiv:2011.14969): 4 convolutions and a hidden layer of 512.

    1,791,466 parameters for MNIST. Weights have torch's default initialisation. Images must be at least 4 x 4.
    """
    return _two_pools([in_channels, 32, 32], [32, 64, 64], 512, num_classes, image_size, mean, std)


@recorded
def fast_cnn(
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: int = 28,
    mean: PerChannel = None,
    std: PerChannel = None,
) -> Net:
    """FastAT's MNIST net (code of arXiv:2001.03994): 2 convolutions of stride 2 and a hidden layer of 100.

    166,406 parameters for MNIST. Weights have torch's default initialisation. Images must be at least 4 x 4.
    """
    convs = nn.Sequential(*_convs([in_channels, 16, 32], kernel_size=4, stride=2, padding=1))
    hidden = nn.Linear(_flat_size(convs, in_channels, image_size), 100)
    body = nn.Sequential(convs, nn.Flatten(), hidden, nn.ReLU())
    return Net(body, nn.Linear(100, num_classes), in_channels=in_channels, mean=mean, std=std)


@recorded
def sat_cnn(
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: int = 28,
    mean: PerChannel = None,
    std: PerChannel = None,
) -> Net:
    """P-SAT's BasicModel (code of arXiv:2003.09347): 3 convolutions and no hidden layer.

    729,418 parameters for MNIST. Convolution weights are initialised from He's normal distribution (fan-out), the rest
    has torch's default initialisation. Images must be at least 16 x 16.
    """
    convs = nn.Sequential(
        *_convs([in_channels, 64], kernel_size=8, stride=2, padding=3),
        *_convs([64, 128], kernel_size=6, stride=2, padding=3),
        *_convs([128, 128], kernel_size=5),
    )
    head = nn.Linear(_flat_size(convs, in_channels, image_size), num_classes)
    for parameter in convs.parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter, mode="fan_out", nonlinearity="relu")
    return Net(nn.Sequential(convs, nn.Flatten()), head, in_channels=in_channels, mean=mean, std=std)


@recorded
def digits_cnn(num_classes: int = 10, width: int = 32) -> Net:
    """A net of our own for scikit-learn's digits, 1 x 8 x 8 images: 3 convolutions and no hidden layer.

    65,994 parameters for 10 classes. Weights have torch's default initialisation. The first convolution has ``width``
    channels, the others twice as many.
    """
    convs = nn.Sequential(
        *_convs([1, width], kernel_size=3, padding=1),
        *_convs([width, 2 * width], kernel_size=3, stride=2, padding=1),
        *_convs([2 * width, 2 * width], kernel_size=3, padding=1),
    )
    head = nn.Linear(_flat_size(convs, in_channels=1, image_size=8), num_classes)
    return Net(nn.Sequential(convs, nn.Flatten()), head, in_channels=1)


def _two_pools(
    before: Sequence[int],
    after: Sequence[int],
    hidden: int,
    num_classes: int,
    image_size: int,
    mean: PerChannel,
    std: PerChannel,
) -> Net:
    """5 x 5 convolutions with the channels ``before`` and ``after`` a pooling, a second pooling, a hidden layer."""
    convs = nn.Sequential(
        *_convs(before, kernel_size=5, padding=2),
        nn.MaxPool2d(2),
        *_convs(after, kernel_size=5, padding=2),
        nn.MaxPool2d(2),
    )
    in_channels = before[0]
    body = nn.Sequential(convs, nn.Flatten(), nn.Linear(_flat_size(convs, in_channels, image_size), hidden), nn.ReLU())
    return Net(body, nn.Linear(hidden, num_classes), in_channels=in_channels, mean=mean, std=std)


def _convs(channels: Sequence[int], kernel_size: int, stride: int = 1, padding: int = 0) -> list[nn.Module]:
    """A convolution and a ReLU from each number of channels to the next."""
    layers: list[nn.Module] = []
    for inside, outside in pairwise(channels):
        layers += [nn.Conv2d(inside, outside, kernel_size, stride, padding), nn.ReLU()]
    return layers


def _flat_size(convs: nn.Sequential, in_channels: int, image_size: int) -> int:
    """The number of features of an image after the convolutions and poolings."""
    device = next(convs.parameters()).device
    try:
        with torch.no_grad():
            features = convs(torch.zeros(1, in_channels, image_size, image_size, device=device))
    except RuntimeError as error:
        raise ValueError(f"image_size={image_size} is too small for this net ({error}).") from error
    return int(features.numel())
