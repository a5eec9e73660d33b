"""BPDA: attacks through steps without a useful gradient."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from lit_robust.attacks import BPDA, GAMAPGD, PGD, MultiTargetedPGD
from lit_robust.measures.accuracy import describe
from tests.test_attacks import axis_net, conv_net
from tests.trained import held_out, trained

ATTACK = PGD(0.1, init="zero")


def rounded(x: torch.Tensor) -> torch.Tensor:
    """Keep three bits."""
    return (7 * x).round() / 7


class Rounded(nn.Module):
    """Bit depth reduction (Guo et al., arXiv:1711.00117)."""

    def __init__(self, bits=3):
        super().__init__()
        self.levels = 2**bits - 1

    def forward(self, x):
        return (self.levels * x).round() / self.levels


class ThroughNumPy(nn.Module):
    """A step whose result has no graph."""

    def forward(self, x):
        return torch.from_numpy((7 * x.detach().cpu().numpy()).round() / 7)


def quantised(layer=Rounded):
    """Logits of a linear net behind a quantisation, images and labels that the net gets right, and the worst case."""
    v = torch.tensor([1.0, -1.0]).repeat(8).view(1, 4, 4)
    x, y = 0.4 + 0.2 * torch.rand(32, 1, 4, 4), torch.zeros(32, dtype=torch.int64)
    net = nn.Sequential(layer(), axis_net(v))
    y = net(x).argmax(1) % 2
    return net, x, y, (x + 0.1 * (1 - 2 * y).view(-1, 1, 1, 1) * v).clamp(0, 1)


def right(net, x, y):
    return (net(x).argmax(1) == y).float().mean().item()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_reaches_the_worst_case_of_a_quantised_linear_net_where_pgd_does_not_move(norm):
    net, x, y, worst = quantised()
    attack = replace(ATTACK, norm=norm, eps=0.1 if norm == "linf" else 0.4)  # the same worst case: 0.1 in 16 pixels
    assert torch.equal(attack(net, x, y), x)
    assert right(net, x, y) == 1
    x_adv = BPDA(attack, "0")(net, x, y)
    torch.testing.assert_close(x_adv, worst, atol=1e-6, rtol=0)
    assert right(net, x_adv, y) < 0.2


def test_a_step_without_a_graph_is_passed():
    net, x, y, worst = quantised(ThroughNumPy)
    with pytest.raises(ValueError, match="no graph"):
        ATTACK(net, x, y)
    torch.testing.assert_close(BPDA(ATTACK, "0")(net, x, y), worst, atol=1e-6, rtol=0)


def test_a_function_in_front_of_the_net_is_the_same_as_a_layer_of_it():
    net, x, y, _ = quantised()
    assert torch.equal(BPDA(PGD(0.1, init="zero"), rounded)(net[1], x, y), BPDA(ATTACK, "0")(net, x, y))
    assert torch.equal(BPDA(PGD(0.1, init="zero"), Rounded())(net[1], x, y), BPDA(ATTACK, "0")(net, x, y))


@pytest.mark.parametrize("layer", [Rounded(), nn.Sigmoid()])
def test_the_forward_is_exact_and_the_backward_is_the_substitutes(layer):
    seen = []

    def smooth(x):
        return x.square()

    class Watching(nn.Module):
        def forward(self, x):
            seen.append(x)
            return torch.stack([-x.flatten(1)[:, 0], x.flatten(1)[:, 0]], dim=1)

    gradients = []

    class Recording(PGD):
        def step(self, net, x, x_adv, direction, k):
            gradients.append(direction)
            return x_adv

    x, y = torch.rand(4, 1, 1, 1), torch.zeros(4, dtype=torch.int64)
    BPDA(Recording(0.1, steps=1, init="zero"), "0", smooth)(nn.Sequential(layer, Watching()), x, y)
    assert torch.equal(seen[0], layer(x))
    q = torch.stack([-seen[0].flatten(), seen[0].flatten()], dim=1).softmax(1)
    torch.testing.assert_close(gradients[0].flatten(), 2 * q[:, 1].detach() * 2 * x.flatten())


def test_the_whole_net_can_be_replaced():
    """A substitute that returns logits: the gradient of another net at the images that this one classifies."""
    net, x, y, worst = quantised()
    torch.testing.assert_close(BPDA(ATTACK, "", net[1])(net, x, y), worst, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "attack",
    [GAMAPGD(0.15, steps=20), MultiTargetedPGD(0.15, targets=3), PGD(0.15, steps=20)],
    ids=lambda attack: type(attack).__name__,
)
def test_it_brings_a_quantised_net_to_the_accuracy_without_the_mask(attack):
    """300 images of digits behind 4 bits: the attack gets as far as without them, within 2 points."""
    x, y = (part[:300] for part in held_out())
    masked = nn.Sequential(Rounded(bits=4), trained("pgd")).eval()
    torch.manual_seed(1)
    assert right(masked, attack(masked, x, y), y) > right(masked, x, y) - 0.15  # noise moves some across a level
    torch.manual_seed(1)
    found = right(masked, BPDA(attack, "0")(masked, x, y), y)
    assert found < right(trained("pgd"), attack(trained("pgd"), x, y), y) + 0.02


# What it leaves alone.


@pytest.mark.parametrize("fails", [False, True])
def test_hooks_modes_and_gradients_are_as_before(fails):
    net, x, y = nn.Sequential(Rounded(), conv_net()), torch.rand(4, 1, 4, 4), torch.zeros(4, dtype=torch.int64)
    net[1][1].eval()
    modes = [module.training for module in net.modules()]
    substitute = (lambda x: x[:, :, :2]) if fails else None
    if fails:
        with pytest.raises(ValueError, match=r"substitute .*\(4, 1, 2, 4\).*\(4, 1, 4, 4\)"):
            BPDA(ATTACK, "0", substitute)(net, x, y)
    else:
        BPDA(ATTACK, "0")(net, x, y)
    assert not any(module._forward_hooks for module in net.modules())
    assert [module.training for module in net.modules()] == modes
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_works_without_gradients_and_in_inference_mode(mode):
    net, x, y, _ = quantised()
    expected = BPDA(ATTACK, "0")(net, x, y)
    with mode():
        assert torch.equal(BPDA(ATTACK, "0")(net, x.clone(), y.clone()), expected)


@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_net_is_attacked_through_the_step_too(in_place):
    net, x, y, worst = quantised()
    compiled = net if in_place else torch.compile(net, backend="eager")
    if in_place:
        net.compile(backend="eager")  # as a Defense does
    assert torch.equal(ATTACK(compiled, x, y), x)  # so that there is a graph without the substitute
    torch.testing.assert_close(
        BPDA(ATTACK, "0" if in_place else "_orig_mod.0")(compiled, x, y), worst, atol=1e-6, rtol=0
    )


def test_it_runs_in_bfloat16():
    net, x, y, worst = quantised()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x_adv = BPDA(ATTACK, "0")(net, x, y)
    assert x_adv.dtype == torch.float32
    torch.testing.assert_close(x_adv, worst, atol=1e-6, rtol=0)


# Arguments.


def test_bound_norm_and_targets_are_those_of_its_attack():
    attack = BPDA(PGD(0.3, norm="l2", targeted=True), "0")
    assert (attack.eps, attack.norm, attack.targeted) == (0.3, "l2", True)
    assert attack == BPDA(PGD(0.3, norm="l2", targeted=True), "0")
    assert describe(BPDA(PGD(0.1), "0")) == "BPDA(attack=PGD(eps=0.1, step_size=0.025, steps=10), forward=0)"


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"attack": "pgd"}, TypeError, "^attack='pgd'"),
        ({"forward": 3}, TypeError, "^forward=3 "),
        ({"substitute": "tanh"}, TypeError, "^substitute='tanh'"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, error, named):
    with pytest.raises(error, match=named):
        BPDA(**({"attack": ATTACK, "forward": "0"} | arguments))


def test_a_layer_that_the_net_lacks_is_refused():
    net, x, y, _ = quantised()
    with pytest.raises(ValueError, match=r'^forward="quantise" .* 0, 1, 1\.0, 1\.1'):
        BPDA(ATTACK, "quantise")(net, x, y)
