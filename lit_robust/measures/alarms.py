"""Alarms: signs that a robust accuracy is too high, most often because the net masks its gradients.

The signs are those of Athalye et al. (ICML 2018, arXiv:1802.00420, section 3.1) and of Carlini et al.
(arXiv:1902.06705): one step beats many, attacks without gradients beat those with them, a large eps leaves some images.
They are looked for on the first images of a test, the same ones on both sides of a comparison, see
``measures.probes``. The number of images and the thresholds are ours.
"""

from collections.abc import Mapping, Sequence
from math import comb
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lit_robust.attacks import Attack
from lit_robust.batch import Batch
from lit_robust.data.loaders import EpochLoader
from lit_robust.guards import checked, own_random_state, smaller_batches
from lit_robust.measures.accuracy import wilson
from lit_robust.measures.default_attacks import threat_of_test
from lit_robust.measures.probes import COUNTS, GUIDED_RUNS, QUERIES, Probe, large_eps, why_no_graph
from lit_robust.threats import Norm

#: How many test images are probed by default, over all ranks: enough that 2 % of them pass the sign test.
IMAGES = 400
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


class Alarms(Metric):
    """Counts what the alarms compare, over batches and ranks.

    Args:
        attacks: The attacks of the test; the first one with an eps in an L-p norm gives the threat set of the probes.
            If none has one, there are no alarms but ``trivial`` and ``no_graph``.
        num_classes: The number of classes.
        images: How many images are probed, over all ranks; with 0 there is no alarm but ``no_graph``, because without
            a graph the rows of the test repeat the clean accuracy.
        sources: Nets whose adversarial images are shown to the tested one, for ``transfer``.
    """

    full_state_update = False
    counts: Tensor
    classes: Tensor
    large: Tensor

    def __init__(
        self,
        attacks: Mapping[str, Attack],
        num_classes: int,
        images: int = IMAGES,
        sources: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.threat = threat_of_test(attacks)
        self.images, self.sources, self.seen, self.looked = images, list(sources), 0, False
        self.n = 0  #: The number of images behind the last result.
        self.add_state("counts", torch.zeros(len(COUNTS), 3, dtype=torch.int64), dist_reduce_fx="sum")
        # How often each class was predicted, and how often it was the label.
        self.add_state("classes", torch.zeros(2, num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("large", torch.zeros(()), dist_reduce_fx="max")  # the large eps

    @property
    def norm(self) -> Norm | None:
        """That of the threat set."""
        return self.threat[1] if self.threat else None

    def reset(self) -> None:
        """Start a test."""
        super().reset()
        self.seen, self.looked = 0, False

    def update(self, net: nn.Module, batch: Batch, left: Tensor, ranks: int = 1, before: int | None = None) -> None:
        """Probe the images of a batch that are among the first of the test.

        Args:
            net: Returns logits; it is probed in its present mode.
            batch: A batch of the test; samples of weight 0 are left out.
            left: Which images all attacks of the test have left, ``(N,)`` bool.
            ranks: The number of ranks.
            before: How many images of the test precede the batch, over all ranks; by default unknown, and each rank
                probes equally many images, the first that it gets.
        """
        done, share = (self.seen, ranks) if before is None else (before, 1)
        exist = (batch.weight > 0).nonzero().squeeze(1)
        rows = exist[: max(0, -(-self.images // share) - done)]
        if not self.images or self.threat is None:
            self._look_for_a_graph(net, batch, exist[:1])
        if not len(rows):
            return
        x, y = batch.x[rows], batch.y[rows]
        with torch.no_grad():
            predicted = net(x).argmax(dim=1)
        of_class = torch.arange(self.classes.shape[1], device=y.device).unsqueeze(1)
        self.classes += torch.stack([(of == of_class).sum(dim=1) for of in (predicted, y)])
        if self.threat is not None:
            with own_random_state(x.device), checked(), smaller_batches():
                torch.manual_seed(torch.initial_seed())
                probe = Probe(net, x, y, left[rows], self.threat, self.sources)
                found = probe.run()
            for name, (more, fewer) in found.items():
                sums = (more & ~fewer).sum(), (fewer & ~more).sum(), torch.tensor(len(more), device=y.device)
                self.counts[COUNTS.index(name)] += torch.stack(sums)
            self.large.fill_(large_eps(*self.threat, x[0].numel()))
        self.seen += len(rows)

    def _look_for_a_graph(self, net: nn.Module, batch: Batch, row: Tensor) -> None:
        """Once in a test, what other probes find on the way."""
        if self.looked or not len(row):
            return
        self.looked = True
        with own_random_state(batch.x.device), checked():
            if why_no_graph(net, batch.x[row], batch.y[row]):
                self.counts[COUNTS.index("no_graph"), 0] += 1

    def compute(self) -> dict[str, str]:
        """The alarms by name, each a sentence that says what was found and what to do next."""
        counts = {name: Count(*row) for name, row in zip(COUNTS, self.counts.tolist(), strict=True)}
        predicted, labels = self.classes.tolist()
        self.n = sum(labels)
        return {**of_probes(counts, len(labels), self.n, float(self.large)), **of_classes(predicted, labels)}


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
    next_test = "the gradients are masked; judge by AutoAttack and by Square with 5000 queries."
    rules: dict[str, tuple[bool, str]] = {
        "no_graph": (
            counts["no_graph"].more > 0,
            "the logits have no graph to the pixels, so gradient attacks cannot run and their rows repeat the clean "
            "accuracy: give the step that breaks the graph a substitute (BPDA), or test with Square.",
        ),
        "zero_gradient": (
            counts["zero_gradient"].rings(),
            f"the gradient of cross-entropy is exactly 0 at {_of(counts['zero_gradient'])}, where PGD cannot move: "
            "test on the margin, with Square or with AutoAttack, and give rounding inside the net a substitute (BPDA).",
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
            "gradients say nothing about this net; test with Square or AutoAttack.",
        ),
        "large_eps": (
            large.n > 0 and wilson(survived / images, images)[0] > 1 / classes,
            f"at eps={eps:.3g}, where any image can become grey, PGD leaves {survived} of {images} images, more than "
            "one class: test with more steps, with Square and with AutoAttack.",
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


def place_of(trainer: Any, batch_idx: int, dataloader_idx: int = 0) -> tuple[int, int | None]:
    """The number of ranks, and how many images of the test precede a batch; None where its loader cannot tell."""
    loaders = trainer.test_dataloaders
    loader = loaders[dataloader_idx] if isinstance(loaders, list | tuple) else loaders
    before = loader.images_before(batch_idx) if isinstance(loader, EpochLoader) else None
    return trainer.world_size, before


def _of(count: Count, than: str = "") -> str:
    return f"{count.more} images that {than} left, of {count.n}" if than else f"{count.more} of {count.n} images"


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
        lines.append(f"the first {n} images were probed for a constant prediction only: no attack has an L-p bound")
    elif not lines:
        lines.append(f"no alarm: the first {n} images show no sign of masked gradients")
    return "\n".join([*lines, *[NO_SQUARE] * (bool(n) and norm == "l2")])
