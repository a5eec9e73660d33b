"""Contracts of every training method."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

from lit_robust.threats import Linf
from lit_robust.training.defense import Defense
from tests.methods import EPS, METHODS, ONE_STEP, Method, build
from tests.tiny import TinyNet, assert_equal, images, indexed, trainer


@pytest.fixture(params=METHODS)
def method(request) -> Method:
    return METHODS[request.param]


@pytest.fixture
def defense(method) -> Defense:
    return build(method.cls, **method.arguments)


@pytest.fixture
def run(method, tmp_path) -> Callable[..., Trainer]:
    """Makes a trainer with the callbacks that the method needs."""
    return lambda **arguments: trainer(tmp_path, callbacks=method.callbacks(), **arguments)


def attached(defense: Defense, run) -> Defense:
    """A defense attached to a trainer, after an epoch without batches."""
    run(max_epochs=1, limit_train_batches=1).fit(defense, indexed(images()))
    return defense


def adversary_of(x_adv):
    return x_adv if isinstance(x_adv, torch.Tensor) else x_adv[0]


def flags_of(net: nn.Module) -> list[bool]:
    return [module.training for module in net.modules()]


def test_one_batch_moves_every_parameter(defense, run):
    before = {name: parameter.clone() for name, parameter in defense.named_parameters()}
    run(max_epochs=1, limit_train_batches=1).fit(defense, indexed(images()))
    assert all(not torch.equal(before[name], parameter) for name, parameter in defense.named_parameters())


def test_the_names_of_its_training_metrics_are_known_before_training(defense, run):
    logged = run(max_epochs=1)
    logged.fit(defense, indexed(images()))
    names = ("loss", *defense.counted, "adversarial", "lr", "updates")
    assert set(logged.callback_metrics) == {f"train/{name}" for name in names}


def test_the_adversary_is_in_the_threat_set(method, defense, run):
    batch = images()
    x_adv = adversary_of(attached(defense, run).perturb(batch))
    assert x_adv.shape == batch.x.shape
    assert torch.equal(Linf(method.bound + 1e-6).project(x_adv, batch.x), x_adv)


def statistics_of(norm: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in norm.named_buffers()}


def test_perturb_leaves_no_gradient_and_every_mode_flag_as_it_was(defense, run):
    attached(defense, run).zero_grad()
    defense.train()
    norm = defense.net.body[1].eval()
    flags, statistics = flags_of(defense.net), statistics_of(norm)
    defense.perturb(images())
    assert flags_of(defense.net) == flags
    assert_equal(statistics_of(norm), statistics)
    assert all(parameter.grad is None for parameter in defense.parameters())


def test_a_training_leaves_the_statistics_of_a_frozen_batchnorm_alone(method, defense, tmp_path):
    class Freeze(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            pl_module.net.body[1].eval()

    before = statistics_of(defense.net.body[1])
    trainer(tmp_path, callbacks=[*method.callbacks(), Freeze()], max_epochs=2).fit(defense, indexed(images()))
    assert_equal(statistics_of(defense.net.body[1]), before)


def test_a_checkpoint_gives_the_same_logits_back(defense, run, tmp_path):
    fitted = run(max_epochs=1)
    fitted.fit(defense, indexed(images()))
    fitted.save_checkpoint(tmp_path / "a.ckpt")
    other = TinyNet(seed=1)
    weights = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    other.load_state_dict({key.removeprefix("net."): value for key, value in weights.items() if key.startswith("net.")})
    x = images().x
    assert torch.equal(other.eval()(x), defense.net.eval()(x))


def test_before_a_delayed_start_a_batch_costs_exactly_a_natural_step(defense, run):
    def step_of(method: Defense) -> tuple[int, dict[str, torch.Tensor]]:
        calls = []
        method.net.register_forward_hook(lambda *_: calls.append(1))
        method.adversarial = False
        run(max_epochs=1, limit_train_batches=1).fit(method, indexed(images()))
        return len(calls), method.net.state_dict()

    natural = build(Defense)
    (calls, weights), (natural_calls, natural_weights) = step_of(defense), step_of(natural)
    assert calls == natural_calls == 2  # one of them is the check of the first batch
    assert all(torch.equal(weights[key], natural_weights[key]) for key in natural_weights)


def test_a_step_of_each_of_two_epochs_runs_in_bf16_mixed(defense, run):
    fitted = run(max_epochs=2, precision="bf16-mixed", limit_train_batches=1)
    fitted.fit(defense, indexed(images()))
    assert all(torch.isfinite(parameter).all() for parameter in defense.parameters())
    assert all(parameter.dtype == torch.float32 for parameter in defense.parameters())


def test_one_batch_is_one_step_of_the_optimizer(defense, run):
    fitted = run(max_epochs=2)
    fitted.fit(defense, indexed(images(24), batch_size=8))
    assert fitted.global_step == 2 * 3 * getattr(defense, "m", 1)


def fitted_with(defense: Defense, callbacks, tmp_path) -> dict[str, torch.Tensor]:
    fit = trainer(tmp_path, max_epochs=2, callbacks=callbacks)
    fit.fit(defense, indexed(images()), indexed(images(8, seed=1)))
    metrics = {key: value for key, value in fit.callback_metrics.items()}
    return {**{key: value.clone() for key, value in defense.net.state_dict().items()}, **metrics}


def test_a_second_fit_is_the_first_fit_of_a_fresh_object(method, defense, tmp_path):
    start = {key: value.clone() for key, value in defense.net.state_dict().items()}
    callbacks = method.callbacks()
    first = fitted_with(defense, callbacks, tmp_path)
    defense.net.load_state_dict(start)
    second = fitted_with(defense, callbacks, tmp_path)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_ellea_starts_a_second_fit_without_a_penalty(tmp_path):
    """The first fit ends with one, because its loss is flat at first."""
    net = TinyNet()
    with torch.no_grad():
        net.head.weight *= 0.03
    slow = partial(torch.optim.SGD, lr=0.01, momentum=0.9)
    defense = build(METHODS["ELLEA"].cls, net=net, attack=ONE_STEP, optimizer=slow, lam_max=1e5)
    start, fits = deepcopy(net.state_dict()), []
    for _ in range(2):
        net.load_state_dict(start)
        trainer(tmp_path, max_epochs=2).fit(defense, indexed(images(48)))
        fits.append(deepcopy(net.state_dict()))
        assert defense.memory.tensors["elle"][0] > 0
    assert all(torch.equal(fits[0][key], fits[1][key]) for key in start)


def test_a_second_fit_checks_its_first_batch_and_forgets_an_earlier_run(tmp_path):
    defense = build(METHODS["PGDAT"].cls)
    trainer(tmp_path, max_epochs=1).fit(defense, indexed(images()))
    bright = images()
    with pytest.raises(ValueError, match=r"^pixels .*255"):
        trainer(tmp_path, max_epochs=1).fit(defense, indexed(bright._replace(x=255 * bright.x)))


def test_an_average_of_an_earlier_fit_is_not_attacked(tmp_path):
    method = METHODS["NuAT2-WA"]
    defense = build(method.cls, **method.arguments)
    trainer(tmp_path, max_epochs=1, callbacks=method.callbacks()).fit(defense, indexed(images()))
    with pytest.raises(ValueError, match=r"^attack_average="):
        trainer(tmp_path, max_epochs=1).fit(defense, indexed(images()))


# What a batch may cost: rows of images through the net in the attack and in the update, forwards and backwards, for a
# batch of 8. The numbers are those of the papers' algorithms; FAT's depend on which images are misclassified.
COSTS = {
    "PGDAT": ((2, 2), (1, 1)),
    "PGDAT with the authors' forwards": ((3, 2), (1, 1)),
    "FGSMAT": ((1, 1), (1, 1)),
    "FastAT from the previous delta": ((1, 1), (1, 1)),
    "GradAlign": ((1, 1), (2, 3)),  # a double backward arrives twice at the logits of the second point
    "RMGM": ((2, 2), (2, 2)),
    "SATR1": ((1 + 3 / 8, 1 + 3 / 8), (1 + 1 / 8, 1 + 1 / 8)),
    "SATR3": ((1, 1), (2, 2)),
    "ELLEA": ((1, 1), (4, 4)),
    "ELLEA with the authors' forwards": ((1, 1), (5, 4)),
    "GAT": ((2, 1), (2, 2)),
    "NuAT": ((2, 1), (2, 2)),
    "NuAT2": ((3, 2), (2, 2)),
    "CustomizedAT": ((3, 2), (1, 1)),
    "TRADES": ((3, 2), (2, 2)),
    "TRADES with the authors' forwards": ((3, 2), (3, 3)),
    "MART": ((2, 2), (2, 2)),
    "PSAT": ((2, 2), (1, 1)),
    "HSAT with the features": ((2, 2), (1, 1)),
    "DynamicAT": ((2, 2), (1, 1)),
    "PerceptualAT": ((1 + 4 + 11 + 1, 2), (1, 1)),
    "PerceptualAT as its authors run it": ((1 + 4 + 1, 2), (1, 1)),
}


class Rows:
    """Counts rows that go forwards through a net, and gradients that arrive at its logits, in batches of 8."""

    def __init__(self, net: nn.Module) -> None:
        self.counts = [0.0, 0.0]
        net.register_forward_hook(self.forward)

    def forward(self, net, inputs, logits):
        self.add(0, logits)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: self.add(1, gradient))

    def add(self, which, rows):
        self.counts[which] += len(rows) / 8

    def of(self, action) -> tuple[float, float]:
        before = list(self.counts)
        action()
        return tuple(now - then for now, then in zip(self.counts, before, strict=True))


@pytest.mark.parametrize("name", COSTS)
def test_a_batch_costs_the_passes_of_its_algorithm(name, tmp_path):
    method, costs = METHODS[name], []
    defense = build(method.cls, **method.arguments)
    rows, perturb, optimize = Rows(defense.net), defense.perturb, defense.optimize
    found = []

    def counted_perturb(batch):
        costs.append(rows.of(lambda: found.append(perturb(batch))))
        return found.pop()

    defense.perturb = counted_perturb
    defense.optimize = lambda *arguments: costs.append(rows.of(lambda: optimize(*arguments)))
    trainer(tmp_path, max_epochs=1, limit_train_batches=2).fit(defense, indexed(images()))
    assert costs == [pytest.approx(part) for part in COSTS[name]] * 2


@pytest.mark.parametrize("name", METHODS)
def test_an_attack_is_built_anew_only_when_a_number_has_changed(name):
    defense = build(METHODS[name].cls, **METHODS[name].arguments)
    first = defense.adversary()
    assert defense.adversary() is first
    defense.attack = replace(defense.attack, eps=EPS / 2)
    second = defense.adversary()
    assert second != first
    assert defense.adversary() is second
