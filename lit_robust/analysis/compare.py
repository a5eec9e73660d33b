"""Several runs in one table: accuracies under the same attacks on the same images, and ranks."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from lit_robust.analysis.output import new_figure, plain_text, write
from lit_robust.analysis.study import Study
from lit_robust.analysis.subjects import Subject, load_subjects, read_training_images
from lit_robust.attacks import PGD, Attack
from lit_robust.attacks.base import EPS
from lit_robust.data import ImageDataModule
from lit_robust.measures.accuracy import describe, wilson
from lit_robust.measures.default_attacks import default_test
from lit_robust.whole_files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Methods with fewer seeds are not ranked: their spread between runs is unknown.
SEEDS = 3


class Method(NamedTuple):
    """The results of one method by attack: each image's mean over the seeds, each run's accuracy; and its alarms."""

    name: str
    images: dict[str, Tensor]
    runs: dict[str, list[float]]
    alarms: Sequence[str] = ()

    def mean(self, attack: str) -> float:
        """The mean accuracy over the seeds."""
        return sum(self.runs[attack]) / len(self.runs[attack])


def compare(
    checkpoints: list[str],
    data: ImageDataModule,
    attacks: dict[str, Attack] | None = None,
    gap: bool = True,
    alarms: bool = True,
    sources: list[str] | None = None,
    limit: int | None = None,
    device: str = "auto",
    out: Path = Path("analysis"),
    wandb_project: str | None = None,
) -> list[dict[str, Any]]:
    """Compare runs: accuracy when clean and under attacks, the generalisation gap, and alarms for masked gradients.

    Runs named NAME@SEED=PATH with the same NAME are runs of one method. Its row holds their mean, their range, and the
    95 % interval over the images. Methods are ranked under the strongest attack. Two methods get different ranks only
    if their means differ by more than the spread over seeds (half the sum of both ranges) and by more than 1.96
    standard errors of the paired difference over images. A method with fewer than three seeds is not ranked.

    Args:
        checkpoints: .ckpt files or folders of runs, whose last checkpoint is taken; NAME@SEED=PATH.
        data: Its test images are attacked.
        attacks: Attacks by name; by default those of ``test`` at eps 8/255, see ``measures.default_attacks``.
        gap: Whether to attack equally many training images, too. The generalisation gap is their accuracy under the
            first attack minus that of the test images.
        alarms: Whether to look for signs of masked gradients, see ``measures.alarms``; a sentence each is printed below
            the table, and a method with an alarm is not ranked.
        sources: Checkpoints whose adversarial images are shown to each net, for the alarm ``transfer``.
        limit: Use only the first ``limit`` test images; by default all.
        device: auto, cpu or cuda.
        out: The folder for compare.csv, .md, .tex and .png, and for the journal by which a stopped run continues.
        wandb_project: The project of Weights & Biases to which table and picture are also logged.

    Returns:
        The rows of the table, the best method first.

    Raises:
        ValueError: If an argument is out of range; besides what ``Study.begin`` raises.
    """
    named_attacks = {"clean": PGD(steps=0, init="zero"), **(attacks or default_test(EPS))}
    study = Study.begin(checkpoints, data, limit, device, out)
    first = next(name for name in named_attacks if name != "clean")
    measures = {name: (attack, study.images) for name, attack in named_attacks.items()}
    if gap:
        measures["gap"] = named_attacks[first], read_training_images(data, study.images.n, study.device)
    of_test = {name: attack for name, attack in named_attacks.items() if name != "clean"}
    origins = load_subjects(sources, study.device) if sources else []
    methods: list[Method] = []
    told: dict[str, dict[str, str]] = {}
    for name, runs in by_method(study.subjects).items():
        found = {}
        for measure, (attack, images) in measures.items():
            bits = [study.survivors(run, attack, images=images) for run in runs]
            found[measure] = torch.tensor([[float(bit) for bit in one] for one in bits], dtype=torch.float64)
        if alarms:
            told |= {run.name: study.alarms(run, of_test, origins, data.num_classes) for run in runs}
        methods.append(
            Method(
                name,
                {measure: values.mean(dim=0) for measure, values in found.items()},
                {measure: values.mean(dim=1).tolist() for measure, values in found.items()},
                list(dict.fromkeys(alarm for run in runs for alarm in told.get(run.name, ()))),
            )
        )
    strongest = min(list(named_attacks)[1:], key=lambda name: sum(method.mean(name) for method in methods))
    rows = table(ranked(methods, strongest), list(named_attacks), first if gap else None)
    text = "\n".join(
        [markdown(rows), *(f"{run}: ALARM {name}: {said}" for run, of in told.items() for name, said in of.items())]
    )
    print(text)
    for suffix, content in (("md", text), ("tex", latex(rows))):
        write_whole(study.out / f"compare.{suffix}", content.encode())
        print(study.out / f"compare.{suffix}")
    about = f"{describe(named_attacks[strongest])}, {study.images.n} test images"
    write(study.out, "compare", rows, draw(rows, strongest, about), wandb_project)
    return rows


def by_method(subjects: Sequence[Subject]) -> dict[str, list[Subject]]:
    """Group runs by the part of their name before ``@``."""
    methods: dict[str, list[Subject]] = {}
    for subject in subjects:
        methods.setdefault(subject.name.partition("@")[0], []).append(subject)
    return methods


def differ(one: Method, other: Method, attack: str) -> bool:
    """Whether two methods differ by more than the spread over seeds and over images."""
    between = abs(one.mean(attack) - other.mean(attack))
    seeds = sum(max(method.runs[attack]) - min(method.runs[attack]) for method in (one, other)) / 2
    paired = one.images[attack] - other.images[attack]
    images = 1.96 * float(paired.std()) / math.sqrt(len(paired))
    return between > seeds and between > images


def ranked(methods: Sequence[Method], attack: str) -> list[tuple[int | None, Method]]:
    """Sort methods by accuracy. The rank is 1 plus the number of clearly better methods.

    It is None with too few seeds or with an alarm.
    """
    enough = [method for method in methods if len(method.runs[attack]) >= SEEDS and not method.alarms]
    ranks = {
        method.name: 1
        + sum(differ(method, other, attack) and other.mean(attack) > method.mean(attack) for other in enough)
        for method in enough
    }
    order = sorted(methods, key=lambda method: -method.mean(attack))
    return [(ranks.get(method.name), method) for method in order]


def table(
    methods: Sequence[tuple[int | None, Method]], attacks: Sequence[str], gap_under: str | None
) -> list[dict[str, Any]]:
    """The rows: rank, method, number of seeds, accuracies with intervals and ranges, and the generalisation gap."""
    rows = []
    for rank, method in methods:
        row: dict[str, Any] = {"rank": rank, "method": method.name, "seeds": len(method.runs[attacks[0]])}
        for attack in attacks:
            low, high = wilson(method.mean(attack), len(method.images[attack]))
            row |= {attack: method.mean(attack), f"{attack} low": low, f"{attack} high": high}
            row |= {f"{attack} min": min(method.runs[attack]), f"{attack} max": max(method.runs[attack])}
        row["n"] = len(method.images[attacks[0]])
        if gap_under is not None:
            row["gap"] = method.mean("gap") - method.mean(gap_under)
        row["alarms"] = " ".join(method.alarms)
        rows.append(row)
    return rows


def _cells(rows: Sequence[Mapping[str, Any]], dash: str) -> list[list[str]]:
    """Head and body of the printed table: percent, the range over seeds in brackets, a dash for no rank."""
    attacks = [key.removesuffix(" low") for key in rows[0] if key.endswith(" low")]
    known = [key for key in ("gap",) if key in rows[0]]
    told = any(row.get("alarms") for row in rows)
    body = []
    for row in rows:
        cells = [dash if row["rank"] is None else str(row["rank"]), row["method"], str(row["seeds"])]
        for attack in attacks:
            value, least, most = (100 * row[key] for key in (attack, f"{attack} min", f"{attack} max"))
            cells.append(f"{value:.1f} [{least:.1f}, {most:.1f}]" if row["seeds"] > 1 else f"{value:.1f}")
        cells += [f"{100 * row[key]:.1f}" for key in known] + [row.get("alarms", "")] * told
        body.append(cells)
    return [["rank", "method", "seeds", *attacks, *known, *["alarms"] * told], *body]


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
    axes.set_title(f"{about}\nbars: 95 % interval over images; thick: range over seeds", fontsize=8)
    return figure
