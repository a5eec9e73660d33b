"""Adversarial weight perturbation, on any method."""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from torch import nn

from lit_robust import losses
from lit_robust.attacks import PGD
from lit_robust.callbacks import AttributeRamp, EMAWeights
from lit_robust.defenses import AWP, MART, PGDAT, TRADES, FreeAT, Natural, NuAT
from lit_robust.schedules import Staircase
from lit_robust.training.weight_perturbation import kept
from tests.formulas import Passes, in_float64, smooth_net
from tests.methods import ATTACK, ONE_STEP, build
from tests.tiny import Counting, TinyNet, images, loader, trainer

LR = 0.5
#: Finds the same adversary every time.
EXACT = PGD(eps=0.1, step_size=0.05, steps=2, init="zero")


def awp(method=PGDAT, gamma=0.1, warm_up=0.0, **arguments):
    optimizer = {"optimizer": lambda params: torch.optim.SGD(params, lr=LR)}
    perturbation = AWP(gamma, warm_up) if gamma is not None else None
    return build(method, weight_perturbation=perturbation, **(optimizer | arguments))


def fit(defense, tmp_path, n=8, epochs=1, **kwargs):
    fitted = trainer(tmp_path, max_epochs=epochs, **kwargs)
    fitted.fit(defense, loader(images(n)))
    return fitted


class Watch(Callback):
    """What the optimizer finds when it is about to step."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.before = {name: value.clone() for name, value in pl_module.net.named_parameters()}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.at_step = {name: value.detach().clone() for name, value in pl_module.net.named_parameters()}
        self.gradients = {name: value.grad.clone() for name, value in pl_module.net.named_parameters()}


# What it is.


def loss_by_the_formula(net, x_adv, x, y, method):
    z_adv, z = net(x_adv), net(x)
    if method is PGDAT:
        return F.cross_entropy(z_adv, y)
    p, q = z.softmax(dim=1), z_adv.softmax(dim=1)
    return F.cross_entropy(z, y) + 6 * (p * (p / q).log()).sum(dim=1).mean()


@pytest.mark.parametrize("method", [PGDAT, TRADES])
def test_an_update_is_sgd_with_the_gradient_at_the_perturbed_weights_in_float64(method, tmp_path):
    batch, crafted = images(8), []

    class Spy(method):
        def perturb(self, batch):
            crafted.append(super().perturb(batch))
            return crafted[-1]

    defense = awp(Spy, net=smooth_net(), attack=EXACT)
    fit(defense, tmp_path)
    (x_adv,) = crafted  # the attack ran once

    net = in_float64(smooth_net())
    before = [parameter.detach().clone() for parameter in net.parameters()]
    inputs = x_adv.double(), batch.x.double(), batch.y, method
    gradients = torch.autograd.grad(loss_by_the_formula(net, *inputs), list(net.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(net.parameters(), gradients, strict=True):
            if parameter.ndim > 1:
                parameter += 0.1 * parameter.norm() * gradient / gradient.norm()
    gradients = torch.autograd.grad(loss_by_the_formula(net, *inputs), list(net.parameters()))
    for found, weight, gradient in zip(defense.net.parameters(), before, gradients, strict=True):
        torch.testing.assert_close(found.double(), weight - LR * gradient, rtol=0, atol=1e-5)


def test_only_tensors_of_more_than_one_dimension_move_uphill_by_gamma():
    batch, net = images(8), TinyNet().train()
    before = {name: value.detach().clone() for name, value in net.named_parameters()}

    def loss():
        return losses.ce(net(batch.x), batch.y).mean()

    with AWP(gamma=0.1).perturbed(net, loss):
        moved = {name: value.detach() - before[name] for name, value in net.named_parameters()}
        worse = loss()
    sizes = {name: (change.norm() / before[name].norm()).item() for name, change in moved.items() if change.any()}
    assert sizes == pytest.approx({"body.0.weight": 0.1, "head.weight": 0.1}, rel=1e-5)
    assert worse > loss()


def test_a_tensor_that_the_loss_does_not_depend_on_stays_where_it_is():
    net = nn.ModuleDict({"used": nn.Linear(2, 2), "unused": nn.Linear(2, 2)})
    unused = net["unused"].weight.detach().clone()
    with AWP(gamma=0.1).perturbed(net, lambda: net["used"](torch.ones(1, 2)).sum()):
        assert torch.equal(net["unused"].weight, unused)


@pytest.mark.parametrize("net", [TinyNet, Counting])
def test_with_gamma_0_a_run_is_the_methods_own_bit_for_bit(net, tmp_path):
    perturbed, plain = (awp(gamma=gamma, attack=EXACT, net=net()) for gamma in (0.0, None))
    for defense in (perturbed, plain):
        fit(defense, tmp_path, n=24, epochs=2)
    mine, theirs = perturbed.state_dict(), plain.state_dict()
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    different = awp(gamma=0.1, attack=EXACT, net=net())
    fit(different, tmp_path, n=24, epochs=2)
    assert not torch.equal(different.net.head.weight, plain.net.head.weight)


# Side effects.


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize(("method", "attack"), [(PGDAT, ATTACK), (TRADES, ATTACK), (MART, ATTACK), (NuAT, ONE_STEP)])
def test_the_weights_are_back_bit_for_bit_when_the_optimizer_steps(method, attack, precision, tmp_path):
    watch = Watch()
    fit(awp(method, attack=attack), tmp_path, callbacks=[watch], precision=precision)
    assert all(torch.equal(watch.before[name], value) for name, value in watch.at_step.items())


def test_the_weights_are_back_after_an_error_too():
    net = TinyNet()
    before, seen = net.head.weight.detach().clone(), []

    def update():
        with AWP(gamma=0.1).perturbed(net, lambda: net(images(8).x).square().sum()):
            seen.append(torch.equal(net.head.weight, before))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        update()
    assert [*seen, torch.equal(net.head.weight, before)] == [False, True]


def test_the_clipped_gradient_is_the_final_one(tmp_path):
    watch = Watch()
    defense = awp(gradient_clip_val=1e-3)
    fit(defense, tmp_path, callbacks=[watch])
    moved = torch.cat([(watch.before[name] - value).flatten() for name, value in defense.net.named_parameters()])
    assert moved.norm().item() == pytest.approx(LR * 1e-3, rel=1e-3)
    assert torch.cat([value.flatten() for value in watch.gradients.values()]).norm() > 2e-3  # it had to be clipped


def test_only_the_perturbed_forward_moves_batch_norm(tmp_path):
    """By the statistics of the images under the perturbed first convolution."""
    batch, defense = images(8), awp(gamma=0.1, attack=EXACT, attack_bn_mode="eval", net=TinyNet())
    fit(defense, tmp_path)
    norm = defense.net.body[1]
    assert int(norm.num_batches_tracked) == 1

    net = TinyNet()
    x_adv = EXACT(net.eval(), batch.x, batch.y)
    with AWP(gamma=0.1).perturbed(net.train(), lambda: losses.ce(net(x_adv), batch.y).mean()):
        outputs = net.body[0](x_adv)
    torch.testing.assert_close(norm.running_mean, 0.1 * outputs.mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(norm.running_mean, 0.1 * TinyNet().body[0](x_adv).mean(dim=(0, 2, 3)), rtol=1e-2)


def test_metrics_count_the_perturbed_pass_and_no_other(tmp_path):
    class Spy(Natural):
        def loss(self, batch, x_adv):
            values = super().loss(batch, x_adv)
            seen.append(values.mean().item())
            return values

    seen = []
    fitted = fit(awp(Spy), tmp_path)
    assert len(seen) == 2
    assert seen[1] > seen[0] + 0.01
    assert fitted.callback_metrics["train/loss"].item() == pytest.approx(seen[1], rel=1e-5)


@pytest.mark.parametrize(("method", "attack", "more"), [(PGDAT, ATTACK, 1), (TRADES, ATTACK, 2), (NuAT, ONE_STEP, 2)])
def test_it_costs_one_more_pass_of_the_update_and_not_another_attack(method, attack, more, tmp_path):
    def passes(gamma):
        defense = awp(method, gamma, attack=attack)
        counter = Passes(defense.net)
        fit(defense, tmp_path)
        return counter.forward, counter.backward

    perturbed, plain = passes(0.1), passes(None)
    assert (perturbed[0] - plain[0], perturbed[1] - plain[1]) == (8 * more, 8 * more)


def test_averaged_weights_average_the_weights_and_not_their_perturbations(tmp_path):
    seen = []

    class Book(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append(pl_module.net.head.weight.detach().clone())

    defense = awp()
    fit(defense, tmp_path, n=24, callbacks=[Book(), EMAWeights(0.5)])
    expected = seen[0]
    for weight in seen[1:]:
        expected = torch.lerp(expected, weight, 0.5)
    torch.testing.assert_close(defense.net.head.weight, expected, rtol=0, atol=1e-6)


# When it acts.


def test_before_its_warm_up_is_over_a_batch_is_the_methods_own(tmp_path):
    passes = {}
    for warm_up in (0.0, 0.5, 1.0, 2.0):
        defense = awp(warm_up=warm_up)
        counter = Passes(defense.net)
        fit(defense, tmp_path, n=16, epochs=2)
        passes[warm_up] = counter.backward
    own = 4 * 8 * (ATTACK.steps + 1)
    assert passes == {0.0: own + 4 * 8, 0.5: own + 3 * 8, 1.0: own + 2 * 8, 2.0: own}


def test_a_ramp_drives_gamma(tmp_path):
    seen = []

    class Spy(AWP):
        def perturbed(self, net, loss):
            seen.append(self.gamma)
            return super().perturbed(net, loss)

    defense = build(PGDAT, weight_perturbation=Spy(gamma=0.1))
    ramp = AttributeRamp("weight_perturbation.gamma", Staircase([0, 1], [0.01, 0.02]))
    fit(defense, tmp_path, epochs=2, callbacks=[ramp])
    assert seen == [0.01, 0.02]


# Around it.


def test_a_compiled_net_is_perturbed_as_an_uncompiled_one(tmp_path):
    weights = {}
    for compiled in (False, True):
        defense = awp(net=smooth_net(), attack=EXACT, attack_bn_mode="train")
        if compiled:
            defense.net.compile(backend="aot_eager")  # as compile=True does, without the C++
            defense.compiled = True
        fit(defense, tmp_path)
        weights[compiled] = [parameter.detach() for parameter in defense.net.parameters()]
    for plain, compiled in zip(weights[False], weights[True], strict=True):
        torch.testing.assert_close(compiled, plain, rtol=0, atol=1e-5)


def test_kept_tensors_are_the_same_tensors():
    tensor = torch.ones(2)
    with kept([tensor]):
        tensor.add_(1e-8).mul_(3)
    assert tensor.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("make", "error", "named"),
    [
        (lambda: AWP(gamma=float("inf")), ValueError, "AWP's gamma="),
        (lambda: AWP(gamma=-0.1), ValueError, "AWP's gamma="),
        (lambda: AWP(warm_up=float("nan")), ValueError, "AWP's warm_up="),
        (lambda: build(PGDAT, weight_perturbation=0.005), TypeError, "weight_perturbation="),
        (
            lambda: build(FreeAT, attack=ONE_STEP, weight_perturbation=AWP()),
            ValueError,
            "FreeAT .*weight_perturbation=",
        ),
    ],
)
def test_arguments_that_make_no_sense_are_refused(make, error, named):
    with pytest.raises(error, match=f"^{named}"):
        make()


def test_a_training_of_one_dimensional_tensors_alone_is_refused(tmp_path):
    net = TinyNet()
    for weight in net.parameters():
        weight.requires_grad_(weight.ndim == 1)
    with pytest.raises(ValueError, match=r"^AWP .*weight_perturbation"):
        fit(awp(net=net), tmp_path)
