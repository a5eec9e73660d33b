"""A few images, attacked for a picture."""

import torch
from torch import Tensor, nn

from lit_robust.attacks import Attack
from lit_robust.guards import buffers_kept, network_mode, own_random_state
from lit_robust.measures.pictures import Examples
from lit_robust.seeds import seed


def spread(y: Tensor, n: int) -> Tensor:
    """Choose ``n`` samples, or all if there are fewer, from as many classes as possible, evenly spaced if too many.

    Shape:
        y: ``(N,)``;  returned: positions, at most ``(n,)``.
    """
    earlier = (y[:, None] == y).tril(-1).sum(dim=1)  # how many earlier samples have the same class
    in_turns = (earlier * (y.max() + 1) + y).argsort()
    step = max(1, int((earlier == 0).sum()) // n)
    return in_turns[: n * step : step]


def craft(net: nn.Module, attack: Attack, x: Tensor, y: Tensor, target: int | None = None) -> Examples:
    """Attack a few images from a random start that is the same every time.

    Raises:
        ValueError: If there is no class ``target``.
    """
    with network_mode(net, "eval"), buffers_kept(net), own_random_state(x.device):
        seed(x.device, "examples")
        clean = _probabilities(net, x)
        if target is not None and not 0 <= target < clean.shape[1]:
            raise ValueError(f"target={target} is not one of the net's {clean.shape[1]} classes.")
        adversarial = attack(net, x, y if target is None else torch.full_like(y, target))
        parts = x, adversarial, y, clean, _probabilities(net, adversarial)
    return Examples(*(part.detach().cpu() for part in parts))


@torch.no_grad()
def _probabilities(net: nn.Module, x: Tensor) -> Tensor:
    logits: Tensor = net(x)
    return logits.float().softmax(dim=1)
