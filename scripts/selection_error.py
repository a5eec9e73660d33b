"""How far a coreset's gradient is from that of all images: of each selector, and as the net trains on.

    python scripts/selection_error.py --root data     # writes scripts/results/selection_error.json

Nets are trained on the first 2,000 images for 5 epochs, adversarially: ``fast_cnn`` by PGD-10 on MNIST, a ResNet-18 of
width 8 by FGSM on CIFAR-10. Then 30 % are selected by the last layer's gradients at adversarial images, and the nets
train on, on all images, so that no row changes what another one is compared with. After each epoch the same weighted
images are compared with all: the difference of the weighted sum of the last layer's gradients, relative to that of all
images. ``weight`` is the sum of the weights over the number of images; the loss divides by it. Each row is selected
from the same gradients; 3 seeds of nets and draws.

A pursuit without a ridge (``lam`` 0, as in the released code) is exact and ends once it has as many images as there are
dimensions; the rest of the budget is filled up at random, with weight 1 (as there), with the mean weight, or not.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from cpu_budget_results import hardware, md5_of, versions
from measured import folder
from torch import Tensor

from lit_robust import losses
from lit_robust.attacks import FGSM, PGD, Attack
from lit_robust.data import CIFAR10DataModule, MNISTDataModule
from lit_robust.data.torchvision_sets import TorchvisionDataModule
from lit_robust.guards import network_mode
from lit_robust.nets import Net, fast_cnn, resnet18
from lit_robust.selection import CRAIG, GradMatch, Outer, Random, concatenated, gradient_error, last_layer_gradients
from lit_robust.selection.selectors import Selector

RESULT = Path(__file__).parent / "results/selection_error.json"
N, FRACTION, BEFORE, AFTER, SEEDS = 2000, 0.3, 5, 5, (0, 1, 2)


class Setting(NamedTuple):
    """Data, and how a net is trained on them."""

    data: type[TorchvisionDataModule]
    net: Any
    attack: Attack


SETTINGS = {
    "MNIST": Setting(MNISTDataModule, fast_cnn, PGD(0.1, 0.025, steps=10)),
    "CIFAR-10": Setting(CIFAR10DataModule, lambda: resnet18(width=8), FGSM(8 / 255)),
}
SELECTORS: dict[str, Selector] = {
    "random": Random(),
    "random, balanced": Random(scope="class"),
    "CRAIG": CRAIG(),
    "GradMatch, whole layer": GradMatch(),
    "GradMatch, own class": GradMatch(gradient="own_class"),
    "GradMatch, own class, lam 0, fill one": GradMatch(gradient="own_class", lam=0, fill="one"),
    "GradMatch, own class, lam 0, fill mean": GradMatch(gradient="own_class", lam=0, fill="mean"),
    "GradMatch, own class, lam 0, fill none": GradMatch(gradient="own_class", lam=0, fill="none"),
}


def train_epoch(net: Net, attack: Attack, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    """An epoch of adversarial training."""
    net.train()
    for part in torch.randperm(len(y)).split(100):
        optimizer.zero_grad()
        losses.ce(net(attack(net, x[part], y[part])), y[part]).mean().backward()
        optimizer.step()


def gradients(net: Net, attack: Attack, x: Tensor, y: Tensor) -> Outer:
    """The last layer's gradients at adversarial images, with BatchNorm in eval mode."""
    parts = []
    with network_mode(net, "eval"):
        for block in torch.arange(len(y)).split(250):
            x_adv = attack(net, x[block], y[block])
            parts.append(last_layer_gradients(net.head, lambda: losses.ce(net(x_adv), y[block])))  # noqa: B023  # called at once
    outer = concatenated(parts)
    assert isinstance(outer, Outer)
    return outer


def measured(setting: Setting, x: Tensor, y: Tensor, seed: int) -> dict[str, dict[str, Any]]:
    """For each selector the errors after 0 to ``AFTER`` more epochs, how many it chose, and the filled-up ones."""
    torch.manual_seed(seed)
    net = setting.net()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(BEFORE):
        train_epoch(net, setting.attack, optimizer, x, y)
    outer = gradients(net, setting.attack, x, y)
    coresets = {}
    for name, selector in SELECTORS.items():
        embeddings = outer.left if selector.reads == "bias" else outer
        coresets[name] = selector(embeddings, y, round(FRACTION * len(y)), torch.Generator().manual_seed(seed))
    found: dict[str, dict[str, Any]] = {
        name: {
            "errors": [],
            "chosen": len(one.indices),
            "filled": one.filled,
            # Random weights of 1 stand for equal ones.
            "weight": 1.0 if isinstance(SELECTORS[name], Random) else round(float(one.weights.sum()) / len(y), 3),
        }
        for name, one in coresets.items()
    }
    for epoch in range(AFTER + 1):
        if epoch:
            train_epoch(net, setting.attack, optimizer, x, y)
            outer = gradients(net, setting.attack, x, y)
        for name, (indices, weights, _) in coresets.items():
            scale = len(y) / len(indices) if isinstance(SELECTORS[name], Random) else 1
            found[name]["errors"].append(round(gradient_error(outer, indices, scale * weights), 5))
    return found


def main() -> None:
    """Measure all selectors and store their errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=folder, help="where the data sets lie; LIT_ROBUST_DATA by default")
    root = parser.parse_args().root
    found, md5 = {}, {}
    for name, setting in SETTINGS.items():
        data = setting.data(root, augment=False, val_size=0, train_size=N)
        x, y, *_ = (torch.cat(column) for column in zip(*data.plain_train_dataloader(), strict=True))
        md5[name] = md5_of(data)["train"]
        found[name] = [measured(setting, x, y, seed) for seed in SEEDS]
        print(name, found[name], flush=True)
    facts = {"images": N, "fraction": FRACTION, "md5": md5, "versions": versions(), "hardware": hardware()}
    RESULT.write_text(json.dumps(facts | {"settings": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
