"""Time what a command or an import waits for: a new process for each, beside torch and Lightning alone.

    python scripts/start_up_speed.py     # writes scripts/results/start_up_speed.json

The processes take turns; the first turn, which fills the disk's cache, is not timed. Reported are medians of seconds
and of CPU seconds, and of the ratios to another row of the same turn. A bare interpreter is a row of its own.
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from cpu_budget_results import indented, opened
from measured import about, count

RESULT = Path(__file__).parent / "results/start_up_speed.json"
#: What LightningCLI imports.
LIGHTNING = "import jsonargparse; from lightning.pytorch.cli import LightningCLI"
BORING = "from lightning.pytorch.demos.boring_classes import BoringDataModule, DemoModel"


class Row(NamedTuple):
    """A process's arguments, and the row that it is compared with."""

    words: list[str]
    beside: str | None = None


ROWS = {
    "a bare interpreter": Row(["-c", "pass"]),
    "`lit-robust --version`": Row(["-m", "lit_robust", "--version"], "a bare interpreter"),
    "`import torch`": Row(["-c", "import torch"]),
    "`import lit_robust.attacks`": Row(["-c", "import lit_robust.attacks"], "`import torch`"),
    "`import` of LightningCLI": Row(["-c", LIGHTNING]),
    "`import` of our command line": Row(["-c", "import lit_robust.cli.robust_cli"], "`import` of LightningCLI"),
    "LightningCLI's `fit --help`": Row(
        ["-c", f"{LIGHTNING}; {BORING}; LightningCLI(DemoModel, BoringDataModule, args=['fit', '--help'])"]
    ),
    "`lit-robust fit --help`": Row(["-m", "lit_robust", "fit", "--help"], "LightningCLI's `fit --help`"),
}


def seconds_of(words: list[str]) -> tuple[float, float]:
    """Seconds and CPU seconds of a process of Python."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Run and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=count, default=9)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    turns = [{name: seconds_of(row.words) for name, row in ROWS.items()} for _ in range(args.turns + 1)][1:]
    found = {}
    for name, row in ROWS.items():
        seconds, cpu_seconds = (round(median(turn[name][clock] for turn in turns), 3) for clock in (0, 1))
        found[name] = {"seconds": seconds, "cpu_seconds": cpu_seconds}
        if row.beside is not None:
            ratio = median(turn[name][0] / turn[row.beside][0] for turn in turns)
            found[name] |= {"beside": row.beside, "ratio": round(ratio, 3)}
        print(name, found[name], flush=True)
    with opened(args.out, indented) as results:  # at the end, as each turn has all rows
        results.clear()
        results |= {"turns": args.turns, "rows": found, **about(torch.device("cpu"))}


if __name__ == "__main__":
    main()
