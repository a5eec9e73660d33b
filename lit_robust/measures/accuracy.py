"""Robust accuracy: which images survive which attack, how many, and with what confidence interval."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, fields, is_dataclass, replace
from typing import Any, Protocol

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics import Metric

from lit_robust.attacks.base import Attack, arguments_of, check_attack
from lit_robust.batch import Batch
from lit_robust.guards import checked, own_random_state, smaller_batches

#: The rows that every evaluation has besides the named attacks.
CLEAN, WORST = "clean", "worst"


def check_attacks(attacks: Mapping[str, Attack], test_attacks: Mapping[str, Attack]) -> None:
    """Refuse attacks that would not measure what their row says.

    Raises:
        TypeError: As ``check_attack``.
        ValueError: As ``check_attack``, or if two test attacks are equal.
    """
    for name, attack in {**attacks, **test_attacks}.items():
        check_attack(name, attack)
    tell_of_short_steps({**attacks, **test_attacks})
    check_different("test_attacks", test_attacks)


def check_different(argument: str, attacks: Mapping[str, Attack]) -> None:
    """Refuse one attack under two names, also where only one of them spells out its step size.

    Raises:
        ValueError: If two are the same.
    """
    earlier: dict[str, Any] = {}
    for name, attack in attacks.items():
        size: float | None = getattr(attack, "step_length", None)
        spelled_out: Any = attack if size is None else (type(attack), arguments_of(attack) | {"step_size": size})
        for other, its in earlier.items():
            if its == spelled_out:
                raise ValueError(f"{argument} {other} and {name} are the same attack: drop one, or change it.")
        earlier[name] = spelled_out


def tell_of_short_steps(attacks: Mapping[str, Any]) -> None:
    """Warn of attacks that ``short_steps`` finds; called where a Defense or a callback is given one.

    Args:
        attacks: Attacks by the name of the argument or row; other values are skipped.
    """
    for name, attack in attacks.items():
        if found := short_steps(name, attack):
            rank_zero_warn(found)


def short_steps(name: str, attack: Any) -> str | None:
    """A sentence if an attack's steps together are shorter than its bound, so that it searches a part of the ball."""
    eps, size, steps = (getattr(attack, argument, None) for argument in ("eps", "step_size", "steps"))
    if not (eps and size and steps and steps * size < eps * (1 - 1e-6)):  # 7 steps of eps/7 fall short by rounding
        return None
    usual = replace(attack, step_size=None).step_length
    return (
        f"step_size={size:.4g} of {name} is too short to cross the ball of eps={eps:.4g} in {steps} steps: leave "
        f"step_size out (it is then {usual:.4g}), or take more steps."
    )


class Ramp(Protocol):
    """What a callback has that sets an attribute of the module to other values, as ``AttributeRamp`` does."""

    #: The attribute's path, such as ``attack.eps``.
    attribute: str


def tell_of_idle_attack(trainer: Any, name: str, attack: Any) -> None:
    """Warn of an attack without a radius or without a step, unless a callback ramps it.

    Args:
        trainer: Its callbacks are searched for a ramp, such as ``AttributeRamp("attack.eps", ...)``.
        name: The argument that holds the attack, ``attack`` or ``val_attack``.
        attack: The attack.
    """
    ramped = {getattr(callback, "attribute", None) for callback in trainer.callbacks}
    does = {"eps": "changes no image", "steps": "takes no step from where it starts"}
    for argument, nothing in does.items():
        if getattr(attack, argument, None) == 0 and f"{name}.{argument}" not in ramped:
            natural = ", or train Natural" if name == "attack" else ""
            rank_zero_warn(f"{argument}=0 of {name} {nothing}: set another {argument}{natural}.")


def check_names(argument: str, attacks: Any) -> None:
    """Refuse attacks that are not given by names of their own.

    Raises:
        TypeError: If they are given otherwise.
        ValueError: If one has the name of a row that every table has.
    """
    if not isinstance(attacks, Mapping):
        raise TypeError(f'{argument} is a {type(attacks).__name__}: give attacks by name, {{"pgd20": PGD(steps=20)}}.')
    for name in attacks:
        if name in (CLEAN, WORST):
            raise ValueError(f'{argument} names an attack "{name}", as a row of every table is called: rename it.')


def surviving(net: nn.Module, attacks: Mapping[str, Attack], batch: Batch) -> dict[str, Tensor]:
    """Tell which samples are classified correctly without an attack, under each attack, and under all of them.

    The net is attacked in its current mode, which should be ``eval`` for an evaluation. All attacks see the same
    images. As in AutoAttack, an image that is wrong without an attack counts as broken by every attack.

    Returns:
        ``(N,)`` bool for ``"clean"``, each attack's name and, where there are several attacks, ``"worst"``.
    """
    correct = {CLEAN: is_correct(net, batch.x, batch.y)}
    for name, attack in attacks.items():
        with own_random_state(batch.x.device), checked(), smaller_batches():
            torch.manual_seed(torch.initial_seed())  # makes an attack's draws independent of the other attacks
            x_adv = attack(net, batch.x, batch.y)
        correct[name] = correct[CLEAN] & is_correct(net, x_adv, batch.y)
    if len(attacks) > 1:
        correct[WORST] = torch.stack(list(correct.values())).all(dim=0)
    return correct


@torch.no_grad()
def is_correct(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Tell which images are classified correctly, ``(N,)`` bool."""
    logits: Tensor = net(x)
    return (logits.argmax(dim=1) == y) & logits.isfinite().all(dim=1)  # NaN is wrong, not class 0


@dataclass(frozen=True)
class Accuracy:
    """An accuracy over ``n`` images."""

    value: float
    n: int

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson score interval of an accuracy over ``n`` images."""
        return wilson(self.value, self.n)


def wilson(value: float, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share over ``n`` images."""
    z = 1.959964
    centre = (value + z * z / (2 * n)) / (1 + z * z / n)
    spread = z * math.sqrt(value * (1 - value) / n + (z / (2 * n)) ** 2) / (1 + z * z / n)
    # In exact arithmetic the value is always inside; at 0 and 1, rounding may put it outside.
    return min(max(0.0, centre - spread), value), max(min(1.0, centre + spread), value)


class Survivors(Metric):
    """Counts survivors by name, over batches and ranks; samples of weight 0 are left out.

    Args:
        names: What is counted: ``clean``, the attacks, ``worst``.
    """

    full_state_update = False
    correct: Tensor
    total: Tensor

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self.names = list(names)
        self.add_state("correct", torch.zeros(len(self.names), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, correct: Mapping[str, Tensor], weight: Tensor) -> None:
        """Add a batch: ``(N,)`` bool by name, and the samples' weights ``(N,)``."""
        exists = weight > 0
        self.correct += (torch.stack([correct[name] for name in self.names]) & exists).sum(dim=1)
        self.total += exists.sum()

    def compute(self) -> tuple[Tensor, Tensor]:
        """The number of survivors, ``(K,)`` in the order of the names, and of samples, over all ranks."""
        return self.correct, self.total

    def accuracies(self) -> dict[str, Accuracy]:
        """Accuracies by name; empty if there were no images."""
        if not self.update_called:
            return {}
        correct, total = self.compute()
        n = int(total)
        counts = correct.reshape(-1).tolist()  # torchmetrics drops the dimension of a single number
        return {name: Accuracy(count / n, n) for name, count in zip(self.names, counts, strict=True)} if n else {}


def rows_of(attacks: Mapping[str, Attack]) -> list[str]:
    """The names that ``surviving`` reports for these attacks."""
    return [CLEAN, *attacks, *([WORST] if len(attacks) > 1 else [])]


def describe(attack: Attack) -> str:
    """Write an attack as ``PGD(eps=8/255, step_size=2/255, steps=10)``: these three, and what is not a default.

    A step size that was not given is the one in use.
    """
    arguments: tuple[Field[Any], ...] = fields(attack) if is_dataclass(attack) else ()
    values = [(argument, getattr(attack, argument.name)) for argument in arguments]
    used = {"step_size": getattr(attack, "step_length", None)}
    values = [(one, used.get(one.name) if value is None else value) for one, value in values]
    shown = [
        f"{argument.name}={_text(value)}"
        for argument, value in values
        if value != argument.default or (argument.name in ("eps", "step_size", "steps") and value is not None)
    ]
    return f"{type(attack).__name__}({', '.join(shown)})"


def _text(value: Any) -> str:
    if isinstance(value, Attack):
        return describe(value)
    if not isinstance(value, float) or getattr(value, "written", None):
        return getattr(value, "__name__", None) or str(value)
    levels = round(value * 255)
    if float(f"{value:.3g}") != value and levels / 255 == value:
        return f"{levels}/255"
    return f"{value:.3g}"


def legend(attacks: Mapping[str, Attack]) -> str:
    """Describe each row's attack, one per line, for the terminal."""
    return "\n".join(f"{name} is {describe(attack)}" for name, attack in attacks.items())


def table(columns: Mapping[str, Mapping[str, Accuracy]]) -> str:
    """Format accuracies for a terminal: a row per attack, a column per checkpoint, each with its 95 % interval."""
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    head = ["accuracy in %", *columns, "n"]
    body = []
    for name in names:
        found = [column.get(name) for column in columns.values()]
        cells = [_cell(accuracy) for accuracy in found]
        body.append([name, *cells, ", ".join(sorted({str(a.n) for a in found if a}, key=int))])
    widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *body]]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def _cell(accuracy: Accuracy | None) -> str:
    if accuracy is None:
        return "-"
    low, high = (100 * bound for bound in accuracy.interval)
    return f"{100 * accuracy.value:5.1f}  [{low:4.1f}, {high:5.1f}]"
