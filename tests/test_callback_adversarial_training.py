import copy
import pickle
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.tuner import Tuner
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lit_robust import losses
from lit_robust.attacks import PGD, Attack
from lit_robust.attacks.guided import GuidedPGD
from lit_robust.callbacks import AdversarialTraining, AttributeRamp, DelayedStart, EMAWeights, RobustAccuracy
from lit_robust.data.loaders import Samples
from lit_robust.data.resident import ResidentLoader
from lit_robust.defenses import PGDAT, Natural
from lit_robust.guards import network_mode
from lit_robust.schedules import Linear
from tests import stranger
from tests.front_door import refusal, tiny
from tests.stranger import MEAN, STD, DigitClassifier, DigitsData
from tests.tiny import CLASSES, SaveAfter, TinyNet, assert_equal, images, named, trainer, two_ranks

EPS, BATCHES = 0.1, 3
#: Random, and the same with no random number in it.
ATTACK = PGD(eps=EPS, step_size=0.05, steps=2)
EXACT = replace(ATTACK, init="zero")
#: Runs the net in train mode within an attack in eval mode.
GUIDED = GuidedPGD(EPS, steps=1, penalty=losses.kl, lam=1.0, reference_bn_mode="train")
#: Where the tiny module keeps its things.
HERE = {"x": "image", "y": "label", "net": "model"}


def dictionaries(batch_size=8, **share):
    """A stateful loader of dictionaries."""

    class Loader(ResidentLoader):
        def __iter__(self):
            for batch in super().__iter__():
                loaded.append(batch.x)
                yield {"image": batch.x, "label": batch.y, "more": [batch.index]}

    loaded: list[torch.Tensor] = []
    data = images(8 * BATCHES)
    samples = Samples.once(torch.arange(8 * BATCHES))
    loader = Loader(samples, (255 * data.x).byte(), data.y, batch_size=batch_size, shuffle=True, **share)
    loader.loaded = loaded
    return loader


def as_they_are(*batches):
    return DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)


class Classifier(LightningModule):
    """A user's module with dropout, so that every random number matters, and a record of its batches."""

    def __init__(self, manual: bool = False, dropout: float = 0.2, lr: float = 0.1) -> None:
        super().__init__()
        self.automatic_optimization = not manual
        self.model, self.dropout, self.lr = TinyNet(), dropout, lr
        self.seen: list[Any] = []
        self.validated: list[Any] = []

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)

    def training_step(self, batch, batch_idx):
        self.seen.append(batch)
        loss = self.loss(self.model(F.dropout(batch["image"], self.dropout)), batch["label"])
        self.log("train/loss", loss, on_epoch=True, sync_dist=True, batch_size=len(batch["label"]))
        if self.automatic_optimization:
            return loss
        self.optimizers().zero_grad()
        self.manual_backward(loss)
        self.optimizers().step()

    def loss(self, logits, y):
        return F.cross_entropy(logits, y)

    def validation_step(self, batch, batch_idx):
        self.validated.append(batch)

    def test_step(self, batch, batch_idx):
        self.validated.append(batch)


class Named(Classifier):
    """Has its net as ``net``, which EMAWeights needs, and nothing that changes from step to step."""

    @property
    def net(self):
        return self.model

    def training_step(self, batch, batch_idx):
        return self.loss(self.model(batch["image"]), batch["label"])


@dataclass(frozen=True)
class Watched(PGD):
    """PGD that records its inputs."""

    calls: Any = None

    def __call__(self, net, x, y):
        x_adv = super().__call__(net, x, y)
        self.calls.append((net, x, y, x_adv))
        return x_adv


def watched(attack=ATTACK, **kwargs):
    values = {field.name: getattr(attack, field.name) for field in fields(attack)}
    return Watched(**(values | kwargs), calls=[])


def fit(tmp_path, module, *callbacks, ckpt_path=None, val=False, seed=0, loader=None, **kwargs):
    seed_everything(seed, verbose=False)
    kwargs = {"max_epochs": 2, "log_every_n_steps": 1, "limit_val_batches": None if val else 0} | kwargs
    run = trainer(tmp_path, callbacks=list(callbacks), **kwargs)
    run.fit(module, loader or dictionaries(), dictionaries() if val else None, ckpt_path=ckpt_path, weights_only=True)
    return run


def distances(module, loader):
    return [
        float((batch["image"] - x).abs().max())
        for batch, x in zip(module.seen, loader.loaded[-len(module.seen) :], strict=True)
    ]


# The batches that the module gets.


@pytest.mark.parametrize("manual", [False, True], ids=["automatic", "manual"])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_training_step_gets_adversarial_images_of_the_current_weights(tmp_path, manual, mode):
    class Before(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            net = copy.deepcopy(pl_module.model)
            with network_mode(net, mode):
                expected.append(EXACT(net, batch["image"], batch["label"]))

    expected: list[torch.Tensor] = []
    module = Classifier(manual)
    fit(tmp_path, module, Before(), AdversarialTraining(EXACT, **HERE, attack_bn_mode=mode))
    assert len(expected) == 2 * BATCHES
    for batch, x_adv in zip(module.seen, expected, strict=True):
        assert torch.equal(batch["image"], x_adv)


@pytest.mark.parametrize("statistics", [{}, {"mean": 0.0, "std": 1.0}], ids=["the net itself", "a wrapper"])
@pytest.mark.parametrize(("attack", "mode"), [(ATTACK, "train"), (GUIDED, "eval")], ids=["PGD", "guided PGD"])
def test_a_frozen_batchnorm_stays_frozen(tmp_path, attack, mode, statistics):
    class Freezes(Classifier):
        def on_train_epoch_start(self):
            self.model.body[1].eval()

    module = Freezes()
    before = {name: value.clone() for name, value in module.model.body[1].named_buffers()}
    fit(tmp_path, module, AdversarialTraining(attack, **HERE, **statistics, attack_bn_mode=mode))
    assert_equal(dict(module.model.body[1].named_buffers()), before)


def test_the_rest_of_a_batch_and_its_original_images_do_not_change(tmp_path):
    class Before(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            before.append((batch, dict(batch), batch["image"].clone()))

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            after.append(batch)

    before, after = [], []
    module = Classifier()
    fit(tmp_path, module, Before(), AdversarialTraining(ATTACK, **HERE))
    for seen, (batch, parts, x), late in zip(module.seen, before, after, strict=True):
        assert late is batch
        assert late["image"] is parts["image"]
        assert torch.equal(late["image"], x)
        assert not torch.equal(seen["image"], x)
        assert all(seen[name] is parts[name] for name in ("label", "more"))


@pytest.mark.parametrize(
    ("wrap", "x", "y"),
    [
        (lambda x, y: (x, y), 0, 1),
        (lambda x, y: [y, x], 1, 0),
        (lambda x, y: {"in": [x], "out": {"y": y}}, "in.0", "out.y"),
    ],
    ids=["tuple", "list", "nested"],
)
def test_batches_may_be_of_any_kind_and_steps_may_take_a_batch_alone(tmp_path, wrap, x, y):
    class Step(Classifier):
        def training_step(self, batch):
            seen.append(batch)
            return self.model(torch.rand(2, 3, 8, 8)).mean()

    data = images(8)
    batch, seen = wrap(*data[:2]), []
    fit(tmp_path, Step(), AdversarialTraining(ATTACK, x, y, "model"), loader=as_they_are(batch))
    assert [type(other) for other in seen] == [type(batch)] * 2
    look = AdversarialTraining(ATTACK, x, y).adapter
    assert 0.9 * EPS < (look.pixels(seen[0]) - data.x).abs().max() <= EPS + 1e-6
    assert look.pixels(batch) is data.x


@pytest.mark.filterwarnings("ignore:eps=0 of attack changes no image")
def test_a_run_with_an_attack_that_moves_nothing_is_the_run_without_the_callback(tmp_path):
    """No gradient, mode, statistic or random number of the module's is touched."""
    plain, attacked = Classifier(), Classifier()
    nothing = PGD(eps=0, step_size=0, steps=2)
    first = fit(tmp_path, plain, val=True, accumulate_grad_batches=2, gradient_clip_val=0.5)
    second = fit(
        tmp_path,
        attacked,
        AdversarialTraining(nothing, **HERE),
        val=True,
        accumulate_grad_batches=2,
        gradient_clip_val=0.5,
    )
    assert_equal(attacked.state_dict(), plain.state_dict())
    assert first.callback_metrics == second.callback_metrics


def test_gradients_that_accumulate_are_not_touched(tmp_path):
    class Looking(Watched):
        def __call__(self, net, x, y):
            before = [copy.copy(p.grad) if p.grad is None else p.grad.clone() for p in net.parameters()]
            x_adv = PGD.__call__(self, net, x, y)
            for p, grad in zip(net.parameters(), before, strict=True):
                assert (p.grad is None) if grad is None else torch.equal(p.grad, grad)
                self.calls.append(grad is not None)
            return x_adv

    attack = Looking(calls=[])
    fit(tmp_path, Classifier(), AdversarialTraining(attack, **HERE), accumulate_grad_batches=BATCHES)
    assert {True, False} == set(attack.calls)


def test_with_the_same_loss_it_is_pgdat(tmp_path):
    """The same weights, where no random number makes a difference."""

    def tuples():
        data = images(8 * BATCHES)
        return DataLoader(list(zip(data.x, data.y, strict=True)), batch_size=8)

    class Pairs(Classifier):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.model(batch[0]), batch[1])

    for mode in ("train", "eval"):
        theirs = PGDAT(
            TinyNet(), CLASSES, EXACT, attack_bn_mode=mode, optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)
        )
        mine = Pairs()
        fit(tmp_path, theirs, loader=tuples())
        fit(tmp_path, mine, AdversarialTraining(EXACT, net="model", attack_bn_mode=mode), loader=tuples())
        torch.testing.assert_close(mine.model.state_dict(), theirs.net.state_dict(), rtol=0, atol=1e-6)


def test_the_modules_own_loss_is_minimised_and_the_attacks_is_maximised(tmp_path):
    class Squared(Classifier):
        def loss(self, logits, y):
            return F.mse_loss(logits, F.one_hot(y, CLASSES).float())

    attack = watched(loss=losses.margin, init="zero")
    plain, module = Squared(dropout=0.0), Squared(dropout=0.0)
    fit(tmp_path, plain)
    fit(tmp_path, module, AdversarialTraining(attack, **HERE))
    assert len(attack.calls) == 2 * BATCHES
    for (_, x, y, x_adv), batch in zip(attack.calls, module.seen, strict=True):
        assert batch["image"] is x_adv
        assert torch.equal(batch["label"], y)
        assert (x_adv - x).abs().max() <= EPS + 1e-6
    assert not torch.equal(module.model.head.weight, plain.model.head.weight)


def test_without_labels_the_nets_own_predictions_are_attacked(tmp_path):
    attack = watched(EXACT)
    module = Classifier(lr=0.0)
    fit(tmp_path, module, AdversarialTraining(attack, **(HERE | {"y": None})), max_epochs=1)
    for net, x, y, _ in attack.calls:
        with network_mode(net, "eval"):
            assert torch.equal(y, net(x).argmax(dim=1))


def test_normalised_images_move_by_eps_in_pixels(tmp_path):
    mean, std = torch.tensor([0.2, 0.4, 0.6]).view(-1, 1, 1), torch.tensor([0.5, 0.25, 0.1]).view(-1, 1, 1)

    class Normalised(Classifier):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return {**batch, "image": (batch["image"] - mean) / std}

    module, loader = Normalised(dropout=0.0), dictionaries()
    undo = {"mean": mean.flatten().tolist(), "std": std.flatten().tolist()}
    fit(tmp_path, module, AdversarialTraining(ATTACK, **HERE, **undo), loader=loader)
    for batch, x in zip(module.seen, loader.loaded[-2 * BATCHES :], strict=True):
        pixels = batch["image"] * std + mean
        assert pixels.min() >= -1e-6
        assert pixels.max() <= 1 + 1e-6
        assert EPS - 1e-5 < (pixels - x).abs().max() < EPS + 1e-5


def test_a_closure_that_is_evaluated_several_times_sees_one_adversary(tmp_path):
    class Closure(Classifier):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), lr=0.01, max_iter=3)

    attack, module = watched(), Closure(dropout=0.0)
    fit(tmp_path, module, AdversarialTraining(attack, **HERE), max_epochs=1)
    assert len(attack.calls) == BATCHES < len(module.seen)
    given = {id(batch["image"]) for batch in module.seen}
    assert given == {id(x_adv) for *_, x_adv in attack.calls}


@pytest.mark.filterwarnings("ignore:.*num_workers")
def test_each_batch_is_attacked_under_tuners_which_disable_callback_hooks(tmp_path):
    module, loader = Classifier(), dictionaries()
    run = trainer(tmp_path, max_epochs=1, callbacks=[AdversarialTraining(EXACT, **HERE)], enable_checkpointing=True)
    Tuner(run).lr_find(module, loader, num_training=BATCHES, early_stop_threshold=None)
    assert len(module.seen) == BATCHES
    assert distances(module, loader) == pytest.approx([EPS] * BATCHES)


@pytest.mark.filterwarnings("ignore:.*bfloat16")
def test_the_attack_runs_under_the_trainers_precision(tmp_path):
    class Dtypes(TinyNet):
        def forward(self, x):
            logits = super().forward(x)
            dtypes.append((x.dtype, logits.dtype))
            return logits

    dtypes: list[Any] = []
    module = Classifier()
    module.model = Dtypes()
    fit(
        tmp_path,
        module,
        AdversarialTraining(ATTACK, attack_bn_mode="train", **HERE),
        precision="bf16-mixed",
        max_epochs=1,
    )
    assert set(dtypes) == {(torch.float32, torch.bfloat16)}
    assert len(dtypes) == 1 + BATCHES * (ATTACK.steps + 1)
    assert {batch["image"].dtype for batch in module.seen} == {torch.float32}


def test_a_compiled_module_trains_as_it_does_uncompiled(tmp_path):
    def run(module):
        fit(tmp_path, module, AdversarialTraining(EXACT, **HERE), max_epochs=1, limit_train_batches=1)

    module, plain = Named(), Named()
    run(torch.compile(module, backend="eager"))
    run(plain)
    torch.testing.assert_close(module.state_dict(), plain.state_dict(), rtol=0, atol=1e-5)


def test_no_parameter_needs_a_gradient_while_a_net_is_attacked(tmp_path):
    """A compiled net would compute all of them."""

    class Flags(TinyNet):
        def forward(self, x):
            flags.append([parameter.requires_grad for parameter in self.parameters()])
            return super().forward(x)

    flags: list[Any] = []
    module = Classifier()
    module.model = Flags()
    module.model.head.bias.requires_grad_(False)
    fit(tmp_path, module, AdversarialTraining(ATTACK, attack_bn_mode="train", **HERE), max_epochs=1)
    attack, step = [False] * 6, [True] * 5 + [False]
    assert flags[1:] == [*[attack] * ATTACK.steps, step] * BATCHES


# Other callbacks on top.


def test_a_delayed_start_gives_the_loaders_own_batches_until_it_switches(tmp_path):
    class Before(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            batches.append(batch)

    batches: list[Any] = []
    module, attack = Classifier(), watched()
    callbacks = AdversarialTraining(attack, **HERE), DelayedStart(at_epoch=2), Before()
    fit(tmp_path, module, *callbacks, max_epochs=3)
    assert [seen is batch for seen, batch in zip(module.seen, batches, strict=True)] == [True] * 6 + [False] * 3
    assert len(attack.calls) == BATCHES


def test_a_ramp_of_eps_finds_the_attack(tmp_path):
    module, loader = Classifier(), dictionaries()
    attack = PGD(eps=0.2, step_size=0.2, steps=1)
    run = fit(
        tmp_path,
        module,
        AdversarialTraining(attack, **HERE),
        AttributeRamp("attack.eps", Linear(0, 0.12, 0, 2)),
        loader=loader,
    )
    assert distances(module, loader) == pytest.approx([0.02 * batch for batch in range(6)], abs=1e-6)
    assert run.callback_metrics["train/attack.eps"] == pytest.approx(0.1)


def test_averaged_weights_and_copies_and_pickles_of_the_module_are_possible_in_training(tmp_path):
    class Copies(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trained = pl_module.model.head.weight.clone()
            other = copy.deepcopy(pl_module)
            assert other.training_step.__self__ is other
            other.model.head.weight.data.zero_()
            assert torch.equal(pl_module.model.head.weight, trained)
            again = pickle.loads(pickle.dumps(pl_module))
            assert torch.equal(again.model.head.weight, trained)

    module, attack = Named(), AdversarialTraining(ATTACK, **HERE)
    for callbacks in (
        [EMAWeights(0.5), attack],
        [attack, EMAWeights(0.5, {"fast": 0.9})],
        [EMAWeightAveraging(), attack],
    ):
        fit(tmp_path, module, *callbacks, Copies())
        assert not {"adversarial", "attack", "training_step"} & set(vars(module))


@pytest.mark.parametrize("stop", [2, 3, 4, 6, 8])
def test_a_resumed_run_is_the_run_that_was_not_stopped(tmp_path, stop):
    def run(module, *others, **kwargs):
        drivers = DelayedStart(at_epoch=1), AttributeRamp("attack.eps", Linear(0.02, 0.1, 1, 3))
        fit(tmp_path, module, AdversarialTraining(ATTACK, **HERE), *drivers, *others, max_epochs=3, **kwargs)

    class OtherNumbers(Callback):
        def on_train_start(self, trainer, pl_module):
            torch.manual_seed(99)

    whole, rest = Classifier(dropout=0.0), Classifier(dropout=0.0)
    run(whole, SaveAfter(stop, tmp_path / "part.ckpt"))
    run(rest, OtherNumbers(), ckpt_path=tmp_path / "part.ckpt")
    assert_equal(rest.state_dict(), whole.state_dict())
    for mine, theirs in zip(rest.seen, whole.seen[stop:], strict=True):
        assert torch.equal(mine["image"], theirs["image"])


@pytest.mark.filterwarnings("ignore:steps=0 of attack takes no step")
def test_random_starts_differ_from_batch_to_batch_and_from_seed_to_seed(tmp_path):
    def starts(seed):
        module = Classifier(lr=0.0)
        batch = {"image": images(8).x, "label": images(8).y, "more": []}
        loader = as_they_are(batch, batch)
        start = replace(ATTACK, steps=0)
        fit(tmp_path, module, AdversarialTraining(start, **HERE), loader=loader, seed=seed)
        return [tuple(batch["image"].flatten().tolist()) for batch in module.seen]

    zero, again, one = starts(0), starts(0), starts(1)
    assert zero == again
    assert len({*zero, *one}) == 8


class Shares(Classifier):
    """Each rank saves its weights and its first images."""

    def train_dataloader(self):
        return dictionaries(batch_size=4, rank=self.global_rank, world=2)

    def on_train_end(self):
        torch.save((self.model.state_dict(), self.seen[0]["image"]), f"{self.global_rank}.pt")


@dataclass(frozen=True)
class Noise(Attack):
    """Random numbers and nothing else."""

    def __call__(self, net, x, y):
        return torch.rand_like(x)


@pytest.mark.parametrize(("manual", "attack"), [(False, ATTACK), (True, ATTACK), (False, Noise())], ids=named)
def test_two_ranks_attack_separately_and_end_with_the_same_weights(tmp_path, monkeypatch, manual, attack):
    monkeypatch.chdir(tmp_path)
    two_ranks(tmp_path, max_epochs=2, callbacks=[AdversarialTraining(attack, **HERE)]).fit(Shares(manual))
    (weights, x), (others, other_x) = (torch.load(f"{rank}.pt") for rank in range(2))
    for name, parameter in TinyNet().named_parameters():
        assert torch.equal(weights[name], others[name]), name
        assert not torch.equal(weights[name], parameter), name
    assert not torch.equal(x, other_x)


# Before and after.


def trained(tmp_path):
    """What Lightning itself leaves in a module."""
    module = Classifier()
    fit(tmp_path, module, val=True)
    return vars(module)


def test_nothing_of_it_is_left_after_training_and_other_stages_see_clean_images(tmp_path):
    module = Classifier()
    callback, methods = AdversarialTraining(ATTACK, **HERE), dict(vars(Classifier))
    run = fit(tmp_path, module, callback, val=True)
    assert vars(module).keys() == trained(tmp_path).keys()
    assert dict(vars(Classifier)) == methods
    assert "training_step" not in vars(run.strategy)
    clean = dictionaries()
    run.test(module, clean, verbose=False)
    for batch, x in zip(module.validated[-BATCHES:], clean.loaded, strict=True):
        assert torch.equal(batch["image"], x)
    assert callback.state_dict() == {}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_of_it_is_left_when_training_breaks_off_and_it_can_be_trained_again(tmp_path, monkeypatch, error):
    monkeypatch.setattr(
        "signal.signal", lambda *_: None
    )  # Lightning would have this process deaf to Ctrl+C from then on

    class Breaks(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            raise error

    module, callback = Classifier(), AdversarialTraining(ATTACK, **HERE)
    run = trainer(tmp_path, callbacks=[callback, Breaks()], max_epochs=1, limit_val_batches=0)
    with pytest.raises((error, SystemExit)):
        run.fit(module, dictionaries())
    assert not {"adversarial", "attack", "training_step"} & set(vars(module))
    assert "training_step" not in vars(run.strategy)
    attack = watched()
    fit(tmp_path, module, AdversarialTraining(attack, **HERE), max_epochs=1)
    assert len(attack.calls) == BATCHES


def test_a_checkpoint_is_that_of_the_module(tmp_path):
    module, plain = Classifier(), Classifier()
    fit(tmp_path, module, AdversarialTraining(ATTACK, **HERE)).save_checkpoint(tmp_path / "mine.ckpt")
    fit(tmp_path, plain).save_checkpoint(tmp_path / "theirs.ckpt")
    mine, theirs = (torch.load(tmp_path / f"{name}.ckpt", weights_only=True) for name in ("mine", "theirs"))
    assert mine.keys() == theirs.keys()
    assert mine["state_dict"].keys() == theirs["state_dict"].keys()
    assert mine["callbacks"] == {}


# What is refused.


class Perturbs(Classifier):
    def perturb(self, batch):
        return batch


class HasAttack(Classifier):
    attack = "mine"


@pytest.mark.parametrize(
    ("module", "named"),
    [
        (Natural(TinyNet(), CLASSES, ATTACK), "Natural .*perturb"),
        (Perturbs(), "Perturbs .*perturb"),
        (HasAttack(), "HasAttack .*attack"),
    ],
    ids=["Defense", "perturb", "attack"],
)
def test_a_module_that_is_attacked_already_is_refused(tmp_path, module, named):
    with pytest.raises(ValueError, match=f"^{named}"):
        fit(tmp_path, module, AdversarialTraining(ATTACK, **HERE))
    assert hasattr(module, "attack") is not isinstance(module, Perturbs)


def test_two_of_them_are_refused(tmp_path):
    two = AdversarialTraining(ATTACK, **HERE), AdversarialTraining(ATTACK, **HERE)
    with pytest.raises(ValueError, match="AdversarialTraining"):
        fit(tmp_path, Classifier(), *two)


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"attack": PGD(targeted=True)}, ValueError, "attack .*targeted"),
        ({"attack": PGD(step_size=0, init="zero")}, ValueError, "step_size=0 .*attack"),
        ({"attack": "PGD"}, TypeError, "attack='PGD'"),
        ({"attack": PGD}, TypeError, "attack=PGD "),
        ({"attack": ATTACK, "attack_bn_mode": "test"}, ValueError, "attack_bn_mode="),
    ],
    ids=named,
)
def test_arguments_that_make_no_sense_are_refused(arguments, error, named):
    with pytest.raises(error, match=f"^{named}"):
        AdversarialTraining(**arguments)


def test_pixels_that_the_precision_would_round_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^trainer\.precision=bf16-true"):
        fit(tmp_path, Classifier(), AdversarialTraining(ATTACK, **HERE), precision="bf16-true")


def test_labels_may_be_of_any_integers(tmp_path):
    module, batch = Classifier(), images(8)
    short = as_they_are({"image": batch.x, "label": batch.y.to(torch.int32)})
    module.loss = lambda logits, y: F.cross_entropy(logits, y.long())
    fit(tmp_path, module, AdversarialTraining(EXACT, **HERE), loader=short, max_epochs=1)
    assert module.seen[0]["label"].dtype == torch.int32  # the batch keeps its own
    assert float((module.seen[0]["image"] - batch.x).abs().max()) == pytest.approx(EPS)


@pytest.mark.parametrize("later", [False, True], ids=["at once", "after a delay"])
def test_images_that_do_not_fit_are_refused_before_the_first_step(tmp_path, later):
    module = Classifier()
    before = copy.deepcopy(module.state_dict())
    callbacks = [AdversarialTraining(ATTACK, x="img", y="label"), *([DelayedStart(at_epoch=1)] if later else [])]
    with pytest.raises(ValueError, match=r"^x='img' .*'image', 'label', 'more'"):
        fit(tmp_path, module, *callbacks)
    assert module.seen == []
    assert_equal(module.state_dict(), before)


# A user's module, compared with PGDAT.


def test_the_users_module_imports_nothing_of_lit_robust():
    source = Path(stranger.__file__).read_text()
    assert not [word for word in ("lit_robust", "adversar", "eps", "perturb") if word in source]


#: Of the digits, on which 0.15 leaves natural nets a fifth of their accuracy.
TRAIN, TEST = PGD(eps=0.15, step_size=0.08, steps=3), PGD(eps=0.15, step_size=0.02, steps=20)
PIPELINE = {"x": "image", "y": "label", "mean": MEAN, "std": STD}


def robust_accuracy_of_the_stranger(tmp_path, seed, *callbacks):
    seed_everything(seed, verbose=False)
    module, data, measure = DigitClassifier(), DigitsData(), RobustAccuracy({"pgd20": TEST}, **PIPELINE)
    run = trainer(tmp_path, callbacks=[measure, *callbacks], max_epochs=10, limit_val_batches=0, log_every_n_steps=1)
    run.fit(module, data)
    run.test(module, data, verbose=False)
    return 100 * measure.accuracies["test"]["pgd20"].value


def robust_accuracy_of_pgdat(tmp_path, seed):
    """On the same images, with the same net, optimizer and schedule."""

    class Normalise(nn.Module):
        def forward(self, x):
            return (x - MEAN) / STD

    seed_everything(seed, verbose=False)
    data = DigitsData()
    data.setup("fit")
    train, test = (
        [
            (torch.from_numpy(image).float().unsqueeze(0) / 16, int(y))
            for image, y in zip(part.images, part.labels, strict=True)
        ]
        for part in (data.train, data.test)
    )
    defense = PGDAT(
        nn.Sequential(Normalise(), stranger.backbone()),
        10,
        TRAIN,
        optimizer=lambda params: torch.optim.AdamW(params, lr=1e-2),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10),
        test_attacks={"pgd20": TEST},
    )
    run = trainer(tmp_path, max_epochs=10, log_every_n_steps=1)
    run.fit(defense, DataLoader(train, 128, shuffle=True))
    run.test(defense, DataLoader(test, 200), verbose=False)
    return 100 * defense.test_results["these weights"]["pgd20"].value


def test_a_users_module_comes_within_three_points_of_pgdat(tmp_path):
    theirs, mine = [], []
    for seed in range(3):
        theirs.append(robust_accuracy_of_pgdat(tmp_path, seed))
        callbacks = AdversarialTraining(TRAIN, **PIPELINE, attack_bn_mode="train"), DelayedStart(at_epoch=2)
        mine.append(robust_accuracy_of_the_stranger(tmp_path, seed, *callbacks))
    natural = robust_accuracy_of_the_stranger(tmp_path, 0)
    print(theirs, mine, natural)
    assert abs(sum(mine) - sum(theirs)) / 3 <= 3
    assert min(mine) > natural + 30


# In the configuration of a command line of the user's own.


FRAGMENT = Path(__file__).parent.parent / "configs" / "callback" / "adversarial_training.yaml"


@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter is intended")
def test_the_fragment_works_in_a_users_own_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine = {"x: 0": "x: image", "y: 1": "y: label", "net: null": "net: model"}
    mine |= {"mean: null": f"mean: {MEAN}", "std: null": f"std: [{STD}]"}
    text = FRAGMENT.read_text()
    for theirs, changed in mine.items():
        assert theirs in text
        text = text.replace(theirs, changed)
    Path("mine.yaml").write_text(text)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "fast_dev_run": 1}
    cli = LightningCLI(
        DigitClassifier,
        DigitsData,
        seed_everything_default=0,
        trainer_defaults={"accelerator": "cpu", "devices": 1, **quiet},
        args=["fit", "-c", "mine.yaml", "--data.batch_size=8"],
    )
    (callback,) = (c for c in cli.trainer.callbacks if isinstance(c, AdversarialTraining))
    assert callback.attack == PGD(eps="8/255", step_size="2/255", steps=10)
    assert (callback.adapter.mean, callback.adapter.std) == ((MEAN,), (STD,))


def test_the_fragment_is_refused_by_a_defense_in_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    error = refusal(capsys, "fit", "-c", tiny(tmp_path), "-c", FRAGMENT)
    assert error.startswith("PGDAT ")
