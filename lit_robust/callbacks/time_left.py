"""How long the whole training will still take, in the progress bar."""

from collections import deque
from time import monotonic
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer

from lit_robust.callbacks.needs import callbacks_of
from lit_robust.schedules.base import fractional_epoch


class TimeLeft(Callback):
    """Adds ``training left: 1:23:45`` to any progress bar; the command line does it by default.

    The estimate takes the pace since the start of the previous epoch, validation included, so that it follows a
    ``DelayedStart`` or a coreset. The end is the first of ``max_epochs``, ``max_steps`` and ``max_time``; an early stop
    is not foreseen. A batch costs some microseconds; without a progress bar nothing is shown. The run's number,
    ``v_num``, is passed on as text, because rich would print 0 as 0.000.
    """

    logged_keys = ()

    def __init__(self) -> None:
        self._text = ""  # empty before the first batch
        # Time, fractional epochs and optimizer steps at the starts of this epoch and of the one before.
        self._marks: deque[tuple[float, float, float]] = deque(maxlen=2)
        self._timers: list[Timer] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Add the estimate to what the progress bar shows."""
        if stage != "fit":
            return
        self._marks.clear()
        self._timers, self._text = callbacks_of(trainer, Timer), ""
        bar: Any = trainer.progress_bar_callback  # whose method is replaced
        if bar is not None:
            shown = bar.get_metrics

            def get_metrics(*args: Any) -> dict[str, Any]:
                items = {name: str(value) if name == "v_num" else value for name, value in shown(*args).items()}
                return {"training left": self._text, **items} if self._text else items

            bar.get_metrics = get_metrics

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Record when an epoch starts, or continues after a resume."""
        if batch_idx == 0 or not self._marks:
            self._marks.append(_progress(trainer, batch_idx))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the estimate."""
        (then, *begun), (now, *done) = self._marks[0], _progress(trainer, batch_idx + 1)
        left = [time for timer in self._timers if (time := timer.time_remaining()) is not None]
        for end, before, here in zip((trainer.max_epochs, trainer.max_steps), begun, done, strict=True):
            if end is not None and end > 0 and here > before:
                left.append((now - then) * (end - here) / (here - before))
        self._text = clock(min(left)) if left else ""

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the progress bar its own method back."""
        if (bar := trainer.progress_bar_callback) is not None:
            vars(bar).pop("get_metrics", None)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The same, because there is no ``teardown`` after an exception."""
        self.teardown(trainer, pl_module, "fit")


def clock(seconds: float) -> str:
    """Write a time as hours, minutes and seconds, ``0:00:07``."""
    minutes, seconds = divmod(max(round(seconds), 0), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def _progress(trainer: Trainer, batches: int) -> tuple[float, float, float]:
    return monotonic(), fractional_epoch(trainer, batches), trainer.global_step
