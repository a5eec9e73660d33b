"""Robust accuracy: which images survive which attack, how many, and with what confidence interval."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, fields, is_dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lit_robust.attacks.base import Attack, NoGraphError
from lit_robust.batch import Batch
from lit_robust.guards import checked, own_random_state, smaller_batches
from lit_robust.measures.correct import is_correct
from lit_robust.measures.image_blocks import Blocks

#: The rows that every evaluation has besides the named attacks.
CLEAN, WORST = "clean", "worst"


def surviving(
    net: nn.Module,
    attacks: Mapping[str, Attack],
    batch: Batch,
    without_graph: Literal["refuse", "keep"] = "refuse",
    blocks: Blocks | None = None,
    attacked: nn.Module | None = None,
) -> dict[str, Tensor]:
    """Tell which samples are classified correctly without an attack, under each attack, and under all of them.

    The net is attacked in its current mode, which should be ``eval`` for an evaluation. All attacks see the same
    images. As in AutoAttack, an image that is wrong without an attack counts as broken by every attack.

    Args:
        net: Returns logits.
        attacks: Attacks by name.
        batch: Images and labels.
        without_graph: What to do where the net gives an attack no gradient: raise ``NoGraphError``, or keep the clean
            images, for a test that raises an alarm.
        blocks: Keeps the results of long attacks; None for nothing.
        attacked: What the attacks see instead of the net, such as its copy with folded BatchNorms; the net decides
            which of their images are classified correctly.

    Returns:
        ``(N,)`` bool for ``"clean"``, each attack's name and, where there are several attacks, ``"worst"``.
    """
    correct = {CLEAN: is_correct(net, batch.x, batch.y)}
    for name, attack in attacks.items():
        with own_random_state(batch.x.device), checked(), smaller_batches():
            torch.manual_seed(torch.initial_seed())  # makes an attack's draws independent of the other attacks
            try:
                if getattr(attack, "is_long", False):
                    correct[name] = correct[CLEAN] & (blocks or Blocks()).survivors(attack, net, batch, attacked)
                    continue
                x_adv = attack(attacked or net, batch.x, batch.y)
            except NoGraphError:
                if without_graph == "refuse":
                    raise
                x_adv = batch.x
        correct[name] = correct[CLEAN] & is_correct(net, x_adv, batch.y)
    if len(attacks) > 1:
        correct[WORST] = torch.stack(list(correct.values())).all(dim=0)
    return correct


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
    if not isinstance(value, float):
        return getattr(value, "__name__", None) or str(value)
    return eps_text(value)


def eps_text(value: float) -> str:
    """Write a distance between images as it was given, as grey levels such as ``8/255``, or with three digits."""
    if getattr(value, "written", None):
        return str(value)
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
