"""What a result of ``cpu_budget.py`` says about where it comes from, the file it is kept in, and its table."""

import fcntl
import hashlib
import inspect
import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import Any

import lightning
import torch

import lit_robust
from lit_robust.data import ImageDataModule

HERE = Path(__file__).parent

# What a result must say.


def md5_of(data: ImageDataModule) -> dict[str, str]:
    """The md5 of the images, as bytes, and labels that are trained, validated and tested on, in order."""
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
    """The md5 of the files that define the classes of these parts, as far as they are lit_robust's."""
    classes = {cls for part in parts for cls in type(part).__mro__ if cls.__module__.startswith("lit_robust.")}
    files = sorted({inspect.getfile(cls) for cls in classes})
    return hashlib.md5(b"".join(Path(file).read_bytes() for file in files)).hexdigest()


def versions() -> dict[str, str]:
    """Of what decides the numbers."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "lit_robust": lit_robust.__version__,
    }


def hardware() -> dict[str, Any]:
    """The processor, how many of its cores there are, and how many threads are used."""
    try:
        info = Path("/proc/cpuinfo").read_text()
        processor = re.search(r"model name\s*: (.*)", info)
    except OSError:
        processor = None
    name = processor[1] if processor else platform.processor() or platform.machine()
    capability = torch.backends.cpu.get_cpu_capability()
    return {"processor": name, "capability": capability, "cores": os.cpu_count(), "threads": torch.get_num_threads()}


def commit() -> str:
    """The commit of the working tree, with a plus sign where it has changed since."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "../lit_robust") else "")


# The file of results.


@contextmanager
def opened(path: Path) -> Iterator[dict[str, Any]]:
    """The results, to be changed; nobody else changes them meanwhile, and they are written all at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        results = read(path)
        yield results
        new = path.with_suffix(".new")
        new.write_text(as_text(results))
        new.replace(path)
    finally:
        os.close(lock)


def read(path: Path) -> dict[str, Any]:
    """The results so far."""
    return json.loads(path.read_text()) if path.exists() else {}


def as_text(tree: Any, depth: int = 3, indent: str = "") -> str:
    """JSON with one line for what is ``depth`` deep."""
    if depth == 0 or not isinstance(tree, dict) or not tree:
        return json.dumps(tree)
    lines = [f"{indent} {json.dumps(key)}: {as_text(value, depth - 1, indent + ' ')}" for key, value in tree.items()]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}" + ("" if indent else "\n")


def key_of(record: Mapping[str, Any]) -> Any:
    """What must not have changed for a row to count as done; the test's attacks may, each is asked for by itself."""
    model = record["config"]["model"]
    arguments = {key: value for key, value in model["init_args"].items() if key != "test_attacks"}
    return (
        record["config"] | {"model": model | {"init_args": arguments}},
        record["md5"],
        record["versions"]["lit_robust"],
    )


def rounded(epochs: list[dict[str, float]]) -> dict[str, list[float | None]]:
    """The diary, number by number, and None where an epoch has none or NaN (the cosine of gradients that vanish)."""
    names = dict.fromkeys(name for epoch in epochs for name in epoch)
    table = {name: [epoch.get(name, math.nan) for epoch in epochs] for name in names}
    return {name: [None if math.isnan(x) else float(f"{x:.4g}") for x in row] for name, row in table.items()}


# The table.


def reports(diary: Mapping[str, list[float]]) -> str:
    """The epochs, counted from 1, in which a monitor has reported overfitting, and the rules that said so."""
    flag = "train/catastrophic_overfitting"
    rules = {key.removeprefix(f"{flag}/"): flags for key, flags in diary.items() if key.startswith(f"{flag}/")}
    found = []
    for epoch, reported in enumerate(diary[flag]):
        said = ", ".join(name for name, flags in rules.items() if flags[epoch])
        found += [f"{epoch + 1} ({said})"] * bool(reported)
    return ", ".join(found) or "none"


def table(results: Mapping[str, Any]) -> str:
    """The results as a table in Markdown, and what its numbers are."""
    rows = results.get("rows", {})
    if not rows:
        return "There are no results yet."
    found = {name: cell[3] for record in rows.values() for name, cell in record["last"].items()}
    known = [name for record in rows.values() for name in record["config"]["model"]["init_args"]["test_attacks"]]
    columns = [name for name in dict.fromkeys(["clean", *known, *found]) if name in found]
    heads = ["row", *(f"{name} ({found[name]})" for name in columns), "best: pgd40"]
    heads += ["CPU s an epoch", "in all", "forwards", "backwards", "passes", "model", "reported in epoch"]
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1)]
    for name, record in rows.items():
        diary, last = record["diary"], record["last"]
        cells = [cell(last.get(column)) for column in columns] + [cell(record["best"].get("pgd40"))]
        forwards, backwards = (mean(diary[key]) for key in ("forwards", "backwards"))
        passes = forwards / 3 + 2 * backwards / 3
        cells += [f"{min(diary['cpu_seconds']):.1f}", f"{sum(diary['cpu_seconds']):.0f}"]
        cells += [f"{forwards:.2f}", f"{backwards:.2f}", f"{passes:.2f}"]
        lines.append([name, *cells, f"{record['passes']:.3g}" if record["passes"] else "", reports(diary)])
    machine = next(iter(rows.values()))["hardware"]
    legend = (
        "Percent of so many first test images that survive, with 95 % Wilson intervals; the last checkpoint, and the "
        "best by validation images. CPU seconds are those that the process spent on the training batches of its "
        f"fastest epoch and of all ({machine['threads']} thread, {machine['processor']}), because other processes "
        "stretch the time on the wall. Passes of a batch are counted: a forward is a third and a backward two; beside "
        "them what the cost model says. Last, the epochs in which a CatastrophicOverfittingMonitor spoke, and by "
        "which rule."
    )
    return "\n\n".join([markdown(lines), legend, *over_seeds(rows)])


def over_seeds(rows: Mapping[str, Any]) -> list[str]:
    """Rows that were trained from several seeds in one line each, if there are any."""
    groups: dict[str, list[Any]] = {}
    for name, record in rows.items():
        row, _, seed = name.partition("@")
        if seed:
            groups.setdefault(row, []).append(record)
    if not groups:
        return []
    heads = ["row", "seeds", "clean", "pgd40", "training loss at the end", "CPU s in all", "adversarial from epoch"]
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1)]
    for row, records in groups.items():
        diaries = [record["diary"] for record in records]
        accuracies = [[record["last"][name][0] for record in records] for name in ("clean", "pgd40")]
        costs = [[diary["train/loss"][-1] for diary in diaries], [sum(diary["cpu_seconds"]) for diary in diaries]]
        starts = [str(diary["train/adversarial"].index(1.0) + 1) for diary in diaries]
        cells = [spread(values, digits) for values, digits in zip(accuracies + costs, (1, 1, 3, 0), strict=True)]
        lines.append([row, str(len(records)), *cells, ", ".join(starts)])
    return [markdown(lines), "The mean over the seeds, and the least and the greatest."]


def spread(values: list[float], digits: int) -> str:
    """Mean, least and greatest."""
    return f"{mean(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def markdown(lines: list[list[str]]) -> str:
    """A table in Markdown; its second line is the rule below the heads."""
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(found: list[float] | None) -> str:
    """An accuracy with its interval."""
    return f"{found[0]:.1f} ({found[1]:.1f}-{found[2]:.1f})" if found else ""
