"""On a GPU, torch's optimizers update all weights by one kernel, unless the user has chosen another implementation."""

from functools import partial

import pytest
import torch

from lit_robust.training.fused import fuse
from tests.tiny import TinyNet, images


def steps(kind, devices, **options):
    """The optimizer and its weights after three steps, fused on these devices."""
    net, batch = TinyNet(), images(8)
    optimizer = kind(net.parameters(), **options)
    fuse(optimizer, devices)
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(batch.x), batch.y).backward()
        optimizer.step()
    return optimizer, [one.detach() for one in net.parameters()]


@pytest.mark.parametrize(
    "kind",
    [partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=5e-4), partial(torch.optim.AdamW, lr=0.01, eps=1e-3)],
)
def test_a_fused_step_is_the_same_to_rounding(kind):
    fused, ours = steps(kind, ("cpu",))
    plain, theirs = steps(kind, ())
    assert [one.param_groups[0]["fused"] for one in (fused, plain)] == [True, None]
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("options", [{"fused": False}, {"foreach": True}, {"foreach": False}, {"differentiable": True}])
def test_a_choice_of_the_user_stays(options):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1, **options)
    before = dict(optimizer.param_groups[0])
    fuse(optimizer, ("cpu",))
    assert optimizer.param_groups[0] == before


def test_an_optimizer_without_a_fused_step_and_weights_elsewhere_stay():
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizers = torch.optim.RMSprop([weight], lr=0.1), torch.optim.SGD([weight], lr=0.1)
    fuse(optimizers[0], ("cpu",))
    fuse(optimizers[1])
    assert not any(one.param_groups[0].get("fused") for one in optimizers)
