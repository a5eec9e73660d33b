from dataclasses import dataclass

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lit_robust.callbacks import CatastrophicOverfittingMonitor, DelayedStart, PGDDrop, StopAfterDrop, early_stop
from lit_robust.defenses import PGDAT
from lit_robust.schedules import Cyclic, MultiStep
from tests import test_resume
from tests.methods import build
from tests.test_resume import Setup, differences, specified
from tests.tiny import images, loader, trainer

whole = test_resume.whole  # a fixture


def fit(tmp_path, schedule, *callbacks, max_epochs=9, ckpt_path=None, **kwargs):
    run = trainer(tmp_path, callbacks=list(callbacks), max_epochs=max_epochs, **({"limit_val_batches": 0} | kwargs))
    data = loader(images(16))
    run.fit(build(PGDAT, lr_scheduler=schedule), data, data, ckpt_path=ckpt_path, weights_only=True)
    return run


@pytest.mark.parametrize("drop", [1, 3])
@pytest.mark.parametrize("epochs", [1, 2, 15])
def test_the_given_number_of_epochs_has_the_dropped_rate(tmp_path, drop, epochs):
    class Rates(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    rates = []
    run = fit(tmp_path, MultiStep([drop]), StopAfterDrop(epochs), Rates())
    trained = min(drop + epochs, 9)
    assert run.current_epoch == trained
    assert rates == pytest.approx([0.1] * drop + [0.01] * (trained - drop))


def test_schedulers_of_torch_work_too(tmp_path):
    run = fit(tmp_path, lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2), StopAfterDrop(1))
    assert run.current_epoch == 3


def test_the_default_is_what_the_published_times_imply():
    # 112 to 118 epochs, the first of them with the dropped rate being epoch 101.
    assert 112 <= 101 + StopAfterDrop().epochs <= 118


def test_the_stop_is_reported_in_one_line(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(early_stop, "rank_zero_info", lines.append)
    fit(tmp_path, MultiStep([3]), StopAfterDrop(2))
    (line,) = lines
    assert " epoch 4, 2 epochs " in line


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_the_last_epoch_is_validated_and_saved_and_a_run_at_its_end_trains_no_more(tmp_path):
    def run(epochs, **kwargs):
        best = ModelCheckpoint(tmp_path, "best", monitor="val/acc/robust", mode="max", save_on_train_epoch_end=True)
        last = ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=True, enable_version_counter=False)
        kwargs |= {"enable_checkpointing": True, "limit_val_batches": None}
        return fit(tmp_path, MultiStep([3]), StopAfterDrop(epochs), best, last, **kwargs), best

    stopped, best = run(2)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert (saved["epoch"], saved["global_step"]) == (4, 5 * 2)
    assert best.best_model_score is not None
    assert "val/acc/robust" in stopped.callback_metrics
    again, _ = run(2, ckpt_path=tmp_path / "last.ckpt")
    assert again.global_step == 5 * 2
    assert differences(again.lightning_module.state_dict(), saved["state_dict"]) == []
    longer, _ = run(4, ckpt_path=tmp_path / "last.ckpt")  # what the user writes is what runs
    assert longer.current_epoch == 7


def test_min_epochs_is_respected(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(early_stop, "rank_zero_info", lines.append)
    assert fit(tmp_path, MultiStep([3]), StopAfterDrop(1), min_epochs=6).current_epoch == 6
    (line,) = lines
    assert " epoch 5, 3 epochs " in line


def test_dat_early_stop_is_natural_then_adversarial_then_over(tmp_path):
    class Watch(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            adversarial.append(pl_module.adversarial)

    adversarial = []
    fit(tmp_path, MultiStep([3]), DelayedStart(), StopAfterDrop(2), Watch())
    assert adversarial == [False] * 3 + [True] * 2


@dataclass(frozen=True)
class Always(PGDDrop):
    """Finds overfitting in every epoch but the first."""

    def overfits(self, earlier, current):
        return True


AFTER_EPOCH_1 = {"monitor": "train/updates", "stopping_threshold": 5.5, "mode": "max", "check_on_train_epoch_end": True}
SETUPS = {
    "at the end of epoch 1": Setup(
        arguments={"lr_scheduler": MultiStep([1])}, callbacks=lambda: [StopAfterDrop(1), DelayedStart()]
    ),
    "by Lightning's EarlyStopping": Setup(callbacks=lambda: [EarlyStopping(**AFTER_EPOCH_1)]),
    "by CatastrophicOverfittingMonitor": Setup(callbacks=lambda: [CatastrophicOverfittingMonitor(Always(), "stop")]),
}


@pytest.mark.filterwarnings("ignore:catastrophic overfitting")
@specified(
    SETUPS, "in the first epoch", "in mid-epoch", "after an epoch's last batch", "after validation", "between epochs"
)
def test_a_resumed_run_stops_where_an_uninterrupted_one_does(whole, stop):
    setup, run = whole
    rest = test_resume.fit(setup, run.stops.folder, stop)
    assert run.end["epoch"] == 2
    # All but the progress of the loops: loaders know where they were left, not that the epoch is over.
    assert (
        differences(*({key: value for key, value in end.items() if key != "loops"} for end in (rest.end, run.end)))
        == []
    )


def test_a_fast_dev_run_needs_no_drop(tmp_path):
    assert fit(tmp_path, None, StopAfterDrop(), fast_dev_run=True).global_step == 1


@pytest.mark.parametrize("schedule", [None, Cyclic(3, 6), MultiStep([9])], ids=["constant", "triangle", "too late"])
def test_without_a_drop_it_is_refused(tmp_path, schedule):
    with pytest.raises(ValueError, match=r"9 epochs.*trainer\.max_epochs"):
        fit(tmp_path, schedule, StopAfterDrop())


def test_a_number_of_epochs_that_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match=r"^epochs="):
        StopAfterDrop(0)
