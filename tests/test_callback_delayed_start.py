import csv
import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import Checkpoint
from torch.nn import functional as F

from lit_robust.attacks import PGD
from lit_robust.callbacks import (
    AdversarialTraining,
    AttributeRamp,
    CatastrophicOverfittingMonitor,
    DelayedStart,
    EMAWeights,
    Plateau,
    SwitchRule,
    delayed_start,
)
from lit_robust.cli import main
from lit_robust.defenses import PGDAT, FreeAT, Natural
from lit_robust.schedules import Cosine, Cyclic, Linear, MultiStep
from tests import test_resume
from tests.methods import METHODS, build
from tests.test_resume import (
    DIGITS,
    LAST,
    STOPS,
    Setup,
    assert_the_same,
    command,
    differences,
    kill_when_written,
    specified,
)
from tests.tiny import TinyNet, images, indexed, trainer

whole = test_resume.whole  # a fixture


# The rule.

#: Recorded: `train/loss` of Natural with fast_cnn, built after seed_everything(0), on MNISTDataModule(train_size=20000,
#: batch_size=128), with SGD(lr=0.05, momentum=0.9, weight_decay=5e-4), 40 epochs in one thread and without validation.
MNIST = [
    *[0.7980, 0.1355, 0.0862, 0.0679, 0.0468, 0.0403, 0.0325, 0.0290, 0.0217, 0.0221],
    *[0.0163, 0.0148, 0.0126, 0.0127, 0.0136, 0.0167, 0.0100, 0.0058, 0.0043, 0.0052],
    *[0.0034, 0.0047, 0.0033, 0.0029, 0.0026, 0.0049, 0.0047, 0.0050, 0.0095, 0.0185],
    *[0.0198, 0.0137, 0.0099, 0.0099, 0.0062, 0.0044, 0.0042, 0.0023, 0.0022, 0.0074],
]


@pytest.mark.parametrize(
    ("losses", "levelled_off"),
    [
        ([1.0, 0.8, 0.5, 0.4], False),  # 0.90 - 0.45 = 0.45
        ([1.0, 0.5, 0.45, 0.39, 0.38], False),  # 0.475 - 0.385 = 0.09
        ([1.0, 0.5, 0.45, 0.41, 0.40], False),  # 0.475 - 0.405 = 0.07
        ([1.0, 0.5, 0.45, 0.44, 0.43], True),  # 0.475 - 0.435 = 0.04 < 0.05
        ([2.0, 0.5, 0.45, 0.41, 0.40], True),  # 0.07 < 0.05 * 2
        ([1.0, 0.5, 0.5, 0.9, 0.9], True),  # a rise
        ([1.0, 0.5, 0.5], False),  # too few for two windows
    ],
)
def test_the_plateau_is_two_windows_of_nearly_the_same_mean(losses, levelled_off):
    assert Plateau(window=2, drop=0.05, min_epochs=1)(losses) == levelled_off


def first_fire(rule, losses):
    return next((n for n in range(1, len(losses) + 1) if rule(losses[:n])), None)


def test_on_a_recorded_curve_the_default_fires_after_17_epochs():
    # 0.01024 after 16 epochs: (0.0325 + ... + 0.0163) / 5 - (0.0148 + ... + 0.0167) / 5;
    # 0.00766 after 17: (0.0290 + ... + 0.0148) / 5 - (0.0126 + ... + 0.0100) / 5; the bound is 0.00798.
    assert first_fire(Plateau(), MNIST) == 17


#: The same of CIFAR-10's first 20,000, cropped and mirrored, with weight decay 2e-4, for 20 epochs.
CIFAR = [
    *[2.1282, 1.8773, 1.7445, 1.6656, 1.6121, 1.5486, 1.5101, 1.4740, 1.4457, 1.4256],
    *[1.3974, 1.3863, 1.3653, 1.3309, 1.3206, 1.2996, 1.2701, 1.2798, 1.2620, 1.2610],
]


def test_on_a_recorded_curve_that_falls_slowly_the_default_does_not_fire():
    # The mean still falls from 1.3601 to 1.2745, by 0.04 of the first loss.
    assert first_fire(Plateau(), CIFAR) is None
    assert (sum(CIFAR[10:15]) - sum(CIFAR[15:])) / 5 / CIFAR[0] == pytest.approx(0.0402, abs=1e-4)


def test_no_plateau_is_seen_before_min_epochs():
    assert first_fire(Plateau(window=2, drop=0.05, min_epochs=7), [1.0] * 20) == 7
    assert first_fire(Plateau(), [1.0] * 20) == 10


def test_a_geometric_decline_comes_to_an_end():
    # W = 5 epochs at a rate q fall by q^(n-10) (1 + ... + q^4) / 5 (1 - q^5), which is below 0.01 first at n = 134.
    q, share = 0.985, lambda n: 0.985 ** (n - 10) * sum(0.985**i for i in range(5)) / 5 * (1 - 0.985**5)
    by_hand = next(n for n in range(10, 1000) if share(n) < 0.01)
    assert first_fire(Plateau(), [q**epoch for epoch in range(300)]) == by_hand


@pytest.mark.parametrize(
    ("name", "value"), [("window", 0), ("window", 2.5), ("min_epochs", 0), ("drop", -0.1), ("drop", math.nan)]
)
def test_a_plateau_that_makes_no_sense_is_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name}="):
        Plateau(**{name: value})


# Runs of a module that is not a Defense, and of Defenses.


@dataclass(frozen=True)
class After(SwitchRule):
    """Fires after this number of epochs."""

    epochs: int

    def __call__(self, losses):
        return len(losses) >= self.epochs


class Classifier(LightningModule):
    """A user's module, whose natural loss is scripted."""

    def __init__(self, losses=(1.0,) * 20, scheduler=None) -> None:
        super().__init__()
        self.net, self.losses, self.scheduler = TinyNet(), losses, scheduler
        self.adversarial = True
        self.seen = []

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)
        return [optimizer], [] if self.scheduler is None else [self.scheduler(optimizer)]

    def training_step(self, batch, batch_idx):
        x, y = batch[:2]
        self.seen.append((self.current_epoch, self.adversarial))
        self.log("loss", self.losses[self.current_epoch], on_step=False, on_epoch=True)
        return F.cross_entropy(self.net(x), y)

    @property
    def adversarial_epochs(self):
        """The epochs with adversarial batches, which have no natural ones."""
        epochs = {epoch for epoch, adversarial in self.seen if adversarial}
        assert not epochs & {epoch for epoch, adversarial in self.seen if not adversarial}
        return sorted(epochs)


class Watch(Callback):
    """Whether each batch of a Defense was adversarial, and the learning rate that it had."""

    def __init__(self) -> None:
        self.batches = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        self.batches.append((trainer.current_epoch, pl_module.adversarial, round(rate, 9)))


def fit(tmp_path, module, *callbacks, max_epochs=6, ckpt_path=None, **kwargs):
    run = trainer(tmp_path, callbacks=list(callbacks), max_epochs=max_epochs, limit_val_batches=0, **kwargs)
    run.fit(module, indexed(images(16)), ckpt_path=ckpt_path, weights_only=True)
    return run


def said(monkeypatch):
    lines = []
    for level in ("rank_zero_info", "rank_zero_warn"):
        monkeypatch.setattr(delayed_start, level, lines.append)
    return lines


def test_the_switch_comes_where_the_rule_puts_it_by_hand(tmp_path, monkeypatch):
    # After epoch 4: (0.5 + 0.45) / 2 - (0.44 + 0.43) / 2 = 0.04 < 0.05; after epoch 3 it is 0.75 - 0.445 = 0.305.
    losses, lines = [1.0, 0.5, 0.45, 0.44, 0.43, 9.0, 9.0, 9.0], said(monkeypatch)
    module, delay = Classifier(losses), DelayedStart(Plateau(2, 0.05, 1), latest_epoch=7, monitor="loss")
    run = fit(tmp_path, module, delay, max_epochs=8)
    assert module.adversarial_epochs == [5, 6, 7]
    assert delay.switch_epoch == 5
    assert delay.losses == pytest.approx(losses[:5])
    assert run.callback_metrics["train/switch_epoch"] == 5
    (line,) = lines
    assert re.search(r" epoch 5 .* loss .* 0\.43 .*Plateau\(window=2, drop=0\.05, min_epochs=1\)\.$", line)


def test_the_switch_of_a_defense_follows_from_its_natural_losses(tmp_path):
    class Book(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            losses.append(float(trainer.callback_metrics["train/loss"]))

    losses, epochs = [], 20
    fit(tmp_path, build(Natural), Book(), max_epochs=epochs)
    falls = {n: (sum(losses[n - 6 : n - 3]) - sum(losses[n - 3 : n])) / 3 for n in range(6, epochs)}
    by_hand = next(n for n, fall in falls.items() if fall < 0.04 * losses[0])
    assert by_hand > 6  # else it could be the earliest by chance
    delay, watch = DelayedStart(Plateau(window=3, drop=0.04, min_epochs=1), latest_epoch=epochs - 1), Watch()
    fit(tmp_path, build(PGDAT), delay, watch, max_epochs=epochs)
    assert delay.losses == losses[:by_hand]
    assert {epoch for epoch, adversarial, _ in watch.batches if adversarial} == set(range(by_hand, epochs))
    assert {epoch for epoch, adversarial, _ in watch.batches if not adversarial} == set(range(by_hand))


MILESTONES = {
    "a Schedule": lambda: MultiStep([3, 5]),
    "torch's by epoch": lambda: lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5]),
    "torch's, nested": lambda: (
        lambda optimizer: torch.optim.lr_scheduler.SequentialLR(
            optimizer,
            [
                torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=2),
                torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4]),
            ],
            milestones=[1],
        )
    ),
}


@pytest.mark.parametrize("name", MILESTONES)
def test_the_epoch_that_starts_with_the_dropped_rate_is_adversarial(tmp_path, monkeypatch, name):
    lines, watch = said(monkeypatch), Watch()
    fit(tmp_path, build(PGDAT, lr_scheduler=MILESTONES[name]()), DelayedStart(), watch)
    assert {(epoch, adversarial) for epoch, adversarial, _ in watch.batches} == {
        *((epoch, False) for epoch in range(3)),
        *((epoch, True) for epoch in range(3, 6)),
    }
    rates = (
        [rate for _, adversarial, rate in watch.batches if not adversarial],
        [rate for _, adversarial, rate in watch.batches if adversarial],
    )
    assert max(rates[1]) <= 0.011
    assert rates[0][-1] >= 0.1 - 1e-9
    (line,) = lines
    assert re.search(" epoch 3 .* learning rate", line)


def test_where_the_rate_drops_before_the_latest_epoch_the_drop_counts(tmp_path):
    module = Classifier(scheduler=MILESTONES["torch's by epoch"]())
    fit(tmp_path, module, DelayedStart(latest_epoch=5, monitor="loss"))
    assert module.adversarial_epochs == [3, 4, 5]


@pytest.mark.parametrize("name", ["torch's by epoch", "torch's, nested"])
def test_the_drop_is_foreseen_for_a_module_that_is_no_defense(tmp_path, name):
    module = Classifier(scheduler=MILESTONES[name]())
    fit(tmp_path, module, DelayedStart(monitor="loss"))
    assert module.adversarial_epochs == [3, 4, 5]


def test_foreseeing_the_drop_leaves_the_scheduler_alone(tmp_path):
    def rates(*callbacks):
        watch = Watch()
        fit(tmp_path, Classifier(scheduler=MILESTONES["torch's, nested"]()), *callbacks, watch)
        return [rate for *_, rate in watch.batches]

    assert rates(DelayedStart(monitor="loss")) == rates()


def test_foreseeing_the_drop_does_not_copy_the_module(tmp_path):
    class Own(Classifier):
        def rate_of(self, epoch):
            return 0.1 if epoch >= 3 else 1.0

    module = Own()
    module.scheduler = lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, module.rate_of)
    module.held = module.net.head.weight * 2  # of which torch refuses to make a copy
    fit(tmp_path, module, DelayedStart(monitor="loss"))
    assert module.adversarial_epochs == [3, 4, 5]


@pytest.mark.parametrize("adversarial", [True, False])
def test_after_the_training_the_module_is_what_it_was(tmp_path, adversarial):
    module = Classifier()
    module.adversarial = adversarial
    fit(tmp_path, module, DelayedStart(at_epoch=1, monitor="loss"), max_epochs=2)
    assert module.adversarial is adversarial
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path, module, DelayedStart(at_epoch=1, monitor="loss"), Breaks(), max_epochs=2)
    assert module.adversarial is adversarial


class Breaks(Callback):
    def on_train_batch_end(self, *args):
        raise ZeroDivisionError


@pytest.mark.parametrize("limit", [{"max_steps": 5, "max_epochs": 9}, {"max_steps": 5, "max_epochs": -1}])
def test_a_training_that_ends_before_the_switch_warns(tmp_path, monkeypatch, limit):
    lines = said(monkeypatch)
    fit(tmp_path, Classifier(), DelayedStart(at_epoch=8), **limit)
    (line,) = lines
    assert re.search("natural throughout: .* epoch 8 ", line)


@pytest.mark.parametrize(
    ("arguments", "switch"),
    [({"at_epoch": 4}, 4), ({"at_epoch": 0}, 0), ({"latest_epoch": 2}, 2), ({"rule": After(2), "latest_epoch": 4}, 2)],
)
def test_a_given_epoch_counts_instead_of_the_drop(tmp_path, monkeypatch, arguments, switch):
    lines, module = said(monkeypatch), Classifier(scheduler=MILESTONES["torch's by epoch"]())
    fit(tmp_path, module, DelayedStart(monitor="loss", **arguments))
    assert module.adversarial_epochs == list(range(switch, 6))
    assert len(lines) == 1
    assert f" adversarial from epoch {switch} " in lines[0]


def test_a_fast_dev_run_is_natural_and_needs_no_drop(tmp_path):
    for arguments in ({}, {"latest_epoch": 80}, {"at_epoch": 80}):
        module = Classifier()
        fit(tmp_path, module, DelayedStart(monitor="loss", **arguments), fast_dev_run=True)
        assert module.adversarial_epochs == []


def test_the_reduction_over_ranks_does_not_write_into_the_metric(tmp_path):
    class Halve(Callback):
        def on_train_start(self, trainer, pl_module):
            trainer.strategy.reduce = lambda tensor, *args, **kwargs: tensor.div_(2)

    class Read(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            assert trainer.callback_metrics["loss"] == 1.0

    delay = DelayedStart(After(2), latest_epoch=5, monitor="loss")
    fit(tmp_path, Classifier(), Halve(), delay, Read())
    assert delay.losses == [0.5, 0.5]


# On every method.


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"Natural"}))
def test_before_the_switch_each_batch_costs_a_natural_step_and_every_method_runs_after_it(tmp_path, name):
    class Count(Callback):
        """Forwards, and backward passes through them, by epoch."""

        def __init__(self) -> None:
            self.passes, self.weights, self.epoch = Counter(), [], -1

        def setup(self, trainer, pl_module, stage):
            pl_module.net.register_forward_hook(self.forward)

        def on_train_epoch_start(self, trainer, pl_module):
            self.epoch = trainer.current_epoch

        def on_train_epoch_end(self, trainer, pl_module):
            self.weights.append({key: value.clone() for key, value in pl_module.net.state_dict().items()})

        def forward(self, net, inputs, logits):
            self.passes[self.epoch, "forward"] += 1
            if logits.requires_grad:
                logits.register_hook(self.backward)

        def backward(self, gradient):
            self.passes[self.epoch, "backward"] += 1

    def epochs_of(method, *callbacks):
        count = Count()
        fit(tmp_path, method, *callbacks, count, max_epochs=2)
        return count

    method, adversarial = build(METHODS[name].cls, **METHODS[name].arguments), []
    step = method.adversarial_step
    method.adversarial_step = lambda batch: adversarial.append(method.current_epoch) or step(batch)
    delayed = epochs_of(method, *METHODS[name].callbacks(), DelayedStart(at_epoch=1))
    natural = epochs_of(build(Natural))
    batches, check = 2, 1  # the check of the first batch is a forward
    assert delayed.passes[0, "forward"] == natural.passes[0, "forward"] == batches + check
    assert delayed.passes[0, "backward"] == natural.passes[0, "backward"] == batches
    assert differences(delayed.weights[0], natural.weights[0]) == []
    assert adversarial == [1] * batches


DELAYED = """
trainer:
  max_epochs: 2
  enable_progress_bar: false
  enable_model_summary: false
  callbacks+:
    - {class_path: DelayedStart, init_args: {at_epoch: 1}}
data: {init_args: {train_size: 64, batch_size: 32, val_size: 20}}
"""
CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.mark.parametrize(
    ("defense", "attack", "updates"),
    [
        ("nuat", "digits_fgsm", 2),
        ("rmgm", "digits_fgsm", 2),
        ("freeat", "digits_fgsm", 2 * 8),
        ("trades", "digits_pgd7", 2),
        ("psat", "digits_pgd7", 2),
        ("customizedat", "digits_pgd7", 2),
    ],
)
def test_a_yaml_puts_it_on_a_method(tmp_path, monkeypatch, defense, attack, updates):
    monkeypatch.chdir(tmp_path)
    Path("delayed.yaml").write_text(DELAYED)
    parts = ["base", "data/digits", "net/digits_cnn", f"defense/{defense}", f"attack/{attack}", "trainer/cpu"]
    files = [str(CONFIGS / f"{part}.yaml") for part in parts] + ["delayed.yaml"]
    main(["fit", *(word for file in files for word in ("-c", file))])
    with Path("runs/run/version_0/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    values = {key: [float(row[key]) for row in rows if row[key]] for key in rows[0]}
    assert values["train/adversarial"] == [0, 1]
    assert values["train/switch_epoch"] == [1, 1]
    assert values["train/updates"] == [2, 2 + updates]


# Together with other callbacks.


def test_it_drives_the_callback_that_attacks_any_module(tmp_path):
    class Plain(Classifier):
        def __init__(self) -> None:
            super().__init__()
            del self.adversarial

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, batch_idx):
            self.changed = getattr(self, "changed", [])
            self.changed.append(not torch.equal(batch[0], images(16).x[8 * batch_idx : 8 * batch_idx + 8]))
            return super().training_step(batch, batch_idx)

    module = Plain()
    fit(tmp_path, module, AdversarialTraining(PGD(0.1, 0.1, steps=1)), DelayedStart(at_epoch=2), max_epochs=4)
    assert module.changed == [False] * 4 + [True] * 4
    with pytest.raises(TypeError, match=r"^DelayedStart .*adversarial"):
        fit(tmp_path, Plain(), DelayedStart(at_epoch=2), AdversarialTraining(PGD()))


def test_it_works_together_with_averages_ramps_and_a_monitor(tmp_path):
    watch, ramp = Watch(), AttributeRamp("attack.eps", Linear(0.02, 0.1, 0, 4))
    callbacks = DelayedStart(After(2), latest_epoch=3), EMAWeights(0.9), ramp, CatastrophicOverfittingMonitor()
    module = build(PGDAT)
    fit(tmp_path, module, *callbacks, watch, max_epochs=4)
    assert [adversarial for _, adversarial, _ in watch.batches] == [False] * 4 + [True] * 4
    assert module.attack.eps == pytest.approx(0.02 + 0.08 * 3.5 / 4)  # time counts natural epochs


# Resumed.

SETUPS = {
    "switched at epoch 1": Setup(callbacks=lambda: [DelayedStart(After(1), latest_epoch=2)]),
    "switched at epoch 2": Setup(callbacks=lambda: [DelayedStart(Plateau(1, 1.0, 2), latest_epoch=2)]),
    "switched at epoch 2, Free": Setup(FreeAT, METHODS["FreeAT"].arguments, lambda: [DelayedStart(at_epoch=2)]),
    "switched by the drop": Setup(arguments={"lr_scheduler": MultiStep([2])}, callbacks=lambda: [DelayedStart()]),
}


@specified(SETUPS, "in the first epoch", "in mid-epoch", "after an epoch's last batch", "between epochs")
def test_it_resumes_on_either_side_of_the_switch_as_if_it_had_not_been_stopped(whole, stop):
    assert whole[1].end["callbacks"]["DelayedStart"]["switch_epoch"] in (1, 2)
    assert_the_same(whole, stop)


@pytest.mark.parametrize("epoch", [1, 2], ids=["switched", "still to switch"])
def test_after_a_validation_it_resumes_as_if_it_had_not_stopped(tmp_path, epoch):
    setup = SETUPS[f"switched at epoch {epoch}"]
    run = test_resume.fit(setup, tmp_path)
    assert differences(test_resume.fit(setup, tmp_path, STOPS["after validation"]).end, run.end) == []


class SaveAfterTwo(Checkpoint):
    def __init__(self, path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize(("latest_epoch", "switch"), [(5, 4), (3, 3), (1, 2)], ids=["by the rule", "sooner", "at once"])
def test_a_run_resumed_while_natural_keeps_its_losses_and_uses_the_current_arguments(tmp_path, latest_epoch, switch):
    def run(latest_epoch, *callbacks, **kwargs):
        module, delay = Classifier(losses), DelayedStart(Plateau(2, 0.05, 1), latest_epoch=latest_epoch, monitor="loss")
        fit(tmp_path, module, delay, *callbacks, **kwargs)
        return module, delay

    losses, path = [1.0, 0.5, 0.75, 0.74, 0.74, 0.74], tmp_path / "natural.ckpt"  # 0.75 - 0.745 < 0.05 after epoch 3
    whole, delay = run(5, SaveAfterTwo(path), enable_checkpointing=True)
    assert (whole.adversarial_epochs, delay.losses) == ([4, 5], pytest.approx(losses[:4]))
    rest, resumed = run(latest_epoch, ckpt_path=path)
    assert rest.adversarial_epochs == list(range(switch, 6))
    assert {epoch for epoch, _ in rest.seen} == {2, 3, 4, 5}
    assert resumed.losses == delay.losses[:switch]


def test_a_switch_that_is_decided_but_not_made_yet_is_decided_anew(tmp_path, monkeypatch):
    path = tmp_path / "two.ckpt"  # after epoch 1, when epoch 2 was to be the first adversarial one
    fit(tmp_path, Classifier(), DelayedStart(at_epoch=2), SaveAfterTwo(path), enable_checkpointing=True)
    for at_epoch, expected in ((4, [4, 5]), (2, [2, 3, 4, 5]), (1, [2, 3, 4, 5])):
        module = Classifier()
        fit(tmp_path, module, DelayedStart(at_epoch=at_epoch), ckpt_path=path)
        assert module.adversarial_epochs == expected


def test_a_switch_that_is_made_stands(tmp_path, monkeypatch):
    lines, path = said(monkeypatch), tmp_path / "two.ckpt"
    fit(tmp_path, Classifier(), DelayedStart(at_epoch=1), SaveAfterTwo(path), enable_checkpointing=True)
    module = Classifier()
    fit(tmp_path, module, DelayedStart(at_epoch=4), ckpt_path=path)
    assert module.adversarial_epochs == [2, 3, 4, 5]
    assert "epoch 1: at_epoch=4 " in lines[-1]
    fit(tmp_path, Classifier(), DelayedStart(at_epoch=1), ckpt_path=path)
    assert "epoch 1" in lines[-1]
    assert "at_epoch" not in lines[-1]


EIGHT_EPOCHS = """
trainer:
  max_epochs: 8
  callbacks+:
    - class_path: DelayedStart
      init_args:
        rule: {class_path: lit_robust.callbacks.Plateau, init_args: {window: 1, drop: 1.0, min_epochs: 4}}
        latest_epoch: 7
"""  # epochs 4 to 7 are adversarial; 20 steps per epoch


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_run_killed_on_both_sides_of_the_switch_ends_with_the_same_weights(tmp_path):
    def saved(folder):
        checkpoint = torch.load(folder / LAST, weights_only=True)
        return checkpoint, checkpoint["global_step"], checkpoint["callbacks"]["DelayedStart"]["switch_epoch"]

    torch.set_num_threads(1)
    main(command(tmp_path / "whole", DIGITS, EIGHT_EPOCHS))
    uninterrupted, *_ = saved(tmp_path / "whole")
    arguments = command(tmp_path / "killed", DIGITS, EIGHT_EPOCHS)
    kill_when_written(arguments, tmp_path / "killed" / LAST, 1)
    _, steps, switch = saved(tmp_path / "killed")
    assert (steps in (20, 40, 60), switch) == (True, None)
    kill_when_written([*arguments, "--ckpt_path", "last"], tmp_path / "killed" / LAST, 1 + (100 - steps) // 20)
    _, steps, switch = saved(tmp_path / "killed")
    assert (steps in (100, 120, 140), switch) == (True, 4)
    main([*arguments, "--ckpt_path", "last"])
    end, *_ = saved(tmp_path / "killed")
    for part in ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "global_step"):
        assert differences(end[part], uninterrupted[part]) == []
    assert differences(end["callbacks"]["DelayedStart"], uninterrupted["callbacks"]["DelayedStart"]) == []


# Refusals.


def by_batches(optimizer):
    return {"scheduler": torch.optim.lr_scheduler.MultiStepLR(optimizer, [4]), "interval": "step"}


class ByHand(Classifier):
    """Steps its scheduler itself, at unknown times."""

    automatic_optimization = False


@pytest.mark.parametrize(
    "module",
    [
        lambda: build(PGDAT),
        lambda: build(PGDAT, lr_scheduler=Cyclic(2, 4)),
        lambda: build(PGDAT, lr_scheduler=Cosine(1, 0, 0, 6)),
        lambda: build(PGDAT, lr_scheduler=MultiStep([6])),
        lambda: build(PGDAT, lr_scheduler=MultiStep([3], factor=0.6)),
        lambda: build(
            PGDAT, lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max")
        ),
        lambda: Classifier(scheduler=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)),
        lambda: Classifier(scheduler=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)),
        lambda: Classifier(scheduler=by_batches),
        lambda: ByHand(scheduler=lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(optimizer, [4])),
    ],
    ids=[
        *["constant", "triangle", "cosine", "too late", "too small", "plateau", "torch's cosine", "a short cosine"],
        *["by batches", "by hand"],
    ],
)
def test_without_a_drop_that_can_be_foreseen_the_latest_epoch_must_be_given(tmp_path, module):
    with pytest.raises(ValueError, match="DelayedStart latest_epoch"):
        fit(tmp_path, module(), DelayedStart())


@pytest.mark.parametrize("name", ["latest_epoch", "at_epoch"])
def test_a_switch_after_the_end_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"^{name}=6 .*max_epochs=6"):
        fit(tmp_path, Classifier(), DelayedStart(**{name: 6}))


def test_a_module_that_cannot_be_switched_is_refused(tmp_path):
    module = Classifier()
    module.adversarial = 1.0
    with pytest.raises(TypeError, match=r"^DelayedStart .*adversarial"):
        fit(tmp_path, module, DelayedStart(at_epoch=1))


def test_a_loss_that_is_not_logged_is_refused_with_what_there_is(tmp_path):
    with pytest.raises(ValueError, match=r"^DelayedStart .*train/loss, .*\['loss'\]"):
        fit(tmp_path, Classifier(), DelayedStart(latest_epoch=3))


def test_a_loss_that_is_logged_by_step_alone_is_refused(tmp_path):
    class ByStep(Classifier):
        def training_step(self, batch, batch_idx):
            loss = F.cross_entropy(self.net(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

    steps = Watch()
    with pytest.raises(ValueError, match=r"^DelayedStart .*loss, .*on_epoch=True"):
        fit(tmp_path, ByStep(), steps, DelayedStart(latest_epoch=3, monitor="loss"))
    assert len(steps.batches) == 1


class ByBoth(Classifier):
    """Its loss goes by three names: a batch's and, twice, the epoch's mean."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("both", 1.0 + 2 * batch_idx, on_step=True, on_epoch=True)
        return loss


def test_the_name_of_a_single_batchs_loss_is_refused_with_the_name_of_the_mean(tmp_path):
    steps = Watch()
    with pytest.raises(ValueError, match=r"^DelayedStart monitors both_step, .*: monitor both_epoch\.$"):
        fit(tmp_path, ByBoth(), steps, DelayedStart(latest_epoch=3, monitor="both_step"))
    assert len(steps.batches) == 1


@pytest.mark.parametrize("monitor", ["both", "both_epoch"])
def test_either_name_of_the_mean_is_judged(tmp_path, monitor):
    delay = DelayedStart(After(2), latest_epoch=3, monitor=monitor)
    fit(tmp_path, ByBoth(), delay)
    assert delay.losses == [2.0, 2.0]  # of 1 and 3, in two batches


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"at_epoch": -1}, ValueError),
        ({"latest_epoch": 1.5}, ValueError),
        ({"at_epoch": 1, "latest_epoch": 2}, ValueError),
        ({"rule": 0.1}, TypeError),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, error):
    with pytest.raises(error, match=r".*".join(f"{name}=" for name in arguments)):
        DelayedStart(**arguments)
