"""Robust accuracy against the strength of an attack: over eps, over the number of steps, or over restarts."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from torch import nn

from lit_robust import require
from lit_robust.analysis.output import draw_line, new_figure, wrapped
from lit_robust.analysis.start import begin, default_attack
from lit_robust.analysis.subjects import cells
from lit_robust.analysis.trained_threat import NORMS
from lit_robust.attacks import Attack
from lit_robust.data import ImageDataModule
from lit_robust.measures.accuracy import describe, eps_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Over = Literal["eps", "steps", "restarts"]

#: The default values: multiples of the attack's eps, and numbers of steps and of restarts. The grids of the DAT slides
#: (CVPRW 2020, arXiv:2002.04237) are not recoverable; these are ours.
GRIDS: dict[Over, tuple[float, ...]] = {
    "eps": (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 4),
    "steps": (1, 2, 5, 10, 20, 50, 100),
    "restarts": (1, 2, 5, 10, 20),
}

#: The label of the horizontal axis.
LABELS = {"eps": "eps, {norm} (pixels in [0, 1])", "steps": "number of steps", "restarts": "number of restarts"}


def sweep(
    checkpoints: list[str],
    data: ImageDataModule,
    attack: Attack | None = None,
    over: Over = "eps",
    values: list[float] | None = None,
    step: Literal["fixed", "scaled"] = "fixed",
    limit: int | None = None,
    device: str = "auto",
    out: Path = Path("analysis"),
    wandb_project: str | None = None,
    net: nn.Module | None = None,
) -> list[dict[str, Any]]:
    """Measure robust accuracy over the strength of an attack, and plot all nets together.

    The strength sweep of the DAT slides: eps at a fixed number and size of steps, or the steps at a fixed eps. All
    nets see the same images and random starts. Where steps x step_size is less than eps, the attack cannot cross the
    ball and its accuracy says little: such points are drawn hollow. At a large eps the accuracy of an honest net is 0.

    Args:
        checkpoints: .ckpt files, folders of runs, whose last checkpoint is taken, or files of weights; name=path names
            a net.
        data: Its test images are attacked.
        attack: One with the argument that is varied; by default PGD at the eps that all nets were trained with, else
            8/255, with 20 steps of eps/4.
        over: What is varied.
        values: Its values; by default 0 to 4 times the attack's eps, 1 to 100 steps, or 1 to 20 restarts.
        step: With over=eps, whether a step_size that the attack is given stays fixed, as in the slides, or is scaled
            with eps.
        limit: Use only the first ``limit`` test images; by default all.
        device: auto, cpu or cuda.
        out: The folder of sweep_<over>.csv and .png, and of the journal that lets a stopped sweep continue.
        wandb_project: The project of Weights & Biases to which table and picture are also logged.
        net: The net of files that do not name one of lit_robust.nets, such as a plain state_dict; on the command line
            its path, such as torchvision.models.resnet18.

    Returns:
        The rows of the table.

    Raises:
        ValueError: If an argument is out of range; besides what ``start.begin`` raises.
    """
    require.one_of("over", over, get_args(Over))
    require.one_of("step", step, ("fixed", "scaled"))
    check_values(over, values)
    study = begin(checkpoints, data, limit, device, out, net, wandb_project)
    attack = attack or default_attack(study.subjects, steps=20, fixed_step=True)
    variants = strengths(attack, over, values, scaled=step == "scaled")
    if len(variants) == 1:
        print(f"values={[*variants]} gives one point and no curve: give several.")
    rows = []
    for subject in study.subjects:
        for value, variant in variants.items():
            row = {"net": subject.name, over: value, **cells(study.survivors(subject, variant))}
            rows.append({**row, "crosses": crosses(variant), "attack": describe(variant)})
    study.write(f"sweep_{over}", rows, draw(rows, over, attack, about(attack, over, step == "scaled")), wandb_project)
    return rows


def strengths(attack: Any, over: Over, values: Sequence[float] | None, scaled: bool) -> dict[float, Attack]:
    """The variants of an attack, by the value that is varied.

    Raises:
        TypeError: If the attack has no such argument.
        ValueError: If there are no values, or one is out of range.
    """
    if not hasattr(attack, over):
        raise TypeError(f"over={over!r} needs an attack with {over}, such as PGD, not {type(attack).__name__}.")
    check_values(over, values)
    if over != "eps":
        chosen = GRIDS[over] if values is None else values
        return {value: replace(attack, **{over: int(value)}) for value in chosen}
    largest = 1.0 if getattr(attack, "norm", "linf") == "linf" else math.inf
    grid = [min(factor * attack.eps, largest) for factor in GRIDS[over]] if values is None else values
    variants = {}
    for value in dict.fromkeys(grid):
        require.number("values", value, most=largest, hint="pixels are in [0, 1]")
        own = getattr(attack, "step_size", None)  # a step that is not given follows eps
        step_size = {"step_size": own * value / attack.eps} if scaled and own is not None and attack.eps else {}
        variants[value] = replace(attack, eps=value, **step_size)
    return variants


def check_values(over: Over, values: Sequence[float] | None) -> None:
    """Refuse values that no attack can have.

    Raises:
        ValueError: If there are none, or one is no number, negative, or must be whole and is not.
    """
    if values is not None and not values:
        raise ValueError("values=[] must have at least one value: leave it out for the default ones.")
    for value in values or ():
        require.number("values", value, least=over == "restarts")
        if over != "eps" and value != int(value):
            raise ValueError(f"values={value} of {over} must be a whole number.")


def about(attack: Any, over: Over, scaled: bool) -> str:
    """Describe an attack without the varied argument, and say whether its step size is fixed or scaled."""
    follows = getattr(attack, "step_size", None) is None
    hidden: set[str] = {over}
    step = ""
    if hasattr(attack, "step_size") and over != "restarts":
        if follows or (over == "eps" and scaled):
            hidden.add("step_size")
            step = ", step size scaled with eps" if over == "eps" else ", step size 2.5 eps / steps"
        else:
            step = ", step size fixed"
    text = describe(attack)
    for name in hidden:
        text = re.sub(rf"(?<=[( ]){name}=[^,()]*(, )?", "", text)
    return text.replace(", )", ")") + step


def crosses(attack: Attack) -> bool:
    """Whether all steps together are as long as eps, so that every point of the ball can be reached from its centre."""
    eps, step_size, steps = (getattr(attack, name, None) for name in ("eps", "step_size", "steps"))
    return eps is None or step_size is None or steps is None or step_size * steps >= eps * (1 - 1e-6)


def mark_eps(axes: "Axes", attack: Any, values: Sequence[float]) -> None:
    """Mark the attack's own eps, of which the default values are multiples, if it lies among the values."""
    if min(values) <= attack.eps <= max(values):
        label = f"the attack's eps={eps_text(attack.eps)}"
        axes.axvline(attack.eps, color="gray", linestyle=":", linewidth=1, label=label)


def draw(rows: Sequence[Mapping[str, Any]], over: Over, attack: Attack, said: str) -> "Figure":
    """Plot a line with its 95 % interval for each net; attacks that cannot cross the ball are hollow."""
    figure, (axes,) = new_figure()
    for number, net in enumerate(dict.fromkeys(row["net"] for row in rows)):
        draw_line(axes, [row for row in rows if row["net"] == net], over, net, f"C{number % 10}")
    if not all(row["crosses"] for row in rows):
        axes.plot([], [], "o", color="gray", markerfacecolor="white", label="steps too short to cross the ball")
    if over == "steps" and min(row[over] for row in rows) > 0:
        axes.set_xscale("log")
        axes.set_xticks(sorted({row[over] for row in rows}), minor=False)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
    if over == "eps":
        mark_eps(axes, attack, [row[over] for row in rows])
    norm = NORMS.get(getattr(attack, "norm", "linf"), "")
    axes.set(xlabel=LABELS[over].format(norm=norm), ylabel="robust accuracy (%)", ylim=(-2, 102))
    axes.set_title(wrapped(f"{said}, {rows[0]['n']} test images, band: 95 % interval"), fontsize=8)
    axes.legend(fontsize=8)
    return figure
