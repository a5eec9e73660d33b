"""Alarms: signs that a robust accuracy is too high, most often because the net masks its gradients.

The signs are those of Athalye et al. (ICML 2018, arXiv:1802.00420, section 3.1) and of Carlini et al.
(arXiv:1902.06705): one step beats many, attacks without gradients beat those with them, a large eps leaves some images.
They are looked for on the first images of a test, the same ones on both sides of a comparison, see
``measures.probes``; ``measures.alarm_rules`` decides and says what to do next.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lit_robust.attacks import Attack
from lit_robust.batch import Batch
from lit_robust.data.loaders import EpochLoader
from lit_robust.guards import checked, own_random_state, smaller_batches
from lit_robust.measures.alarm_rules import Count, of_classes, of_probes
from lit_robust.measures.default_attacks import threat_of_test, within
from lit_robust.measures.probes import COUNTS, Probe, large_eps, why_no_graph
from lit_robust.threats import Norm

#: How many test images are probed by default, over all ranks: enough that 2 % of them pass the sign test.
IMAGES = 400


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
        # Images that only a larger eps or another norm breaks are left: the probes may not break them either.
        self.within = within(self.threat, attacks) if self.threat else []
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

    def update(
        self, net: nn.Module, batch: Batch, correct: Mapping[str, Tensor], ranks: int = 1, before: int | None = None
    ) -> None:
        """Probe the images of a batch that are among the first of the test.

        Args:
            net: Returns logits; it is probed in its present mode.
            batch: A batch of the test; samples of weight 0 are left out.
            correct: Which images withstand each attack of the test, ``(N,)`` bool by name, as of ``surviving``.
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
                left = torch.stack([correct[name][rows] for name in self.within]).all(dim=0)
                probe = Probe(net, x, y, left, self.threat, self.sources)
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


def place_of(trainer: Any, batch_idx: int, dataloader_idx: int = 0) -> tuple[int, int | None]:
    """The number of ranks, and how many images of the test precede a batch; None where its loader cannot tell."""
    loaders = trainer.test_dataloaders
    loader = loaders[dataloader_idx] if isinstance(loaders, list | tuple) else loaders
    before = loader.images_before(batch_idx) if isinstance(loader, EpochLoader) else None
    return trainer.world_size, before
