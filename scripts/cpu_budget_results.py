"""The results of ``cpu_budget.py``: their provenance, their file and their table."""

import fcntl
import hashlib
import inspect
import json
import logging
import math
import os
import platform
import re
import subprocess
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import Any

import lightning
import torch
from cpu_budget_coresets import has_coreset, image_passes, mean_speed_up, times, total

import lit_robust
from lit_robust.data import ImageDataModule

HERE = Path(__file__).parent

#: What the table of a set with coresets says more of each row.
OF_CORESETS = ["selection CPU s", "speed-up", "wall-clock speed-up", "image passes (M)"]
TOLD_OF_CORESETS = (
    " Selections' CPU seconds are not in those of training, but speed-ups, against the same method and seed on all "
    "images, and image passes (forwards and backwards, in millions) are of both. Wall-clock speed-ups are those "
    "of the seeds whose trainings did not wait for the processor. The gradient error is that of the weighted sum of "
    "the last layer's gradients over the coreset, relative to all images', when it is selected."
)


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out warnings and Lightning's messages, which repeat for each trainer."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# Provenance.


def md5_of(data: ImageDataModule) -> dict[str, str]:
    """The md5 of the images (as bytes) and labels of training, validation and test, in order."""
    loaders = {
        "train": data.plain_train_dataloader(),
        "val": data.val_dataloader(),
        "test": data.test_dataloader(),
    }
    sums = {}
    for name, loader in loaders.items():
        md5 = hashlib.md5()
        for batch in loader:
            md5.update((255 * batch.x).round().to(torch.uint8).numpy().tobytes())
            md5.update(batch.y.numpy().tobytes())
        sums[name] = md5.hexdigest()
    return sums


def code_of(*parts: Any) -> str:
    """The md5 of the files of lit_robust that define the classes of these parts."""
    classes = {cls for part in parts for cls in type(part).__mro__ if cls.__module__.startswith("lit_robust.")}
    files = sorted({inspect.getfile(cls) for cls in classes})
    return hashlib.md5(b"".join(Path(file).read_bytes() for file in files)).hexdigest()


def is_honest(net: Mapping[str, Any]) -> bool:
    """Whether a net of alarm_rates.py predicts several classes, and its default test is within 5 points of AutoAttack.

    A record without the number of classes is older; its net predicts one class if the alarm ``trivial`` says so.
    """
    several = net["classes"] > 1 if "classes" in net else "trivial" not in net["alarms"]
    return bool(several and net["default"] - net["autoattack"] <= 5)


def versions() -> dict[str, str]:
    """The versions of the packages that affect the numbers."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "lit_robust": lit_robust.__version__,
    }


def hardware() -> dict[str, Any]:
    """The processor, its number of cores, and the number of threads in use."""
    try:
        info = Path("/proc/cpuinfo").read_text()
        processor = re.search(r"model name\s*: (.*)", info)
    except OSError:
        processor = None
    name = processor[1] if processor else platform.processor() or platform.machine()
    capability = torch.backends.cpu.get_cpu_capability()
    return {"processor": name, "capability": capability, "cores": os.cpu_count(), "threads": torch.get_num_threads()}


def commit() -> str:
    """The commit of the working tree, with a plus sign if lit_robust has uncommitted changes."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "../lit_robust") else "")


# The file of results.


def as_text(tree: Any, depth: int = 3, indent: str = "") -> str:
    """JSON with one line per value at this depth."""
    if depth == 0 or not isinstance(tree, dict) or not tree:
        return json.dumps(tree)
    lines = [f"{indent} {json.dumps(key)}: {as_text(value, depth - 1, indent + ' ')}" for key, value in tree.items()]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}" + ("" if indent else "\n")


def indented(tree: Any) -> str:
    """JSON with one line per number."""
    return json.dumps(tree, indent=1) + "\n"


@contextmanager
def opened(path: Path, text: Callable[[Any], str] = as_text) -> Iterator[dict[str, Any]]:
    """The results, to be changed under a lock and written atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        results = read(path)
        yield results
        new = path.with_suffix(".new")
        new.write_text(text(results))
        new.replace(path)
    finally:
        os.close(lock)


def read(path: Path) -> dict[str, Any]:
    """The results so far."""
    return json.loads(path.read_text()) if path.exists() else {}


def by_row(path: Path) -> dict[str, list[Mapping[str, Any]]]:
    """The records by row, one for each seed."""
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for label, record in read(path).get("rows", {}).items():
        rows.setdefault(label.partition("@")[0], []).append(record)
    return rows


def key_of(record: Mapping[str, Any]) -> Any:
    """What must be unchanged for a row to count as done; test attacks are left out because each is checked by name."""
    model = record["config"]["model"]
    arguments = {key: value for key, value in model["init_args"].items() if key != "test_attacks"}
    return (
        record["config"] | {"model": model | {"init_args": arguments}},
        record["md5"],
        record["versions"]["lit_robust"],
    )


def rounded(epochs: list[dict[str, float]]) -> dict[str, list[float | None]]:
    """The diary as a list per metric, with None where an epoch has no value or NaN (the cosine of zero gradients)."""
    names = dict.fromkeys(name for epoch in epochs for name in epoch)
    table = {name: [epoch.get(name, math.nan) for epoch in epochs] for name in names}
    return {name: [None if math.isnan(x) else float(f"{x:.4g}") for x in row] for name, row in table.items()}


# The table.


def with_range(values: Sequence[float], digits: int = 1) -> str:
    """The mean and, of several values, the smallest and the largest."""
    spread = f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def reports(diary: Mapping[str, list[float]]) -> str:
    """The epochs, counted from 1, in which a monitor reported overfitting, and by which rules; a dash without one."""
    flag = "train/catastrophic_overfitting"
    if flag not in diary:
        return "-"
    rules = {key.removeprefix(f"{flag}/"): flags for key, flags in diary.items() if key.startswith(f"{flag}/")}
    found = []
    for epoch, reported in enumerate(diary[flag]):
        said = ", ".join(name for name, flags in rules.items() if flags[epoch])
        found += [f"{epoch + 1} ({said})"] * bool(reported)
    return ", ".join(found) or "none"


def table(results: Mapping[str, Any]) -> str:
    """The results as a table in Markdown, with a legend."""
    rows = results.get("rows", {})
    if not rows:
        return "There are no results yet."
    found = {name: cell[3] for record in rows.values() for name, cell in record["last"].items()}
    known = [name for record in rows.values() for name in record["config"]["model"]["init_args"]["test_attacks"]]
    columns = [name for name in dict.fromkeys(["clean", *known, *found]) if name in found]
    first = known[0]
    of_coresets = OF_CORESETS if any(map(has_coreset, rows.values())) else []
    heads = ["row", *(f"{name} ({found[name]})" for name in columns), f"best: {first}", "PGD on validation images"]
    heads += ["CPU s per epoch", "CPU s", *of_coresets, "forwards", "backwards", "passes", "model", "reported in epoch"]
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1)]
    for name, record in rows.items():
        diary, last = record["diary"], record["last"]
        cells = [cell(last.get(column)) for column in columns] + [cell(record["best"].get(first))]
        cells.append(f"{100 * diary['val/acc/robust'][-1]:.1f}")
        forwards, backwards = (mean(diary[key]) for key in ("forwards", "backwards"))
        passes = forwards / 3 + 2 * backwards / 3
        cells += [f"{min(diary['cpu_seconds']):.1f}", f"{sum(diary['cpu_seconds']):.0f}"]
        cells += coreset_cells([record], rows.values()) if of_coresets else []
        cells += [f"{forwards:.2f}", f"{backwards:.2f}", f"{passes:.2f}"]
        lines.append([name, *cells, f"{record['passes']:.3g}" if record["passes"] else "", reports(diary)])
    machine = next(iter(rows.values()))["hardware"]
    legend = (
        "Accuracy in percent on the first n test images (n in parentheses), with 95 % Wilson intervals, of the last "
        "checkpoint and of the best on validation images. PGD on validation images is what rows are chosen by, not on "
        "test images. CPU seconds cover the training batches of the fastest epoch "
        f"and of all epochs (threads: {machine['threads']}, {machine['processor']}); wall-clock time would depend on "
        "other processes. Passes per batch are counted, a forward as 1/3 and a backward as 2/3; model is the cost "
        "model's number. The last column has the epochs in which a CatastrophicOverfittingMonitor reported, and by "
        "which rule."
    )
    legend += TOLD_OF_CORESETS if of_coresets else ""
    return "\n\n".join([markdown(lines), legend, *over_seeds(rows, first, of_coresets)])


def over_seeds(rows: Mapping[str, Any], attack: str = "pgd40", of_coresets: Sequence[str] = ()) -> list[str]:
    """A table with one line per row that was trained with several seeds, if there are any; perhaps ``OF_CORESETS``."""
    groups: dict[str, list[Any]] = {}
    for name, record in rows.items():
        row, _, seed = name.partition("@")
        if seed:
            groups.setdefault(row, []).append(record)
    if not groups:
        return []
    heads = ["row", "seeds", "clean", attack, "final training loss", "CPU s", *of_coresets, "adversarial from epoch"]
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1)]
    for row, records in groups.items():
        diaries = [record["diary"] for record in records]
        accuracies = [[record["last"][name][0] for record in records] for name in ("clean", attack)]
        costs = [[diary["train/loss"][-1] for diary in diaries], [sum(diary["cpu_seconds"]) for diary in diaries]]
        starts = [str(diary["train/adversarial"].index(1.0) + 1) for diary in diaries]
        cells = [spread(values, digits) for values, digits in zip(accuracies + costs, (1, 1, 3, 0), strict=True)]
        cells += coreset_cells(records, rows.values()) if of_coresets else []
        lines.append([row, str(len(records)), *cells, ", ".join(starts)])
    return [markdown(lines), "Mean over the seeds, with minimum and maximum."]


def coreset_cells(records: Sequence[Mapping[str, Any]], among: Iterable[Mapping[str, Any]]) -> list[str]:
    """The columns ``OF_CORESETS`` of one row's seeds, as means, where ``among`` are all rows."""
    among = [*among]
    selecting = mean(total(record, "selection_cpu_seconds") for record in records)
    speed_ups = [times(mean_speed_up(records, among, clock)) for clock in ("cpu_seconds", "seconds")]
    return [f"{selecting:.0f}", *speed_ups, f"{mean(map(image_passes, records)) / 1e6:.2f}"]


def spread(values: list[float], digits: int) -> str:
    """Mean, minimum and maximum."""
    return f"{mean(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def markdown(lines: list[list[str]]) -> str:
    """A table in Markdown; the second line is the rule below the headings."""
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(found: list[float] | None) -> str:
    """An accuracy with its interval."""
    return f"{found[0]:.1f} ({found[1]:.1f}-{found[2]:.1f})" if found else ""
