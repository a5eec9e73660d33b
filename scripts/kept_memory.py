"""Time ``trainer.fit`` on a CPU where glibc keeps freed memory, as in the command, beside a fit where it does not.

    python scripts/kept_memory.py     # writes scripts/results/kept_memory.json

By default glibc returns memory that a batch frees to the system, which clears it for the next batch. Each method and
precision is trained on a few batches in two processes, one as it is and one that calls ``keep_freed_memory``, in turns,
every second time in the other order. Reported are the median of all batches, the median and the range of the ratios of
single turns, and the highest resident memory of the whole process. The file is written after each row; what it has of
the same settings and code stays.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import torch
from benchmark import METHODS, PRECISIONS, TakingTurns, asked, codes, fit, module_of, parser_of
from lightning.pytorch import seed_everything
from measured import Table, about, builder, count, ratio, resident

from lit_robust.host_memory import keep_freed_memory

RESULT = Path(__file__).parent / "results/kept_memory.json"


def trained(args: argparse.Namespace, name: str, precision: str) -> dict[str, Any]:
    """Seconds of each batch of a fit, and the highest resident memory of this process in bytes."""
    seed_everything(0, verbose=False)
    net = builder(args.net, args.width, args.shape[0])()
    module = module_of(*METHODS[name], net)
    x, y = torch.rand(args.batch, *args.shape), torch.randint(10, (args.batch,))
    times: dict[str, list[float]] = {}
    fit(module, TakingTurns("fit", {}, times), args, x, y, precision=precision)
    return {"seconds": times["fit"], "bytes": resident(peak=True)}


def process(*words: str) -> dict[str, Any]:
    """What a process of its own measures."""
    told = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(told.rpartition("measured: ")[2])


def row(turns: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """A method's seconds and memory, as it is and kept."""
    times = [{how: found["seconds"] for how, found in turn.items()} for turn in turns]
    return ratio(times, "kept", "returned") | {
        how: {
            "seconds": round(median(one for turn in times for one in turn[how]), 4),
            "megabytes": round(median(turn[how]["bytes"] for turn in turns) / 1e6),
        }
        for how in ("returned", "kept")
    }


def main() -> None:
    """Run every method in both ways, and write the table."""
    parser = parser_of(__doc__, accelerators=["cpu"])
    parser.set_defaults(methods=["NFGSM", "PGDAT, eval"])
    parser.add_argument("--batches", type=count, default=8, help="timed batches of each process")
    parser.add_argument("--turns", type=count, default=3)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--only", choices=PRECISIONS, help="train in this precision; what each process is asked for")
    parser.add_argument("--kept", action="store_true", help="and keep freed memory")
    args = asked(parser)
    if args.only:
        if args.kept and not keep_freed_memory():
            sys.exit("glibc cannot be told to keep memory here, or has been told otherwise: unset MALLOC_ variables.")
        print("measured:", json.dumps(trained(args, *args.methods, args.only)))
        return
    settings = {"net": args.net, "width": args.width, "shape": [*args.shape], "batch": args.batch}
    settings |= {"batches": args.batches, "turns": args.turns, **about(torch.device("cpu"))}
    fits = {f"{name}, {precision}": (name, precision) for name in METHODS for precision in PRECISIONS}
    code = codes(args)
    table = Table(args.out, settings, {label: code[name] for label, (name, _) in fits.items()})
    for label in table.left(f"{name}, {precision}" for name in args.methods for precision in PRECISIONS):
        name, precision = fits[label]
        words = [*sys.argv[1:], "--methods", name, "--only", precision]
        both = {"returned": words, "kept": [*words, "--kept"]}
        orders = [sorted(both, reverse=turn % 2 == 0) for turn in range(args.turns)]
        found = row([{how: process(*both[how]) for how in order} for order in orders])
        table.put(label, found)
        print(label, found, flush=True)


if __name__ == "__main__":
    main()
