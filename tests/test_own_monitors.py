"""Monitors of metrics that a user's own method or callback never logs: told in one sentence as early as it is known."""

from pathlib import Path

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lit_robust.cli import main
from lit_robust.defenses import PGDAT
from tests.front_door import refusal, tiny
from tests.methods import build
from tests.tiny import images, loader, trainer

OWN = """
from lit_robust.defenses import PGDAT


class Mine(PGDAT):
    def on_validation_epoch_end(self):
        super().on_validation_epoch_end()
        self.log("val/mine", 0.5)

    def on_train_epoch_end(self):
        super().on_train_epoch_end()
        self.log("train/late", 0.5)
"""


@pytest.fixture
def own(empty):
    Path("own_monitored.py").write_text(OWN)
    return ["fit", "-c", tiny(Path()), "--model=own_monitored.Mine"]


WATCHERS = {"EarlyStopping": [], "ModelCheckpoint": ["--trainer.callbacks.filename=more"]}
NO_VALIDATION = ["--trainer.limit_val_batches=0", "--trainer.num_sanity_val_steps=0"]
HOW = {
    "as it is": [],
    "without the sanity check": ["--trainer.num_sanity_val_steps=0"],
    "validated in the middle": ["--trainer.val_check_interval=1"],
    "not validated": NO_VALIDATION,
}


@pytest.mark.filterwarnings("ignore:.*could not find the monitored key")
@pytest.mark.parametrize("key", ["val/acc/robsut", "train/los"])
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("watcher", WATCHERS)
def test_a_misspelt_monitor_beside_ones_own_method_is_one_sentence(watcher, how, key, own, capsys):
    rest = [f"--trainer.callbacks.monitor={key}", *WATCHERS[watcher], *HOW[how]]
    told = refusal(capsys, *own, f"--trainer.callbacks+={watcher}", *rest, "--trainer.max_epochs=3")
    if how != "not validated":
        assert told.startswith(f"{watcher} monitors {key}, but ")
    else:  # the first one, which may be the best checkpoint's
        assert " monitors " in told


@pytest.mark.parametrize("key", ["val/mine", "train/late", "train/loss"])
@pytest.mark.parametrize("how", ["as it is", "without the sanity check"])
@pytest.mark.parametrize("watcher", ["EarlyStopping", "ModelCheckpoint"])
def test_what_ones_own_method_logs_is_monitored(watcher, how, key, own):
    rest = [f"--trainer.callbacks.monitor={key}", *WATCHERS[watcher], *HOW[how]]
    main([*own, f"--trainer.callbacks+={watcher}", *rest, "--trainer.max_epochs=2"])


class Mine(PGDAT):
    pass


class LogsLater(Callback):
    """Logs nothing in the sanity check, as is usual."""

    def on_validation_epoch_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            pl_module.log("val/later", 0.5)

    def on_train_epoch_end(self, trainer, pl_module):
        pl_module.log("val/at_the_end", 0.5)


@pytest.mark.parametrize("key", ["val/later", "val/at_the_end"])
def test_a_metric_that_ones_own_callback_logs_only_in_training_is_no_mistake(key, tmp_path):
    callbacks = [LogsLater(), EarlyStopping(key)]
    run = trainer(tmp_path, max_epochs=2, num_sanity_val_steps=1, callbacks=callbacks)
    run.fit(build(PGDAT), loader(images(8)), loader(images(8)))
    assert run.current_epoch == 2


@pytest.mark.filterwarnings("ignore:.*could not find the monitored key")
@pytest.mark.parametrize("epochs", [1, 3])
def test_a_checkpoint_that_is_never_written_is_told_after_the_first_epoch(epochs, tmp_path):
    """Lightning warns, as long as there was no validation, and goes on."""
    saved = ModelCheckpoint(tmp_path, monitor="train/los")
    run = trainer(tmp_path, max_epochs=epochs, callbacks=[saved], enable_checkpointing=True)
    with pytest.raises(ValueError, match=r"^ModelCheckpoint monitors train/los, but training logs .*train/loss"):
        run.fit(build(Mine), loader(images(24)))
    assert run.current_epoch == 1


def test_a_validation_of_every_second_epoch_is_waited_for(tmp_path):
    saved = ModelCheckpoint(tmp_path, monitor="val/acc/robust", mode="max", save_on_train_epoch_end=False)
    run = trainer(tmp_path, max_epochs=4, callbacks=[saved], enable_checkpointing=True, check_val_every_n_epoch=2)
    run.fit(build(Mine), loader(images(8)), loader(images(8)))
    assert Path(saved.best_model_path).exists()


def test_a_metric_that_may_come_later_is_waited_for(tmp_path):
    class Later(Mine):
        def on_train_epoch_end(self):
            super().on_train_epoch_end()
            if self.current_epoch == 2:
                self.log("train/swa", 0.5)

    run = trainer(tmp_path, max_epochs=4, callbacks=[EarlyStopping("train/swa", strict=False)])
    run.fit(build(Later), loader(images(8)), loader(images(8)))
    assert run.current_epoch == 4
