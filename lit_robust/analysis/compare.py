"""Several runs in one table: accuracies under the same attacks on the same images, ranks, and costs."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_robust import require
from lit_robust.analysis.compare_pictures import draw, draw_costs
from lit_robust.analysis.output import write_picture
from lit_robust.analysis.study import Source, Study
from lit_robust.analysis.subjects import Subject, checkpoint_of, load_subjects, read_training_images, trained_threat
from lit_robust.analysis.surrogate import surrogate_of
from lit_robust.analysis.tables import latex, markdown, plain_markdown
from lit_robust.attacks import PGD, Attack
from lit_robust.costs import Cost, cost_of
from lit_robust.data import ImageDataModule
from lit_robust.measures.accuracy import describe, legend, wilson
from lit_robust.measures.attack_checks import check_names, is_coarse
from lit_robust.measures.default_attacks import default_test
from lit_robust.whole_files import write_whole

#: Methods with fewer seeds are not ranked: their spread between runs is unknown.
SEEDS = 3


class Method(NamedTuple):
    """The results of one method by attack: each image's mean over the seeds, each run's accuracy; alarms and costs."""

    name: str
    images: dict[str, Tensor]
    runs: dict[str, list[float]]
    alarms: Sequence[str] = ()
    costs: Sequence[Cost | None] = ()

    def mean(self, attack: str) -> float:
        """The mean accuracy over the seeds."""
        return sum(self.runs[attack]) / len(self.runs[attack])

    @property
    def known_costs(self) -> list[Cost]:
        """The cost of each run; empty if that of any is unknown."""
        known = [cost for cost in self.costs if cost is not None]
        return known if len(known) == len(self.costs) else []


class Comparison(NamedTuple):
    """The results of a comparison: its table, the alarms of each run as sentences by name, and its attacks."""

    rows: list[dict[str, Any]]
    alarms: dict[str, dict[str, str]]
    attacks: dict[str, Attack]
    strongest: str
    about: str
    unit: str | None  #: The column of the cost that can be compared; None if no cost is known.


def compare(
    checkpoints: list[str],
    data: ImageDataModule,
    attacks: dict[str, Attack] | None = None,
    gap: bool = True,
    alarms: bool = True,
    sources: list[str] | None = None,
    surrogate: bool = False,
    reference: str | None = None,
    limit: int | None = None,
    device: str = "auto",
    out: Path = Path("analysis"),
    wandb_project: str | None = None,
    net: nn.Module | None = None,
) -> list[dict[str, Any]]:
    """Compare runs: accuracies, the generalisation gap, alarms for masked gradients, and what the training cost.

    Runs named NAME@SEED=PATH with the same NAME are runs of one method. Its row holds their mean, their range, and the
    95 % interval over the images. Methods are ranked under the strongest attack, never one in bfloat16. Two methods
    get different ranks only if their means differ by more than the spread over seeds (half the sum of both ranges) and
    by more than 1.96 standard errors of the paired difference over images. A method with fewer than three seeds is not
    ranked.

    A checkpoint holds the training's wall-clock and CPU time without validation, its hardware, and its passes: images
    that went forward and backward through the net. Where the hardware differs, passes are compared instead of times;
    passes of different nets do not cost the same.

    Args:
        checkpoints: .ckpt files or folders of runs, whose last checkpoint is taken; NAME@SEED=PATH.
        data: Its test images are attacked.
        attacks: Attacks by name; by default those of ``test`` at the eps that all runs were trained with, else 8/255.
        gap: Whether to attack equally many training images, too. The generalisation gap is their accuracy under the
            first attack minus that of the test images.
        alarms: Whether to look for signs of masked gradients, see ``measures.alarms``; a sentence each is printed below
            the table, and a method with an alarm is not ranked.
        sources: Checkpoints whose adversarial images are shown to each net, for the alarm ``transfer``.
        surrogate: Whether to train a natural net of each net's architecture on its predictions, as one more source.
        reference: The method against which the saved time, or the saved passes, are stated.
        limit: Use only the first ``limit`` test images; by default all.
        device: auto, cpu or cuda.
        out: The folder for compare.csv, .md, .tex and .png, for compare_cost.png, and for the journal that lets
            a stopped run continue.
        wandb_project: The project of Weights & Biases to which table and pictures are also logged.
        net: The net of files that are not checkpoints of lit_robust.nets, such as a plain state_dict.

    Returns:
        The rows of the table, the best method first.

    Raises:
        ValueError: If an argument is out of range; besides what ``Study.begin`` raises.
    """
    if attacks is not None:
        check_names("attacks", attacks)
    study = Study.begin(checkpoints, data, limit, device, out, net)
    found = comparison(study, data, attacks, gap, alarms, sources, surrogate, reference)
    sentences = [f"{run}: ALARM {name}: {said}" for run, of in found.alarms.items() for name, said in of.items()]
    text = "\n".join([markdown(found.rows), legend(found.attacks), "", *map(plain_markdown, sentences)])
    print(text)
    for suffix, content in (("md", text), ("tex", latex(found.rows))):
        write_whole(study.out / f"compare.{suffix}", content.encode())
        print(study.out / f"compare.{suffix}")
    study.write("compare", found.rows, draw(found.rows, found.strongest, found.about), wandb_project)
    if found.unit is not None:
        costs = draw_costs(found.rows, found.strongest, found.about, found.unit)
        write_picture(study.out, "compare_cost", costs, wandb_project)
    return found.rows


def comparison(
    study: Study,
    data: ImageDataModule,
    attacks: Mapping[str, Attack] | None = None,
    gap: bool = True,
    alarms: bool = True,
    sources: Sequence[str] | None = None,
    surrogate: bool = False,
    reference: str | None = None,
) -> Comparison:
    """Measure what ``compare`` shows; its arguments are explained there.

    Raises:
        ValueError: If there is no method ``reference``, or a checkpoint is broken.
    """
    require.flags(gap=gap, alarms=alarms, surrogate=surrogate)
    methods_runs = by_method(study.subjects)
    if reference is not None:
        require.one_of("reference", reference, tuple(methods_runs))
    named_attacks = {"clean": PGD(steps=0, init="zero"), **(attacks or default_test(*trained_threat(study.subjects)))}
    of_test = {name: attack for name, attack in named_attacks.items() if name != "clean"}
    first = next(iter(of_test))
    measures = {name: (attack, study.images) for name, attack in named_attacks.items()}
    if gap:
        measures["gap"] = named_attacks[first], read_training_images(data, study.images.n, study.device)
    origins: list[Source] = [*load_subjects(sources, study.device)] if sources else []
    methods: list[Method] = []
    told: dict[str, dict[str, str]] = {}
    for name, runs in methods_runs.items():
        found = {}
        for measure, (attack, images) in measures.items():
            bits = [study.survivors(run, attack, images=images) for run in runs]
            found[measure] = torch.tensor([[float(bit) for bit in one] for one in bits], dtype=torch.float64)
        for run in runs if alarms else ():
            mine = [*origins, surrogate_of(study, run, data)] if surrogate else origins
            told[run.name] = study.alarms(run, of_test, mine, data.num_classes)
        methods.append(
            Method(
                name,
                {measure: values.mean(dim=0) for measure, values in found.items()},
                {measure: values.mean(dim=1).tolist() for measure, values in found.items()},
                list(dict.fromkeys(alarm for run in runs for alarm in told.get(run.name, ()))),
                [cost_of(checkpoint_of(run)) for run in runs],
            )
        )
    exact = [name for name, attack in of_test.items() if not is_coarse(attack)]
    strongest = min(exact or of_test, key=lambda name: sum(method.mean(name) for method in methods))
    order = ranked(methods, strongest) if exact else [(None, method) for _, method in ranked(methods, strongest)]
    rows = table(order, list(named_attacks), first if gap else None, reference)
    about = f"{describe(named_attacks[strongest])}, {study.images.n} test images"
    unit = "passes" if rows[0]["hardware differs"] else "seconds"
    return Comparison(rows, told, of_test, strongest, about, unit if any(row["passes"] for row in rows) else None)


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
    methods: Sequence[tuple[int | None, Method]],
    attacks: Sequence[str],
    gap_under: str | None,
    reference: str | None = None,
) -> list[dict[str, Any]]:
    """The rows: rank, method, number of seeds, accuracies with intervals and ranges, generalisation gap, and cost."""
    where = {cost.where for _, method in methods for cost in method.costs if cost is not None}
    differs = len(where) > 1 or any(", then " in one for one in where)
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
        rows.append({**row, **_cost(method.known_costs), "hardware differs": differs})
        rows[-1]["alarms"] = " ".join(method.alarms)
    if reference is not None:
        unit, column = ("passes", "passes saved") if differs else ("seconds", "time saved")
        base = next(row[unit] for row in rows if row["method"] == reference)
        for row in rows:
            row |= {column: 1 - row[unit] / base if base and row[unit] is not None else None, "reference": reference}
    return rows


def _cost(costs: Sequence[Cost]) -> dict[str, Any]:
    """The columns of the cost; None where it is unknown."""
    row: dict[str, Any] = {}
    for name, column in (("seconds", "seconds"), ("cpu_seconds", "cpu seconds"), ("passes", "passes")):
        values = [getattr(cost, name) for cost in costs]
        row[column] = sum(values) / len(values) if values else None
        row |= {f"{column} {which}": of(values) if values else None for which, of in (("min", min), ("max", max))}
    row["hardware"] = "; ".join(dict.fromkeys(cost.where for cost in costs))
    row["precision"] = ", ".join(dict.fromkeys(one for cost in costs for one in cost.precision))
    return row
