"""Mistakes that once ended in a traceback, or in a riddle of another package: each is now a sentence, or works."""

import os
import re
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning, BatchSizeFinder, Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import ReduceLROnPlateau
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from lit_robust import load_net, load_weights, losses
from lit_robust.attacks import (
    FGSM,
    PGD,
    AutoAttack,
    FriendlyPGD,
    FrobeniusNorm,
    NuclearNorm,
    Square,
    StAdv,
    TargetedPGD,
)
from lit_robust.batch import Batch, as_batch
from lit_robust.callbacks import (
    AdversarialTraining,
    AttributeRamp,
    DelayedStart,
    EMAWeights,
    PredictionWriter,
    StopAfterDrop,
)
from lit_robust.data import DigitsDataModule
from lit_robust.defenses import PGDAT, TRADES, Natural
from lit_robust.measures.pictures import Examples, draw
from lit_robust.nets import digits_cnn, small_cnn
from lit_robust.schedules import (
    CyclicStep,
    Linear,
    MultiStep,
    PeriodicCosine,
    PiecewiseLinear,
    Product,
    Schedule,
    Staircase,
)
from tests.front_door import refusal, tiny
from tests.methods import build
from tests.test_resume import TinyData
from tests.tiny import CLASSES, SaveAfter, TinyNet, assert_equal, images, indexed, loader, trainer


class Returns(TinyNet):
    """A net that gives its logits in another form, in one of its modes or in both."""

    def __init__(self, form, modes=(True, False)):
        super().__init__()
        self.form, self.modes = form, modes

    def forward(self, x):
        logits = super().forward(x)
        return self.form(logits) if self.training in self.modes else logits


class User(LightningModule):
    """A module of the user's own."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch, batch_idx):
        found = self.net(batch[0])
        return nn.functional.cross_entropy(getattr(found, "logits", found), batch[1])

    def validation_step(self, batch, batch_idx):
        pass


def as_attribute(logits):
    return SimpleNamespace(logits=logits, aux=None)


FORMS = {
    "tuple": lambda logits: (logits, logits),
    "list": lambda logits: [logits],
    "dict": lambda logits: {"logits": logits},
    "object": lambda logits: SimpleNamespace(scores=logits),
    "nothing": lambda logits: None,
}


def fit(module, *callbacks, **options):
    run = trainer(".", max_epochs=1, callbacks=list(callbacks), **options)
    run.fit(module, loader(images(8)), loader(images(8)))
    return run


# What a net returns.


@pytest.mark.parametrize("modes", [(True, False), (True,), (False,)])
@pytest.mark.parametrize("attack_bn_mode", ["eval", "train"])
def test_logits_are_taken_from_an_attribute_in_either_mode(modes, attack_bn_mode):
    plain, wrapped = (
        build(PGDAT, net=net, attack_bn_mode=attack_bn_mode) for net in (TinyNet(), Returns(as_attribute, modes))
    )
    for defense in (plain, wrapped):
        fit(defense, EMAWeights(0.9, extra={"fast": 0.5}))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(plain.parameters(), wrapped.parameters(), strict=True))
    assert plain.state_dict().keys() == wrapped.state_dict().keys()


@pytest.mark.parametrize("modes", [(True, False), (True,), (False,)])
@pytest.mark.parametrize("form", FORMS)
def test_anything_else_is_refused_in_either_mode_before_an_update(form, modes):
    defense = build(PGDAT, net=Returns(FORMS[form], modes))
    before = [weight.clone() for weight in defense.parameters()]
    with pytest.raises(ValueError, match="logits"):
        fit(defense)
    assert all(torch.equal(old, new) for old, new in zip(before, defense.parameters(), strict=True))


@pytest.mark.parametrize("modes", [(True,), (False,)])
def test_a_module_of_the_users_own_may_return_logits_as_an_attribute_in_one_mode(modes):
    net = Returns(as_attribute, modes)
    module = User(net)
    fit(module, AdversarialTraining(PGD(0.1, steps=1), net="net", attack_bn_mode="train"))


# Precisions, labels and sizes of batches.


def test_double_precision_trains_and_tests():
    x = torch.rand(8, 1, 28, 28)
    batches = loader(Batch(x, torch.arange(8), *images(8)[2:]))
    defense = PGDAT(small_cnn(), 10, PGD(0.1, steps=1))
    run = trainer(".", max_epochs=1, precision="64-true")
    run.fit(defense, batches, batches)
    run.test(defense, batches, verbose=False)
    assert next(defense.parameters()).dtype == torch.float64


@pytest.mark.parametrize("attack", [PGD(0.1, steps=2), FGSM(0.1), AutoAttack(0.1)])
def test_an_empty_batch_has_no_adversarial_images(attack):
    x, y = images(8)[:2]
    found = attack(TinyNet().eval(), x[:0], y[:0])
    assert found.shape == (0, *x.shape[1:])


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_integers_of_any_size_are_labels(dtype, indexed):
    batch = images(8)
    short = batch._replace(y=batch.y.to(dtype))
    found = as_batch(short if indexed else short[:2])
    assert found.y.dtype == torch.int64
    assert torch.equal(found.y, batch.y)


@pytest.mark.parametrize("y", [images(8).y.float(), images(8).y.double(), images(8).y > 1])
def test_labels_that_are_no_integers_are_refused(y):
    for batch in (images(8)._replace(y=y), (images(8).x, y)):
        with pytest.raises(ValueError, match=f"labels of {y.dtype}"):
            as_batch(batch)


@pytest.mark.parametrize("kind", ["Batch", "pair"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float32])
@pytest.mark.parametrize("form", ["one-hot", "(N, 1)"])
def test_labels_of_two_dimensions_are_refused_in_fit_with_the_way_to_one(form, dtype, kind):
    batch = images(8)
    y = nn.functional.one_hot(batch.y, CLASSES) if form == "one-hot" else batch.y[:, None]
    data = batch._replace(y=y.to(dtype))
    batches = indexed(data) if kind == "Batch" else loader(data)
    remedy = r"argmax\(dim=1\)" if form == "one-hot" else r"squeeze\(1\)"
    with pytest.raises(ValueError, match=rf"^labels of shape \(8, \d\) .*{remedy}"):
        trainer(".", max_epochs=1).fit(build(PGDAT), batches)


BARE = [PGD(0.1, steps=1), FGSM(0.1), NuclearNorm(0.1), FrobeniusNorm(0.1), AutoAttack(0.1, version="v1")]


@pytest.mark.parametrize("attack", BARE, ids=lambda attack: type(attack).__name__)
def test_an_attack_alone_takes_labels_of_any_integer_type_and_no_others(attack):
    net, (x, y) = TinyNet().eval(), images(4)[:2]
    expected = attack(net, x, y)
    torch.manual_seed(0)
    for dtype in (torch.uint8, torch.int32):
        torch.manual_seed(torch.initial_seed())
        assert attack(net, x, y.to(dtype)).shape == expected.shape
    for wrong in (y.float(), y > 1, y[:, None], y[:3], y.to(torch.uint16)):
        with pytest.raises(ValueError, match="labels"):
            attack(net, x, wrong)


@pytest.mark.parametrize(
    "attack",
    [Square(0.1), StAdv(), FriendlyPGD(0.1), TargetedPGD(0.1), PGD(0.1, loss=losses.margin)],
    ids=lambda attack: type(attack).__name__,
)
def test_an_attack_alone_that_needs_classes_refuses_shares_of_them(attack):
    x, y = images(4)[:2]
    with pytest.raises(ValueError, match=r"\blabels .*\(N,\)"):
        attack(TinyNet().eval(), x, nn.functional.one_hot(y, CLASSES).float())


def test_an_attack_alone_refuses_a_function_in_place_of_a_net():
    with pytest.raises(TypeError, match=r"^net=.*nn\.Module"):
        PGD(0.1)(lambda x: x.flatten(1), *images(4)[:2])


@pytest.mark.filterwarnings(r"ignore:You are trying to `self.log\(\)` but `Trainer\(barebones=True\)`")
@pytest.mark.parametrize("options", [{"log_every_n_steps": 0}, {"barebones": True}, {"fast_dev_run": True}])
@pytest.mark.parametrize("method", [Natural, PGDAT])
def test_trainers_that_log_nothing_train(method, options):
    if "barebones" in options:  # which refuses most others
        run = Trainer(barebones=True, accelerator="cpu", devices=1, max_epochs=1)
    else:
        ramps = [] if method is Natural else [AttributeRamp("attack.eps", Linear(0, 0.1, 0, 1))]
        run = trainer(".", max_epochs=1, callbacks=ramps, **options)
    run.fit(build(method), loader(images(8)), loader(images(8)))
    assert run.global_step == 1


@pytest.mark.parametrize("method", [Natural, PGDAT])
def test_a_last_image_alone_in_a_net_with_batchnorm_is_left_out_by_drop_last(method):
    class Narrow(TinyNet):
        def forward(self, x):
            return self.norm(super().forward(x))

    net = Narrow()
    net.norm = nn.BatchNorm1d(CLASSES)
    with pytest.raises(ValueError, match="drop_last"):
        trainer(".", max_epochs=1).fit(build(method, net=net), loader(images(9)), loader(images(8)))


def plateau(optimizer, key):
    """A plateau scheduler in the direction of its metric."""
    return ReduceLROnPlateau(optimizer, monitor=key, mode=mode(key))


def mode(key):
    """The direction of a metric."""
    return "max" if "acc" in key else "min"


# Monitors of what is never logged.

MISSPELT = {"val": "val/acc/robst", "train": "train/los", "no split": "loss"}
MONITORS = {
    "EarlyStopping": lambda key: ([EarlyStopping(key, mode=mode(key))], {}),
    "ModelCheckpoint": lambda key: ([ModelCheckpoint("saved", monitor=key, mode=mode(key))], {}),
    "DelayedStart": lambda key: ([DelayedStart(latest_epoch=1, monitor=key)], {}),
    "ReduceLROnPlateau": lambda key: ([], {"lr_scheduler": lambda sgd: plateau(sgd, key)}),
}


@pytest.mark.parametrize("sanity", [0, 1])
@pytest.mark.parametrize("key", MISSPELT)
@pytest.mark.parametrize("watcher", MONITORS)
def test_a_monitor_of_what_is_never_logged_is_refused_before_training(watcher, key, sanity, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    callbacks, arguments = MONITORS[watcher](MISSPELT[key])
    defense = build(PGDAT, **arguments)
    run = trainer(
        ".", max_epochs=2, callbacks=callbacks, num_sanity_val_steps=sanity, enable_checkpointing=watcher[0] == "M"
    )
    with pytest.raises(ValueError, match=f"{watcher} .*{MISSPELT[key]}, "):
        run.fit(defense, loader(images(24)), loader(images(8)))
    assert run.global_step == 0


@pytest.mark.parametrize("key", ["val/acc/robust", "train/loss", "train/acc/robust"])
@pytest.mark.parametrize("watcher", ["EarlyStopping", "ModelCheckpoint", "ReduceLROnPlateau"])
def test_a_monitor_of_what_is_logged_is_no_mistake(watcher, key, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    callbacks, arguments = MONITORS[watcher](key)
    run = trainer(".", max_epochs=2, callbacks=callbacks, enable_checkpointing=watcher[0] == "M")
    run.fit(build(PGDAT, **arguments), loader(images(8)), loader(images(8)))
    assert run.current_epoch == 2


@pytest.mark.parametrize(
    "silent", [EMAWeights(), PredictionWriter(), StopAfterDrop()], ids=lambda one: type(one).__name__
)
def test_callbacks_that_log_no_metric_do_not_hide_a_wrong_monitor(silent, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    drop = {"lr_scheduler": MultiStep([1])} if isinstance(silent, StopAfterDrop) else {}
    run = trainer(".", max_epochs=2, callbacks=[silent, EarlyStopping("val/acc/robst")])
    with pytest.raises(ValueError, match=r"^EarlyStopping .*val/acc/robst"):
        run.fit(build(PGDAT, **drop), loader(images(24)), loader(images(8)))


def test_a_users_subclass_of_a_callback_that_logs_no_metric_may_log_one(tmp_path):
    class Logs(EMAWeights):
        def on_validation_epoch_end(self, trainer, pl_module):
            super().on_validation_epoch_end(trainer, pl_module)
            pl_module.log("val/mine", 0.5)

    run = trainer(tmp_path, max_epochs=2, callbacks=[Logs(), EarlyStopping("val/mine")])
    run.fit(build(PGDAT), loader(images(24)), loader(images(8)))
    assert run.current_epoch == 2


@pytest.mark.parametrize("every", [0, -1])
def test_validation_in_no_epoch_is_asked_for_in_other_ways(every):
    with pytest.raises(ValueError, match="check_val_every_n_epoch"):
        fit(build(Natural), check_val_every_n_epoch=every)


def test_validation_after_no_batch_is_refused():
    with pytest.raises(ValueError, match="val_check_interval=0"):
        fit(build(Natural), val_check_interval=0)


@pytest.mark.filterwarnings("ignore")  # of Lightning's search
def test_a_state_that_lightning_saves_in_mid_training_is_restored():
    run = trainer(".", max_epochs=1, callbacks=[BatchSizeFinder(mode="binsearch", max_trials=1)])
    run.fit(build(Natural, net=digits_cnn(10, width=2), num_classes=10), DigitsDataModule(train_size=64, batch_size=32))
    assert run.current_epoch == 1


# Wrong types in Python.

WEIGHT = nn.Parameter(torch.zeros(1))
OPTIMIZER = torch.optim.SGD([WEIGHT], lr=0.1)


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: build(PGDAT, optimizer=torch.optim.Adam([WEIGHT])), "optimizer"),
        (lambda: build(PGDAT, optimizer=None), "optimizer"),
        (lambda: build(PGDAT, optimizer="adam"), "optimizer"),
        (lambda: build(PGDAT, lr_scheduler=torch.optim.lr_scheduler.StepLR(OPTIMIZER, 1)), "lr_scheduler"),
        (lambda: build(PGDAT, lr_scheduler="cosine"), "lr_scheduler"),
        (lambda: build(PGDAT, lr_scheduler=MultiStep), "lr_scheduler"),
        (lambda: build(PGDAT, momentum=0.9), "momentum"),
        (lambda: build(PGDAT, optimizer=lambda weights: None).configure_optimizers(), "optimizer"),
        (lambda: build(PGDAT, lr_scheduler=lambda sgd: None).configure_optimizers(), "lr_scheduler"),
        (lambda: build(PGDAT, attack="pgd"), "attack"),
        (lambda: build(PGDAT, attack=None), "attack"),
        (lambda: build(PGDAT, test_attacks=[PGD()]), "test_attacks"),
        (lambda: build(PGDAT, test_attacks=PGD()), "test_attacks"),
        (lambda: build(PGDAT, net="resnet18"), "net"),
        (lambda: build(PGDAT, net=TinyNet), "net"),
        (lambda: build(PGDAT, compile="yes"), "compile"),
        (lambda: build(PGDAT, channels_last="yes"), "channels_last"),
        (lambda: DigitsDataModule(batch_size="32"), "batch_size"),
        (lambda: DigitsDataModule(val_size=0.1), "val_size"),
        (lambda: DigitsDataModule(augment="no"), "augment"),
        (lambda: DigitsDataModule(drop_last="no"), "drop_last"),
        (lambda: EMAWeights("0.9"), "decay"),
        (lambda: EMAWeights(extra=0.9), "extra"),
        (lambda: MultiStep(5), "milestones"),
        (lambda: PiecewiseLinear([0, 1], 1), "values"),
        (lambda: Staircase(0, [1]), "times"),
        (lambda: CyclicStep(1, 1, 1, after=6), "after"),
        (lambda: PeriodicCosine(0, 1, 1, ends=5), "ends"),
        (lambda: Product(MultiStep([5])), "schedules"),
        (lambda: AttributeRamp(5, MultiStep([5])), "attribute"),
    ],
)
def test_an_argument_of_the_wrong_type_is_named(call, argument):
    with pytest.raises((TypeError, ValueError), match=rf"\b{argument}\b"):
        call()


# Wrapped nets, and names that are no formulas.


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda net: nn.DataParallel(torch.compile(net))])
def test_a_wrapped_net_has_its_own_names_in_checkpoints(wrap):
    net = TinyNet()
    defense = build(PGDAT, net=wrap(net))
    assert defense.net is net
    assert defense.state_dict().keys() == build(PGDAT).state_dict().keys()
    assert defense.compiled == (wrap is not nn.DataParallel)


def compiled_within(net: TinyNet, backend: Any = "eager") -> TinyNet:
    net.body = torch.compile(net.body, backend=backend)
    net.body._orig_mod[0] = torch.compile(net.body._orig_mod[0], backend=backend)
    net.head = torch.compile(net.head, backend=backend)
    return net


@pytest.mark.filterwarnings("ignore")  # of the compiler's
@pytest.mark.parametrize("when", ["before", "between", "never"])
def test_a_net_with_wrapped_parts_has_plain_names_in_checkpoints(when, tmp_path):
    """They load into compiled and plain nets, and a training that was saved with the wrappers' names goes on."""
    plain = build(PGDAT)
    torch.compiler.reset()
    module = build(PGDAT, net=compiled_within(TinyNet()) if when == "before" else TinyNet())
    if when == "between":
        compiled_within(module.net)
        module.net.head = nn.DataParallel(module.net.head)
    run = trainer(tmp_path, max_epochs=1, callbacks=[EMAWeights(0.5, {"fast": 0.5})])
    run.fit(module, loader(images(8)))
    run.save_checkpoint(tmp_path / "a.ckpt")
    assert module.compiled == (when != "never")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert checkpoint["state_dict"].keys() == plain.state_dict().keys()
    assert checkpoint["extra_averages"]["fast"].keys() == plain.net.state_dict().keys()
    x = images(4).x
    right = load_net(tmp_path / "a.ckpt", net=TinyNet())(x)
    parallel = TinyNet()
    parallel.body = nn.DataParallel(torch.compile(parallel.body, backend="eager"))
    for net in (
        compiled_within(TinyNet()),
        torch.compile(TinyNet(), backend="eager"),
        parallel,
        nn.DataParallel(TinyNet()),
        nn.DataParallel(compiled_within(TinyNet())),
    ):
        torch.testing.assert_close(load_net(tmp_path / "a.ckpt", net=net)(x), right)
        nn.init.zeros_(next(net.parameters()))
        torch.testing.assert_close(load_weights(net, tmp_path / "a.ckpt").eval()(x), right)
    torch.save(parallel.state_dict(), tmp_path / "parallel.pth")
    nn.init.zeros_(next(parallel.parameters()))
    torch.testing.assert_close(load_weights(parallel, tmp_path / "parallel.pth")(x), right)
    for name in ("state_dict", "current_model_state"):
        checkpoint[name] = {key.replace("body.", "body._orig_mod."): one for key, one in checkpoint[name].items()}
    averages = checkpoint["extra_averages"]
    averages["fast"] = {key.replace("body.", "body._orig_mod."): one for key, one in averages["fast"].items()}
    torch.save(checkpoint, tmp_path / "older.ckpt")
    torch.testing.assert_close(load_net(tmp_path / "older.ckpt", net=TinyNet())(x), right)
    again = trainer(tmp_path, max_epochs=2, callbacks=[EMAWeights(0.5, {"fast": 0.5})])
    again.fit(build(PGDAT), loader(images(8)), ckpt_path=tmp_path / "older.ckpt", weights_only=True)
    assert again.global_step == 2


def test_a_compiled_part_keeps_the_options_that_it_was_compiled_with():
    calls = []

    def backend(graph, example):
        calls.append(graph)
        return graph.forward

    class Within(nn.Module):  # torch 2.6 compiles no nn.Sequential in place
        def __init__(self):
            super().__init__()
            self.part = torch.compile(TinyNet(), backend=backend)

        def forward(self, x):
            return self.part(x)

    torch.compiler.reset()
    build(PGDAT, net=Within()).net(images(2).x)
    assert len(calls) == 1


def test_a_compiled_net_keeps_the_options_that_it_was_compiled_with():
    calls = []

    def backend(graph, example):
        calls.append(graph)
        return graph.forward

    def in_place(net):
        net.compile(backend=backend)
        return net

    for wrap in (lambda net: torch.compile(net, backend=backend), in_place):
        calls.clear()
        torch.compiler.reset()
        defense = build(PGDAT, net=wrap(TinyNet()))
        with torch.no_grad():
            defense.net(images(8).x)
        assert calls
        assert defense.compiled
        assert defense.state_dict().keys() == build(PGDAT).state_dict().keys()


def test_a_net_that_torch_cannot_copy_is_refused_by_averages_with_what_to_use():
    net = TinyNet()
    with pytest.warns(FutureWarning, match="weight_norm"):
        nn.utils.weight_norm(net.body[0])
    with pytest.raises(ValueError, match=r"^EMAWeights .*parametrizations\.weight_norm"):
        fit(build(PGDAT, net=net), EMAWeights(0.9))
    net = TinyNet()
    nn.utils.parametrizations.weight_norm(net.body[0])
    fit(build(PGDAT, net=net), EMAWeights(0.9, extra={"fast": 0.5}))


class Unfreeze(BaseFinetuning):
    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.net.body, train_bn=False)

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.net.body, optimizer, train_bn=False)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"lr_scheduler": MultiStep([2])},
        {"momentum": MultiStep([2], 0.5)},
        {"lr_scheduler": partial(torch.optim.lr_scheduler.StepLR, step_size=1)},
    ],
)
def test_a_group_that_is_added_in_mid_training_is_trained_and_resumed(arguments, tmp_path):
    def trained_first(weights):
        return torch.optim.SGD([weight for weight in weights if weight.requires_grad], lr=0.1, momentum=0.9)

    module = build(PGDAT, optimizer=trained_first, **arguments)
    before = module.net.body[0].weight.clone()
    run = trainer(".", max_epochs=2, callbacks=[Unfreeze()])
    run.fit(module, loader(images(8)), loader(images(8)))
    run.save_checkpoint(tmp_path / "a.ckpt")
    module = build(PGDAT, optimizer=trained_first, **arguments)
    run = trainer(".", max_epochs=3, callbacks=[Unfreeze()])
    run.fit(module, loader(images(8)), loader(images(8)), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert len(run.optimizers[0].param_groups) == 2
    assert not torch.equal(before, module.net.body[0].weight)


@pytest.mark.filterwarnings("ignore:The provided params to be frozen already exist")  # BatchNorm, with train_bn
@pytest.mark.parametrize("batches", [4, 6, 7])
@pytest.mark.parametrize("train_bn", [False, True])
def test_a_training_that_has_unfrozen_weights_equals_its_resumed_one(train_bn, batches, tmp_path):
    class UnfreezeAll(BaseFinetuning):
        def freeze_before_training(self, pl_module):
            self.freeze(pl_module.net.body, train_bn=train_bn)

        def finetune_function(self, pl_module, epoch, optimizer):
            if epoch == 1:
                self.unfreeze_and_add_param_group(pl_module.net.body, optimizer, lr=0.01, train_bn=train_bn)

    def run(*callbacks, **kwargs):
        torch.manual_seed(0)
        module = build(Natural, optimizer=lambda weights: torch.optim.SGD(filter(trains, weights), 0.1, momentum=0.9))
        fitted = trainer(tmp_path, max_epochs=3, callbacks=[UnfreezeAll(), *callbacks])
        fitted.fit(module, datamodule=TinyData(), weights_only=True, **kwargs)
        return module.state_dict()

    whole = run(SaveAfter(batches, tmp_path / "a.ckpt"))
    assert_equal(run(ckpt_path=tmp_path / "a.ckpt"), whole)


SCHEDULES = {"which is 0 in an epoch": Staircase([0, 1, 2], [1, 0, 1]), "which falls": Linear(1, 0.1, 0, 4)}


@pytest.mark.parametrize("rate", SCHEDULES)
@pytest.mark.parametrize("batches", [3, 4, 6, 7])
def test_the_rate_of_an_added_group_follows_the_schedule_exactly_after_a_resume(rate, batches, tmp_path):
    class UnfreezeAtLowRate(Unfreeze):
        def finetune_function(self, pl_module, epoch, optimizer):
            if epoch == 0:
                self.unfreeze_and_add_param_group(pl_module.net.body, optimizer, lr=0.037, train_bn=False)

    class Rates(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    def run(*callbacks, lr=0.1, **kwargs):
        rates.clear()
        module = build(
            Natural,
            optimizer=lambda weights: torch.optim.SGD(filter(trains, weights), lr, momentum=0.9),
            lr_scheduler=SCHEDULES[rate],
        )
        fitted = trainer(tmp_path, max_epochs=3, callbacks=[UnfreezeAtLowRate(), Rates(), *callbacks])
        fitted.fit(module, datamodule=TinyData(), weights_only=True, **kwargs)
        return rates.copy()

    rates = []
    whole = run(SaveAfter(batches, tmp_path / "a.ckpt"))
    assert len(whole[0]) == 2
    assert run(ckpt_path=tmp_path / "a.ckpt") == whole[batches:]
    doubled = [pytest.approx([2 * rate for rate in each]) for each in whole[batches:]]
    assert run(ckpt_path=tmp_path / "a.ckpt", lr=0.2) == doubled


def trains(weight):
    return weight.requires_grad


def test_all_weights_may_be_frozen_until_a_callback_unfreezes_them_in_the_first_epoch():
    class UnfreezeAtOnce(Unfreeze):
        def freeze_before_training(self, pl_module):
            self.freeze(pl_module.net, train_bn=True)

        def finetune_function(self, pl_module, epoch, optimizer):
            self.make_trainable(pl_module.net)

    module = build(Natural)
    before = module.net.head.weight.clone()
    trainer(".", max_epochs=1, callbacks=[UnfreezeAtOnce()]).fit(module, loader(images(8)))
    assert not torch.equal(before, module.net.head.weight)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: build(PGDAT, atack=PGD()), "PGDAT .*'atack': .* attack"),
        (lambda: build(TRADES, bta=6), "TRADES .*'bta': .* beta"),
        (lambda: build(PGDAT, optimiser=1), "PGDAT .*'optimiser': .* optimizer"),
        (lambda: build(Natural, nonsense=1), "Natural .*'nonsense': remove it"),
        (lambda: small_cnn(widht=3), "small_cnn .*'widht': remove it"),
    ],
)
def test_a_misspelt_argument_names_what_is_built(call, named):
    with pytest.raises(TypeError, match=rf"^{named}[.?]$"):
        call()


def test_names_of_classes_are_drawn_as_they_are(tmp_path):
    x, y = images(4)[:2]
    names = ["$x_{", "a$b$", "\\frac", "$"]
    draw(Examples(x, x, y, torch.eye(4), torch.eye(4)), "$x_{", class_names=names).savefig(tmp_path / "drawn.png")


# The command line.


def system(command: str) -> int:
    """Stands for ``os.system``."""
    Path("HACKED").touch()
    return 0


def unannotated(params, lr=0.1):
    return torch.optim.SGD(params, lr=lr)


@pytest.mark.parametrize("argument", ["optimizer", "lr_scheduler"])
def test_what_makes_no_such_thing_is_never_called(argument, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = f"{{class_path: {__name__}.system, init_args: {{command: x}}}}"
    says = refusal(capsys, "fit", "-c", tiny(tmp_path), "-c", f"model: {{init_args: {{{argument}: {asked}}}}}")
    assert says.startswith(f"model.{argument}: ")
    assert not Path("HACKED").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (f"--model.optimizer {__name__}.unannotated", "model.optimizer: .*annotated"),
        ("--trainer.max_epoch 3", r"--trainer\.max_epoch\b.* --trainer\.max_epochs\b"),
        ("--model.atack.eps 0.2", r"--model\.atack\.eps\b.* --model\.attack\.eps\b"),
        ("--model.init_args.atack.eps 0.2", r" --model\.init_args\.attack\.eps\b"),
        ("--model.attack.epss 0.2", r"model\.attack: .*PGD .*'epss'.* eps\b"),
        ("--model.test_attacks.pgd2.step 2", r"'step'.* steps\b"),
        ("--model.optimzer.lr 1", r" --model\.optimizer\.lr\b"),
        ("--data.batchsize 3", r"data: .*DigitsDataModule .*'batchsize'.* batch_size\b"),
        ("--trainer.callbacks+=EMAWeights --trainer.callbacks.decy 1", r"'decy'.* decay\b"),
        ("--trainr.max_epochs 3", r" --trainer\.max_epochs\b"),
        ("--max_epochs 3", r" --trainer\.max_epochs\b"),
        ("--attack.eps 0.1", r" --model\.attack\.eps\b"),
        ("--ckpt_pth last", r" --ckpt_path\b"),
        ("--model.momentum 0.9", r"model\.momentum: .*0\.9"),
        ("--model.lr_scheduler ReduceLROnPlateau", r"model\.lr_scheduler: .*\bmonitor\b"),
        ("--modl PGDAT", r" --model\b"),
    ],
)
def test_a_flag_that_makes_no_sense_is_refused_in_one_sentence(flags, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert re.search(says, refusal(capsys, "fit", "-c", tiny(tmp_path), *flags.split()))


#: Constructors that fail by themselves, and the answer: their own sentence, or the class with the error.
FAILING = {
    "net": "--model.net {here}.FailingNet",
    "a function as net": "--model.net {here}.failing_net",
    "attack": "--model.attack {here}.FailingAttack",
    "val_attack": "--model.val_attack {here}.FailingAttack",
    "optimizer": "--model.optimizer {here}.FailingOptimizer",
    "lr_scheduler": "--model.lr_scheduler {here}.FailingScheduler",
    "a schedule": "--model.lr_scheduler {here}.FailingSchedule",
    "momentum": "--model.momentum {here}.FailingSchedule",
    "callback": "--trainer.callbacks+={here}.FailingCallback",
    "logger": "--trainer.logger {here}.FailingLogger",
    "data": "--data {here}.FailingData",
    "method": "--model {here}.FailingMethod",
}


@pytest.mark.parametrize("error", [ValueError, ImportError, KeyError, RuntimeError, AssertionError, AttributeError])
@pytest.mark.parametrize("part", FAILING)
def test_a_constructor_that_fails_says_why(part, error, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.modules[__name__], "ERROR", error("of mine"))
    says = refusal(capsys, "fit", "-c", tiny(tmp_path), *FAILING[part].format(here=__name__).split())
    if error in (ValueError, ImportError):
        assert says == "of mine"
    else:
        assert re.fullmatch(rf"{__name__}\.(F|f)ailing_?\w+ cannot be built \({error.__name__}: .?of mine.?\)\.", says)


ERROR: Exception = ValueError("of mine")


def fail():
    raise ERROR


def failing_net(num_classes: int = 10) -> nn.Module:
    fail()


class FailingNet(nn.Module):
    def __init__(self, num_classes: int = 10) -> None:
        fail()


class FailingAttack(PGD):
    def __post_init__(self):
        fail()


class FailingOptimizer(torch.optim.SGD):
    def __init__(self, params, lr: float = 0.1) -> None:
        fail()


class FailingScheduler(torch.optim.lr_scheduler.LRScheduler):
    def __init__(self, optimizer) -> None:
        fail()


class FailingSchedule(Schedule):
    def __init__(self, start: float = 0.1) -> None:
        fail()

    def __call__(self, time):
        return 1.0


class FailingCallback(Callback):
    def __init__(self, number: int = 1) -> None:
        fail()


class FailingLogger(CSVLogger):
    def __init__(self, save_dir: str = ".", name: str = "a") -> None:
        fail()


class FailingData(DigitsDataModule):
    def __init__(self, batch_size: int = 32) -> None:
        fail()


class FailingMethod(PGDAT):
    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        fail()


@pytest.mark.parametrize("logger", ["TensorBoardLogger", "MLFlowLogger", "CometLogger", "NeptuneLogger"])
def test_a_logger_whose_package_is_missing_names_it(logger, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    package = logger.removesuffix("Logger").lower()
    if find_spec({"comet": "comet_ml"}.get(package, package)) is not None:
        pytest.skip(f"{package} is installed")
    says = refusal(capsys, "fit", "-c", tiny(tmp_path), "--trainer.logger", logger)
    assert package in says.lower()
    assert "Namespace" not in says


def test_wandb_without_a_login_is_answered_by_one_sentence(tmp_path):
    """In a process of its own: an offline run leaves W&B offline for the rest of a process."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    command = [sys.executable, "-m", "lit_robust", "fit", "-c", tiny(tmp_path), "--trainer.logger", "WandbLogger"]
    run = subprocess.run(
        command, cwd=tmp_path, env={**env, "HOME": str(tmp_path)}, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 1
    assert re.search("wandb login.*offline", run.stderr)
