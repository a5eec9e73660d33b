"""Does Free training forget one class while it replays batches of another?

The Free-vs-Fast report suspects that it does if mini-batches are ordered by class. This script trains FreeAT on
scikit-learn's digits for equal epochs of data with three kinds of batches (mixed; one class each, in random order; one
class each, in the order of the classes) and prints test accuracy without and with PGD-20. In random order, replays
cause forgetting: at m = 1 and 2 the net is almost as accurate as with mixed batches and a little less robust, at m = 4
and 8 it predicts one class. In the order of the classes it predicts one class at every m, at m = 1 without any replay.
Two minutes on two cores, torch 2.15:

    python scripts/free_forgetting.py

    397 test images, 12 epochs of data, eps 0.15, seed 0: clean / PGD-20 in percent
    batches                          m = 1           m = 2           m = 4           m = 8
    mixed                      98.7 / 40.8     99.0 / 57.2     98.7 / 63.2     99.5 / 62.2
    one class, random          98.0 / 35.0     98.5 / 45.8       7.8 / 7.8       7.8 / 7.8
    one class, in order        10.1 / 10.1     10.3 / 10.3       8.6 / 8.6     10.1 / 10.1
"""

import logging
import warnings

import torch
from lightning.pytorch import Trainer, seed_everything
from torch.utils.data import DataLoader, TensorDataset

from lit_robust.attacks import FGSM, PGD
from lit_robust.batch import Batch
from lit_robust.data import DigitsDataModule
from lit_robust.defenses import FreeAT
from lit_robust.measures.accuracy import surviving
from lit_robust.nets import digits_cnn
from lit_robust.schedules import Cyclic

EPS, EPOCHS, BATCH = 0.15, 12, 32
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


def train(data: Batch, order: str, m: int) -> torch.nn.Module:
    """A net trained by Free-m on batches in this order."""
    seed_everything(0, verbose=False)
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


def main() -> None:
    """Train all nets and print the table."""
    logging.disable(logging.INFO)  # Lightning's messages, which repeat for each trainer
    warnings.filterwarnings("ignore")
    data, test = images(train=True), images(train=False)
    attack = PGD(eps=EPS, step_size=0.02, steps=20)
    print(f"{len(test.x)} test images, {EPOCHS} epochs of data, eps {EPS}, seed 0: clean / PGD-20 in percent")
    print(f"{'batches':<22}" + "".join(f"{f'm = {m}':>16}" for m in (1, 2, 4, 8)))
    for order in ORDERS:
        cells = []
        for m in (1, 2, 4, 8):
            torch.manual_seed(0)
            correct = surviving(train(data, order, m), {"pgd": attack}, test)
            clean, robust = (100 * correct[name].float().mean().item() for name in ("clean", "pgd"))
            cells.append(f"{f'{clean:.1f} / {robust:.1f}':>16}")
        print(f"{order:<22}" + "".join(cells), flush=True)


if __name__ == "__main__":
    main()
