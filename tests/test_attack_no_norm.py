"""What holds for every attack whose bound is no norm of the pixels' change: the perceptual and the unseen ones."""

import pytest
import torch

from lit_robust.attacks import JPEG, LPA, PPGD, FastLPA, ReColor, StAdv
from lit_robust.attacks.base import NoGraphError
from lit_robust.guards import checked, frozen
from tests.test_attack_perceptual import ATTACKS as PERCEPTUAL
from tests.test_attack_unseen import ATTACKS as UNSEEN
from tests.test_attacks import NoHostSync
from tests.tiny import TinyNet, images, named

ATTACKS = [*PERCEPTUAL, *UNSEEN]


@pytest.mark.parametrize("attack", ATTACKS, ids=named)
def test_the_host_never_waits_while_training(attack):
    net, batch = TinyNet(), images(8)
    with checked(), NoHostSync():
        attack(net, batch.x, batch.y)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("attack", ATTACKS, ids=named)
def test_nothing_is_left_behind_in_any_gradient_mode(attack, mode):
    net, batch = TinyNet(), images(8)
    net.train()
    net.body[1].eval()
    flags = [module.training for module in net.modules()]
    with mode(), frozen(net):
        torch.manual_seed(1)
        x_adv = attack(net, batch.x.clone(), batch.y.clone())
        assert not x_adv.requires_grad
    assert [module.training for module in net.modules()] == flags
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())
    assert not any(module._forward_hooks for module in net.modules())
    torch.manual_seed(1)
    assert torch.equal(attack(net, batch.x, batch.y), x_adv)


@pytest.mark.parametrize("attack", ATTACKS, ids=named)
def test_logits_without_a_graph_are_refused(attack):
    class NoGraph(TinyNet):
        def forward(self, x):
            return super().forward(x).detach()

    with pytest.raises(NoGraphError):
        attack(NoGraph(), images(4).x, images(4).y)


@pytest.mark.parametrize(
    ("attack", "name", "value"),
    [
        (FastLPA, "eps", -1),
        (FastLPA, "steps", -1),
        (FastLPA, "step_size", -0.1),
        (FastLPA, "lam", -1),
        (FastLPA, "h", 0),
        (FastLPA, "lpips_net", "vgg"),
        (FastLPA, "projection", "both"),
        (LPA, "runs", 0),
        (LPA, "h", 0),
        (PPGD, "cg_steps", 0),
        (PPGD, "h", -1),
        (StAdv, "eps", -1),
        (StAdv, "steps", -1),
        (StAdv, "lr", 0),
        (StAdv, "smoothness", -1),
        (ReColor, "grid", (1, 4, 4)),
        (JPEG, "eps", "a lot"),
        (JPEG, "step_size", -1),
    ],
    ids=named,
)
def test_arguments_that_make_no_sense_are_refused(attack, name, value):
    with pytest.raises(ValueError, match=rf"^{name}="):
        attack(**{name: value})
