"""How flat is the adversarial loss around a trained net, in its weights and in its images?"""

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from lit_robust import losses, require
from lit_robust.analysis.eigenvalue import sharpness
from lit_robust.analysis.output import new_figure, plain_text, wrapped
from lit_robust.analysis.start import begin, default_attack
from lit_robust.analysis.subjects import Images, adversarial_images
from lit_robust.attacks import Attack
from lit_robust.attacks.base import EPS, input_gradient
from lit_robust.data import ImageDataModule
from lit_robust.measures.accuracy import describe
from lit_robust.seeds import derive_seed, run_seed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Space = Literal["weights", "input"]
Craft = Literal["everywhere", "centre"]
#: ``(a, all b) -> losses`` of a row of the plane.
RowOfPlane = Callable[[float, Sequence[float]], list[float]]

CRAFTED = {"everywhere": "anew at each point", "centre": "once, for the net at the cross"}
#: How many images the surface needs to be smooth (ours).
SMOOTH = 200
#: The smallest loss that is drawn, as a share of the largest one.
FLOOR = 1e-4


def surface(
    checkpoints: list[str],
    data: ImageDataModule,
    attack: Attack | None = None,
    space: Space = "weights",
    craft: Craft = "everywhere",
    points: int = 15,
    radius: float | None = None,
    eigenvalue: bool = True,
    limit: int = SMOOTH,
    device: str = "auto",
    out: Path = Path("analysis"),
    wandb_project: str | None = None,
    net: nn.Module | None = None,
) -> list[dict[str, Any]]:
    """Plot the loss over a plane through a trained net's weights, or through its test images.

    In the space of weights the plane is spanned by two random directions that are normalised filter by filter (Li et
    al., NeurIPS 2018, arXiv:1712.09913; biases and BatchNorm stay), and the loss is adversarial. In the space of images
    it is spanned by the sign of the gradient and by random signs, and the loss is that of the shifted images. All nets
    have the same images, directions by the same seed, and one logarithmic colour scale, which shows the shapes of small
    and large losses; BatchNorm is in eval mode. The SAT slides show such surfaces without saying how they were made:
    the method is ours.

    Args:
        checkpoints: .ckpt files, folders of runs, whose last checkpoint is taken, or files of weights; name=path names
            a net.
        data: Its test images are attacked.
        attack: By default PGD at the eps that all nets were trained with, else 8/255, with 10 steps of eps/4; its eps
            is also the unit of the input space.
        space: What is varied.
        craft: With space=weights, whether adversarial images are crafted at each point or once at the centre.
        points: The number of points along each direction.
        radius: Half of the plane's side: in units of the weights' own norm (0.5 by default), or of eps (2 by default).
        eigenvalue: Whether to compute the largest eigenvalue of the adversarial loss's Hessian in the weights, too, by
            power iteration to 1 % or at most 50 iterations.
        limit: Use only the first ``limit`` test images; below 200 the picture is rough, and a line says so.
        device: auto, cpu or cuda.
        out: The folder of surface_<space>.csv and .png, and of the journal that lets a stopped run continue.
        wandb_project: The project of Weights & Biases to which table and picture are also logged.
        net: The net of files that do not name one of lit_robust.nets, such as a plain state_dict; on the command line
            its path, such as torchvision.models.resnet18.

    Returns:
        The rows of the table: a net, a point (a, b) and the mean loss there.

    Raises:
        ValueError: If an argument is out of range; besides what ``start.begin`` raises.
    """
    require.flags(eigenvalue=eigenvalue)
    require.one_of("space", space, get_args(Space))
    require.one_of("craft", craft, get_args(Craft))
    require.integer("points", points, least=2)
    radius = require.number("radius", radius if radius is not None else {"weights": 0.5, "input": 2.0}[space], above=0)
    study = begin(checkpoints, data, limit, device, out, net, wandb_project)
    attack = attack or default_attack(study.subjects, steps=10)
    if study.images.n < SMOOTH:
        n = study.images.n
        print(f"surface uses {n} test images and may be rough: give limit={SMOOTH} or more, and data that has as many.")
    steps = [radius * (2 * k / (points - 1) - 1) for k in range(points)]  # 0 is one of an odd number
    rows = []
    for subject in study.subjects:
        plane = (_weights if space == "weights" else _input)(subject.net, attack, study.images, craft)
        key = (space, craft, str(steps))
        values = [study.measured("surface", subject, attack, partial(plane, a, steps), *key, str(a)) for a in steps]
        top: dict[str, Any] = {}
        if eigenvalue:
            curvature = partial(sharpness, subject.net, attack, study.images)
            found, settled = study.measured("eigenvalue", subject, attack, curvature)
            top = {"top eigenvalue": found, "settled": settled}
        for a, line in zip(steps, values, strict=True):
            rows += [{"net": subject.name, "a": a, "b": b, "loss": v, **top} for b, v in zip(steps, line, strict=True)]
    about = {
        "weights": f"Loss of images of {describe(attack)}, crafted {CRAFTED[craft]}",
        "input": f"Loss of images moved along two directions, no attack; unit eps={unit_of(attack):.3g}",
    }[space]
    under = f"; eigenvalue under {describe(attack)}" if eigenvalue and space == "input" else ""
    figure = draw(rows, space, f"{about}{under}; {study.images.n} test images")
    study.write(f"surface_{space}", rows, figure, wandb_project)
    return rows


def filter_normalised(parameter: Tensor, generator: torch.Generator) -> Tensor:
    """A random direction with the norm of each filter of a weight; 0 for biases and BatchNorm."""
    if parameter.ndim < 2:
        return torch.zeros_like(parameter)
    drawn = torch.randn(parameter.shape, generator=generator).to(parameter)
    along = tuple(range(1, parameter.ndim))
    length = drawn.square().sum(dim=along, keepdim=True).sqrt()
    return drawn * parameter.square().sum(dim=along, keepdim=True).sqrt() / length


def unit_of(attack: Attack) -> float:
    """The unit of the input space: the attack's eps, or 8/255 if it has none."""
    return float(getattr(attack, "eps", EPS))


def _weights(net: nn.Module, attack: Attack, images: Images, craft: Craft) -> RowOfPlane:
    """The losses of a row of the plane in the space of weights."""
    generator = torch.Generator().manual_seed(derive_seed(run_seed(), "surface"))
    moved, centre = deepcopy(net), dict(net.named_parameters())
    first, second = ({name: filter_normalised(p, generator) for name, p in centre.items()} for _ in range(2))
    at_centre: list[Tensor] = []

    @torch.no_grad()
    def row(a: float, steps: Sequence[float]) -> list[float]:
        values = []
        if craft == "centre" and not at_centre:
            at_centre.extend(adversarial_images(net, attack, images))
        for b in steps:
            for name, parameter in moved.named_parameters():
                parameter.copy_(centre[name] + a * first[name] + b * second[name])
            values.append(_loss(moved, at_centre or adversarial_images(moved, attack, images), images))
        return values

    return row


def _input(net: nn.Module, attack: Attack, images: Images, craft: Craft) -> RowOfPlane:
    """The losses of a row of the plane in the space of images."""
    eps = unit_of(attack)
    generator = torch.Generator().manual_seed(derive_seed(run_seed(), "surface"))
    first, second = [], []
    for batch in images.batches:
        x = batch.x.clone().requires_grad_()
        first.append(eps * input_gradient(losses.ce(net(x), batch.y), x).sign())
        second.append(eps * torch.randn(x.shape, generator=generator).sign().to(x))
    shifted = partial(zip, images.batches, first, second, strict=True)

    @torch.no_grad()
    def row(a: float, steps: Sequence[float]) -> list[float]:
        return [_loss(net, [i.x + a * u + b * v for i, u, v in shifted()], images) for b in steps]

    return row


def _loss(net: nn.Module, points: Sequence[Tensor], images: Images) -> float:
    found = [losses.ce(net(x), batch.y).sum() for x, batch in zip(points, images.batches, strict=True)]
    return float(torch.stack(found).sum()) / images.n


def draw(rows: Sequence[Mapping[str, Any]], space: Space, about: str) -> "Figure":
    """Draw the surfaces three to a line, in one logarithmic colour scale, with contours; the net itself is the cross.

    Losses below ``FLOOR`` times the largest are drawn in the lowest colour.
    """
    from matplotlib.colors import LogNorm

    nets = list(dict.fromkeys(row["net"] for row in rows))
    columns, lines = min(len(nets), 3), math.ceil(len(nets) / 3)
    figure, axes = new_figure(1.2 + 3.0 * columns, 0.4 + 3.3 * lines, columns=columns, rows=lines)
    largest = max((row["loss"] for row in rows if math.isfinite(row["loss"])), default=0.0) or 1.0
    smallest = min(row["loss"] for row in rows)
    floor = max(smallest, FLOOR * largest) if smallest < largest else FLOOR * largest  # also if a loss is NaN
    levels = [floor * (largest / floor) ** (k / 12) for k in range(1, 12)]
    for place in axes[len(nets) :]:
        place.remove()
    for place, net in zip(axes, nets, strict=False):
        mine = [row for row in rows if row["net"] == net]
        a, b = sorted({row["a"] for row in mine}), sorted({row["b"] for row in mine})
        loss = {(row["a"], row["b"]): row["loss"] for row in mine}
        values = [[max(loss[one, other], floor) for one in a] for other in b]
        shown = place.pcolormesh(a, b, values, norm=LogNorm(floor, largest), cmap="viridis", shading="gouraud")
        place.contour(a, b, values, levels=levels, colors="white", linewidths=0.5)
        place.plot(0, 0, "+", color="crimson", markersize=10)
        top = mine[0].get("top eigenvalue")
        settled = "" if mine[0].get("settled", True) else " (not settled)"
        place.set_title(
            plain_text(net) + (f"\ntop eigenvalue {top:.3g}{settled}" if top is not None else ""), fontsize=9
        )
        place.grid(visible=False)
        place.tick_params(labelsize=7)
        weights = space == "weights"
        place.set_xlabel("filter-normalised direction 1" if weights else "sign of the gradient (eps)", fontsize=8)
        place.set_ylabel("filter-normalised direction 2" if weights else "random signs (eps)", fontsize=8)
    colours = figure.colorbar(shown, ax=axes[: len(nets)], extend="min" if floor > smallest else "neither")
    colours.set_label(f"{'adversarial ' * (space == 'weights')}cross-entropy, logarithmic")
    figure.suptitle(wrapped(about, 40 * columns + 10), fontsize=8)
    return figure
