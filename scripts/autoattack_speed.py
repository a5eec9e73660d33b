"""Time AutoAttack as a test runs it against its package on the same net and images, and count where they differ.

    python scripts/autoattack_speed.py --root data     # writes scripts/results/autoattack_speed.json

The net is trained once by N-FGSM at eps 8/255 on CIFAR-10 and kept in ``--net``. Attacked at this eps are the first
test images that withstand PGD-20 on the margin and the first ones that do not, so many of each that about 40 % are
robust. Both sides get the net in eval mode, in channels_last, with frozen parameters and in float32; ours is attacked
with folded BatchNorms, as in ``trainer.test``, and judged by the net itself. The images come in blocks; both sides take
turns in each, and the one that begins alternates. Blocks that are in the file are not measured again. Where the two
break different images, ours runs once more without folding: it must then break exactly the package's images, so the
difference is one of rounding.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from cpu_budget_results import code_of, commit, hardware, md5_of, opened, read, versions
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor, nn

from lit_robust import losses
from lit_robust.attacks import FGSM, PGD, AutoAttack
from lit_robust.batch import Batch
from lit_robust.data import CIFAR10DataModule
from lit_robust.defenses import NFGSM
from lit_robust.guards import frozen
from lit_robust.measures.accuracy import surviving
from lit_robust.nets import resnet18
from lit_robust.nets.folded import FoldedNet
from lit_robust.schedules import Cyclic

RESULT = Path(__file__).parent / "results/autoattack_speed.json"
EPS = 8 / 255
#: The share of images that withstand PGD-20 on the margin, of which AutoAttack breaks a few.
ROBUST = 0.42


def train(data: CIFAR10DataModule, width: int, epochs: int) -> nn.Module:
    """A small net, trained by N-FGSM at ``EPS``."""
    seed_everything(0, verbose=False)
    module = NFGSM(
        resnet18(num_classes=10, width=width), 10, FGSM(EPS), channels_last=True, alarm_images=0,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.2, momentum=0.9, weight_decay=5e-4),
        lr_scheduler=Cyclic(epochs / 3, epochs),
    )  # fmt: skip
    Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, limit_val_batches=0,
        enable_progress_bar=False, enable_model_summary=False,
    ).fit(module, data)  # fmt: skip
    return module.net


def chosen(net: nn.Module, batch: Batch, images: int) -> Batch:
    """The first images that withstand PGD-20 on the margin and the first that do not, in their order."""
    attack = PGD(EPS, EPS / 4, steps=20, loss=losses.margin, keep="worst")
    torch.manual_seed(0)
    withstands = surviving(net, {"pgd": attack}, batch)["pgd"]
    robust = round(ROBUST * images)
    rows = [withstands.nonzero()[:robust, 0], (~withstands).nonzero()[: images - robust, 0]]
    if len(rows[0]) < robust:
        raise ValueError(f"only {len(rows[0])} of {len(batch.y)} images are robust: train for more epochs.")
    # Each block gets its share of both.
    mixed = torch.cat(rows)[torch.randperm(images, generator=torch.Generator().manual_seed(0))]
    return Batch(*(one[mixed] for one in batch))


def ours(net: nn.Module, batch: Batch, fold: bool) -> Callable[[], Tensor]:
    """What a test does for the row ``autoattack``: which images it leaves."""
    attacked = FoldedNet()(net, batch.x) if fold else net
    return lambda: surviving(net, {"attack": AutoAttack(EPS)}, batch, attacked=attacked)["attack"]


def theirs(net: nn.Module, batch: Batch) -> Callable[[], Tensor]:
    """The package's own class."""
    from pyautoattack import AutoAttack as OfThePackage

    def run() -> Tensor:
        # The package sorts and flattens images through `view`, which channels_last images refuse.
        x = batch.x.contiguous()
        x_adv, _ = OfThePackage(net, eps=EPS, seed=0).run_standard_evaluation(x, batch.y, batch_size=len(x))
        with torch.no_grad():
            return net(x_adv).argmax(1) == batch.y

    return run


def timed(run: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Seconds, and the images that are left."""
    begun = time.perf_counter()
    left = run()
    return time.perf_counter() - begun, left


def measure(net: nn.Module, batch: Batch, number: int) -> dict[str, Any]:
    """Both sides on one block."""
    sides = {"ours": ours(net, batch, fold=True), "package": theirs(net, batch)}
    found = {name: timed(sides[name]) for name in (sides if number % 2 else reversed(sides))}
    row: dict[str, Any] = {name: round(found[name][0], 2) for name in sides}
    left = {name: one for name, (_, one) in found.items()}
    row |= {"n": len(batch.y), "left": int(left["package"].sum())}
    row["only_ours_leaves"] = int((left["ours"] & ~left["package"]).sum())
    row["only_package_leaves"] = int((left["package"] & ~left["ours"]).sum())
    row["different_without_folding"] = 0
    if row["only_ours_leaves"] or row["only_package_leaves"]:
        unfolded = ours(net, batch, fold=False)()
        row["different_without_folding"] = int((unfolded != left["package"]).sum())
    return row


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="where CIFAR-10 lies; LIT_ROBUST_DATA by default")
    parser.add_argument("--net", type=Path, default=Path(tempfile.gettempdir()) / "lit_robust_autoattack_speed.pt")
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--train-size", type=int, default=None, help="train on the first images only")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--block", type=int, default=100)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    data = CIFAR10DataModule(
        args.root,
        batch_size=128,
        train_size=args.train_size,
        test_size=5 * args.images,
        eval_batch_size=5 * args.images,
    )
    data.prepare_data()
    data.setup()
    net = resnet18(num_classes=10, width=args.width)
    if not args.net.exists():
        torch.save(train(data, args.width, args.epochs).state_dict(), args.net)
    net.load_state_dict(torch.load(args.net, weights_only=True))
    net = net.eval().to(memory_format=torch.channels_last)
    (batch,) = data.test_dataloader()
    batch = chosen(net, batch._replace(x=batch.x.contiguous(memory_format=torch.channels_last)), args.images)
    about = {
        "net": "resnet18", "width": args.width, "epochs": args.epochs, "images": args.images, "block": args.block,
        "code": code_of(AutoAttack(), net), **versions(),
        **hardware(), "package": AutoAttack().package, "weights": str(sum(p.double().sum() for p in net.parameters())),
    }  # fmt: skip
    before = read(args.out)
    known = all(before.get(key) == value for key, value in about.items())
    blocks = before["blocks"] if known else {}
    with frozen(net):
        for number, start in enumerate(range(0, len(batch.y), args.block)):
            if str(start) in blocks:
                continue
            part = Batch(*(one[start : start + args.block] for one in batch))
            blocks[str(start)] = measure(net, part, number)
            with opened(args.out) as results:
                results.clear()
                results |= about | {"commit": commit(), "md5": md5_of(data)["test"]}
                results["blocks"] = blocks
            print(start, blocks[str(start)], flush=True)
    rows = blocks.values()
    print(f"ours / package: {sum(row['ours'] for row in rows) / sum(row['package'] for row in rows):.2f}", end=", ")
    print(f"median of blocks {median(row['ours'] / row['package'] for row in rows):.2f}")


if __name__ == "__main__":
    main()
