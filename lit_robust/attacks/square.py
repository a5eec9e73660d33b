"""Square Attack: random search that needs no gradient, so masked gradients cannot mislead it."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_robust import require
from lit_robust.attacks.base import EPS, LONG, Attack
from lit_robust.attacks.passes import badness, like_images
from lit_robust.guards import crafting, may_shrink
from lit_robust.magnitudes import Magnitude

#: After these queries the squares' area is halved, as in the authors' code, whose schedule is for 10,000 queries.
HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
#: After how many queries an evaluation leaves out the images that are misclassified by then.
SHRINK_EVERY = 25


@dataclass(frozen=True)
class Square(Attack):
    """Square Attack in L-infinity (Andriushchenko et al., ECCV 2020, arXiv:1912.00049, algorithms 1 and 2).

    It starts from random vertical stripes of plus or minus eps. Each query draws one square per image and gives each of
    its channels plus or minus eps; the image keeps it if the margin grows. A misclassified image stays as it is. It
    costs ``queries`` forwards. In an evaluation misclassified images leave the batch every 25 queries, which waits for
    the device; the same images end up broken.

    The schedule of areas is the authors' for 10,000 queries, not stretched to fewer, as in AutoAttack. In their code a
    square is drawn again until it changes something; ours draws it once.

    Args:
        eps: The bound in L-infinity, in units of [0, 1].
        queries: The number of forwards per image.
        area: The share of the image's area that the first squares have; the authors' is 0.8 in AutoAttack.

    Raises:
        ValueError: If an argument is out of range.
    """

    eps: Magnitude = EPS
    queries: int = 5000
    area: float = 0.8

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", require.pixels("eps", self.eps, "linf"))
        require.integer("queries", self.queries, least=1)
        require.number("area", self.area, above=0, most=1)

    @property
    def is_long(self) -> bool:
        """Whether it takes at least ``LONG`` passes; a forward is a third of one."""
        return self.queries >= 3 * LONG

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Search for a misclassified point of each image."""
        if not len(x):
            return x.clone()
        with crafting(x, y) as (x, y), torch.no_grad():
            n, channels, _, width = x.shape
            x_adv = (x + self.eps * _signs(n, channels, 1, width, like=x)).clamp(0, 1)
            broken, margin = badness(net(x_adv), y, targeted=False)
            rows = torch.arange(n, device=x.device)
            for query in range(1, self.queries):
                squares, signs = self.squares(x, query), _signs(n, channels, 1, 1, like=x)
                if may_shrink(net) and query % SHRINK_EVERY == 0:
                    rows = (~broken).nonzero().squeeze(1)
                    if not len(rows):
                        break
                found = torch.where(squares[rows], (x + self.eps * signs).clamp(0, 1)[rows], x_adv[rows])
                now_broken, now_margin = badness(net(found), y[rows], targeted=False)
                better = ~broken[rows] & (now_broken | (now_margin > margin[rows]))
                x_adv[rows] = torch.where(like_images(better, x), found, x_adv[rows])
                margin[rows] = torch.where(better, now_margin, margin[rows])
                broken[rows] |= now_broken & better
            return x_adv

    def squares(self, x: Tensor, query: int) -> Tensor:
        """A random square for each image, ``(N, 1, H, W)`` bool, of the size that this query has."""
        height, width = x.shape[-2:]
        share = self.area / 2 ** sum(query > after for after in HALVED_AFTER)
        side = min(max(round((share * height * width) ** 0.5), 1), min(height, width))
        inside = []
        for length in (height, width):
            first = torch.randint(length - side + 1, (len(x), 1), device=x.device)
            places = torch.arange(length, device=x.device)
            inside.append((places >= first) & (places < first + side))
        square: Tensor = (inside[0].unsqueeze(2) & inside[1].unsqueeze(1)).unsqueeze(1)
        return square


def _signs(*shape: int, like: Tensor) -> Tensor:
    return 2.0 * torch.randint(2, shape, device=like.device).to(like.dtype) - 1
