"""Write the measured numbers of README.md from ``scripts/results``: all that stands between the markers of a block.

    python scripts/readme_results.py           # fill in all blocks
    python scripts/readme_results.py --check   # fail if one is not up to date

A block begins with ``<!-- results: NAME -->``, where NAME is a function of ``BLOCKS``, and ends with
``<!-- end of results -->``. Blocks whose file of results is missing stay empty.
"""

import argparse
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import cpu_budget_results
import yaml
from coreset_pictures import everything_beside
from cpu_budget import DEFAULT_TEST
from cpu_budget_results import OF_CORESETS, TOLD_OF_CORESETS, coreset_cells, is_honest, markdown, read, with_range
from readme_speed import (
    attack_speed,
    autoattack_bf16,
    autoattack_speed,
    benchmark,
    benchmark_full,
    decoding_speed,
    default_test_cost,
    digits_bf16,
    kept_memory,
    peak_memory,
    selection_error,
    selection_speed,
    start_up_speed,
    step_profile,
)

from lit_robust.measures.accuracy import Accuracy

HERE = Path(__file__).parent
README, RESULTS = HERE.parent / "README.md", HERE / "results"

#: Rows with fewer seeds are not ranked.
SEEDS = 3
#: Clean accuracy and AutoAttack's on SAT's slides, on MNIST at eps 0.3 and 0.45.
SLIDES = {
    "madry": ("98.07 / 85.47", "11.22 / 11.22"),
    "trades": ("98.98 / 90.70", "97.36 / 0.00"),
    "dynamic": ("98.93 / 92.24", "97.98 / 65.71"),
    "cat": ("99.46 / 0.00", "99.39 / 0.00"),
    "hsat": ("99.01 / 80.71", "98.35 / 54.10"),
    "psat": ("99.16 / 92.00", "97.87 / 58.50"),
}

Records = Sequence[Mapping[str, Any]]


def by_row(name: str) -> dict[str, Records]:
    """The records of a set by row, one for each seed."""
    return dict(cpu_budget_results.by_row(RESULTS / f"cpu_{name}.json"))


def attacked(records: Records, attack: str) -> Records:
    """The seeds that this attack has seen: costly ones are not run on all."""
    return [record for record in records if attack in record["last"]]


def accuracies(records: Records, attack: str) -> list[float]:
    """The accuracy in percent of each seed."""
    return [record["last"][attack][0] for record in attacked(records, attack)]


def interval(records: Records, attack: str) -> tuple[float, float]:
    """The 95 % interval over images of the seeds' mean, in percent, as ``compare`` has it."""
    low, high = Accuracy(mean(accuracies(records, attack)) / 100, images(records, attack)).interval
    return 100 * low, 100 * high


def measured(records: Records, attack: str) -> str:
    """The mean, its interval over images and, of several seeds, the smallest and the largest."""
    value, _, spread = with_range(accuracies(records, attack)).partition(" ")
    low, high = interval(records, attack)
    return " ".join(filter(None, (value, f"[{low:.1f}, {high:.1f}]", spread)))


def images(records: Records, attack: str) -> int:
    """The number of images that the attack has seen."""
    return int(attacked(records, attack)[0]["last"][attack][3])


def differ(one: Records, other: Records, attack: str) -> bool:
    """Whether two rows differ by more than their seeds (half of both ranges) and by more than 1.96 standard errors."""
    values = [accuracies(records, attack) for records in (one, other)]
    between = abs(mean(values[0]) - mean(values[1]))
    seeds = sum(max(of) - min(of) for of in values) / 2
    n = images(one, attack)
    # As if on different images: a paired comparison would be sharper, but only accuracies are kept.
    errors = 1.96 * math.sqrt(sum(mean(of) * (100 - mean(of)) / n for of in values))
    return between > seeds and between > errors


def ranks(rows: Mapping[str, Records], attack: str) -> dict[str, str]:
    """The places that a row may have, given which rows differ by more than seeds and images explain, or a dash.

    As in ``compare``, rows with an alarm have no place, nor those with too few seeds.
    """
    enough = {row: records for row, records in rows.items() if len(records) >= SEEDS and raised(records) == "-"}
    found = dict.fromkeys(rows, "-")
    for row, records in enough.items():
        others = [other for other in enough.values() if differ(records, other, attack)]
        better = sum(mean(accuracies(other, attack)) > mean(accuracies(records, attack)) for other in others)
        first, last = 1 + better, len(enough) - (len(others) - better)
        found[row] = str(first) if first == last else f"{first} to {last}"
    return found


def seconds(records: Records) -> list[float]:
    """The CPU seconds of training of each seed."""
    return [sum(record["diary"]["cpu_seconds"]) for record in records]


def passes(records: Records) -> float:
    """The counted passes per batch: a forward as 1/3 and a backward as 2/3."""
    forwards, backwards = (mean(mean(record["diary"][key]) for record in records) for key in ("forwards", "backwards"))
    return forwards / 3 + 2 * backwards / 3


def legend(rows: Mapping[str, Records], attacks: Sequence[str]) -> str:
    """What a table's numbers are: seeds, images, hardware, data."""
    records = [record for of_row in rows.values() for record in of_row]
    first = next(iter(rows.values()))
    counts = {attack: f"{images(first, attack)}{only_seeds(first, attack)}" for attack in attacks}
    shown = "all" if len(set(counts.values())) == 1 else ", ".join(f"{name} {n}" for name, n in counts.items())
    on = f"the first {counts[attacks[0]]} test images" if shown == "all" else f"the first test images ({shown})"
    seeds = sorted({len(of_row) for of_row in rows.values()})
    spread = "one seed, not ranked" if seeds == [1] else f"{' or '.join(map(str, seeds))} seeds: mean (range)"
    spans = [interval(of_row, attack) for of_row in rows.values() for attack in attacks if attacked(of_row, attack)]
    md5 = sorted({record["md5"]["test"][:8] for record in records})
    return (
        f"Accuracy in percent on {on}, {spread}; 95 % intervals over images, [low, high], span at most "
        f"{max(high - low for low, high in spans):.1f} points; {machines(records)}; md5 of the test images "
        f"{', '.join(md5)}."
    )


def only_seeds(records: Records, attack: str) -> str:
    """Which seeds the attack has seen, if not all have."""
    seen = attacked(records, attack)
    told = ", ".join(str(record["config"]["seed_everything"]) for record in seen)
    return "" if len(seen) == len(records) else f" of seed{'s' * (len(seen) > 1)} {told}"


def machines(records: Records) -> str:
    """The processors, their threads and instructions, and the precision if all rows have the same."""
    hardware = [record["hardware"] for record in records]
    found = sorted({(one["threads"], f"{one['processor']} ({one['capability']})") for one in hardware})
    told = [f"{'one thread' if threads == 1 else f'{threads} threads'} of {name}" for threads, name in found]
    precisions = {record["config"]["trainer"].get("precision", "float32") for record in records}
    return ", ".join(told + [str(one) for one in precisions if len(precisions) == 1])


def raised(records: Records) -> str:
    """The alarms by name, with the number of seeds that raised each."""
    counts = Counter(alarm for record in records for alarm in record.get("alarms", []))
    return ", ".join(f"`{name}` ({count} of {len(records)})" for name, count in counts.items()) or "-"


def flattery(record: Mapping[str, Any]) -> float:
    """How far the default test is above AutoAttack, in points: by the images that withstand all its attacks together.

    By its strongest attack in older results, which lack that number.
    """
    last = record["last"]
    worst = record.get("worst", min(last[attack][0] for attack in DEFAULT_TEST))
    return float(worst - last["autoattack"][0])


def alarms_of(rows: Mapping[str, Records]) -> str:
    """A sentence that names the rows whose nets raise an alarm; empty if there is none."""
    named = ", ".join(f"`{row}` {raised(records)}" for row, records in rows.items() if raised(records) != "-")
    return f"Alarms: {named}." if named else ""


def judged(rows: Mapping[str, Records]) -> str:
    """How far the default test is above AutoAttack at most, and how many nets it flatters without an alarm.

    Empty for older results, which the default test is no part of.
    """
    records = [record for of_row in rows.values() for record in of_row]
    if not all(record["last"].keys() >= DEFAULT_TEST for record in records):
        return ""
    far = [record for record in records if flattery(record) > 5]
    silent = sum(not record["alarms"] for record in far)
    told = f", by more than 5 on {len(far)}, of which {len(far) - silent} raise an alarm" if far else ""
    return (
        f"The default test is at most {max(map(flattery, records)):.1f} points above AutoAttack on the {len(records)} "
        f"nets{told}."
    )


# The blocks.


def single_step() -> str:
    """The single-step methods for equal epochs."""
    rows = by_row("single_step")
    attacks = ["clean", "pgd40", "autoattack"]
    place = ranks(rows, "autoattack")
    lines = [["row", "rank", "clean", "PGD-40", "AutoAttack", "alarms", "passes per batch", "CPU seconds"]]
    lines.append(["---", *["---:"] * 4, "---", *["---:"] * 2])
    for row, records in rows.items():
        found = [measured(records, attack) for attack in attacks]
        costs = [f"{passes(records):.2f}", f"{mean(seconds(records)):.0f}"]
        lines.append([f"`{row}`", place[row], *found, raised(records), *costs])
    nets = {
        f"`{row}` (seed {record['config']['seed_everything']})": record
        for row, records in rows.items()
        for record in records
    }
    collapsed = [label for label, record in nets.items() if any(record["diary"]["train/catastrophic_overfitting"])]
    return (
        f"{markdown(lines)}\n\n{legend(rows, attacks)} Ranks are by AutoAttack: the places that a row may have, as far "
        "as it differs from others by more than seeds and images explain; rows with an alarm of the library's test "
        "have none. "
        f"{judged(rows)} Monitors reported catastrophic overfitting in {', '.join(collapsed)}."
    )


def overfitting() -> str:
    """Settings in which single-step methods overfit catastrophically."""
    rows = by_row("overfitting")
    lines = [["row", "eps", "clean", "PGD-40", "AutoAttack", "epochs", "reported in epoch", "alarms"]]
    lines.append(["---", *["---:"] * (len(lines[0]) - 2), "---"])
    for row, records in rows.items():
        (record,) = records
        reported = record["diary"]["train/catastrophic_overfitting"].index(1) + 1
        found = [measured(records, attack) for attack in ("clean", "pgd40", "autoattack")]
        told = [f"{record['eps']:g}", *found, str(record["epochs"]), str(reported), raised(records)]
        lines.append([f"`{row}`", *told])
    return f"{markdown(lines)}\n\n{legend(rows, ['clean', 'pgd40', 'autoattack'])} {judged(rows)}"


def delayed() -> str:
    """What a delayed start saves."""
    rows = by_row("delayed")
    rat, dat = rows["rat"], rows["dat"]
    saved = 100 * (1 - mean(seconds(dat)) / mean(seconds(rat)))
    starts = sorted({record["diary"]["train/adversarial"].index(1.0) for record in dat})
    loss = [mean(record["diary"]["train/loss"][-1] for record in of_row) for of_row in (dat, rat)]
    lines = [["row", "eps", "clean", "PGD-40", "AutoAttack", "final training loss", "CPU seconds"]]
    lines.append(["---", *["---:"] * (len(lines[0]) - 1)])
    for row, records in rows.items():
        found = [measured(records, attack) for attack in ("clean", "pgd40", "autoattack")]
        losses = [record["diary"]["train/loss"][-1] for record in records]
        cells = [*found, with_range(losses, 2), with_range(seconds(records), 0)]
        lines.append([f"`{row}`", f"{records[0]['eps']:g}", *cells])
    return (
        f"{markdown(lines)}\n\n{legend(rows, ['clean', 'pgd40', 'autoattack'])} DAT, natural for "
        f"{' or '.join(map(str, starts))} epochs, saves {saved:.0f} % of the time of training from the start (eps "
        f"{rat[0]['eps']:g}), and ends at a training loss of {loss[0]:.2f} against {loss[1]:.2f}. "
        f"{judged(rows)} {alarms_of(rows)}"
    ).rstrip()


def data_size() -> str:
    """The gap between training and test images, over the number of training images."""
    rows = by_row("data_size")
    if not rows:
        return ""

    def gaps(row: str, attack: str) -> list[float]:
        return [record["train"][attack][0] - record["last"][attack][0] for record in rows[row]]

    lines = [["row", "clean", "PGD-40", "AutoAttack", "gap, clean", "gap, PGD-40"]]
    lines.append(["---", *["---:"] * (len(lines[0]) - 1)])
    for row, records in rows.items():
        found = [measured(records, attack) for attack in ("clean", "pgd40", "autoattack")]
        lines.append([f"`{row}`", *found, *(with_range(gaps(row, attack)) for attack in ("clean", "pgd40"))])
    natural, robust = (
        [mean(gaps(f"{method}_500", attack)) for attack in ("clean", "pgd40")] for method in ("natural", "pgdat")
    )
    first = next(iter(rows.values()))
    return (
        f"{markdown(lines)}\n\n{legend(rows, ['clean', 'pgd40', 'autoattack'])} Eps {first[0]['eps']:g}; a gap is the "
        f"accuracy on the first {images(first, 'clean')} training images less that on the test images, in points. With "
        f"500 training images, PGD training has a clean gap of {robust[0]:.1f} points against {natural[0]:.1f} after "
        f"natural training, and {robust[1]:.1f} against {natural[1]:.1f} under PGD-40. {judged(rows)} {alarms_of(rows)}"
    ).rstrip()


def cyclic_mixed() -> str:
    """A cyclic rate and mixed precision, with and without, for Fast and for Free."""
    rows = by_row("cyclic_mixed")
    if not rows:
        return ""
    lines = [["row", "clean", "PGD-50", "GAMA-PGD", "CPU seconds"], ["---", *["---:"] * 4]]
    for row, records in rows.items():
        found = [measured(records, attack) for attack in ("clean", "pgd50", "gama")]
        lines.append([f"`{row}`", *found, with_range(seconds(records), 0)])
    return f"{markdown(lines)}\n\n{legend(rows, ['clean', 'pgd50', 'gama'])}"


def rows_said(name: str) -> list[str]:
    """The rows of a set in ``cpu_budget.yaml``."""
    return list(yaml.safe_load((HERE / "cpu_budget.yaml").read_text())["sets"][name]["rows"])


def of_coresets(name: str, columns: Mapping[str, str], best: str = "") -> str:
    """A set of rows on coresets: accuracies, by attack and heading, costs, and its picture if it has been drawn.

    ``best`` is an attack whose accuracy in the best epoch is shown, too. Selections are compared by the last attack
    that all seeds have seen.
    """
    rows, among = by_row(name), everything_beside(name)
    if not rows:
        return ""
    everywhere = [name for name in columns if all(attacked(of_row, name) for of_row in rows.values())]
    known = {name: f"{columns[name]}{only_seeds(next(iter(rows.values())), name)}" for name in everywhere}
    judge = [(attack, columns[attack]) for attack in columns if not only_seeds(next(iter(rows.values())), attack)][-1]
    costs = ["gradient error", "CPU seconds", *OF_CORESETS]
    if best:
        costs.insert(0, f"best epoch: {columns[best]}")
    lines = [["row", *known.values(), *costs], ["---", *["---:"] * (len(known) + len(costs))]]
    for row, of_row in rows.items():
        cells = [measured(of_row, attack) for attack in known]
        cells += [with_range([one["best"][best][0] for one in of_row])] if best else []
        errors = [error for one in of_row for error in one["diary"].get("train/coreset/error", []) if error is not None]
        cells += [f"{mean(errors):.3f}" if errors else "-", f"{mean(seconds(of_row)):.0f}"]
        lines.append([f"`{row}`", *cells, *coreset_cells(of_row, among)])
    text = f"{markdown(lines)}\n\n{legend(rows, list(known))}{TOLD_OF_CORESETS}"
    text += beside_redrawn(rows, *judge)
    if missing := [f"`{row}`" for row in rows_said(name) if row not in rows]:
        text += f" Without results so far: {', '.join(missing)}."
    drawn = f"![Robust error against speed-up, {name}](scripts/results/{name}.png)"
    return f"{text}\n\n{drawn}" if (RESULTS / f"{name}.png").exists() else text


def beside_redrawn(rows: Mapping[str, Records], attack: str, name: str) -> str:
    """How much more robust selections are than images redrawn at random, over pairs that differ in nothing else.

    Empty without such pairs. A pair begins with the same net, so it shows smaller differences than the ranges of rows.
    """
    found: dict[str, list[float]] = {}
    for row, records in rows.items():
        selection = next((one for one in ("craig", "gradmatch", "random_fixed", "random_balanced") if one in row), None)
        if selection:
            drawn = rows.get(row.replace(selection, "random_redrawn"), ())
            of_seed = {record["config"]["seed_everything"]: record["last"].get(attack) for record in drawn}
            pairs = [(one["last"].get(attack), of_seed.get(one["config"]["seed_everything"])) for one in records]
            found.setdefault(selection, []).extend(one[0] - other[0] for one, other in pairs if one and other)
    told = [
        f"`{selection}` {mean(points):+.1f} ({min(points):+.1f} to {max(points):+.1f}, {len(points)} pairs)"
        for selection, points in found.items()
        if points
    ]
    return f" {name}, less that of images redrawn with the same seed: {', '.join(told)}." if told else ""


def coreset() -> str:
    """Fractions and selectors, with a warm start."""
    return of_coresets("coreset", {"clean": "clean", "pgd40": "PGD-40", "autoattack": "AutoAttack"})


def coreset_cold() -> str:
    """One fraction without a warm start."""
    return of_coresets("coreset_cold", {"clean": "clean", "pgd40": "PGD-40", "autoattack": "AutoAttack"})


def coreset_cifar() -> str:
    """Selectors on colour images."""
    columns = {"clean": "clean", "pgd50": "PGD-50", "gama": "GAMA-PGD", "autoattack": "AutoAttack"}
    return of_coresets("coreset_cifar", columns, best="pgd50")


def unseen() -> str:
    """PAT and PGD training of equal seconds under attacks that neither has seen."""
    rows = by_row("unseen")
    tested = {row: records for row, records in rows.items() if any(record["last"] for record in records)}
    if not tested:
        return ""
    names = [name for name in next(iter(tested.values()))[0]["last"] if name != "clean"]
    columns = {"clean": "clean", **{name: f"`{name}`" for name in names}}
    lines = [["row", "epochs", "CPU seconds", *columns.values()], ["---", *["---:"] * (2 + len(columns))]]
    for row, records in tested.items():
        cells = [str(records[0]["epochs"]), with_range(seconds(records), 0)]
        lines.append([f"`{row}`", *cells, *(measured(records, name) for name in columns)])
    return (
        f"{markdown(lines)}\n\n{legend(tested, list(columns))} `lpa40` takes its distance from the net that it "
        "attacks, so its rows cannot be compared; `lpa40_of_pat` and `lpa40_of_pgdat` take it from that row's net for "
        f"both.{of_adversaries(tested)}"
    )


def of_adversaries(rows: Mapping[str, Records]) -> str:
    """How large training's adversarial examples are, where that is measured."""
    found = {row: records[0]["adversary"] for row, records in rows.items() if "adversary" in records[0]}
    told = [
        f"those of `{row}` change an image by {one['l2']:.2f} (L2) and its most changed pixel by {one['linf']:.3f}, on "
        f"average, and {one['accuracy']:.1f} % withstand them"
        for row, one in found.items()
    ]
    return f" The adversarial examples of training, made for the same images: {'; '.join(told)}." if told else ""


def cpu_cifar() -> str:
    """Methods on colour images."""
    rows = by_row("cpu_cifar")
    if not rows:
        return ""
    columns = {"clean": "clean", "pgd50": "PGD-50", "gama": "GAMA-PGD", "autoattack": "AutoAttack"}
    place = ranks(rows, "gama")
    seen = only_seeds(next(iter(rows.values())), "autoattack")
    heads = [*[*columns.values()][:-1], f"GAMA-PGD{seen}", f"AutoAttack{seen}"]
    costs = ["best epoch: PGD-50", "passes per batch", "CPU seconds"]
    lines = [["row", "rank", *heads, *costs], ["---", *["---:"] * (1 + len(heads + costs))]]
    for row, records in rows.items():
        found = [measured(records, attack) for attack in columns]
        found.insert(-1, with_range(accuracies(attacked(records, "autoattack"), "gama")))
        found += [with_range(of_best_epoch(records, "pgd50")), f"{passes(records):.2f}"]
        lines.append([f"`{row}`", place[row], *found, with_range(seconds(records), 0)])
    text = f"{markdown(lines)}\n\n{legend(rows, list(columns))} {epochs_of(rows)}; ranks are by GAMA-PGD."
    missing = [f"`{row}`" for row in rows_said("cpu_cifar") if row not in rows]
    text += f" Without results so far: {', '.join(missing)}." if missing else ""
    return (
        "`python scripts/cpu_budget.py cpu_cifar` trains methods on CIFAR-10's first 10,000 images with a ResNet-18 of "
        f"width 8 whose stem has stride 2, all for equal epochs:\n\n{text}"
    )


def cpu_cifar_nfgsm() -> str:
    """N-FGSM of that comparison and with other settings, seed by seed: some of them collapse."""
    rows = by_row("cpu_cifar_nfgsm")
    if not rows:
        return ""
    columns = {"clean": "clean", "pgd50": "PGD-50", "gama": "GAMA-PGD"}
    lines = [["row", *columns.values(), "best epoch: PGD-50"], ["---", *["---:"] * (1 + len(columns))]]
    for row, records in rows.items():
        found = [*(accuracies(records, attack) for attack in columns), of_best_epoch(records, "pgd50")]
        lines.append([f"`{row}`", *(" / ".join(f"{one:.1f}" for one in seeds) for seeds in found)])
    records = [record for of_row in rows.values() for record in of_row]
    n = images(records, "pgd50")
    return (
        f"{markdown(lines)}\n\nAccuracy in percent of each seed on the first {n} test images; {machines(records)}; "
        f"{epochs_of(rows)}."
    )


def of_best_epoch(records: Records, attack: str) -> list[float]:
    """The accuracy in percent of each seed's best epoch on validation images."""
    return [record["best"][attack][0] for record in records]


def epochs_of(rows: Mapping[str, Records]) -> str:
    """How long rows are trained."""
    return f"{' or '.join(sorted({str(record['epochs']) for of in rows.values() for record in of}))} epochs"


def cpu_cifar_headline() -> str:
    """The candidates by held-out images, and what the winner reaches."""
    candidates, winner = by_row("cpu_cifar_headline"), by_row("cpu_cifar_headline_30")
    if not candidates:
        return ""
    held_out = {row: records[0]["diary"]["val/acc/robust"][-1] for row, records in candidates.items()}
    lines = [["candidate", "epochs", "minutes", "PGD-10 on held-out images"], ["---", *["---:"] * 3]]
    for row, (record,) in candidates.items():
        name = f"**`{row}`**" if held_out[row] == max(held_out.values()) else f"`{row}`"
        n = record["config"]["data"]["init_args"]["next_size"]
        low, high = Accuracy(held_out[row], n).interval
        found = f"{100 * held_out[row]:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
        lines.append([name, str(record["epochs"]), f"{minutes(record):.1f}", found])
    about = f"{n:,} held-out images, 95 % intervals over images"
    trained = [record for records in candidates.values() for record in records]
    chosen = f"{markdown(lines)}\n\nOne seed; {about}; {machines(trained)}."
    for row, (record,) in candidates.items():
        if 0.0 in (curve := record["diary"]["val/acc/robust"][1:]):
            epochs = ", ".join(str(epoch) for epoch, value in enumerate(curve, 2) if value == 0)
            chosen += (
                f" `{row}` overfitted catastrophically on the way: no image withstood PGD-10 after epoch {epochs}."
            )
    if not winner:
        return chosen
    columns = {
        "clean": "clean",
        "pgd20_last": "PGD-20",
        "pgd50_10": "PGD-50-10",
        "pgd50_margin": "PGD-50, margin",
        "autoattack": "AutoAttack",
        "autoattack_1000": "AutoAttack, 1,000 images",
    }
    first = next(iter(winner.values()))
    known = {name: f"{head}{only_seeds(first, name)}" for name, head in columns.items() if attacked(first, name)}
    lines = [["row", "epochs", "minutes", *known.values()], ["---", *["---:"] * (2 + len(known))]]
    for row, records in winner.items():
        spent = with_range([minutes(record) for record in records])
        found = [measured(records, attack) if attacked(records, attack) else "-" for attack in known]
        lines.append([f"`{row}`", str(records[0]["epochs"]), spent, *found])
    return f"{chosen}\n\n{markdown(lines)}\n\n{legend(winner, list(known))}"


def minutes(record: Mapping[str, Any]) -> float:
    """The minutes of training by the clock."""
    return float(sum(record["diary"]["seconds"]) / 60)


def mnist_compare() -> str:
    """The table of ``compare`` on six nets, as it was written."""
    file = RESULTS / "mnist_compare.md"
    return file.read_text().strip() if file.exists() else ""


def trivial() -> str:
    """Which methods learn the trivial classifier, over eps."""
    of_eps = {eps: by_row(f"trivial_{eps}") for eps in ("0.2", "0.3", "0.4")}
    lines = [["row", *(f"eps {eps}" for eps in of_eps), "slides, 0.3", "slides, 0.45"]]
    lines.append(["---", *["---:"] * (len(lines[0]) - 1)])
    for row in of_eps["0.3"]:
        found = [
            " / ".join(with_range(accuracies(rows[row], attack)) for attack in ("clean", "pgd40", "autoattack"))
            for rows in of_eps.values()
        ]
        lines.append([f"`{row}`", *found, *SLIDES.get(row, ("-", "-"))])
    attacks = ["clean", "pgd40", "autoattack"]
    told = [
        f"- Eps {eps}: {legend(rows, attacks)} {judged(rows)} {alarms_of(rows)}".rstrip()
        for eps, rows in of_eps.items()
    ]
    return f"{markdown(lines)}\n\n" + "\n".join(told)


def budget_nets() -> dict[str, Mapping[str, Any]]:
    """The records of the budget's nets that are honest, but for their number of classes, which is not kept."""
    found = {}
    for path in sorted(RESULTS.glob("cpu_*.json")):
        for label, record in read(path).get("rows", {}).items():
            if record["last"].keys() >= DEFAULT_TEST and "trivial" not in record["alarms"] and flattery(record) <= 5:
                found[f"{path.stem.removeprefix('cpu_')}, {label}"] = record
    return found


def alarm_rates() -> str:
    """How many honest nets raise an alarm, and how many others raise none."""
    results = read(RESULTS / "alarm_rates.json")
    nets = results["nets"].values()
    honest = [net for net in nets if is_honest(net)]
    others = [net for net in nets if net not in honest]
    false, missed = [net for net in honest if net["alarms"]], [net for net in others if not net["alarms"]]
    gaps = [net["default"] - net["autoattack"] for net in missed]
    trained = budget_nets()
    rang = [f"`{label}` ({', '.join(record['alarms'])})" for label, record in trained.items() if record["alarms"]]
    lines = [
        f"False alarms: {len(false)} of {len(honest)} nets. Missed: {len(missed)} of {len(others)} other nets"
        + (f", with gaps of up to {max(gaps):.1f} points." if gaps else "."),
        f"Digits, n = {results['n']}, nets trained naturally, by FGSM, R-FGSM and PGD at eps 0.03 to 0.3.",
        f"Of the {len(trained)} nets of the tables above (MNIST, n = 500) that are within 5 points and do not raise "
        f"`trivial`, {len(rang)} raised an alarm: {'; '.join(rang)}.",
    ]
    if older := sum("worst" not in record for record in trained.values()):
        lines.append(f"On {older} of them the alarms were an earlier version's: 200 images, 500 queries of Square.")
    return " ".join(lines)


def free_forgetting() -> str:
    """Free training on batches of one class."""
    results = read(RESULTS / "free_forgetting.json")
    replays = list(next(iter(results["rows"].values())))
    lines = [["batches", *(f"{m}: clean / PGD-20" for m in replays)], ["---", *["---:"] * len(replays)]]
    for order, of_m in results["rows"].items():
        cells = [" / ".join(with_range(of_m[m][attack]) for attack in ("clean", "pgd20")) for m in replays]
        lines.append([order, *cells])
    return (
        f"{markdown(lines)}\n\nDigits, n = {results['n']}, eps {results['eps']:g}, {results['epochs']} epochs of data, "
        f"{len(results['seeds'])} seeds: accuracy in percent, mean and range."
    )


BLOCKS: dict[str, Callable[[], str]] = {
    function.__name__: function
    for function in (
        single_step,
        overfitting,
        delayed,
        data_size,
        cyclic_mixed,
        coreset,
        coreset_cold,
        coreset_cifar,
        unseen,
        cpu_cifar,
        cpu_cifar_nfgsm,
        cpu_cifar_headline,
        mnist_compare,
        trivial,
        free_forgetting,
        selection_speed,
        selection_error,
        benchmark,
        benchmark_full,
        step_profile,
        peak_memory,
        kept_memory,
        attack_speed,
        autoattack_speed,
        digits_bf16,
        default_test_cost,
        alarm_rates,
        autoattack_bf16,
        decoding_speed,
        start_up_speed,
    )
}


def filled(text: str) -> str:
    """The text with all blocks rewritten.

    Raises:
        KeyError: If a block has an unknown name.
        ValueError: If a block does not end.
    """

    def write(found: re.Match[str]) -> str:
        if "<!-- results:" in found[2]:
            raise ValueError(f"the block {found[1]} does not end with <!-- end of results -->")
        written = "".join(f"{part}\n\n" for part in (BLOCKS[found[1]](),) if part)
        return f"<!-- results: {found[1]} -->\n\n{written}<!-- end of results -->"

    return re.sub(r"<!-- results: (\w+) -->(.*?)<!-- end of results -->", write, text, flags=re.DOTALL)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only say whether README.md is up to date")
    asked = parser.parse_args(args)
    before = README.read_text()
    after = filled(before)
    if asked.check and after != before:
        sys.exit("README.md differs from scripts/results: run python scripts/readme_results.py")
    if not asked.check:
        README.write_text(after)


if __name__ == "__main__":
    main()
