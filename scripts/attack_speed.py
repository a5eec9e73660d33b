"""Time the attacks beside other packages' on the same net and images, with the same steps, in float32.

    python scripts/attack_speed.py                     # writes scripts/results/attack_speed.json
    python scripts/attack_speed.py --peers foolbox

A package that is not installed is named and left out. Each is given the net in eval mode, then in train mode, and the
BatchNorm mode in which it attacks is observed: some always attack in eval mode, the others in the mode of the caller.
Ours attacks in that mode, too, as in a training or a test: in channels_last, and with folded BatchNorms in eval mode.
"Alone" is a plain call of ours on the contiguous net. The package gets the net contiguous, as torch builds it, and in
channels_last. All take turns in one process; reported are medians of seconds, and ratios to ours. Square's eps is so
small that it breaks no image, so all make the same number of queries. The file is written after each attack; what
it has of the same settings and code stays.
"""

import argparse
import warnings
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from cpu_budget_results import code_of
from measured import NETS, Table, about, as_attacked, builder, check_net, count, device, in_turns
from torch import Tensor, nn

from lit_robust.attacks import FGSM, PGD, Attack, Square
from lit_robust.guards import BNMode
from lit_robust.nets.folded import FoldedNet

RESULT = Path(__file__).parent / "results/attack_speed.json"
EPS, STEP, STEPS, QUERIES, SQUARE_EPS = 8 / 255, 2 / 255, 10, 100, 1e-6

#: ``(package, net, x, y)``: builds the package's attack and runs it.
Run = Callable[[Any, nn.Module, Tensor, Tensor], Any]


def of_foolbox(attack: Callable[[Any], Any]) -> Run:
    """An attack of foolbox."""

    def run(foolbox: Any, net: nn.Module, x: Tensor, y: Tensor) -> Any:
        model = foolbox.PyTorchModel(net, bounds=(0, 1), device=x.device)
        return attack(foolbox.attacks)(model, x, y, epsilons=EPS)

    return run


def of_art(attack: Callable[[Any, Any, int], Any]) -> Run:
    """An attack of ART, which takes and returns arrays."""

    def run(art: Any, net: nn.Module, x: Tensor, y: Tensor) -> Any:
        kind = "gpu" if x.is_cuda else "cpu"
        estimator = import_module("art.estimators.classification").PyTorchClassifier(
            net, nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, clip_values=(0, 1), device_type=kind
        )
        return attack(art, estimator, len(x)).generate(x.cpu().numpy(), y=y.cpu().numpy())

    return run


class Pair(NamedTuple):
    """An attack of ours, and the same one of other packages by their distribution's name."""

    ours: Attack
    peers: dict[str, Run]


PAIRS = {
    f"PGD-{STEPS}": Pair(
        PGD(EPS, STEP, steps=STEPS),
        {
            "torchattacks": lambda ta, net, x, y: ta.PGD(net, eps=EPS, alpha=STEP, steps=STEPS)(x, y),
            "foolbox": of_foolbox(lambda fb: fb.LinfPGD(abs_stepsize=STEP, steps=STEPS)),
            "adversarial-robustness-toolbox": of_art(
                lambda art, estimator, n: art.ProjectedGradientDescentPyTorch(
                    estimator, eps=EPS, eps_step=STEP, max_iter=STEPS, num_random_init=1, batch_size=n, verbose=False
                )
            ),
            "adv-lib": lambda adv, net, x, y: adv.pgd_linf(net, x, y, EPS, steps=STEPS, absolute_step_size=STEP),
        },
    ),
    "FGSM": Pair(
        FGSM(EPS),
        {
            "torchattacks": lambda ta, net, x, y: ta.FGSM(net, eps=EPS)(x, y),
            "foolbox": of_foolbox(lambda fb: fb.LinfFastGradientAttack()),
            "adversarial-robustness-toolbox": of_art(
                lambda art, estimator, n: art.FastGradientMethod(estimator, eps=EPS, batch_size=n)
            ),
        },
    ),
    f"Square, {QUERIES} queries": Pair(
        Square(SQUARE_EPS, queries=QUERIES),
        {
            "torchattacks": lambda ta, net, x, y: ta.Square(net, eps=SQUARE_EPS, n_queries=QUERIES)(x, y),
            "adversarial-robustness-toolbox": of_art(
                lambda art, estimator, n: art.SquareAttack(
                    estimator, eps=SQUARE_EPS, max_iter=QUERIES, batch_size=n, verbose=False
                )
            ),
        },
    ),
}
#: The modules of the distributions.
MODULES = {
    "torchattacks": "torchattacks",
    "foolbox": "foolbox",
    "adversarial-robustness-toolbox": "art.attacks.evasion",
    "adv-lib": "adv_lib.attacks",
}


def installed(names: list[str]) -> dict[str, tuple[str, Any]]:
    """The version and the module of each package; none of one that is missing."""
    found = {}
    for name in names:
        try:
            found[name] = version(name), import_module(MODULES[name])
        except (PackageNotFoundError, ImportError) as error:
            print(f"{name} is not installed, so it is left out ({error})")
    return found


def observed(run: Callable[[], Any], net: nn.Module) -> tuple[BNMode, int]:
    """The mode in which a call runs the net, and its number of forwards."""
    seen: list[bool] = []
    hook = net.register_forward_pre_hook(lambda net, inputs: seen.append(net.training))
    run()
    hook.remove()
    (training,) = set(seen)
    return "train" if training else "eval", len(seen)


def alone(attack: Attack, net: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Any]:
    """A plain call."""
    return lambda: attack(net, x, y)


def compare(pair: Pair, name: str, module: Any, net: nn.Module, x: Tensor, y: Tensor, repeats: int) -> dict[str, Any]:
    """One package's attack and ours in each mode in which the package attacks."""
    rows: dict[str, Any] = {}
    wanted: tuple[BNMode, ...] = ("eval", "train")
    for given in wanted:
        contiguous, last = deepcopy(net), deepcopy(net).to(memory_format=torch.channels_last)
        for one in (contiguous, last):
            one.train(given == "train")
        run = partial(pair.peers[name], module)
        mode, forwards = observed(partial(run, contiguous, x[:2], y[:2]), contiguous)
        if mode in rows:
            continue
        contiguous.train(given == "train")  # some leave the net in their own mode
        x_last = x.contiguous(memory_format=torch.channels_last)
        plain = deepcopy(net).train(mode == "train")
        _, ours_forwards = observed(partial(pair.ours, plain, x[:2], y[:2]), plain)
        loops: dict[str, Callable[[], Any]] = {
            "ours": as_attacked(pair.ours, deepcopy(last), mode, x, y),
            "alone": alone(pair.ours, plain, x, y),
            "peer": partial(run, contiguous, x, y),
            "peer, channels_last": partial(run, last, x_last, y),
        }
        found = {loop: median(times) for loop, times in in_turns(loops, repeats, x.device).items()}
        ratios = {f"{loop} / ours": round(value / found["ours"], 3) for loop, value in found.items() if loop != "ours"}
        rows[mode] = {"seconds": {loop: round(value, 5) for loop, value in found.items()}, **ratios}
        rows[mode]["forwards"] = {"ours": ours_forwards, "peer": forwards}
        print(f"{name}, {mode}: " + ", ".join(f"{loop} {ratio:.2f}" for loop, ratio in ratios.items()), flush=True)
    return rows


def main() -> None:
    """Run and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="resnet18", choices=NETS)
    parser.add_argument("--width", type=int, default=16, help="0 for the net's own")
    parser.add_argument("--batch", type=count, default=64)
    parser.add_argument("--repeats", type=count, default=7)
    parser.add_argument("--peers", nargs="+", default=[*MODULES], choices=[*MODULES])
    parser.add_argument("--attacks", nargs="+", default=[*PAIRS], choices=[*PAIRS])
    parser.add_argument("--device", type=device, default="cpu")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    check_net(parser, args.net, args.width, (3, 32, 32))
    torch.manual_seed(0)
    net = builder(args.net, args.width)().to(args.device)
    x = torch.rand(args.batch, 3, 32, 32, device=args.device)
    with torch.no_grad():
        net(x)  # moves the statistics of BatchNorms away from their start
        y = net.eval()(x).argmax(1)
    modules = installed(args.peers)
    settings = {
        "net": args.net, "width": args.width, "batch": args.batch, "repeats": args.repeats, "device": str(args.device),
        "peers": {name: number for name, (number, _) in modules.items()},
        "missing": sorted(set(args.peers) - modules.keys()), **about(x.device),
    }  # fmt: skip
    code = {attack: code_of(pair.ours, *net.modules(), FoldedNet()) for attack, pair in PAIRS.items()}
    table = Table(args.out, settings, code)
    for attack in table.left(args.attacks):
        pair = PAIRS[attack]
        print(f"{attack}:", flush=True)
        with warnings.catch_warnings(record=True):  # foolbox shows its own in spite of any filter
            found = {
                name: compare(pair, name, module, net, x, y, args.repeats)
                for name, (_, module) in modules.items()
                if name in pair.peers
            }
        table.put(attack, found)


if __name__ == "__main__":
    main()
