"""The pictures of ``compare``: robust accuracies, and robust accuracy against the cost of the training."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lit_robust.analysis.output import new_figure, plain_text, wrapped
from lit_robust.analysis.tables import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]

#: Where a name may stand beside its point: shift in points and alignment, the best place first.
PLACES = (
    (7, 5, "left", "bottom"),
    (7, -5, "left", "top"),
    (-7, 5, "right", "bottom"),
    (-7, -5, "right", "top"),
    (0, 16, "center", "bottom"),
    (0, -16, "center", "top"),
)


def draw(rows: Sequence[Row], attack: str, about: str) -> "Figure":
    """Draw each method's robust accuracy: the interval over images as a bar, the seeds' range as a thick line."""
    figure, (axes,) = new_figure(height=1.2 + 0.45 * len(rows))
    for place, row in enumerate(rows):
        value, low, high = (100 * row[key] for key in (attack, f"{attack} low", f"{attack} high"))
        least, most = (100 * row[key] for key in (f"{attack} min", f"{attack} max"))
        colour = f"C{place % 10}"
        axes.errorbar(value, place, xerr=[[value - low], [high - value]], fmt="o", capsize=3, color=colour)
        axes.plot([least, most], [place, place], linewidth=4, alpha=0.4, color=colour)
    names = [f"{row['method']} ({row['seeds']} seed{'s' * (row['seeds'] > 1)})" for row in rows]
    axes.set_yticks(range(len(rows)), [plain_text(name) for name in names], fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set(xlabel=f"accuracy under {attack} (%)")
    axes.set_title(wrapped(f"{about}\nbars: 95 % interval over images; thick: range over seeds"), fontsize=8)
    return figure


def draw_costs(rows: Sequence[Row], attack: str, about: str, unit: str) -> "Figure":
    """Draw each method's robust accuracy against its cost, as the NuAT slides (NeurIPS 2021) end on.

    Args:
        rows: Of the table; those without a cost are left out.
        attack: The attack on the vertical axis.
        about: The title.
        unit: The column on the horizontal axis, ``seconds``, ``cpu seconds`` or ``passes``.
    """
    known = [row for row in rows if row[unit]]
    factor, label, number = 1.0, "passes of the training (forwards plus backwards, in images)", count
    if unit != "passes":
        longest = max(row[unit] for row in known)
        factor, name = next(((f, n) for f, n in ((3600.0, "h"), (60.0, "min")) if longest >= 2 * f), (1.0, "s"))
        clock = "CPU time of the training, all threads" if unit == "cpu seconds" else "wall-clock time of the training"
        label, number = f"{clock}, without validation ({name})", "{:g}".format
    figure, (axes,) = new_figure(height=4.4)
    points = []
    for place, row in enumerate(known):
        x, least, most = (row[f"{unit}{which}"] / factor for which in ("", " min", " max"))
        y, low, high = (100 * row[f"{attack}{which}"] for which in ("", " low", " high"))
        bars: dict[str, Any] = {"xerr": [[x - least], [most - x]], "yerr": [[y - low], [high - y]]}
        colour = f"C{place % 10}"
        axes.errorbar(x, y, **bars, fmt="o", capsize=3, linewidth=1, color=colour)
        axes.plot([x, x], [100 * row[f"{attack} min"], 100 * row[f"{attack} max"]], linewidth=4, alpha=0.4, c=colour)
        points.append((x, y, plain_text(row["method"]), colour))
    axes.set_xscale("log")
    axes.margins(x=0.25, y=0.1)
    axes.set(xlabel=label, ylabel=f"accuracy under {attack} (%)")
    axes.set_title(
        wrapped(f"{about}\nbars: 95 % interval over images, range of cost; thick: range over seeds"), fontsize=8
    )
    _ticks(axes, number)
    _label(figure, axes, points)
    return figure


def _ticks(axes: "Axes", number: Callable[[float], str]) -> None:
    """Label at least four values of a logarithmic axis, because two would not tell what lies between them."""
    from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator

    low, high = axes.get_xlim()
    if high < 2 * low:
        low, high = low / 1.4, high * 1.4
        axes.set_xlim(low, high)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    for multiples in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        values = [digit * 10.0**decade for decade in decades for digit in multiples]
        ticks = [value for value in values if low <= value <= high]
        if len(ticks) >= 4:
            break
    else:
        ticks = [value for value in MaxNLocator(5).tick_values(low, high) if low <= value <= high]
    ticks = ticks[:: -(-len(ticks) // 8)]
    axes.set_xticks(ticks, [number(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())


def _label(figure: "Figure", axes: "Axes", points: Sequence[tuple[float, float, str, str]]) -> None:
    """Write each name beside its point, where it covers neither a point nor another name."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.ticker import NullLocator

    axes.yaxis.set_minor_locator(NullLocator())
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    taken: list[Any] = []
    dots = [axes.transData.transform((x, y)) for x, y, *_ in points]
    for x, y, name, colour in points:
        for right, up, across, along in PLACES:
            text = axes.annotate(
                name, (x, y), (right, up), textcoords="offset points", ha=across, va=along, fontsize=8, color=colour
            )
            box = text.get_window_extent()
            free = not any(box.overlaps(other) for other in taken) and not any(box.contains(*dot) for dot in dots)
            if (free and axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1) or up == PLACES[-1][1]:
                taken.append(box)
                break
            text.remove()
