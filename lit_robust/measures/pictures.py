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

#: A text and its style.
Caption = tuple[str, dict[str, Any]]
BLACK: dict[str, Any] = {"color": "black"}
RED: dict[str, Any] = {"color": "crimson", "weight": "bold"}


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


class Column(NamedTuple):
    """A column of images ``(N, C, H, W)`` on the CPU, its head, and the images' captions, each with its style."""

    head: str
    images: Tensor
    captions: Sequence[Caption] | None


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
    channels = examples.clean.shape[1]
    check_drawable(channels)
    delta = examples.adversarial - examples.clean
    if magnification is None:
        largest = float(delta.abs().max())
        magnification = COLOUR_MAGNIFICATION if channels == 3 else 0.5 / largest if largest else 1.0

    def opinions(probabilities: Tensor) -> list[Caption]:
        captions = []
        for label, opinion in zip(examples.labels.tolist(), probabilities, strict=True):
            predicted = int(opinion.argmax())
            caption = f"{class_name(predicted, class_names)}  {float(opinion[predicted]):.0%}"
            captions.append((caption, BLACK if predicted == label else RED))
        return captions

    columns = [
        Column("clean", examples.clean, opinions(examples.clean_probabilities)),
        Column(f"perturbation x {magnification:.3g}", 0.5 + magnification * delta, None),
        Column("adversarial", examples.adversarial, opinions(examples.adversarial_probabilities)),
    ]
    names = [class_name(label, class_names) for label in examples.labels.tolist()]
    return grid(headline, _summary(examples, class_names, target), "class", names, columns)


def check_drawable(channels: int) -> None:
    """Refuse images that are neither grey nor in colour.

    Raises:
        ValueError: If they have another number of channels.
    """
    if channels not in (1, 3):
        raise ValueError(f"only grey and colour images can be drawn, and these have {channels} channels.")


def grid(headline: str, summary: str, side: str, names: Sequence[str], columns: Sequence[Column]) -> "Figure":
    """Draw columns of images with captions below each.

    Args:
        headline: The first line, which may be broken into several.
        summary: The line below it.
        side: The head of the names.
        names: What stands before each row.
        columns: The columns.

    Raises:
        ValueError: If the images are neither grey nor in colour.
    """
    # matplotlib's object API opens no window, and leaves the state of the user's own plots alone.
    from matplotlib.figure import Figure

    n, channels, rows_of_pixels, columns_of_pixels = columns[0].images.shape
    check_drawable(channels)
    width = LABEL + max(len(columns), 3) * (CELL + GAP)
    lines = textwrap.wrap(headline, width=round(66 * width / (LABEL + 3 * (CELL + GAP))))
    top = GAP + LINE * len(lines) + HEADS
    high = CELL * min(1.0, rows_of_pixels / columns_of_pixels)
    height = top + n * (high + CAPTION)

    # One pair of axes whose unit is the inch: a grid of 3 n of them takes five times as long to lay out.
    figure = Figure(figsize=(width, height), dpi=150)
    axes = figure.add_axes((0, 0, 1, 1))
    text = partial(axes.text, parse_math=False)  # names of classes may contain dollar signs
    text(GAP, GAP, "\n".join(lines), va="top", size=9, weight="bold")
    text(GAP, top - HEADS + 0.05, summary, va="top", size=8, color="dimgray")
    text(LABEL - GAP, top - 0.06, side, ha="right", size=9, color="dimgray")
    lefts = [LABEL + place * (CELL + GAP) for place in range(len(columns))]
    for left, column in zip(lefts, columns, strict=True):
        text(left + CELL / 2, top - 0.06, _short(column.head, 22), ha="center", size=9, color="dimgray")
    for row, name in enumerate(names):
        upper = top + row * (high + CAPTION)
        text(LABEL - GAP, upper + high / 2, name, ha="right", va="center", size=8.5)
        for left, column in zip(lefts, columns, strict=True):
            _show(axes, column.images[row], left, upper)
            if column.captions is not None:
                caption, style = column.captions[row]
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
    aim = "" if target is None else f"; target: {class_name(target, class_names)}"
    return f"correct: {clean} of {n} clean, {adversarial} of {n} adversarial{aim}"


def class_name(label: int, class_names: Sequence[str] | None) -> str:
    """A class's name as pictures show it: on one line of at most 16 characters."""
    if class_names is None or not 0 <= label < len(class_names):
        return str(label)
    return _short(" ".join(str(class_names[label]).replace("_", " ").split()), 16)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
