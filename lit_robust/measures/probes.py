"""What a test looks for on its first images besides the accuracies: signs of masked gradients, image by image."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from lit_robust import losses
from lit_robust.attacks import FGSM, GAMAPGD, PGD, Attack, Square
from lit_robust.attacks.base import NoGraphError, input_gradient
from lit_robust.guards import crafting
from lit_robust.measures.correct import is_correct
from lit_robust.threats import Norm

#: What is counted, each as ``(images for an alarm, images against it, n)``.
COUNTS = (
    "no_graph", "zero_gradient", "random", "fgsm", "margin", "guided", "scaled_down", "scaled_up", "large_eps",
    "square", "transfer",
)  # fmt: skip
#: The queries of Square Attack. Of 500 MNIST images under a net that H-SAT trained at eps 0.4, 500 queries break 4 that
#: the test left, as many as PGD when it runs again; 2000 queries break 25, and 5000 break 34.
QUERIES = 2000
#: The runs of GAMA-PGD: on nets that overfit to a single step, each start finds other images.
GUIDED_RUNS = 3
#: Repeated forwards of a net that draws nothing agree to this, relative to the largest logit.
ROUNDING = 1e-4
#: How many forwards are compared: a net with four equally likely draws per batch repeats one in all in 1 of 256 tests.
FORWARDS = 5

#: ``(N,)`` bool each: which images speak for an alarm, and which against it.
Pair = tuple[Tensor, Tensor]


class Probe:
    """Looks for the signs on the images of one batch that the net classifies correctly.

    Args:
        net: Returns logits; it is attacked in its present mode.
        x: Images ``(N, C, H, W)`` in [0, 1].
        y: Their labels ``(N,)``.
        left: Which images all attacks of the test in this threat set have left, ``(N,)`` bool.
        threat: Bound and norm.
        sources: Nets that craft transferred images.
    """

    def __init__(
        self,
        net: nn.Module,
        x: Tensor,
        y: Tensor,
        left: Tensor,
        threat: tuple[float, Norm],
        sources: Sequence[nn.Module] = (),
    ) -> None:
        correct = is_correct(net, x, y)
        self.net, self.x, self.y, self.left = net, x[correct], y[correct], left[correct]
        (self.eps, self.norm), self.sources = threat, sources
        self.pgd = PGD(self.eps, self.eps / 4, 20, self.norm, keep="worst")
        self.all, self.none = torch.ones_like(self.left), torch.zeros_like(self.left)

    def run(self) -> dict[str, Pair]:
        """All pairs, by name."""
        if not len(self.x):
            return {}
        found = {"random": (self.differs(), self.none)}
        try:
            zero = self.zero_gradient()
        except NoGraphError:
            return found | {"no_graph": (self.all, self.none)} | self.black_box(self.none)
        found |= {"zero_gradient": (zero, self.none)} | self.rivals()
        found["large_eps"] = self.at_large_eps(), self.none
        again = self.white_box(self.pgd, self.left)
        gama = GAMAPGD(self.eps, norm=self.norm, keep="worst", restarts=GUIDED_RUNS, freeze_misclassified=True)
        return found | {"guided": (self.broken(gama, where=self.left), again)} | self.black_box(again)

    @torch.no_grad()
    def differs(self) -> Tensor:
        """Whether another forward gives other logits; a net that draws once per batch may repeat a draw."""
        one, *others = (self.net(self.x) for _ in range(FORWARDS))
        bound = ROUNDING * one.abs().amax().clamp_min(1e-6)
        return torch.stack([(one - other).abs() > bound for other in others]).any(dim=0).any(dim=1)

    def zero_gradient(self) -> Tensor:
        """Whether the gradient of cross-entropy is exactly 0 at the clean image."""
        with crafting(self.x, self.y) as (x, y):
            x.requires_grad_()
            return (input_gradient(losses.ce(self.net(x), y), x) == 0).flatten(1).all(dim=1)

    def rivals(self) -> dict[str, Pair]:
        """What should not beat 20 steps on cross-entropy: one step, another loss, the same loss of scaled logits."""
        ce = self.broken(self.pgd)
        found = {
            "fgsm": self.broken(FGSM(self.eps, self.norm)),
            "margin": self.broken(replace(self.pgd, loss=losses.margin)),
            "scaled_down": self.broken(self.pgd, of=Scaled(self.net, 0.01)),
            "scaled_up": self.broken(self.pgd, of=Scaled(self.net, 100.0)),
        }
        return {name: (broken, ce) for name, broken in found.items()}

    def at_large_eps(self) -> Tensor:
        """Whether PGD breaks an image at an eps that could turn it grey."""
        return self.white_box(
            PGD(large_eps(self.eps, self.norm, self.x[0].numel()), norm=self.norm, steps=20, keep="worst"), self.all
        )

    def white_box(self, pgd: PGD, where: Tensor) -> Tensor:
        """Whether an image is misclassified under PGD on cross-entropy or on the margin."""
        return self.broken(pgd, where=where) | self.broken(replace(pgd, loss=losses.margin), where=where)

    def black_box(self, again: Tensor) -> dict[str, Pair]:
        """Attacks without this net's gradient on the images that are left, against the white-box ones run again.

        Args:
            again: Which images break when the white-box attacks run once more.
        """
        found = {}
        if self.norm == "linf":
            found["square"] = self.broken(Square(self.eps, QUERIES), where=self.left), again
        if self.sources:
            pgd = PGD(self.eps, steps=20, norm=self.norm)
            crafted = [self.broken(pgd, source, self.left) for source in self.sources]
            found["transfer"] = torch.stack(crafted).any(dim=0), again
        return found

    def broken(self, attack: Attack, of: nn.Module | None = None, where: Tensor | None = None) -> Tensor:
        """Whether an image is misclassified under an attack on this net, or on another one, ``(N,)`` bool.

        Args:
            attack: The attack.
            of: The net whose gradients it uses.
            where: Which images are attacked, ``(N,)`` bool; the others count as not broken.
        """
        where = self.all if where is None else where
        broken, x, y = self.none.clone(), self.x[where], self.y[where]
        if len(x):
            broken[where] = ~is_correct(self.net, attack(of or self.net, x, y), y)
        return broken


def why_no_graph(net: nn.Module, x: Tensor, y: Tensor) -> str:
    """Why gradient attacks cannot run on a net, from one image ``(1, C, H, W)``; empty if they can."""
    # Graphs that were compiled before are for batches.
    with torch.compiler.set_stance("force_eager"), crafting(x, y) as (x, _):
        x.requires_grad_()
        try:
            input_gradient(net(x).sum(dim=1), x)
        except NoGraphError as error:
            return str(error)
    return ""


class Scaled(nn.Module):
    """A net whose logits are multiplied: the same classes, but another cross-entropy to climb.

    Args:
        net: The net.
        factor: What its logits are multiplied by.
    """

    def __init__(self, net: nn.Module, factor: float) -> None:
        super().__init__()
        self.net, self.factor = net, factor
        self.training = net.training  # without a call of train(), which would reset single layers of the net

    def forward(self, x: Tensor) -> Tensor:
        """The multiplied logits."""
        logits: Tensor = self.net(x)
        return logits.float() * self.factor


def large_eps(eps: float, norm: Norm, pixels: int) -> float:
    """A bound within which every image of this many pixels, times channels, can become mid-grey; above ``eps``."""
    return max(0.5, min(2 * eps, 1.0)) if norm == "linf" else max(0.5 * pixels**0.5, 2 * eps)
