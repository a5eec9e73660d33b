"""A selection sees the adversary that its own epoch trains with, whatever drives it and in whatever order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, seed_everything
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping

from lit_robust.callbacks import AdversarialTraining, AttributeRamp, CoresetSelection, DelayedStart, SwitchRule, coreset
from lit_robust.callbacks.epoch_values import LastTurn
from lit_robust.defenses import PGDAT, TRADES
from lit_robust.defenses.curriculum_at import CurriculumAT
from lit_robust.schedules import Linear
from lit_robust.selection import CRAIG
from tests.methods import ATTACK, METHODS, build
from tests.test_callback_coreset import Automatic, Seen
from tests.test_resume import TinyData, differences
from tests.tiny import TinyNet, trainer

RAMP = Linear(0.01, 0.09, begin=0, end=8)


@pytest.fixture
def selections(monkeypatch) -> dict[int, dict[str, Any]]:
    """What each selection sees of the module and the trainer, by its epoch."""
    found: dict[int, dict[str, Any]] = {}

    def embed(trainer, module, adapter, selector, sampler, attack, epoch, *more):
        found[epoch] = {
            "adversarial": module.adversarial,
            "eps": getattr(module.attack, "eps", None),
            "epoch": (trainer.current_epoch, module.current_epoch),
            "time": getattr(module, "time", None),
            "k": getattr(module, "k", None),
        }
        return original(trainer, module, adapter, selector, sampler, attack, epoch, *more)

    original = coreset.embed
    monkeypatch.setattr(coreset, "embed", embed)
    return found


class Trains(Callback):
    """What the first batch of each epoch trains with, and what a checkpoint between epochs would see."""

    def __init__(self) -> None:
        self.found: dict[int, dict[str, Any]] = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0:
            self.found[trainer.current_epoch] = {
                "adversarial": pl_module.adversarial,
                "eps": getattr(pl_module.attack, "eps", None),
                "epoch": (trainer.current_epoch, pl_module.current_epoch),
                "k": getattr(pl_module, "k", None),
            }

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 0:
            self.found[trainer.current_epoch]["time"] = getattr(pl_module, "time", None)


def fit(folder: Any, module: LightningModule, *callbacks: Callback, epochs: int = 6, **kwargs: Any) -> Trains:
    seed_everything(7, verbose=False)
    trains = Trains()
    run = trainer(folder, max_epochs=epochs, callbacks=[*callbacks, trains], limit_val_batches=0, **kwargs)
    run.fit(module, datamodule=TinyData())
    assert not any(isinstance(callback, LastTurn) for callback in run.callbacks)
    return trains


def every_two(**kwargs: Any) -> CoresetSelection:
    return CoresetSelection(0.5, **{"every": 2, "warm": 0} | kwargs)


PARTS: dict[str, Callable[[], Callback]] = {
    "delay": lambda: DelayedStart(at_epoch=2),
    "ramp": lambda: AttributeRamp("attack.eps", RAMP),
    "selection": every_two,
}


@pytest.mark.parametrize("order", [*permutations(PARTS)], ids=str)
def test_a_delayed_start_and_a_ramp_are_at_the_epoch_that_is_selected_for(tmp_path, order, selections):
    trains = fit(tmp_path, build(PGDAT), *(PARTS[name]() for name in order))
    assert [found["adversarial"] for found in selections.values()] == [False, True, True]
    assert [found["eps"] for found in selections.values()] == pytest.approx([RAMP(0.0), RAMP(2.0), RAMP(4.0)])
    assert selections == {epoch: trains.found[epoch] for epoch in (0, 2, 4)}


def test_a_selection_at_the_switch_attacks_its_images(tmp_path):
    attacked: list[tuple[int, float]] = []

    class Looks(PGDAT):
        def perturb(self, batch):
            x_adv = super().perturb(batch)
            attacked.append((self.current_epoch, float((x_adv - batch.x).abs().max())))
            return x_adv

    fit(tmp_path, build(Looks), every_two(every=3), DelayedStart(at_epoch=3))
    assert {epoch for epoch, _ in attacked} == {3, 4, 5}
    assert sum(epoch == 3 for epoch, _ in attacked) == 3 + 2  # all images in batches of 8, then the coreset's batches
    assert min(distance for _, distance in attacked) > 0.9 * ATTACK.eps


@dataclass(frozen=True)
class AfterTwo(SwitchRule):
    def __call__(self, losses: Sequence[float]) -> bool:
        return len(losses) >= 2


def test_a_switch_that_a_loss_decides_at_the_epochs_end_counts(tmp_path, selections):
    trains = fit(tmp_path, build(PGDAT), every_two(), DelayedStart(AfterTwo(), latest_epoch=5))
    assert [found["adversarial"] for found in selections.values()] == [False, True, True]
    assert selections == {epoch: trains.found[epoch] for epoch in (0, 2, 4)}


@pytest.mark.parametrize("at", [2, 3, 4, 5])
def test_epochs_that_a_warm_start_skips_count(tmp_path, at, selections):
    trains = fit(tmp_path, build(PGDAT), DelayedStart(at_epoch=at), every_two(warm=0.5, every=1), epochs=8)
    assert list(trains.found) == [0, 1, 4, 5, 6, 7]
    assert {epoch: found["adversarial"] for epoch, found in selections.items()} == {e: e >= at for e in (4, 5, 6, 7)}
    assert selections == {epoch: trains.found[epoch] for epoch in (4, 5, 6, 7)}


def test_a_curriculum_has_made_its_step(tmp_path, selections):
    make = METHODS["CurriculumAT"]
    module = build(CurriculumAT, **make.arguments | {"expect_acc": 0.0, "patience": 0})
    trains = fit(tmp_path, module, every_two(every=1), epochs=3)
    assert [found["k"] for found in selections.values()] == [0, 1, 2]
    assert selections == trains.found


def test_the_attack_that_is_lent_to_a_strangers_module_is_driven(tmp_path, selections):
    lent = [AdversarialTraining(ATTACK), DelayedStart(at_epoch=2), AttributeRamp("attack.eps", RAMP)]
    trains = fit(tmp_path, Automatic(), every_two(), *lent)
    assert [found["adversarial"] for found in selections.values()] == [False, True, True]
    assert [found["eps"] for found in selections.values()] == pytest.approx([RAMP(0.0), RAMP(2.0), RAMP(4.0)])
    assert selections == {epoch: trains.found[epoch] for epoch in (0, 2, 4)}


def test_a_users_own_callback_is_asked_and_what_it_sets_is_put_back(tmp_path):
    beta: list[tuple[str, float]] = []

    class Mine(Callback):
        def values_at(self, epoch):
            return {"beta": 10.0 + epoch, "attack.eps": 0.02, "part.alpha": 3.0}

    class Watches(Checkpoint):
        def on_train_epoch_end(self, trainer, pl_module):
            beta.append(("after", pl_module.beta))
            assert pl_module.attack is attack
            assert pl_module.part.alpha == 1.0

    class Looks(TRADES):
        def loss(self, batch, x_adv):
            beta.append(("loss", self.beta))
            assert (self.attack.eps, self.part.alpha) == ((0.02, 3.0) if self.beta >= 10 else (ATTACK.eps, 1.0))
            return super().loss(batch, x_adv)

    module = build(Looks, beta=6.0)
    module.part, attack = SimpleNamespace(alpha=1.0), module.attack
    fit(tmp_path, module, every_two(every=1), Mine(), Watches(), epochs=2, enable_checkpointing=True)
    batches = {10.0: 3, 11.0: 3, 6.0: 4}
    assert {value: beta.count(("loss", value)) for value in batches} == batches
    assert [value for name, value in beta if name == "after"] == [6.0, 6.0]


def test_after_an_early_stop_nothing_is_selected(tmp_path, selections):
    class Falls(Automatic):
        adversarial, attack = True, None

        def training_step(self, batch, batch_idx):
            self.log("falls", float(self.current_epoch), on_step=False, on_epoch=True)
            return super().training_step(batch, batch_idx)

    stop = EarlyStopping("falls", patience=1, check_on_train_epoch_end=True)
    trains = fit(tmp_path, Falls(), every_two(every=1), stop)
    assert list(trains.found) == list(selections) == [0, 1]
    assert stop.stopped_epoch == 1


def test_a_run_that_an_ordinary_callback_saves_before_the_selection_selects_when_it_is_resumed(tmp_path):
    class SaveEarly(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(tmp_path / "early.ckpt")

    def run(*callbacks: Callback, **kwargs: Any) -> tuple[dict[str, Any], Seen]:
        seed_everything(7, verbose=False)
        module, seen = build(PGDAT, net=TinyNet(seed=5 if kwargs else 0)), Seen()
        attached = [every_two(selector=CRAIG()), AttributeRamp("attack.eps", RAMP), *callbacks, seen]
        fitting = trainer(tmp_path, max_epochs=4, callbacks=attached, limit_val_batches=0)
        fitting.fit(module, datamodule=TinyData(), **kwargs)
        return module.state_dict(), seen

    whole, before = run(SaveEarly())
    rest, after = run(ckpt_path=tmp_path / "early.ckpt")
    assert after.images == {epoch: before.images[epoch] for epoch in (2, 3)}
    assert differences(rest, whole) == []


def test_what_a_training_of_more_epochs_still_has_to_select_it_selects(tmp_path):
    """The last epoch of the shorter run leaves a selection to do, which its checkpoint says."""

    def run(epochs: int, **kwargs: Any) -> tuple[Any, Seen]:
        seed_everything(7, verbose=False)
        module, seen = build(PGDAT), Seen()
        fitting = trainer(tmp_path, max_epochs=epochs, callbacks=[every_two(), seen], limit_val_batches=0)
        fitting.fit(module, datamodule=TinyData(), **kwargs)
        fitting.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return module, seen

    run(2)
    longer, seen = run(4, ckpt_path=tmp_path / "2.ckpt")
    whole, expected = run(4)
    assert seen.images == {epoch: expected.images[epoch] for epoch in (2, 3)}
    assert differences(longer.state_dict(), whole.state_dict()) == []
    assert torch.load(tmp_path / "2.ckpt", weights_only=True)["callbacks"]["CoresetSelection"]["pending"] is True
