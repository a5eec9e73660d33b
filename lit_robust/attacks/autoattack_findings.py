"""What AutoAttack finds out about a net besides its adversarial images, counted for one sentence per test."""

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from lit_robust.attacks.base import NoGraphError
from lit_robust.ranks import gather_over_ranks

#: What is found, by name: words of the package's warning, and ours. An attack counts Square's images itself.
FINDINGS = {
    "random": (
        "randomized defense",
        'the net draws random numbers, which misleads AutoAttack: choose version="rand".',
    ),
    "probabilities": (
        "probability distribution",
        "the net returns probabilities, whose gradients vanish: let it return logits.",
    ),
    "zero_gradient": (
        "zero gradient",
        "the gradient is exactly 0, where APGD cannot move: look for rounding or saturation in the net (BPDA), and "
        "trust Square's share of the result.",
    ),
    "square": (
        "Square Attack has decreased",
        "Square breaks what all gradient attacks left, so the net masks its gradients: see the alarms of test.",
    ),
    "dynamic": (
        "dynamic defense",
        "the net optimises while it predicts, which AutoAttack does not take into account.",
    ),
}

#: Square's finding is told from this share of all images on, as in the package.
LEAST_SQUARE = 0.002

#: The name under which all attacked images are counted.
ATTACKED = "attacked"


class Findings:
    """Numbers of images by attack and name of the finding, and of all attacked images.

    Args:
        counts: Numbers by ``"attack | name"``.
    """

    def __init__(self, counts: Mapping[str, int] | None = None) -> None:
        self.counts = Counter(counts)

    def reset(self) -> None:
        """Begin anew."""
        self.counts.clear()

    def over_ranks(self) -> "Findings":
        """The sums over all ranks; every rank must call it."""
        of_ranks = gather_over_ranks({key: torch.tensor(n) for key, n in self.counts.items()})
        total: Counter[str] = Counter()
        for rank in of_ranks:
            total.update({key: int(n) for key, n in rank.items()})
        return Findings(total)

    def sentences(self) -> list[str]:
        """What is to be told, a sentence for each attack and finding."""
        told = []
        for key, n in self.counts.items():
            attack, _, name = key.rpartition(" | ")
            images = self.counts[f"{attack} | {ATTACKED}"]
            if name in FINDINGS and n > (LEAST_SQUARE * images if name == "square" else 0):
                told.append(f"{attack}, at {n} of {images} images: {FINDINGS[name][1]}")
        return told


_gathered: ContextVar[Findings | None] = ContextVar("findings", default=None)


@contextmanager
def gathering(findings: Findings) -> Iterator[Findings]:
    """Add what attacks find in the body to these findings, instead of warnings by each attack.

    An evaluation enters this and tells them at its end.
    """
    token = _gathered.set(findings)
    try:
        yield findings
    finally:
        _gathered.reset(token)


def hand_on(findings: Findings) -> None:
    """Add findings to those that the caller gathers; if it gathers none, warn of them."""
    gathered = _gathered.get()
    if gathered is not None:
        gathered.counts.update(findings.counts)
        return
    for sentence in findings.sentences():
        warnings.warn(sentence, stacklevel=4)


@contextmanager
def watched(attack: str, images: int) -> Iterator[Counter[str]]:
    """Count what the package warns of in the body, hand it on, and raise our error for a net without a graph.

    Args:
        attack: The attack, as the sentences name it.
        images: The number of images. A warning that names no number concerns the net, so all of them.

    Yields:
        Numbers of images by name, for what the body counts itself.
    """
    found: Counter[str] = Counter()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield found
    except RuntimeError as error:
        if "does not require grad" in str(error):
            raise NoGraphError from None
        raise
    for message, category in dict.fromkeys((str(warning.message), warning.category) for warning in caught):
        name = next((name for name, (theirs, _) in FINDINGS.items() if theirs in message), None)
        if name is None:
            warnings.warn(message, category, stacklevel=4)
            continue
        points = re.search(r"there are (\d+) points", message)
        found[name] = max(found[name], int(points[1]) if points else images)  # restarts meet the same images again
    hand_on(Findings({f"{attack} | {name}": n for name, n in {**found, ATTACKED: images}.items()}))


def is_valid(counts: Any) -> bool:
    """Whether a value from a file can be the counts of findings."""
    return isinstance(counts, dict) and all(
        isinstance(key, str) and isinstance(n, int) and n >= 0 for key, n in counts.items()
    )
