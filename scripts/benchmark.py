"""Time the whole ``trainer.fit`` loop of each method against its floor and against the usual research loop.

    python scripts/benchmark.py                                  # writes scripts/results/benchmark_PROCESSOR.json
    python scripts/benchmark.py --net resnet18 --width 0 --batch 8 --batches 2 --methods "PGDAT, eval" TRADES

The floor is a loop written by hand with the passes that a method cannot do without, in float32 and channels_last,
without gradients of parameters in the attack and with nothing else; it attacks in the method's own BatchNorm mode. The
research loop makes the same passes in the contiguous layout, with ``loss.backward()`` in the attack. A fit is run with
and without folded BatchNorms, in float32 and in bf16. All take turns batch by batch in one process, so what else the
machine does falls on all of them alike. Reported are medians of seconds per batch, and ratios of medians.

The last row is a tiny net, whose fit step is nearly all overhead: of Lightning alone, and of a method here.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from cpu_budget_results import hardware, versions
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lit_robust import defenses, nets
from lit_robust.attacks import FGSM, PGD
from lit_robust.batch import Batch
from lit_robust.defenses import Defense
from lit_robust.torch_internals import multiplies_bf16

RESULTS = Path(__file__).parent / "results"
EPS, ALPHA = 8 / 255, 2 / 255
#: Timed batches of the tiny net.
TINY_BATCHES = 200


class Method(NamedTuple):
    """A method's arguments, and the passes of its floor."""

    arguments: dict[str, Any]
    #: Forwards with the gradient of the images, in this mode of the net, and clean forwards that the attack needs.
    steps: int
    mode: str
    references: int = 0
    #: How many batches of images the update reads, and how often a batch is replayed.
    update: int = 1
    replays: int = 1


PGD10 = PGD(EPS, ALPHA, steps=10)
METHODS = {
    "Natural": ("Natural", Method({"attack": PGD10}, 0, "train")),
    "PGDAT": ("PGDAT", Method({"attack": PGD10}, 10, "train")),
    "PGDAT, eval": ("PGDAT", Method({"attack": PGD10, "attack_bn_mode": "eval"}, 10, "eval")),
    "TRADES": ("TRADES", Method({"attack": PGD10}, 10, "eval", references=1, update=2)),
    "FastAT": ("FastAT", Method({"attack": FGSM(EPS)}, 1, "train")),
    "NFGSM": ("NFGSM", Method({"attack": FGSM(EPS)}, 1, "train")),
    "FreeAT-4": ("FreeAT", Method({"attack": FGSM(EPS), "m": 4}, 0, "train", replays=4)),
    "GAT": ("GAT", Method({"attack": FGSM(EPS)}, 1, "eval", references=1, update=2)),
    "NuAT": ("NuAT", Method({"attack": FGSM(EPS)}, 1, "eval", references=1, update=2)),
    "PSAT": ("PSAT", Method({"attack": PGD10}, 10, "eval")),
}


def synchronized(device: torch.device) -> float:
    """The time, after the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def hand_written(net: nn.Module, method: Method, x: Tensor, y: Tensor, research: bool = False) -> Callable[[], None]:
    """One batch of a loop with the method's passes and nothing else."""
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)

    def gradient(images: Tensor) -> Tensor:
        loss = F.cross_entropy(net(images), y)
        if not research:
            return torch.autograd.grad(loss, images)[0]
        loss.backward()
        optimizer.zero_grad()
        assert images.grad is not None
        return images.grad

    def step() -> None:
        net.train(method.mode == "train")
        with torch.no_grad():
            for _ in range(method.references):
                net(x)
        x_adv = x
        for _ in range(method.steps):
            x_adv = x_adv.detach().requires_grad_()
            moved = x_adv.detach() + ALPHA * gradient(x_adv).sign()
            x_adv = torch.clamp(torch.min(torch.max(moved, x - EPS), x + EPS), 0, 1)
        net.train()
        for _ in range(method.replays):
            images = x_adv.detach().requires_grad_(method.replays > 1)
            loss = F.cross_entropy(net(images), y)
            if method.update == 2:
                loss = loss + F.cross_entropy(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return step


class TakingTurns(Callback):
    """Between two batches of a fit, run one batch of each other loop; time all of them."""

    def __init__(self, name: str, others: dict[str, Callable[[], None]], times: dict[str, list[float]]) -> None:
        self.name, self.others, self.times = name, others, times
        self._left = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """End the fit's turn, and give the others theirs."""
        now = synchronized(pl_module.device)
        if batch_idx > 1:  # the first batch checks, traces and folds
            self.times.setdefault(self.name, []).append(now - self._left)
        for name, step in self.others.items():
            start = synchronized(pl_module.device)
            step()
            if batch_idx:
                self.times.setdefault(name, []).append(synchronized(pl_module.device) - start)
        self._left = synchronized(pl_module.device)


class Alone(LightningModule):
    """What Lightning itself costs: cross-entropy with automatic optimization."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss."""
        return F.cross_entropy(self.net(batch.x), batch.y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD."""
        return torch.optim.SGD(self.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)


def batches(x: Tensor, y: Tensor, number: int) -> DataLoader[Any]:
    """The same batch again and again, so that no loader is measured."""
    batch = Batch(x, y, torch.arange(len(y)), torch.ones(len(y)))
    return DataLoader([batch] * number, batch_size=None)


def fit(
    module: LightningModule, turns: Callback, args: argparse.Namespace, x: Tensor, y: Tensor, **kwargs: Any
) -> None:
    """Train on a few batches with what a user has: metrics, one log at the end, no validation."""
    Trainer(
        max_epochs=1, accelerator=args.accelerator, devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[turns], **kwargs,
    ).fit(module, batches(x, y, args.batches + 2))  # fmt: skip


def compare(args: argparse.Namespace, cls: str, method: Method) -> dict[str, list[float]]:
    """Seconds per batch of each loop by its name."""
    device = torch.device("cuda" if args.accelerator == "gpu" else "cpu")
    build = partial(getattr(nets, args.net), num_classes=10, **({"width": args.width} if args.width else {}))
    seed_everything(0, verbose=False)
    x, y = torch.rand(args.batch, *args.shape), torch.randint(10, (args.batch,))
    last = {"memory_format": torch.channels_last}
    placed, labels = x.to(device), y.to(device)
    others = {
        "floor": hand_written(build().to(device, **last), method, placed.contiguous(**last), labels),
        "research": hand_written(build().to(device), method, placed, labels, research=True),
    }
    times: dict[str, list[float]] = {}
    kinds = [("fit", {}, "32-true"), ("fit bf16", {}, "bf16-mixed")]
    if method.mode == "eval":
        kinds.insert(1, ("fit unfolded", {"fold_batchnorm": False}, "32-true"))
    for name, arguments, precision in kinds:
        module: Defense = getattr(defenses, cls)(
            build(), 10, channels_last=True, compile=args.compile, optimizer=sgd, **method.arguments, **arguments
        )
        fit(module, TakingTurns(name, others, times), args, x, y, precision=precision)
    return times


def sgd(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    """The floor's optimizer."""
    return torch.optim.SGD(parameters, lr=1e-4, momentum=0.9, weight_decay=5e-4)


def overhead(args: argparse.Namespace) -> dict[str, float]:
    """Microseconds per batch beyond the floor on a net that costs next to nothing."""
    x, y = torch.rand(8, 1, 8, 8), torch.randint(10, (8,))
    build: Callable[[], nn.Module] = partial(nets.digits_cnn, width=4)
    found = {}
    modules = {"Lightning alone": Alone(build()), "Natural": defenses.Natural(build(), 10, PGD10, optimizer=sgd)}
    for name, module in modules.items():
        times: dict[str, list[float]] = {}
        others = {"floor": hand_written(build(), METHODS["Natural"][1], x, y)}
        few = argparse.Namespace(**vars(args) | {"batches": TINY_BATCHES, "accelerator": "cpu"})
        fit(module, TakingTurns("fit", others, times), few, x, y, log_every_n_steps=50)
        found[name] = 1e6 * (median(times["fit"]) - median(times["floor"]))
    return found


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """A parser for the net, the images and the methods of a measurement."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="resnet18")
    parser.add_argument("--width", type=int, default=16, help="0 for the net's own")
    parser.add_argument("--shape", type=int, nargs=3, default=(3, 32, 32))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--methods", nargs="+", default=[*METHODS], choices=[*METHODS])
    parser.add_argument("--accelerator", default="cpu", choices=["cpu", "gpu"])
    return parser


def main() -> None:
    """Run and print the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--batches", type=int, default=6, help="timed batches of each loop")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    where = hardware() | {"multiplies_bf16": multiplies_bf16()}
    rows: dict[str, Any] = {}
    out = args.out or RESULTS / f"benchmark_{args.net}_{args.width or 'full'}.json"
    for name in args.methods:
        times = compare(args, *METHODS[name])
        floor = median(times["floor"])
        rows[name] = {"images_per_second": round(args.batch / median(times["fit"]), 1)} | {
            loop: {"seconds": round(median(values), 5), "to_floor": round(median(values) / floor, 3), "n": len(values)}
            for loop, values in times.items()
        }
        print(f"{name}: " + ", ".join(f"{loop} {rows[name][loop]['to_floor']:.2f}" for loop in times), flush=True)
        record = {"net": args.net, "width": args.width, "shape": [*args.shape], "batch": args.batch}
        record |= {"compile": args.compile, "rows": rows, **where, **versions()}
        out.write_text(json.dumps(record, indent=1) + "\n")
    record["overhead_in_microseconds"] = {name: round(value) for name, value in overhead(args).items()}
    out.write_text(json.dumps(record, indent=1) + "\n")
    print(record["overhead_in_microseconds"])


if __name__ == "__main__":
    main()
