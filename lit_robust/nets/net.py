"""The structure of the nets here: normalisation, a body and, nearly always, a linear head."""

from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lit_robust import require
from lit_robust.nets.activations import stages_of, watching

#: One number per channel, or None for no normalisation.
PerChannel: TypeAlias = tuple[float, ...] | None

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class NormalizedNet(nn.Module):
    """Logits ``body((x - mean) / std)`` of images in [0, 1].

    Normalisation is part of the net, so that every eps is in units of pixels. ``mean`` and ``std`` are saved with the
    weights, so weights are never used with a normalisation that they were not trained with.

    Args:
        body: Turns normalised images into logits.
        in_channels: The images' channels.
        mean: Subtracted from each channel, in units of [0, 1]; None (for both) leaves the pixels as they are.
        std: What each channel is divided by.

    Shape:
        x: ``(N, in_channels, H, W)`` in [0, 1];  logits: ``(N, num_classes)``.

    Raises:
        TypeError: If ``body`` is not a module.
        ValueError: If only one of ``mean`` and ``std`` is given, either has not one value per channel, or a
            value of ``std`` is not above 0.
    """

    mean: Tensor | None
    std: Tensor | None
    #: The names of the layers whose outputs are ``activations``; empty if they are not known.
    stages: tuple[str, ...]
    #: How to build the net again: ``class_path`` and ``init_args``; None for nets of the user's own.
    built_by: dict[str, Any] | None = None

    def __init__(
        self, body: nn.Module, *, in_channels: int = 3, mean: PerChannel = None, std: PerChannel = None
    ) -> None:
        super().__init__()
        self.body = require.instance(
            "body", body, nn.Module, "give what turns images into rows, such as an nn.Sequential"
        )
        require.integer("in_channels", in_channels, least=1)
        self.stages = stages_of(body, "body")
        require.statistics(mean, std, (in_channels,), f"in_channels={in_channels}")
        self.register_buffer("mean", _column(mean))
        self.register_buffer("std", _column(std))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(N, num_classes)``."""
        logits: Tensor = self.body(self.normalize(x))
        return logits

    def normalize(self, x: Tensor) -> Tensor:
        """Return ``(x - mean) / std``, or ``x`` where the net has neither.

        Raises:
            ValueError: If the images have another number of channels, which would be repeated silently.
        """
        if self.mean is None or self.std is None:
            return x
        if x.shape[1] != self.mean.shape[1]:
            raise ValueError(f"the net is built for {self.mean.shape[1]} channels and the images have {x.shape[1]}.")
        return (x - self.mean) / self.std

    def activations(self, x: Tensor) -> list[Tensor]:
        """Return what leaves the net's ``stages``, ``(N, C, H, W)`` each; empty if it has none."""
        with watching(self, self.stages) as found:
            self(x)
        return found


class Net(NormalizedNet):
    """Logits ``head(body((x - mean) / std))`` of images in [0, 1].

    Args:
        body: Turns normalised images into one row of features each.
        head: Turns features into logits; its ``out_features`` is the number of classes.
        in_channels: The images' channels.
        mean: Subtracted from each channel, in units of [0, 1]; None (for both) leaves the pixels as they are.
        std: What each channel is divided by.

    Shape:
        x: ``(N, in_channels, H, W)`` in [0, 1];  logits: ``(N, head.out_features)``.

    Raises:
        TypeError: As ``NormalizedNet``, or if ``head`` is not a module.
        ValueError: As ``NormalizedNet``.
    """

    def __init__(
        self,
        body: nn.Module,
        head: nn.Linear,
        *,
        in_channels: int = 3,
        mean: PerChannel = None,
        std: PerChannel = None,
    ) -> None:
        super().__init__(body, in_channels=in_channels, mean=mean, std=std)
        require.instance("head", head, nn.Module, "give nn.Linear(features, classes)")
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(N, head.out_features)``."""
        logits: Tensor = self.head(self.features(x))
        return logits

    def features(self, x: Tensor) -> Tensor:
        """Return what ``head`` reads, ``(N, head.in_features)``."""
        features: Tensor = self.body(self.normalize(x))
        return features


def _column(values: PerChannel) -> Tensor | None:
    if values is None:
        return None
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
