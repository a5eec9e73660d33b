"""When a coreset is chosen, and how large it is."""

from dataclasses import dataclass

from lit_robust import require
from lit_robust.callbacks.skipped_epochs import times, warm_start
from lit_robust.schedules import Schedule


@dataclass(frozen=True)
class Plan:
    """The fractions and epochs of ``CoresetSelection``, whose arguments these are."""

    fraction: float | Schedule
    every: int | None
    warm: float

    def __post_init__(self) -> None:
        if not isinstance(self.fraction, Schedule):
            require.number("fraction", self.fraction, above=0, most=1)
        if self.every is not None:
            require.integer("every", self.every, least=1)
        require.number("warm", self.warm, least=0, below=1)

    def name(self, epoch: int) -> str:
        """The fraction as the user gave it, for messages."""
        return f"fraction({epoch})" if isinstance(self.fraction, Schedule) else "fraction"

    def share(self, epoch: int) -> float:
        """The fraction of an epoch's selection."""
        if not isinstance(self.fraction, Schedule):
            return self.fraction
        return require.number(self.name(epoch), self.fraction(float(epoch)), above=0, most=1)

    def budget(self, epoch: int, images: int) -> int:
        """How many of ``images`` a selection chooses."""
        return max(1, round(times(self.share(epoch), images)))

    def starts(self, epochs: int | None) -> tuple[int, int]:
        """The first epoch that is skipped, and the first one that trains on a coreset."""
        return warm_start(self.share, self.warm, epochs or -1)

    def is_due(self, epoch: int, epochs: int | None) -> bool:
        """Whether the coreset is to be chosen again for an epoch after the warm start."""
        return self.every is not None and (epoch - self.starts(epochs)[1]) % self.every == 0

    def selected(self, epoch: int, epochs: int | None) -> int:
        """The epoch for which the coreset of ``epoch``, after the warm start, was chosen."""
        _, first = self.starts(epochs)
        return first if self.every is None else epoch - (epoch - first) % self.every

    def smallest(self, epochs: int | None) -> int:
        """The epoch of the selection with the smallest fraction; the first one if their number is unknown."""
        _, first = self.starts(epochs)
        end = max(epochs or 0, first + 1)
        return min(range(first, end, self.every or end), key=self.share)
