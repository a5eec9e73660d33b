"""Evaluation of formulas in tests: autograd in float64, without the library."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.tiny import CLASSES, images, loader, trainer


def smooth_net(seed: int = 0) -> nn.Module:
    """A smooth net without BatchNorm, so an image's logits do not depend on its batch."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.Softplus(), nn.Linear(16, CLASSES))


def in_float64(net: nn.Module) -> nn.Module:
    """A deep copy."""
    return deepcopy(net).double()


def gradient(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The gradient of the mean cross-entropy in the images."""
    x = x.detach().double().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(net(x), y), x)[0]


def one_batch(defense: Any, batch: Any, seed: int = 3) -> tuple[Any, Tensor, dict[str, Tensor]]:
    """The adversary, the loss of each sample and the gradient of their mean, for given random numbers."""
    torch.manual_seed(seed)
    defense.zero_grad()
    x_adv = defense.perturb(batch)
    values = defense.loss(batch, x_adv)
    values.mean().backward()
    return x_adv, values.detach(), {name: value.grad.clone() for name, value in defense.net.named_parameters()}


def assert_same_batch(mine: Any, theirs: Any, batch: Any) -> None:
    """Two methods with the same net agree in loss and gradient to 1e-6."""
    (_, loss, grads), (_, other_loss, other_grads) = (one_batch(defense, batch) for defense in (mine, theirs))
    torch.testing.assert_close(loss, other_loss, rtol=0, atol=1e-6)
    for name in grads:
        torch.testing.assert_close(grads[name], other_grads[name], rtol=0, atol=1e-6)


class Passes:
    """Counts the images that a net has seen forwards, and backwards."""

    def __init__(self, net: nn.Module) -> None:
        self.forward = self.backward = 0
        net.register_forward_hook(self.after_forward)

    def after_forward(self, net: nn.Module, inputs: Any, logits: Tensor) -> None:
        self.forward += len(logits)
        if logits.requires_grad:
            logits.register_hook(self.counter(len(logits)))

    def counter(self, images: int) -> Callable[[Tensor], None]:
        def count(gradient: Tensor) -> None:
            self.backward += images

        return count


def forwards(defense: Any, tmp_path: Any) -> list[tuple[str, bool]]:
    """The forwards of one training step: the net's mode, and whether a backward follows."""
    seen: list[tuple[str, bool]] = []
    defense.net.register_forward_hook(
        lambda net, args, out: seen.append(("train" if net.training else "eval", out.requires_grad))
    )
    trainer(tmp_path, max_epochs=1).fit(defense, loader(images(8)))
    return seen[1:]  # the first is the check of the first batch
