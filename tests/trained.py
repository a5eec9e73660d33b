"""Nets trained in the tests, once per process, on scikit-learn's digits."""

from functools import cache

import pytest
import torch
from torch import Tensor, nn

from lit_robust.attacks import FGSM, PGD, Attack
from lit_robust.losses import ce
from lit_robust.nets import digits_cnn
from tests.masked import masked

#: What the nets are trained against; None is natural training.
TRAINED: dict[str, Attack | None] = {"natural": None, "fgsm": FGSM(0.15), "pgd": PGD(0.15, 0.06, steps=5)}


@cache
def digits() -> tuple[Tensor, Tensor]:
    """The images ``(1797, 1, 8, 8)`` in [0, 1] and their labels, shuffled."""
    data = pytest.importorskip("sklearn.datasets").load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    return x[order], torch.tensor(data.target)[order]


def held_out() -> tuple[Tensor, Tensor]:
    """600 images that no net was trained on."""
    x, y = digits()
    return x[-600:], y[-600:]


@cache
def trained(name: str, mask: type[nn.Module] | None = None) -> nn.Module:
    """A net of ``TRAINED``, in eval mode; with a layer of ``tests.masked``, trained and returned with it."""
    x, y = (part[:-600] for part in digits())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, attack = digits_cnn(width=8), TRAINED[name]
        net = masked(mask(), net) if mask else net
        optimizer = torch.optim.Adam(net.parameters(), 3e-3)
        for _ in range(10):
            for rows in torch.randperm(len(x)).split(64):
                images = x[rows] if attack is None else attack(net, x[rows], y[rows])
                optimizer.zero_grad()
                ce(net(images), y[rows]).mean().backward()
                optimizer.step()
    return net.eval()
