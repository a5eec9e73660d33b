"""How long it takes to select 30 % of CIFAR-10's 50,000 images, without the time for their gradients.

    python scripts/selection_speed.py --root data     # writes scripts/results/selection_speed.json

The gradients are those of a small convolutional net with 512 features after one epoch of training, at FGSM's images: 10
numbers for the last layer's bias, 513 for the row of a sample's own class, 5,130 for the whole layer. Each
selector is compared with a naive one, on one class (5,000 images) because it would take too long on all: plain greedy,
and scikit-learn's orthogonal matching pursuit, which has no ridge and no bound on the sign of weights and ends when
the match is exact.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cpu_budget_results import md5_of
from measured import about, folder, reset_peak, resident
from torch import Tensor, nn

from lit_robust import losses
from lit_robust.attacks import FGSM
from lit_robust.data import CIFAR10DataModule
from lit_robust.nets import Net
from lit_robust.nets.net import CIFAR10_MEAN, CIFAR10_STD
from lit_robust.selection import CRAIG, GradMatch, Outer, concatenated, last_layer_gradients, own_class
from lit_robust.selection.embeddings import gradient_error, gram, squared_norms

RESULT = Path(__file__).parent / "results/selection_speed.json"
FRACTION = 0.3
SELECTORS = {
    "CRAIG, stochastic greedy, 10 dimensions": CRAIG(greedy="stochastic"),
    "CRAIG, lazy greedy, 10 dimensions": CRAIG(),
    "GradMatch, own class, 513 dimensions": GradMatch(gradient="own_class"),
    "GradMatch, whole layer, 5,130 dimensions": GradMatch(),
}


def small_net() -> Net:
    """A net with 512 features, as ResNet-18 has them, whose passes are cheap."""
    body = nn.Sequential(
        nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(64 * 8 * 8, 512), nn.ReLU(),
    )  # fmt: skip
    return Net(body, nn.Linear(512, 10), mean=CIFAR10_MEAN, std=CIFAR10_STD)


def gradients(data: CIFAR10DataModule) -> tuple[Outer, Tensor]:
    """Train for an epoch, and return the gradients of the last layer at FGSM's images, and the labels."""
    torch.manual_seed(0)
    net, attack = small_net(), FGSM(eps=8 / 255)
    optimizer = torch.optim.Adam(net.parameters())
    for batch in data.train_dataloader():
        optimizer.zero_grad()
        losses.ce(net(attack(net, batch.x, batch.y)), batch.y).mean().backward()
        optimizer.step()
    parts, labels = [], []
    for batch in data.plain_train_dataloader():
        x_adv = attack(net, batch.x, batch.y)
        parts.append(last_layer_gradients(net.head, lambda: losses.ce(net(x_adv), batch.y)))  # noqa: B023  # called at once
        labels.append(batch.y)
    outer = concatenated(parts)
    assert isinstance(outer, Outer)
    return outer, torch.cat(labels)


def naive_greedy(rows: Tensor, budget: int) -> Tensor:
    """Facility location with all gains in every step."""
    norms = squared_norms(rows)
    distances = (norms + norms[:, None] - 2 * gram(rows, rows)).clamp_(min=0).fill_diagonal_(0)
    nearest, chosen = distances.max().repeat(len(rows)), torch.zeros(len(rows), dtype=torch.bool)
    for _ in range(budget):
        gains = torch.cat([(nearest - part).clamp_(min=0).sum(1) for part in distances.split(500)])
        best = gains.masked_fill(chosen, -1).argmax()
        chosen[best] = True
        nearest = torch.minimum(nearest, distances[best])
    return chosen.nonzero()[:, 0]


def sklearn_pursuit(rows: Tensor, budget: int) -> Tensor:
    """scikit-learn's orthogonal matching pursuit."""
    from sklearn.linear_model import orthogonal_mp

    return torch.from_numpy(
        orthogonal_mp(rows.T.numpy(), rows.sum(0).numpy(), n_nonzero_coefs=min(budget, *rows.shape))
    )


def timed(run: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Seconds, CPU seconds and the highest memory, beyond what was held, of a call, and its result."""
    held = reset_peak()
    begun = time.perf_counter(), time.process_time()
    result = run()
    now = time.perf_counter(), time.process_time()
    seconds, cpu_seconds = (round(after - before, 2) for before, after in zip(begun, now, strict=True))
    gigabytes = round((resident(peak=True) - held) / 1e9, 2)
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "gigabytes": gigabytes}, result


def main() -> None:
    """Time all selections and store the seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=folder, help="where CIFAR-10 lies; LIT_ROBUST_DATA by default")
    data = CIFAR10DataModule(parser.parse_args().root, augment=False, val_size=0)
    data.prepare_data()
    data.setup()
    outer, y = gradients(data)
    budget = round(FRACTION * len(y))
    found: dict[str, Any] = {}
    for name, selector in SELECTORS.items():
        embeddings = outer.left if selector.reads == "bias" else outer
        cost, coreset = timed(lambda: selector(embeddings, y, budget, torch.Generator().manual_seed(0)))  # noqa: B023  # called at once
        found[name] = cost | {
            "images": len(y),
            "chosen": len(coreset.indices),
            "filled": coreset.filled,
            "largest_weight": round(float(coreset.weights.max()), 2),
            "gradient_error": round(gradient_error(embeddings, coreset.indices, coreset.weights), 5),
        }
        print(name, found[name], flush=True)
    members = (y == 0).nonzero()[:, 0]
    one = Outer(outer.left[members], outer.right[members])
    share = round(FRACTION * len(members))
    labels = y[members]
    for name, run in {
        "one class: CRAIG, lazy greedy": lambda: CRAIG()(one.left, labels, share),
        "one class: naive greedy": lambda: naive_greedy(one.left, share),
        "one class: GradMatch, own class": lambda: GradMatch(gradient="own_class")(one, labels, share),
        "one class: scikit-learn's pursuit, own class": lambda: sklearn_pursuit(own_class(one, labels), share),
    }.items():
        cost, _ = timed(run)
        found[name] = cost | {"images": len(members)}
        print(name, found[name], flush=True)
    facts = {"fraction": FRACTION, "md5": md5_of(data), **about(torch.device("cpu"))}
    RESULT.write_text(json.dumps(facts | {"selections": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
