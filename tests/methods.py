"""Every training method, as the contracts build it."""

from collections.abc import Callable
from typing import Any

import torch

from lit_robust.attacks import PGD
from lit_robust.defenses import PGDAT, Defense, Natural
from tests.tiny import CLASSES, TinyNet

EPS = 0.1
ATTACK = PGD(eps=EPS, step_size=0.05, steps=2)


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)


def build(method: Callable[..., Defense], **arguments: Any) -> Defense:
    """A method on the tiny net with the tiny attack."""
    defaults = {"net": TinyNet(), "num_classes": CLASSES, "attack": ATTACK, "optimizer": sgd}
    return method(**(defaults | arguments))


#: Name -> (class, its arguments). The contracts run over all of them.
METHODS: dict[str, tuple[Callable[..., Defense], dict[str, Any]]] = {
    "Defense": (Defense, {}),
    "Natural": (Natural, {}),
    "PGDAT": (PGDAT, {}),
}
