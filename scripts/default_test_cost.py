"""Count what the default test costs compared with PGD-20 and PGD-100, on a weak, a middling and a robust net.

    python scripts/default_test_cost.py

The nets are trained on scikit-learn's digits with three seeds: naturally, by FGSM at eps/3 and by PGD. Passes are
counted image by image, a forward as 1/3 and a backward as 2/3; they do not depend on the machine, as seconds would. The
default test is PGD-20 on cross-entropy and on the margin and GAMA-PGD with 40 steps, each with its worst point, and
images that are broken leave the batch; the forwards that every test needs are left out. The alarms' passes are those
per probed image, whose number does not grow with the test. Results are written to results/default_test_cost.json.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from cpu_budget_results import commit, opened, versions
from torch import Tensor, nn

from lit_robust.attacks import FGSM, PGD, Attack
from lit_robust.batch import Batch
from lit_robust.data import DigitsDataModule
from lit_robust.losses import ce
from lit_robust.measures.accuracy import surviving
from lit_robust.measures.alarms import IMAGES, Alarms
from lit_robust.measures.default_attacks import default_test
from lit_robust.nets import digits_cnn

RESULTS = Path(__file__).parent / "results/default_test_cost.json"
EPS, EPOCHS, SEEDS = 0.15, 15, (0, 1, 2)
NETS: dict[str, Attack | None] = {"weak": None, "middling": FGSM(EPS / 3), "robust": PGD(EPS, steps=7)}
TESTS: dict[str, dict[str, Attack]] = {
    "default": default_test(EPS),
    "pgd20": {"pgd20": PGD(EPS, EPS / 4, steps=20)},
    "pgd100": {"pgd100": PGD(EPS, EPS / 4, steps=100)},
}


class Counted(nn.Module):
    """A net that counts the passes of each image."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.passes = net, 0.0

    def forward(self, x: Tensor) -> Tensor:
        """The net's logits."""
        logits: Tensor = self.net(x)
        self.passes += len(x) / 3
        if logits.requires_grad:
            logits.register_hook(self.count)
        return logits

    def count(self, gradient: Tensor) -> None:
        """Count a backward."""
        self.passes += 2 * len(gradient) / 3


def train(attack: Attack | None, data: DigitsDataModule, seed: int) -> nn.Module:
    """A small net after ``EPOCHS`` epochs of cross-entropy on an attack's images, or on clean ones."""
    torch.manual_seed(seed)
    net = digits_cnn(width=16)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(EPOCHS):
        for batch in data.train_dataloader():
            x = attack(net, batch.x, batch.y) if attack else batch.x
            optimizer.zero_grad()
            ce(net(x), batch.y).mean().backward()
            optimizer.step()
    return net.eval()


def costs(net: nn.Module, images: Batch) -> dict[str, Any]:
    """The passes per image of each test, and the accuracy that the default one leaves."""
    found: dict[str, Any] = {}
    for name, attacks in TESTS.items():
        counted = Counted(net).eval()
        torch.manual_seed(0)
        survivors = surviving(counted, attacks, images)
        clean = (1 + len(attacks)) / 3  # the forwards that judge clean and adversarial images
        found[name] = round(counted.passes / len(images.y) - clean, 3)
        if name == "default":
            found["robust"] = round(100 * survivors["worst"].float().mean().item(), 2)
            counted.passes = 0.0
            Alarms(attacks, num_classes=10).update(counted, images, survivors)
            found["alarms"] = round(counted.passes / min(IMAGES, len(images.y)), 3)
    return found


def main(args: list[str] | None = None) -> None:
    """Measure all nets."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(args)
    torch.set_num_threads(1)
    data = DigitsDataModule(batch_size=64)
    data.setup("fit")
    data.setup("test")
    images = Batch(*(torch.cat(parts) for parts in zip(*data.test_dataloader(), strict=True)))
    rows = {name: [costs(train(attack, data, seed), images) for seed in SEEDS] for name, attack in NETS.items()}
    with opened(RESULTS) as results:
        results |= {"n": len(images.y), "eps": EPS, "versions": versions(), "commit": commit(), "rows": rows}
    for name, of_net in rows.items():
        print(name, of_net)


if __name__ == "__main__":
    main()
