"""Measure the peak memory of each method's ``trainer.fit`` beside natural training's.

    python scripts/peak_memory.py                      # writes scripts/results/peak_memory.json
    python scripts/peak_memory.py --accelerator gpu --width 0

Each method runs in a process of its own, so that no other leaves memory behind. Its peak is what it holds at most in a
fit of a few batches beyond what it held before: on a GPU by ``max_memory_allocated``, on a CPU by the highest resident
memory (Linux's ``VmHWM``, reset before the fit). There, glibc is told to return freed memory at once, so that what it
would keep is not counted. A fit on two images comes first, which loads libraries and code; the net's weights, gradients
and momentum are counted. The file is written after each method; what it has of the same settings and code stays.
"""

import argparse
import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from benchmark import METHODS, PRECISIONS, asked, batches, codes, device_of, module_of, parser_of
from lightning.pytorch import Trainer, seed_everything
from measured import Table, about, builder, reset_peak, resident

RESULT = Path(__file__).parent / "results/peak_memory.json"
#: Batches of a fit; from the second one on, all buffers exist.
BATCHES = 4
#: Blocks of this size in bytes and larger ones go back to the system when they are freed.
ALLOCATOR = dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), str(2**16)) | {"MALLOC_ARENA_MAX": "1"}


def fit(args: argparse.Namespace, name: str, images: int) -> Any:
    """Train a new net on random images, and return what must live on until memory is read."""
    seed_everything(0, verbose=False)
    net = builder(args.net, args.width, args.shape[0])()
    module = module_of(*METHODS[name], net)
    trainer = Trainer(
        max_epochs=1, accelerator=args.accelerator, devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, precision=args.precision,
    )  # fmt: skip
    x, y = torch.rand(images, *args.shape), torch.randint(10, (images,))
    trainer.fit(module, batches(x, y, BATCHES))
    return module


def peak(args: argparse.Namespace, name: str) -> int:
    """Bytes that a fit holds at most beyond those before it."""
    fit(args, name, 2)
    gc.collect()
    if args.accelerator == "gpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        fit(args, name, args.batch)
        return torch.cuda.max_memory_allocated() - before
    before = reset_peak()
    fit(args, name, args.batch)
    return resident(peak=True) - before


def main() -> None:
    """Run every method in a process of its own, and write the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--precision", default=PRECISIONS[0], choices=PRECISIONS)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--only", choices=[*METHODS], help="print this method's bytes; what each process is asked for")
    args = asked(parser)
    if args.only:
        print(f"bytes: {peak(args, args.only)}")
        return
    settings = {
        "net": args.net, "width": args.width, "shape": [*args.shape], "batch": args.batch,
        "precision": args.precision, "accelerator": args.accelerator, **about(device_of(args)),
    }  # fmt: skip
    code = codes(args)  # a row also depends on natural training's
    table = Table(args.out, settings, {name: code["Natural"] + md5 for name, md5 in code.items()})
    for name in table.left(dict.fromkeys(["Natural", *args.methods])):
        words = [sys.executable, __file__, *sys.argv[1:], "--only", name]
        told = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | ALLOCATOR).stdout
        held = int(told.rpartition("bytes: ")[2]) / 1e6
        natural = table.record()["rows"].get("Natural", {"megabytes": held})["megabytes"]
        row = {"megabytes": round(held, 1), "to_natural": round(held / natural, 3)}
        table.put(name, row)
        print(name, row, flush=True)


if __name__ == "__main__":
    main()
