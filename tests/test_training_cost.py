"""What a training costs: seconds without validation, passes, hardware, across resumes."""

from copy import deepcopy
from functools import partialmethod
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from lit_robust.attacks import FGSM, PGD
from lit_robust.callbacks import CoresetSelection, EMAWeights, coreset
from lit_robust.costs import Cost, cost_of
from lit_robust.defenses import PGDAT, TRADES, FreeAT, Natural, NuAT2
from lit_robust.selection import GradMatch, Random
from lit_robust.training import meter as module
from lit_robust.training.meter import hardware_of
from tests.methods import ATTACK, build
from tests.test_resume import TinyData
from tests.tiny import TinyNet, images, indexed, loader, trainer, two_ranks


def fit(defense, tmp_path, ckpt_path=None, **arguments) -> Any:
    run = trainer(tmp_path, **{"max_epochs": 2} | arguments)
    run.fit(defense, loader(images(24)), loader(images(8, seed=1)), ckpt_path=ckpt_path)
    return run


def saved(run, path) -> Cost:
    run.save_checkpoint(path)
    cost = cost_of(torch.load(path, weights_only=True))
    assert cost is not None
    return cost


# Passes.


@pytest.mark.parametrize(
    ("cls", "arguments", "forwards", "backwards"),
    [
        (Natural, {}, 1, 1),
        (PGDAT, {"attack": PGD(eps=0.1, step_size=0.05, steps=3)}, 4, 4),
        (FreeAT, {"m": 3, "attack": FGSM(eps=0.1)}, 3, 3),
    ],
)
def test_passes_are_those_of_the_method_times_the_images(tmp_path, cls, arguments, forwards, backwards):
    """24 images in each of two epochs; the first batch's check and the validation do not count."""
    cost = saved(fit(build(cls, **arguments), tmp_path), tmp_path / "a.ckpt")
    assert (cost.forwards, cost.backwards) == (48 * forwards, 48 * backwards)
    assert cost.passes == 48 * (forwards + backwards)


def test_passes_of_averages_that_are_attacked_count(tmp_path):
    """NuAT2-WA attacks an average of the weights, which costs what attacking the net costs."""
    alone, average = (
        saved(
            fit(build(NuAT2, attack=FGSM(eps=0.1), attack_average=name), tmp_path, callbacks=callbacks),
            tmp_path / "a.ckpt",
        )
        for name, callbacks in ((None, []), ("fast", [EMAWeights(0.9, extra={"fast": 0.5})]))
    )
    assert (average.forwards, average.backwards) == (alone.forwards, alone.backwards)


@pytest.mark.parametrize(
    ("cls", "arguments", "callbacks"),
    [
        (PGDAT, {"attack_bn_mode": "eval"}, []),
        (TRADES, {}, []),
        (NuAT2, {"attack": FGSM(eps=0.1), "attack_average": "fast"}, [EMAWeights(0.9, extra={"fast": 0.5})]),
    ],
)
def test_what_attacks_see_compiled_costs_what_it_costs_uncompiled(tmp_path, monkeypatch, cls, arguments, callbacks):
    """In eval mode that is a copy of the net, or of an average, with a compiled call of its own."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))
    torch._dynamo.reset()
    compiled, plain = (
        saved(
            fit(build(cls, compile=compiles, **arguments), tmp_path, callbacks=deepcopy(callbacks)), tmp_path / "a.ckpt"
        )
        for compiles in (True, False)
    )
    assert (compiled.forwards, compiled.backwards) == (plain.forwards, plain.backwards)


def test_a_compiled_net_counts_outside_of_its_graphs(tmp_path, monkeypatch):
    """The graphs are those of a net that is not watched, and its call is the same afterwards."""

    def compiled_graphs() -> tuple[list[str], Cost]:
        torch._dynamo.reset()
        net, graphs = TinyNet(), []
        net.compile(backend=lambda graph, inputs: graphs.append(graph.code) or graph)
        call = net._compiled_call_impl
        defense = build(Natural, net=net)

        class NoHook(Callback):  # which torch may trace
            def on_train_batch_end(self, *args):
                assert defense.meter.passes not in net._forward_hooks.values()

        cost = saved(fit(defense, tmp_path, limit_val_batches=0, callbacks=[NoHook()]), tmp_path / "a.ckpt")
        assert net._compiled_call_impl is call
        return graphs, cost

    watched, cost = compiled_graphs()
    assert (cost.forwards, cost.backwards) == (48, 48)
    monkeypatch.setattr(module.Meter, "watch", lambda self, *nets: None)
    unwatched, nothing = compiled_graphs()
    assert nothing.passes == 0
    assert watched == unwatched


def test_a_fit_leaves_no_hook_on_the_net(tmp_path):
    defense = build(PGDAT)
    hooks = list(defense.net._forward_hooks.values())
    fit(defense, tmp_path)
    assert list(defense.net._forward_hooks.values()) == hooks

    class Fails(Callback):
        def on_train_batch_end(self, *args):
            raise KeyError("stop")

    with pytest.raises(KeyError):
        fit(defense, tmp_path, callbacks=[Fails()])
    cost = saved(fit(defense, tmp_path), tmp_path / "a.ckpt")
    assert cost.forwards == 48 * (1 + ATTACK.steps)  # the hook of the failed fit is gone


def test_a_copy_of_a_trained_module_begins_at_zero_and_leaves_the_original_alone(tmp_path):
    first = build(Natural)
    run = fit(first, tmp_path)
    fit(deepcopy(first), tmp_path, max_epochs=1)
    assert saved(run, tmp_path / "a.ckpt").forwards == 48


def test_ranks_add_up_their_passes(tmp_path):
    """Each of two ranks has half of the batches."""
    batch = images(32)
    run = two_ranks(tmp_path, max_epochs=1)
    path = tmp_path / "a.ckpt"

    class Save(Callback):
        def on_train_end(self, trainer, pl_module):
            trainer.save_checkpoint(path)

    run.callbacks.append(Save())
    run.fit(build(Natural), indexed(batch))
    cost = cost_of(torch.load(path, weights_only=True))
    assert (cost.forwards, cost.backwards) == (32, 32)
    assert cost.hardware[0].startswith("2 x ")


# Seconds.


class Ticks:
    """A clock that moves by one whenever it is read, and by what is added."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Ticks:
    ticks = Ticks()
    monkeypatch.setattr(module.time, "perf_counter", ticks)
    monkeypatch.setattr(module.time, "process_time", lambda: 2 * ticks.now)
    return ticks


class Slow(Callback):
    """A batch of training takes a second, one of validation 100, and everything at an epoch's end 1000."""

    def __init__(self, clock: Ticks) -> None:
        self.clock = clock

    def on_train_batch_end(self, *args):
        self.clock.now += 1

    def on_validation_batch_end(self, *args):
        self.clock.now += 100

    def on_train_epoch_end(self, *args):
        self.clock.now += 1000


@pytest.mark.parametrize("check", [{}, {"val_check_interval": 1}, {"limit_val_batches": 0}], ids=str)
def test_seconds_are_those_of_training_batches(tmp_path, clock, check):
    cost = saved(fit(build(Natural), tmp_path, callbacks=[Slow(clock)], **check), tmp_path / "a.ckpt")
    assert (cost.seconds, cost.cpu_seconds) == (6, 12)


# Selections of coresets.


class Counted(torch.autograd.Function):
    """The identity, which counts the images whose gradient passes it."""

    @staticmethod
    def forward(ctx, x, counts):
        ctx.counts = counts
        counts["forwards"] += len(x)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.counts["backwards"] += len(gradient)
        return gradient, None


class CountingNet(TinyNet):
    """Counts its own passes in its middle, but those of two images, which are checks."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = {"forwards": 0, "backwards": 0}

    def features(self, x):
        features = super().features(x)
        return features if len(x) <= 2 else Counted.apply(features, self.counts)


#: 22 images: coresets of 11 are chosen for epochs 0 and 2 of 4.
SELECTED = {"every": 2, "warm": 0}


@pytest.mark.parametrize("fold_batchnorm", [True, False])
@pytest.mark.parametrize(
    ("cls", "arguments", "selection", "passes"),
    [
        (PGDAT, {}, {}, (ATTACK.steps + 1, ATTACK.steps)),
        (PGDAT, {}, {"selector": GradMatch(), "warm": 0.5}, (ATTACK.steps + 1, ATTACK.steps)),
        (PGDAT, {}, {"attack": PGD(eps=0.1, step_size=0.05, steps=4)}, (5, 4)),
        (PGDAT, {"attack_bn_mode": "train"}, {}, (ATTACK.steps + 1, ATTACK.steps)),
        (TRADES, {"beta": 6.0}, {}, (ATTACK.steps + 3, ATTACK.steps)),
        (Natural, {}, {}, (1, 0)),
        (PGDAT, {}, {"selector": Random()}, (0, 0)),
        (PGDAT, {}, {"selector": Random(report_error=True)}, (0, 0)),
    ],
    ids=["pgdat", "warm GradMatch", "another attack", "train mode", "trades", "natural", "random", "reported"],
)
def test_selections_are_a_part_of_the_passes(tmp_path, cls, arguments, selection, passes, fold_batchnorm):
    """The embedding's forward has no backward, because its gradient ends at the last layer."""
    net = CountingNet()
    callbacks = [CoresetSelection(0.5, **SELECTED | selection)]
    run = trainer(tmp_path, max_epochs=4, callbacks=callbacks, limit_val_batches=0)
    run.fit(build(cls, net=net, fold_batchnorm=fold_batchnorm, **arguments), TinyData())
    cost = saved(run, tmp_path / "a.ckpt")
    number = 22 * (1 if "warm" in selection else 2)
    assert (cost.selection_forwards, cost.selection_backwards) == tuple(number * each for each in passes)
    reported = 44 * getattr(selection.get("selector"), "report_error", False)  # which is no part of the cost
    seen = cost.forwards + reported * (ATTACK.steps + 1), cost.backwards + reported * ATTACK.steps
    assert seen == (net.counts["forwards"], net.counts["backwards"])


def test_passes_of_averages_count_in_selections_too(tmp_path):
    costs = []
    for name, callbacks in ((None, []), ("fast", [EMAWeights(0.9, extra={"fast": 0.5})])):
        attached = [CoresetSelection(0.5, **SELECTED), *callbacks]
        run = trainer(tmp_path, max_epochs=4, callbacks=attached, limit_val_batches=0)
        run.fit(build(NuAT2, attack=FGSM(eps=0.1), attack_average=name), TinyData())
        costs.append(saved(run, tmp_path / "a.ckpt"))
    alone, average = ((cost.selection_forwards, cost.selection_backwards) for cost in costs)
    assert average == alone
    assert min(alone) > 0


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5, 6, 7])
def test_a_resumed_run_counts_each_selection_once(tmp_path, clock, monkeypatch, step):
    """A selection takes 50 seconds, and each of the two batches of an epoch one."""

    def embed(*args):
        clock.now += 50
        return original(*args)

    original = coreset.embed
    monkeypatch.setattr(coreset, "embed", embed)
    path, costs = tmp_path / "stop.ckpt", []
    for callbacks, ckpt_path in (([SaveAt(step, path)], None), ([], path)):
        selection = CoresetSelection(0.5, **SELECTED)
        run = trainer(tmp_path, max_epochs=4, callbacks=[selection, Slow(clock), *callbacks])
        run.fit(build(PGDAT), TinyData(), ckpt_path=ckpt_path)
        costs.append(saved(run, tmp_path / "end.ckpt"))
        clock.now = 12345.0
    whole, rest = costs
    assert rest == whole
    assert (whole.seconds, whole.cpu_seconds) == (8 + 2 * 50, 2 * (8 + 2 * 50))
    assert (whole.selection_seconds, whole.selection_cpu_seconds) == (100, 200)
    assert whole.selection_forwards == 2 * 22 * (ATTACK.steps + 1)


def test_a_cost_that_does_not_know_of_selections_has_none():
    old = {name: value for name, value in Cost(1.0, 2.0, 3, 4, ["a"], ["b"])._asdict().items() if "sel" not in name}
    assert cost_of({"lit_robust": {"cost": old}}) == Cost(1.0, 2.0, 3, 4, ["a"], ["b"])


class SaveAt(Callback):
    """Saves after a batch, counted over all epochs."""

    def __init__(self, step: int, path: Any) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("step", [1, 2, 3, 4], ids=lambda step: f"after batch {step}")
def test_a_resumed_run_goes_on_from_the_checkpoints_cost(tmp_path, clock, step):
    path = tmp_path / "stop.ckpt"
    costs = []
    for callbacks, ckpt_path in (([SaveAt(step, path)], None), ([], path)):
        run = trainer(tmp_path, max_epochs=2, callbacks=[Slow(clock), *callbacks], val_check_interval=2)
        run.fit(build(PGDAT), TinyData(), ckpt_path=ckpt_path)
        costs.append(saved(run, tmp_path / "end.ckpt"))
        clock.now = 12345.0
    whole, rest = costs
    assert whole.seconds == 6
    assert rest == whole


def test_a_run_resumed_on_other_hardware_lists_both(tmp_path, monkeypatch):
    run = fit(build(Natural), tmp_path, max_epochs=1)
    first = saved(run, tmp_path / "a.ckpt")
    monkeypatch.setattr(module, "hardware_of", lambda device: "an abacus")
    run = fit(build(Natural), tmp_path, ckpt_path=tmp_path / "a.ckpt", precision="bf16-mixed")
    cost = saved(run, tmp_path / "b.ckpt")
    assert cost.hardware == [hardware_of(torch.device("cpu")), "an abacus"]
    assert cost.precision == ["32-true", "bf16-mixed"]
    assert cost.where == f"{first.where}, then an abacus"
    assert cost.forwards == 2 * first.forwards


def test_the_cost_of_an_older_versions_checkpoint_stays_unknown(tmp_path):
    fit(build(Natural), tmp_path, max_epochs=1).save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    del checkpoint["lit_robust"]["cost"]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    assert cost_of(checkpoint) is None
    fit(build(Natural), tmp_path, ckpt_path=tmp_path / "old.ckpt").save_checkpoint(tmp_path / "b.ckpt")
    assert cost_of(torch.load(tmp_path / "b.ckpt", weights_only=True)) is None


@pytest.mark.parametrize(
    "change",
    [
        {"seconds": float("nan")}, {"seconds": "1"}, {"forwards": -1}, {"backwards": True}, {"cpu_seconds": None},
        {"hardware": "a"}, {"precision": [1]}, {"selection_seconds": -1.0}, {"selection_forwards": None},
    ],
    ids=str,
)  # fmt: skip
def test_a_broken_cost_is_refused(change):
    good = Cost(1.0, 2.0, 3, 4, ["a"], ["32-true"])
    assert cost_of({"lit_robust": {"cost": good._asdict()}}) == good
    with pytest.raises(ValueError, match=r"lit_robust\.cost"):
        cost_of({"lit_robust": {"cost": good._asdict() | change}})
    with pytest.raises(ValueError, match=r"lit_robust\.cost"):
        cost_of({"lit_robust": {"cost": [1.0]}})
