"""What only a GPU can show, in order of value and within 10 minutes; where there is none, it says so and ends.

    python scripts/gpu_check.py --out FOLDER --root data

1. ``gpu_waits.json``: does the host wait for the device in a training step? The attack and the update of PGDAT, TRADES
   and FastAT run under ``torch.cuda.set_sync_debug_mode("error")``, with a fused optimizer, in bf16-mixed.
2. ``benchmark_*_gpu*.json``: some methods beside their floors, as they are and compiled (``benchmark.py``).
3. ``fastat_*``: FastAT on CIFAR-10 with PreActResNet-18 for 15 epochs, and its test on 1,000 images in float32 (left
   out where CIFAR-10 is not in ``--root``).

Every part is a process of its own and has its seconds; one that takes longer is ended, and what it has written stays.
``gpu_check.json`` has the seconds and the exit status of each, -9 where it was ended.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmark import METHODS, RESULTS, batches, module_of
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from measured import about, builder
from torch import nn

HERE = Path(__file__).parent
RECIPE = HERE.parent / "configs/recipes/free_fast/cifar10_preact_resnet18_fast.yaml"
#: Batches before the host may not wait: checks, memory, cuDNN's choices and, in eval mode, folding.
WARM, WATCHED = 3, 6


class Watched(Callback):
    """Let torch raise an error where the host waits for the device between the start and the end of a batch."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin; not in the epoch's last batch, where its metrics are read."""
        if WARM <= batch_idx < WARM + WATCHED:
            torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(self, *_: Any) -> None:
        """End."""
        torch.cuda.set_sync_debug_mode("default")

    def on_exception(self, *_: Any) -> None:
        """End, before Lightning moves the module back."""
        torch.cuda.set_sync_debug_mode("default")


def first_wait(
    name: str, net: nn.Module, accelerator: str, shape: tuple[int, ...] = (3, 32, 32), classes: int = 10
) -> str | None:
    """Where a step of a method's training first waits for the device, and why; None if it does not."""
    seed_everything(0, verbose=False)
    fused = partial(torch.optim.SGD, lr=0.01, momentum=0.9, fused=True)
    module = module_of(*METHODS[name], net, classes, optimizer=fused)
    x, y = torch.rand(16, *shape), torch.randint(classes, (16,))
    trainer = Trainer(
        max_epochs=1, accelerator=accelerator, devices=1, precision="bf16-mixed", logger=False, callbacks=[Watched()],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    try:
        trainer.fit(module, batches(x, y, WARM + WATCHED + 1))
    except RuntimeError as error:
        if "synchronizing" not in str(error):
            raise
        places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
        return f"{error} ({' > '.join(places[-4:])})"
    return None


def waits(out: Path) -> None:
    """Write where each method's step waits."""
    found = {name: first_wait(name, builder("resnet18", 0)(), "gpu") for name in ("PGDAT", "TRADES", "FastAT")}
    record = {"waits": found, "net": "resnet18", "optimizer": "SGD, fused", **about(torch.device("cuda"))}
    (out / "gpu_waits.json").write_text(json.dumps(record, indent=1) + "\n")


def parts(out: Path, root: Path) -> dict[str, tuple[list[str], int]]:
    """The arguments of each part's process and its seconds; together they are below 10 minutes."""
    speed = [f"{HERE}/benchmark.py", "--accelerator", "gpu", "--width", "0", "--batch", "128"]
    name = "benchmark_resnet18_full_gpu"
    as_it_is = ["--repeats", "2", "--methods", "PGDAT", "PGDAT, eval", "FastAT", "NuAT", "TRADES"]
    compiled = ["--compile", "--repeats", "1", "--methods", "PGDAT, eval", "FastAT"]
    found = {
        "waits": ([__file__, "--out", str(out), "--only-waits"], 40),
        "benchmark": ([*speed, *as_it_is, "--out", f"{out}/{name}.json"], 110),
        "benchmark, compiled": ([*speed, *compiled, "--out", f"{out}/{name}_compiled.json"], 110),
    }
    if (root / "cifar-10-batches-py").is_dir():
        run = ["-c", str(RECIPE), "--data.init_args.root", str(root), "--trainer.logger.save_dir", f"{out}/runs"]
        run += ["--trainer.logger.name", "fastat", "--trainer.enable_progress_bar", "false"]
        gpu = ["-c", str(HERE.parent / "configs/trainer/gpu.yaml")]
        test = ["--data.init_args.test_size", "1000", "--trainer.precision", "32-true", "--trainer.accelerator", "gpu"]
        test += ["--ckpt_path", f"{out}/runs/fastat"]
        found["FastAT, training"] = (["-m", "lit_robust", "fit", *run, *gpu], 130)
        found["FastAT, test"] = (["-m", "lit_robust", "test", *run, *test], 190)
    return found


def timed(words: list[str], limit: int) -> dict[str, float]:
    """Seconds and exit status of a process of Python."""
    begun = time.perf_counter()
    with subprocess.Popen([sys.executable, *words], env=os.environ | {"PYTHONPATH": str(HERE.parent)}) as process:
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
    return {"seconds": round(time.perf_counter() - begun, 1), "status": status}


def main() -> None:
    """Run every part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--root", type=Path, default=Path(os.environ.get("LIT_ROBUST_DATA", "data")))
    parser.add_argument("--only-waits", action="store_true", help="the first part, in this process")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("there is no GPU here, so nothing was measured: run this on a machine that has one.")
    out = args.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    if args.only_waits:
        waits(out)
        return
    record: dict[str, Any] = about(torch.device("cuda")) | {"parts": {}}
    for name, (words, limit) in parts(out, args.root.absolute()).items():
        record["parts"][name] = timed(words, limit)
        print(name, record["parts"][name], flush=True)
        (out / "gpu_check.json").write_text(json.dumps(record, indent=1) + "\n")
    for file in [*out.glob("runs/**/*.csv"), *out.glob("runs/**/config.yaml")]:
        shutil.copy(file, out / f"fastat_{file.name}")


if __name__ == "__main__":
    main()
