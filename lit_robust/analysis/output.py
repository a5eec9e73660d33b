"""The results of an analysis: a CSV file, a picture, and both in Weights & Biases if that is asked for."""

import csv
import os
import textwrap
from collections.abc import Mapping, Sequence
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_robust.whole_files import csv_cell, write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]


def check_packages(wandb_project: str | None) -> None:
    """Fail before hours of measuring if pictures cannot be drawn, or not be logged where that is asked for.

    Raises:
        ImportError: If matplotlib or wandb is missing.
    """
    try:
        import matplotlib  # noqa: F401  # only tests that it is installed
    except ImportError as error:
        raise ImportError('Pictures need matplotlib: pip install "lit-robust[plot]".') from error
    if wandb_project is None:
        return
    try:
        from wandb import init  # noqa: F401  # without the package, a folder wandb/ would import
    except ImportError as error:
        raise ImportError(
            f"wandb_project={wandb_project} needs wandb: pip install wandb, or leave wandb_project out."
        ) from error


def check_folder(out: str | Path) -> None:
    """Fail before hours of measuring if their results cannot be written.

    Raises:
        ValueError: If it is no folder, or one that cannot be written.
    """
    folder = Path(out).absolute()
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not there.is_dir():
        raise ValueError(f"out={out} must be a folder, and {there} is none: give another --out.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"out={out} must be a folder that can be written, unlike {there}: give another --out.")
    if (folder / "journal.jsonl").is_dir():
        raise ValueError(f"out={out} must hold no folder journal.jsonl: remove it, or give another --out.")


def new_figure(
    width: float = 6.4, height: float = 4.0, columns: int = 1, rows: int = 1
) -> tuple["Figure", list["Axes"]]:
    """A figure and its axes, row by row; matplotlib's object API opens no window."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(alpha=0.25)
    return figure, list(axes)


def whole_epochs(axes: "Axes") -> None:
    """Let an axis of epochs have no ticks between them."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def draw_line(axes: "Axes", rows: Sequence[Row], over: str, name: str, colour: str) -> None:
    """Draw accuracies with their 95 % interval; where a row's ``crosses`` is false, the point is hollow."""
    x = [row[over] for row in rows]
    value, low, high = ([100 * row[column] for row in rows] for column in ("accuracy", "low", "high"))
    axes.plot(x, value, color=colour, linewidth=1.5)
    axes.fill_between(x, low, high, alpha=0.15, color=colour, linewidth=0)
    faces = [colour if row.get("crosses", True) else "white" for row in rows]
    axes.scatter(x, value, s=24, c=faces, edgecolors=colour, zorder=3)
    axes.plot([], [], "o-", color=colour, label=plain_text(name))


def wrapped(text: str, width: int = 85) -> str:
    """A title on as many lines as it needs; matplotlib cuts a line that is wider than the picture."""
    return "\n".join(line for part in text.split("\n") for line in textwrap.wrap(part, width))


def plain_text(text: str) -> str:
    """A name as matplotlib shows it literally: a dollar sign would begin a formula, and an underscore hides a label."""
    return f"\N{ZERO WIDTH SPACE}{text}".replace("$", r"\$") if text.startswith("_") else text.replace("$", r"\$")


def write(
    out: Path,
    stem: str,
    rows: Sequence[Row],
    figure: "Figure",
    wandb_project: str | None = None,
    others: Mapping[str, "Figure"] | None = None,
) -> None:
    """Write ``stem.csv`` and ``stem.png``, whole or not at all, and say where they are.

    Args:
        out: The folder.
        stem: The files' name.
        rows: Their first one names the columns.
        figure: The picture.
        wandb_project: The project of Weights & Biases that gets all of it, in one run.
        others: More pictures by the name of their file.

    Raises:
        OSError: If the folder cannot be written.
    """
    text = StringIO(newline="")
    table = csv.writer(text)
    table.writerows([[*rows[0]], *([csv_cell(value) for value in row.values()] for row in rows)])
    write_whole(out / f"{stem}.csv", text.getvalue().encode())
    print(out / f"{stem}.csv")
    pictures = {stem: figure, **(others or {})}
    for name, picture in pictures.items():
        write_whole(out / f"{name}.png", png(picture))
        print(out / f"{name}.png")
    if wandb_project is not None:
        import wandb

        logged: dict[str, Any] = {f"{name}/picture": wandb.Image(str(out / f"{name}.png")) for name in pictures}
        columns: list[str | int] = [*rows[0]]
        logged[f"{stem}/table"] = wandb.Table(columns=columns, data=[[*row.values()] for row in rows])
        with wandb.init(project=wandb_project, job_type=stem) as run:
            run.log(logged)


def png(figure: "Figure") -> bytes:
    """A picture as the content of a PNG file."""
    picture = BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()
