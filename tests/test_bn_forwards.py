"""The authors' forwards, typed out in plain PyTorch: with them BatchNorm's running statistics are the authors'."""

import re
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_robust import defenses, losses
from lit_robust.attacks import FGSM, PGD, FriendlyPGD
from lit_robust.callbacks import DelayedStart
from lit_robust.defenses import AWP, ELLEA, MART, PGDAT, TRADES
from lit_robust.seeds import seed
from tests.methods import build
from tests.tiny import CLASSES, images, indexed, trainer

EPS, STEP, STEPS, LR = 0.05, 0.02, 3, 0.05
ATTACK = PGD(EPS, step_size=STEP, steps=STEPS)
LAM_MAX = 1e5


def conv_net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Softplus()),
            *(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.Softplus()),
            *(nn.Flatten(), nn.Linear(128, CLASSES)),
        )
    with torch.no_grad():
        net[-1].weight *= 0.05  # the loss is flat at first, so ELLE's error grows, and its penalty begins
    return net.double()


def grey_images(n):
    """Far enough from black and white that no perturbation is clipped to [0, 1], which ELLE's code does not do."""
    batch = images(n)
    return batch._replace(x=(0.2 + 0.6 * batch.x).double())


def uniform(x: Tensor, size: float) -> Tensor:
    return (2 * torch.rand_like(x) - 1) * size


# The authors' steps.


def pgd(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """`attack_pgd` of Rice et al. and of AT-AWP, in the net's mode."""
    delta = uniform(x, EPS)
    for _ in range(STEPS):
        delta.requires_grad_()
        F.cross_entropy(net(x + delta), y).backward()
        delta = (delta + STEP * delta.grad.sign()).clamp(-EPS, EPS).detach()
    F.cross_entropy(net(x + delta), y, reduction="none")  # which restart is best
    return x + delta


def rice(net, optimizer, x, y):
    net.train()
    x_adv = pgd(net, x, y)
    loss = F.cross_entropy(net(x_adv), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    F.cross_entropy(net(x), y)  # printed


class Perturbation:
    """`AdvWeightPerturb`: how a second net's weights move in a step of plain SGD up the loss."""

    def __init__(self, net, gamma):
        self.net, self.gamma = net, gamma

    def add(self, loss):
        proxy = deepcopy(self.net).train()
        step = torch.optim.SGD(proxy.parameters(), lr=0.01)
        step.zero_grad()
        (-loss(proxy)).backward()
        step.step()
        self.moves = []
        for weight, moved in zip(self.net.parameters(), proxy.parameters(), strict=True):
            if weight.ndim > 1:
                change = (moved - weight).detach()
                self.moves.append((weight, self.gamma * weight.detach().norm() / (change.norm() + 1e-20) * change))
        with torch.no_grad():
            for weight, move in self.moves:
                weight += move

    def remove(self):
        with torch.no_grad():
            for weight, move in self.moves:
                weight -= move


def at_awp(net, optimizer, x, y):
    net.train()
    x_adv = pgd(net, x, y)
    perturbation = Perturbation(net, gamma=0.01)
    perturbation.add(lambda proxy: F.cross_entropy(proxy(x_adv), y))
    loss = F.cross_entropy(net(x_adv), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    perturbation.remove()
    F.cross_entropy(net(x), y)


def kl(logits: Tensor, clean: Tensor, reduction: str = "batchmean") -> Tensor:
    return F.kl_div(logits.log_softmax(dim=1), clean.softmax(dim=1), reduction=reduction)


def trades_attack(net: nn.Module, x: Tensor) -> Tensor:
    net.eval()
    x_adv = x + 0.001 * torch.randn_like(x)
    for _ in range(STEPS):
        x_adv.requires_grad_()
        (gradient,) = torch.autograd.grad(8 * kl(net(x_adv), net(x)), x_adv)
        x_adv = (x_adv.detach() + STEP * gradient.sign()).clamp(x - EPS, x + EPS)
    return x_adv


def trades(net, optimizer, x, y):
    x_adv = trades_attack(net, x)
    net.train()
    optimizer.zero_grad()
    natural = F.cross_entropy(net(x), y)
    robust = kl(net(x_adv), net(x))
    (natural + 6 * robust).backward()
    optimizer.step()


def trades_awp(net, optimizer, x, y):
    x_adv = trades_attack(net, x)
    net.train()
    perturbation = Perturbation(net, gamma=0.005)
    perturbation.add(lambda proxy: F.cross_entropy(proxy(x), y) + 6 * kl(proxy(x_adv), proxy(x)))
    optimizer.zero_grad()
    robust = kl(net(x_adv), net(x))
    natural = F.cross_entropy(net(x), y)
    (natural + 6 * robust).backward()
    optimizer.step()
    perturbation.remove()


def fat_for_trades(net, optimizer, x, y):
    x_adv = trades_attack(net, x)  # nothing stops early, see below
    net.train()
    optimizer.zero_grad()
    natural, logits = net(x), net(x_adv)
    (F.cross_entropy(natural, y) + 6 * kl(logits, natural)).backward()
    optimizer.step()


class Elle:
    """ELLE-A on N-FGSM's attack, with one step of the optimizer."""

    def __init__(self, noise=0.0):
        self.noise, self.lam, self.errors = noise, 0.0, []

    def __call__(self, net, optimizer, x, y):
        net.train()
        optimizer.zero_grad()
        x_adv = x + uniform(x, self.noise * EPS)
        x_adv.requires_grad_()
        F.cross_entropy(net(x_adv), y).backward()
        x_adv = (x_adv + EPS * x_adv.grad.sign()).detach()
        net.zero_grad()
        loss = F.cross_entropy(net(x_adv), y)
        x_a, x_b, t = x + uniform(x, EPS), x + uniform(x, EPS), torch.rand(len(x), dtype=x.dtype)
        x_c = torch.lerp(x_a, x_b, t.view(-1, 1, 1, 1))
        a, b, c = F.cross_entropy(net(torch.cat([x_a, x_b, x_c])), y.repeat(3), reduction="none").chunk(3)
        error = F.mse_loss(c, (1 - t) * a + t * b)
        loss = loss + self.lam * error
        net(x)  # whose accuracy is printed
        loss.backward()
        earlier, latest = torch.tensor(self.errors), error.item()
        high = len(earlier) > 2 and latest > earlier.mean() + 2 * earlier.std(correction=0)
        self.lam = LAM_MAX if high else 0.99 * self.lam
        self.errors.append(latest)
        optimizer.step()


# Name: the method, its arguments, the authors' step.
CODES = {
    "Rice et al.": (PGDAT, {}, lambda: rice),
    "AT-AWP": (PGDAT, {"weight_perturbation": AWP(gamma=0.01)}, lambda: at_awp),
    "TRADES": (TRADES, {}, lambda: trades),
    "TRADES-AWP": (TRADES, {"weight_perturbation": AWP(gamma=0.005)}, lambda: trades_awp),
    "FAT for TRADES": (
        TRADES,
        {"attack": FriendlyPGD(EPS, step_size=STEP, steps=STEPS, tau=STEPS, omega=0.0)},
        lambda: fat_for_trades,
    ),
    "ELLE-A": (ELLEA, {"attack": FGSM(EPS), "lam_max": LAM_MAX}, Elle),
    "ELLE-A on N-FGSM": (ELLEA, {"attack": FGSM(EPS), "lam_max": LAM_MAX, "k": 2.0}, lambda: Elle(noise=2.0)),
}


def sgd(params):
    return torch.optim.SGD(params, lr=LR, momentum=0.9)


@pytest.fixture(autouse=True)
def in_float64(monkeypatch):
    """The KL's gradient next to the clean image is so small that its signs depend on float32's rounding."""
    monkeypatch.setattr(losses, "ce", lambda logits, y: F.cross_entropy(logits, y, reduction="none"))
    monkeypatch.setattr(
        losses, "kl", lambda z, clean: F.kl_div(z.log_softmax(1), clean.softmax(1), reduction="none").sum(1)
    )


def by_the_authors(name, batches) -> dict[str, Tensor]:
    net, step = conv_net(), CODES[name][2]()
    optimizer, data = sgd(net.parameters()), grey_images(8 * batches)
    for index in range(batches):
        seed(torch.device("cpu"), "train", 0, index, 0)
        rows = slice(8 * index, 8 * index + 8)
        step(net, optimizer, data.x[rows], data.y[rows])
    if isinstance(step, Elle) and batches > 5:
        assert step.lam > 0
    return net.state_dict()


def by_us(name, batches, tmp_path, bn_forwards) -> dict[str, Tensor]:
    method, arguments, _ = CODES[name]
    defense = build(
        method, **({"net": conv_net(), "attack": ATTACK, "optimizer": sgd, "bn_forwards": bn_forwards} | arguments)
    )
    trainer(tmp_path, max_epochs=1, precision="64-true").fit(defense, indexed(grey_images(8 * batches)))
    return defense.net.state_dict()


def assert_near(found, expected, tolerance):
    assert found.keys() == expected.keys()
    off = {key: (found[key] - value).abs().max().item() for key, value in expected.items()}
    assert max(off.values()) <= tolerance, off


@pytest.mark.parametrize("name", CODES)
def test_with_the_authors_forwards_statistics_and_weights_are_theirs(name, tmp_path):
    assert_near(by_us(name, 3, tmp_path, "authors"), by_the_authors(name, 3), 1e-6)


@pytest.mark.parametrize("name", ["ELLE-A", "ELLE-A on N-FGSM"])
def test_with_the_authors_forwards_all_is_theirs_once_elles_penalty_is_on(name, tmp_path):
    assert_near(by_us(name, 8, tmp_path, "authors"), by_the_authors(name, 8), 1e-6)


@pytest.mark.parametrize("name", CODES)
def test_with_the_needed_ones_the_statistics_differ_and_weights_only_if_the_attack_reads_them(name, tmp_path):
    found, expected = by_us(name, 3, tmp_path, "needed"), by_the_authors(name, 3)
    off = {key: (found[key] - value).abs().max().item() for key, value in expected.items()}
    assert all(value > 1e-5 for key, value in off.items() if "running" in key), off
    if CODES[name][0] is not TRADES:  # whose attack is in eval mode
        assert all(value < 1e-6 for key, value in off.items() if "running" not in key and "num" not in key)


# Which forwards move the statistics.


def moved_by(defense, tmp_path) -> list[str]:
    """What each forward of a batch in train mode is computed on."""
    data, seen = grey_images(8), []

    def note(net, args, logits):
        (x,) = args
        if net.training:
            seen.append("triplet" if len(x) == 24 else "clean" if torch.equal(x, data.x) else "adversarial")

    defense.net.register_forward_hook(note)
    trainer(tmp_path, max_epochs=1, precision="64-true").fit(defense, indexed(data))
    assert int(defense.net[1].num_batches_tracked) == len(seen)
    return seen


def clean_share(moves: list[str]) -> float:
    """The clean images' share of statistics that follow each forward with BatchNorm's momentum of 0.1."""
    weights = [0.9**age for age in reversed(range(len(moves)))]
    return sum(weight for weight, move in zip(weights, moves, strict=True) if move == "clean") / sum(weights)


PGD10 = PGD(EPS, step_size=STEP, steps=10)
LATER = AWP(warm_up=9)
FRIENDLY = FriendlyPGD(EPS, step_size=STEP, steps=STEPS)
A, C, T = "adversarial", "clean", "triplet"


@pytest.mark.parametrize(
    ("method", "arguments", "needed", "authors", "shares"),
    [
        (PGDAT, {"attack": PGD10}, [A] * 11, [*[A] * 12, C], (0, 0.134)),
        (TRADES, {}, [A, C], [C, A, C], (0.526, 0.668)),
        (TRADES, {"weight_perturbation": LATER}, [A, C], [A, C, C], (0.526, 0.701)),
        (TRADES, {"attack": FRIENDLY}, [A, C], [C, A], (0.526, 0.474)),
        (ELLEA, {"attack": FGSM(EPS)}, [C, T, A], [C, A, T, C], (0.299, 0.503)),
    ],
    ids=["PGDAT", "TRADES", "TRADES-AWP", "FAT for TRADES", "ELLE-A"],
)
def test_the_order_of_forwards_and_the_clean_share_are_those_of_the_docstrings(
    method, arguments, needed, authors, shares, tmp_path
):
    for bn_forwards, moves, share in zip(("needed", "authors"), (needed, authors), shares, strict=True):
        defense = build(method, **({"net": conv_net(), "attack": ATTACK, "bn_forwards": bn_forwards} | arguments))
        assert moved_by(defense, tmp_path) == moves
        assert clean_share(moves) == pytest.approx(share, abs=5e-4)


def test_restarts_are_compared_once(tmp_path):
    """By PGD itself, as in the authors' code."""
    defense = build(PGDAT, net=conv_net(), attack=PGD(EPS, 2 * STEP, steps=2, restarts=3), bn_forwards="authors")
    assert moved_by(defense, tmp_path) == [*[A] * 3 * (2 + 1), A, C]


@pytest.mark.parametrize(("method", "forwards"), [(PGDAT, STEPS + 3), (TRADES, 3), (ELLEA, 4)])
def test_a_batch_before_the_switch_has_one_forward(method, forwards, tmp_path):
    defense = build(method, attack=FGSM(EPS) if method is ELLEA else ATTACK, bn_forwards="authors")
    trainer(tmp_path, max_epochs=2, callbacks=[DelayedStart(at_epoch=1)]).fit(defense, indexed(images(24)))
    assert int(defense.net.body[1].num_batches_tracked) == 3 * 1 + 3 * forwards


@pytest.mark.parametrize(
    ("method", "arguments", "named"),
    [
        (PGDAT, {"bn_forwards": "all"}, "bn_forwards="),
        (TRADES, {"bn_forwards": True}, "bn_forwards="),
        (PGDAT, {"bn_forwards": "authors", "attack_bn_mode": "eval"}, "attack_bn_mode="),
        (TRADES, {"bn_forwards": "authors", "attack_bn_mode": "train"}, "attack_bn_mode="),
        (ELLEA, {"bn_forwards": "authors", "attack_bn_mode": "eval", "attack": FGSM(EPS)}, "attack_bn_mode="),
    ],
)
def test_what_the_authors_do_not_do_is_refused(method, arguments, named):
    with pytest.raises(ValueError, match=f"^{named}"):
        build(method, **arguments)


def test_marts_forwards_are_the_authors():
    with pytest.raises(TypeError, match="bn_forwards"):
        build(MART, bn_forwards="authors")


@pytest.mark.parametrize("name", [name for name in defenses.__all__ if name not in ("AWP", "Defense", "Natural")])
def test_each_docstring_tells_batch_norms_mode_in_the_attack(name):
    told = " ".join((getattr(defenses, name).__doc__ or "").split())
    assert "BatchNorm" in told
    assert re.search(r"(train|eval) mode", told)
