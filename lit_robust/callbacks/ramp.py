"""Attributes of a module as functions of time: lambda, eps, or any other number."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from operator import attrgetter
from typing import Any, Protocol

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lit_robust import require
from lit_robust.callbacks.epoch_values import assign, is_read_only
from lit_robust.callbacks.needs import callbacks_of, check_not_natural
from lit_robust.lightning_internals import batch_in_epoch, is_due_for_logging
from lit_robust.measures.attack_checks import short_steps
from lit_robust.schedules import Schedule
from lit_robust.schedules.base import check_epochs_have_a_length, fractional_epoch
from lit_robust.shown import shown


class HasAttribute(Protocol):
    """What ``AttributeRamp`` needs of a module: a number at the end of the path ``attribute``."""

    def __getattr__(self, name: str) -> Any:
        """The attribute, or the object that holds it."""


class ChecksNumbers(Protocol):
    """What a module may have: a way to refuse values that it cannot use, as every Defense does."""

    def check_numbers(self) -> None:
        """Refuse numbers out of range."""


class Counts(Protocol):
    """What a module may have: the names of the numbers that it logs itself, as every Defense does."""

    counted: tuple[str, ...]


class AttributeRamp(Callback):
    """Sets an attribute of the module to the value of a schedule before every batch.

    ``AttributeRamp("lam", PerEpoch(Linear(0, 4.5, 0, 90)))`` is NuAT's lambda, and ``AttributeRamp("attack.eps", ...)``
    grows the threat set. Along a path, a frozen dataclass such as an attack is replaced by a copy with the new value;
    other objects are changed in place. Only the named attribute changes: an attack's step follows its ``eps`` where no
    ``step_size`` is given.

    The value depends only on time in fractional epochs, so there is no state to resume, and it holds when a coreset
    changes the number of batches. Callbacks run before the module, so the module's own ``on_train_batch_start`` sees
    the new value. After training the last value stays. It is logged as ``train/<attribute>``, unless the module does.

    Before training all ramps are tried at two points per epoch, so values that the module refuses, when they are set or
    in its ``check_numbers()``, are refused then. A schedule that continues after the last epoch is reported.

    Args:
        attribute: The attribute's name, or a path such as ``attack.eps``.
        schedule: Its values.

    Raises:
        ValueError: If the module has no such number or no setter of it, refuses its values, or two ramps drive it.
        TypeError: If the schedule is not a ``lit_robust.schedules.Schedule``.
    """

    def __init__(self, attribute: str, schedule: Schedule) -> None:
        require.instance("attribute", attribute, str, "give a name (lam) or a path (attack.eps)")
        if not all(part.isidentifier() for part in attribute.split(".")):
            raise ValueError(f"attribute={attribute!r} is neither a name (lam) nor a path (attack.eps).")
        require.instance("schedule", schedule, Schedule, "give one of lit_robust.schedules")
        self.attribute = attribute
        self.schedule = schedule
        self._was_integer = False

    @property
    def state_key(self) -> str:
        """Tells ramps of different attributes apart."""
        return f"{type(self).__qualname__}{{'attribute': {self.attribute!r}}}"

    @property
    def logged_keys(self) -> list[str]:
        """The keys that it logs in training and validation."""
        return [f"train/{self.attribute}"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the attribute is a number that no other ramp drives."""
        if stage != "fit":
            return
        _check_number(pl_module, self.attribute)
        if self.attribute.startswith("attack."):
            check_not_natural(pl_module, f'AttributeRamp("{self.attribute}") changes the training\'s attack')
        self._was_integer = isinstance(attrgetter(self.attribute)(pl_module), int)
        _check_alone(trainer, self)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Try all ramps together, once, and report a schedule that does not end with training."""
        epochs = trainer.max_epochs or 0
        ramps = callbacks_of(trainer, AttributeRamp)
        if self is ramps[0]:
            _rehearse(ramps, pl_module, [half / 2 for half in range(2 * max(epochs, 0))])
        later = {self.schedule(time) for time in (1e6, 1e7, 1e8)}  # one value, unless it oscillates forever
        if epochs > 0 and len(later) == 1 and not math.isclose(last := self.schedule(float(epochs)), *later):
            rank_zero_info(
                f"{self.attribute} is {last:.4g} after {epochs} epochs, but its schedule goes on to {later.pop():.4g}: "
                f"scale it to trainer.max_epochs={epochs} if it is to get there."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the last batch's value: a resumed run may continue with the end of an epoch."""
        check_epochs_have_a_length(trainer, "schedule")
        self._set(trainer, pl_module, batch_in_epoch(trainer))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the value for code that reads it before the first batch."""
        self._set(trainer, pl_module, 0)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the value; log it every ``log_every_n_steps`` only, because logging costs as much as a small forward."""
        value = self._set(trainer, pl_module, batch_idx)
        if is_due_for_logging(trainer) and not self._is_counted_by(pl_module):
            pl_module.log(f"train/{self.attribute}", value, on_step=True, on_epoch=False, batch_size=1)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the value at the end of the epoch."""
        if trainer.is_last_batch and not self._is_counted_by(pl_module):
            value = self.schedule(fractional_epoch(trainer, batch_idx))
            reduced: dict[str, Any] = {"sync_dist": True, "reduce_fx": "max"}  # equal on all ranks, so this is exact
            pl_module.log(f"train/{self.attribute}", value, on_step=False, on_epoch=True, **reduced, batch_size=1)

    def _set(self, trainer: Trainer, pl_module: LightningModule, batch_idx: int) -> float:
        return self._set_for(pl_module, fractional_epoch(trainer, batch_idx))

    def _set_for(self, pl_module: LightningModule, time: float) -> float:
        assign(pl_module, self.attribute.split("."), value := self._value(time))
        return float(value)

    def _value(self, time: float) -> float:
        value = float(self.schedule(time))
        whole = round(value)
        # An integer such as attack.steps, which a schedule reaches to rounding only.
        return whole if self._was_integer and math.isclose(value, whole, abs_tol=1e-9) else value

    def _is_counted_by(self, pl_module: LightningModule) -> bool:
        """Whether the module logs the attribute itself; Lightning refuses a second log of a key."""
        return isinstance(counted := getattr(pl_module, "counted", ()), tuple) and self.attribute in counted

    def values_at(self, epoch: int) -> dict[str, float]:
        """The attribute's value at an epoch's start, for callbacks that look ahead."""
        return {self.attribute: self._value(float(epoch))}


def _rehearse(ramps: Sequence[AttributeRamp], module: Any, times: Iterable[float]) -> None:
    """Set the ramps' values at each time, let the module check them, and restore the first values."""
    before = [attrgetter(ramp.attribute)(module) for ramp in ramps]
    told = {owner: short_steps(owner, attrgetter(owner)(module)) for owner in _owners(ramps)}
    short: dict[str, str] = {}
    for time in times:
        try:
            for ramp in ramps:
                ramp._set_for(module, time)
            getattr(module, "check_numbers", lambda: None)()
        except (ValueError, TypeError) as error:
            values = ", ".join(f"{ramp.attribute}={ramp.schedule(time):.4g}" for ramp in ramps)
            raise type(error)(f"AttributeRamp leads to {values} at epoch {time:g}: {error}") from error
        for owner in told.keys() - short.keys():
            if not told[owner] and (found := short_steps(owner, attrgetter(owner)(module))):
                short[owner] = f"from epoch {time:g} on, {found}"
    for sentence in short.values():
        rank_zero_warn(sentence)
    for ramp, value in zip(ramps, before, strict=True):
        assign(module, ramp.attribute.split("."), value)


def _owners(ramps: Iterable[AttributeRamp]) -> set[str]:
    """The paths of the objects that the ramps change, such as ``attack``, without the module itself."""
    return {ramp.attribute.rpartition(".")[0] for ramp in ramps} - {""}


def _check_alone(trainer: Trainer, me: AttributeRamp) -> None:
    if any(ramp is not me and ramp.attribute == me.attribute for ramp in callbacks_of(trainer, AttributeRamp)):
        raise ValueError(
            f"two AttributeRamps drive {me.attribute}: keep one, whose schedule may be a Product of several."
        )


def _check_number(module: HasAttribute, attribute: str) -> None:
    value: Any = module
    *parts, last = attribute.split(".")
    for name in (*parts, last):
        owner, value = value, getattr(value, name, None)
        if not hasattr(owner, name):
            known = _numbers(owner) if name == last else list(_public(owner))
            if name == "attack" and owner is module:
                raise ValueError(
                    f'AttributeRamp("{attribute}") finds no attack in {type(owner).__name__}: if AdversarialTraining '
                    "lends it, list that callback before the ramp."
                )
            raise ValueError(
                f'AttributeRamp("{attribute}") finds no {name} in {type(owner).__name__}: did you mean '
                f"{_listed(get_close_matches(name, known) or known)}?"
            )
    if value is None:
        raise ValueError(
            f'AttributeRamp("{attribute}") drives a number, but {attribute} is None and so follows from other '
            "arguments: give it a value to start from, or leave this ramp out."
        )
    if not _is_number(value):
        raise ValueError(
            f'AttributeRamp("{attribute}") drives a number, but {attribute} is {shown(value)}: did you mean '
            f"{_listed(_numbers(owner))}?"
        )
    if is_read_only(owner, last):
        raise ValueError(
            f'AttributeRamp("{attribute}") drives a number, but {attribute} is a property of {type(owner).__name__} '
            "without a setter: add one, or drive what it is computed from."
        )


def _listed(names: list[str]) -> str:
    return " or ".join(sorted(names)) or "another module (this one has no numbers)"


def _public(owner: Any) -> dict[str, Any]:
    inside, lightnings = getattr(owner, "__dict__", {}), _names_in_every_module()
    if is_dataclass(owner):  # an attack's cached properties are beside its arguments
        inside = {field.name: getattr(owner, field.name) for field in fields(owner)}
    found = {**inside, **inside.get("_modules", {})}
    return {name: value for name, value in found.items() if not name.startswith("_") and name not in lightnings}


def _numbers(owner: Any) -> list[str]:
    return [name for name, value in _public(owner).items() if _is_number(value)]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@cache
def _names_in_every_module() -> frozenset[str]:
    """What every module has in its ``__dict__``, and what a message should not suggest for a misspelled attribute."""
    return frozenset(vars(LightningModule()))
