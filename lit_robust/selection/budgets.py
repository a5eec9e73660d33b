"""How classes share the budget of a selection."""

from torch import Tensor


def shares(sizes: Tensor, budget: int) -> list[int]:
    """The budget in proportion to the sizes, in whole numbers that add up to it: the largest remainders round up.

    Where the budget allows it, each class that has samples gets one. (The authors' code rounds each share up.)
    """
    exact = sizes.double() * budget / sizes.sum()
    whole = exact.floor().long()
    most = (exact - whole).argsort(descending=True, stable=True)[: budget - int(whole.sum())]
    whole[most] += 1
    for absent in ((whole == 0) & (sizes > 0)).nonzero()[:, 0].tolist():
        if whole.max() > 1:  # no class vanishes while another one has several
            whole[whole.argmax()] -= 1
            whole[absent] = 1
    return whole.tolist()
