"""Moving averages of the weights: one that is evaluated and saved, and others that a method may attack."""

from collections.abc import Iterator
from copy import deepcopy
from itertools import chain
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lit_robust import require
from lit_robust.callbacks.ema_state import (
    BUFFERS,
    buffers_of,
    check_initialized,
    check_same_tensors,
    check_trainer,
    checked_buffers,
    not_copied,
)
from lit_robust.callbacks.needs import check_net, net_of
from lit_robust.ranks import average_buffers, gather_within_epoch
from lit_robust.schedules import Schedule
from lit_robust.schedules.base import check_epochs_have_a_length, fractional_epoch


class EMAWeights(WeightAveraging):
    """Exponential moving averages of the weights, as NuAT-WA and NuAT2-WA keep them (NeurIPS 2021).

        omega <- decay * omega + (1 - decay) * theta     after every optimizer step; after the first, theta

    Parameters and float buffers (BatchNorm's statistics) are averaged; integer buffers are copied. The main average is
    of the whole module: it is swapped in for validation, it is the ``state_dict`` of every checkpoint (Lightning's
    format, so ``test --ckpt_path`` evaluates it), and the module holds it after ``fit``. Whatever is changed in the
    module then, such as by ``test`` of another checkpoint, changes the average that ``trainer.save_checkpoint`` writes;
    the live weights beside it stay those of the fit, and a further fit starts from the module. The ``extra`` averages
    are of the net only: ``module.averaged["fast"]`` is a plain net in eval mode on the module's device. It is not a
    sub-module, so it is neither trained nor saved with the module, and it equals the live net until averaging starts.

    A batch of several optimizer steps (FreeAT) updates once, with ``decay ** steps``, so a decay has the same half-life
    in optimizer steps everywhere. A resumed run continues all averages exactly. Under DDP the averages' float buffers
    are averaged over ranks after an epoch's last batch, and the main average's before a validation, so all ranks
    evaluate the same net; a checkpoint written within an epoch holds those of all ranks.

    Differs from Lightning's ``EMAWeightAveraging``: an average that was never updated is never used, ``start_epoch``
    delays every update, live weights are restored when validation fails, ``test`` after ``fit`` evaluates the average
    of the given checkpoint, the last checkpoint can be resumed, and no step waits for the device.

    Args:
        decay: The paper's tau: a number, or a schedule of fractional epochs.
        extra: The decays of further averages by name: NuAT2-WA attacks ``{"fast": 0.99}``.
        start_epoch: The epoch in which averaging starts.
        net: The sub-module that ``extra`` averages; None for the module itself or, if it has no ``forward``, its
            ``net``.

    Raises:
        TypeError: If there is no such net for ``extra``, or one of its names is not text.
        ValueError: If a decay is not in [0, 1), another callback averages or prunes weights too, a ``ModelCheckpoint``
            saves weights only, which would be the live ones, or the module cannot be copied, is lazy, or gets other
            parameters during the fit.
    """

    logged_keys = ()

    # The state is saved beside the weights (see on_save_checkpoint). Lightning refuses two callbacks of a class that
    # overrides state_dict, before setup could say what to do instead.
    state_dict = Callback.state_dict
    load_state_dict = Callback.load_state_dict

    def __init__(
        self,
        decay: float | Schedule = 0.9998,
        extra: dict[str, float | Schedule] | None = None,
        start_epoch: int = 0,
        net: str | None = None,
    ) -> None:
        super().__init__()
        require.integer("start_epoch", start_epoch, least=0)
        require.instance("extra", {} if extra is None else extra, dict, 'give decays by name, {"fast": 0.99}')
        self.decay = _checked("decay", decay)
        for name in extra or {}:
            require.text("a name in extra", name, 'give decays by name, {"fast": 0.99}')
        self.extra = {name: _checked(f"extra[{name!r}]", value) for name, value in (extra or {}).items()}
        self.start_epoch = start_epoch
        self.net = None if net is None else require.text("net", net, "give the path of a sub-module")
        self._nets: dict[str, nn.Module] = {}
        self._module: LightningModule | None = None
        self._updates = 0
        self._fitting = self._swapped = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copy the module for the main average, and its net for each extra one."""
        self._fitting = stage == "fit"
        if not self._fitting and pl_module is self._module:
            return  # the fit's averages are kept for trainer.save_checkpoint
        self._average_model, self._module, self._nets = None, None, {}
        self._updates, self._swapped = 0, False
        if not self._fitting:
            return
        check_trainer(trainer, self)
        if self.extra:
            check_net(pl_module, self.net, "EMAWeights averages")
        vars(pl_module).pop("averaged", None)  # an earlier fit's, which the copy below would copy too
        trainer.precision_plugin.convert_module(pl_module)  # now, so that the copies of 64-true have 64 bits
        try:
            super().setup(trainer, pl_module, stage)
            self._nets = {name: deepcopy(net_of(pl_module, self.net)) for name in self.extra}
        except (RuntimeError, TypeError, ValueError) as error:
            check_initialized(pl_module)
            if reason := not_copied(pl_module):
                raise ValueError(reason) from error
            raise
        check_initialized(pl_module)
        self._module = pl_module

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move the averages to the module's device, and give the extra ones to the module."""
        for average in (self._average, *self._nets.values()):
            average.to(pl_module.device).eval().requires_grad_(False)
        # Not by plain assignment, which might register the averages as sub-modules.
        object.__setattr__(pl_module, "averaged", dict(self._nets))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count steps from here; a resumed run knows its step only now."""
        self._latest_update_step = trainer.global_step
        if any(isinstance(decay, Schedule) for decay in (self.decay, *self.extra.values())):
            check_epochs_have_a_length(trainer, "decay")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse parameters that the averages lack; updates pair them by position."""
        for _, average, live in self._pairs(pl_module):
            check_same_tensors(average, live)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the averages with the steps of this batch."""
        steps = trainer.global_step - self._latest_update_step
        if steps > 0:
            self._latest_update_step = trainer.global_step
            self._updates += trainer.current_epoch >= self.start_epoch
            time = fractional_epoch(trainer, batch_idx)
            for decay, average, live in self._pairs(pl_module):
                _update(average, live, _at(decay, time) ** steps if self._updates > 1 else 0.0)
        if trainer.is_last_batch:
            for _, average, _ in self._pairs(pl_module):
                average_buffers(average)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Swap the main average in, if it has been updated."""
        if self._fitting and self._updates:
            average_buffers(self._average.module)
            self._swap(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Swap the live weights back in."""
        if self._fitting and self._swapped:
            self._swap(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the live weights if validation failed."""
        if self._fitting and self._swapped:
            self._swap(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the live weights: a last checkpoint may still be written, and resumed, after this."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the main average in the module, if it has been updated, and the live weights in its place."""
        if self._updates:
            self._swap(pl_module)
        self._average.cpu()  # like the module, soon; no step needs them any more
        self._fitting = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write the averages, and the live weights as ``current_model_state``."""
        if self._average_model is not None:
            self._average.n_averaged.fill_(self._updates)
            checkpoint["extra_averages"] = {name: net.state_dict() for name, net in self._nets.items()}
            average = pl_module if self._swapped else self._average.module
            checkpoint[BUFFERS] = gather_within_epoch(buffers_of(average, self._nets), trainer)
        of_module = checkpoint["state_dict"]
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._swapped:
            checkpoint["current_model_state"] = checkpoint["state_dict"]
        if self._swapped or not self._updates:
            checkpoint["state_dict"] = of_module

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Resume all averages; one that the checkpoint lacks starts from its live weights.

        Outside ``fit`` there is nothing to do: the ``state_dict`` has been loaded.

        Raises:
            ValueError: If the averages are broken or of another net.
        """
        if not self._fitting:
            return
        live, own = net_of(pl_module, self.net).state_dict(), buffers_of(self._average.module, self._nets)
        extra = dict.fromkeys(self._nets, live)
        buffers = checked_buffers(checkpoint, pl_module.state_dict(), extra, own, trainer.global_rank)
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        self._updates = int(checkpoint.get("averaging_state", {}).get("n_averaged", 0))
        for name, net in self._nets.items():
            net.load_state_dict(checkpoint.get("extra_averages", {}).get(name, live))
        for name, value in buffers.items():
            own[name].copy_(value)

    @property
    def _average(self) -> AveragedModel:
        assert self._average_model is not None, "there is no average before fit"
        return self._average_model

    def _pairs(self, pl_module: LightningModule) -> Iterator[tuple[float | Schedule, nn.Module, nn.Module]]:
        """Each average with its decay and the live weights that it follows."""
        yield self.decay, self._average.module, pl_module
        for name, net in self._nets.items():
            yield self.extra[name], net, net_of(pl_module, self.net)

    def _swap(self, pl_module: LightningModule) -> None:
        self._swap_models(pl_module)
        self._swapped = not self._swapped


@torch.no_grad()
def _update(average: nn.Module, live: nn.Module, decay: float) -> None:
    """Move the average towards the live weights; a decay of 0 copies them."""
    averaged, moved = [], []
    for mine, theirs in zip(_tensors(average), _tensors(live), strict=True):
        if decay and mine.is_floating_point():
            averaged.append(mine)
            moved.append(theirs.detach())
        else:
            mine.copy_(theirs)
    if averaged:
        torch._foreach_lerp_(averaged, moved, 1 - decay)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())


def _at(decay: float | Schedule, time: float) -> float:
    return _in_range("a scheduled decay", decay(time)) if isinstance(decay, Schedule) else decay


def _checked(name: str, decay: float | Schedule) -> float | Schedule:
    return decay if isinstance(decay, Schedule) else _in_range(name, decay)


def _in_range(name: str, decay: float) -> float:
    return require.number(name, decay, least=0, below=1, hint="0.9998 forgets half in 3465 steps")
