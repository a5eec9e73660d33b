"""Coreset selection on the gradients of real images: how far each part's gradient is from the whole one."""

from functools import cache

import pytest
import torch

from lit_robust import losses
from lit_robust.attacks import FGSM
from lit_robust.data import CIFAR10DataModule, MNISTDataModule
from lit_robust.nets import fast_cnn, resnet18
from lit_robust.selection import (
    CRAIG,
    GradMatch,
    Outer,
    Random,
    concatenated,
    gradient_error,
    last_layer_gradients,
)

pytestmark = pytest.mark.usefixtures("real_data")
SETS = {
    "mnist": (MNISTDataModule, lambda: fast_cnn(), 0.1),
    "cifar10": (CIFAR10DataModule, lambda: resnet18(width=8), 4 / 255),
}
N = 2000
PART = 600


@cache
def gradients(name):
    """Of 2,000 images under FGSM, after a short adversarial training."""
    data, build, eps = SETS[name]
    torch.manual_seed(0)
    x, y = data(augment=False).draw(N, "train")
    net, attack = build(), FGSM(eps)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(3):
        for part in torch.randperm(N).split(100):
            optimizer.zero_grad()
            losses.ce(net(attack(net.eval(), x[part], y[part])), y[part]).mean().backward()
            optimizer.step()
    parts = []
    for block in torch.arange(N).split(250):
        x_adv = attack(net, x[block], y[block])
        parts.append(last_layer_gradients(net.head, lambda: losses.ce(net(x_adv), y[block])))  # noqa: B023  # called at once
    return concatenated(parts), y


def error(selector, outer, y, part=PART, seed=0):
    embeddings = outer.left if selector.reads == "bias" else outer
    coreset = selector(embeddings, y, part, torch.Generator().manual_seed(seed))
    weights = coreset.weights * (N / part if isinstance(selector, Random) else 1)
    return gradient_error(outer, coreset.indices, weights)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(("selector", "factor"), [(GradMatch(), 15), (CRAIG(), 3), (CRAIG(greedy="stochastic"), 2)])
def test_a_coreset_is_nearer_to_the_gradient_than_random_images(name, selector, factor):
    outer, y = gradients(name)
    assert isinstance(outer, Outer)
    at_random = sum(error(Random(), outer, y, seed=seed) for seed in range(5)) / 5
    assert error(selector, outer, y) < at_random / factor


@pytest.mark.parametrize("name", SETS)
def test_float32_and_float64_choose_about_as_many(name):
    outer, y = gradients(name)
    for selector in (GradMatch(fill="none"), GradMatch(fill="none", gradient="bias")):
        sizes = []
        for dtype in (torch.float32, torch.float64):
            exact = Outer(outer.left.to(dtype), outer.right.to(dtype))
            sizes.append(len(selector(exact.left if selector.reads == "bias" else exact, y, PART).indices))
        assert sizes[0] >= 0.98 * sizes[1]


@pytest.mark.parametrize("name", SETS)
def test_all_images_have_the_whole_gradient(name):
    outer, y = gradients(name)
    for selector in (CRAIG(), GradMatch(), Random()):
        assert error(selector, outer, y, part=N) < 1e-4


@pytest.mark.parametrize("name", SETS)
def test_more_atoms_leave_a_smaller_residual(name):
    outer, y = gradients(name)
    errors = [error(GradMatch(fill="none"), outer, y, part=part) for part in (100, 300, 900)]
    assert errors[0] > errors[1] > errors[2]
