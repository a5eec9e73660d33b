"""How classes share the budget of a selection."""

import torch
from torch import Tensor


def shares(sizes: Tensor, budget: int) -> list[int]:
    """The budget in proportion to the sizes, in whole numbers that add up to it, by the divisors 1, 3, 5, ...

    Each class that has samples gets one first, the largest classes if there are not enough; then the next one goes to
    the class with the largest size over (2 share + 1), so a larger budget takes from none. (The authors' code rounds
    each share up.)
    """
    owner = torch.arange(len(sizes), device=sizes.device).repeat_interleave(sizes)
    share = torch.arange(len(owner), device=sizes.device) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    of = sizes.double()[owner]
    claims = torch.where(share == 0, of + of.max(), of / (2 * share + 1))
    served = owner[claims.argsort(descending=True, stable=True)[:budget]]
    given: list[int] = torch.bincount(served, minlength=len(sizes)).tolist()
    return given
