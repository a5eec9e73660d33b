"""The table of ``compare`` in Markdown, LaTeX and HTML."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from lit_robust.analysis.methods import SEEDS

Row = Mapping[str, Any]


def cells(rows: Sequence[Row], dash: str) -> list[list[str]]:
    """Head and body of the printed table, as ``notes`` explains it, with a dash for what is not known."""
    attacks = [key.removesuffix(" low") for key in rows[0] if key.endswith(" low")]
    shown: dict[str, tuple[str, Callable[[float], str]]] = {
        "gap": ("gap", lambda gap: f"{100 * gap:.1f}"),
        "seconds": ("time", duration),
        "cpu seconds": ("CPU time", duration),
        "passes": ("passes", count),
        "time saved": ("time saved", lambda saved: f"{100 * saved:.0f} %"),
        "CPU time saved": ("CPU time saved", lambda saved: f"{100 * saved:.0f} %"),
        "passes saved": ("passes saved", lambda saved: f"{100 * saved:.0f} %"),
    }
    known = [key for key in shown if key in rows[0]]
    told = any(row.get("alarms") for row in rows)
    body = []
    for row in rows:
        line = [dash if row["rank"] is None else str(row["rank"]), row["method"], str(row["seeds"])]
        for attack in attacks:
            value, low, high, least, most = (
                100 * row[attack + which] for which in ("", " low", " high", " min", " max")
            )
            seeds = f" ({least:.1f} to {most:.1f})" if row["seeds"] > 1 else ""
            line.append(f"{value:.1f} [{low:.1f}, {high:.1f}]{seeds}")
        line += [dash if row[key] is None else shown[key][1](row[key]) for key in known]
        body.append(line + [row.get("alarms", "")] * told)
    return [["rank", "method", "seeds", *attacks, *(shown[key][0] for key in known), *["alarms"] * told], *body]


def notes(rows: Sequence[Row]) -> list[str]:
    """What stands below the table: what its numbers are, and whether the costs can be compared."""
    several = any(row["seeds"] > 1 for row in rows)
    said = [
        f"Accuracies in % over {rows[0]['n']} test images, [95 % interval over images]"
        + ("; of several seeds the mean (least to most)." if several else ".")
    ]
    if reasons := [why for why in map(_unranked, rows) if why]:
        said.append(f"Rank -: {'; '.join(dict.fromkeys(reasons))}.")
    if "gap" in rows[0]:
        said.append(
            f"gap: generalisation gap in points, the accuracy of {rows[0]['gap n']} training images under "
            f"{rows[0]['gap under']} minus that of the test images."
        )
    hardware = {row["method"]: row["hardware"] for row in rows if row.get("hardware")}
    if not hardware:
        return said
    said.append(
        f"Cost of training{', mean of the seeds' * several}: wall-clock and CPU time without validation; passes: "
        "forwards plus backwards, counted in images."
    )
    if reference := next((row["reference"] for row in rows if row.get("reference")), None):
        said.append(f"Saved: against {reference}.")
    if any(row["hardware differs"] for row in rows):
        of = "; ".join(f"{name}: {where}" for name, where in hardware.items())
        said.append(f"The hardware differs, so compare the passes, not the times. {of}.")
    else:
        said.append(f"Hardware: {next(iter(hardware.values()))}.")
    precision = {row["method"]: row["precision"] for row in rows if row.get("precision")}
    if len(set(precision.values())) > 1:
        said.append(f"The precision differs. {'; '.join(f'{name}: {which}' for name, which in precision.items())}.")
    return said


def _unranked(row: Row) -> str:
    """Why a method has no rank; empty if it has one."""
    if row["rank"] is not None:
        return ""
    if row["seeds"] < SEEDS:
        return f"fewer than {SEEDS} seeds"
    return "an alarm" if row.get("alarms") else "attacks in bfloat16 only"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours with three digits: ``12.3 min``."""
    for unit, least in (("h", 3600), ("min", 60)):
        if seconds >= 2 * least:
            return f"{digits(seconds / least)} {unit}"
    return f"{digits(seconds)} s"


def with_selections(shown: Callable[[float], str], whole: float, part: float) -> str:
    """What a training took, and what selections of coresets took of it, if they took any."""
    return shown(whole) + (f", of which {shown(part)} for selections" if part else "")


def count(number: float) -> str:
    """A large number with three digits: ``12.3M``."""
    for unit, least in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= least:
            return f"{digits(number / least)}{unit}"
    return digits(number)


def digits(value: float) -> str:
    """Three digits, without an exponent from 0.001 on."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def markdown(rows: Sequence[Row]) -> str:
    """The table in Markdown, with aligned columns so that a terminal shows it too."""
    lines = [[plain_markdown(cell) for cell in line] for line in cells(rows, "-")]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([table[0], rule, *table[1:], "", *(f"{plain_markdown(note)}\n" for note in notes(rows))])


def plain_markdown(text: str) -> str:
    """A name as Markdown shows it literally: ``<`` would begin a tag, ``|`` a cell."""
    return text.replace("|", r"\|").replace("<", r"\<")


def latex(rows: Sequence[Row]) -> str:
    """The table in LaTeX, for booktabs; its notes are comments."""
    escaped = {"_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}"}
    escaped |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    escaped |= {"<": r"\textless{}", ">": r"\textgreater{}"}
    head, *body = [["".join(escaped.get(char, char) for char in cell) for cell in line] for line in cells(rows, "--")]
    lines = [" & ".join(line) + r" \\" for line in body]
    columns = "rl" + "r" * (len(head) - 2)
    begin = [f"% {' '.join(note.split())}" for note in notes(rows)]
    begin += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", " & ".join(head) + r" \\", r"\midrule"]
    return "\n".join([*begin, *lines, r"\bottomrule", r"\end{tabular}", ""])


def html(rows: Sequence[Row]) -> str:
    """The table in HTML, with its notes."""
    return html_table(cells(rows, "-")) + "".join(f"<p>{escape(note)}</p>" for note in notes(rows))


def html_table(lines: Sequence[Sequence[str]]) -> str:
    """Any table in HTML, in a box that scrolls; every cell is escaped; intervals, ranges and alarms take lines."""
    words = [name == "alarms" for name in lines[0]]
    rows = []
    for number, line in enumerate(lines):
        cells_of_line = []
        for cell, breaks in zip(line, words, strict=True):
            begin = "th" if not number else 'td class="words"' if breaks else "td"
            said = escape(cell).replace(" [", "<br>[").replace("] (", "]<br>(")
            cells_of_line.append(f"<{begin}>{said}</{begin[:2]}>")
        rows.append(f"<tr>{''.join(cells_of_line)}</tr>\n")
    return f'<div class="scrolls"><table>\n{"".join(rows)}</table></div>'
