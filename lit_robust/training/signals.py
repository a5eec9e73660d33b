"""SIGTERM and Ctrl-C: stop after the same batch on all ranks, save, and say how to resume."""

import math
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn

from lit_robust.batch import Batch
from lit_robust.folder_locks import lock, unlock
from lit_robust.lightning_internals import handle_sigterm
from lit_robust.ranks import max_over_ranks, stop_request, world_size
from lit_robust.runs import newest_config, run_folder
from lit_robust.training.evaluated import Evaluated

AGAIN = b"\nCtrl-C: the training stops after this batch and saves; press it again to stop at once, without saving.\n"


class Stopped(SIGTERMException):
    """A signal has ended the run; a ``SystemExit``, so the process ends with 128 + the signal's number.

    Args:
        signum: The signal.
        code: Another exit code.
    """

    def __init__(self, signum: int, code: int | None = None) -> None:
        super().__init__(128 + signum if code is None else code)
        self.signum = signum


class Stoppable(Evaluated):
    """Stops when asked to by a signal, and holds the run's folder while it trains.

    A handler only notes the signal. The ranks agree on it where they add up the batch's weights, and in each validation
    batch; then all save ``last.ckpt`` and raise ``Stopped``. Outside training there is nothing to save, so a signal
    raises ``Stopped`` at once.
    """

    _modes: list[tuple[nn.Module, bool]]
    _validates_in_step: bool

    def setup(self, stage: str) -> None:
        """Receive SIGTERM from now on."""
        super().setup(stage)
        stop_request.reset()
        handle_sigterm(self.trainer, _note if stage == "fit" else self._leave_at_once)
        self._modes, self._validates_in_step = [], True

    def on_fit_start(self) -> None:
        """Hold the run's folder, if the first logger has one: a second training would mix the files."""
        super().on_fit_start()
        if self.trainer.is_global_zero and (folder := self._own_folder()):
            lock(folder)

    def on_train_start(self) -> None:
        """Receive Ctrl-C from now on, unless the user has a handler; Lightning restores the old one after the fit."""
        super().on_train_start()
        alone = threading.current_thread() is threading.main_thread()
        if alone and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _note_interrupt)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Stop here, where a ModelCheckpoint saves, too."""
        super().on_train_batch_end(outputs, batch, batch_idx)
        if signum := stop_request.of_any_rank():
            self.stop_for(signum)

    def on_validation_model_eval(self) -> None:
        """Remember the modes, which a validation that is stopped restores."""
        self._modes = [(module, module.training) for module in self.modules()]
        super().on_validation_model_eval()

    def on_validation_start(self) -> None:
        """Ask whether all ranks have the same number of batches: only then they may agree after each."""
        super().on_validation_start()
        trainer: Any = self.trainer
        if world_size() > 1 and trainer.state.fn == "fit":
            batches = float(sum(trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches))
            most, minus_least = max_over_ranks(torch.tensor([batches, -batches], device=self.device)).tolist()
            self._validates_in_step = most == -minus_least and math.isfinite(most)

    def on_validation_batch_end(self, outputs: Any, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Stop in a validation; the resumed run begins it again."""
        super().on_validation_batch_end(outputs, batch, batch_idx, dataloader_idx)
        if self.trainer.state.fn == "fit" and self._validates_in_step and (signum := self.stop_asked()):
            self._leave_validation()
            self.stop_for(signum)

    def teardown(self, stage: str) -> None:
        """Release the folder; pass on a signal that came after the last batch."""
        super().teardown(stage)
        if stage == "fit":
            self._release()
            if signum := stop_request.signal:
                stop_request.reset()
                raise Stopped(signum)

    def stop_asked(self) -> int:
        """The signal by which any rank was asked to stop, 0 if none; all ranks must call it equally often."""
        return stop_request.signal if world_size() == 1 else stop_request.of_any_rank_now(self.device)

    def stop_for(self, signum: int) -> None:
        """Save ``last.ckpt`` and say how to resume, where a ModelCheckpoint could save; then raise ``Stopped``."""
        trainer: Any = self.trainer
        place = ""
        if trainer.checkpoint_callbacks and not trainer.fast_dev_run and not trainer.sanity_checking:
            place = self._last_checkpoint()
            trainer.save_checkpoint(place, weights_only=False)  # else Lightning tells of its default
        name = "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name
        when = f"{name} stopped the training in epoch {trainer.current_epoch}, after step {trainer.global_step}"
        rank_zero_info(f"{when}: {_how_to_resume(place)}" if place else f"{when}; nothing was saved.")
        stop_request.reset()
        self._release()
        raise Stopped(signum, code=0 if _is_child(trainer) else None)

    def _leave_validation(self) -> None:
        """Restore the weights and modes that the validation had swapped."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]  # set by one of its connectors
            if isinstance(callback, WeightAveraging):
                callback.on_validation_epoch_end(self.trainer, self)
        for module, training in self._modes:
            module.training = training

    def _last_checkpoint(self) -> str:
        folders = (getattr(callback, "dirpath", None) for callback in self.trainer.checkpoint_callbacks)
        folder = next((folder for folder in folders if folder), None) or run_folder(self.trainer) / "checkpoints"
        return f"{folder}/last.ckpt"

    def _own_folder(self) -> str | None:
        return getattr(self.trainer.logger, "log_dir", None)

    def _release(self) -> None:
        if folder := self._own_folder():
            unlock(folder)

    def _leave_at_once(self, signum: int, frame: Any) -> None:
        _leave_at_once(self.trainer, signum)


@contextmanager
def stopped_before_the_first_step(trainer: Any) -> Iterator[None]:
    """Let SIGTERM raise ``Stopped`` until the trainer handles signals, which begins after ``on_fit_start``.

    Without it, the process would end without a chance to clean up. A handler of the user's stays. Outside the main
    thread this does nothing.

    Args:
        trainer: Runs in the body.
    """

    def leave(signum: int, frame: Any) -> None:
        if signal.getsignal(signum) is leave:  # else the trainer's handler has called it, after its own
            _leave_at_once(trainer, signum)

    alone = threading.current_thread() is threading.main_thread()
    if not alone or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _leave_at_once(trainer: Any, signum: int) -> None:
    launcher: Any = trainer.strategy.launcher
    if launcher is not None:
        launcher.kill(signum)  # the processes that it has started
    raise Stopped(signum)


def _note(signum: int, frame: Any) -> None:
    stop_request.signal = stop_request.signal or signum


def _note_interrupt(signum: int, frame: Any) -> None:
    _note(signum, frame)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        os.write(2, AGAIN)  # print is not safe in a handler


def _how_to_resume(place: str) -> str:
    config = newest_config(Path(place).parent.parent)
    how = f"lit-robust fit -c {config} --ckpt_path {place}" if config else f'trainer.fit(..., ckpt_path="{place}")'
    return f"resume it by {how}"


def _is_child(trainer: Any) -> bool:
    """Whether Lightning has started this process: it kills all others when one ends with another code than 0."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return isinstance(environment, LightningEnvironment) and trainer.local_rank > 0
