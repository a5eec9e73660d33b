"""Train on scikit-learn's digits in float32 and in bf16-mixed, with three seeds: does bfloat16 cost accuracy?

    python scripts/digits_bf16.py     # writes scripts/results/digits_bf16.json

The net, method and schedule are the quickstart's; the tests are in float32. CPU seconds are those of the training's
batches, and depend on the processor: where it emulates bfloat16, training takes longer.
"""

import json
from pathlib import Path
from statistics import mean

import torch
from cpu_budget_results import hardware, versions
from lightning.pytorch import Trainer, seed_everything

from lit_robust.attacks import PGD
from lit_robust.data import DigitsDataModule
from lit_robust.defenses import PGDAT
from lit_robust.nets import digits_cnn
from lit_robust.schedules import Cyclic
from lit_robust.torch_internals import multiplies_bf16

RESULT = Path(__file__).parent / "results/digits_bf16.json"
SEEDS, EPOCHS, EPS = (0, 1, 2), 30, 0.15
TESTS = {"pgd20": PGD(EPS, 0.02, steps=20, keep="worst")}


def train(precision: str, seed: int) -> dict[str, float]:
    """Accuracies in percent and seconds of one training."""
    seed_everything(seed, verbose=False)
    module = PGDAT(
        digits_cnn(width=8), 10, PGD(EPS, 0.05, steps=7), test_attacks=TESTS, alarm_images=0, channels_last=True,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=2e-2, weight_decay=5e-4),
        lr_scheduler=Cyclic(9, 21),
    )  # fmt: skip
    data = DigitsDataModule(batch_size=32, eval_batch_size=400)
    trainer = Trainer(
        max_epochs=EPOCHS, accelerator="cpu", devices=1, precision=precision, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    (found,) = module.test_results.values()
    return {name: round(100 * accuracy.value, 2) for name, accuracy in found.items()} | {
        "n": next(iter(found.values())).n,
        "cpu_seconds": round(module.meter.clock.seconds[1], 2),
    }


def main() -> None:
    """Train, and write what came out."""
    rows = {precision: [train(precision, seed) for seed in SEEDS] for precision in ("32-true", "bf16-mixed")}
    for precision, found in rows.items():
        print(precision, {name: round(mean(one[name] for one in found), 2) for name in found[0]})
    record = {"rows": rows, "seeds": SEEDS, "epochs": EPOCHS, "multiplies_bf16": multiplies_bf16()}
    RESULT.write_text(json.dumps(record | hardware() | versions(), indent=1) + "\n")


if __name__ == "__main__":
    main()
