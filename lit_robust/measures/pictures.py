"""Pictures of adversarial images. matplotlib is optional, so it is imported only when a picture is drawn."""

import textwrap
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: The factor by which the NuAT slides (NeurIPS 2021) magnify perturbations of colour images.
COLOUR_MAGNIFICATION = 50.0

# Lengths in the picture, in inches.
CELL, GAP, CAPTION, LABEL, LINE, HEADS = 1.4, 0.1, 0.26, 1.2, 0.17, 0.55


class Examples(NamedTuple):
    """Images before and after an attack, with the net's probabilities for both, on the CPU.

    Shape:
        clean, adversarial: ``(N, C, H, W)`` in [0, 1];  labels: ``(N,)``;
        clean_probabilities, adversarial_probabilities: ``(N, num_classes)``.
    """

    clean: Tensor
    adversarial: Tensor
    labels: Tensor
    clean_probabilities: Tensor
    adversarial_probabilities: Tensor


def draw(
    examples: Examples,
    headline: str,
    magnification: float | None = None,
    class_names: Sequence[str] | None = None,
    target: int | None = None,
) -> "Figure":
    """Draw examples, one per row, under a headline.

    Raises:
        ValueError: If the images are neither grey nor in colour.
    """
    # matplotlib's object API opens no window, and leaves the state of the user's own plots alone.
    from matplotlib.figure import Figure

    n, channels, rows_of_pixels, columns_of_pixels = examples.clean.shape
    if channels not in (1, 3):
        raise ValueError(f"only grey and colour images can be drawn, and these have {channels} channels.")
    delta = examples.adversarial - examples.clean
    if magnification is None:
        largest = float(delta.abs().max())
        magnification = COLOUR_MAGNIFICATION if channels == 3 else 0.5 / largest if largest else 1.0
    lines = textwrap.wrap(headline, width=66)
    top = GAP + LINE * len(lines) + HEADS
    high = CELL * min(1.0, rows_of_pixels / columns_of_pixels)
    width, height = LABEL + 3 * (CELL + GAP), top + n * (high + CAPTION)
    columns = [LABEL + column * (CELL + GAP) for column in range(3)]

    # One pair of axes whose unit is the inch: a grid of 3 n of them takes five times as long to lay out.
    figure = Figure(figsize=(width, height), dpi=150)
    axes = figure.add_axes((0, 0, 1, 1))
    text = partial(axes.text, parse_math=False)  # names of classes may contain dollar signs
    text(GAP, GAP, "\n".join(lines), va="top", size=9, weight="bold")
    summary = _summary(examples, class_names, target)
    text(GAP, top - HEADS + 0.05, summary, va="top", size=8, color="dimgray")
    text(LABEL - GAP, top - 0.06, "class", ha="right", size=9, color="dimgray")
    heads = ("clean", f"perturbation x {magnification:.3g}", "adversarial")
    for left, head in zip(columns, heads, strict=True):
        text(left + CELL / 2, top - 0.06, head, ha="center", size=9, color="dimgray")
    for row, label in enumerate(examples.labels.tolist()):
        upper = top + row * (high + CAPTION)
        text(LABEL - GAP, upper + high / 2, _name(label, class_names), ha="right", va="center", size=8.5)
        _show(axes, examples.clean[row], columns[0], upper)
        _show(axes, 0.5 + magnification * delta[row], columns[1], upper)
        _show(axes, examples.adversarial[row], columns[2], upper)
        for left, opinion in (
            (columns[0], examples.clean_probabilities[row]),
            (columns[2], examples.adversarial_probabilities[row]),
        ):
            predicted = int(opinion.argmax())
            style: dict[str, Any] = {"color": "black"} if predicted == label else {"color": "crimson", "weight": "bold"}
            caption = f"{_name(predicted, class_names)}  {float(opinion[predicted]):.0%}"
            text(left + CELL / 2, upper + high + 0.04, caption, ha="center", va="top", size=8, **style)
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    return figure


def _show(axes: "Axes", image: Tensor, left: float, upper: float) -> None:
    """Fit a ``(C, H, W)`` image into a column, in its own proportions and with a thin frame."""
    from matplotlib.patches import Rectangle

    _, height, width = image.shape
    wide, high = CELL * width / max(height, width), CELL * height / max(height, width)
    left += (CELL - wide) / 2
    axes.imshow(
        image.float().clamp(0, 1).permute(1, 2, 0).numpy(),
        extent=(left, left + wide, upper + high, upper),
        aspect="auto",
        cmap="gray",
        vmin=0,
        vmax=1,
        interpolation="antialiased",  # sharp when enlarged, smooth when reduced
    )
    axes.add_patch(Rectangle((left, upper), wide, high, fill=False, edgecolor="silver", linewidth=0.5))


def _summary(examples: Examples, class_names: Sequence[str] | None, target: int | None) -> str:
    clean, adversarial = (
        int((probabilities.argmax(dim=1) == examples.labels).sum())
        for probabilities in (examples.clean_probabilities, examples.adversarial_probabilities)
    )
    n = len(examples.labels)
    aim = "" if target is None else f"; target: {_name(target, class_names)}"
    return f"correct: {clean} of {n} clean, {adversarial} of {n} adversarial{aim}"


def _name(label: int, class_names: Sequence[str] | None) -> str:
    if class_names is None or not 0 <= label < len(class_names):
        return str(label)
    text = str(class_names[label]).replace("_", " ")
    return text if len(text) <= 16 else f"{text[:15]}…"
