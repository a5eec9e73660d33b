"""Losses of logits, one number per sample, for training and for attacks alike; and norms of a batch's logits.

All compute in float32, also if the net runs in another precision: under float16 a small loss or gradient becomes 0.

Shape:
    logits, clean_logits, difference: ``(N, C)``;  y, target: ``(N,)`` int64;  every result: ``(N,)`` float32, but one
    number for the norms and the nuclear penalty.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

#: ``(logits, y) -> (N,)``, or ``(logits, clean_logits) -> (N,)``.
SampleLoss = Callable[[Tensor, Tensor], Tensor]
#: ``(logits, y, target) -> (N,)``, larger where the target class gains.
TargetLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


def ce(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy ``-log p_y``; ``y`` may also be soft labels ``(N, C)``, whose rows sum to 1."""
    if y.shape != logits.shape:
        _check(logits, y)
    return F.cross_entropy(logits.float(), y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """How far the best other class is ahead: ``max_{j != y} z_j - z_y``, positive where the net is wrong.

    Carlini and Wagner (arXiv:1608.04644), their f6 without its bound kappa.
    """
    _check(logits, y)
    return _margin(logits.float(), y)


def probability_margin(logits: Tensor, y: Tensor) -> Tensor:
    """The margin of softmax probabilities, ``max_{j != y} p_j - p_y`` in [-1, 1].

    GAMA (arXiv:2011.14969) maximises it, and P-SAT (arXiv:2003.09347) measures difficulty by it.
    """
    _check(logits, y)
    return _margin(logits.float().softmax(dim=1), y)


def margin_targeted(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The margin of a target class over the label: ``z_t - z_y``, the loss of MultiTargeted (arXiv:1910.09338)."""
    _check(logits, y)
    _check(logits, target)
    logits = logits.float()
    return _pick(logits, target) - _pick(logits, y)


def ce_targeted(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy towards one class, ``log p_t`` (arXiv:1607.02533); the label is not used."""
    return -ce(logits, target)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference-of-logits ratio (Croce and Hein, arXiv:2003.01690): the margin over ``z_(1) - z_(3)``.

    ``z_(k)`` is the k-th largest logit. The ratio does not change when logits are shifted or scaled, so a net
    cannot weaken the attack by growing its logits.

    Raises:
        ValueError: If there are fewer than 3 classes.
    """
    _check(logits, y, classes=3)
    logits = logits.float()
    first, _, third = logits.topk(3, dim=1).values.unbind(dim=1)
    return _margin(logits, y) / (first - third + 1e-12)


def dlr_targeted(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Difference-of-logits ratio towards one class: ``-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2)``.

    The targeted loss of AutoAttack (Croce and Hein, arXiv:2003.01690); it grows as ``target`` gains on ``y``.

    Raises:
        ValueError: If there are fewer than 4 classes.
    """
    _check(logits, y, classes=4)
    first, _, third, fourth = logits.float().topk(4, dim=1).values.unbind(dim=1)
    return margin_targeted(logits, y, target) / (first - (third + fourth) / 2 + 1e-12)


def kl(logits: Tensor, clean_logits: Tensor) -> Tensor:
    """``KL(p(clean_logits) || p(logits))``, with a gradient through both; detach one where that is not wanted.

    The regulariser of TRADES (arXiv:1901.08573) and what its attack maximises. Its gradient is 0 where the
    logits agree, so an attack must not start at the clean image.
    """
    if logits.ndim != 2 or logits.shape != clean_logits.shape:
        raise ValueError(
            f"logits and clean_logits must both be (N, C), but are {tuple(logits.shape)} "
            f"and {tuple(clean_logits.shape)}."
        )
    log_p, log_q = clean_logits.float().log_softmax(dim=1), logits.float().log_softmax(dim=1)
    return F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(dim=1)


def bce(logits: Tensor, y: Tensor) -> Tensor:
    """Boosted cross-entropy of MART (Wang et al., ICLR 2020, OpenReview rklOg6EFwS).

        -log p_y - log(1.0001 - max_{j != y} p_j)

    The constant is the authors' code's; it bounds the second term's gradient where another class is certain.
    """
    _check(logits, y)
    others = _without(logits.float().softmax(dim=1), y).amax(dim=1)
    return ce(logits, y) - (1.0001 - others).log()


def nuclear_norm(difference: Tensor) -> Tensor:
    """The sum of the singular values of a batch of logit differences: NuAT's regulariser (NeurIPS 2021), without 1/N.

    Its gradient is ``U V^T`` of the thin SVD, whose Frobenius norm is ``sqrt(min(N, C))`` however small the matrix is;
    it is finite at repeated singular values and at 0, where ``U`` and ``V`` are not unique.

    Raises:
        FloatingPointError: If a number is not finite; the SVD's own error only says "ill-conditioned".
    """
    # By SVD: 50 us at 64 x 10 and 370 us at 64 x 100, with the gradient, on a CPU core. The eigenvalues of the smaller
    # Gram matrix take 70 and 350 us in float64. In float32 they are no faster at 64 x 10, and the gradient is 4 % off.
    with torch.autocast(difference.device.type, enabled=False):
        try:
            norm: Tensor = torch.linalg.matrix_norm(difference.float(), ord="nuc")
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # documented, but not exported to type checkers
            raise FloatingPointError(
                "the logits are not finite, so they have no nuclear norm: lower the learning rate, clip gradients "
                "(gradient_clip_val) or train in bf16-mixed instead of 16-mixed."
            ) from None
    return norm


def nuclear_penalty(logits: Tensor, clean_logits: Tensor, weight: Tensor | None = None) -> Tensor:
    """NuAT's regulariser: the nuclear norm of the batch's logit differences over N, one number.

    Args:
        logits: Of the adversarial images.
        clean_logits: Of the clean ones.
        weight: Weights ``(N,)`` of the samples; each row counts as ``weight / mean(weight)`` copies of itself.
    """
    difference = logits.float() - clean_logits.float()
    if weight is not None:
        # The Gram matrix is then the sum of w_i a_i a_i^T; dividing by the mean keeps the term's scale. The mean is
        # 0 if a rank's batch is all padding.
        copies = weight / weight.mean().clamp_min(torch.finfo(weight.dtype).tiny)
        difference = difference * copies.sqrt().unsqueeze(1)
    return nuclear_norm(difference) / len(difference)


def frobenius_norm(difference: Tensor) -> Tensor:
    """The root of the sum of squares; its gradient at 0 is 0."""
    norm: Tensor = torch.linalg.vector_norm(difference.float())
    return norm


def _margin(scores: Tensor, y: Tensor) -> Tensor:
    return _without(scores, y).amax(dim=1) - _pick(scores, y)


def _without(scores: Tensor, y: Tensor) -> Tensor:
    """The scores with the label's set to minus infinity, so that maxima are over the other classes."""
    return scores.scatter(1, y.unsqueeze(1), -torch.inf)


def _pick(scores: Tensor, y: Tensor) -> Tensor:
    return scores.gather(1, y.unsqueeze(1)).squeeze(1)


def _check(logits: Tensor, y: Tensor, classes: int = 2) -> None:
    if logits.ndim != 2 or y.shape != logits.shape[:1]:
        raise ValueError(
            f"logits must be (N, C) and labels (N,), but they are {tuple(logits.shape)} and {tuple(y.shape)}."
        )
    if logits.shape[1] < classes:
        raise ValueError(f"this loss needs at least {classes} classes, but the net returns {logits.shape[1]} logits.")
