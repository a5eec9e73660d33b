"""Does Free training forget one class while it replays batches of another?

The Free-vs-Fast report suspects that it does if mini-batches are ordered by class. This script trains FreeAT on
scikit-learn's digits for equal epochs of data with three kinds of batches (mixed; one class each, in random order; one
class each, in the order of the classes) and three seeds, and writes the test accuracy without and with PGD-20 to
results/free_forgetting.json, from which the README has its table. Six minutes on two cores:

    python scripts/free_forgetting.py
"""

import argparse
from pathlib import Path

import torch
from cpu_budget_results import commit, hardware, opened, quiet, versions
from lightning.pytorch import Trainer, seed_everything
from torch.utils.data import DataLoader, TensorDataset

from lit_robust.attacks import FGSM, PGD
from lit_robust.batch import Batch
from lit_robust.data import DigitsDataModule
from lit_robust.defenses import FreeAT
from lit_robust.measures.accuracy import surviving
from lit_robust.nets import digits_cnn
from lit_robust.schedules import Cyclic

RESULTS = Path(__file__).parent / "results/free_forgetting.json"
EPS, EPOCHS, BATCH, SEEDS, REPLAYS = 0.15, 12, 32, (0, 1, 2), (1, 2, 4, 8)
ORDERS = ("mixed", "one class, random", "one class, in order")


def images(train: bool) -> Batch:
    """All images of the training or the test split."""
    digits = DigitsDataModule(augment=False)
    digits.setup("fit" if train else "test")
    loader = digits.train_dataloader() if train else digits.test_dataloader()
    return Batch(*(torch.cat(parts) for parts in zip(*loader, strict=True)))


def batches(data: Batch, order: str) -> DataLoader:
    """A loader with batches in this order, the same kind in every epoch."""
    if order == "mixed":
        return DataLoader(TensorDataset(data.x, data.y), batch_size=BATCH, shuffle=True)
    rows = [part for label in range(10) for part in (data.y == label).nonzero().squeeze(1).split(BATCH)]
    return DataLoader([(data.x[part], data.y[part]) for part in rows], batch_size=None, shuffle="random" in order)


def train(data: Batch, order: str, m: int, seed: int) -> torch.nn.Module:
    """A net trained by Free-m on batches in this order."""
    seed_everything(seed, verbose=False)
    defense = FreeAT(
        digits_cnn(),
        num_classes=10,
        attack=FGSM(eps=EPS),
        m=m,
        optimizer=lambda params: torch.optim.Adam(params, lr=5e-3),
        lr_scheduler=Cyclic(up=EPOCHS / 3, down=2 * EPOCHS / 3),
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=EPOCHS,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(defense, batches(data, order))
    return defense.net.eval()


def main(args: list[str] | None = None) -> None:
    """Train all nets and store their accuracies."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(args)
    data, test = images(train=True), images(train=False)
    attack = PGD(eps=EPS, step_size=0.02, steps=20)
    facts = {"n": len(test.y), "eps": EPS, "epochs": EPOCHS, "seeds": list(SEEDS)}
    facts |= {"versions": versions(), "hardware": hardware(), "commit": commit()}
    rows: dict[str, dict[str, dict[str, list[float]]]] = {}
    for order in ORDERS:
        for m in REPLAYS:
            row = rows.setdefault(order, {})[f"m = {m}"] = {"clean": [], "pgd20": []}
            for seed in SEEDS:
                with quiet():
                    net = train(data, order, m, seed)
                torch.manual_seed(0)
                correct = surviving(net, {"pgd20": attack}, test)
                for name, accuracies in row.items():
                    accuracies.append(round(100 * correct[name].float().mean().item(), 2))
            print(order, m, row, flush=True)
    with opened(RESULTS) as results:
        results |= facts | {"rows": rows}


if __name__ == "__main__":
    main()
