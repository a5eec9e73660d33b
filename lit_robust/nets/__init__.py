"""Nets for images in [0, 1], which they normalise themselves, built by functions that a configuration can name."""

from lit_robust.keywords import answer_keywords
from lit_robust.nets.imagenet import imagenet_resnet18, imagenet_resnet50
from lit_robust.nets.mnist import digits_cnn, fast_cnn, lenet_gat, lenet_plus, madry_cnn, sat_cnn, small_cnn
from lit_robust.nets.model_zoos import timm_net, torchvision_net
from lit_robust.nets.net import Net
from lit_robust.nets.resnet import preact_resnet18, resnet18, resnet50
from lit_robust.nets.vgg import vgg16
from lit_robust.nets.wide import wide_resnet28_10, wide_resnet32_10, wide_resnet34_10

__all__ = [
    "Net",
    "digits_cnn",
    "fast_cnn",
    "imagenet_resnet18",
    "imagenet_resnet50",
    "lenet_gat",
    "lenet_plus",
    "madry_cnn",
    "preact_resnet18",
    "resnet18",
    "resnet50",
    "sat_cnn",
    "small_cnn",
    "timm_net",
    "torchvision_net",
    "vgg16",
    "wide_resnet28_10",
    "wide_resnet32_10",
    "wide_resnet34_10",
]

answer_keywords([globals()[name] for name in __all__])
