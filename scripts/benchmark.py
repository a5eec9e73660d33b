"""Time the whole ``trainer.fit`` loop of each method against its floor and against the usual research loop.

    python scripts/benchmark.py                     # writes scripts/results/benchmark_resnet18_16.json
    python scripts/benchmark.py --net resnet18 --width 0 --batch 8 --batches 2 --methods "PGDAT, eval" TRADES
    python scripts/benchmark.py --accelerator gpu --compile     # writes benchmark_resnet18_16_gpu_compiled.json
    python scripts/benchmark.py --net fast_cnn --width 0 --shape 1 28 28

The floor is a loop written by hand with the passes that a method cannot do without, in float32 and channels_last,
without gradients of parameters in the attack and with nothing else; it attacks in the method's own BatchNorm mode. The
train-mode loop is the floor of the same method with the attack's gradients in train mode. The research loop makes the
floor's passes in the contiguous layout, with ``loss.backward()`` in the attack. A fit is run with and without folded
BatchNorms, in float32 and in bf16.

In each fit, all loops take turns batch by batch, so what else the machine does falls on all of them alike, and a fit's
ratio is to the loops of its own turns. A CPU that emulates bf16 is measured in float32 only. All methods are measured,
and then all again (``--repeats``); reported are medians of seconds over all repeats, and for each ratio the median and
the range of those of single repeats. The file is written after each fit. Its rows of the same settings, hardware,
versions and code stay and are not measured again; one without all its repeats, which are then under ``unfinished``, is
continued.

A batch counts until the next one begins, so an epoch's end, with its metrics, is in no time. Methods that stop single
images are measured where they stop none, which is when they cost most; CurriculumAT with all images attacked by the
last k steps. A floor has the passes of the net and nothing that is computed beside them, such as distances of features.

``attack_step`` has one step of PGD, a tenth of an attack as a training or a test runs it, beside one of the train-mode
loop. The overhead is that of a tiny net, whose fit step is nearly all overhead: of Lightning alone, and of a method.
"""

import argparse
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from cpu_budget_results import code_of
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from measured import (
    NETS,
    Table,
    Times,
    about,
    accelerator,
    as_attacked,
    builder,
    check_net,
    count,
    in_turns,
    multiplies_bf16,
    ratio,
    synchronized,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lit_robust import defenses
from lit_robust.attacks import FGSM, PGD, FastLPA
from lit_robust.batch import Batch
from lit_robust.defenses import Defense
from lit_robust.nets.folded import FoldedNet

RESULTS = Path(__file__).parent / "results"
EPS, ALPHA, STEPS = 8 / 255, 2 / 255, 10
#: Timed batches of the tiny net.
TINY_BATCHES = 200
#: The precisions of a fit.
PRECISIONS = ("32-true", "bf16-mixed")
#: What is measured beside the rows, by its key.
STEP, OVERHEAD = "attack_step", "overhead_in_microseconds"


class Method(NamedTuple):
    """A method's arguments, and the passes of its floor."""

    arguments: dict[str, Any]
    #: Forwards with the gradient of the images, in this mode of the net, and the modes of the attack's clean forwards.
    steps: int
    mode: str
    references: tuple[str, ...] = ()
    #: How many batches of images the update reads, and how often a batch is replayed.
    update: int = 1
    replays: int = 1
    #: How many batches of images the attack and the update read at once.
    copies: int = 1
    #: Whether the update has GradAlign's second derivative.
    aligned: bool = False
    #: Steps of a second attack, on the batch's last image alone; its result joins the update.
    alone: int = 0
    #: Values that its memory begins with.
    memory: Mapping[str, Any] = {}


PGD10 = PGD(EPS, ALPHA, steps=STEPS)
OF_PGD, OF_FGSM = {"attack": PGD10}, {"attack": FGSM(EPS)}
GUIDED = OF_FGSM | {"attack_alternate": False}  # in every batch
METHODS = {
    "Natural": ("Natural", Method(OF_PGD, 0, "train")),
    "PGDAT": ("PGDAT", Method(OF_PGD, STEPS, "train")),
    "PGDAT, eval": ("PGDAT", Method(OF_PGD | {"attack_bn_mode": "eval"}, STEPS, "eval")),
    "TRADES": ("TRADES", Method(OF_PGD, STEPS, "eval", references=("eval",), update=2)),
    "MART": ("MART", Method(OF_PGD, STEPS, "eval", update=2)),
    "FriendlyAT": ("FriendlyAT", Method(OF_PGD | {"tau": STEPS}, STEPS, "eval")),
    "DynamicAT": ("DynamicAT", Method(OF_PGD | {"c": 0.0}, STEPS, "eval")),
    "PSAT": ("PSAT", Method(OF_PGD | {"lam": 1.0}, STEPS, "eval")),
    "HSAT": ("HSAT", Method(OF_PGD | {"lam": 1.0}, STEPS, "eval")),
    "CurriculumAT": ("CurriculumAT", Method(OF_PGD | {"batch_mixing": False}, STEPS, "train", memory={"k": STEPS})),
    "CustomizedAT": ("CustomizedAT", Method(OF_PGD, STEPS, "eval", references=("eval",))),
    # Forwards: the distance's origin, one ahead of each step to measure its length, 11 of the projection, and which
    # images are misclassified.
    "PerceptualAT": (
        "PerceptualAT",
        Method({"attack": FastLPA(steps=STEPS)}, STEPS, "eval", references=("eval",) * (1 + STEPS + 11 + 1)),
    ),
    "FGSMAT": ("FGSMAT", Method(OF_FGSM, 1, "train")),
    "RFGSMAT": ("RFGSMAT", Method(OF_FGSM, 1, "train")),
    "FastAT": ("FastAT", Method(OF_FGSM, 1, "train")),
    "NFGSM": ("NFGSM", Method(OF_FGSM, 1, "train")),
    "ZeroGrad": ("ZeroGrad", Method(OF_FGSM, 1, "train")),
    "AAER": ("AAER", Method(OF_FGSM, 1, "train")),
    "GradAlign": ("GradAlign", Method(OF_FGSM, 1, "train", aligned=True)),
    "ELLEA": ("ELLEA", Method(OF_FGSM, 1, "train", update=4)),
    "FreeAT-4": ("FreeAT", Method(OF_FGSM | {"m": 4}, 0, "train", replays=4)),
    "RMGM": ("RMGM", Method(OF_FGSM, 1, "eval", copies=2)),
    "SATR1": ("SATR1", Method(OF_FGSM | {"steps": 3}, 1, "eval", alone=3)),
    "SATR3": ("SATR3", Method(OF_FGSM, 1, "eval", update=2)),
    "GAT": ("GAT", Method(GUIDED, 1, "eval", references=("train",), update=2)),
    "NuAT": ("NuAT", Method(GUIDED, 1, "eval", references=("train",), update=2)),
    "NuAT2": ("NuAT2", Method(OF_FGSM, 2, "eval", references=("eval",), update=2)),
}


def module_of(cls: str, method: Method, net: nn.Module, classes: int = 10, **kwargs: Any) -> Defense:
    """The method as it is measured, in channels_last."""
    given = {"optimizer": sgd, **method.arguments, **kwargs}
    module: Defense = getattr(defenses, cls)(net, classes, channels_last=True, **given)
    module.memory.declare(**method.memory)
    return module


def hand_written(net: nn.Module, method: Method, x: Tensor, y: Tensor, research: bool = False) -> Callable[[], None]:
    """One batch of a loop with the method's passes and nothing else."""
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)
    layout = torch.contiguous_format if research else torch.channels_last
    x, y = torch.cat([x] * method.copies).contiguous(memory_format=layout), torch.cat([y] * method.copies)

    def gradient(images: Tensor, labels: Tensor) -> Tensor:
        loss = F.cross_entropy(net(images), labels)
        if not research:
            return torch.autograd.grad(loss, images)[0]
        loss.backward()
        optimizer.zero_grad()
        assert images.grad is not None
        return images.grad

    def attacked(x: Tensor, y: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        x_adv = direction = x
        for _ in range(steps):
            x_adv = x_adv.detach().requires_grad_()
            direction = gradient(x_adv, y)
            moved = x_adv.detach() + ALPHA * direction.sign()
            x_adv = torch.clamp(torch.min(torch.max(moved, x - EPS), x + EPS), 0, 1)
        return x_adv, direction

    def misaligned(direction: Tensor) -> Tensor:
        beside = (x + EPS * (2 * torch.rand_like(x) - 1)).requires_grad_()
        other = torch.autograd.grad(F.cross_entropy(net(beside), y), beside, create_graph=True)[0]
        return 1 - F.cosine_similarity(other.flatten(1), direction.flatten(1)).mean()

    def step() -> None:
        for mode in method.references:
            net.train(mode == "train")
            with torch.no_grad():
                net(x)
        net.train(method.mode == "train")
        (x_adv, direction), labels = attacked(x, y, method.steps), y
        if method.alone:
            x_adv = torch.cat([x_adv, attacked(x[-1:], y[-1:], method.alone)[0]])
            labels = torch.cat([y, y[-1:]])
        net.train()
        for _ in range(method.replays):
            images = x_adv.detach().requires_grad_(method.replays > 1)
            loss = F.cross_entropy(net(images), labels)
            for _ in range(method.update - 1):
                loss = loss + F.cross_entropy(net(x), y)
            if method.aligned:
                loss = loss + misaligned(direction)
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
    # A method that remembers images takes the length of the loader's dataset for their number; here, images share
    # what is remembered.
    batch = Batch(x, y, torch.arange(len(y)) % number, torch.ones(len(y)))
    return DataLoader([batch] * number, batch_size=None)


def fit(
    module: LightningModule, turns: Callback, args: argparse.Namespace, x: Tensor, y: Tensor, **kwargs: Any
) -> None:
    """Train on a few batches with what a user has: metrics, one log at the end, no validation."""
    Trainer(
        max_epochs=1, accelerator=args.accelerator, devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[turns], **kwargs,
    ).fit(module, batches(x, y, args.batches + 2))  # fmt: skip


def device_of(args: argparse.Namespace) -> torch.device:
    """Where it is measured."""
    return torch.device("cuda" if args.accelerator == "gpu" else "cpu")


def compare(args: argparse.Namespace, cls: str, method: Method) -> dict[str, Times]:
    """Of each kind of fit, the seconds per batch of the fit and of the loops that took turns with it."""
    device, build = device_of(args), builder(args.net, args.width, args.shape[0])
    seed_everything(0, verbose=False)
    x, y = torch.rand(args.batch, *args.shape), torch.randint(10, (args.batch,))

    def by_hand(loop: Method, research: bool = False) -> Callable[[], None]:
        net = build() if research else build().to(memory_format=torch.channels_last)
        return hand_written(net.to(device), loop, x.to(device), y.to(device), research)

    others = {"floor": by_hand(method)}
    kinds: list[tuple[str, dict[str, Any], str]] = [("fit", {}, "32-true")]
    if multiplies_bf16(device):
        kinds.append(("fit bf16", {}, "bf16-mixed"))
    if method.mode == "eval":
        others["train"] = by_hand(method._replace(mode="train"))
        kinds.insert(1, ("fit unfolded", {"fold_batchnorm": False}, "32-true"))
    found: dict[str, Times] = {}
    for name, arguments, precision in kinds:
        module = module_of(cls, method, build(), compile=args.compile, **arguments)
        loops = others | ({"research": by_hand(method, research=True)} if name == "fit" else {})
        times: dict[str, list[float]] = {}
        fit(module, TakingTurns(name, loops, times), args, x, y, precision=precision)
        found[name] = times
    return found


def row(args: argparse.Namespace, repeats: Sequence[dict[str, Times]]) -> dict[str, Any]:
    """A method's loops: medians of seconds, and ratios to the loops that took turns with them."""
    kinds = {kind: [repeat[kind] for repeat in repeats] for kind in repeats[0]}
    loops = {loop: kinds.get(loop, kinds["fit"]) for loop in (*kinds["fit"][0], *kinds)}
    found: dict[str, Any] = {}
    for loop, fits in loops.items():
        seconds = [one for times in fits for one in times[loop]]
        found[loop] = {"seconds": round(median(seconds), 5), "n": len(seconds)}
        for to in ("floor", "train"):
            found[loop] |= ratio(fits, loop, to) if to in fits[0] else {}
    return {"images_per_second": round(args.batch / found["fit"]["seconds"], 1)} | found


def attack_step(args: argparse.Namespace) -> Times:
    """Seconds of one step, a tenth of an attack: by hand in train mode, and ours in eval mode."""
    device, build = device_of(args), builder(args.net, args.width, args.shape[0])
    x, y = torch.rand(args.batch, *args.shape, device=device), torch.randint(10, (args.batch,), device=device)

    def net() -> nn.Module:
        return build().to(device, memory_format=torch.channels_last)

    def ours(**how: bool) -> Callable[[], None]:
        return as_attacked(PGD10, net().eval(), "eval", x, y, **how)

    loops = {
        "train": hand_written(net(), Method({}, STEPS, "train", replays=0), x, y),
        "eval, not folded": ours(fold=False),
        "eval": ours(),
    }
    if args.compile:
        loops["eval, compiled"] = ours(compile=True)
    if multiplies_bf16(device):
        loops |= {"eval, bf16, not folded": ours(fold=False, bf16=True), "eval, bf16": ours(bf16=True)}
    return {name: [one / STEPS for one in seconds] for name, seconds in in_turns(loops, args.batches, device).items()}


def steps(repeats: Sequence[Times]) -> dict[str, Any]:
    """One step of each loop as a ratio to one of the train-mode loop."""
    return {loop: ratio(repeats, loop, "train") for loop in repeats[0]}


def sgd(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    """The floor's optimizer."""
    return torch.optim.SGD(parameters, lr=1e-4, momentum=0.9, weight_decay=5e-4)


def overhead(args: argparse.Namespace) -> dict[str, float]:
    """Microseconds per batch beyond the floor on a net that costs next to nothing."""
    x, y = torch.rand(8, 1, 8, 8), torch.randint(10, (8,))
    build = builder("digits_cnn", width=4)
    found = {}
    modules = {"Lightning alone": Alone(build()), "Natural": defenses.Natural(build(), 10, PGD10, optimizer=sgd)}
    for name, module in modules.items():
        times: dict[str, list[float]] = {}
        others = {"floor": hand_written(build(), METHODS["Natural"][1], x, y, research=True)}
        few = argparse.Namespace(**vars(args) | {"batches": TINY_BATCHES, "accelerator": "cpu"})
        fit(module, TakingTurns("fit", others, times), few, x, y, log_every_n_steps=50)
        found[name] = 1e6 * (median(times["fit"]) - median(times["floor"]))
    return found


def parser_of(doc: str | None, accelerators: Sequence[str] = ("cpu", "gpu")) -> argparse.ArgumentParser:
    """A parser for the net, the images and the methods of a measurement."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="resnet18", choices=NETS)
    parser.add_argument("--width", type=int, default=16, help="0 for the net's own")
    parser.add_argument("--shape", type=count, nargs=3, default=(3, 32, 32))
    parser.add_argument("--batch", type=count, default=128)
    parser.add_argument("--methods", nargs="+", default=[*METHODS], choices=[*METHODS])
    parser.add_argument("--accelerator", type=accelerator, default="cpu", choices=accelerators)
    return parser


def asked(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options of a command line whose net takes its images."""
    args = parser.parse_args()
    check_net(parser, args.net, args.width, args.shape)
    return args


def codes(args: argparse.Namespace) -> dict[str, str]:
    """The md5 of the code of each method's loops: this script, the method, its attack, and the net, also folded."""
    with torch.device("meta"):
        net = builder(args.net, args.width, args.shape[0])()
    shared, own = [*net.modules(), FoldedNet()], Path(__file__).read_bytes()
    return {
        name: hashlib.md5(
            own + code_of(object.__new__(getattr(defenses, cls)), *method.arguments.values(), *shared).encode()
        ).hexdigest()
        for name, (cls, method) in METHODS.items()
    }


def file_of(args: argparse.Namespace) -> Path:
    """The file of results of this net, device and compilation."""
    how = "_gpu" * (args.accelerator == "gpu") + "_compiled" * args.compile
    return RESULTS / f"benchmark_{args.net}_{args.width or 'full'}{how}.json"


def main() -> None:
    """Run and print the table."""
    parser = parser_of(__doc__)
    parser.set_defaults(batch=64)
    parser.add_argument("--batches", type=count, default=4, help="timed batches of each loop in each fit")
    parser.add_argument("--repeats", type=count, default=3)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", type=Path, default=None)
    args = asked(parser)
    settings = {"net": args.net, "width": args.width, "shape": [*args.shape], "batch": args.batch}
    settings |= {"batches": args.batches, "compile": args.compile, "repeats": args.repeats, **about(device_of(args))}
    code = codes(args)
    code |= {STEP: code["PGDAT"], OVERHEAD: code["Natural"]}
    table = Table(args.out or file_of(args), settings, code, beside=(STEP, OVERHEAD))
    left = table.left([*args.methods, STEP, OVERHEAD])
    turns = {name: table.turns(name) for name in left if name != OVERHEAD}
    for repeat in range(1, args.repeats + 1):
        for name in [name for name, of in turns.items() if len(of) < repeat]:
            turns[name].append(attack_step(args) if name == STEP else compare(args, *METHODS[name]))
            found = steps(turns[name]) if name == STEP else row(args, turns[name])
            table.put(name, found, unfinished=turns[name] if repeat < args.repeats else ())
            to = "to_train" if name == STEP else "to_floor"
            ratios = ", ".join(f"{loop} {of[to]:.2f}" for loop, of in found.items() if isinstance(of, dict))
            print(f"{repeat}. {name}: {ratios}", flush=True)
    if OVERHEAD in left:
        table.put(OVERHEAD, {name: round(value) for name, value in overhead(args).items()})
    print(table.record()[OVERHEAD])


if __name__ == "__main__":
    main()
