"""Time AutoAttack as a test runs it against its package on the same net and images, and count where they differ.

    python scripts/autoattack_speed.py --root data     # writes scripts/results/autoattack_speed.json
    python scripts/autoattack_speed.py --root data --compile     # also on the compiled net, with its compilation
    python scripts/autoattack_speed.py --root data --estimate     # prints the minutes that this takes, and ends

The minutes that are left are estimated and printed first. The net is trained once by N-FGSM at eps 8/255 on CIFAR-10
and kept in ``--net``. Attacked at this eps are the first test images that withstand PGD-20 on the margin and the first
ones that do not, so many of each that about 40 % are robust. Both sides get the net in eval mode, in channels_last,
with frozen parameters and in float32; ours is attacked with folded BatchNorms, as in ``trainer.test``, and judged by
the net itself. The images come in blocks; both sides take turns in each, and the one that begins alternates. Blocks
that are in the file are not measured again. Where the two break different images, ours runs once more without folding:
it must then break exactly the package's images, so the difference is one of rounding.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from cpu_budget_results import code_of, commit, hardware, md5_of, opened, read, versions
from lightning.pytorch import Trainer, seed_everything
from measured import count, folder, in_turns
from torch import Tensor, nn

from lit_robust import losses
from lit_robust.attacks import FGSM, PGD, AutoAttack
from lit_robust.batch import Batch
from lit_robust.data import CIFAR10DataModule
from lit_robust.defenses import NFGSM
from lit_robust.guards import frozen
from lit_robust.measures.accuracy import Accuracy, surviving
from lit_robust.nets import resnet18
from lit_robust.nets.folded import FoldedNet
from lit_robust.schedules import Cyclic
from lit_robust.torch_internals import bf16_instructions

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


def ours(net: nn.Module, batch: Batch, fold: bool, compile: bool = False) -> Callable[[], Tensor]:
    """What a test does for the row ``autoattack``: which images it leaves."""
    attacked = FoldedNet(compile)(net, batch.x) if fold else net
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


def measure(net: nn.Module, batch: Batch, number: int, compile: bool = False) -> dict[str, Any]:
    """Both sides on one block, and ours on the compiled net."""
    sides = {"ours": ours(net, batch, fold=True), "package": theirs(net, batch)}
    sides |= {"compiled": ours(net, batch, fold=True, compile=True)} if compile else {}
    found = {name: timed(sides[name]) for name in (sides if number % 2 else reversed(sides))}
    row: dict[str, Any] = {name: round(found[name][0], 2) for name in sides}
    left = {name: one for name, (_, one) in found.items()}
    row |= {"n": len(batch.y), "left": int(left["package"].sum())}
    row["only_ours_leaves"] = int((left["ours"] & ~left["package"]).sum())
    row["only_package_leaves"] = int((left["package"] & ~left["ours"]).sum())
    row["different_without_folding"] = 0
    if compile:
        row["different_compiled"] = int((left["compiled"] != left["package"]).sum())
    if row["only_ours_leaves"] or row["only_package_leaves"]:
        unfolded = ours(net, batch, fold=False)()
        row["different_without_folding"] = int((unfolded != left["package"]).sum())
    return row


def seconds_per_image(net: nn.Module, x: Tensor) -> tuple[float, float]:
    """Of a forward, and of one with the gradient of the images."""

    def gradient() -> Tensor:
        images = x.clone().requires_grad_()
        return torch.autograd.grad(net(images).sum(), images)[0]

    with torch.no_grad():
        forward = median(in_turns({"forward": lambda: net(x)}, 3, x.device)["forward"])
    return forward / len(x), median(in_turns({"gradient": gradient}, 3, x.device)["gradient"]) / len(x)


def estimated(net: nn.Module, x: Tensor, trained: int, attacked: int, sides: int = 2) -> float:
    """Seconds of training on so many images in all, and of all sides' attacks on so many.

    An image that withstands sees 100 steps of APGD-CE, 9 x 100 of APGD-T and of FAB-T and 5,000 queries of Square; a
    broken one about half of APGD-CE. A step of FAB-T has two passes. N-FGSM takes three gradients' time per image.
    """
    forward, gradient = seconds_per_image(net, x)
    withstands = (100 + 900 + 900) * gradient + (900 + 5000) * forward
    return 3 * gradient * trained + sides * attacked * (ROBUST * withstands + (1 - ROBUST) * 50 * gradient)


def kept(before: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """The blocks of a record, by their first images, if it is one of the same measurement."""
    return before["blocks"] if all(before.get(key) == value for key, value in about.items()) else {}


def missing(about: Mapping[str, Any], blocks: Mapping[str, Any]) -> list[int]:
    """The first images of the blocks that are not there."""
    return [start for start in range(0, about["images"], about["block"]) if str(start) not in blocks]


def parser_of() -> argparse.ArgumentParser:
    """The options; the defaults are the net and the images of the criterion."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=folder, help="where CIFAR-10 lies; LIT_ROBUST_DATA by default")
    parser.add_argument("--net", type=Path, help="where the trained net is kept; a temporary file by default")
    parser.add_argument("--width", type=count, default=16)
    parser.add_argument("--epochs", type=count, default=6)
    parser.add_argument("--train-size", type=count, default=None, help="train on the first images only")
    parser.add_argument("--images", type=count, default=200)
    parser.add_argument("--block", type=count, default=100)
    parser.add_argument("--compile", action="store_true", help="also attack the compiled net")
    parser.add_argument("--estimate", action="store_true", help="only print the minutes")
    parser.add_argument("--out", type=Path, default=RESULT)
    return parser


def main() -> None:
    """Measure what is missing."""
    args = parser_of().parse_args()
    name = f"lit_robust_autoattack_speed_{args.width}_{args.epochs}_{args.train_size or 'all'}.pt"
    path = args.net or Path(tempfile.gettempdir()) / name
    data = CIFAR10DataModule(
        args.root,
        batch_size=128,
        train_size=args.train_size,
        test_size=5 * args.images,
        eval_batch_size=5 * args.images,
    )
    data.prepare_data()
    data.setup()
    net = resnet18(num_classes=10, width=args.width).eval().to(memory_format=torch.channels_last)
    about = {
        "net": "resnet18", "width": args.width, "epochs": args.epochs, "images": args.images, "block": args.block,
        "train_size": args.train_size, "code": code_of(AutoAttack(), net, FoldedNet(), Accuracy(0, 1)), **versions(),
        **hardware(), "bf16": bf16_instructions(), "package": AutoAttack().package,
    }  # fmt: skip
    about |= {"compile": True} if args.compile else {}
    (batch,) = data.test_dataloader()
    batch = batch._replace(x=batch.x.contiguous(memory_format=torch.channels_last))
    before = read(args.out)
    trained = 0 if path.exists() else args.epochs * sum(len(of.y) for of in data.plain_train_dataloader())
    attacked = sum(min(args.block, args.images - start) for start in missing(about, kept(before, about)))
    minutes = estimated(net, batch.x[:128], trained, attacked, sides=2 + args.compile) / 60
    print(f"about {minutes:.0f} minutes to train on {trained} images and to attack {attacked}", flush=True)
    if args.estimate:
        return
    if trained:
        torch.save(train(data, args.width, args.epochs).state_dict(), path)
    net.load_state_dict(torch.load(path, weights_only=True))
    batch = chosen(net, batch, args.images)
    about["weights"] = round(sum(p.double().sum().item() for p in net.parameters()), 4)
    blocks = kept(before, about)
    with frozen(net):
        for start in missing(about, blocks):
            part = Batch(*(one[start : start + args.block] for one in batch))
            blocks[str(start)] = measure(net, part, start // args.block, args.compile)
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
