"""The perceptual distance LPIPS in the form of perceptual adversarial training, over the activations of a net."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lit_robust.nets.activations import watching
from lit_robust.nets.folded import unfolded
from lit_robust.nets.model_zoos import torchvision_net

#: The net whose activations are compared: the attacked one, torchvision's AlexNet, or another one.
LPIPSNet = Literal["self", "alexnet"] | nn.Module


class LogitsAndFeatures(NamedTuple):
    """Functions that compute logits and features; ``both`` is one forward if a net with stages attacks itself."""

    #: Logits ``(N, C)`` and features ``(N, D)``.
    both: Callable[[Tensor], tuple[Tensor, Tensor]]
    #: Features ``(N, D)``.
    features: Callable[[Tensor], Tensor]


def flat_features(activations: Sequence[Tensor]) -> Tensor:
    """The vector phi of each image, whose Euclidean distances are LPIPS.

        phi(x) = concat_l  a_l(x) / ( |a_l(x)|_2 sqrt(H_l W_l) ),      |.|_2 over the channels of each pixel

    As in perceptual adversarial training (Laidlaw et al., ICLR 2021, arXiv:2006.12655, and ``distances.py`` of its
    code): no learned weights for channels, and the distance is the square root of the sum that Zhang et al.
    (arXiv:1801.03924) use. Computed in float32. The gradient at a pixel without any activation is 0; theirs is NaN.

    Shape:
        activations: ``(N, C_l, H_l, W_l)`` each;  result: ``(N, D)`` float32.
    """
    parts = []
    for layer in activations:
        layer = layer.float()
        length = torch.linalg.vector_norm(layer, dim=1, keepdim=True) + 1e-10
        parts.append((layer / (length * (layer.shape[2] * layer.shape[3]) ** 0.5)).flatten(1))
    return torch.cat(parts, dim=1)


def lpips(net: nn.Module, x: Tensor, other: Tensor) -> Tensor:
    """The LPIPS distance of pairs of images, ``(N,)``: at most 2 sqrt(L) for L activations, sqrt(2 L) after ReLUs.

    Args:
        net: Has ``stages`` or ``activations``, see ``watched``; its mode is the caller's.
        x: Images ``(N, C, H, W)`` in [0, 1].
        other: Images of the same shape.

    Raises:
        ValueError: If the net's activations are not known.
    """
    with watched(net, net) as (_, features):
        return distance(features(x), features(other))


def distance(features: Tensor, others: Tensor) -> Tensor:
    """The Euclidean distance of rows, ``(N,)``; its gradient at 0 is 0."""
    rows: Tensor = torch.linalg.vector_norm(features - others, dim=1)
    return rows


@contextmanager
def watched(net: nn.Module, lpips_net: LPIPSNet) -> Iterator[LogitsAndFeatures]:
    """Yield functions for logits and features.

    Activations come from ``stages``, the names of layers whose outputs are compared, as in all nets of
    ``lit_robust.nets``, also inside a wrapper; then one forward gives logits and activations. Or they come from a
    method ``activations(x)``, which returns a list of ``(N, C, H, W)`` and costs a second forward. A compiled net runs
    uncompiled here, because a graph compiled earlier would not give its activations.

    Args:
        net: The attacked net.
        lpips_net: See ``LPIPSNet``.

    Raises:
        OSError: If AlexNet's weights cannot be had.
        ValueError: If the activations are not known.
    """
    with torch.compiler.set_stance("force_eager"), _watched(_net_for(lpips_net, net)) as own:
        yield (
            own
            if lpips_net == "self" or lpips_net is net
            else LogitsAndFeatures(lambda x: (net(x), own.features(x)), own.features)
        )


def _net_for(lpips_net: LPIPSNet, attacked: nn.Module) -> nn.Module:
    if lpips_net == "alexnet":
        return alexnet(next((parameter.device for parameter in attacked.parameters()), torch.device("cpu")))
    return attacked if isinstance(lpips_net, str) else lpips_net


@contextmanager
def _watched(net: nn.Module) -> Iterator[LogitsAndFeatures]:
    """The functions of a net that measures its own distances."""
    holders: list[Any] = [part for part in net.modules() if getattr(part, "stages", ())]
    # Folding leaves the outputs of stages as they are, but a method may read any layer.
    activations: Any = None if hasattr(net, "stages") else getattr(unfolded(net), "activations", None)
    if activations is not None:

        def features(x: Tensor) -> Tensor:
            return flat_features(activations(x))

        yield LogitsAndFeatures(lambda x: (net(x), features(x)), features)
    elif len(holders) == 1 or (holders and holders[0] is net):
        with watching(holders[0], holders[0].stages) as found:

            def both(x: Tensor) -> tuple[Tensor, Tensor]:
                logits, features = net(x), flat_features(found)
                found.clear()
                return logits, features

            yield LogitsAndFeatures(both, lambda x: both(x)[1])
    else:
        raise ValueError(
            f"the activations of {type(net).__name__}, which LPIPS compares, are not known: give the net an attribute "
            'stages, the names of layers such as ("body.layer1", "body.layer2"), or a method activations(x).'
        )


class AlexNetStages(nn.Module):
    """The activations of torchvision's AlexNet: what leaves the ReLUs after its five convolutions.

    Args:
        pretrained: Whether to use the weights of ImageNet, which are downloaded once, or random ones.

    Raises:
        OSError: If the weights cannot be had.
    """

    def __init__(self, pretrained: bool = True) -> None:
        super().__init__()
        try:
            self.net = torchvision_net("alexnet", pretrained=pretrained, num_classes=1000)
        except OSError as error:
            reason = str(error).removeprefix("pretrained=True: ").partition(", or start from")[0]
            raise OSError(f'lpips_net="alexnet": {reason}, or set lpips_net="self".') from error
        self.eval().requires_grad_(False)

    def activations(self, x: Tensor) -> list[Tensor]:
        """Five activations ``(N, C, H, W)``.

        Raises:
            ValueError: If the images are smaller than 31 x 31.
        """
        if min(x.shape[2:]) < 31:
            raise ValueError(
                f'lpips_net="alexnet" reads images of at least 31 x 31, not {x.shape[2]} x {x.shape[3]}: set '
                'lpips_net="self".'
            )
        found, x = [], self.net.normalize(x)
        layers: Any = self.net.body.features
        for layer in layers[:12]:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                found.append(x)
        return found


@lru_cache(maxsize=4)
def alexnet(device: torch.device) -> AlexNetStages:
    """The AlexNet with ImageNet's weights, built once for each device."""
    return AlexNetStages().to(device)
