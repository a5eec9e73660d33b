"""When an alarm rings, and what it says: from counts of images to sentences. The thresholds are ours."""

from collections.abc import Mapping, Sequence
from math import comb
from typing import NamedTuple

from lit_robust.measures.accuracy import wilson
from lit_robust.measures.probes import GUIDED_RUNS, QUERIES
from lit_robust.threats import Norm

#: A comparison counts from these differences on, if it also passes a sign test at this level.
LEAST_SHARE, LEAST_IMAGES, SIGNIFICANCE = 0.02, 3, 0.01
#: Attacks of another kind, whose images they break that it had left, and by what share of the images each must beat it.
#: The first two are compared with PGD-20 on cross-entropy, the third one with all attacks of the test and with PGD-20
#: on both losses. ``scripts/alarm_rates.py`` counts how often an honest net passes these shares.
RIVALS = {
    "fgsm": ("one step", "PGD-20", 0.1),
    "margin": ("the margin loss", "PGD-20", 0.1),
    "guided": (f"GAMA-PGD in {GUIDED_RUNS} runs", "the test", 0.05),
}
#: What is told where the threat set is an L2 ball.
NO_SQUARE = "Square was not run, which has no L2 form here: judge by AutoAttack, which brings one."
#: The share of images in one class from which a classifier counts as constant, if the labels are not so.
CONSTANT = 0.95


class Count(NamedTuple):
    """A comparison: of ``n`` images, ``more`` support the alarm and ``fewer`` contradict it."""

    more: int
    fewer: int
    n: int

    def rings(self, least_share: float = LEAST_SHARE) -> bool:
        """Whether the difference is large enough, and larger than chance."""
        enough = self.more - self.fewer >= max(LEAST_IMAGES, least_share * self.n)
        return enough and sign_test(self.more, self.fewer) < SIGNIFICANCE


def sign_test(more: int, fewer: int) -> float:
    """The probability of at least ``more`` heads in ``more + fewer`` tosses of a fair coin."""
    tosses = more + fewer
    return sum(comb(tosses, heads) for heads in range(more, tosses + 1)) / 2.0**tosses


#: Fewer images than these never pass the sign test.
FEWEST = next(n for n in range(100) if sign_test(n, 0) < SIGNIFICANCE)


def of_probes(counts: Mapping[str, Count], classes: int, images: int, eps: float) -> dict[str, str]:
    """The alarms of comparisons.

    Args:
        counts: All of ``probes.COUNTS``.
        classes: The number of classes.
        images: The number of images, the misclassified ones included.
        eps: The large eps.
    """
    large = counts["large_eps"]
    survived = large.n - large.more
    scaled = max(counts["scaled_down"], counts["scaled_up"], key=lambda count: count.more - count.fewer)
    rivals = [(of, than, counts[name]) for name, (of, than, share) in RIVALS.items() if counts[name].rings(share)]
    beyond_gradients = "which needs no gradient of this net, breaks"
    next_test = "its gradients mislead; judge by AutoAttack and by Square with 5000 queries."
    rules: dict[str, tuple[bool, str]] = {
        "no_graph": (
            counts["no_graph"].more > 0,
            "the logits have no graph to the pixels, so gradient attacks cannot run and their rows repeat the clean "
            "accuracy: give the step that breaks the graph a substitute (BPDA), or test with Square.",
        ),
        "zero_gradient": (
            counts["zero_gradient"].rings(),
            f"the gradient of cross-entropy is exactly 0 at {_of(counts['zero_gradient'])}, where PGD cannot move: "
            "test on the margin and with AutoAttack, and give rounding inside the net a substitute (BPDA).",
        ),
        "random": (
            counts["random"].rings(),
            f"a second forward gives other logits for {_of(counts['random'])}, so single gradients mislead: average "
            'them, PGD(eot=20) or AutoAttack(version="rand").',
        ),
        "scaling": (
            scaled.rings(),
            f"with logits scaled by 1/100 or 100 PGD-20 breaks {_of(scaled, 'it')}: cross-entropy is "
            "saturated; judge by the margin (loss=lit_robust.losses.margin) or by AutoAttack.",
        ),
        "margin": (
            bool(rivals),
            " and ".join(f"{of} breaks {_of(count, than)}" for of, than, count in rivals)
            + ": cross-entropy or a single start misleads PGD on this net; judge by AutoAttack.",
        ),
        "not_below_clean": (
            Count(large.n, 0, large.n).rings() and not large.rings(),
            f"at eps={eps:.3g}, where any image can become grey, PGD breaks {large.more} of {large.n} images: its "
            "gradients say nothing about this net; test with AutoAttack.",
        ),
        "large_eps": (
            large.n > 0 and wilson(survived / images, images)[0] > 1 / classes,
            f"at eps={eps:.3g}, where any image can become grey, PGD leaves {survived} of {images} images, more than "
            "one class: test with more steps and with AutoAttack.",
        ),
        "square": (
            counts["square"].rings(),
            f"Square ({QUERIES} queries), {beyond_gradients} {_of(counts['square'], 'the test')}: {next_test}",
        ),
        "transfer": (
            counts["transfer"].rings(),
            f"a transferred attack, {beyond_gradients} {_of(counts['transfer'], 'the test')}: {next_test}",
        ),
    }
    return {name: sentence for name, (rings, sentence) in rules.items() if rings}


def _of(count: Count, than: str = "") -> str:
    if than:
        return f"{count.more} images that {than} left (of {count.n} that are right without an attack)"
    return f"{count.more} of {count.n} images"


def of_classes(predicted: Sequence[int], labels: Sequence[int]) -> dict[str, str]:
    """The alarm of a constant classifier, from how often each class was predicted and was the label."""
    most, n = max(predicted, default=0), sum(labels)
    if most < max(LEAST_IMAGES, CONSTANT * n) or max(labels) >= CONSTANT * n:
        return {}
    return {
        "trivial": f"{most} of {n} images are classified as class {predicted.index(most)}: a trivial classifier, "
        "robust because constant; train with a ramp of eps (AttributeRamp) or a lower learning rate."
    }


def in_words(alarms: Mapping[str, str], n: int, norm: Norm | None = "linf") -> str:
    """The alarms of ``n`` images for a terminal, one per line, and what was not looked for.

    Args:
        alarms: The sentences by name.
        n: How many images were probed.
        norm: That of the threat set; None if no attack of the test has an L-p bound, without which most probes do not
            run.
    """
    lines = [f"ALARM {name}: {sentence}" for name, sentence in alarms.items()]
    if not n:
        lines.append("alarms are off (alarm_images=0): of masked gradients, only a missing graph was looked for")
    elif norm is None:
        lines.append(without_alarm(n, norm))
    elif not lines:
        lines.append(f"no alarm: {without_alarm(n, norm)}")
    return "\n".join([*lines, *[NO_SQUARE] * (bool(n) and norm == "l2")])


def without_alarm(n: int, norm: Norm | None) -> str:
    """What a test of ``n`` probed images without an alarm has shown."""
    if norm is None:
        return f"the first {n} test images were probed for a constant prediction only: no attack has an L-p bound"
    if n < FEWEST:
        return f"{n} test images were probed, too few for most alarms, which need {FEWEST}"
    return f"the first {n} test images show no sign of masked gradients"
