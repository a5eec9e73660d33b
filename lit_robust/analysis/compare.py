"""Several runs in one table: accuracies under the same attacks on the same images, costs, and ranks."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from lit_robust.analysis.journal import Journal
from lit_robust.analysis.output import check_plotting, device_of, new_figure, plain_text, write
from lit_robust.analysis.subjects import Subject, crafted_survivors, load_subjects, test_images, training_images
from lit_robust.attacks import PGD, Attack
from lit_robust.attacks.base import EPS
from lit_robust.checkpoint_files import read_checkpoint
from lit_robust.data import ImageDataModule
from lit_robust.measures.accuracy import describe
from lit_robust.measures.default_test import default_test
from lit_robust.seeds import run_seed
from lit_robust.whole_files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: The seeds below which a mean says nothing of the spread between runs, so that a method is not ranked.
SEEDS = 3


class Method(NamedTuple):
    """All runs of one method: each image's mean over the seeds by attack, each run's accuracy, and the mean seconds."""

    name: str
    images: dict[str, Tensor]
    runs: dict[str, list[float]]
    seconds: float

    def mean(self, attack: str) -> float:
        """The mean accuracy over the seeds."""
        return sum(self.runs[attack]) / len(self.runs[attack])


def compare(
    checkpoints: list[str],
    data: ImageDataModule,
    attacks: dict[str, Attack] | None = None,
    reference: str | None = None,
    gap: bool = True,
    limit: int | None = None,
    device: str = "auto",
    out: Path = Path("analysis"),
    wandb_project: str | None = None,
) -> list[dict[str, Any]]:
    """Compare runs: accuracy when clean and under attacks, generalisation gap, and training time against a reference.

    Runs called NAME@SEED=PATH are those of one method; its row is their mean, with their range and with the 95 %
    interval over the images. Methods are ranked by the strongest attack, and get different ranks only if their means
    differ by more than the seeds (half of both ranges) and by more than the images explain (1.96 standard errors of the
    paired difference). A method of fewer than three seeds is not ranked. Training time is what the runs' checkpoints
    say; it can be compared if the hardware is the same.

    Args:
        checkpoints: .ckpt files or folders of runs, whose last checkpoint is taken; NAME@SEED=PATH.
        data: Its test images are attacked.
        attacks: Attacks by name; by default those of ``test`` at eps 8/255, see ``measures.default_test``.
        reference: The method whose training time is 100 %; by default the slowest.
        gap: Whether to attack as many training images, too: their accuracy under the first attack minus that of the
            test images is the generalisation gap.
        limit: The number of test images, the first ones; by default all.
        device: auto, cpu or cuda.
        out: The folder of compare.csv, .md, .tex and .png, and of the journal from which a stopped run goes on.
        wandb_project: The project of Weights & Biases that gets table and picture, too.

    Returns:
        The rows of the table, the best method first.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ImportError: If matplotlib is missing.
        ValueError: If an argument is out of range or a checkpoint cannot be used.
    """
    check_plotting()
    named_attacks = {"clean": PGD(steps=0, init="zero"), **(attacks or default_test(EPS))}
    place = device_of(device)
    subjects, images = load_subjects(checkpoints, place), test_images(data, limit, place)
    journal = Journal(Path(out) / "journal.jsonl")
    sets = {"": images} | ({"gap": training_images(data, images.n, place)} if gap else {})
    names = [*named_attacks, *(["gap"] if gap else [])]
    first = next(name for name in named_attacks if name != "clean")

    def survived(subject: Subject, name: str) -> Tensor:
        seen, attack = sets["gap" if name == "gap" else ""], named_attacks[first if name == "gap" else name]
        key = (subject.key, seen.key, repr(attack), str(run_seed()))
        bits = journal.get(key, partial(crafted_survivors, subject.net, subject.net, attack, seen))
        return torch.tensor([bit == "1" for bit in bits], dtype=torch.float64)

    methods = []
    for name, runs in by_method(subjects).items():
        found = {attack: torch.stack([survived(run, attack) for run in runs]) for attack in names}
        methods.append(
            Method(
                name,
                {attack: bits.mean(dim=0) for attack, bits in found.items()},
                {attack: bits.mean(dim=1).tolist() for attack, bits in found.items()},
                sum(seconds_of(run.path) for run in runs) / len(runs),
            )
        )
    strongest = min(list(named_attacks)[1:], key=lambda name: sum(method.mean(name) for method in methods))
    slowest = max(methods, key=lambda method: method.seconds).name
    rows = table(ranked(methods, strongest), list(named_attacks), first if gap else None, reference or slowest)
    text = markdown(rows)
    print(text)
    for suffix, content in (("md", text), ("tex", latex(rows))):
        write_whole(Path(out) / f"compare.{suffix}", content.encode())
        print(Path(out) / f"compare.{suffix}")
    about = "\n".join(describe(attack) for name, attack in named_attacks.items() if name == strongest)
    write(Path(out), "compare", rows, draw(rows, strongest, f"{about}, {images.n} test images"), wandb_project)
    return rows


def by_method(subjects: Sequence[Subject]) -> dict[str, list[Subject]]:
    """Group runs by the part of their name before ``@``."""
    methods: dict[str, list[Subject]] = {}
    for subject in subjects:
        methods.setdefault(subject.name.partition("@")[0], []).append(subject)
    return methods


def seconds_of(path: Path) -> float:
    """The training seconds that a checkpoint holds, without validation and over all resumes; NaN if it has none."""
    cost = read_checkpoint(path).get("lit_robust", {}).get("cost", {})
    return float(cost.get("seconds", math.nan)) if isinstance(cost, dict) else math.nan


def interval(images: Tensor) -> tuple[float, float]:
    """The 95 % Wilson score interval of the mean of per-image accuracies ``(n,)``, which may be means over seeds."""
    n, value, z = len(images), float(images.mean()), 1.959964
    centre = (value + z * z / (2 * n)) / (1 + z * z / n)
    spread = z * math.sqrt(value * (1 - value) / n + (z / (2 * n)) ** 2) / (1 + z * z / n)
    return max(0.0, centre - spread), min(1.0, centre + spread)


def differ(one: Method, other: Method, attack: str) -> bool:
    """Whether two methods differ by more than their seeds and their images explain."""
    between = abs(one.mean(attack) - other.mean(attack))
    seeds = sum(max(method.runs[attack]) - min(method.runs[attack]) for method in (one, other)) / 2
    paired = one.images[attack] - other.images[attack]
    images = 1.96 * float(paired.std()) / math.sqrt(len(paired))
    return between > seeds and between > images


def ranked(methods: Sequence[Method], attack: str) -> list[tuple[int | None, Method]]:
    """Sort methods, and rank those with enough seeds: one more than the number of those that are clearly better."""
    enough = [method for method in methods if len(method.runs[attack]) >= SEEDS]
    ranks = {
        method.name: 1
        + sum(differ(method, other, attack) and other.mean(attack) > method.mean(attack) for other in enough)
        for method in enough
    }
    order = sorted(methods, key=lambda method: -method.mean(attack))
    return [(ranks.get(method.name), method) for method in order]


def table(
    methods: Sequence[tuple[int | None, Method]], attacks: Sequence[str], gap_under: str | None, reference: str
) -> list[dict[str, Any]]:
    """The rows: rank, method, number of seeds, accuracies, gap, and the share of the reference's time that is saved.

    Raises:
        ValueError: If there is no such reference.
    """
    times = {method.name: method.seconds for _, method in methods}
    if reference not in times:
        raise ValueError(f"reference={reference!r} must be one of the methods: {', '.join(times)}.")
    rows = []
    for rank, method in methods:
        row: dict[str, Any] = {"rank": rank, "method": method.name, "seeds": len(method.runs[attacks[0]])}
        for attack in attacks:
            low, high = interval(method.images[attack])
            row |= {attack: method.mean(attack), f"{attack} low": low, f"{attack} high": high}
            row |= {f"{attack} min": min(method.runs[attack]), f"{attack} max": max(method.runs[attack])}
        row["n"] = len(method.images[attacks[0]])
        if gap_under is not None:
            row["gap"] = method.mean("gap") - method.mean(gap_under)
        row["seconds"], row["time saved"] = method.seconds, 1 - method.seconds / times[reference]
        rows.append(row)
    return rows


def _cells(rows: Sequence[Mapping[str, Any]], dash: str) -> list[list[str]]:
    """Head and body of a table for people: percent, the range over seeds in brackets, a dash for what is not known."""
    attacks = [key.removesuffix(" low") for key in rows[0] if key.endswith(" low")]
    known = [
        key for key in ("gap", "seconds", "time saved") if any(not math.isnan(row.get(key, math.nan)) for row in rows)
    ]
    body = []
    for row in rows:
        cells = [dash if row["rank"] is None else str(row["rank"]), row["method"], str(row["seeds"])]
        for attack in attacks:
            value, least, most = (100 * row[key] for key in (attack, f"{attack} min", f"{attack} max"))
            cells.append(f"{value:.1f} [{least:.1f}, {most:.1f}]" if row["seeds"] > 1 else f"{value:.1f}")
        for key in known:
            value = row[key]
            cells.append(dash if math.isnan(value) else f"{value:.0f}" if key == "seconds" else f"{100 * value:.1f}")
        body.append(cells)
    return [["rank", "method", "seeds", *attacks, *known], *body]


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table in Markdown, with aligned columns so that a terminal shows it too."""
    cells = [[cell.replace("|", r"\|") for cell in line] for line in _cells(rows, "-")]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    about = f"Accuracies in % over {rows[0]['n']} test images, mean and [least, most] of the seeds."
    return "\n".join([lines[0], rule, *lines[1:], "", about, ""])


def latex(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table in LaTeX, for booktabs."""
    escaped = {"_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}"}
    escaped |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    head, *body = [["".join(escaped.get(char, char) for char in cell) for cell in line] for line in _cells(rows, "--")]
    lines = [" & ".join(line) + r" \\" for line in body]
    columns = "rl" + "r" * (len(head) - 2)
    begin = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", " & ".join(head) + r" \\", r"\midrule"]
    return "\n".join([*begin, *lines, r"\bottomrule", r"\end{tabular}", ""])


def draw(rows: Sequence[Mapping[str, Any]], attack: str, about: str) -> "Figure":
    """Scatter robust accuracy against training seconds, or list it where the runs do not say how long they took."""
    figure, (axes,) = new_figure()
    timed = [row for row in rows if not math.isnan(row["seconds"])]
    for number, row in enumerate(rows):
        x = row["seconds"] if timed else number
        low, high = (100 * abs(row[f"{attack} {end}"] - row[attack]) for end in ("low", "high"))
        if not math.isnan(x):
            axes.errorbar(x, 100 * row[attack], yerr=[[low], [high]], fmt="o", capsize=3, color=f"C{number % 10}")
            axes.annotate(
                plain_text(row["method"]), (x, 100 * row[attack]), xytext=(5, 4), textcoords="offset points", fontsize=8
            )
    axes.set(xlabel="training time (s)" if timed else "method, best first", ylabel=f"accuracy under {attack} (%)")
    axes.margins(x=0.15)
    axes.set_title(f"{about}, bars: 95 % interval over images", fontsize=8)
    return figure
