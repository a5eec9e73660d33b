"""The inputs of an analysis: nets, images, the journal of finished measurements, and the folder of the results."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor, nn

from lit_robust.analysis.journal import Journal
from lit_robust.analysis.output import Row, write
from lit_robust.analysis.subjects import (
    Images,
    Subject,
    adversarial_images,
    survivors,
)
from lit_robust.attacks import PGD, Attack
from lit_robust.attacks.autoattack_findings import Findings, gathering
from lit_robust.attacks.base import NoGraphError
from lit_robust.measures.alarms import Alarms
from lit_robust.measures.image_blocks import Blocks, identity
from lit_robust.measures.probes import why_no_graph
from lit_robust.seeds import run_seed

if TYPE_CHECKING:
    from matplotlib.figure import Figure


#: Returns the images as they are, also of a net without a gradient.
CLEAN = PGD(steps=0, init="zero")


class Source(Protocol):
    """A net whose adversarial images are shown to others, and the digest of all that it depends on."""

    @property
    def net(self) -> nn.Module:
        """The net, in eval mode."""

    @property
    def key(self) -> str:
        """The digest."""


@dataclass(frozen=True)
class Study:
    """Nets and their common test images; measurements are kept in ``journal.jsonl``.

    The folder ``blocks`` keeps what the present attack has finished, if it is a long one, until the next one begins or
    the results are written, see ``measures.image_blocks``.

    Args:
        subjects: The nets.
        images: The test images.
        device: Where nets and images are.
        out: The folder of the results.
        journal: What was measured there before.
        blocks: What a long attack has finished there.
    """

    subjects: list[Subject]
    images: Images
    device: torch.device
    out: Path
    journal: Journal
    blocks: Blocks
    _last: dict[tuple[str, str, str], list[Tensor]] = field(default_factory=dict, init=False, repr=False)
    _told: set[tuple[str, str]] = field(default_factory=set, init=False, repr=False)

    def measured(self, what: str, net: Subject, attack: Attack, measure: Callable[[], Any], *more: str) -> Any:
        """A measurement of a net under an attack; what was measured before is not repeated.

        Args:
            what: The name of the measurement.
            net: The net.
            attack: The attack.
            measure: Returns numbers, strings, lists and dictionaries of them.
            *more: What else the result depends on, besides the images and the seed.
        """
        return self.journal.get((what, net.key, self.images.key, identity(attack), str(run_seed()), *more), measure)

    def survivors(
        self,
        target: Subject,
        attack: Attack,
        origin: Subject | None = None,
        images: Images | None = None,
        without_graph: Literal["refuse", "keep"] = "refuse",
    ) -> str:
        """``subjects.survivors`` of a net under an attack.

        Args:
            target: The net.
            attack: The attack.
            origin: The net whose adversarial images are shown to it; by default its own, which no other net is shown.
            images: The clean images; by default those of the test.
            without_graph: What to do where a net gives the attack no gradient: refuse it, or keep the clean images.

        Raises:
            ValueError: If a net gives no gradient and is refused.
        """
        seen = images or self.images
        source = origin or target

        def crafted() -> list[Tensor]:
            if origin is not None:
                return self._crafted(origin, attack, seen)
            self.blocks.forget()
            return adversarial_images(target.net, attack, seen, self.blocks, judged_by=target.net)

        def measure() -> dict[str, Any]:
            with gathering(Findings()) as findings:
                x_adv = crafted()
            return {"survived": survivors(target.net, x_adv, seen), "findings": findings.counts}

        try:
            what = "survivors" if origin is None else "survivors of a transfer"
            found = self.measured(what, target, attack, measure, source.key, seen.key)
            self._tell(getattr(source, "name", target.name), Findings(found["findings"]))
            return str(found["survived"])
        except NoGraphError as error:
            if without_graph == "keep":
                return self.survivors(target, CLEAN, images=images)
            name = getattr(source, "name", None)  # a surrogate has none
            raise ValueError(f"{name or target.name}: {error}") from error

    def no_gradient(self, net: nn.Module) -> str:
        """Why gradient attacks cannot run on a net; empty if they can."""
        batch = self.images.batches[0]
        return why_no_graph(net, batch.x[:1], batch.y[:1])

    def alarms(
        self, net: Subject, attacks: Mapping[str, Attack], sources: Sequence[Source], classes: int
    ) -> dict[str, str]:
        """The alarms of a net after these attacks, a sentence by name; see ``measures.alarms``.

        Args:
            net: The net.
            attacks: The attacks of the comparison.
            sources: Nets whose adversarial images are shown to it.
            classes: The number of classes.
        """
        bits = {name: self.survivors(net, attack, without_graph="keep") for name, attack in attacks.items()}
        left = torch.tensor([[bit == "1" for bit in of] for of in bits.values()], device=self.device).T

        def measure() -> dict[str, str]:
            probed = Alarms(attacks, classes, sources=[source.net for source in sources]).to(self.device)
            for batch, of_batch in zip(self.images.batches, self.per_batch(left), strict=True):
                probed.update(net.net, batch, dict(zip(bits, of_batch.T, strict=True)))
            return probed.compute()

        found: dict[str, str] = self.journal.get(
            (
                "alarms",
                net.key,
                self.images.key,
                identity(attacks),
                str(run_seed()),
                *(source.key for source in sources),
            ),
            measure,
        )
        return found

    def per_batch(self, values: Tensor) -> tuple[Tensor, ...]:
        """Split per-image values into the batches of the images."""
        return torch.split(values, [len(batch.y) for batch in self.images.batches])

    def write(self, stem: str, rows: Sequence[Row], figure: "Figure", *more: Any) -> None:
        """``output.write(out, ...)`` into the study's folder; blocks are no longer needed then."""
        write(self.out, stem, rows, figure, *more)
        self.blocks.forget()

    def _tell(self, net: str, findings: Findings) -> None:
        """Warn once of what an attack on a net has found, now or before the analysis was stopped."""
        for sentence in findings.sentences():
            if (net, sentence) not in self._told:
                self._told.add((net, sentence))
                warnings.warn(f"{net}: {sentence}", stacklevel=2)

    def _crafted(self, origin: Subject, attack: Attack, images: Images) -> list[Tensor]:
        """The adversarial images of a net; the last ones are kept, because a transfer shows them to several nets."""
        key = (origin.key, images.key, identity(attack))
        if key not in self._last:
            self._last.clear()
            self.blocks.forget()
            self._last[key] = adversarial_images(origin.net, attack, images, self.blocks)
        return self._last[key]
