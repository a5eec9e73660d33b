"""The time that the whole training will still take, in either progress bar."""

import re
from datetime import timedelta

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from lit_robust.callbacks import TimeLeft, time_left
from lit_robust.callbacks.time_left import clock
from tests.tiny import CLASSES, images, loader, trainer


class Plain(LightningModule):
    """No Defense."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])


class Watch(Callback):
    """What the bar shows after each batch, on a clock that the batches move."""

    def __init__(self, monkeypatch, seconds):
        self.now, self.seconds, self.shown = 0.0, iter(seconds), []
        monkeypatch.setattr(time_left, "monotonic", lambda: self.now)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.now += next(self.seconds)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        items = trainer.progress_bar_callback.get_metrics(trainer, pl_module)
        self.shown.append(items.get("training left"))
        assert items.get("v_num", "0") == "0"  # a number would be rounded to 0.000


def run(tmp_path, monkeypatch, seconds, bar=TQDMProgressBar, **kwargs):
    """Three batches an epoch; each takes its seconds."""
    left, watch = TimeLeft(), Watch(monkeypatch, seconds)
    one = trainer(tmp_path, callbacks=[left, watch, bar()], enable_progress_bar=True, **kwargs)
    one.fit(Plain(), loader(images(24)))
    assert "get_metrics" not in vars(one.progress_bar_callback)  # as it was
    return watch.shown


@pytest.mark.parametrize("bar", [TQDMProgressBar, RichProgressBar])
def test_the_end_is_that_of_all_epochs(tmp_path, monkeypatch, bar):
    shown = run(tmp_path, monkeypatch, [10] * 9, bar, max_epochs=3)
    assert shown == [f"0:0{left // 60}:{left % 60:02}" for left in range(80, -1, -10)]


def test_the_pace_is_that_of_the_last_two_epochs(tmp_path, monkeypatch):
    """Twelve batches, of 1 s in two epochs and of 100 s then, as after a delayed start."""
    shown = run(tmp_path, monkeypatch, [1] * 6 + [100] * 6, max_epochs=4)
    assert shown[5] == "0:00:06"
    assert shown[8] == clock(3 * (3 + 300) / 6)
    assert shown[9] == "0:03:20"


@pytest.mark.parametrize(
    ("limits", "first"),
    [
        ({"max_epochs": 3, "max_steps": 4}, "0:00:30"),
        ({"max_epochs": -1, "max_steps": 4}, "0:00:30"),
        ({"max_epochs": 2, "max_time": timedelta(days=2)}, "0:00:50"),
    ],
)
def test_the_first_limit_counts(tmp_path, monkeypatch, limits, first):
    assert run(tmp_path, monkeypatch, [10] * 9, **limits)[0] == first


def test_without_an_end_nothing_is_shown(tmp_path, monkeypatch):
    class Stop(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = True

    watch = Watch(monkeypatch, [10] * 9)
    trainer(
        tmp_path, callbacks=[TimeLeft(), watch, Stop(), TQDMProgressBar()], enable_progress_bar=True, max_epochs=-1
    ).fit(Plain(), loader(images(24)))
    assert watch.shown == [None] * 3


def test_the_number_of_the_run_is_text(tmp_path, monkeypatch):
    run(tmp_path, monkeypatch, [10] * 9, max_epochs=1, logger=CSVLogger(tmp_path))


def test_max_time_alone_is_the_time_left(tmp_path, monkeypatch):
    shown = run(tmp_path, monkeypatch, [10] * 9, max_epochs=2, max_time=timedelta(seconds=5))
    assert shown[0] in ("0:00:04", "0:00:05")


def test_it_needs_no_bar_and_gives_a_bar_its_method_back_after_an_exception(tmp_path):
    class Break(Callback):
        def on_train_batch_end(self, *_):
            raise RuntimeError("broken")

    trainer(tmp_path, callbacks=[TimeLeft()], max_epochs=1).fit(Plain(), loader(images(24)))
    bar = TQDMProgressBar()
    with pytest.raises(RuntimeError, match="broken"):
        trainer(tmp_path, callbacks=[TimeLeft(), Break(), bar], enable_progress_bar=True, max_epochs=1).fit(
            Plain(), loader(images(24))
        )
    assert "get_metrics" not in vars(bar)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (-3, "0:00:00"), (59.9, "0:01:00"), (360000, "100:00:00")]
)
def test_a_clock_is_plain_ascii(seconds, text):
    assert clock(seconds) == text
    assert re.fullmatch(r"[\d:]+", text)
