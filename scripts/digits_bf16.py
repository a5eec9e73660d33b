"""Train on scikit-learn's digits in float32 and in bf16-mixed, with three seeds: does bfloat16 cost accuracy?

    python scripts/digits_bf16.py     # writes scripts/results/digits_bf16.json
    python scripts/digits_bf16.py --again     # trains what is there in float32 once more, on this processor

The method and schedule are the quickstart's, in batches of 32, with its net of three convolutions and with a ResNet-18,
which has BatchNorms; the tests are in float32. CPU seconds are those of the training's batches, and depend on the
processor: where it emulates bfloat16, training takes longer. Nets that are in the file are not trained again.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import torch
from cpu_budget_results import opened, read
from lightning.pytorch import Trainer, seed_everything
from measured import about
from torch import nn

from lit_robust.attacks import PGD
from lit_robust.data import DigitsDataModule
from lit_robust.defenses import PGDAT
from lit_robust.nets import digits_cnn, resnet18
from lit_robust.schedules import Cyclic

RESULT = Path(__file__).parent / "results/digits_bf16.json"
SEEDS, EPS = (0, 1, 2), 0.15


class Row(NamedTuple):
    """A net, and how long it is trained."""

    build: Callable[[], nn.Module]
    epochs: int


NETS = {
    "3 convolutions": Row(partial(digits_cnn, width=8), 30),
    "ResNet-18 of width 8": Row(partial(resnet18, in_channels=1, width=8, mean=None, std=None), 10),
}
TESTS = {"pgd20": PGD(EPS, 0.02, steps=20, keep="worst")}


def train(row: Row, precision: str, seed: int) -> dict[str, float]:
    """Accuracies in percent and seconds of one training."""
    seed_everything(seed, verbose=False)
    module = PGDAT(
        row.build(), 10, PGD(EPS, 0.05, steps=7), test_attacks=TESTS, alarm_images=0, channels_last=True,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=2e-2, weight_decay=5e-4),
        lr_scheduler=Cyclic(0.3 * row.epochs, 0.7 * row.epochs),
    )  # fmt: skip
    data = DigitsDataModule(batch_size=32, eval_batch_size=400)
    trainer = Trainer(
        max_epochs=row.epochs, accelerator="cpu", devices=1, precision=precision, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    (found,) = module.test_results.values()
    return {name: round(100 * accuracy.value, 2) for name, accuracy in found.items()} | {
        "n": next(iter(found.values())).n,
        "cpu_seconds": round(module.meter.clock.seconds[1], 2),
    }


def main(args: list[str] | None = None) -> None:
    """Train what is missing, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--again", action="store_true", help="only train what is there in float32 on this processor")
    again = parser.parse_args(args).again
    for name, row in NETS.items():
        if (name in read(RESULT).get("nets", {})) != again:
            continue
        if again:
            runs = [train(row, "32-true", seed) for seed in SEEDS]
            with opened(RESULT) as results:
                results["nets"][name]["again"] = {"32-true": runs, **about(torch.device("cpu"))}
            continue
        found = {precision: [train(row, precision, seed) for seed in SEEDS] for precision in ("32-true", "bf16-mixed")}
        with opened(RESULT) as results:
            results |= {"seeds": SEEDS, "eps": EPS, **about(torch.device("cpu"))}
            results.setdefault("nets", {})[name] = {"epochs": row.epochs, **found}
        for precision, runs in found.items():
            print(name, precision, {key: round(mean(run[key] for run in runs), 2) for key in runs[0]}, flush=True)


if __name__ == "__main__":
    main()
